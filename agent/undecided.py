"""Why a close has no decision: before the first run, no daemon running, missed, or not yet."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from agent.ledger import schema
from agent.ledger.store import Ledger

_INCIDENTS_MAX = 20


def undecided(ledger: Ledger, symbol: str, close: datetime | None, period: timedelta) -> dict[str, Any]:
    """Say why there is no decision of a symbol at a close; None for a ledger without any decision of it."""
    code, text, context = _why(ledger, close)
    return {
        "symbol": symbol,
        "close_time": close,
        "decided": False,
        "why": code,
        "text": text,
        **context,
        "incidents": [] if close is None else _nearby(ledger, symbol, close - period, close),
    }


def _why(ledger: Ledger, close: datetime | None) -> tuple[str, str, dict[str, Any]]:
    cycles, runs = schema.cycles, schema.runs
    first_run = ledger.first(select(runs).order_by(runs.c.run_id).limit(1))
    first = ledger.first(select(cycles).order_by(cycles.c.close_time).limit(1))
    last = ledger.last_cycle()
    if first_run is None or first is None or last is None or close is None:
        return "nothing_decided", "the daemon has started and not decided any close yet", {}
    if close < first.close_time:
        started = {"started_venue_at": first_run.started_venue_at, "first_close": first.close_time}
        return "before_first_run", "this close lies before the first one that a daemon decided", started
    if close > last.close_time:
        run = ledger.first(select(runs).where(runs.c.run_id == last.run_id))
        ended = run is not None and run.ended_at is not None
        text = "this close lies after the last one that was decided"
        if ended and run is not None:
            text += f"; the daemon ended ({run.end_reason})"
        return "not_yet_decided", text, {"last_close": last.close_time}
    cycle = ledger.first(select(cycles).where(cycles.c.close_time == close))
    if cycle is not None:
        return "not_traded_then", "this close was decided, and the daemon did not trade this symbol then", {}
    before = ledger.first(select(cycles).where(cycles.c.close_time < close).order_by(cycles.c.close_time.desc()))
    after = ledger.first(select(cycles).where(cycles.c.close_time > close).order_by(cycles.c.close_time))
    run = None if before is None else ledger.first(select(runs).where(runs.c.run_id == before.run_id))
    gap = {
        "previous_close": None if before is None else before.close_time,
        "following_close": None if after is None else after.close_time,
    }
    if run is None or before is None or after is None or before.run_id == after.run_id:
        return "missed", "the daemon was running and did not decide this close; its incidents say why", gap
    how = f"ended ({run.end_reason})" if run.ended_at is not None else "was killed"
    text = f"no daemon was running: run {before.run_id} {how} after the close before, run {after.run_id} came later"
    return "not_running", text, gap


def _nearby(ledger: Ledger, symbol: str, begin: datetime, close: datetime) -> list[dict[str, Any]]:
    """Return incidents of the bar; for closes that were missed together, the incident comes with the next one."""
    found = incidents_between(ledger, symbol, begin, close)
    if found:
        return found
    incidents = schema.incidents
    later = (
        select(incidents)
        .where(incidents.c.at > close, incidents.c.kind.in_(("missed_closes", "missed_job", "cycle_failed")))
        .order_by(incidents.c.at)
        .limit(1)
    )
    return [_plain(row) for row in ledger.rows(later)]


def incidents_between(ledger: Ledger, symbol: str | None, begin: datetime, end: datetime) -> list[dict[str, Any]]:
    """Return the incidents of the symbol, or of no symbol, after one time and up to another."""
    incidents = schema.incidents
    question = select(incidents).where(incidents.c.at > begin, incidents.c.at <= end)
    if symbol is not None:
        question = question.where(incidents.c.symbol.is_(None) | (incidents.c.symbol == symbol))
    return [_plain(row) for row in ledger.rows(question.order_by(incidents.c.incident_id).limit(_INCIDENTS_MAX))]


def _plain(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
