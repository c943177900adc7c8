"""The score: which fraction of a world's optimum a policy captures, on paths that nobody trained on.

    FoO = (J - J_flat) / (J* - J_flat),   J_flat = 0

J is the mean, over the bars of a path, of the conditional mean of the after-cost log-equity change given the hidden
state (`training.markets.world`); J* is the solver's. Beside it the same fraction from the mean regret, 1 - regret/J*:
equal in expectation and nearly without the noise of the state's own path (`Optimum.regret`).

Intervals are 95 % percentile bootstraps over seeds, each seed a path of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from strategies.features.spec import MEMORY_BARS_MAX
from strategies.strategy import Strategy
from training.markets.deciders import STATE_RULES, Decisions, Driver, follow
from training.markets.solver import Float, Optimum
from training.markets.world import Path, World

LEAD_BARS = MEMORY_BARS_MAX
"""Bars before the first decision: every feature spec is warm by then."""
RESAMPLES = 10_000
WORTHLESS = 1e-9
"""An optimum that gains no more, in log equity per bar, is flat: there is no fraction of it."""

Knows = Literal["state", "bars"]
OnRow = Callable[[str, int], None]
"""(what was scored, seed)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: The mean.
        low: Lower end of its 95 % bootstrap interval; None for a single seed.
        high: Upper end.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PathScore:
    """One policy on one path, per bar.

    Args:
        mean: Conditional mean of the log-equity change.
        realised: The log-equity change itself, noise included.
        regret: What the decisions gave away.
        turnover: Sides.
        exposure: Absolute position.
        abstained: Share of closes without an answer.
    """

    mean: float
    realised: float
    regret: float
    turnover: float
    exposure: float
    abstained: float


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in one world, over all seeds.

    Args:
        name: Of the rule, strategy or bundle.
        knows: The hidden state, or the bars alone.
        fraction: Fraction of the optimum; None where the optimum is flat.
        fraction_by_regret: The same from the mean regret.
        mean_bps: J, basis points of log equity per bar.
        realised_bps: What the paths really paid.
        turnover: Sides per bar.
        exposure: Mean absolute position.
        abstained: Share of closes without an answer.
    """

    name: str
    knows: Knows
    fraction: Estimate | None
    fraction_by_regret: Estimate | None
    mean_bps: Estimate
    realised_bps: Estimate
    turnover: float
    exposure: float
    abstained: float


@dataclass(frozen=True, slots=True)
class WorldReport:
    """The table of one world.

    Args:
        world: Its name.
        parameters: Every one of them.
        optimum_bps: J*, basis points of log equity per bar.
        rows: Best known first, as asked for.
    """

    world: str
    parameters: Mapping[str, Any]
    optimum_bps: float
    rows: Sequence[Row]


def bench_world(
    world: World,
    strategies: Mapping[str, Strategy],
    *,
    bars: int,
    seeds: Sequence[int],
    on_row: OnRow | None = None,
) -> WorldReport:
    """Score the rules that know the state, and strategies that see the bars.

    Args:
        world: The world.
        strategies: By the name of their row.
        bars: Decisions scored on each path.
        seeds: Of the evaluation paths, which share no draw with training paths.
        on_row: Called after each score.

    Raises:
        TrainingError: No bars, no seeds, a world that cannot be solved, or a strategy that cannot decide in it.
    """
    optimum = world.solve()
    scores: dict[tuple[str, Knows], list[PathScore]] = {}
    for seed in seeds:
        path = world.path(LEAD_BARS + bars, seed)
        driver = Driver(path, LEAD_BARS - 1, world.allowed)
        state_T = path.state_T[LEAD_BARS - 1 : -1]
        for name, rule in STATE_RULES.items():
            decisions = follow(rule(world, optimum, state_T))
            scores.setdefault((name, "state"), []).append(score(world, optimum, path, decisions))
        for name, strategy in strategies.items():
            scores.setdefault((name, "bars"), []).append(score(world, optimum, path, driver.drive(strategy)))
            if on_row is not None:
                on_row(name, seed)
    rows = tuple(_row(name, knows, found, optimum.gain) for (name, knows), found in scores.items())
    return WorldReport(world.name, world.model_dump(mode="json"), optimum.gain * 1e4, rows)


def score(world: World, optimum: Optimum, path: Path, decisions: Decisions) -> PathScore:
    """Score the decisions at the closes before a path's last bars, as many as there are."""
    count = len(decisions.held_T)
    rows = np.s_[len(path) - 1 - count : len(path) - 1]
    before_T, held_T = decisions.before_T, decisions.held_T
    paid_T = world.cost_table()[before_T + 1, held_T + 1]
    moved_T = (path.series.close[1:] / path.series.open[1:] - 1.0)[rows]
    return PathScore(
        mean=float((path.growth_TP[rows][np.arange(count), held_T + 1] + paid_T).mean()),
        realised=float((np.log1p(held_T * moved_T) + paid_T).mean()),
        regret=float(optimum.regret(path.state_T[rows], before_T, held_T).mean()),
        turnover=float(np.abs(held_T - before_T).mean()),
        exposure=float(np.abs(held_T).mean()),
        abstained=decisions.abstained / count,
    )


def _row(name: str, knows: Knows, scores: Sequence[PathScore], gain: float) -> Row:
    mean_K = np.array([one.mean for one in scores])
    regret_K = np.array([one.regret for one in scores])
    has_fraction = gain > WORTHLESS
    return Row(
        name=name,
        knows=knows,
        fraction=estimate(mean_K / gain) if has_fraction else None,
        fraction_by_regret=estimate(1.0 - regret_K / gain) if has_fraction else None,
        mean_bps=estimate(mean_K * 1e4),
        realised_bps=estimate(np.array([one.realised for one in scores]) * 1e4),
        turnover=float(np.mean([one.turnover for one in scores])),
        exposure=float(np.mean([one.exposure for one in scores])),
        abstained=float(np.mean([one.abstained for one in scores])),
    )


def estimate(value_K: Float) -> Estimate:
    """Return the mean over seeds and its 95 % percentile bootstrap interval."""
    if len(value_K) < 2:
        return Estimate(float(value_K.mean()), None, None)
    rng = np.random.default_rng(0)
    means = value_K[rng.integers(len(value_K), size=(RESAMPLES, len(value_K)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(value_K.mean()), float(low), float(high))
