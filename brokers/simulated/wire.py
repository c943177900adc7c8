"""The exchange's objects as JSON in Alpaca's field names; times RFC 3339 in UTC, money as plain decimal strings.

Keys beyond Alpaca's: orders carry `leg`, `parent_client_order_id` and `reason`; fills `fee`, `mark_price`,
`client_order_id` and `leg`; bars `af` (adj_factor) and `x` (signals); assets `calendar` and `min_notional`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from brokers.account import AccountBook
from brokers.costs import PRICE_QUANTUM
from brokers.domain import Account, AssetClass, Fill, Instrument, OrderState, Position, Quote
from brokers.series import BarSeries, from_ns
from brokers.simulated.orders import BookOrder
from brokers.simulated.rules import plain
from brokers.simulated.state import CorporateAction

Json = dict[str, Any]

ACCOUNT_ID = str(uuid5(NAMESPACE_URL, "tandem:account"))
ACCOUNT_NUMBER = "TANDEM000001"

STATUS = {
    OrderState.ACCEPTED: "new",
    OrderState.HELD: "held",
    OrderState.PARTIAL: "partially_filled",
    OrderState.FILLED: "filled",
    OrderState.CANCELED: "canceled",
    OrderState.EXPIRED: "expired",
}


def stamp(at: datetime) -> str:
    """Write an aware UTC time."""
    return at.isoformat().replace("+00:00", "Z")


def stamp_ns(ns: int) -> str:
    """Write a time given in ns since the epoch."""
    return stamp(from_ns(ns))


def asset_id(symbol: str) -> str:
    """Return the exchange's id of a symbol."""
    return str(uuid5(NAMESPACE_URL, f"tandem:asset:{symbol}"))


def order(row: BookOrder, instrument: Instrument, book: Mapping[str, BookOrder], *, nested: bool) -> Json:
    """Write an order; with `nested`, its legs inside it."""
    parent = book[row.parent_client_id] if row.parent_client_id is not None else row
    ended = stamp_ns(row.updated_ns)
    legs = [order(book[client_id], instrument, book, nested=False) for client_id in row.leg_ids] if nested else []
    return {
        "id": row.venue_id,
        "client_order_id": row.client_id,
        "created_at": stamp_ns(row.submitted_ns),
        "updated_at": ended,
        "submitted_at": stamp_ns(row.submitted_ns),
        "filled_at": None if row.filled_ns is None else stamp_ns(row.filled_ns),
        "expired_at": ended if row.state is OrderState.EXPIRED else None,
        "canceled_at": ended if row.state is OrderState.CANCELED else None,
        "failed_at": None,
        "replaced_at": None,
        "replaced_by": None,
        "replaces": None,
        "asset_id": asset_id(row.symbol),
        "symbol": row.symbol,
        "asset_class": str(instrument.asset_class),
        "notional": None,
        "qty": plain(row.qty),
        "filled_qty": plain(row.filled_qty),
        "filled_avg_price": None if row.avg_price is None else plain(row.avg_price),
        "order_class": ("simple", "oto", "bracket")[len(parent.leg_ids)],
        "order_type": str(row.type),
        "type": str(row.type),
        "side": str(row.side),
        "time_in_force": str(row.tif),
        "limit_price": None if row.limit_price is None else plain(row.limit_price),
        "stop_price": None if row.stop_price is None else plain(row.stop_price),
        "status": STATUS[row.state],
        "extended_hours": False,
        "legs": legs or None,
        "trail_percent": None,
        "trail_price": None,
        "hwm": None,
        "leg": str(row.leg),
        "parent_client_order_id": row.parent_client_id,
        "reason": row.reason,
    }


def account(
    row: Account,
    book: AccountBook,
    marks: Mapping[str, Decimal],
    created: datetime,
    *,
    leverage: Decimal,
    shorting: bool,
) -> Json:
    """Write the account."""
    values = {symbol: held.qty * marks[symbol] for symbol, held in book.holdings.items()}
    long_value = sum((value for value in values.values() if value > 0), Decimal(0))
    short_value = sum((value for value in values.values() if value < 0), Decimal(0))
    power = plain(row.buying_power)
    return {
        "id": ACCOUNT_ID,
        "account_number": ACCOUNT_NUMBER,
        "status": "ACTIVE",
        "crypto_status": "ACTIVE",
        "currency": "USD",
        "cash": plain(row.cash),
        "equity": plain(row.equity),
        "portfolio_value": plain(row.equity),
        "last_equity": plain(row.equity),
        "buying_power": power,
        "regt_buying_power": power,
        "non_marginable_buying_power": power,
        "long_market_value": plain(long_value),
        "short_market_value": plain(short_value),
        "initial_margin": plain(long_value - short_value),
        "maintenance_margin": plain(long_value - short_value),
        "last_maintenance_margin": "0",
        "sma": "0",
        "multiplier": plain(leverage),
        "accrued_fees": "0",
        "shorting_enabled": shorting,
        "account_blocked": False,
        "trading_blocked": False,
        "transfers_blocked": False,
        "trade_suspended_by_user": False,
        "balance_asof": row.as_of.date().isoformat(),
        "created_at": stamp(created),
    }


