"""Trading calendars: sessions of each venue, bar opens and bar closes.

Bars are clock-aligned. A bar of period p starts on a multiple of p of the venue's local clock (UTC for 24/7),
opens at max(start, session open) and closes at min(start + p, session close). A `1d` bar starts at 00:00 UTC
of its session's date, opens with the session and closes with it.

Two faces: numpy arrays of ns since the epoch for files and features, aware datetimes for the live clock.
The 24/7 calendar is arithmetic; sessions come from exchange_calendars, which is imported only when one is
asked for. A session table covers an explicit range and grows by itself when asked for times beyond it.
Lunch breaks are not modelled: a session is one stretch from its open to its close. Where the pause between two
sessions is shorter than the period (4 h bars of a futures market), both may have a bar with the same start; `open_of`
and `close_of` then mean the earlier session's.
"""

from __future__ import annotations

import difflib
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brokers.domain import utc
from brokers.series import Int, from_ns, to_ns

Bool = NDArray[np.bool_]

CONTINUOUS = "24/7"
DAY_NS = 86_400 * 1_000_000_000

_HORIZON_DAYS = 40
"""The table is extended when an asked time lies within this many days of its end; no venue closes for longer."""
_MARGIN_DAYS = 3 * 366
"""How far beyond an asked time an extension reaches, so that extensions stay rare."""
_FIRST = date(1990, 1, 1)
_LAST = date(2035, 12, 31)


class CalendarError(ValueError):
    """A calendar that does not exist, or a time about which it cannot answer."""


def period_to_ns(period: timedelta) -> int:
    """Return a bar period in ns, exactly."""
    return ((period.days * 86_400 + period.seconds) * 1_000_000 + period.microseconds) * 1_000


class TradingCalendar(ABC):
    """Sessions and bars of one venue. All arrays are int64 ns since the epoch, UTC."""

    id: str

    @abstractmethod
    def bounds_ns(self, start_ns: Int, period_ns: int) -> tuple[Int, Int, Bool]:
        """Return (open, close, in_session) of the bars that start at `start_ns`.

        Where `in_session` is False no session overlaps the bar; its open and close are then the plain
        start and start + period.
        """

    @abstractmethod
    def starts_ns(self, at_ns: Int, period_ns: int) -> Int:
        """Return the start of the bar that holds each instant; outside sessions, of the next session's first bar."""

    @abstractmethod
    def grid_ns(self, begin_ns: int, end_ns: int, period_ns: int) -> tuple[Int, Int, Int]:
        """Return (start, open, close) of every bar with begin < close <= end, oldest first."""

    @abstractmethod
    def session_ids(self, start_ns: Int) -> Int:
        """Return the session each bar start belongs to, as days since the epoch of the session's date.

        A start outside every session counts for the session that comes next.
        """

    @abstractmethod
    def is_open(self, at: datetime) -> bool:
        """Tell whether a session holds this instant (open <= at < close)."""

    @abstractmethod
    def next_session_open(self, at: datetime) -> datetime:
        """Return the first session open strictly after an instant."""

    @abstractmethod
    def session_close_after(self, at: datetime) -> datetime:
        """Return the first session close strictly after an instant."""

    @abstractmethod
    def next_close(self, after: datetime, period: timedelta) -> datetime:
        """Return the first bar close strictly after an instant."""

    @abstractmethod
    def previous_close(self, at: datetime, period: timedelta) -> datetime:
        """Return the last bar close at or before an instant."""

    def closes_between(self, begin: datetime, end: datetime, period: timedelta) -> list[datetime]:
        """Return every bar close with begin < close <= end, oldest first."""
        _, _, close_ns = self.grid_ns(to_ns(utc(begin)), to_ns(utc(end)), period_to_ns(period))
        return [from_ns(ns) for ns in close_ns]

    def close_of(self, start: datetime, period: timedelta) -> datetime:
        """Return the close of the bar that starts at `start`.

        Raises:
            CalendarError: No session overlaps that bar.
        """
        return self._bounds(start, period)[1]

    def open_of(self, start: datetime, period: timedelta) -> datetime:
        """Return when the open of the bar that starts at `start` trades.

        Raises:
            CalendarError: No session overlaps that bar.
        """
        return self._bounds(start, period)[0]

    def start_of(self, close: datetime, period: timedelta) -> datetime:
        """Return the start of the bar that closes at `close`.

        Raises:
            CalendarError: No bar closes then.
        """
        close_ns = to_ns(utc(close))
        start, _, _ = self.grid_ns(close_ns - 1, close_ns, period_to_ns(period))
        if not len(start):
            msg = f"no bar of {period} of calendar {self.id} closes at {close.isoformat()}: ask next_close for one"
            raise CalendarError(msg)
        return from_ns(start[0])

    def _bounds(self, start: datetime, period: timedelta) -> tuple[datetime, datetime]:
        start_ns = np.array([to_ns(utc(start))], dtype=np.int64)
        open_ns, close_ns, in_session = self.bounds_ns(start_ns, period_to_ns(period))
        if not in_session[0]:
            msg = (
                f"the bar of {period} that starts at {start.isoformat()} lies outside every session of calendar "
                f"{self.id}: drop it, or name the calendar of its venue"
            )
            raise CalendarError(msg)
        return from_ns(open_ns[0]), from_ns(close_ns[0])


