"""What the exchange replays: bars of its symbols, and the merged order of their opens and closes in venue time.

A bar opens for trading at its OPEN event, max(open time, last close of any symbol + decision deadline), so that
an order decided on that close and sent within the deadline still meets the open, and equity at a close never
holds what trades after it; the bar becomes visible, complete, at its CLOSE event. Events of one instant belong
together: closes first, then opens, symbols in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from brokers.domain import utc
from brokers.series import BarSeries, Int, from_ns, places_in

_COLUMNS = ("start_ns", "close_ns", "open_ns", "open", "high", "low", "close", "volume", "adj_factor")

CLOSE = 0
OPEN = 1


class FeedError(ValueError):
    """Bars that cannot be replayed."""


class SessionCalendar(Protocol):
    """What the exchange asks of a trading calendar."""

    @property
    def id(self) -> str:
        """Name of the calendar, for example `24/7`."""
        ...

    def is_open(self, at: datetime) -> bool:
        """Tell whether a session holds this instant."""
        ...

    def next_session_open(self, at: datetime) -> datetime:
        """Return the first session open strictly after an instant."""
        ...

    def session_close_after(self, at: datetime) -> datetime:
        """Return the first session close strictly after an instant."""
        ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Recorded or synthetic bars, and where the exchange's clock starts among them.

    Args:
        series: Bars by symbol, none empty, of one calendar.
        period: Length of a full bar.
        calendar: Sessions of all symbols.
        begin: Where venue time starts; earlier bars are history that is visible at once. None: at the
            first open, with no history.

    Raises:
        FeedError: No bars, a wrong key, overlapping bars, or a begin beyond the last close.
    """

    series: Mapping[str, BarSeries]
    period: timedelta
    calendar: SessionCalendar
    begin: datetime | None = None

    def __post_init__(self) -> None:
        """Check what the timeline takes for granted."""
        if not self.series:
            raise FeedError("the feed has no symbols: give at least one series of bars")
        for symbol, bars in self.series.items():
            if bars.symbol != symbol or not len(bars):
                msg = f"series {symbol!r} of the feed holds {len(bars)} bars of {bars.symbol!r}: give its own bars"
                raise FeedError(msg)
            if np.any(bars.open_ns[1:] < bars.close_ns[:-1]):
                at = from_ns(bars.start_ns[1:][bars.open_ns[1:] < bars.close_ns[:-1]][0])
                msg = f"bar {symbol} {at.isoformat()} opens before the bar before it closes: give the file's own period"
                raise FeedError(msg)
        if self.begin is not None and utc(self.begin) >= self.end:
            msg = f"the exchange would begin at {self.begin.isoformat()}, but its bars end at {self.end.isoformat()}"
            raise FeedError(msg)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols in the order in which their events of one instant are handled."""
        return tuple(sorted(self.series))

    @property
    def start(self) -> datetime:
        """Where venue time starts."""
        if self.begin is not None:
            return utc(self.begin)
        return from_ns(min(int(bars.open_ns[0]) for bars in self.series.values()))

    @property
    def end(self) -> datetime:
        """Close of the last bar."""
        return from_ns(max(int(bars.close_ns[-1]) for bars in self.series.values()))

    def fingerprint(self) -> str:
        """Return a sha256 over every number that the exchange may show or match against."""
        digest = hashlib.sha256(f"{self.calendar.id}|{self.period}|{self.start.isoformat()}".encode())
        for symbol in self.symbols:
            bars = self.series[symbol]
            digest.update(symbol.encode())
            for name in _COLUMNS:
                digest.update(np.ascontiguousarray(getattr(bars, name)).data)
            for name in sorted(bars.signals):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(bars.signals[name]).data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Timeline:
    """Opens and closes of all symbols by instant. E instants, N items (one open and one close per bar).

    Args:
        times_ns: E increasing instants.
        offsets: E + 1 positions into the items: instant e owns items offsets[e] .. offsets[e + 1].
        kinds: N values CLOSE or OPEN; closes come first within an instant.
        symbols: N indices into the feed's symbols.
        bars: N bar indices within the symbol's series.
        has_action: E flags: an open of this instant carries a split or a dividend.
        opens_ns: By symbol of the feed, when each of its bars opens for trading.
    """

    times_ns: Int
    offsets: NDArray[np.int64]
    kinds: NDArray[np.int8]
    symbols: NDArray[np.int32]
    bars: NDArray[np.int32]
    has_action: NDArray[np.bool_] = field(repr=False)
    opens_ns: tuple[Int, ...] = field(repr=False)

    @classmethod
    def of(cls, feed: Feed, deadline_ns: int) -> Timeline:
        """Merge the events of a feed.

        Raises:
            FeedError: A bar would close before its open event: the deadline is too long for these bars.
        """
        opens_ns, has_action = [], []
        every = [feed.series[symbol] for symbol in feed.symbols]
        closes = every[0].close_ns
        if len(every) > 1:
            closes = np.sort(np.concatenate([series.close_ns for series in every]), kind="stable")
        closes = _distinct(closes)
        for symbol, series in zip(feed.symbols, every, strict=True):
            last = places_in(closes, series.open_ns, side="right") - 1
            opens = np.where(last < 0, series.open_ns, np.maximum(series.open_ns, closes[last] + deadline_ns))
            if np.any(opens >= series.close_ns):
                at = from_ns(series.start_ns[opens >= series.close_ns][0])
                msg = (
                    f"the decision deadline of {deadline_ns / 1e9:g} s does not fit into the bar {symbol} "
                    f"{at.isoformat()}: use longer bars or a shorter decision_deadline_s"
                )
                raise FeedError(msg)
            opens_ns.append(opens)
            has_action.append(np.append(False, series.adj_factor[1:] != series.adj_factor[:-1]))
        if len(every) == 1 and (opens_ns[0][1:] > every[0].close_ns[:-1]).all():
            return cls._alternating(opens_ns[0], every[0].close_ns, has_action[0])
        # closes of every symbol, then opens: sorted by time alone, and stably, events of one instant keep that order;
        # the columns are sorted themselves, so that the sort merges them
        time_N = np.concatenate([series.close_ns for series in every] + opens_ns)
        order = np.argsort(time_N, kind="stable")
        ordered_ns = time_N[order]
        first = np.flatnonzero(_begins(ordered_ns))
        counts = [len(series) for series in every]
        is_open = order >= sum(counts)
        bars = np.concatenate([np.arange(count, dtype=np.int32) for count in counts] * 2)
        symbols = np.repeat(np.tile(np.arange(len(every), dtype=np.int32), 2), counts * 2)
        return cls(
            times_ns=ordered_ns[first],
            offsets=np.append(first, len(time_N)).astype(np.int64),
            kinds=np.where(is_open, OPEN, CLOSE).astype(np.int8),
            symbols=symbols[order],
            bars=bars[order],
            has_action=_at_instants(np.concatenate([np.zeros(sum(counts), dtype=np.bool_), *has_action]), order, first),
            opens_ns=tuple(opens_ns),
        )

    @classmethod
    def _alternating(cls, opens_ns: Int, closes_ns: Int, has_action: NDArray[np.bool_]) -> Timeline:
        """Return the events of one symbol whose bars each open after the close before: nothing needs to be sorted."""
        count = len(opens_ns)
        times_ns, is_acting = np.empty(2 * count, dtype=np.int64), np.zeros(2 * count, dtype=np.bool_)
        times_ns[0::2], times_ns[1::2] = opens_ns, closes_ns
        is_acting[0::2] = has_action
        return cls(
            times_ns=times_ns,
            offsets=np.arange(2 * count + 1, dtype=np.int64),
            kinds=np.tile(np.array([OPEN, CLOSE], dtype=np.int8), count),
            symbols=np.zeros(2 * count, dtype=np.int32),
            bars=np.repeat(np.arange(count, dtype=np.int32), 2),
            has_action=is_acting,
            opens_ns=(opens_ns,),
        )

    def after(self, at_ns: int) -> int:
        """Return the index of the first instant strictly after a time."""
        return int(self.times_ns.searchsorted(at_ns, side="right"))


def _at_instants(flags: NDArray[np.bool_], order: Int, first: Int) -> NDArray[np.bool_]:
    """Tell of which instants an event is flagged: `order` sorts the events, `first` names each instant's first."""
    if not flags.any():
        return np.zeros(len(first), dtype=np.bool_)
    return np.asarray(np.logical_or.reduceat(flags[order], first), dtype=np.bool_)


def _distinct(sorted_ns: Int) -> Int:
    """Return the values of a sorted column, each once; `np.unique` would sort them anew."""
    return sorted_ns[_begins(sorted_ns)]


def _begins(sorted_ns: Int) -> NDArray[np.bool_]:
    """Tell where a value of a sorted column stands for the first time."""
    begins = np.ones(len(sorted_ns), dtype=np.bool_)
    np.not_equal(sorted_ns[1:], sorted_ns[:-1], out=begins[1:])
    return begins
