"""Why a bar was traded, or not: everything the ledger holds about one decision, in one mapping.

Bars that were moved to the bar store are read from there. For a close without a decision the answer says
why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.reasons import GATE, sentence
from agent.undecided import incidents_between, undecided
from brokers.configuration import did_you_mean
from brokers.domain import Leg, OrderState, parse_period

_MOMENT = timedelta(microseconds=1)


class ExplainError(Exception):
    """The ledger cannot be asked about this: it knows no such symbol, or nothing at all."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """Period, calendar and symbols of the daemon whose ledger it is, as its last run recorded them."""

    period: timedelta
    calendar: str
    symbols: tuple[str, ...]

    @classmethod
    def of(cls, ledger: Ledger) -> Daemon:
        """Read the newest run.

        Raises:
            ExplainError: There is none.
        """
        rows = ledger.rows(select(schema.runs.c.settings).order_by(schema.runs.c.run_id.desc()))
        recorded = [row.settings for row in rows if row.settings]
        if not recorded:
            raise ExplainError(f"no daemon has run on the ledger {ledger.url}: there is nothing to explain yet")
        names = dict.fromkeys(name for settings in recorded for name in settings["symbols"])
        return cls(parse_period(recorded[0]["period"]), recorded[0]["calendar"], tuple(names))


def explain(ledger: Ledger, symbol: str, at: datetime | None, bar_store: Path | None = None) -> dict[str, Any]:
    """Return everything about one symbol's decision.

    Args:
        ledger: Of a running or dead daemon, or of a replay.
        symbol: Canonical symbol.
        at: A close, or any instant: the close at or next after it is meant. None: the last decided close.
        bar_store: Where older bars are; None for nowhere.

    Raises:
        ExplainError: Unknown symbol, or a ledger without a run.
        LedgerError: It cannot be read.
    """
    daemon = Daemon.of(ledger)
    if symbol not in daemon.symbols:
        raise ExplainError(f"no symbol {symbol!r} in the ledger{did_you_mean(symbol, daemon.symbols)}")
    close = _newest_close(ledger, symbol) if at is None else _close_at(daemon, at)
    if close is None:
        return undecided(ledger, symbol, None, daemon.period)
    found = ledger.first(_decisions(symbol).where(schema.decisions.c.close_time == close))
    if found is None:
        return undecided(ledger, symbol, close, daemon.period)
    return _explained(ledger, daemon, found, bar_store)


def _decisions(symbol: str) -> Select[Any]:
    return select(schema.decisions).where(schema.decisions.c.symbol == symbol)


def _newest_close(ledger: Ledger, symbol: str) -> datetime | None:
    row = ledger.first(_decisions(symbol).order_by(schema.decisions.c.close_time.desc()).limit(1))
    return None if row is None else row.close_time


def _close_at(daemon: Daemon, at: datetime) -> datetime:
    from brokers.calendar import calendar  # noqa: PLC0415 - NumPy, and for sessions a large library

    return calendar(daemon.calendar).next_close(at - _MOMENT, daemon.period)


def _explained(ledger: Ledger, daemon: Daemon, row: Row[Any], bar_store: Path | None) -> dict[str, Any]:
    symbol, close = row.symbol, row.close_time
    before = ledger.first(
        _decisions(symbol).where(schema.decisions.c.close_time < close).order_by(schema.decisions.c.close_time.desc())
    )
    after = ledger.first(
        _decisions(symbol).where(schema.decisions.c.close_time > close).order_by(schema.decisions.c.close_time)
    )
    intents = _intents(ledger, symbol, close)
    equity = _row_of(ledger, select(schema.equity).where(schema.equity.c.close_time == close))
    begin = close - daemon.period if before is None else before.close_time
    end = close + daemon.period if after is None else after.close_time
    return {
        "symbol": symbol,
        "close_time": close,
        "decided": True,
        "bar": _bar(ledger, daemon, row, bar_store),
        "decision": _decision(ledger, row, after),
        "votes": {name: vote for name, vote in row.votes.items() if name != "gate"},
        "gate": _gate(row, intents),
        "sizing": _sizing(row, intents, equity),
        "exits": _exits(ledger, row, intents),
        "intents": intents,
        "fills_in_bar": _fills_between(ledger, symbol, begin, close),
        "equity": equity,
        "cycle": _row_of(ledger, select(schema.cycles).where(schema.cycles.c.close_time == close)),
        "incidents": incidents_between(ledger, symbol, begin, end),
    }


def _bar(ledger: Ledger, daemon: Daemon, row: Row[Any], bar_store: Path | None) -> dict[str, Any]:
    """Return the bar as the decision saw it, and how many corrections came; `source` says from where."""
    if row.bar_start is None:
        return {"source": "none", "detail": "no bar of this symbol had ever been seen"}
    bars = schema.bars_seen
    question = select(bars).where(bars.c.symbol == row.symbol, bars.c.start == row.bar_start)
    seen = [_plain(one) for one in ledger.rows(question.order_by(bars.c.revision))]
    if seen:
        first = next((one for one in seen if one["close"] == row.reference_price), seen[0])
        return {**first, "source": "ledger", "revisions": [one for one in seen if one is not first]}
    stored = _stored_bar(daemon, row, bar_store)
    if stored is not None:
        return stored
    detail = "the bar is no longer in the ledger, and the bar store does not hold it"
    return {"source": "none", "start": row.bar_start, "close": row.reference_price, "detail": detail}


def _stored_bar(daemon: Daemon, row: Row[Any], bar_store: Path | None) -> dict[str, Any] | None:
    if bar_store is None or not bar_store.is_dir():
        return None
    from brokers.bar_store import BarStore  # noqa: PLC0415 - Polars, for bars that left the ledger only

    series = BarStore(bar_store).read(row.symbol, daemon.period, start=row.bar_start, end=row.bar_start + _MOMENT)
    if not len(series):
        return None
    bar = series.bar(0)
    names = ("symbol", "start", "close_time", "open", "high", "low", "close", "volume", "adj_factor")
    return {
        **{name: getattr(bar, name) for name in names},
        "signals": dict(bar.signals),
        "source": "bar store",
        "revisions": [],
    }


def _decision(ledger: Ledger, row: Row[Any], after: Row[Any] | None) -> dict[str, Any]:
    if after is not None:
        position, held = after.position, after.held_qty
    else:
        now = ledger.first(select(schema.positions.c.qty).where(schema.positions.c.symbol == row.symbol))
        held = Decimal(0) if now is None else now.qty
        position = (held > 0) - (held < 0)
    return {
        "action": row.action,
        "target": row.target,
        "position_before": row.position,
        "held_before": row.held_qty,
        "position_after": position,
        "held_after": held,
        "after": "now" if after is None else "by the next decision",
        "reason": row.reason,
        "reason_text": sentence(row.reason),
        "outcome": row.outcome,
        "outcome_text": sentence(row.outcome),
        "reference_price": row.reference_price,
        "volatility": row.volatility,
    }


def _gate(row: Row[Any], intents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gate's verdict: `passed`, `reduced`, `refused`, or `not_asked` where no entry was wanted."""
    said: Mapping[str, Any] = row.votes.get("gate", {})
    for verdict in ("refused", "reduced"):
        if verdict in said:
            reason = str(said[verdict])
            amounts = {key: said[key] for key in ("from", "to") if key in said}
            return {"verdict": verdict, "reason": reason, "text": sentence(reason), **amounts}
    if any(intent["leg"] == Leg.ENTRY.value for intent in intents):
        return {"verdict": "passed", "text": "the entry passed every limit"}
    if row.outcome in GATE and row.target not in {row.position, 0}:
        return {"verdict": "refused", "reason": row.outcome, "text": sentence(row.outcome)}
    return {"verdict": "not_asked", "text": "no new exposure was wanted; reductions and exits always pass"}