class ContinuousCalendar(TradingCalendar):
    """Always open; sessions are UTC days; bars start on multiples of the period since the epoch."""

    id = CONTINUOUS

    def bounds_ns(self, start_ns: Int, period_ns: int) -> tuple[Int, Int, Bool]:
        """Return (start, start + period, all True)."""
        self._check(period_ns)
        return start_ns.copy(), start_ns + period_ns, np.ones(len(start_ns), dtype=np.bool_)

    def starts_ns(self, at_ns: Int, period_ns: int) -> Int:
        """Return instants floored to the period."""
        self._check(period_ns)
        return at_ns // period_ns * period_ns

    def grid_ns(self, begin_ns: int, end_ns: int, period_ns: int) -> tuple[Int, Int, Int]:
        """Return every bar with begin < close <= end."""
        self._check(period_ns)
        first = begin_ns // period_ns
        close = np.arange(first + 1, max(first, end_ns // period_ns) + 1, dtype=np.int64) * period_ns
        start = close - period_ns
        return start, start.copy(), close

    def session_ids(self, start_ns: Int) -> Int:
        """Return the UTC day of each start."""
        return start_ns // DAY_NS

    def is_open(self, at: datetime) -> bool:
        """Return True for every aware time."""
        utc(at)
        return True

    def next_session_open(self, at: datetime) -> datetime:
        """Return the next 00:00 UTC."""
        return self.next_close(at, timedelta(days=1))

    def session_close_after(self, at: datetime) -> datetime:
        """Return the next 00:00 UTC."""
        return self.next_close(at, timedelta(days=1))

    def next_close(self, after: datetime, period: timedelta) -> datetime:
        """Return the next multiple of the period."""
        period_ns = self._check(period_to_ns(period))
        return from_ns((to_ns(utc(after)) // period_ns + 1) * period_ns)

    def previous_close(self, at: datetime, period: timedelta) -> datetime:
        """Return the last multiple of the period."""
        period_ns = self._check(period_to_ns(period))
        return from_ns(to_ns(utc(at)) // period_ns * period_ns)

    @staticmethod
    def _check(period_ns: int) -> int:
        if period_ns <= 0 or (DAY_NS % period_ns and period_ns % DAY_NS):
            msg = (
                f"period of {period_ns / 1e9:g} s neither divides a day nor is whole days: choose for example 5m or 1d"
            )
            raise CalendarError(msg)
        return period_ns


@dataclass(frozen=True, slots=True)
class _Sessions:
    """Known sessions, oldest first, and the dates they were asked for (after the library's own bounds)."""

    day: Int
    open_ns: Int
    close_ns: Int
    offset_ns: Int
    """Local time minus UTC at each session's open."""
    first: date
    last: date
    bounded: bool
    """True where the library knows no sessions after `last`."""


class SessionCalendar(TradingCalendar):
    """A venue with sessions, from exchange_calendars.

    Args:
        name: Calendar name or alias of exchange_calendars, for example `XNYS`.
        first: First date to load; earlier dates load when asked for.
        last: Last date to load; later dates load when asked for.
    """

    def __init__(self, name: str, first: date, last: date) -> None:
        self.id = _resolve(name)
        self._sessions = _load(self.id, first, last)

    def bounds_ns(self, start_ns: Int, period_ns: int) -> tuple[Int, Int, Bool]:
        """Return (open, close, in_session) of bars by their starts."""
        self._check(period_ns)
        if not len(start_ns):
            return start_ns.copy(), start_ns.copy(), np.zeros(0, dtype=np.bool_)
        sessions = self._covering(int(start_ns.min()), int(start_ns.max()) + period_ns)
        if period_ns == DAY_NS:
            day = start_ns // DAY_NS
            index = np.minimum(np.searchsorted(sessions.day, day), len(sessions.day) - 1)
            in_session = sessions.day[index] == day
            begin, end = sessions.open_ns[index], sessions.close_ns[index]
        else:
            index = self._index_after(sessions, start_ns)
            in_session = sessions.open_ns[index] < start_ns + period_ns
            begin = np.maximum(start_ns, sessions.open_ns[index])
            end = np.minimum(start_ns + period_ns, sessions.close_ns[index])
        return np.where(in_session, begin, start_ns), np.where(in_session, end, start_ns + period_ns), in_session

    def starts_ns(self, at_ns: Int, period_ns: int) -> Int:
        """Return the start of the bar that holds each instant."""
        self._check(period_ns)
        if not len(at_ns):
            return at_ns.copy()
        sessions = self._covering(int(at_ns.min()), int(at_ns.max()))
        index = self._index_after(sessions, at_ns)
        if period_ns == DAY_NS:
            return sessions.day[index] * DAY_NS
        return _floor(np.maximum(at_ns, sessions.open_ns[index]), period_ns, sessions.offset_ns[index])

    def grid_ns(self, begin_ns: int, end_ns: int, period_ns: int) -> tuple[Int, Int, Int]:
        """Return every bar with begin < close <= end."""
        self._check(period_ns)
        sessions = self._covering(begin_ns, end_ns)
        low = int(np.searchsorted(sessions.close_ns, begin_ns, side="right"))
        high = max(low, int(np.searchsorted(sessions.open_ns, end_ns, side="left")))
        session_open, session_close = sessions.open_ns[low:high], sessions.close_ns[low:high]
        if period_ns == DAY_NS:
            start, begin, close = sessions.day[low:high] * DAY_NS, session_open, session_close
        else:
            first = _floor(session_open, period_ns, sessions.offset_ns[low:high])
            counts = -((first - session_close) // period_ns)
            rank = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
            start = np.repeat(first, counts) + rank * period_ns
            begin = np.maximum(start, np.repeat(session_open, counts))
            close = np.minimum(start + period_ns, np.repeat(session_close, counts))
        keep = (close > begin_ns) & (close <= end_ns)
        return start[keep], begin[keep], close[keep]

    def session_ids(self, start_ns: Int) -> Int:
        """Return the date, as days since the epoch, of each start's session."""
        if not len(start_ns):
            return start_ns.copy()
        sessions = self._covering(int(start_ns.min()), int(start_ns.max()))
        return sessions.day[self._index_after(sessions, start_ns)]

    def is_open(self, at: datetime) -> bool:
        """Tell whether a session holds this instant."""
        at_ns = to_ns(utc(at))
        sessions, index = self._session_after(at_ns)
        return bool(sessions.open_ns[index] <= at_ns)

    def next_session_open(self, at: datetime) -> datetime:
        """Return the first session open strictly after an instant."""
        at_ns = to_ns(utc(at))
        sessions, index = self._session_after(at_ns)
        if sessions.open_ns[index] <= at_ns:
            sessions, index = self._session_after(int(sessions.close_ns[index]))
        return from_ns(sessions.open_ns[index])

    def session_close_after(self, at: datetime) -> datetime:
        """Return the first session close strictly after an instant."""
        sessions, index = self._session_after(to_ns(utc(at)))
        return from_ns(sessions.close_ns[index])

    def next_close(self, after: datetime, period: timedelta) -> datetime:
        """Return the first bar close strictly after an instant, in this session or the next."""
        period_ns = self._check(period_to_ns(period))
        after_ns = to_ns(utc(after))
        sessions, index = self._session_after(after_ns)
        session_close = int(sessions.close_ns[index])
        if period_ns == DAY_NS:
            return from_ns(session_close)
        inside = max(after_ns, int(sessions.open_ns[index]))
        start = _floor(inside, period_ns, int(sessions.offset_ns[index]))
        return from_ns(min(start + period_ns, session_close))

    def previous_close(self, at: datetime, period: timedelta) -> datetime:
        """Return the last bar close at or before an instant."""
        period_ns = self._check(period_to_ns(period))
        at_ns = to_ns(utc(at))
        sessions = self._covering(at_ns - _HORIZON_DAYS * DAY_NS, at_ns)
        index = int(np.searchsorted(sessions.open_ns, at_ns, side="left")) - 1
        if index >= 0 and sessions.close_ns[index] > at_ns:
            start = _floor(at_ns, period_ns, int(sessions.offset_ns[index]))
            if period_ns < DAY_NS and start > sessions.open_ns[index]:
                return from_ns(start)
            index -= 1
        if index < 0:
            raise self._unknown(at_ns)
        return from_ns(sessions.close_ns[index])

    def _session_after(self, at_ns: int) -> tuple[_Sessions, int]:
        """Return the table and the index of the first session that closes after an instant."""
        sessions = self._covering(at_ns, at_ns)
        index = int(np.searchsorted(sessions.close_ns, at_ns, side="right"))
        if index == len(sessions.close_ns):
            raise self._unknown(at_ns)
        return sessions, index

    def _index_after(self, sessions: _Sessions, at_ns: Int) -> Int:
        index = np.searchsorted(sessions.close_ns, at_ns, side="right")
        if len(index) and int(index.max()) == len(sessions.close_ns):
            raise self._unknown(int(at_ns.max()))
        return index

    def _covering(self, begin_ns: int, end_ns: int) -> _Sessions:
        """Return a table that knows the sessions around begin..end, extended where it does not."""
        sessions = self._sessions
        begin, end = from_ns(begin_ns).date(), from_ns(end_ns).date()
        lacks_past = begin - timedelta(days=2) < sessions.first
        lacks_future = not sessions.bounded and end + timedelta(days=_HORIZON_DAYS) > sessions.last
        if lacks_past or lacks_future:
            first = begin - timedelta(days=_MARGIN_DAYS) if lacks_past else sessions.first
            last = end + timedelta(days=_MARGIN_DAYS) if lacks_future else sessions.last
            sessions = _load(self.id, first, last)
            if begin < sessions.first:
                raise self._unknown(begin_ns)
            self._sessions = sessions
        return sessions

    def _unknown(self, at_ns: int) -> CalendarError:
        known = self._sessions
        return CalendarError(
            f"calendar {self.id} knows its sessions from {known.first} to {known.last}, "
            f"not around {from_ns(at_ns).isoformat()}: upgrade exchange_calendars, or check the time"
        )

    @staticmethod
    def _check(period_ns: int) -> int:
        if period_ns <= 0 or DAY_NS % period_ns:
            msg = f"period of {period_ns / 1e9:g} s does not divide a day: choose for example 5m, 1h or 1d"
            raise CalendarError(msg)
        return period_ns


@lru_cache(maxsize=32)
def calendar(name: str, first: date | None = None, last: date | None = None) -> TradingCalendar:
    """Return a calendar by name: `24/7`, or any name of exchange_calendars (`XNYS`).

    `first` and `last` say which dates to load now; later questions beyond them extend the range.

    Raises:
        CalendarError: No such calendar; the message suggests the nearest names.
    """
    if name == CONTINUOUS:
        return ContinuousCalendar()
    return SessionCalendar(name, first or _FIRST, last or _LAST)


_Ns = TypeVar("_Ns", int, Int)


def _floor(at_ns: _Ns, period_ns: int, offset_ns: _Ns) -> _Ns:
    """Return an instant floored to the period on a clock that runs `offset_ns` ahead of UTC."""
    return (at_ns + offset_ns) // period_ns * period_ns - offset_ns


def _resolve(name: str) -> str:
    import exchange_calendars as xcals  # noqa: PLC0415  heavy: a 24/7 daemon never needs it

    known = xcals.get_calendar_names()
    if name not in known:
        near = difflib.get_close_matches(name.upper(), [CONTINUOUS, *known], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "for example 24/7 (crypto) or XNYS (New York)"
        msg = f"no calendar is called {name!r}: {hint}"
        raise CalendarError(msg)
    return str(xcals.resolve_alias(name))


def _load(name: str, first: date, last: date) -> _Sessions:
    """Ask exchange_calendars for the sessions of first..last, cut to the dates that the library knows."""
    bounded = False
    try:
        table = _library_table(name, start=first, end=last)
    except ValueError:  # beyond the library's bounds, which only an instance can tell
        known = _library_table(name)
        low, high = known.bound_min(), known.bound_max()
        first = max(first, low.date()) if low is not None else first
        bounded = high is not None and high.date() < last
        last = high.date() if bounded else last
        table = _library_table(name, start=first, end=last)
    opens = table.opens.dt.tz_convert("UTC")
    local = opens.dt.tz_convert(table.tz).dt.tz_localize(None)
    open_ns = _ns(opens.dt.tz_localize(None))
    return _Sessions(
        day=_ns(table.sessions) // DAY_NS,
        open_ns=open_ns,
        close_ns=_ns(table.closes.dt.tz_convert("UTC").dt.tz_localize(None)),
        offset_ns=_ns(local) - open_ns,
        first=first,
        last=last,
        bounded=bounded,
    )


def _library_table(name: str, **span: date) -> Any:
    import exchange_calendars as xcals  # noqa: PLC0415  heavy: a 24/7 daemon never needs it

    with warnings.catch_warnings():
        # pandas 3.1 deprecates an expression inside exchange_calendars 4.13; its result is the same until pandas 4
        warnings.filterwarnings("ignore", message="Series.values returning", category=DeprecationWarning)
        return xcals.get_calendar(name, **span)


def _ns(times: object) -> Int:
    return np.asarray(times, dtype="datetime64[ns]").astype(np.int64)


def midnight(day: date) -> datetime:
    """Return 00:00 UTC of a date: the start of its `1d` bar."""
    return datetime.combine(day, time(), tzinfo=UTC)
