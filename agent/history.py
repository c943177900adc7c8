"""Bars that were seen: warming the features at the start, and moving bars from the ledger to the bar store.

Live bars are written to the ledger in the cycle's transaction; when a session has ended they are written to
the bar store as a whole, and the ledger keeps only what came since. Without a bar store it keeps the features' memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from sqlalchemy import Select, delete, func, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.domain import Bar
from brokers.protocol import Clock, MarketData
from brokers.series import BarSeries, from_ns, to_ns
from strategies.features import IncrementalFeatures

if TYPE_CHECKING:
    from brokers.bar_store import BarStore

Column = np.ndarray[Any, np.dtype[Any]]

log = structlog.get_logger("tandem.history")

KEEP_IN_LEDGER = timedelta(days=2)
"""Bars younger than this stay in the ledger after they were stored, so that `tandem why` finds them."""
SERIES_COLUMNS = ("start_ns", "close_ns", "open_ns", "open", "high", "low", "close", "volume", "adj_factor")
BARS_AT_ONCE = 10_000
"""Bars of history in memory as objects at a time: a page of Alpaca's answers."""
BARS_ASKED_FACTOR = 1.1
"""How much more history is asked for where trading pauses: a symbol may have bars in which nobody traded."""
ASKED_AHEAD = 2
"""Questions for history that are with the venue at a time."""
STORED_AT_ONCE = 4_000
"""Bars in memory as objects on their way to the bar store at a time."""


