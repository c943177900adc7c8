"""Rows of the bench that are trained first: recipes, what they are trained on, and the policies that come out.

A recipe is a preset of `training.settings`, changed where the command says so. It is trained on the world's training
paths, one path and one learner's seed for each training seed, with the world's costs and shorts; only bars and costs
differ from world to world. Its policies stay in memory: the networks that a bundle would serve, whose export is equal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from brokers.calendar import CONTINUOUS, calendar
from brokers.configuration import ConfigurationError
from strategies.strategy import Strategy
from training.data import Market
from training.market import MarketTable
from training.markets.bench import LEAD_BARS, PathScore, score
from training.markets.deciders import Driver
from training.markets.solver import Optimum
from training.markets.world import PERIOD, Path, World
from training.settings import TrainingConfiguration, load_training
from training.validation import split_in_time

TrainRow = Callable[[TrainingConfiguration, Market], Strategy]
"""Whatever makes a policy of all of a market's bars; the configuration holds its seed."""

DRIVERS_KEPT = 32
"""Evaluation paths that a process keeps, with the features of each spec that was asked for."""


@dataclass(slots=True)
class _Last:
    """The market that was trained on last, and its table: the next recipe wants the same, most of the time."""

    market: Market | None = None
    what: tuple[str, str, float] | None = None
    table: MarketTable | None = None


_LAST = _Last()


def train_in_memory(configuration: TrainingConfiguration, market: Market) -> Strategy:
    """Train as `tandem train dqn` does, without exits, and keep the network: no bundle, no measurements.

    Raises:
        TrainingError: Too few bars.
    """
    from training.dqn import pipeline  # noqa: PLC0415 -- torch, only where something is trained
    from training.markets.network_policy import NetworkPolicy  # noqa: PLC0415 -- as above

    settings = configuration.training
    spec = pipeline.feature_spec(market, settings)
    what = (spec.hash, configuration.costs.model_dump_json(), settings.capital_usd)
    table = _LAST.table if _LAST.market is market and _LAST.what == what else None
    if table is None:
        _LAST.market, _LAST.table = None, None  # before the next one is made: two may not fit
        table = pipeline.market_table(market, spec, configuration)
        _LAST.market, _LAST.what, _LAST.table = market, what, table
    split = split_in_time(table, validation_fraction=settings.validation_fraction, memory_bars=spec.memory_bars)
    return NetworkPolicy(pipeline.learned(split.train, spec, settings).network, spec)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained.

    Args:
        text: As named: a preset, or `preset:setting=value,...`.
        preset: The preset.
        changes: `setting=value` of the section `training`.
        bars: Bars of each training path.
    """

    text: str
    preset: str
    changes: tuple[str, ...]
    bars: int

    @property
    def label(self) -> str:
        """Name of its row."""
        return f"{self.text} {short_count(self.bars)}"

    def configuration(self, world: World, seed: int, *, threads: int = 1) -> TrainingConfiguration:
        """Return everything about one training; the policy does not depend on the number of threads.

        Raises:
            ConfigurationError: No such preset, or settings that do not exist or do not fit.
        """
        changes = [f"training.{change}" for change in self.changes]
        ours = [f"{key}={value}" for key, value in world_settings(world).items()]
        # the world's and the seed last: they are what no recipe may change
        mine = [f"training.preset={self.preset}", f"training.dqn.threads={threads}"]
        return load_training(None, [*mine, *changes, *ours, f"training.seed={seed}"], environ={})


def short_count(bars: int) -> str:
    """Return 500,000 as 500k and 5,000,000 as 5M."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if bars % unit == 0:
            return f"{bars // unit}{letter}"
    return str(bars)


def world_settings(world: World) -> dict[str, str]:
    """Return what a world decides of a training's configuration, by dotted key."""
    costs = world.costs()
    return {
        "period": "5m",
        "calendar": CONTINUOUS,
        "costs.fee_bps": repr(costs.fee_bps),
        "costs.half_spread_bps": repr(costs.half_spread_bps),
        "costs.impact": repr(costs.impact),
        "training.shorts": str(world.shorts).lower(),
    }


def read_recipes(texts: Sequence[str], bars: Sequence[int], world: World) -> tuple[Recipe, ...]:
    """Return every recipe at every number of bars.

    Raises:
        ConfigurationError: A recipe that cannot be trained, or one named twice.
    """
    recipes: list[Recipe] = []
    for text in texts:
        preset, _, written = text.partition(":")
        changes = tuple(part for part in re.split(r",(?![^\[]*\])", written) if part)  # not within a list
        recipes += [Recipe(text, preset, changes, count) for count in bars]
    labels = [recipe.label for recipe in recipes]
    for recipe in recipes:
        if labels.count(recipe.label) > 1:
            raise ConfigurationError(f"--train {recipe.text!r} is named twice at {recipe.bars} bars: name it once")
        try:
            recipe.configuration(world, 0)
        except ConfigurationError as error:
            raise ConfigurationError(f"--train {recipe.text!r}: {error}") from error
    return tuple(recipes)


@lru_cache(maxsize=1)
def training_market(world: World, bars: int, seed: int) -> Market:
    """Return a training path as a market; the last one is kept."""
    series = world.path(bars, seed, "training").series
    return Market({series.symbol: series}, PERIOD, calendar(CONTINUOUS), f"{world.name}, seed {seed}", None)


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One training and the paths that its policy then plays, to be run anywhere.

    Args:
        world: The world.
        optimum: Its solution.
        recipe: What is trained.
        seed: Of the training path and of the learner.
        bars: Decisions on each evaluation path.
        paths: Seeds of these.
        threads: Of the learner.
        train: How.
    """

    world: World
    optimum: Optimum
    recipe: Recipe
    seed: int
    bars: int
    paths: tuple[int, ...]
    threads: int = 1
    train: TrainRow = train_in_memory


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """One training: its scores by path, and the seconds that it took, bars and features included.

    Args:
        scores: On every path.
        cpu_s: Time of its process.
        wall_s: Time of the clock.
    """

    scores: tuple[PathScore, ...]
    cpu_s: float
    wall_s: float


def run_training(task: TrainingTask) -> TrainingResult:
    """Train one policy and score it on every path.

    Raises:
        TrainingError: Too few bars, or whatever else the trainer refuses.
    """
    cpu_s, wall_s = time.process_time(), time.monotonic()
    configuration = task.recipe.configuration(task.world, task.seed, threads=task.threads)
    policy = task.train(configuration, training_market(task.world, task.recipe.bars, task.seed))
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    scores = []
    for seed in task.paths:
        path, driver = evaluation_path(task.world, task.bars, seed)
        scores.append(score(task.world, task.optimum, path, driver.drive(policy)))
    return TrainingResult(tuple(scores), cpu_s, wall_s)


@lru_cache(maxsize=DRIVERS_KEPT)
def evaluation_path(world: World, bars: int, seed: int) -> tuple[Path, Driver]:
    """Return an evaluation path and what drives strategies over it; made once in each process."""
    path = world.path(LEAD_BARS + bars, seed)
    return path, Driver(path, LEAD_BARS - 1, world.allowed)


def describe(recipe: Recipe, seeds: Sequence[int], results: Sequence[TrainingResult]) -> dict[str, Any]:
    """Return how a row was trained, as JSON values."""
    return {
        "preset": recipe.preset,
        "changes": list(recipe.changes),
        "bars": recipe.bars,
        "seeds": list(seeds),
        "cpu_s": [round(result.cpu_s, 3) for result in results],
        "wall_s": [round(result.wall_s, 3) for result in results],
    }
