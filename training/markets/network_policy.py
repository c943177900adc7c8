"""A trained network as a strategy, before it is exported.

Axes: T bars, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from strategies.batch import BatchAnswers
from strategies.features import FeatureSpec
from strategies.observation import model_inputs, usable_rows, why_unusable
from strategies.policy import greedy_targets
from strategies.strategy import Abstention, Observations, Opinion, Reason
from training.dqn.served import Served
from training.markets.solver import Float, Int

ROWS = 512
"""Rows of one call: what stands between the layers then stays in the caches."""


class NetworkPolicy:
    """Greedy over the targets that a network values."""

    name = "network"

    def __init__(self, network: Served, spec: FeatureSpec) -> None:
        self._network = network.eval()
        self._order = network.targets
        self.targets = tuple(sorted(network.targets))
        self.feature_spec = spec

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Answer many bars at one position; see `strategies.batch`."""
        del symbol, close_ns_T
        positions_T = np.full(len(features_TF), position, dtype=np.int8)
        targets_T = greedy_targets(self._values(features_TF, positions_T), self.targets, positions_T)
        return BatchAnswers(targets_T, np.zeros(len(targets_T), dtype=np.bool_), Reason.POLICY_GREEDY)

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol; see `Strategy.opinions`."""
        answers: list[Opinion | Abstention] = []
        usable_S = usable_rows(observations.features_SF)
        for row, symbol in enumerate(observations.symbols):
            features_1F, position_1 = observations.features_SF[row : row + 1], observations.positions_S[row : row + 1]
            if not usable_S[row]:
                answers.append(Abstention(symbol, why_unusable(features_1F[0])))
                continue
            (target,) = greedy_targets(self._values(features_1F, position_1), self.targets, position_1).tolist()
            answers.append(Opinion(symbol=symbol, target=target, reason=Reason.POLICY_GREEDY))
        return answers

    @torch.no_grad()
    def _values(self, features_TF: Float, positions_T: np.ndarray[tuple[int], np.dtype[np.int8]]) -> Float:
        """Return the value of each of `targets`, (T, N)."""
        inputs = model_inputs(features_TF, positions_T)
        features, position = (torch.from_numpy(inputs[name]) for name in ("features", "position"))
        parts = []
        for begin in range(0, len(features_TF), ROWS):
            outputs = self._network(features[begin : begin + ROWS], position[begin : begin + ROWS])
            parts.append(torch.cat(outputs[: len(self._order)], dim=1).numpy())
        by_order_TN = np.concatenate(parts).astype(np.float64)
        return by_order_TN[:, [self._order.index(target) for target in self.targets]]