def _sizing(
    row: Row[Any], intents: Sequence[Mapping[str, Any]], equity: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    entry = next((intent for intent in intents if intent["leg"] == Leg.ENTRY.value), None)
    if entry is None or row.reference_price is None:
        return None
    notional = entry["qty"] * Decimal(repr(row.reference_price))
    known = equity is not None and equity["equity"] > 0
    return {
        "qty": entry["qty"],
        "notional": notional,
        "fraction_of_equity": float(notional / equity["equity"]) if equity is not None and known else None,
        "volatility": row.volatility,
        "predicted_cost_fraction": entry["predicted_cost_fraction"],
    }


def _intents(ledger: Ledger, symbol: str, close: datetime) -> list[dict[str, Any]]:
    intents = schema.intents
    question = select(intents).where(intents.c.symbol == symbol, intents.c.close_time == close)
    return [
        {**_plain(row), "orders": _orders(ledger, row.intent_id)}
        for row in ledger.rows(question.order_by(intents.c.sequence))
    ]


def _orders(ledger: Ledger, intent_id: str) -> list[dict[str, Any]]:
    """Return the wire attempts of an intent, and the legs that the venue made of them, each with its fills."""
    orders = schema.orders
    question = select(orders).where(orders.c.intent_id == intent_id).order_by(orders.c.attempt, orders.c.client_id)
    return [{**_plain(row), "fills": _fills(ledger, row.client_id)} for row in ledger.rows(question)]


def _fills(ledger: Ledger, client_id: str) -> list[dict[str, Any]]:
    return [_fill(row) for row in ledger.rows(_fills_and_costs().where(schema.fills.c.client_id == client_id))]


def _fills_between(ledger: Ledger, symbol: str, begin: datetime, end: datetime) -> list[dict[str, Any]]:
    """Return the symbol's executions after one close and up to another: what moved the position in the bar."""
    fills = schema.fills
    question = _fills_and_costs().where(fills.c.symbol == symbol, fills.c.at > begin, fills.c.at <= end)
    return [_fill(row) for row in ledger.rows(question)]


def _fills_and_costs() -> Select[Any]:
    fills, costs = schema.fills, schema.costs
    same = (costs.c.venue == fills.c.venue) & (costs.c.exec_id == fills.c.exec_id)
    numbers = (costs.c.decision_price, costs.c.quote_price, costs.c.predicted_fraction, costs.c.realised_fraction)
    return select(fills, *numbers).outerjoin(costs, same).order_by(fills.c.exec_id)


def _fill(row: Row[Any]) -> dict[str, Any]:
    """Return a fill with its cost in quote currency, as predicted by the cost model and as it came."""
    notional = float(row.qty * row.price)
    predicted, realised = row.predicted_fraction, row.realised_fraction
    return {
        **_plain(row),
        "predicted_cost": None if predicted is None else predicted * notional,
        "realised_cost": None if realised is None else realised * notional,
    }


def _exits(ledger: Ledger, row: Row[Any], intents: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the exits of the entry decided here, or of the position that was held, and what became of them."""
    entry = next((intent for intent in intents if intent["leg"] == Leg.ENTRY.value), None)
    if entry is None and not row.held_qty:
        return None
    if entry is None:
        entry = _entry_before(ledger, row)
    current = _row_of(ledger, select(schema.exits).where(schema.exits.c.symbol == row.symbol))
    if entry is None:
        if current is None:
            return {"guard": "NONE", "text": "the ledger knows no exits of the position held"}
        return {**current, "guard": current["mode"], "text": "armed for a position that was found at the venue"}
    standing = current is not None and current["intent_id"] == entry["intent_id"]
    legs = [order for order in entry["orders"] if order["leg"] in (Leg.STOP.value, Leg.TAKE_PROFIT.value)]
    return {
        "entry_close": entry["close_time"],
        "intent_id": entry["intent_id"],
        "stop": entry["stop"],
        "take_profit": entry["take_profit"],
        "max_loss_usd": entry["max_loss_usd"],
        "now": current if standing else None,
        "text": f"work now ({current['mode']})" if current is not None and standing else _fate(entry, legs),
        "legs": [
            {key: leg[key] for key in ("leg", "client_id", "state", "qty", "filled_qty", "avg_price", "reason")}
            for leg in legs
        ],
    }


def _entry_before(ledger: Ledger, row: Row[Any]) -> dict[str, Any] | None:
    intents = schema.intents
    side = "buy" if row.held_qty > 0 else "sell"
    question = (
        select(intents)
        .where(intents.c.symbol == row.symbol, intents.c.close_time < row.close_time)
        .where(intents.c.leg == Leg.ENTRY.value, intents.c.side == side, intents.c.state == "done")
        .order_by(intents.c.close_time.desc())
        .limit(1)
    )
    found = ledger.first(question)
    return None if found is None else {**_plain(found), "orders": _orders(ledger, found.intent_id)}


def _fate(entry: Mapping[str, Any], legs: Sequence[Mapping[str, Any]]) -> str:
    for leg in legs:
        if leg["fills"]:
            return f"the {leg['leg'].replace('_', '-')} closed the position"
    if any(OrderState(leg["state"]).is_working for leg in legs):
        return "working at the venue"
    if not any(order["fills"] for order in entry["orders"]):
        return "never armed: the entry did not fill"
    if legs:
        return "cancelled when the position was closed otherwise"
    return "armed by the daemon itself; the position has been closed since"


def _row_of(ledger: Ledger, question: Select[Any]) -> dict[str, Any] | None:
    row = ledger.first(question)
    return None if row is None else _plain(row)


def _plain(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
