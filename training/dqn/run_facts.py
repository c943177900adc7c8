"""What is known of a training before its first update, beside which its history is read: `RUN/run.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brokers.files import atomic_write
from training.errors import TrainingError
from training.market import MarketTable

SATURATED_SHARE = 0.5
"""A feature that is at one end of its range in half of the rows tells little there."""
LEVELS_MAX = 8
"""A feature of so few values is a category, which is meant to be at an end."""
CONSTANT = 1e-6
"""Deviation, relative to the largest absolute value, below which a float32 feature does not move."""

TAIL = 0.999
"""Share of the bars that tells how far bars usually go; what is far beyond it is alone."""

Facts = dict[str, Any]


def run_facts(
    configuration: Mapping[str, Any],
    table: MarketTable,
    feature_names: Sequence[str],
    *,
    reward_scale: float,
    planned_updates: int | None,
    validation_bars: int,
    parameters: int,
    groups: int = 1,
) -> Facts:
    """Return what the doctor and the report know of a training.

    Args:
        configuration: The whole of it, as JSON (`model_dump(mode="json")`).
        table: Training rows.
        feature_names: (F,) of the table's columns.
        reward_scale: Learner's reward per log equity.
        planned_updates: Updates it will make; None where a time budget ends it.
        validation_bars: Rows that it is validated on.
        parameters: Numbers that one member learns.
        groups: Feature groups that attention weighs; 1 without attention.
    """
    rows = table.start_rows
    reward_RPN = table.reward_TPN[rows]
    grow_R = (reward_RPN[:, 2, 2] + reward_RPN[:, 1, 2] - reward_RPN[:, 2, 1]) / 2.0
    side_R = (reward_RPN[:, 2, 2] - reward_RPN[:, 1, 2] - reward_RPN[:, 2, 1]) / 2.0
    deviation = float(grow_R.std())
    unit = deviation if deviation > 0.0 else 1.0
    centred_R = (grow_R - grow_R.mean()) / unit
    return {
        "configuration": dict(configuration),
        "planned_updates": planned_updates,
        "data": {
            "symbols": list(table.symbols),
            "train_bars": len(rows),
            "validation_bars": validation_bars,
            "features": table.n_features,
            "groups": groups,
        },
        "rewards": {
            "deviation_bps": deviation * 1e4,
            "skew": float((centred_R**3).mean()),
            "kurtosis": float((centred_R**4).mean()) - 3.0,
            "largest_deviations": float(np.abs(centred_R).max()),
            "largest_over_tail": float(np.abs(centred_R).max() / max(np.quantile(np.abs(centred_R), TAIL), 1e-12)),
            "scaled_deviation": deviation * reward_scale,
            "side_cost_bps": float(side_R.mean()) * 1e4,
            "side_cost_deviations": float(side_R.mean()) / unit,
        },
        "inputs": _inputs(table.features_TF[rows], feature_names),
        "network": {"parameters": parameters},
    }


def write_run_facts(run_dir: Path, facts: Facts) -> None:
    """Write them into the run's folder.

    Raises:
        TrainingError: The file cannot be written.
    """
    path = run_dir / "run.json"
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(facts, indent=2, sort_keys=True).encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written ({error.strerror or error}): check the disk") from error


def read_run_facts(run_dir: Path) -> Facts:
    """Return them; empty where the run has none, so that a history alone can be read.

    Raises:
        TrainingError: The file is damaged.
    """
    path = run_dir / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): remove it to judge the history alone") from error
    if not isinstance(facts, dict):
        raise TrainingError(f"{path} holds a {type(facts).__name__}: remove it to judge the history alone")
    return facts


def _inputs(features_RF: NDArray[np.float32], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of features that tell nothing."""
    low_F, high_F = features_RF.min(axis=0), features_RF.max(axis=0)
    constant_F = features_RF.std(axis=0, dtype=np.float64) <= CONSTANT * np.maximum(np.abs(low_F), np.abs(high_F))
    saturated_F = ((features_RF == low_F) | (features_RF == high_F)).mean(axis=0) >= SATURATED_SHARE
    return {
        "constant": [name for name, bad in zip(names, constant_F, strict=True) if bad],
        "saturated": [
            names[i]
            for i in np.flatnonzero(saturated_F & ~constant_F).tolist()
            if len(np.unique(features_RF[:, i])) > LEVELS_MAX
        ],
    }
