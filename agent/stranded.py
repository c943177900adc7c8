"""Orders that would close what is not held: legs left behind by a position that went another way.

The venue's own exits stay where a position was closed past the daemon, by hand say; filled, they would open a
position that nobody decided. Reconciliation cancels them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from decimal import Decimal

from sqlalchemy import select

from agent.ledger import schema
from agent.ledger.store import Ledger, total
from agent.trading_state import KnownOrder, TradingState
from brokers.domain import Leg, Position, RateLimitedError, RejectedError, UnavailableError
from brokers.protocol import Broker

CANCEL_PAUSES_S = (0.0, 0.25, 1.0)
"""Waits before each attempt of one look at cancelling an order."""
LOOKS_MAX = 20
"""Looks at which a cancellation is tried, before only the next full reconciliation tries again."""


def stranded_orders(
    state: TradingState, positions: Mapping[str, Position], corrected: Collection[str]
) -> list[KnownOrder]:
    """Return the legs of ours for which nothing is held; of a corrected symbol every order that closes too much."""
    return [order for order in state.orders.values() if _is_stranded(state, order, positions, corrected)]


def _is_stranded(
    state: TradingState, order: KnownOrder, positions: Mapping[str, Position], corrected: Collection[str]
) -> bool:
    if order.leg is Leg.ENTRY or not order.state.is_working or order.parent_client_id in state.orders:
        return False  # legs wait for an entry that may still fill
    if order.parent_client_id is None and order.symbol not in corrected:
        return False  # a close of ours that fills in parts may be overtaken by the entry of its reversal
    held = state.book.qty(order.symbol)
    if held != (positions[order.symbol].qty if order.symbol in positions else Decimal(0)):
        return False  # not agreed with the venue yet
    closable = max(-order.side.sign * held, Decimal(0))
    return not closable or (order.symbol in corrected and order.qty - order.filled_qty > closable)


def is_booked(ledger: Ledger, order: KnownOrder) -> bool:
    """Tell whether every execution of a leg's entry is in the ledger: before that, the position may only be late.

    A running venue may say that an order has filled seconds before it tells the fill and the position.
    """
    entry = ledger.first(select(schema.orders.c.filled_qty).where(schema.orders.c.client_id == order.parent_client_id))
    fills = ledger.rows(select(schema.fills.c.qty).where(schema.fills.c.client_id == order.parent_client_id))
    return entry is None or total([fill.qty for fill in fills]) >= entry.filled_qty


async def cancel(broker: Broker, client_id: str, pause: Callable[[float], Awaitable[None]]) -> str:
    """Ask for a cancellation a few times; returns why the venue did not take it, or nothing."""
    problem = ""
    for pause_s in CANCEL_PAUSES_S:
        await pause(pause_s)
        try:
            await broker.cancel(client_id)
        except (UnavailableError, RateLimitedError, RejectedError) as error:
            problem = str(error)
        else:
            return ""
    return problem
