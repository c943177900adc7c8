"""What the ledger says about the daemon now: the content of `tandem status`. Reads, never asks the venue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, Table, func, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from brokers.domain import OrderState, parse_period

LANGUAGE_MODEL, FUSED = "llm", "fused"
"""Keys of their votes."""
STEPPED_VENUE = "exchange"
"""Capabilities name of the built-in exchange, whose time stands while no daemon steps it."""
SILENCE_S_MAX = 120.0
"""System time after the last or the expected sign of life from which a daemon counts as silent."""
INCIDENTS_SHOWN = 5
VOTES_COUNTED = 200
"""Newest decisions of which the language model's votes are counted."""

_WORKING = [state.value for state in OrderState if state.is_working]
_UNRESOLVED = [OrderState.SUBMITTING.value, OrderState.UNKNOWN.value]


def overview(ledger: Ledger, now: datetime) -> dict[str, Any]:
    """Return everything that `tandem status` shows.

    Args:
        ledger: Of a running or a dead daemon.
        now: System time, aware.

    Raises:
        LedgerError: It cannot be read.
    """
    run = ledger.first(select(schema.runs).order_by(schema.runs.c.run_id.desc()).limit(1))
    cycle = ledger.last_cycle()
    life = liveness(run, cycle, now)
    closes = _closes(ledger, cycle)
    return {
        "ledger": ledger.url,
        "daemon": life,
        "run": None if run is None else _run(run),
        "halt": ledger.get_state("halt") or {"halted": False},
        "paused": ledger.get_state("paused") or {},
        "rejects": {symbol: n for symbol, n in (ledger.get_state("rejects") or {}).items() if n},
        "account": _account(ledger),
        "positions": _positions(ledger, closes, alive=life["state"] == "running"),
        "working_orders": _orders(ledger, _WORKING),
        "unresolved_orders": _orders(ledger, _UNRESOLVED),
        "planned_intents": _planned(ledger),
        "last_close": closes,
        "last_24h": _counts(ledger, cycle),
        "language_model": _language_model(ledger),
        "incidents": _incidents(ledger),
    }


def liveness(run: Row[Any] | None, cycle: Row[Any] | None, now: datetime) -> dict[str, Any]:
    """Tell from the ledger alone whether the daemon lives: `never_ran`, `ended`, `running` or `silent`."""
    if run is None:
        return {"state": "never_ran", "detail": "no run is in the ledger"}
    if run.ended_at is not None:
        return {"state": "ended", "at": run.ended_at, "detail": run.end_reason or ""}
    seen, close = run.started_at, None
    if cycle is not None and cycle.run_id == run.run_id:
        close = cycle.close_time
        if cycle.decided_wall_ms is not None:
            seen = datetime.fromtimestamp(cycle.decided_wall_ms / 1_000.0, UTC)
    due = seen if run.venue == STEPPED_VENUE else _next_close(run, close or run.started_venue_at)
    silent = (now - max(due, seen)).total_seconds() > SILENCE_S_MAX
    detail = "no cycle since then: the process is dead or stuck" if silent else ""
    return {"state": "silent" if silent else "running", "last_sign_of_life": seen, "last_close": close} | (
        {"detail": detail} if detail else {}
    )


def _next_close(run: Row[Any], after: datetime) -> datetime:
    """Return when a running venue's daemon must decide next; the calendar is that of the recorded settings."""
    settings: Mapping[str, Any] = run.settings
    if "calendar" not in settings:
        return after
    from brokers.calendar import calendar  # noqa: PLC0415 - NumPy, and for sessions a large library

    return calendar(settings["calendar"]).next_close(after, parse_period(settings["period"]))


