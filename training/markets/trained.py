"""Rows of the bench that are trained first: recipes, what they are trained on, and the policies that come out.

A recipe is a preset of `training.settings`, changed where the command says so. It is trained on the world's training
paths, one path and one learner's seed for each training seed, with the world's costs and shorts; only bars and costs
differ from world to world. Its policies are bundles, and decide on the evaluation paths as any bundle does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from brokers.calendar import CONTINUOUS, calendar
from brokers.configuration import ConfigurationError
from strategies.bundle import Bundle
from strategies.policy import BundlePolicy
from training.data import Market
from training.markets.world import PERIOD, World
from training.settings import TrainingConfiguration, load_training

POLICIES_LOADED_MAX = 64
"""Policies that a process keeps loaded."""


class Trainer(Protocol):
    """Whatever makes a policy: configuration and bars in, a bundle out."""

    def __call__(self, configuration: TrainingConfiguration, market: Market, out: Path) -> None:
        """Train one policy on all of the market and write its bundle to `out`."""
        ...


def train_bundle(configuration: TrainingConfiguration, market: Market, out: Path) -> None:
    """Train as `tandem train dqn` does; see `Trainer`."""
    from training.dqn.pipeline import train_policy  # noqa: PLC0415 -- torch, only where something is trained

    train_policy(configuration, market, out)


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


def training_market(world: World, bars: int, seed: int) -> Market:
    """Return a training path as a market."""
    series = world.path(bars, seed, "training").series
    return Market({series.symbol: series}, PERIOD, calendar(CONTINUOUS), f"{world.name}, seed {seed}", None)


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One training, to be run anywhere."""

    world: World
    recipe: Recipe
    seed: int
    out: Path
    threads: int = 1
    trainer: Trainer = train_bundle


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What one training took, bars and features included: seconds of its process, and of the clock."""

    cpu_s: float
    wall_s: float


def run_training(task: TrainingTask) -> TrainingCost:
    """Train one policy; its bundle stands in `task.out` afterwards.

    Raises:
        TrainingError: Too few bars, or whatever else the trainer refuses.
    """
    cpu_s, wall_s = time.process_time(), time.monotonic()
    configuration = task.recipe.configuration(task.world, task.seed, threads=task.threads)
    task.trainer(configuration, training_market(task.world, task.recipe.bars, task.seed), task.out)
    return TrainingCost(time.process_time() - cpu_s, time.monotonic() - wall_s)


@lru_cache(maxsize=POLICIES_LOADED_MAX)
def load_policy(folder: Path, *, shorts: bool) -> BundlePolicy:
    """Return a policy; loaded once in each process.

    Raises:
        BundleError: It cannot serve.
    """
    return BundlePolicy(Bundle.load(folder), shorts=shorts)


def describe(recipe: Recipe, seeds: Sequence[int], costs: Sequence[TrainingCost]) -> dict[str, Any]:
    """Return how a row was trained, as JSON values."""
    return {
        "preset": recipe.preset,
        "changes": list(recipe.changes),
        "bars": recipe.bars,
        "seeds": list(seeds),
        "cpu_s": [round(cost.cpu_s, 3) for cost in costs],
        "wall_s": [round(cost.wall_s, 3) for cost in costs],
    }
