"""Records of a training for tests: a steady run, any part of which can be given another course."""

from __future__ import annotations

from typing import Any


def steady(at: int, members: int = 2, **changed: Any) -> dict[str, Any]:
    """A record of a training that goes well."""
    record: dict[str, Any] = {
        "update": at,
        "bars_seen": 64 * at,
        "cpu_s": at / 1000,
        "lr": [1e-3] * members,
        "epsilon": None,
        "beta": None,
        "loss": [0.42] * members,
        "td_p50": [0.65] * members,
        "td_p90": [1.6] * members,
        "td_p99": [2.6] * members,
        "q_abs_max": [4.0] * members,
        "q_bound": 300.0,
        "target_gap": [0.05] * members,
        "grad_norm": [0.3] * members,
        "grad_clipped": [0.1] * members,
        "dead_units": [0.05] * members,
        "action_share": [{"0": 0.6, "1": 0.4}] * members,
        "attention_entropy": None,
        "train_bps": [2.2] * members,
        "validation_bps": [2.0] * members,
        "validation_error_bps": [0.3] * members,
        "turnover": [0.05] * members,
        "exit_spread": None,
    }
    return {**record, **changed}
