"""The ledger as tables for people and programs: decisions, trades, equity (Polars frames)."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import polars as pl
from sqlalchemy import select

from agent.ledger import schema
from agent.ledger.store import Ledger
from brokers.series import BarSeries, from_ns, to_ns

_TIME = pl.Datetime("us", "UTC")


def decisions_frame(ledger: Ledger, period: timedelta) -> pl.DataFrame:
    """Return one row per bar and symbol.

    `timestamp` is the start of the bar decided on, `target` what the decision wants, `position` what is held after
    gate and fill: what the symbol's next decision found (for its last row, what it found itself).
    """
    rows = ledger.rows(select(schema.decisions).order_by(schema.decisions.c.close_time, schema.decisions.c.symbol))
    targets = {-1: "q_short", 0: "q_flat", 1: "q_long"}
    records: list[dict[str, Any]] = []
    for row in rows:
        votes: Mapping[str, Any] = row.votes
        q: Mapping[str, float] = next((vote["q"] for vote in votes.values() if vote.get("q")), {})
        record = {
            "timestamp": row.bar_start or row.close_time - period,
            "close_time": row.close_time,
            "symbol": row.symbol,
            "action": row.action,
            "target": row.target,
            "position_before": row.position,
            "held_qty": float(row.held_qty),
            "reason": row.reason,
            "outcome": row.outcome,
            "stop": None if row.stop is None else float(row.stop),
            "take_profit": None if row.take_profit is None else float(row.take_profit),
            "votes": json.dumps(votes),
        }
        record |= {name: q.get(str(target)) for target, name in targets.items()}
        records.append(record)
    frame = pl.DataFrame(records, schema=DECISIONS, infer_schema_length=None)
    after = pl.col("position_before").shift(-1).over("symbol").fill_null(pl.col("position_before"))
    return frame.with_columns(after.alias("position"))


def trades_frame(ledger: Ledger, series: Mapping[str, BarSeries]) -> pl.DataFrame:
    """Return one row per execution, with the bar it filled in.

    `kind` is `open` (market order at the bar's open), `stop` or `limit` (at `level`, within the bar). The last columns
    are costs as `agent.records.fill_cost` tells them.
    """
    fills, orders, costs = schema.fills, schema.orders, schema.costs
    question = (
        select(fills, orders.c.type, orders.c.stop_price, orders.c.limit_price, *(costs.c[name] for name in COSTS))
        .join(orders, orders.c.client_id == fills.c.client_id)
        .outerjoin(costs, (costs.c.venue == fills.c.venue) & (costs.c.exec_id == fills.c.exec_id))
        .order_by(fills.c.exec_id)
    )
    closes = {symbol: bars.close_ns for symbol, bars in series.items()}
    opens = {symbol: bars.open_ns for symbol, bars in series.items()}
    records: list[dict[str, Any]] = []
    for row in ledger.rows(question):
        kind = {"market": "open", "stop": "stop", "stop_limit": "stop", "limit": "limit"}[row.type]
        level = row.stop_price if kind == "stop" else row.limit_price if kind == "limit" else None
        index = _bar_index(opens[row.symbol], closes[row.symbol], to_ns(row.at))
        records.append(
            {
                "symbol": row.symbol,
                "side": row.side,
                "qty": row.qty,
                "price": row.price,
                "fee": row.fee,
                "bar_start": from_ns(series[row.symbol].start_ns[index]),
                "filled_at": row.at,
                "kind": kind,
                "level": level,
                "client_id": row.client_id,
                "leg": row.leg,
                "exec_id": row.exec_id,
                **{name: getattr(row, name) for name in COSTS},
            }
        )
    return pl.DataFrame(records, schema=TRADES, infer_schema_length=None)


def incidents_frame(ledger: Ledger) -> pl.DataFrame:
    """Return one row per incident, in the order in which they were written down."""
    table = schema.incidents
    rows = ledger.rows(select(*(table.c[name] for name in INCIDENTS)).order_by(table.c.incident_id))
    return pl.DataFrame([tuple(row) for row in rows], schema=INCIDENTS, orient="row", infer_schema_length=None)


def equity_frame(ledger: Ledger) -> pl.DataFrame:
    """Return one row per close: equity, cash, exposure, peak."""
    rows = ledger.rows(select(schema.equity).order_by(schema.equity.c.close_time))
    records = [
        {
            "close_time": row.close_time,
            "equity": float(row.equity),
            "cash": float(row.cash),
            "gross_exposure": row.gross_exposure,
            "drawdown": 1.0 - float(row.equity / row.peak) if row.peak else 0.0,
        }
        for row in rows
    ]
    return pl.DataFrame(records, schema=EQUITY, infer_schema_length=None)


def _bar_index(open_ns: Any, close_ns: Any, at_ns: int) -> int:
    """Return the bar in which an execution happened: at its open (the stamp may be the order's arrival) or within."""
    index = bisect_right(close_ns, at_ns - 1)  # first bar that closes at or after the stamp
    return min(index, len(open_ns) - 1)


_MONEY = pl.Decimal(38, 12)
DECISIONS: dict[str, Any] = {
    "timestamp": _TIME,
    "close_time": _TIME,
    "symbol": pl.String,
    "action": pl.String,
    "target": pl.Int8,
    "position_before": pl.Int8,
    "held_qty": pl.Float64,
    "q_short": pl.Float64,
    "q_flat": pl.Float64,
    "q_long": pl.Float64,
    "reason": pl.String,
    "outcome": pl.String,
    "stop": pl.Float64,
    "take_profit": pl.Float64,
    "votes": pl.String,
}
COSTS = ("decision_price", "quote_price", "predicted_fraction", "realised_fraction")
TRADES: dict[str, Any] = {
    "symbol": pl.String,
    "side": pl.String,
    "qty": _MONEY,
    "price": _MONEY,
    "fee": _MONEY,
    "bar_start": _TIME,
    "filled_at": _TIME,
    "kind": pl.String,
    "level": _MONEY,
    "client_id": pl.String,
    "leg": pl.String,
    "exec_id": pl.String,
    **dict.fromkeys(COSTS, pl.Float64),
}
INCIDENTS: dict[str, Any] = {"at": _TIME, "kind": pl.String, "symbol": pl.String, "detail": pl.String}
EQUITY: dict[str, Any] = {
    "close_time": _TIME,
    "equity": pl.Float64,
    "cash": pl.Float64,
    "gross_exposure": pl.Float64,
    "drawdown": pl.Float64,
}
