"""The built-in exchange out of the settings: what it plays, how it fills, where its books are.

`tandem exchange` serves the engine made here; a replay uses the same one with books in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from agent.settings import Settings
from brokers.calendar import calendar
from brokers.series import BarSeries, to_ns
from brokers.simulated.books import Books, MemoryBooks
from brokers.simulated.broker import default_instruments
from brokers.simulated.engine import MatchingEngine
from brokers.simulated.feed import Feed
from brokers.simulated.settings import EngineSettings

if TYPE_CHECKING:
    from brokers.simulated.synthetic import SyntheticMarketSettings

SYNTHETIC_SYMBOLS = ("SYNTH",)


def load_series(settings: Settings, *, period: timedelta | None) -> dict[str, BarSeries]:
    """Return the bars that the exchange plays: recorded ones, or the synthetic market.

    Args:
        settings: `exchange.bars`, `exchange.synthetic`, `exchange.end`, `symbols`, `calendar`.
        period: Bar period; None takes what the recorded file holds.

    Raises:
        BarsError: The file is unusable.
    """
    exchange = settings.exchange
    if exchange.bars is None:
        from brokers.simulated.synthetic import generate  # noqa: PLC0415 - only for who plays it

        return _until(generate(synthetic_settings(settings)), exchange.end)
    from brokers.bars import load_bars  # noqa: PLC0415 - brings Polars in

    return load_bars(
        exchange.bars,
        period=period,
        calendar=calendar(settings.calendar),
        symbols=settings.symbols or None,
        end=exchange.end,
    )


def _until(series: Mapping[str, BarSeries], end: datetime | None) -> dict[str, BarSeries]:
    """Return the bars that start before a time; symbols without any are left out."""
    if end is None:
        return dict(series)
    cut = {name: bars.slice(0, int(bars.start_ns.searchsorted(to_ns(end)))) for name, bars in series.items()}
    return {name: bars for name, bars in cut.items() if len(bars)}


def synthetic_settings(settings: Settings) -> SyntheticMarketSettings:
    """Return the synthetic market that the settings describe."""
    from brokers.simulated.synthetic import SyntheticMarketSettings  # noqa: PLC0415 - only for who plays it

    chosen = settings.exchange.synthetic
    plain = SyntheticMarketSettings()
    return SyntheticMarketSettings(
        seed=chosen.seed,
        symbols=settings.symbols or SYNTHETIC_SYMBOLS,
        bars=chosen.bars,
        period=settings.bar_period,
        calendar=settings.calendar,
        deviation_sd=plain.deviation_sd if chosen.edge else 0.0,
    )


def engine_settings(settings: Settings) -> EngineSettings:
    """Return the engine's settings out of the daemon's."""
    exchange = settings.exchange
    return EngineSettings(
        seed=exchange.seed,
        initial_cash=exchange.initial_cash_usd,
        partial_fill_probability=exchange.partial_fill_probability,
        leverage=Decimal(repr(exchange.leverage)),
        shorting=settings.strategy.shorts,
        rule_set=exchange.rule_set,
        decision_deadline_s=settings.daemon.decision_deadline_s,
    )


def make_engine(
    settings: Settings, series: Mapping[str, BarSeries], *, period: timedelta | None = None, books: Books | None = None
) -> MatchingEngine:
    """Return the matching engine over some bars; its books are in memory unless given.

    Raises:
        BooksError: The books cannot be used, or belong to something else.
        FeedError: The bars cannot be replayed.
    """
    trading = calendar(settings.calendar)
    feed = Feed(series, period or settings.bar_period, trading, settings.exchange.start)
    instruments = default_instruments(feed.symbols, trading, shortable=settings.strategy.shorts)
    return MatchingEngine(feed, settings.costs.model(), engine_settings(settings), books or MemoryBooks(), instruments)
