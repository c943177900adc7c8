"""Splits that the bars of a close show: the venue has applied them at the open, our own count follows here.

What a reconciliation in between has met already (`splits.meet_split`) is put right, not applied twice.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, select

from agent.ledger import schema
from agent.records import record_position, split_plan, write_exit
from agent.splits import is_met, settle_met
from agent.trading_state import ArmedExit, TradingState
from brokers.account import split_quantity
from brokers.costs import is_split, split_ratio
from brokers.domain import Bar, Side

if TYPE_CHECKING:
    from agent.looking import View
    from agent.parts import Parts

log = structlog.get_logger("tandem.splits")


class BarSplits:
    """Applies them.

    Args:
        parts: The wired rooms.
    """

    def __init__(self, parts: Parts) -> None:
        self.ledger = parts.ledger
        self.state = parts.state
        self.calendar = parts.calendar
        self.period = parts.settings.bar_period
        self.newest = parts.newest_bars

    def apply(self, view: View) -> None:
        """Apply the splits of the new bars to our own count and to the exits; the venue has applied them already."""
        for symbol, bars in view.bars.items():
            before = self.newest.get(symbol)
            for bar in bars:
                ratio = 1.0 if before is None else bar.adj_factor / before.adj_factor
                if is_split(ratio):
                    self._apply_split(
                        view, symbol, bar, split_ratio(ratio), None if before is None else before.close_time
                    )
                before = bar

    def _apply_split(self, view: View, symbol: str, bar: Bar, ratio: Decimal, last_close: datetime | None) -> None:
        now = view.close_time
        venue = view.positions.get(symbol)
        venue_qty = Decimal(0) if venue is None else venue.qty
        with self.ledger.transaction() as connection:
            marks = self.ledger.get_state(f"split:{symbol}") or {}
            if marks.get("bar") == schema.iso(bar.start):
                return
            if self.state.book.qty(symbol) != venue_qty:
                self._split_book(connection, symbol, bar, ratio)
            armed = self.state.exits.get(symbol)
            if is_met(marks, last_close):
                settle_met(connection, self.ledger, self.state, symbol, marks, ratio)
            elif armed is not None and self._priced_at(connection, armed) <= bar.start:
                write_exit(connection, self.ledger, self.state, replace(armed, plan=split_plan(armed.plan, ratio)))
            self.ledger.set_state(connection, f"split:{symbol}", {"bar": schema.iso(bar.start), "ratio": str(ratio)})
            record_position(connection, self.ledger, self.state, symbol, now)
        log.info("split applied", symbol=symbol, ratio=str(ratio), bar=bar.start.isoformat())

    def _priced_at(self, connection: Connection, armed: ArmedExit) -> datetime:
        """Return when a plan's prices were set: the close its entry was decided on."""
        question = select(schema.intents.c.close_time).where(schema.intents.c.intent_id == armed.intent_id)
        decided = connection.execute(question).scalar()
        return armed.armed_at if decided is None else decided

    def _split_book(self, connection: Connection, symbol: str, bar: Bar, ratio: Decimal) -> None:
        """Scale what was held before the bar opened; fills of this bar are in new units already."""
        opened = self.calendar.open_of(bar.start, self.period)
        question = select(schema.fills).where(schema.fills.c.symbol == symbol, schema.fills.c.at >= opened)
        later = connection.execute(question.order_by(schema.fills.c.exec_id)).all()
        moved = sum((row.qty if row.side == Side.BUY.value else -row.qty for row in later), Decimal(0))
        split_holding(self.state, symbol, moved, ratio)


def split_holding(state: TradingState, symbol: str, moved: Decimal, ratio: Decimal) -> None:
    """Scale our own count of a holding; `moved` units of it were traded after the split, in new units already."""
    holding = state.book.holdings.get(symbol)
    held_before = (Decimal(0) if holding is None else holding.qty) - moved
    if holding is not None and held_before:
        holding.qty = split_quantity(held_before, ratio) + moved
        holding.avg_cost /= ratio
