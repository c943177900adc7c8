"""Whatever can be judged: a learner that is trained anew for every fold and seed, or a bundle that is what it is.

A trainer is given the training rows alone, in a table that holds no other (`folds.cut`), and returns the rule it
learned. Another learner is one function more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from strategies.observation import model_inputs
from strategies.policy import BundlePolicy, greedy_targets
from training.market import Int, MarketTable
from training.settings import TrainingSettings
from training.validation import TargetOf

Trainer = Callable[[MarketTable, TrainingSettings, int], TargetOf]
"""(training rows only, settings, seed) to the rule that was learned."""

ROWS_MAX = 65_536
"""Rows that a network is asked about at once."""


def reference(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
    """Train the stable-baselines3 DQN of `training.dqn.reference`."""
    import torch  # noqa: PLC0415 -- heavy: paid where a policy is trained

    from training.dqn.reference import train_dqn  # noqa: PLC0415 -- as above

    network = train_dqn(table, settings.model_copy(update={"seed": seed})).network
    order = sorted(range(len(network.targets)), key=lambda place: network.targets[place])
    targets = tuple(network.targets[place] for place in order)

    def greedy(features_BF: NDArray[np.float32], position_B: Int) -> Int:
        chosen = [np.zeros(0, dtype=np.int8)]
        with torch.no_grad():
            for begin in range(0, len(position_B), ROWS_MAX):
                part = np.s_[begin : begin + ROWS_MAX]
                inputs = model_inputs(features_BF[part], position_B[part])
                answer = network(torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["position"]))
                q_BT = np.stack([answer[place][:, 0].numpy() for place in order], axis=1)
                chosen.append(greedy_targets(q_BT, targets, position_B[part]))
        return np.concatenate(chosen).astype(np.int64)

    return greedy


def of_bundle(policy: BundlePolicy) -> Trainer:
    """Return a trainer that trains nothing: the bundle's policy in every fold."""

    def greedy(features_BF: NDArray[np.float32], position_B: Int) -> Int:
        return greedy_targets(policy.q_values(features_BF, position_B), policy.targets, position_B).astype(np.int64)

    def trainer(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
        del table, settings, seed
        return greedy

    return trainer


def trainer_for(settings: TrainingSettings) -> tuple[str, Trainer]:
    """Return the learner that the settings ask for, with its name."""
    del settings
    return "stable-baselines3", reference
