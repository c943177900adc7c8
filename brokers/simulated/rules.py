"""Which orders the exchange takes: fields, sizes, holdings, buying power; and the stricter rules of Alpaca's set.

Every function raises `RefusedError` or returns; nothing here moves state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from brokers.account import ZERO
from brokers.domain import AssetClass, Instrument, OrderRequest, OrderType, Side, TimeInForce
from brokers.simulated.orders import BookOrder, RefusedError, RejectCode
from brokers.simulated.settings import EngineSettings

RESERVE_MARGIN = Decimal("1.02")
"""An opening order claims its notional at the known price plus 2 %, for the gap to its fill and for costs."""

CLIENT_ID_LENGTH_MAX = 128

NUMBER_MAX = Decimal("1e12")
"""Largest price and quantity: with splits and 1e-9 of precision they still fit a Decimal's 28 digits."""
DECIMALS_MAX = 100
"""Most digits behind the point: a number must not become a page of zeros wherever it is written."""
_BOUNDS = f"at most {NUMBER_MAX:f} and with at most {DECIMALS_MAX} decimals"


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether one more order of a symbol fits.

    Args:
        position: Signed quantity held.
        held_by_legs: Quantity that working bracket legs claim (an OCO pair claims once).
        held_by_orders: Quantity that other working orders which reduce the position claim.
        working: Orders of the symbol that may match, of either side.
        last_price: Last completed close, quote currency; None before the first.
        buying_power: Quote currency.
    """

    position: Decimal
    held_by_legs: Decimal
    held_by_orders: Decimal
    working: tuple[BookOrder, ...]
    last_price: Decimal | None
    buying_power: Decimal

    @property
    def available(self) -> Decimal:
        """Magnitude of the position that no working order claims."""
        return max(abs(self.position) - self.held_by_legs - self.held_by_orders, ZERO)


@dataclass(frozen=True, slots=True)
class Admission:
    """An order that fits: which part of it opens a position, and what each such unit claims."""

    opening_qty: Decimal
    reserve_price: Decimal


def closing_side(position: Decimal) -> Side | None:
    """Return the side that reduces a position; None where there is none."""
    if not position:
        return None
    return Side.SELL if position > 0 else Side.BUY


def claimed_qty(orders: Iterable[BookOrder], side: Side) -> tuple[Decimal, Decimal]:
    """Return what orders of the position's closing side claim of it: (by bracket legs, by others)."""
    by_parent: dict[str, Decimal] = {}
    by_others = ZERO
    for order in orders:
        if order.side is not side:
            continue
        if order.parent_client_id is None:
            by_others += max(order.remaining_qty - order.opening_qty, ZERO)
        else:
            claimed = by_parent.get(order.parent_client_id, ZERO)
            by_parent[order.parent_client_id] = max(claimed, order.remaining_qty)
    return sum(by_parent.values(), ZERO) if by_parent else ZERO, by_others


def admit(request: OrderRequest, instrument: Instrument, standing: Standing, settings: EngineSettings) -> Admission:
    """Check a request against everything but its client id.

    Raises:
        RefusedError: The first rule that it breaks.
    """
    _check_prices(request)
    if settings.rule_set == "alpaca":
        _check_alpaca(request, instrument, standing)
    if standing.last_price is None:
        msg = f"{request.symbol} has no price yet: no bar of it has closed; send the order after its first close"
        raise RefusedError(RejectCode.NO_PRICE, msg)
    _check_exits(request, standing.last_price)
    opening_qty = _opening_qty(request, standing, settings, instrument)
    _check_size(request, instrument, standing, opening_qty)
    price = request.limit_price or request.stop_price or standing.last_price
    reserve_price = price * RESERVE_MARGIN
    needed = opening_qty * reserve_price
    if needed > standing.buying_power:
        raise RefusedError(
            RejectCode.INSUFFICIENT_BUYING_POWER,
            f"insufficient buying power: {request.side} {request.qty} {request.symbol} claims {needed:.2f} "
            f"(quantity x {price} + 2 %), available is {standing.buying_power:.2f}",
            buying_power=f"{standing.buying_power:.2f}",
            cost_basis=f"{needed:.2f}",
        )
    return Admission(opening_qty=opening_qty, reserve_price=reserve_price)


def _check_prices(request: OrderRequest) -> None:
    """Refuse prices that the order type lacks, forbids or cannot mean."""
    if not 0 < len(request.client_id) <= CLIENT_ID_LENGTH_MAX:
        msg = f"client_order_id has {len(request.client_id)} characters: give 1 to {CLIENT_ID_LENGTH_MAX}"
        raise RefusedError(RejectCode.WRONG_FIELDS, msg)
    if not request.client_id.isprintable():
        msg = f"client_order_id {request.client_id!r} holds characters that cannot be printed: leave them out"
        raise RefusedError(RejectCode.WRONG_FIELDS, msg)
    wants_limit = request.type in (OrderType.LIMIT, OrderType.STOP_LIMIT)
    wants_stop = request.type in (OrderType.STOP, OrderType.STOP_LIMIT)
    limit_price, stop_price = request.limit_price, request.stop_price
    if (limit_price is not None) != wants_limit:
        msg = f"{request.type} orders {'require' if wants_limit else 'take no'} limit_price"
        raise RefusedError(RejectCode.WRONG_FIELDS, msg)
    if (stop_price is not None) != wants_stop:
        msg = f"{request.type} orders {'require' if wants_stop else 'take no'} stop_price"
        raise RefusedError(RejectCode.WRONG_FIELDS, msg)
    if wants_limit or wants_stop or request.is_bracket:
        for name in ("limit_price", "stop_price", "take_profit", "stop_loss"):
            price = getattr(request, name)
            if price is not None and not _is_usable(price):
                msg = f"{name} is {_shown(price)}: give a positive price, {_BOUNDS}"
                raise RefusedError(RejectCode.WRONG_PRICE, msg)
    if not _is_usable(request.qty):
        msg = f"qty is {_shown(request.qty)}: give a positive quantity, {_BOUNDS}"
        raise RefusedError(RejectCode.WRONG_QTY, msg)


