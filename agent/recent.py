"""What the gate must know of the last hours: entries of the last hour, and bars since a stop was hit."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select

from agent.deciding import Remembered
from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.orders import Intent
from brokers.calendar import TradingCalendar
from brokers.domain import Leg

_LONGEST_PAUSE = timedelta(days=14)
"""No calendar's sessions pause longer."""


class Recent:
    """Reads it from the ledger once, and keeps it up.

    Args:
        ledger: Intents and fills.
        calendar: Sessions: bars are counted in these alone.
        period: Bar period.
        cooldown_bars: `risk.cooldown_bars`.
    """

    def __init__(self, ledger: Ledger, calendar: TradingCalendar, period: timedelta, cooldown_bars: int) -> None:
        self._ledger = ledger
        self._calendar = calendar
        self._period = period
        self._cooldown_bars = cooldown_bars
        self._entries: deque[tuple[datetime, str]] | None = None

    def before(self, close: datetime) -> Remembered:
        """Return what is remembered at a close."""
        return Remembered(self._entries_last_hour(close), self.bars_since_stop(close))

    def note(self, intents: Iterable[Intent]) -> None:
        """Count intents that have just been written."""
        if self._entries is not None:
            self._entries.extend((each.close_time, each.symbol) for each in intents if each.leg is Leg.ENTRY)

    def _entries_last_hour(self, close: datetime) -> Mapping[str, int]:
        """Count the entries decided within an hour before a close; read once, then kept up by `note`."""
        since = close - timedelta(hours=1)
        if self._entries is None:
            question = (
                select(schema.intents.c.close_time, schema.intents.c.symbol)
                .where(schema.intents.c.close_time > since, schema.intents.c.leg == Leg.ENTRY.value)
                .order_by(schema.intents.c.close_time)
            )
            self._entries = deque((row.close_time, row.symbol) for row in self._ledger.rows(question))
        while self._entries and self._entries[0][0] <= since:
            self._entries.popleft()
        return Counter(symbol for _, symbol in self._entries)

    def bars_since_stop(self, close: datetime) -> dict[str, int]:
        """Count, by symbol, the bars that closed since a stop was hit within the cooldown."""
        cooldown = self._cooldown_bars
        if cooldown == 0:
            return {}
        since = close - (cooldown + 1) * self._period * 6 - _LONGEST_PAUSE  # bars are counted in sessions alone
        question = (
            select(schema.fills.c.symbol, func.max(schema.fills.c.at).label("at"))
            .where(schema.fills.c.leg == Leg.STOP.value, schema.fills.c.at > since)
            .group_by(schema.fills.c.symbol)
        )
        return {
            row.symbol: len(self._calendar.closes_between(row.at, close, self._period))
            for row in self._ledger.rows(question)
        }