def _values(row: Row[Any], *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _run(run: Row[Any]) -> dict[str, Any]:
    return _values(
        run,
        "run_id",
        "version",
        "strategy",
        "strategy_id",
        "venue",
        "account_scope",
        "started_at",
        "started_venue_at",
        "ended_at",
        "end_reason",
    )


def _account(ledger: Ledger) -> dict[str, Any] | None:
    row = ledger.last_equity()
    if row is None:
        return None
    return {
        **_values(row, "close_time", "equity", "cash", "gross_exposure", "peak", "day_start"),
        "drawdown": float(1 - row.equity / row.peak) if row.peak > 0 else 0.0,
        "day_change": row.equity - row.day_start,
        "day_change_fraction": float(row.equity / row.day_start - 1) if row.day_start > 0 else 0.0,
    }


def _positions(ledger: Ledger, closes: Sequence[Mapping[str, Any]], *, alive: bool) -> list[dict[str, Any]]:
    exits = {row.symbol: row for row in ledger.rows(select(schema.exits))}
    prices = {row["symbol"]: row["price"] for row in closes}
    found: list[dict[str, Any]] = []
    for row in ledger.rows(select(schema.positions).order_by(schema.positions.c.symbol)):
        if not row.qty:
            continue
        price = prices.get(row.symbol)
        mark = None if price is None else Decimal(repr(price))
        held = exits.get(row.symbol)
        found.append(
            {
                **_values(row, "symbol", "qty", "avg_cost"),
                "last_price": mark,
                "value": None if mark is None else row.qty * mark,
                "unrealised": None if mark is None else row.qty * (mark - row.avg_cost),
                "stop": None if held is None else held.stop,
                "take_profit": None if held is None else held.take_profit,
                "max_loss_usd": None if held is None else held.max_loss_usd,
                "guard": "NONE" if held is None else held.mode,
                "guarded_now": held is not None and (held.mode == "venue" or alive),
            }
        )
    return found


def _orders(ledger: Ledger, states: Sequence[str]) -> list[dict[str, Any]]:
    orders = schema.orders
    question = select(orders).where(orders.c.state.in_(states)).order_by(orders.c.symbol, orders.c.client_id)
    names = ("symbol", "side", "leg", "type", "qty", "filled_qty", "limit_price", "stop_price", "state", "client_id")
    return [_values(row, *names, "submitted_at", "reason") for row in ledger.rows(question)]


def _planned(ledger: Ledger) -> list[dict[str, Any]]:
    intents = schema.intents
    question = select(intents).where(intents.c.state == "planned").order_by(intents.c.close_time, intents.c.sequence)
    return [_values(row, "symbol", "side", "leg", "qty", "close_time", "intent_id") for row in ledger.rows(question)]


def _closes(ledger: Ledger, cycle: Row[Any] | None) -> list[dict[str, Any]]:
    if cycle is None:
        return []
    decisions = schema.decisions
    question = select(decisions).where(decisions.c.close_time == cycle.close_time).order_by(decisions.c.symbol)
    return [
        {
            **_values(row, "symbol", "close_time", "action", "target", "position", "held_qty", "reason", "outcome"),
            "price": row.reference_price,
        }
        for row in ledger.rows(question)
    ]


def _counts(ledger: Ledger, cycle: Row[Any] | None) -> list[dict[str, Any]]:
    if cycle is None:
        return []
    decisions = schema.decisions
    question = (
        select(decisions.c.reason, decisions.c.outcome, func.count().label("decisions"))
        .where(decisions.c.close_time > cycle.close_time - timedelta(hours=24))
        .group_by(decisions.c.reason, decisions.c.outcome)
        .order_by(func.count().desc(), decisions.c.reason, decisions.c.outcome)
    )
    return [_values(row, "reason", "outcome", "decisions") for row in ledger.rows(question)]


def _language_model(ledger: Ledger) -> dict[str, Any] | None:
    """Count what the language model did in the newest decisions; None where it was part of none of them."""
    decisions = schema.decisions
    newest = select(decisions.c.votes).order_by(decisions.c.close_time.desc(), decisions.c.symbol).limit(VOTES_COUNTED)
    asked = [row.votes for row in ledger.rows(newest) if LANGUAGE_MODEL in row.votes]
    if not asked:
        return None
    abstained = Counter(votes[LANGUAGE_MODEL].get("abstained") for votes in asked)
    voted = abstained.pop(None, 0)
    told = [votes[FUSED].get("detail") for votes in asked if FUSED in votes]
    pooled = [detail if isinstance(detail, Mapping) else {} for detail in told]  # an abstention's detail is text
    changed = sum(bool(detail.get("llm_effect")) for detail in pooled)
    weights = [detail["llm_weight"] for detail in pooled if "llm_weight" in detail]
    return {
        "decisions": len(asked),
        "voted": voted,
        "abstained": dict(abstained.most_common()),
        "weight": max(weights, default=0.0) if pooled else None,  # None: it decides alone
        "changed_target": changed if pooled else None,
        "changed_share": changed / len(asked) if pooled else None,
    }


def _incidents(ledger: Ledger) -> list[dict[str, Any]]:
    incidents: Table = schema.incidents
    question = select(incidents).order_by(incidents.c.incident_id.desc()).limit(INCIDENTS_SHOWN)
    return [_values(row, "at", "recorded_at", "kind", "symbol", "detail") for row in ledger.rows(question)]
