"""What an account can do at a venue time: marks, buying power, and what stands against one more order."""

from __future__ import annotations

from decimal import Decimal

from brokers.account import ZERO
from brokers.costs import quantise
from brokers.domain import OrderState, OrderType
from brokers.simulated import rules
from brokers.simulated.market import Market
from brokers.simulated.state import State


def marks(state: State, market: Market) -> dict[str, Decimal]:
    """Return the last completed close of every held symbol."""
    found: dict[str, Decimal] = {}
    for symbol in state.account.holdings:
        price = market.last_close(symbol, state.now_ns)
        if price is not None:
            found[symbol] = quantise(price)
    return found


def buying_power(state: State, market: Market, leverage: Decimal) -> Decimal:
    """Return leverage x equity - exposure - claims of working orders, at least zero.

    Exposure that market orders already sent will close counts as closed, so that a position can be
    turned, or one symbol swapped for another, at one open.
    """
    prices = marks(state, market)
    power = leverage * state.account.equity(prices)
    for symbol, holding in state.account.holdings.items():
        side = rules.closing_side(holding.qty)
        closing = sum(
            (
                max(order.remaining_qty - order.opening_qty, ZERO)
                for order in state.live.get(symbol, {}).values()
                if order.side is side and order.type is OrderType.MARKET
            ),
            ZERO,
        )
        power -= max(abs(holding.qty) - closing, ZERO) * prices[symbol]
    for orders in state.live.values():
        for order in orders.values():
            if order.opening_qty:
                power -= min(order.remaining_qty, order.opening_qty) * order.reserve_price
    return max(power, ZERO)


def standing(state: State, market: Market, symbol: str, leverage: Decimal) -> rules.Standing:
    """Return what decides whether one more order of a symbol fits."""
    position = state.account.qty(symbol)
    working = tuple(order for order in state.live.get(symbol, {}).values() if order.state is not OrderState.HELD)
    side = rules.closing_side(position)
    by_legs, by_orders = rules.claimed_qty(working, side) if side is not None else (ZERO, ZERO)
    price = market.last_close(symbol, state.now_ns)
    return rules.Standing(
        position=position,
        held_by_legs=by_legs,
        held_by_orders=by_orders,
        working=working,
        last_price=None if price is None else quantise(price),
        buying_power=buying_power(state, market, leverage),
    )
