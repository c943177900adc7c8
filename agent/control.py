"""Halt and resume: what an operator writes into the ledger, and a running daemon reads at its next close."""

from __future__ import annotations

import getpass
import os
from datetime import datetime
from typing import Any, cast

from sqlalchemy import select

from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.overview import STEPPED_VENUE

REASON_LENGTH_MAX = 300


def halt(ledger: Ledger, reason: str, now: datetime) -> tuple[bool, dict[str, Any]]:
    """Stop entries until `resume`; returns whether that changed anything, and the halt that stands.

    A halt that stands already keeps its reason. Exits and reductions go on.

    Raises:
        LedgerError: Nothing was written.
    """
    with ledger.transaction() as connection:
        standing = ledger.get_state("halt")
        if standing is not None and standing.get("halted"):
            return False, standing
        at = venue_time(ledger, now)
        wanted = {
            "halted": True,
            "reason": ledger.redactor.text(reason)[:REASON_LENGTH_MAX],
            "at": schema.iso(at),
            "by": operator(),
        }
        ledger.set_state(connection, "halt", wanted)
        ledger.incident(connection, at, "halt", f"by {wanted['by']}: {wanted['reason']}")
    return True, wanted


def resume(ledger: Ledger, now: datetime) -> tuple[bool, dict[str, Any]]:
    """End a halt and forget pauses and reject streaks; returns whether there was anything to end, and what.

    Raises:
        LedgerError: Nothing was written.
    """
    with ledger.transaction() as connection:
        standing = ledger.get_state("halt") or {}
        ended = {
            "halt": standing if standing.get("halted") else None,
            "paused": ledger.get_state("paused") or {},
            "rejects": {symbol: n for symbol, n in (ledger.get_state("rejects") or {}).items() if n},
        }
        if not any(ended.values()):
            return False, ended
        by, at = operator(), venue_time(ledger, now)
        count = int((ledger.get_state("resumed") or {}).get("count", 0)) + 1
        ledger.set_state(connection, "halt", {"halted": False, "reason": "", "at": schema.iso(at), "by": by})
        ledger.set_state(connection, "paused", {})
        ledger.set_state(connection, "rejects", {})
        ledger.set_state(connection, "resumed", {"count": count, "at": schema.iso(at), "by": by})
        ledger.incident(connection, at, "resume", f"by {by}; ended: {ended_text(ended)}")
    return True, ended


def venue_time(ledger: Ledger, now: datetime) -> datetime:
    """Return venue time as well as the ledger knows it: the last close on a stepped venue, else system time."""
    run = ledger.first(select(schema.runs).order_by(schema.runs.c.run_id.desc()).limit(1))
    if run is None or run.venue != STEPPED_VENUE:
        return now
    cycle, began = ledger.last_cycle(), cast("datetime", run.started_venue_at)
    return began if cycle is None else max(cycle.close_time, began)


def operator() -> str:
    """Return who runs this command: the system's user name, or the user's number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def ended_text(ended: dict[str, Any]) -> str:
    """Say what `resume` ended."""
    parts = []
    if ended["halt"] is not None:
        parts.append(f"halt ({ended['halt'].get('reason', '')})")
    parts += [f"pause of {symbol} ({why})" for symbol, why in sorted(ended["paused"].items())]
    parts += [f"{count} refusals of {symbol}" for symbol, count in sorted(ended["rejects"].items())]
    return ", ".join(parts)