def _is_usable(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -DECIMALS_MAX and 0 < number <= NUMBER_MAX


def _shown(number: Decimal) -> str:
    return f"{number:.6g}"


def _check_exits(request: OrderRequest, last_price: Decimal) -> None:
    """Refuse bracket legs on the wrong side of the price at which the entry is expected."""
    base = request.limit_price or request.stop_price or last_price
    sign = request.side.sign
    if request.stop_loss is not None and sign * (base - request.stop_loss) <= 0:
        msg = f"stop_loss {request.stop_loss} is not on the losing side of {base} for a {request.side}"
        raise RefusedError(RejectCode.WRONG_PRICE, msg)
    if request.take_profit is not None and sign * (request.take_profit - base) <= 0:
        msg = f"take_profit {request.take_profit} is not on the winning side of {base} for a {request.side}"
        raise RefusedError(RejectCode.WRONG_PRICE, msg)


def _opening_qty(
    request: OrderRequest, standing: Standing, settings: EngineSettings, instrument: Instrument
) -> Decimal:
    """Return the part of the quantity that does not reduce the position, if it may be opened."""
    reduces = closing_side(standing.position) is request.side
    reducing_qty = min(request.qty, standing.available) if reduces else ZERO
    opening_qty = request.qty - reducing_qty
    if not opening_qty:
        if request.is_bracket:
            msg = f"a bracket opens a position, but this {request.side} only reduces {standing.position} held"
            raise RefusedError(RejectCode.WRONG_FIELDS, msg)
        return ZERO
    may_short = settings.shorting and instrument.shortable
    crosses_zero = reducing_qty > 0 and (settings.rule_set == "alpaca" or request.is_bracket)
    blocked = standing.held_by_legs > 0 or crosses_zero or (request.side is Side.SELL and not may_short)
    if reduces and blocked:
        raise _insufficient_qty(request, standing)
    if request.side is Side.SELL and not may_short:
        msg = f"{request.symbol} is not held and must not be sold short here"
        raise RefusedError(RejectCode.SHORT_NOT_ALLOWED, msg)
    return opening_qty


def _insufficient_qty(request: OrderRequest, standing: Standing) -> RefusedError:
    held = standing.held_by_legs + standing.held_by_orders
    return RefusedError(
        RejectCode.INSUFFICIENT_QTY,
        f"insufficient qty available for order (requested: {plain(request.qty)}, "
        f"available: {plain(standing.available)})",
        available=plain(standing.available),
        existing_qty=plain(abs(standing.position)),
        held_for_orders=plain(held),
        related_orders=",".join(order.venue_id for order in standing.working if order.side is request.side),
        symbol=request.symbol,
    )


def _check_size(request: OrderRequest, instrument: Instrument, standing: Standing, opening_qty: Decimal) -> None:
    """Refuse sizes off the step or below the minimum; closing exactly all that is available is always allowed."""
    if not opening_qty and request.qty == standing.available:
        return
    if instrument.round_qty(request.qty) != request.qty:
        msg = f"qty {plain(request.qty)} of {request.symbol} is not a multiple of its step {plain(instrument.qty_step)}"
        raise RefusedError(RejectCode.WRONG_QTY, msg)
    price = request.limit_price or request.stop_price or standing.last_price or ZERO
    if request.qty * price < instrument.min_notional:
        msg = f"cost basis must be >= minimal amount of order {plain(instrument.min_notional)}"
        raise RefusedError(RejectCode.BELOW_MINIMUM, msg)


def _check_alpaca(request: OrderRequest, instrument: Instrument, standing: Standing) -> None:
    """Alpaca's own limits on classes, times in force and prices."""
    if instrument.asset_class is AssetClass.CRYPTO:
        if request.is_bracket:
            raise RefusedError(RejectCode.NOT_ALLOWED_HERE, "crypto orders must be simple orders")
        if request.tif is not TimeInForce.GTC:
            raise RefusedError(RejectCode.NOT_ALLOWED_HERE, "invalid crypto time_in_force")
        if request.type is OrderType.STOP:
            raise RefusedError(RejectCode.NOT_ALLOWED_HERE, "invalid order type for crypto order")
    else:
        _check_alpaca_equity(request)
    for order in standing.working:
        resting = order.type in (OrderType.MARKET, OrderType.STOP)
        if order.side is not request.side and resting and not request.is_bracket:
            raise RefusedError(
                RejectCode.WASH_TRADE,
                "potential wash trade detected. use complex orders",
                existing_order_id=order.venue_id,
            )


def _check_alpaca_equity(request: OrderRequest) -> None:
    if request.qty % 1:
        if request.tif is not TimeInForce.DAY:
            raise RefusedError(RejectCode.NOT_ALLOWED_HERE, "fractional orders must be DAY orders")
        if request.is_bracket:
            raise RefusedError(RejectCode.NOT_ALLOWED_HERE, "fractional orders must be simple orders")
    for name in ("limit_price", "stop_price", "take_profit", "stop_loss"):
        price = getattr(request, name)
        if price is not None and price % (Decimal("0.01") if price >= 1 else Decimal("0.0001")):
            msg = f"invalid {name} {plain(price)}. sub-penny increment does not fulfill minimum pricing criteria"
            raise RefusedError(RejectCode.WRONG_PRICE, msg)


def plain(value: Decimal) -> str:
    """Write a decimal without exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
