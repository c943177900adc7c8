"""Whatever decides, driven over a path: rules that know the state, and strategies that see the bars alone.

Axes: T decisions, P positions (-1, 0, 1 at index 0, 1, 2), F features.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from brokers.calendar import CONTINUOUS, calendar
from brokers.series import from_ns
from strategies.batch import BatchStrategy
from strategies.features import FeatureError
from strategies.observation import usable_rows
from strategies.strategy import Abstention, Observations, Opinion, Strategy
from training.errors import TrainingError
from training.frames import exact_frame
from training.markets.solver import Float, Int, Optimum, greedy
from training.markets.world import PERIOD, Path, World


@dataclass(frozen=True, slots=True)
class Decisions:
    """What was decided at a stretch of closes, from a flat start.

    Args:
        before_T: Position held at each close.
        held_T: Position that the decision goes to.
        abstained: Closes at which there was no answer, and the position stayed.
    """

    before_T: Int
    held_T: Int
    abstained: int = 0


def follow(target_PT: Int) -> Decisions:
    """Follow targets given by position held, (P, T)."""
    held_T = np.empty(target_PT.shape[1], dtype=np.int64)
    held = 0
    for t, choice in enumerate(target_PT.T.tolist()):
        held = choice[held + 1]
        held_T[t] = held
    return Decisions(np.concatenate([[0], held_T[:-1]]).astype(np.int64), held_T)


Rule = Callable[[World, Optimum, Float], Int]
"""(world, its optimum, state_T) to (P, T) targets."""


def optimal(world: World, optimum: Optimum, state_T: Float) -> Int:
    """Return the best targets."""
    del world
    return optimum.targets(state_T)


def sign(world: World, optimum: Optimum, state_T: Float) -> Int:
    """Return the position that gains on average, whatever it costs to get there; none for a mean of zero."""
    del optimum
    wish_T = np.sign(world.mean(state_T)).astype(np.int64)
    return np.tile(wish_T if world.shorts else np.maximum(wish_T, 0), (3, 1))


def one_step(world: World, optimum: Optimum, state_T: Float) -> Int:
    """Return the best of the next bar alone: a discount of zero."""
    growth_TP = np.where(optimum.chain.forbidden_P, -np.inf, world.expected_growth(state_T))
    return greedy(growth_TP[:, None, :] + world.cost_table())


STATE_RULES: Mapping[str, Rule] = {"optimal": optimal, "sign": sign, "one_step": one_step}
"""Rules that know the state: the optimum, and what is simpler."""


class Driver:
    """Drives strategies over one stretch of a path; features are computed once for each spec.

    Args:
        path: The bars.
        first: The first decision is at this bar's close.
        allowed: Positions that may be held.
    """

    def __init__(self, path: Path, first: int, allowed: tuple[int, ...]) -> None:
        self._path = path
        self._first = first
        self._allowed = allowed
        self._features: dict[str, Float] = {}

    def drive(self, strategy: Strategy) -> Decisions:
        """Return what a strategy decides, at every close from `first` to the last but one.

        Raises:
            TrainingError: Features that these bars do not have, or a target that this world does not allow.
        """
        features_TF = self._features_of(strategy)
        with asyncio.Runner() as runner:
            if isinstance(strategy, BatchStrategy):
                return self._in_batches(strategy, features_TF, runner)
            return self._one_by_one(strategy, features_TF, runner)

    @property
    def _rows(self) -> slice:
        return slice(self._first, len(self._path) - 1)

    def _features_of(self, strategy: Strategy) -> Float:
        spec = strategy.feature_spec
        if spec.period_s not in {None, PERIOD.total_seconds()}:
            raise TrainingError(
                f"{strategy.name} reads bars of {timedelta(seconds=spec.period_s or 0)}, these worlds have bars of "
                f"{PERIOD}: train it with period 5m"
            )
        if spec.hash not in self._features:
            try:
                frame_TF = exact_frame(spec, self._path.series, calendar(CONTINUOUS))
            except FeatureError as error:
                raise TrainingError(f"{strategy.name} cannot decide in this world: {error}") from error
            if not usable_rows(frame_TF[self._rows]).all():
                raise TrainingError(f"{strategy.name}: features are not numbers after {self._first} bars of warm-up")
            self._features[spec.hash] = frame_TF[self._rows]
        return self._features[spec.hash]

    def _in_batches(self, strategy: BatchStrategy, features_TF: Float, runner: asyncio.Runner) -> Decisions:
        symbol, close_ns_T = self._path.series.symbol, self._path.series.close_ns[self._rows]
        target_PT = np.zeros((3, len(features_TF)), dtype=np.int64)
        abstained_PT = np.zeros((3, len(features_TF)), dtype=np.bool_)
        for position in sorted({0, *strategy.targets}):
            answers = strategy.batch(symbol, close_ns_T, features_TF, position)
            target_PT[position + 1] = answers.target_T
            for row in np.flatnonzero(answers.near_T).tolist():
                answer = self._ask(strategy, features_TF, row, position, runner)  # type: ignore[arg-type] # it is both
                abstained_PT[position + 1, row] = answer is None
                target_PT[position + 1, row] = position if answer is None else answer
        decisions = follow(target_PT)
        self._check(strategy, decisions.held_T)
        silent_T = abstained_PT[decisions.before_T + 1, np.arange(len(features_TF))]
        return Decisions(decisions.before_T, decisions.held_T, int(silent_T.sum()))

    def _one_by_one(self, strategy: Strategy, features_TF: Float, runner: asyncio.Runner) -> Decisions:
        held_T = np.empty(len(features_TF), dtype=np.int64)
        held, abstained = 0, 0
        for row in range(len(features_TF)):
            answer = self._ask(strategy, features_TF, row, held, runner)
            abstained += answer is None
            held = held if answer is None else answer
            held_T[row] = held
        self._check(strategy, held_T)
        return Decisions(np.concatenate([[0], held_T[:-1]]).astype(np.int64), held_T, abstained)

    def _ask(
        self, strategy: Strategy, features_TF: Float, row: int, position: int, runner: asyncio.Runner
    ) -> int | None:
        series = self._path.series
        observations = Observations(
            symbols=(series.symbol,),
            close_time=from_ns(series.close_ns[self._first + row]),
            features_SF=features_TF[row : row + 1],
            positions_S=np.array([position], dtype=np.int8),
        )
        (answer,) = runner.run(_opinions(strategy, observations))
        return None if isinstance(answer, Abstention) else answer.target

    def _check(self, strategy: Strategy | BatchStrategy, held_T: Int) -> None:
        strange = set(np.unique(held_T).tolist()) - set(self._allowed)
        if strange:
            raise TrainingError(
                f"{getattr(strategy, 'name', 'the strategy')} wants the position {min(strange)}, this world allows "
                f"{', '.join(map(str, self._allowed))}: set the world's shorts"
            )


async def _opinions(strategy: Strategy, observations: Observations) -> Sequence[Opinion | Abstention]:
    return await strategy.opinions(observations)
