"""What the ledger has to tell people: its fills, halts, incidents, starts and stops, and each session's summary.

The ledger is the only source: news are what lies beyond a position in it, so nothing is lost with a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from agent.daily_summary import summary_of
from agent.delivery import Level
from agent.ledger import schema
from agent.ledger.store import Ledger
from brokers.calendar import TradingCalendar
from brokers.protocol import Clock

KINDS = ("start_stop", "halts", "incidents", "daily_summary", "fills")
"""What can be told, in the order in which it is told."""
READ_MAX = 200
"""Events of one kind that are read at a time; more are counted."""
FILLS_READ_MAX = 2_000
"""The same for fills, among which those of the last hour that were told."""
LATE = timedelta(hours=1)
"""Venue time by which a fill may come late and still be told."""
TOLD_FILLS_MAX = 300
"""Newest fills that are remembered as told."""
FOLDED_LINES_MAX = 10
"""Events that a message for many names."""
UNDECIDED_WAIT = timedelta(minutes=2)
"""How long a summary waits, beyond the decision deadline, for a last close that is not decided."""

Position = Any
"""Where the telling of one kind stands: a small JSON value, kept in the ledger."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_HALTS = ("halt", "resume")
_MARKS = {"fills": ("last_execution",), "halts": ("halt", "resumed")}
"""By kind the durable facts that are written with each of its news."""
_LEVELS: tuple[Level, ...] = ("success", "info", "warning", "failure")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to tell: in one line among others, or with its whole body."""

    title: str
    line: str
    body: str
    level: Level = "info"


@dataclass(frozen=True, slots=True)
class News:
    """The oldest events of a kind that were not told, how many there are in all, and the positions after them."""

    events: Sequence[Event] = ()
    total: int = 0
    after_first: Position = None
    after_all: Position = None


class NewsDesk:
    """Reads news from the ledger of a running daemon. Every question is short: the loop that trades waits for it.

    Args:
        ledger: Of the daemon.
        clock: Venue time.
        calendar: Whose sessions are summarised.
        run_id: This run of the daemon.
        decision_deadline_s: `daemon.decision_deadline_s`.
    """

    def __init__(
        self, ledger: Ledger, clock: Clock, calendar: TradingCalendar, *, run_id: int, decision_deadline_s: float
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._calendar = calendar
        self._run_id = run_id
        self._summary: tuple[datetime, str] | None = None
        self._patience = timedelta(seconds=decision_deadline_s) + UNDECIDED_WAIT

    def start(self, kind: str) -> Position:
        """Return the position of somebody who was never told anything: the present, and this run is news."""
        if kind == "start_stop":
            return {"run": self._run_id - 1, "ended": True}
        if kind == "daily_summary":
            return self._clock.now().isoformat()
        if kind == "fills":
            fills = schema.fills
            newest_first = select(fills).order_by(fills.c.at.desc(), fills.c.exec_id.desc())
            return _fills_told(self._ledger.rows(newest_first.limit(TOLD_FILLS_MAX + 1)), _BEGINNING)
        last = self._ledger.first(select(func.max(schema.incidents.c.incident_id).label("newest")))
        return 0 if last is None or last.newest is None else last.newest

    def news(self, kind: str, position: Position) -> News:
        """Return what lies beyond a position.

        Raises:
            LedgerError: It cannot be read.
        """
        if kind == "start_stop":
            return self._runs(position)
        if kind == "daily_summary":
            return self._summaries(datetime.fromisoformat(position))
        if kind == "fills":
            return self._fills(position)
        incidents = schema.incidents.c
        chosen = incidents.kind.in_(_HALTS) if kind == "halts" else incidents.kind.not_in(_HALTS)
        return self._incidents((incidents.incident_id > position) & chosen)

    def mark(self, kind: str) -> str | None:
        """Return what changes with every news of a kind, and is cheap to read; None for a kind that has no such mark.

        Halts have one because they are looked for among all incidents since the last: after a year without, many.
        """
        keys = _MARKS.get(kind)
        return None if keys is None else str([self._ledger.get_state(key) for key in keys])

    def _incidents(self, chosen: ColumnElement[bool]) -> News:
        incidents = schema.incidents
        rows = self._ledger.rows(select(incidents).where(chosen).order_by(incidents.c.incident_id).limit(READ_MAX))
        if not rows:
            return News()
        total, newest = len(rows), rows[-1].incident_id
        if total == READ_MAX:
            count = self._ledger.first(select(func.count().label("n")).select_from(incidents).where(chosen))
            last = self._ledger.first(select(func.max(incidents.c.incident_id).label("newest")).where(chosen))
            total = total if count is None else count.n
            newest = newest if last is None else last.newest
        return News([_incident(row) for row in rows], total, rows[0].incident_id, newest)

    def _fills(self, position: Position) -> News:
        floor, told = datetime.fromisoformat(position["floor"]), set(position["told"])
        fills = schema.fills
        newer = fills.c.at > floor
        question = select(fills).where(newer).order_by(fills.c.at, fills.c.exec_id).limit(FILLS_READ_MAX)
        rows = self._ledger.rows(question)
        untold = [row for row in rows if row.exec_id not in told]
        if not untold:
            return News()
        total, all_rows = len(untold), rows
        if len(rows) == FILLS_READ_MAX:  # a long outage: the newest are remembered one by one, the others by the floor
            count = self._ledger.first(select(func.count().label("n")).select_from(fills).where(newer))
            total = total if count is None else count.n - len(told)
            newest_first = select(fills).where(newer).order_by(fills.c.at.desc(), fills.c.exec_id.desc())
            all_rows = self._ledger.rows(newest_first.limit(TOLD_FILLS_MAX + 1))
        known = [row for row in rows if row.exec_id in told]
        events = [_fill(row) for row in untold[:READ_MAX]]
        following = untold[1].at if len(untold) > 1 else None
        return News(events, total, _fills_told([*known, untold[0]], floor, following), _fills_told(all_rows, floor))

    def _runs(self, position: Position) -> News:
        runs = schema.runs
        rows = self._ledger.rows(
            select(runs).where(runs.c.run_id >= position["run"]).order_by(runs.c.run_id).limit(READ_MAX)
        )
        events: list[Event] = []
        after: list[Position] = []
        for index, row in enumerate(rows):
            if row.run_id > position["run"]:
                events.append(_started(row, rows[index - 1] if index else self._run_before(row.run_id)))
                after.append({"run": row.run_id, "ended": False})
            if row.ended_at is not None and not (row.run_id == position["run"] and position["ended"]):
                events.append(_ended(row))
                after.append({"run": row.run_id, "ended": True})
        return News(events, len(events), after[0], after[-1]) if events else News()

    def _run_before(self, run_id: int) -> Row[Any] | None:
        runs = schema.runs
        return self._ledger.first(select(runs).where(runs.c.run_id < run_id).order_by(runs.c.run_id.desc()).limit(1))

    def _summaries(self, told_until: datetime) -> News:
        events: list[Event] = []
        ends: list[str] = []
        while len(events) < READ_MAX and (end := self._next_end(told_until)) is not None:
            text = self._summarised(end)
            day = (end - timedelta(microseconds=1)).date()
            events.append(Event(f"summary of {day}", f"{day}: {text.splitlines()[0]}", text))
            ends.append(end.isoformat())
            told_until = end
        return News(events, len(events), ends[0], ends[-1]) if events else News()

    def _summarised(self, end: datetime) -> str:
        """Return the session's summary, made once however often it must be sent: a day of many symbols takes 0.2 s."""
        if self._summary is None or self._summary[0] != end:
            self._summary = end, summary_of(self._ledger, self._end_before(end), end)
        return self._summary[1]

    def _next_end(self, told_until: datetime) -> datetime | None:
        """Return the first end of a session with closes that is over and not told; None while there is none."""
        equity = schema.equity.c.close_time
        first = self._ledger.first(select(equity).where(equity > told_until).order_by(equity).limit(1))
        if first is None:
            return None
        end = self._calendar.session_close_after(first.close_time - timedelta(microseconds=1))
        now = self._clock.now()
        if end > now:
            return None
        cycle = self._ledger.last_cycle()
        is_done = cycle is not None and (cycle.close_time > end or (cycle.close_time == end and cycle.status == "done"))
        return end if is_done or now > end + self._patience else None

    def _end_before(self, end: datetime) -> datetime:
        """Return the session end before another one: no venue is shut for longer than a fortnight."""
        before = self._calendar.session_close_after(end - timedelta(days=14))
        while (following := self._calendar.session_close_after(before)) < end:
            before = following
        return before


