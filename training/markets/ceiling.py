"""How much of a world the features show: its hidden state read off them by a straight line, then the best decisions.

A ridge of the *true* state on the features, clipped as models clip them, decided by the optimum itself. It is no
policy, for it was told what nobody can know; it is what features allow at best to whoever reads them linearly. Where it
is far below one, no training helps: the features are what is missing.

Axes: T rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brokers.calendar import CONTINUOUS, calendar
from strategies.batch import BatchAnswers
from strategies.features import FeatureSpec, default_spec
from strategies.observation import usable_rows, why_unusable
from strategies.strategy import Abstention, Observations, Opinion, Reason
from training.frames import exact_frame
from training.markets.solver import Float, Int, Optimum
from training.markets.world import PERIOD, World

BARS = 200_000
"""Bars that the line is fitted to."""
RIDGE = 10.0
"""Added to the sums of squares of the standardised features: there are many that say the same."""
CLIP = 5.0
"""Standard deviations at which models clip their inputs."""
DEVIATION_MIN = 1e-6
"""A feature that does not move is divided by this."""


@dataclass(frozen=True)
class LinearReader:
    """Decides as the optimum does, by a state that it reads off the features."""

    feature_spec: FeatureSpec
    optimum: Optimum
    mean_F: Float
    deviation_F: Float
    weight_F: Float
    level: float
    name: str = "ceiling"

    @property
    def targets(self) -> tuple[int, ...]:
        """Allowed targets."""
        return self.optimum.chain.allowed

    def state(self, features_TF: Float) -> Float:
        """Return the state as read, (T,)."""
        input_TF = np.clip((features_TF - self.mean_F) / self.deviation_F, -CLIP, CLIP)
        return np.asarray(input_TF @ self.weight_F + self.level, dtype=np.float64)

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Answer many bars at one position; see `strategies.batch`."""
        del symbol, close_ns_T
        target_T = self.optimum.targets(self.state(features_TF))[position + 1]
        return BatchAnswers(target_T.astype(np.int8), np.zeros(len(target_T), dtype=np.bool_), Reason.RULE)

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol; see `Strategy.opinions`."""
        answers: list[Opinion | Abstention] = []
        usable_S = usable_rows(observations.features_SF)
        for row, symbol in enumerate(observations.symbols):
            features_1F = observations.features_SF[row : row + 1]
            if not usable_S[row]:
                answers.append(Abstention(symbol, why_unusable(features_1F[0])))
                continue
            target_P = self.optimum.targets(self.state(features_1F))[:, 0]
            target = int(target_P[int(observations.positions_S[row]) + 1])
            answers.append(Opinion(symbol=symbol, target=target, q={}, reason=Reason.RULE))
        return answers


def linear_ceiling(
    world: World, optimum: Optimum, *, spec: FeatureSpec | None = None, bars: int = BARS, seed: int = 0
) -> LinearReader:
    """Fit the line on a training path.

    Args:
        world: The world.
        optimum: Its solution.
        spec: Features; None for the default ones with every column of the world.
        bars: Bars of the path.
        seed: Of the path.

    Raises:
        TrainingError: No bars.
    """
    path = world.path(bars, seed, "training")
    spec = default_spec(PERIOD, tuple(path.series.signals)) if spec is None else spec
    frame_TF = exact_frame(spec, path.series, calendar(CONTINUOUS))[spec.memory_bars - 1 :]
    state_T = path.state_T[spec.memory_bars - 1 :]
    mean_F, deviation_F = frame_TF.mean(axis=0), np.maximum(frame_TF.std(axis=0), DEVIATION_MIN)
    input_TF = np.clip((frame_TF - mean_F) / deviation_F, -CLIP, CLIP)
    middle_F, level = input_TF.mean(axis=0), float(state_T.mean())
    input_TF -= middle_F
    square_FF = input_TF.T @ input_TF + RIDGE * np.eye(len(mean_F))
    weight_F = np.linalg.solve(square_FF, input_TF.T @ (state_T - level))
    return LinearReader(spec, optimum, mean_F, deviation_F, weight_F, level - float(weight_F @ middle_F))
