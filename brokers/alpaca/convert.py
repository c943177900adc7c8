"""Alpaca's JSON to domain types and back. Pure functions.

Numbers arrive as strings and leave as strings in plain notation, never as floats. A status, type or side
that is not known makes the order UNKNOWN instead of an error: the order exists whatever we understand of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from brokers.domain import (
    Account,
    AssetClass,
    Fill,
    Instrument,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OrderType,
    Position,
    Quote,
    RejectedError,
    Side,
    TimeInForce,
    utc,
)

LEGS_MISSING = "legs_missing"
"""`Order.reason` where the venue took a bracket's entry without all of its legs: arm exits locally."""

_ZERO = Decimal(0)

_STATES = {
    "new": OrderState.ACCEPTED,
    "accepted": OrderState.ACCEPTED,
    "pending_new": OrderState.ACCEPTED,
    "accepted_for_bidding": OrderState.ACCEPTED,
    "pending_review": OrderState.ACCEPTED,
    "pending_replace": OrderState.ACCEPTED,
    "stopped": OrderState.ACCEPTED,
    "suspended": OrderState.ACCEPTED,
    "calculated": OrderState.ACCEPTED,
    "done_for_day": OrderState.ACCEPTED,
    "partially_filled": OrderState.PARTIAL,
    "held": OrderState.HELD,
    "pending_cancel": OrderState.CANCELING,
    "filled": OrderState.FILLED,
    "canceled": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
    "rejected": OrderState.REJECTED,
    "replaced": OrderState.REPLACED,
}
_SIDES = {"buy": Side.BUY, "buy_to_cover": Side.BUY, "sell": Side.SELL, "sell_short": Side.SELL}
_TYPES = {
    "market": OrderType.MARKET,
    "limit": OrderType.LIMIT,
    "stop": OrderType.STOP,
    "trailing_stop": OrderType.STOP,
    "stop_limit": OrderType.STOP_LIMIT,
}
_TIFS = {"gtc": TimeInForce.GTC}
"""Everything else (day, opg, cls, ioc, fok) does not outlive the day."""


class WireError(ValueError):
    """An answer lacks something without which it means nothing; names the key and the value."""


class Symbols:
    """Spellings of symbols: Alpaca says `BTC/USD` for orders and data, and `BTCUSD` for positions."""

    def __init__(self) -> None:
        self._canonical: dict[str, str] = {}

    def learn(self, names: Iterable[str]) -> None:
        """Remember canonical names."""
        for name in names:
            self._canonical[name] = name
            self._canonical[name.replace("/", "")] = name

    def knows(self, wire: str) -> bool:
        """Tell whether a spelling has been learnt."""
        return wire in self._canonical

    def canonical(self, wire: str) -> str:
        """Return the canonical name; a spelling that was not learnt stands for itself."""
        return self._canonical.get(wire, wire)


