"""Whatever can be judged: a learner that is trained anew for every fold and seed, or a bundle that is what it is.

A trainer is given the training rows alone, in a table that holds no other (`folds.cut`), and returns the rule it
learned. Another learner is one function more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from strategies.features import FeatureSpec
from strategies.observation import model_inputs
from strategies.policy import BundlePolicy, greedy_targets
from training.market import Int, MarketTable
from training.settings import TrainingSettings
from training.validation import TargetOf

if TYPE_CHECKING:
    from training.dqn.served import Served

Trainer = Callable[[MarketTable, TrainingSettings, int], TargetOf]
"""(training rows only, settings, seed) to the rule that was learned."""

ROWS_MAX = 8_192
"""Rows that a network is asked about at once."""


def configured(spec: FeatureSpec) -> Trainer:
    """Return the learner that the settings name, on the features of a spec."""

    def trainer(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
        from training.dqn.pipeline import learned  # noqa: PLC0415 -- torch: paid where a policy is trained

        return greedy(learned(table, spec, settings.model_copy(update={"seed": seed})).network)

    return trainer


def greedy(network: Served) -> TargetOf:
    """Return the rule of a network as it is exported: the target of the highest value."""
    import torch  # noqa: PLC0415 -- heavy: paid where a policy is trained

    order = sorted(range(len(network.targets)), key=lambda place: network.targets[place])
    targets = tuple(network.targets[place] for place in order)

    def rule(features_BF: NDArray[np.float32], position_B: Int) -> Int:
        chosen = [np.zeros(0, dtype=np.int8)]
        with torch.no_grad():
            for begin in range(0, len(position_B), ROWS_MAX):
                part = np.s_[begin : begin + ROWS_MAX]
                inputs = model_inputs(features_BF[part], position_B[part])
                answer = network(torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["position"]))
                q_BT = np.stack([answer[place][:, 0].numpy() for place in order], axis=1)
                chosen.append(greedy_targets(q_BT, targets, position_B[part]))
        return np.concatenate(chosen).astype(np.int64)

    return rule


def of_bundle(policy: BundlePolicy) -> Trainer:
    """Return a trainer that trains nothing: the bundle's policy in every fold."""

    def greedy(features_BF: NDArray[np.float32], position_B: Int) -> Int:
        return greedy_targets(policy.q_values(features_BF, position_B), policy.targets, position_B).astype(np.int64)

    def trainer(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
        del table, settings, seed
        return greedy

    return trainer
