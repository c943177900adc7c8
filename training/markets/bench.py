"""The score: which fraction of a world's optimum a policy captures, on paths that nobody trained on.

    FoO = (J - J_flat) / (J* - J_flat),   J_flat = 0

J is the mean, over the bars of a path, of the conditional mean of the after-cost log-equity change given the hidden
state (`training.markets.world`); J* is the solver's. Beside it the same fraction from the mean regret, 1 - regret/J*:
equal in expectation and nearly without the noise of the state's own path (`Optimum.regret`).

Intervals are 95 % percentile bootstraps over seeds, each seed a path of its own. What was trained has two sources of
chance, its training and the path it is scored on: there both are drawn again, each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        trained: How it was trained, and its scores by training seed; empty for all others.
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
    trained: Mapping[str, Any] = field(default_factory=dict)


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


PathScores = Mapping[tuple[str, Knows], PathScore]
"""All who were scored on one path, by name and what they know."""


def bench_world(world: World, strategies: Mapping[str, Strategy], *, bars: int, seeds: Sequence[int]) -> WorldReport:
    """Score the rules that know the state, and strategies that see the bars.

    Args:
        world: The world.
        strategies: By the name of their row.
        bars: Decisions scored on each path.
        seeds: Of the evaluation paths, which share no draw with training paths.

    Raises:
        TrainingError: No bars, no seeds, a world that cannot be solved, or a strategy that cannot decide in it.
    """
    optimum = world.solve()
    paths = [score_path(world, optimum, strategies, bars=bars, seed=seed) for seed in seeds]
    rows = tuple(row(key, paths, optimum.gain) for key in paths[0])
    return WorldReport(world.name, world.model_dump(mode="json"), optimum.gain * 1e4, rows)


def score_path(
    world: World, optimum: Optimum, strategies: Mapping[str, Strategy], *, bars: int, seed: int
) -> PathScores:
    """Score everybody on one path; see `bench_world`."""
    path = world.path(LEAD_BARS + bars, seed)
    driver = Driver(path, LEAD_BARS - 1, world.allowed)
    state_T = path.state_T[LEAD_BARS - 1 : -1]
    scores: dict[tuple[str, Knows], PathScore] = {}
    for name, rule in STATE_RULES.items():
        scores[name, "state"] = score(world, optimum, path, follow(rule(world, optimum, state_T)))
    for name, strategy in strategies.items():
        scores[name, "bars"] = score(world, optimum, path, driver.drive(strategy))
    return scores


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


def row(key: tuple[str, Knows], paths: Sequence[PathScores], gain: float) -> Row:
    """Return the row of one policy, over all paths."""
    name, knows = key
    return _row(name, knows, [[path[key] for path in paths]], gain)


def trained_row(name: str, scores_SK: Sequence[Sequence[PathScore]], gain: float, how: Mapping[str, Any]) -> Row:
    """Return the row of one recipe.

    Args:
        name: Of the recipe.
        scores_SK: By training seed and path.
        gain: The optimum's.
        how: What is told of the training.
    """
    mean_SK, regret_SK = _columns(scores_SK)
    by_seed: dict[str, Any] = {"mean_bps": (mean_SK.mean(axis=1) * 1e4).tolist()}
    if gain > WORTHLESS:
        by_seed["fraction"] = (mean_SK.mean(axis=1) / gain).tolist()
        by_seed["fraction_by_regret"] = (1.0 - regret_SK.mean(axis=1) / gain).tolist()
    return _row(name, "bars", scores_SK, gain, {**how, "by_seed": by_seed})


def _row(
    name: str,
    knows: Knows,
    scores_SK: Sequence[Sequence[PathScore]],
    gain: float,
    trained: Mapping[str, Any] | None = None,
) -> Row:
    mean_SK, regret_SK = _columns(scores_SK)
    has_fraction = gain > WORTHLESS
    every = [one for scores_K in scores_SK for one in scores_K]
    return Row(
        name=name,
        knows=knows,
        fraction=estimate(mean_SK / gain) if has_fraction else None,
        fraction_by_regret=estimate(1.0 - regret_SK / gain) if has_fraction else None,
        mean_bps=estimate(mean_SK * 1e4),
        realised_bps=estimate(np.array([[one.realised for one in scores_K] for scores_K in scores_SK]) * 1e4),
        turnover=float(np.mean([one.turnover for one in every])),
        exposure=float(np.mean([one.exposure for one in every])),
        abstained=float(np.mean([one.abstained for one in every])),
        trained=trained or {},
    )


def _columns(scores_SK: Sequence[Sequence[PathScore]]) -> tuple[Float, Float]:
    mean_SK = np.array([[one.mean for one in scores_K] for scores_K in scores_SK])
    return mean_SK, np.array([[one.regret for one in scores_K] for scores_K in scores_SK])


def estimate(value_SK: Float) -> Estimate:
    """Return the mean and its 95 % percentile bootstrap interval.

    Training seeds and paths are crossed: every policy plays every path. Each resample draws S seeds and K paths, each
    with replacement and by itself, and takes the mean of all that meet (the pigeonhole bootstrap of Owen 2007, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1(2), a little wide by design). Where there is one seed, or one
    path, that source of chance is not in the interval.

    Args:
        value_SK: Values by training seed and path, (S, K); (K,) for a policy that was not trained here.
    """
    value_SK = np.atleast_2d(value_SK)
    mean = float(value_SK.mean())
    seeds, paths = value_SK.shape
    if seeds * paths < 2:
        return Estimate(mean, None, None)
    rng = np.random.default_rng(0)
    if seeds == 1:
        means_R = value_SK[0][rng.integers(paths, size=(RESAMPLES, paths))].mean(axis=1)
    else:
        means_R = ((_weights(rng, seeds) @ value_SK) * _weights(rng, paths)).sum(axis=1)
    low, high = np.quantile(means_R, (0.025, 0.975))
    return Estimate(mean, float(low), float(high))


def _weights(rng: np.random.Generator, count: int) -> Float:
    """Return how much each of `count` things weighs in every resample of them, (RESAMPLES, count)."""
    drawn_RC = rng.integers(count, size=(RESAMPLES, count))
    weight_RC = np.zeros((RESAMPLES, count))
    np.add.at(weight_RC, (np.arange(RESAMPLES)[:, None], drawn_RC), 1.0 / count)
    return weight_RC
