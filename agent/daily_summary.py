"""One session in a few lines, from the ledger: equity, profit, trades, costs, refusals, abstentions, halts."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, ColumnElement, func, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from brokers.domain import OrderState
from strategies.strategy import Reason

ABSTENTIONS: frozenset[str] = frozenset(
    {
        Reason.WARMING_UP,
        Reason.NO_BAR,
        Reason.STALE_DATA,
        Reason.INCOMPLETE_BARS,
        Reason.BAD_FEATURES,
        Reason.MODEL_ERROR,
    }
)
"""Reasons of a decision that no mind stood behind."""


def summary_of(ledger: Ledger, begin: datetime, end: datetime) -> str:
    """Return the text of the session that ended at `end`; `begin` is the end of the session before it.

    Raises:
        LedgerError: It cannot be read.
    """
    lines = [_equity(ledger, begin, end), _trades(ledger, begin, end), _decisions(ledger, begin, end)]
    return "\n".join([*lines, _troubles(ledger, begin, end)])


def _within(column: Column[Any], begin: datetime, end: datetime) -> ColumnElement[bool]:
    return (column > begin) & (column <= end)


def _equity(ledger: Ledger, begin: datetime, end: datetime) -> str:
    equity = schema.equity
    newest_first = select(equity).order_by(equity.c.close_time.desc()).limit(1)
    last = ledger.first(newest_first.where(_within(equity.c.close_time, begin, end)))
    if last is None:
        return "no close was decided"
    before = ledger.first(newest_first.where(equity.c.close_time <= begin))
    start = last.day_start if before is None else before.equity
    change = last.equity - start
    fraction = f" ({change / start:+.2%})" if start else ""
    drawdown = 1 - last.equity / last.peak if last.peak > 0 else Decimal(0)
    told = f"equity {last.equity:,.2f} USD, profit {change:+,.2f} USD{fraction}, drawdown {drawdown:.2%}"
    return f"{told}, exposure {last.gross_exposure:.0%} of equity"


def _trades(ledger: Ledger, begin: datetime, end: datetime) -> str:
    fills, costs = schema.fills, schema.costs
    joined = fills.outerjoin(costs, (fills.c.venue == costs.c.venue) & (fills.c.exec_id == costs.c.exec_id))
    rows = ledger.rows(
        select(fills.c.leg, fills.c.qty, fills.c.price, fills.c.fee, costs.c.realised_fraction)
        .select_from(joined)
        .where(_within(fills.c.at, begin, end))
    )
    if not rows:
        return "trades: none"
    legs = [row.leg for row in rows]
    by_leg = ", ".join(f"{leg.replace('_', ' ')} {legs.count(leg)}" for leg in sorted(set(legs)))
    notional = sum((row.qty * row.price for row in rows), Decimal(0))
    fees = sum((row.fee for row in rows), Decimal(0))
    known = [(float(row.qty * row.price), row.realised_fraction) for row in rows if row.realised_fraction is not None]
    weight = sum(value for value, _ in known)
    cost = f", all costs {1e4 * sum(v * f for v, f in known) / weight:.1f} bp of it" if weight else ""
    return f"trades: {len(rows)} fills ({by_leg}), {notional:,.2f} USD traded, fees {fees:,.2f} USD{cost}"


def _decisions(ledger: Ledger, begin: datetime, end: datetime) -> str:
    decisions = schema.decisions
    rows = ledger.rows(
        select(decisions.c.action, decisions.c.reason, func.count().label("n"))
        .where(_within(decisions.c.close_time, begin, end))
        .group_by(decisions.c.action, decisions.c.reason)
    )
    actions = {action: sum(row.n for row in rows if row.action == action) for action in ("BUY", "SELL", "HOLD")}
    silent: dict[str, int] = {}
    for row in rows:
        if row.reason in ABSTENTIONS or (row.reason.startswith("llm_") and row.reason != Reason.LLM_VOTE):
            silent[row.reason] = silent.get(row.reason, 0) + row.n
    told = ", ".join(f"{action} {count:,}" for action, count in actions.items())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(silent.items()))
    return f"decisions: {told}; abstentions: {reasons or 'none'}"


def _troubles(ledger: Ledger, begin: datetime, end: datetime) -> str:
    orders, incidents = schema.orders, schema.incidents
    refused = ledger.first(
        select(func.count().label("n"))
        .where(orders.c.state == OrderState.REJECTED.value)
        .where(_within(orders.c.submitted_at, begin, end))
    )
    rows = ledger.rows(
        select(incidents.c.kind, func.count().label("n"))
        .where(_within(incidents.c.at, begin, end))
        .group_by(incidents.c.kind)
        .order_by(incidents.c.kind)
    )
    halts = sum(row.n for row in rows if row.kind == "halt")
    others = ", ".join(f"{row.kind} {row.n:,}" for row in rows if row.kind not in {"halt", "resume"})
    standing = (ledger.get_state("halt") or {}).get("halted")
    halted = f"{halts}{', halted now' if standing else ''}"
    return f"rejected orders: {refused.n if refused is not None else 0}; halts: {halted}; incidents: {others or 'none'}"
