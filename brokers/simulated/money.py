"""What an account can do at a venue time: marks, buying power, and what stands against one more order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from brokers.account import ZERO
from brokers.domain import OrderState, OrderType
from brokers.simulated import rules
from brokers.simulated.market import Market
from brokers.simulated.orders import BookOrder
from brokers.simulated.state import State


def marks(state: State, market: Market) -> dict[str, Decimal]:
    """Return the last completed close of every held symbol."""
    found: dict[str, Decimal] = {}
    for symbol in state.account.holdings:
        price = market.last_price(symbol, state.now_ns)
        if price is not None:
            found[symbol] = price
    return found


def buying_power(state: State, prices: Mapping[str, Decimal], equity: Decimal, leverage: Decimal) -> Decimal:
    """Return leverage x equity - exposure - claims of working orders, at least zero.

    Exposure that market orders already sent will close counts as closed, so that a position can be
    turned, or one symbol swapped for another, at one open.
    """
    power = leverage * equity
    for symbol, holding in state.account.holdings.items():
        exposed = abs(holding.qty)
        if symbol in state.live:
            side = rules.closing_side(holding.qty)
            for order in state.live[symbol].values():
                if order.side is side and order.type is OrderType.MARKET:
                    exposed -= max(order.remaining_qty - order.opening_qty, ZERO)
            exposed = max(exposed, ZERO)
        power -= exposed * prices[symbol]
    for orders in state.live.values():
        for order in orders.values():
            if order.opening_qty:
                power -= min(order.remaining_qty, order.opening_qty) * order.reserve_price
    return max(power, ZERO)


def available_qty(state: State, symbol: str) -> Decimal:
    """Return the magnitude of a position that no working order claims."""
    position = state.account.qty(symbol)
    side = rules.closing_side(position)
    if side is None:
        return ZERO
    if symbol not in state.live:
        return abs(position)
    return max(abs(position) - sum(rules.claimed_qty(_working(state, symbol), side), ZERO), ZERO)


@dataclass(frozen=True, slots=True)
class Worth:
    """What an account is worth at one instant.

    Args:
        now_ns: The instant.
        revision: Of the state that was looked at.
        marks: Last completed close of every held symbol.
        equity: Cash and holdings at the marks.
        buying_power: See `buying_power`.
    """

    now_ns: int
    revision: int
    marks: Mapping[str, Decimal]
    equity: Decimal
    buying_power: Decimal


def worth(state: State, market: Market, leverage: Decimal, before: Worth | None) -> Worth:
    """Return what an account is worth: what was found `before`, where nothing has changed since."""
    if before is not None and before.now_ns == state.now_ns and before.revision == state.revision:
        return before
    prices = marks(state, market)
    equity = state.account.equity(prices)
    return Worth(state.now_ns, state.revision, prices, equity, buying_power(state, prices, equity, leverage))


def standing(state: State, last_price: Decimal | None, symbol: str, power: Decimal) -> rules.Standing:
    """Return what decides whether one more order of a symbol fits."""
    position = state.account.qty(symbol)
    working = _working(state, symbol)
    side = rules.closing_side(position)
    by_legs, by_orders = rules.claimed_qty(working, side) if working and side is not None else (ZERO, ZERO)
    return rules.Standing(
        position=position,
        held_by_legs=by_legs,
        held_by_orders=by_orders,
        working=working,
        last_price=last_price,
        buying_power=power,
    )


def _working(state: State, symbol: str) -> tuple[BookOrder, ...]:
    orders = state.live.get(symbol)
    return () if orders is None else tuple(order for order in orders.values() if order.state is not OrderState.HELD)