def _fills_told(rows: Sequence[Row[Any]], floor: datetime, following: datetime | None = None) -> Position:
    """Return the position after these fills: those that a late one may still mix with are kept by their ids.

    The floor does not pass `following`, the time of the next fill to tell: a thousand symbols fill at one instant.
    """
    newest = max((row.at for row in rows), default=floor + LATE)
    kept = sorted((row.at, row.exec_id) for row in rows)
    lowest = max(floor, newest - LATE)
    if len(kept) > TOLD_FILLS_MAX:
        lowest = max(lowest, kept[-TOLD_FILLS_MAX - 1][0])
        if following is not None and len(kept) < FILLS_READ_MAX:
            lowest = max(floor, min(lowest, following - timedelta(microseconds=1)))
    return {"floor": schema.iso(lowest), "told": [exec_id for at, exec_id in kept if at > lowest]}


def _fill(row: Row[Any]) -> Event:
    text = f"{row.side.upper()} {_number(row.qty)} {row.symbol} at {_number(row.price)} ({row.leg.replace('_', ' ')})"
    line = f"{_time(row.at)} {text}, fee {_number(row.fee)} USD"
    return Event(f"fill: {text}", line, line)


def _incident(row: Row[Any]) -> Event:
    name = row.kind.replace("_", " ")
    where = f" {row.symbol}" if row.symbol else ""
    line = f"{_time(row.at)} {name}{where}: {' '.join(row.detail.split())}"
    return Event(f"{name}{where}", line, line, "success" if row.kind == "resume" else "warning")


def _started(row: Row[Any], before: Row[Any] | None) -> Event:
    line = f"run {row.run_id} of {row.strategy} on {row.venue} started {_time(row.started_at)}, version {row.version}"
    if before is None or before.ended_at is not None:
        return Event("started", line, line)
    line += f"; run {before.run_id} before it was cut off (killed, or the power failed)"
    return Event("started after a crash", line, line, "warning")


def _ended(row: Row[Any]) -> Event:
    reason = " ".join((row.end_reason or "").split())
    line = f"run {row.run_id} ended {_time(row.ended_at)}: {reason}"
    failed = reason.startswith("failed")
    return Event("stopped by a failure" if failed else "stopped", line, line, "failure" if failed else "info")


def _number(value: Decimal) -> str:
    return f"{value.normalize():,f}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def fold(kind: str, news: News) -> Event:
    """Return one event that stands for many."""
    lines = [event.line for event in news.events[:FOLDED_LINES_MAX]]
    if news.total > len(lines):
        lines.append(f"... and {news.total - len(lines):,} more; `tandem status` and `tandem why` know them")
    worst = max((event.level for event in news.events), key=_LEVELS.index)
    title = f"and {news.total:,} more ({kind.replace('_', ' ')})"
    return Event(title, title, "\n".join(lines), worst)
