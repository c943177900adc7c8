"""`tandem train scenario`: a market in, a bars file of what it could have been out, if the gate lets it through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brokers.calendar import CONTINUOUS
from brokers.files import write_parquet
from brokers.series import BarSeries
from training.data import Market
from training.errors import TrainingError
from training.scenario_gate import Difference, check
from training.scenarios import Scenario, regime_mix, rescale_volatility, stationary_bootstrap

Kind = Literal["bootstrap", "regimes", "volatility"]
KINDS: tuple[Kind, ...] = ("bootstrap", "regimes", "volatility")


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """What kind of scenario to make; each kind reads its own values.

    Args:
        kind: `bootstrap`, `regimes` or `volatility`.
        seed: Seed of the draws.
        block_bars: Mean length of a block (bootstrap, regimes).
        regime_bars: Mean length of each regime, calmest first (regimes).
        source_shares: Share of the source's bars that counts for each (regimes).
        window_bars: Bars over which volatility is measured (regimes).
        factor: Of the volatility (volatility).
    """

    kind: Kind
    seed: int = 0
    block_bars: float = 200.0
    regime_bars: Sequence[float] = (400.0, 100.0)
    source_shares: Sequence[float] = (0.7, 0.3)
    window_bars: int = 100
    factor: float = 2.0


def make_scenario(market: Market, options: ScenarioOptions) -> tuple[Scenario, tuple[Difference, ...]]:
    """Make a scenario and put it through the gate.

    Where the calendar has sessions, nights stay where nights are.

    Raises:
        TrainingError: Values that make no sense, or a scenario that does not move like its source.
    """
    sessions = None if market.calendar.id == CONTINUOUS else market.calendar
    if options.kind == "bootstrap":
        scenario = stationary_bootstrap(
            market.series, expected_block_bars=options.block_bars, seed=options.seed, calendar=sessions
        )
    elif options.kind == "regimes":
        scenario = regime_mix(
            market.series,
            regime_bars=options.regime_bars,
            source_shares=options.source_shares,
            window_bars=options.window_bars,
            expected_block_bars=options.block_bars,
            seed=options.seed,
            calendar=sessions,
        )
    else:
        scenario = rescale_volatility(market.series, factor=options.factor)
    factor = options.factor if options.kind == "volatility" else 1.0
    return scenario, check(market.series, scenario, factor=factor)


def write_scenario(series: Mapping[str, BarSeries], out: Path) -> None:
    """Write a bars file.

    Raises:
        TrainingError: The file exists, is not named .parquet, or cannot be written.
    """
    import polars as pl  # noqa: PLC0415 -- heavy: loaded only where a file is written

    if out.exists():
        raise TrainingError(f"{out} exists already: name a file that is not there yet")
    if out.suffix != ".parquet":
        raise TrainingError(f"{out} is not a Parquet file's name: let it end in .parquet")
    columns = ("open", "high", "low", "close", "volume")
    frames = [
        pl.DataFrame(
            {
                "timestamp": pl.Series(bars.start_ns).cast(pl.Datetime("ns", "UTC")),
                "symbol": [symbol] * len(bars),
                **{name: getattr(bars, name) for name in columns},
                **bars.signals,
            }
        )
        for symbol, bars in series.items()
    ]
    try:
        write_parquet(pl.concat(frames, how="diagonal"), out)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written ({error.strerror or error}): name a folder of yours") from error
