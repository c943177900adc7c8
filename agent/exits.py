"""The local exit manager: protective exits that the daemon watches itself.

It is always on. Where the venue holds a position's exits it is the second layer and fires only if the last
price lies beyond a level while the position still stands; where the venue holds none it is the only layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from agent.trading_state import ArmedExit, TradingState
from brokers.costs import decimal_of
from brokers.domain import Bar, Leg, Quote, Side


def fired_exits(state: TradingState, bars: Mapping[str, Bar], quotes: Mapping[str, Quote]) -> list[tuple[str, Leg]]:
    """Return the positions whose exits must fire now, with the leg that fired, in order of their symbols.

    Args:
        state: Positions, exits and working orders.
        bars: Newest bar of this close by symbol (empty between closes).
        quotes: Current quotes by symbol (empty at closes).
    """
    fired: list[tuple[str, Leg]] = []
    for symbol in sorted(state.exits):
        armed = state.exits[symbol]
        if not state.book.qty(symbol) or _being_closed(state, symbol):
            continue
        bar, quote = bars.get(symbol), quotes.get(symbol)
        leg = None
        if bar is not None:
            leg = _at_bar(state, armed, bar)
        elif quote is not None:
            price = quote.bid if armed.side is Side.SELL else quote.ask
            leg = _crossed(state, armed, worst=price, best=price, last=price)
        if leg is not None:
            fired.append((symbol, leg))
    return fired


def _at_bar(state: TradingState, armed: ArmedExit, bar: Bar) -> Leg | None:
    last = decimal_of(bar.close)
    if armed.mode == "venue" or armed.armed_at > bar.start:
        return _crossed(state, armed, worst=last, best=last, last=last)
    low, high = decimal_of(bar.low), decimal_of(bar.high)
    worst, best = (low, high) if armed.side is Side.SELL else (high, low)
    return _crossed(state, armed, worst=worst, best=best, last=last)


def _crossed(state: TradingState, armed: ArmedExit, *, worst: Decimal, best: Decimal, last: Decimal) -> Leg | None:
    """Tell which exit the prices reached; the stop counts first where both were reached."""
    sign = 1 if armed.side is Side.SELL else -1  # sign of the position
    plan = armed.plan
    if plan.stop is not None and sign * (worst - plan.stop) <= 0:
        return Leg.STOP
    if plan.max_loss_usd is not None:
        holding = state.book.holdings[armed.symbol]
        if -holding.qty * (last - holding.avg_cost) >= plan.max_loss_usd:
            return Leg.STOP
    if armed.mode == "local" and plan.take_profit is not None and sign * (best - plan.take_profit) >= 0:
        return Leg.TAKE_PROFIT
    return None


def _being_closed(state: TradingState, symbol: str) -> bool:
    orders = state.orders.of(symbol)
    return bool(orders) and any(
        order.leg is not Leg.ENTRY and order.parent_client_id is None and not order.state.is_terminal
        for order in orders
    )