def position(row: Position, instrument: Instrument, symbol: str, previous_close: Decimal | None) -> Json:
    """Write a position; `symbol` as this venue spells it in positions."""
    market_value = row.qty * row.mark
    cost_basis = row.qty * row.avg_cost
    gain = market_value - cost_basis
    before = row.mark if previous_close is None else previous_close
    intraday = row.qty * (row.mark - before)
    return {
        "asset_id": asset_id(row.symbol),
        "symbol": symbol,
        "exchange": _exchange(instrument),
        "asset_class": str(instrument.asset_class),
        "asset_marginable": False,
        "qty": plain(row.qty),
        "qty_available": plain(row.qty_available),
        "side": "long" if row.qty > 0 else "short",
        "avg_entry_price": plain(row.avg_cost),
        "cost_basis": plain(cost_basis),
        "market_value": plain(market_value),
        "current_price": plain(row.mark),
        "lastday_price": plain(before),
        "change_today": plain((row.mark / before - 1).quantize(PRICE_QUANTUM)),
        "unrealized_pl": plain(gain),
        "unrealized_plpc": plain((gain / abs(cost_basis)).quantize(PRICE_QUANTUM) if cost_basis else Decimal(0)),
        "unrealized_intraday_pl": plain(intraday),
        "unrealized_intraday_plpc": plain((intraday / abs(row.qty * before)).quantize(PRICE_QUANTUM)),
    }


def asset(row: Instrument, *, shorting: bool) -> Json:
    """Write an instrument."""
    return {
        "id": asset_id(row.symbol),
        "class": str(row.asset_class),
        "exchange": _exchange(row),
        "symbol": row.symbol,
        "name": row.symbol,
        "status": "active",
        "tradable": True,
        "marginable": False,
        "shortable": row.shortable and shorting,
        "easy_to_borrow": row.shortable and shorting,
        "fractionable": row.qty_step < 1,
        "min_order_size": plain(row.qty_step),
        "min_trade_increment": plain(row.qty_step),
        "price_increment": plain(row.price_tick),
        "min_notional": plain(row.min_notional),
        "calendar": row.calendar,
        "attributes": [],
    }


def fill_activity(row: Fill, of: BookOrder, cumulative: Decimal) -> Json:
    """Write one execution; `cumulative` is the order's filled quantity after it."""
    leaves = max(of.qty - cumulative, Decimal(0))
    return {
        "activity_type": "FILL",
        "id": row.exec_id,
        "order_id": of.venue_id,
        "order_status": STATUS[of.state],
        "client_order_id": row.client_id,
        "leg": str(of.leg),
        "symbol": row.symbol,
        "side": str(row.side),
        "qty": plain(row.qty),
        "price": plain(row.price),
        "fee": plain(row.fee),
        "mark_price": None if row.mark_price is None else plain(row.mark_price),
        "cum_qty": plain(cumulative),
        "leaves_qty": plain(leaves),
        "type": "partial_fill" if leaves else "fill",
        "transaction_time": stamp(row.at),
    }


def bars(series: BarSeries) -> list[Json]:
    """Write bars. The number of trades is not known (0), nor is the volume-weighted price (the close stands in)."""
    rows: list[Json] = [
        {"t": stamp_ns(start), "o": o, "h": h, "l": low, "c": c, "v": v, "n": 0, "vw": c, "af": af}
        for start, o, h, low, c, v, af in zip(
            series.start_ns.tolist(),
            series.open.tolist(),
            series.high.tolist(),
            series.low.tolist(),
            series.close.tolist(),
            series.volume.tolist(),
            series.adj_factor.tolist(),
            strict=True,
        )
    ]
    signals = {name: column.tolist() for name, column in series.signals.items()}
    if signals:
        for index, row in enumerate(rows):
            row["x"] = {name: column[index] for name, column in signals.items()}
    return rows


def quote(row: Quote, instrument: Instrument) -> Json:
    """Write a quote; sizes are not modelled (1)."""
    content: Json = {"t": stamp(row.at), "bp": float(row.bid), "bs": 1, "ap": float(row.ask), "as": 1}
    if instrument.asset_class is AssetClass.EQUITY:
        content |= {"bx": "V", "ax": "V", "c": ["R"], "z": "C"}
    return content


def action(row: CorporateAction) -> Json:
    """Write a split or dividend that moved a holding."""
    return {
        "sequence": row.sequence,
        "at": stamp_ns(row.at_ns),
        "symbol": row.symbol,
        "kind": row.kind,
        "amount": plain(row.amount),
        "cash": plain(row.cash),
    }


def _exchange(instrument: Instrument) -> str:
    return "CRYPTO" if instrument.asset_class is AssetClass.CRYPTO else "NYSE"