class History:
    """Knows where bars of the past are.

    Args:
        store_root: Folder of the bar store; None for none.
        ledger: Bars since the last compaction.
        data: The venue, for what neither has.
        clock: Venue time.
        calendar: Sessions.
        symbols: Symbols to keep.
        period: Bar period.
        features: The incremental runner to warm.
    """

    def __init__(
        self,
        *,
        store_root: Path | None,
        ledger: Ledger,
        data: MarketData,
        clock: Clock,
        calendar: TradingCalendar,
        symbols: Sequence[str],
        period: timedelta,
        features: IncrementalFeatures,
    ) -> None:
        self.store_root = store_root
        self.ledger = ledger
        self.data = data
        self.clock = clock
        self.calendar = calendar
        self.symbols = tuple(symbols)
        self.period = period
        self.features = features
        self._compacted_session: int | None = None

    async def warm_all(self, until: datetime) -> dict[str, Bar]:
        """Fill the features with the last `memory_bars` bars of every symbol that closed by `until`.

        Returns the newest bar by symbol.

        Raises:
            BrokerError: The venue did not answer.
        """
        stored = self._stored(self.symbols)
        newest: dict[str, Bar] = {}
        count = 0
        asked_bars = round((self.features.spec.memory_bars + 2) * BARS_ASKED_FACTOR)
        groups = deque(_groups(self.symbols, max(1, BARS_AT_ONCE // asked_bars)))
        asked: deque[asyncio.Task[tuple[int, dict[str, list[Bar]]]]] = deque()
        try:
            while groups or asked:
                while groups and len(asked) < ASKED_AHEAD:  # the venue works while an answer is converted here
                    asked.append(asyncio.create_task(self._later(groups.popleft(), stored, until)))
                known, later = await asked.popleft()
                count += known
                for symbol, bars in later.items():
                    series = self._joined(symbol, stored.get(symbol), bars, until)
                    if len(series):
                        self.features.warm(series)
                        last = series.bar(len(series) - 1)
                        newest[symbol] = next((bar for bar in reversed(bars) if bar.start == last.start), last)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        log.info("history", symbols=len(self.symbols), known=count, warm=len(newest))
        return newest

    async def _later(
        self, symbols: Sequence[str], stored: Mapping[str, BarSeries], until: datetime
    ) -> tuple[int, dict[str, list[Bar]]]:
        """Return how many bars were known, and by symbol what ledger and venue have beyond the stored ones."""
        seen = self._seen(symbols, until)
        known = {symbol: self._joined(symbol, stored.get(symbol), seen[symbol], until) for symbol in symbols}
        start = self._missing_from(known, until)
        fetched = await self.data.bars(symbols, self.period, start, until) if start < until else {}
        later = {symbol: _merged(seen[symbol], fetched.get(symbol, ())) for symbol in symbols}
        return sum(map(len, known.values())), later

    async def warm(self, symbol: str, until: datetime) -> None:
        """Fill one symbol's features again, after its newest bar was revised."""
        fetched = await self.data.bars([symbol], self.period, self._lookback(until), until)
        bars = _merged(self._seen([symbol], until)[symbol], fetched[symbol])
        self.features.warm(self._joined(symbol, self._stored([symbol]).get(symbol), bars, until))

    def compact(self, close: datetime) -> None:
        """When a session has ended, write its bars to the store (if any) and drop older ones from the ledger."""
        session = int(self.calendar.session_ids(np.array([to_ns(close)]))[0])
        if self._compacted_session is None:
            self._compacted_session = session
        if session == self._compacted_session:
            return
        self._compacted_session = session
        if self.store_root is None:
            self._prune(close)
            return
        seen = schema.bars_seen.c
        question = select(schema.bars_seen).where(seen.close_time <= close)
        mark = self.ledger.get_state("bars_stored")
        if mark is not None:
            # the bar of the last time again: it may have been revised since
            question = question.where(seen.close_time >= datetime.fromisoformat(mark["until"]))
        stored = self._store_all(question)
        with self.ledger.transaction() as connection:
            self.ledger.set_state(connection, "bars_stored", {"until": schema.iso(close)})
            connection.execute(delete(schema.bars_seen).where(seen.close_time <= close - KEEP_IN_LEDGER))
        log.info("bars stored", bars=stored)

    def _prune(self, close: datetime) -> None:
        """Keep in the ledger what a warm start and `tandem why` need: no store has the rest."""
        kept_from = min(close - KEEP_IN_LEDGER, self._lookback(close))
        with self.ledger.transaction() as connection:
            connection.execute(delete(schema.bars_seen).where(schema.bars_seen.c.close_time <= kept_from))

    def _store_all(self, question: Select[Any]) -> int:
        """Write the bars that a question finds to the store, as many at a time as memory allows; returns how many."""
        counted = self.ledger.first(question.with_only_columns(func.count()))
        waiting = 0 if counted is None else int(counted[0])
        groups = _groups(self.symbols, max(1, STORED_AT_ONCE * len(self.symbols) // max(waiting, 1)))
        pieces = (self._seen_by(question, symbols) for symbols in groups)
        report = self._store().write_pieces(pieces, period=self.period, calendar=self.calendar)
        return report.added + report.revised + report.unchanged

    def _seen_by(self, question: Select[Any], symbols: Sequence[str]) -> list[Bar]:
        rows = self.ledger.rows(question.where(schema.bars_seen.c.symbol.in_(symbols)))
        return [bar_of(dict(row._mapping)) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name

    def _store(self) -> BarStore:
        from brokers.bar_store import BarStore  # noqa: PLC0415 - Polars is loaded only where bars are kept

        if self.store_root is None:
            raise ValueError("daemon.bar_store is not set")
        return BarStore(self.store_root)

    def _stored(self, symbols: Sequence[str]) -> dict[str, BarSeries]:
        """Return the end of what the bar store holds."""
        if self.store_root is None or not self._store().symbols(self.period):
            return {}  # asked first: reading loads Polars, 39 MB
        return self._store().read_many(symbols, self.period, self.features.spec.memory_bars + 1)

    def _seen(self, symbols: Sequence[str], until: datetime) -> dict[str, list[Bar]]:
        """Return what the ledger holds, of each bar its last revision."""
        question = (
            select(schema.bars_seen)
            .where(schema.bars_seen.c.symbol.in_(symbols), schema.bars_seen.c.close_time <= until)
            .order_by(schema.bars_seen.c.start, schema.bars_seen.c.revision)
        )
        seen: dict[str, dict[datetime, Bar]] = {symbol: {} for symbol in symbols}
        for row in self.ledger.rows(question):
            seen[row.symbol][row.start] = bar_of(dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's public name
        return {symbol: list(bars.values()) for symbol, bars in seen.items()}

    def _joined(self, symbol: str, stored: BarSeries | None, bars: Sequence[Bar], until: datetime) -> BarSeries:
        """Return stored bars and later ones as one series; where both have a bar, the later one counts."""
        until_ns = to_ns(until)
        later = series_of(symbol, [bar for bar in bars if bar.close_time <= until], self.calendar, self.period)
        if stored is None or not len(stored):
            return later
        kept = (stored.close_ns <= until_ns) & ~np.isin(stored.start_ns, later.start_ns)
        order = np.argsort(np.concatenate([stored.start_ns[kept], later.start_ns]), kind="stable")

        def column(first: Column, second: Column) -> Column:
            return np.concatenate([first[kept], second])[order]

        names = stored.signals.keys() & later.signals.keys() if len(later) else stored.signals.keys()
        columns = {name: column(getattr(stored, name), getattr(later, name)) for name in SERIES_COLUMNS}
        none = np.empty(0)
        signals = {name: column(stored.signals[name], later.signals.get(name, none)) for name in sorted(names)}
        return BarSeries(symbol=symbol, **columns, signals=signals)

    def _missing_from(self, known: Mapping[str, BarSeries], until: datetime) -> datetime:
        """Return the start from which the venue must be asked: all of the memory, or only what came since."""
        enough = self.features.spec.memory_bars
        if any(len(series) < enough for series in known.values()):
            return self._lookback(until)
        return from_ns(min(int(series.start_ns[-1]) for series in known.values())) + self.period

    def _lookback(self, until: datetime) -> datetime:
        """Return a time before which no bar of the memory can start: sessions close at nights and weekends."""
        return lookback(self.calendar, self.period, self.features.spec.memory_bars, until)


def lookback(calendar: TradingCalendar, period: timedelta, memory_bars: int, until: datetime) -> datetime:
    """Return a time before which no bar of a memory can start: sessions close at nights and weekends."""
    wanted = memory_bars + 2
    if calendar.id == "24/7":
        return until - period * wanted
    wanted = round(wanted * BARS_ASKED_FACTOR)
    begin = until - period * wanted * (1.6 if period >= timedelta(days=1) else 7.0)
    start_ns, _, _ = calendar.grid_ns(to_ns(begin), to_ns(until), period_to_ns(period))
    return begin if len(start_ns) < wanted else from_ns(start_ns[-wanted])


def _groups(symbols: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (symbols[first : first + size] for first in range(0, len(symbols), size))


def bar_of(values: Mapping[str, object]) -> Bar:
    """Build a bar from a row of `bars_seen`."""
    fields = {name: values[name] for name in ("symbol", "start", "close_time", "open", "high", "low", "close")}
    fields |= {name: values[name] for name in ("volume", "adj_factor", "revision")}
    return Bar(**fields, signals=values["signals"] or {})  # type: ignore[arg-type]  # columns have the fields' types


def series_of(symbol: str, bars: Sequence[Bar], calendar: TradingCalendar, period: timedelta) -> BarSeries:
    """Return bars as columns; signals are those that every bar has."""
    start_ns = np.array([to_ns(bar.start) for bar in bars], dtype=np.int64)
    open_ns, close_ns, _ = calendar.bounds_ns(start_ns, round(period.total_seconds() * 1e9))
    names = set.intersection(*(set(bar.signals) for bar in bars)) if bars else set()
    rows = np.array([(b.open, b.high, b.low, b.close, b.volume, b.adj_factor) for b in bars], dtype=np.float64)
    opened, high, low, close, volume, adj_factor = np.ascontiguousarray(rows.reshape(-1, 6).T)
    return BarSeries(
        symbol=symbol,
        start_ns=start_ns,
        close_ns=close_ns,
        open_ns=open_ns,
        open=opened,
        high=high,
        low=low,
        close=close,
        volume=volume,
        adj_factor=adj_factor,
        signals={name: np.array([bar.signals[name] for bar in bars], dtype=np.float64) for name in sorted(names)},
    )


def _merged(first: Iterable[Bar], second: Iterable[Bar]) -> list[Bar]:
    """Return both, one bar a start (the highest revision, then the second), oldest first."""
    by_start: dict[datetime, Bar] = {bar.start: bar for bar in first}
    for bar in second:
        held = by_start.get(bar.start)
        if held is None or bar.revision >= held.revision:
            by_start[bar.start] = bar
    return [by_start[start] for start in sorted(by_start)]
