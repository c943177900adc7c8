"""A training process with checkpoints, as a person starts it again after each kill.

`python resuming_training.py RUN KIND`: goes on from RUN's checkpoint where there is one, says each update it stops at,
and writes the final weights to RUN/weights.safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from tiny_learner import small_world, tables

from training.dqn.ensemble import Ensemble
from training.dqn.run import train_in
from training.dqn.settings import DqnSettings

CHECKPOINT_UPDATES = 70
KINDS: Mapping[str, Mapping[str, Any]] = {
    "compiled": {"network": "mlp"},
    "market": {"network": "mlp", "dueling": True},
    "transitions": {"network": "mlp", "replay": "transitions", "prioritised": True, "buffer_size": 3_000},
    "attention": {"network": "attention", "norm": "batch", "lr_schedule": "plateau", "lr_patience": 2, "updates": 500},
}


def settings_of(kind: str) -> DqnSettings:
    """Small and quick, and everything that has a state has it."""
    usual = {"members": 2, "hidden": (32,), "updates": 1_000, "evaluations": 10, "threads": 2, "batch_bars": 128}
    return DqnSettings(**{**usual, **KINDS[kind]})


def go_on(run: Path, kind: str) -> None:
    """Train to the end, from the last checkpoint where there is one."""
    settings = settings_of(kind)
    table = tables(small_world(), 6_000, 100)[0]
    groups = [slice(0, 1), slice(1, table.n_features)]
    ensemble = Ensemble(table, settings, groups, seed=1, shorts=False, reward_scale=None, embargo_bars=0)
    train_in(
        run,
        ensemble,
        identity={"settings": settings.model_dump(mode="json")},
        facts={"planned_updates": settings.updates},
        checkpoint_updates=CHECKPOINT_UPDATES,
        on_progress=lambda updates: print(updates, flush=True),  # noqa: T201  # to the test that waits for it
    )
    weights = {
        f"{part}.{name}": one.contiguous()
        for part, learner in enumerate(ensemble.learners)
        for parts in learner.weights()
        for name, one in parts.items()
    }
    safetensors.torch.save_file(weights, run / "weights.safetensors")


if __name__ == "__main__":
    go_on(Path(sys.argv[1]), sys.argv[2])
