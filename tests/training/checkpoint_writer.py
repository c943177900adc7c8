"""A process that writes checkpoints without end, and says after each one which update it was of.

Started as `python checkpoint_writer.py RUN FIRST`; tests kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.dqn.checkpoint import CheckpointStore

IDENTITY = {"configuration": {"training": {"seed": 1}}, "feature_spec": "abc", "format": 1}


def state_of(update: int) -> dict[str, Any]:
    """The whole state of an update, a function of its number: whatever is read back can be told from every other."""
    rng = np.random.default_rng(update)
    return {
        "weights": {"layer": torch.from_numpy(rng.normal(size=(64, 64)).astype(np.float32))},
        "priorities": rng.random(20_000),
        "generator": rng.bit_generator.state,
        "epsilon": float(rng.random()),
    }


def main() -> None:
    store = CheckpointStore(Path(sys.argv[1]), IDENTITY)
    update = int(sys.argv[2])
    while True:
        store.save(update, state_of(update))
        sys.stdout.write(f"{update}\n")
        sys.stdout.flush()
        update += 1


if __name__ == "__main__":
    main()
