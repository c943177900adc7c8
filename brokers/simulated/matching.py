"""Pure rules of matching: whether an order trades within a bar, at what price, and how much of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from decimal import Decimal

from brokers.costs import CostModel, ReferenceBar, limit_fill_price, quantise, stop_trigger_price
from brokers.domain import Leg, OrderType, Side, round_toward_zero
from brokers.simulated.orders import BookOrder

_TWO_64 = 1 << 64


@dataclass(frozen=True, slots=True)
class BarPath:
    """What one event lets an order see of a bar; at its open all three prices are the open."""

    open: float
    high: float
    low: float
    reference: ReferenceBar

    @classmethod
    def at_open(cls, price: float, reference: ReferenceBar) -> BarPath:
        """See the open alone."""
        return cls(open=price, high=price, low=price, reference=reference)


@dataclass(frozen=True, slots=True)
class Execution:
    """A price at which an order trades, and the venue's reference price before spread and impact."""

    price: Decimal
    mark_price: Decimal


@dataclass(frozen=True, slots=True)
class Triggered:
    """A stop-limit's stop was reached, but its limit does not trade yet."""


def match(order: BookOrder, qty: Decimal, path: BarPath, costs: CostModel) -> Execution | Triggered | None:
    """Return the execution of `qty` units of an order within a bar, or None.

    Market orders and triggered stops take liquidity: they pay spread and impact. Limits do not.
    """
    if order.type is OrderType.MARKET:
        return _taking(order.side, path.open, qty, path.reference, costs)
    if order.stop_price is not None and not order.is_triggered:
        return _stopped(order, qty, path, costs)
    price = limit_fill_price(order.side, _known(order.limit_price, order), path.open, path.high, path.low)
    if price is None:
        return None
    return Execution(price=quantise(price), mark_price=quantise(price))


def _stopped(order: BookOrder, qty: Decimal, path: BarPath, costs: CostModel) -> Execution | Triggered | None:
    """Trigger a stop; a stop-limit then trades no worse than its limit, or rests as one."""
    reached = stop_trigger_price(order.side, _known(order.stop_price, order), path.open, path.high, path.low)
    if reached is None:
        return None
    taken = _taking(order.side, reached, qty, path.reference, costs)
    if order.limit_price is None:
        return taken
    if order.side.sign * (quantise(reached) - order.limit_price) > 0:
        return Triggered()
    bounded = min if order.side is Side.BUY else max
    return Execution(price=bounded(taken.price, order.limit_price), mark_price=taken.mark_price)


def _known(price: Decimal | None, order: BookOrder) -> float:
    """Return a price that admission made sure of."""
    if price is None:
        msg = f"order {order.client_id} of type {order.type} rests without its price"
        raise AssertionError(msg)
    return float(price)


def _taking(side: Side, price: float, qty: Decimal, reference: ReferenceBar, costs: CostModel) -> Execution:
    return Execution(
        price=costs.taking_price(price, side, float(qty), reference),
        mark_price=quantise(price),
    )


def fillable_qty(
    remaining: Decimal,
    step: Decimal,
    probability: float,
    *,
    seed: int,
    symbol: str,
    close_ns: int,
    side: Side,
    leg: Leg,
) -> Decimal:
    """Return how much of a market order its open fills: all, or with `probability` a fraction u in (0, 1).

    The draw is keyed by what is traded and when, never by an order id, an attempt or the order of calls, so
    the same decision meets the same luck in every run. The part is rounded toward zero at `step`, at least one.
    """
    if probability <= 0.0:
        return remaining
    key = f"{seed}|{symbol}|{close_ns}|{side}|{leg}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    if int.from_bytes(digest[:8]) >= probability * _TWO_64:
        return remaining
    fraction = Decimal(2 * int.from_bytes(digest[8:]) + 1) / (2 * _TWO_64)
    part = max(round_toward_zero(remaining * fraction, step), step)
    return min(part, remaining)
