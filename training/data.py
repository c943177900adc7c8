"""The market to train on: recorded bars, or the synthetic market that the built-in exchange plays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from brokers.calendar import TradingCalendar, calendar
from brokers.series import BarSeries, to_ns
from brokers.simulated.synthetic import PlantedEdge, SyntheticMarketSettings, generate, planted_edge
from training.errors import TrainingError
from training.settings import TrainingConfiguration


@dataclass(frozen=True, slots=True)
class Market:
    """Bars and how they are read.

    Args:
        series: By symbol.
        period: Bar period.
        calendar: Sessions of the venue.
        source: Where the bars came from, for people and manifests.
        synthetic: Settings of the synthetic market; None for recorded bars.
    """

    series: Mapping[str, BarSeries]
    period: timedelta
    calendar: TradingCalendar
    source: str
    synthetic: SyntheticMarketSettings | None

    @property
    def signals(self) -> tuple[str, ...]:
        """User columns that every symbol has, sorted."""
        names = [set(bars.signals) for bars in self.series.values()]
        return tuple(sorted(set.intersection(*names)))

    def edge(self, configuration: TrainingConfiguration) -> PlantedEdge | None:
        """Return what the synthetic market's edge is worth after the configured costs; None where there is none."""
        if self.synthetic is None or self.synthetic.deviation_sd == 0.0:
            return None
        return planted_edge(self.synthetic, configuration.costs.model())


def load_market(
    configuration: TrainingConfiguration,
    *,
    bars: Path | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Market:
    """Read or make the bars.

    Without `bars` the market of the configuration's exchange is taken, up to `exchange.start` where that is
    set: what the exchange will play is not trained on.

    Args:
        configuration: Symbols, period, calendar, exchange.
        bars: Bars file; None for the exchange's market.
        start: First bar start, aware; None for the first there is.
        end: Bar starts end before this, aware; None for the last there is.

    Raises:
        BarsError: The file is unusable.
        CalendarError: No such calendar.
        TrainingError: No bars in the span.
    """
    trading = calendar(configuration.calendar)
    exchange = configuration.exchange
    if bars is None:
        bars = exchange.bars
        if exchange.start is not None:
            end = exchange.start if end is None else min(end, exchange.start)
    if bars is not None:
        from brokers.bars import load_bars  # noqa: PLC0415 -- Polars is loaded only where a file is read

        series = load_bars(
            bars,
            period=configuration.bar_period,
            calendar=trading,
            symbols=configuration.symbols or None,
            start=start,
            end=end,
        )
        synthetic, source = None, bars.name
    else:
        synthetic = synthetic_settings(configuration)
        series = {name: _within(one, start, end) for name, one in generate(synthetic, trading).items()}
        source = f"synthetic market, seed {synthetic.seed}"
    empty = [name for name, one in series.items() if not len(one)]
    if empty or not series:
        raise TrainingError(f"no bars of {', '.join(empty) or 'any symbol'} in {source} between {start} and {end}")
    return Market(series, configuration.bar_period, trading, source, synthetic)


def synthetic_settings(configuration: TrainingConfiguration) -> SyntheticMarketSettings:
    """Return the synthetic market that the exchange plays with this configuration."""
    synthetic = configuration.exchange.synthetic
    return SyntheticMarketSettings(
        seed=synthetic.seed,
        symbols=configuration.symbols or SyntheticMarketSettings().symbols,
        bars=synthetic.bars,
        period=configuration.bar_period,
        calendar=configuration.calendar,
        deviation_sd=SyntheticMarketSettings().deviation_sd if synthetic.edge else 0.0,
    )


def _within(series: BarSeries, start: datetime | None, end: datetime | None) -> BarSeries:
    """Return the bars with start <= bar start < end."""
    begin = 0 if start is None else int(np.searchsorted(series.start_ns, to_ns(start)))
    stop = len(series) if end is None else int(np.searchsorted(series.start_ns, to_ns(end)))
    return series.slice(begin, max(begin, stop))
