"""All worlds in one place: their settings as the command line sets them, who is scored, and the tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from training.markets.bench import OnRow, WorldReport, bench_world
from training.markets.exits import ExitWorlds
from training.markets.garleanu_pedersen import GarleanuPedersen, bench_garleanu_pedersen
from training.markets.hidden_trend import HiddenTrend
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.world import PERIOD, World

AnyWorld = World | GarleanuPedersen
Settings = TypeVar("Settings", bound=Section)


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


def run_bench(
    worlds: Sequence[AnyWorld],
    names: Sequence[str],
    bundles: Sequence[Path],
    *,
    bars: int,
    seeds: Sequence[int],
    on_row: OnRow | None = None,
) -> Iterator[WorldReport]:
    """Yield one table a world; where nobody is named, every baseline stands in it."""
    everybody = names or (() if bundles else BASELINES)
    for world in worlds:
        if isinstance(world, World):
            strategies = load_strategies(everybody, bundles, shorts=world.shorts)
            yield bench_world(world, strategies, bars=bars, seeds=seeds, on_row=on_row)
        else:
            strategies = load_strategies(everybody, bundles, shorts=True)
            yield bench_garleanu_pedersen(world, strategies, bars=bars, seeds=seeds, on_row=on_row)


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
