"""Splits that the venue applies before their bar has closed.

A reconciliation in between meets other units at the same cost: that is no drift. It takes them over and scales
the exits by the ratio of the quantities; when the bar closes, its own ratio takes that one's place, so that a
restart within the bar leaves the same ledger as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from agent.ledger.schema import iso
from agent.ledger.store import Ledger
from agent.records import record_position, split_plan, write_exit
from agent.trading_state import TradingState
from brokers.costs import is_split
from brokers.domain import Position

_SAME_COST = Decimal("0.0001")
"""Largest relative difference of cost at which a changed quantity counts as a split."""


def meet_split(ledger: Ledger, state: TradingState, symbol: str, theirs: Position | None, now: datetime) -> bool:
    """Take over a position that a split explains; False where none does.

    Raises:
        LedgerError: Nothing was written.
    """
    holding = state.book.holdings.get(symbol)
    if holding is None or theirs is None or not holding.qty * theirs.qty > 0:
        return False
    ratio = theirs.qty / holding.qty
    if not is_split(float(ratio)) or abs(theirs.avg_cost * ratio / holding.avg_cost - 1) > _SAME_COST:
        return False
    armed = state.exits.get(symbol)
    cost, holding.avg_cost = holding.avg_cost, holding.avg_cost / ratio
    holding.qty = theirs.qty
    marks: dict[str, Any] = {"met": iso(now), "cost": _texts(cost, holding.avg_cost)}
    with ledger.transaction() as connection:
        if armed is not None:
            scaled = replace(armed, plan=split_plan(armed.plan, ratio))
            marks["stop"] = _texts(armed.plan.stop, scaled.plan.stop)
            marks["take_profit"] = _texts(armed.plan.take_profit, scaled.plan.take_profit)
            write_exit(connection, ledger, state, scaled)
        ledger.set_state(connection, f"split:{symbol}", marks)
        record_position(connection, ledger, state, symbol, now)
    return True


def is_met(marks: Mapping[str, Any], since: datetime | None) -> bool:
    """Tell whether a split was met after a bar's close, and hence is the one that the next bar shows."""
    return "met" in marks and since is not None and datetime.fromisoformat(marks["met"]) > since


def settle_met(
    connection: Connection, ledger: Ledger, state: TradingState, symbol: str, marks: Mapping[str, Any], ratio: Decimal
) -> None:
    """Put the bar's own ratio in the place of the one that was met; what has changed since then stays."""
    holding, armed = state.book.holdings.get(symbol), state.exits.get(symbol)
    if holding is not None:
        before, after = _numbers(marks["cost"])
        if before is not None and holding.avg_cost == after:
            holding.avg_cost = before / ratio
    if armed is None or "stop" not in marks:
        return
    (stop, scaled_stop), (profit, scaled_profit) = _numbers(marks["stop"]), _numbers(marks["take_profit"])
    if (armed.plan.stop, armed.plan.take_profit) == (scaled_stop, scaled_profit):
        original = replace(armed.plan, stop=stop, take_profit=profit)
        write_exit(connection, ledger, state, replace(armed, plan=split_plan(original, ratio)))


def _texts(*numbers: Decimal | None) -> list[str | None]:
    return [None if number is None else format(number, "f") for number in numbers]


def _numbers(texts: list[str | None]) -> tuple[Decimal | None, Decimal | None]:
    before, after = (None if text is None else Decimal(text) for text in texts)
    return before, after
