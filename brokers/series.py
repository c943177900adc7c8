"""Bars of one symbol as columns: what whole-frame features, feeds and environments read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brokers.domain import Bar

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_ns(at: datetime) -> int:
    """Return nanoseconds since the epoch of an aware time, exactly (microsecond resolution)."""
    return (at - _EPOCH) // _MICROSECOND * 1_000


@lru_cache(maxsize=4_096)
def from_ns(ns: int) -> datetime:
    """Return the aware UTC time of nanoseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=int(ns) // 1_000)


def places_in(sorted_ns: Int, at_ns: Int, *, side: Literal["left", "right"]) -> Int:
    """Return `sorted_ns.searchsorted(at_ns, side)`, at once where each time falls just before its own of the sorted.

    Args:
        sorted_ns: Increasing times.
        at_ns: Times to find.
        side: As for NumPy: with `left`, a time equal to a sorted one comes before it.
    """
    if len(at_ns) == len(sorted_ns):
        after, before = (np.greater, np.less_equal) if side == "left" else (np.greater_equal, np.less)
        if before(at_ns, sorted_ns).all() and after(at_ns[1:], sorted_ns[:-1]).all():
            return np.arange(len(at_ns))
    return np.asarray(sorted_ns.searchsorted(at_ns, side=side), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class BarSeries:
    """Columns of one symbol's completed bars, oldest first, all of length T.

    Args:
        symbol: Canonical symbol.
        start_ns: Bar starts, ns since the epoch, strictly increasing.
        close_ns: Bar closes, min(start + period, session close), ns.
        open_ns: When the bar's open trades, max(start, session open), ns.
        open: Prices in quote currency; `high`, `low`, `close` likewise.
        volume: Units of the instrument.
        adj_factor: See `brokers.domain.Bar`; ones where the file has none.
        signals: Further numeric columns by name.
    """

    symbol: str
    start_ns: Int
    close_ns: Int
    open_ns: Int
    open: Float
    high: Float
    low: Float
    close: Float
    volume: Float
    adj_factor: Float
    signals: Mapping[str, Float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.start_ns)

    def bar(self, index: int) -> Bar:
        """Return one bar as a domain object."""
        return Bar(
            self.symbol,
            from_ns(self.start_ns.item(index)),
            from_ns(self.close_ns.item(index)),
            self.open.item(index),
            self.high.item(index),
            self.low.item(index),
            self.close.item(index),
            self.volume.item(index),
            self.adj_factor.item(index),
            signals={name: column.item(index) for name, column in self.signals.items()} if self.signals else {},
        )

    def slice(self, begin: int, end: int) -> BarSeries:
        """Return bars begin..end (end exclusive) as views."""
        part = np.s_[begin:end]
        return BarSeries(
            symbol=self.symbol,
            start_ns=self.start_ns[part],
            close_ns=self.close_ns[part],
            open_ns=self.open_ns[part],
            open=self.open[part],
            high=self.high[part],
            low=self.low[part],
            close=self.close[part],
            volume=self.volume[part],
            adj_factor=self.adj_factor[part],
            signals={name: column[part] for name, column in self.signals.items()},
        )
