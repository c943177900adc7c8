"""All worlds in one place: their settings as the command line sets them, who is scored, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from brokers.calendar import CONTINUOUS
from brokers.configuration import ConfigurationError, Section, apply_overrides, did_you_mean, validate
from brokers.files import atomic_write, write_parquet
from brokers.series import BarSeries
from strategies.baselines import BASELINES, BaselineError, make_baseline
from strategies.bundle import Bundle
from strategies.policy import BundlePolicy
from strategies.strategy import Strategy
from training.errors import TrainingError
from training.markets.bench import PathScores, WorldReport, row, score_path, trained_row
from training.markets.ceiling import LinearReader, linear_ceiling
from training.markets.exits import ExitWorlds
from training.markets.garleanu_pedersen import GarleanuPedersen, bench_garleanu_pedersen
from training.markets.hidden_trend import HiddenTrend
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.solver import Optimum
from training.markets.trained import Recipe, TrainingTask, describe, read_recipes, run_training
from training.markets.workers import OnDone, Workers, cores, workers
from training.markets.world import PERIOD, World

AnyWorld = World | GarleanuPedersen
Settings = TypeVar("Settings", bound=Section)
OnProgress = Callable[[int, int], None]
"""(done, planned)."""


class Worlds(Section):
    """Every world with its parameters; `--set mean_reverting.half_life=5` changes one."""

    mean_reverting: MeanReverting = MeanReverting()
    predictor: Predictor = Predictor()
    hidden_trend: HiddenTrend = HiddenTrend()
    martingale: Martingale = Martingale()
    garleanu_pedersen: GarleanuPedersen = GarleanuPedersen()

    def chosen(self, names: Sequence[str]) -> tuple[AnyWorld, ...]:
        """Return worlds by name; all of them where none is named.

        Raises:
            ConfigurationError: No such world.
        """
        known = list(type(self).model_fields)
        for name in names:
            if name not in known:
                raise ConfigurationError(f"no world {name!r}{did_you_mean(name, known)}")
        return tuple(getattr(self, name) for name in names or known)


def load_worlds(overrides: Sequence[str]) -> Worlds:
    """Return the worlds with `world.param=value` set.

    Raises:
        ConfigurationError: Unknown worlds or parameters, with the nearest that exists; values out of bounds.
    """
    return _loaded(Worlds, overrides)


def load_exit_worlds(overrides: Sequence[str]) -> ExitWorlds:
    """Return the exit worlds with `world.param=value` set; raises as `load_worlds` does."""
    return _loaded(ExitWorlds, overrides)


def _loaded(model: type[Settings], overrides: Sequence[str]) -> Settings:
    origins = {tuple(o.partition("=")[0].strip().split(".")): f"--set {o.partition('=')[0]}" for o in overrides}
    return validate(model, apply_overrides({}, overrides), source="the worlds", origins=origins)


def load_strategies(names: Sequence[str], bundles: Sequence[Path], *, shorts: bool) -> Mapping[str, Strategy]:
    """Return who is scored: strategies as `name` or `name:param=value,param=value`, and bundles by their folder.

    Raises:
        ConfigurationError: No such strategy or parameter, or a row's name twice.
        BundleError: A bundle that cannot serve.
    """
    found: dict[str, Strategy] = {}
    for label, strategy in (*_baselines(names, shorts=shorts), *_policies(bundles, shorts=shorts)):
        if label in found:
            raise ConfigurationError(f"{label!r} is named twice: name every strategy and bundle once")
        found[label] = strategy
    return found


def _baselines(names: Iterable[str], *, shorts: bool) -> Iterator[tuple[str, Strategy]]:
    for text in names:
        name, _, written = text.partition(":")
        params = apply_overrides({}, [part for part in written.split(",") if part])
        try:
            yield text, make_baseline(name, {"shorts": shorts} | params, PERIOD)
        except BaselineError as error:
            raise ConfigurationError(f"--strategy {text!r}: {error}") from error


def _policies(bundles: Iterable[Path], *, shorts: bool) -> Iterator[tuple[str, Strategy]]:
    for folder in bundles:
        yield folder.name, BundlePolicy(Bundle.load(folder), shorts=shorts)


@dataclass(frozen=True, slots=True)
class Trainings:
    """What is trained before it is scored.

    Args:
        texts: Recipes, as `preset` or `preset:setting=value,...`.
        bars: Bars of each training path; each recipe is trained on every number of them.
        seeds: One training for each, of a path and a learner's seed of its own.
    """

    texts: Sequence[str] = ()
    bars: Sequence[int] = (500_000,)
    seeds: Sequence[int] = (1, 2, 3, 4, 5)

    def __len__(self) -> int:
        """Return the number of trainings in each world."""
        return len(self.texts) * len(self.bars) * len(self.seeds)


@dataclass(frozen=True, slots=True)
class PathTask:
    """Everybody on one path, to be scored anywhere."""

    world: World
    optimum: Optimum
    names: tuple[str, ...]
    bundles: tuple[Path, ...]
    ceiling: LinearReader | None
    bars: int
    seed: int


def score_everybody(task: PathTask) -> PathScores:
    """Score strategies, bundles and the ceiling on one path; raises as `bench_world` does."""
    strategies: dict[str, Strategy] = dict(_baselines(task.names, shorts=task.world.shorts))
    if task.ceiling is not None:
        strategies[task.ceiling.name] = task.ceiling
    strategies |= dict(_policies(task.bundles, shorts=task.world.shorts))
    return score_path(task.world, task.optimum, strategies, bars=task.bars, seed=task.seed)


def run_bench(
    worlds: Sequence[AnyWorld],
    names: Sequence[str],
    bundles: Sequence[Path],
    *,
    bars: int,
    seeds: Sequence[int],
    trainings: Trainings | None = None,
    ceiling: bool = False,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Iterator[WorldReport]:
    """Yield one table a world; where nobody is named, every baseline stands in it, beside trainings flat and random.

    Args:
        worlds: Where to play.
        names: Strategies, as `load_strategies` takes them.
        bundles: Folders of bundles.
        bars: Decisions on each path.
        seeds: Of the evaluation paths.
        trainings: What is trained first, in every world whose reward is training's.
        ceiling: Add the row of `training.markets.ceiling`.
        processes: Of trainings and paths at once; the tables do not depend on it.
        on_progress: Called with (trainings and paths done, planned).

    Raises:
        ConfigurationError: A strategy or recipe that does not exist or is named twice.
        BundleError: A bundle that cannot serve.
        TrainingError: What cannot be trained, solved or scored, or a process that died.
    """
    trained = trainings if trainings is not None else Trainings()
    everybody = tuple(names) or (() if bundles else ("flat", "random") if trained else tuple(BASELINES))
    ours = [world for world in worlds if isinstance(world, World)]
    if trained and not ours:
        raise ConfigurationError(f"no policy is trained for {worlds[0].name}, whose costs are quadratic: name a world")
    planned = len(worlds) * len(seeds) + len(ours) * len(trained)
    done = 0

    def step(count: int = 1) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, planned)

    recipes = {world.name: read_recipes(trained.texts, trained.bars, world) for world in ours}
    with workers(processes) as crew:
        for world in worlds:
            if isinstance(world, World):
                # whoever cannot play is told before anybody trains
                load_strategies(everybody, bundles, shorts=world.shorts)
                plan = _Plan(everybody, tuple(bundles), tuple(seeds), bars, ceiling)
                yield _bench(world, plan, recipes[world.name], trained.seeds, crew, step)
            else:
                strategies = load_strategies(everybody, bundles, shorts=True)
                yield bench_garleanu_pedersen(world, strategies, bars=bars, seeds=seeds)
                step(len(seeds))


@dataclass(frozen=True, slots=True)
class _Plan:
    names: tuple[str, ...]
    bundles: tuple[Path, ...]
    seeds: tuple[int, ...]
    bars: int
    ceiling: bool


def _bench(
    world: World,
    plan: _Plan,
    recipes: Sequence[Recipe],
    training_seeds: Sequence[int],
    crew: Workers,
    step: OnDone,
) -> WorldReport:
    """Score everybody on every path, and train and score every recipe on every training seed's."""
    optimum = world.solve()
    reader = linear_ceiling(world, optimum) if plan.ceiling else None
    tasks = [PathTask(world, optimum, plan.names, plan.bundles, reader, plan.bars, seed) for seed in plan.seeds]
    paths = crew.map(score_everybody, tasks, step)
    rows = [row(key, paths, optimum.gain) for key in paths[0]]
    threads = max(1, cores() // crew.count)
    trainings = [
        TrainingTask(world, optimum, recipe, seed, plan.bars, plan.seeds, threads)
        for recipe in recipes
        for seed in training_seeds
    ]
    # the longest first, so that no process is left alone with one at the end; those of one path together
    order = sorted(
        range(len(trainings)), key=lambda place: (-trainings[place].recipe.bars, trainings[place].seed, place)
    )
    found = dict(zip(order, crew.map(run_training, [trainings[place] for place in order], step), strict=True))
    for number, recipe in enumerate(recipes):
        results = [found[number * len(training_seeds) + place] for place in range(len(training_seeds))]
        how = describe(recipe, training_seeds, results)
        rows.append(trained_row(recipe.label, [result.scores for result in results], optimum.gain, how))
    return WorldReport(world.name, world.model_dump(mode="json"), optimum.gain * 1e4, tuple(rows))


def training_file(out: Path) -> Path:
    """Return where the training's configuration stands that belongs to a world's bars."""
    return out.with_suffix(".yaml")


def write_bars(world: AnyWorld, series: BarSeries, out: Path) -> None:
    """Write a path's bars for `tandem train dqn --bars`, and beside them its `--config`: the world's costs and shorts.

    Raises:
        TrainingError: A file exists, is not named .parquet, or cannot be written.
    """
    import polars as pl  # noqa: PLC0415 -- heavy: loaded only where a file is written

    for place in (out, training_file(out)):
        if place.exists():
            raise TrainingError(f"{place} exists already: name a file that is not there yet")
    if out.suffix != ".parquet":
        raise TrainingError(f"{out} is not a Parquet file's name: let it end in .parquet")
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(series.start_ns).cast(pl.Datetime("ns", "UTC")),
            "symbol": [series.symbol.upper()] * len(series),
            **{name: getattr(series, name) for name in ("open", "high", "low", "close", "volume")},
            **series.signals,
        }
    )
    trades = world if isinstance(world, World) else world.predictor
    costs = trades.costs()
    settings = {
        "period": "5m",
        "calendar": CONTINUOUS,
        "costs": {"fee_bps": costs.fee_bps, "half_spread_bps": costs.half_spread_bps, "impact": costs.impact},
        "training": {"shorts": trades.shorts},
    }
    try:
        write_parquet(frame, out)
        with atomic_write(training_file(out)) as file:
            file.write(yaml.safe_dump(settings, sort_keys=False).encode())
    except OSError as error:
        raise TrainingError(f"{out} cannot be written ({error.strerror or error}): name a folder of yours") from error