def plain(value: Decimal) -> str:
    """Write a Decimal in plain notation without trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def decimal(content: Mapping[str, Any], key: str) -> Decimal:
    """Read a required finite number.

    Raises:
        WireError: Missing or not a number.
    """
    value = optional_decimal(content, key)
    if value is None:
        raise WireError(f"{key} is missing")
    return value


def optional_decimal(content: Mapping[str, Any], key: str) -> Decimal | None:
    """Read a number that may be null, empty or absent.

    Raises:
        WireError: Present and not a finite number.
    """
    value = content.get(key)
    if value is None or value == "":
        return None
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value))
    except InvalidOperation:
        raise WireError(f"{key} = {value!r} is not a number") from None
    if not number.is_finite() or isinstance(value, bool):
        raise WireError(f"{key} = {value!r} is not a finite number")
    return number


def text(content: Mapping[str, Any], key: str) -> str:
    """Read a required non-empty string.

    Raises:
        WireError: Missing or something else.
    """
    value = content.get(key)
    if not isinstance(value, str) or not value:
        raise WireError(f"{key} = {value!r} is not a text")
    return value


def time(value: Any, key: str = "time") -> datetime:
    """Read RFC 3339; digits beyond microseconds are cut off.

    Raises:
        WireError: Not a time, or one without a zone.
    """
    try:
        return utc(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        raise WireError(f"{key} = {value!r} is not a time with a zone") from None


def stamp(at: datetime) -> str:
    """Write RFC 3339 in UTC with microseconds where there are any."""
    return utc(at).isoformat().replace("+00:00", "Z")


def mapping(value: Any) -> Mapping[str, Any]:
    """Take a JSON object.

    Raises:
        WireError: Something else.
    """
    if not isinstance(value, dict):
        raise WireError(f"a JSON object was expected, not {type(value).__name__}")
    return value


def listing(value: Any) -> Sequence[Any]:
    """Take a JSON array.

    Raises:
        WireError: Something else.
    """
    if not isinstance(value, list):
        raise WireError(f"a JSON array was expected, not {type(value).__name__}")
    return value


def order_body(request: OrderRequest, *, native: bool) -> dict[str, Any]:
    """Return the JSON of POST /v2/orders.

    Args:
        request: The order.
        native: True for the built-in exchange, which is also told what the order is for.

    Raises:
        RejectedError: A quantity or price that no venue takes; nothing is sent.
    """
    body: dict[str, Any] = {
        "symbol": request.symbol,
        "qty": _positive(request.qty, "qty"),
        "side": request.side.value,
        "type": request.type.value,
        "time_in_force": request.tif.value,
        "client_order_id": request.client_id,
    }
    if request.limit_price is not None:
        body["limit_price"] = _positive(request.limit_price, "limit_price")
    if request.stop_price is not None:
        body["stop_price"] = _positive(request.stop_price, "stop_price")
    if request.is_bracket:
        both = request.take_profit is not None and request.stop_loss is not None
        body["order_class"] = "bracket" if both else "oto"
    if request.take_profit is not None:
        body["take_profit"] = {"limit_price": _positive(request.take_profit, "take_profit")}
    if request.stop_loss is not None:
        body["stop_loss"] = {"stop_price": _positive(request.stop_loss, "stop_loss")}
    if native:
        body["leg"] = request.leg.value
    return body


def order(content: Mapping[str, Any], symbols: Symbols, parent: str | None = None) -> Order:
    """Return an order with its legs.

    Args:
        content: JSON of one order, perhaps nested.
        symbols: Spellings.
        parent: Client id of the entry, for a leg of a nested answer.

    Raises:
        WireError: No identity, or numbers and times that are none.
    """
    client_id = text(content, "client_order_id")
    parent = parent or content.get("parent_client_order_id") or None
    type_name = content.get("type") or content.get("order_type")
    side, kind = _SIDES.get(str(content.get("side"))), _TYPES.get(str(type_name))
    filled = optional_decimal(content, "filled_qty") or _ZERO
    qty = optional_decimal(content, "qty")
    state, reason = _state(content, filled)
    if side is None or kind is None:
        state, reason = OrderState.UNKNOWN, f"unknown side {content.get('side')!r} or type {type_name!r}"
    submitted = content.get("submitted_at") or content.get("created_at")
    legs = tuple(order(mapping(leg), symbols, parent=client_id) for leg in listing(content.get("legs") or []))
    return Order(
        client_id=client_id,
        venue_id=text(content, "id"),
        symbol=symbols.canonical(str(content.get("symbol") or "")),
        side=side or Side.BUY,
        qty=filled if qty is None else qty,
        type=kind or OrderType.MARKET,
        tif=_TIFS.get(str(content.get("time_in_force")), TimeInForce.DAY),
        state=state,
        filled_qty=filled,
        avg_price=optional_decimal(content, "filled_avg_price"),
        submitted_at=time(submitted, "submitted_at"),
        updated_at=time(content.get("updated_at") or submitted, "updated_at"),
        limit_price=optional_decimal(content, "limit_price"),
        stop_price=optional_decimal(content, "stop_price"),
        parent_client_id=parent,
        leg=_leg(content, kind, is_leg=parent is not None),
        reason=reason,
        legs=legs,
    )


def flatten(orders: Iterable[Order]) -> Iterator[Order]:
    """Yield each order followed by its legs."""
    for each in orders:
        yield each
        yield from flatten(each.legs)


def mark_missing_legs(placed: Order, request: OrderRequest) -> Order:
    """Return the order, with `reason` LEGS_MISSING where a leg that was asked for is not in the answer."""
    wanted = {Leg.TAKE_PROFIT} if request.take_profit is not None else set()
    wanted |= {Leg.STOP} if request.stop_loss is not None else set()
    alive = {leg.leg for leg in placed.legs if leg.state is not OrderState.REJECTED}
    if wanted <= alive or placed.state is OrderState.REJECTED:
        return placed
    return replace(placed, reason=LEGS_MISSING)


def fill(content: Mapping[str, Any], client_id: str, symbols: Symbols, fee_rate: Decimal) -> Fill:
    """Return one execution; `fee_rate` (fraction of notional) stands in where the venue reports no fee.

    Raises:
        WireError: Something of it is missing.
    """
    side = _SIDES.get(str(content.get("side")))
    if side is None:
        raise WireError(f"side = {content.get('side')!r} of execution {content.get('id')!r} is not known")
    qty, price = abs(decimal(content, "qty")), decimal(content, "price")
    fee = optional_decimal(content, "fee")
    return Fill(
        exec_id=text(content, "id"),
        client_id=client_id,
        symbol=symbols.canonical(text(content, "symbol")),
        side=side,
        qty=qty,
        price=price,
        fee=qty * price * fee_rate if fee is None else fee,
        at=time(content.get("transaction_time"), "transaction_time"),
        mark_price=optional_decimal(content, "mark_price"),
    )


def position(content: Mapping[str, Any], symbols: Symbols) -> Position:
    """Return one position, signed.

    Raises:
        WireError: Something of it is missing; a mark that the venue lacks is taken from its market value.
    """
    qty = decimal(content, "qty")
    sign = -1 if content.get("side") == "short" or qty < 0 else 1
    mark = optional_decimal(content, "current_price")
    if mark is None and qty:
        mark = abs(decimal(content, "market_value") / qty)
    return Position(
        symbol=symbols.canonical(text(content, "symbol")),
        qty=sign * abs(qty),
        qty_available=sign * abs(decimal(content, "qty_available")),
        avg_cost=decimal(content, "avg_entry_price"),
        mark=decimal(content, "current_price") if mark is None else mark,
    )


def account(content: Mapping[str, Any], at: datetime, *, crypto: bool) -> Account:
    """Return the account; with `crypto` the buying power is what may be spent without margin.

    Raises:
        WireError: A number is missing.
    """
    buying_power = decimal(content, "buying_power")
    unlevered = optional_decimal(content, "non_marginable_buying_power")
    if crypto and unlevered is not None:
        buying_power = min(buying_power, unlevered)
    return Account(
        equity=decimal(content, "equity"), cash=decimal(content, "cash"), buying_power=buying_power, as_of=at
    )


def instrument(content: Mapping[str, Any]) -> Instrument:
    """Return the rules of one asset.

    Equity prices have 2 decimals at or above one dollar (4 below, which this coarser step also satisfies),
    fractional quantities 9. The built-in exchange names its steps and its calendar.

    Raises:
        WireError: No symbol, or an asset class that does not trade here.
    """
    name = text(content, "symbol")
    try:
        asset_class = AssetClass(str(content.get("class") or content.get("asset_class")))
    except ValueError:
        raise WireError(f"{name} is of class {content.get('class')!r}: only us_equity and crypto trade here") from None
    crypto = asset_class is AssetClass.CRYPTO
    nine_places, cent = Decimal("0.000000001"), Decimal("0.01")
    step = optional_decimal(content, "min_trade_increment")
    if step is None:
        step = nine_places if crypto or content.get("fractionable") else Decimal(1)
    notional = optional_decimal(content, "min_notional")
    calendar = content.get("calendar")
    return Instrument(
        symbol=name,
        asset_class=asset_class,
        price_tick=optional_decimal(content, "price_increment") or (nine_places if crypto else cent),
        qty_step=step,
        min_notional=notional if notional is not None else Decimal(10 if crypto else 1),
        shortable=bool(content.get("shortable")),
        calendar=calendar if isinstance(calendar, str) else ("24/7" if crypto else "XNYS"),
    )


def quote(symbol: str, content: Mapping[str, Any]) -> Quote | None:
    """Return a two-sided quote; None where a side has no price (Alpaca writes 0).

    Raises:
        WireError: Numbers or the time are missing.
    """
    bid, ask = decimal(content, "bp"), decimal(content, "ap")
    if bid <= 0 or ask <= 0:
        return None
    return Quote(symbol=symbol, bid=bid, ask=ask, at=time(content.get("t"), "t"))


def timeframe(period: timedelta) -> str:
    """Return Alpaca's name of a bar period.

    Raises:
        ValueError: Alpaca has no such bars.
    """
    seconds = int(period.total_seconds())
    for unit_s, name, most in ((86_400, "Day", 1), (3_600, "Hour", 23), (60, "Min", 59)):
        count, rest = divmod(seconds, unit_s)
        if count and not rest and count <= most:
            return f"{count}{name}"
    raise ValueError(f"no bars of {period}: Alpaca has 1 to 59 minutes, 1 to 23 hours and 1 day")


def _positive(value: Decimal, name: str) -> str:
    if not value.is_finite() or value <= 0:
        raise RejectedError("invalid_order", f"{name} = {value} must be a finite number above zero; nothing was sent")
    return plain(value)


def _state(content: Mapping[str, Any], filled: Decimal) -> tuple[OrderState, str]:
    status = content.get("status")
    state = _STATES.get(str(status))
    reason = content.get("reason")
    if state is None:
        return OrderState.UNKNOWN, f"unknown status {status!r}"
    if state is OrderState.ACCEPTED and filled > 0:
        state = OrderState.PARTIAL
    return state, reason if isinstance(reason, str) else ""


def _leg(content: Mapping[str, Any], kind: OrderType | None, *, is_leg: bool) -> Leg:
    """Name what an order is for: as the venue says, else by its type where it is a leg."""
    try:
        return Leg(str(content.get("leg")))
    except ValueError:
        if not is_leg:
            return Leg.ENTRY
        return Leg.TAKE_PROFIT if kind is OrderType.LIMIT else Leg.STOP
