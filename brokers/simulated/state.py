"""Everything the exchange knows beyond its feed: the state that books keep and that only the engine moves.

One `State` is one account's life: clock, feed cursor, money, orders, the journal of fills and corporate
actions. Indexes (live orders by symbol, orders by time of update) are derived and rebuilt on restore.
Prices and marks are not kept: feed and cursor determine them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum, unique
from typing import Literal

from brokers.account import ZERO, AccountBook
from brokers.domain import Fill, OrderState
from brokers.simulated.orders import BookOrder

_NEWEST_FILLS = 8


@unique
class Event(StrEnum):
    """What an advance met."""

    OPEN = "open"
    CLOSE = "close"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """A split or dividend that moved a holding.

    Args:
        sequence: Place in the exchange's one sequence.
        amount: Split ratio, or dividend per unit in quote currency.
        cash: Quote currency paid into the account (negative for a short); zero for a split.
    """

    sequence: int
    at_ns: int
    symbol: str
    kind: Literal["split", "dividend"]
    amount: Decimal
    cash: Decimal


@dataclass(frozen=True, slots=True)
class ClockMark:
    """Where venue time stands, and what the last advance met (repeated to a client that asks again)."""

    now_ns: int
    cursor: int
    event: Event
    changed: tuple[str, ...]
    sequence: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole state as it was last committed. `account` is None where no money has moved yet."""

    clock: ClockMark
    account: AccountBook | None
    orders: Sequence[BookOrder]
    fills: Sequence[Fill]
    actions: Sequence[CorporateAction]


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction must write. `account` is None where no money moved."""

    clock: ClockMark
    account: AccountBook | None
    orders: Sequence[BookOrder]
    fills: Sequence[Fill]
    actions: Sequence[CorporateAction]


@dataclass(slots=True)
class State:
    """See the module.

    `changed` collects the client ids whose orders changed since the advance began; `revision` grows with everything
    that changes what the account has or may do.
    """

    account: AccountBook
    now_ns: int
    cursor: int
    event: Event = Event.IDLE
    last_changed: tuple[str, ...] = ()
    sequence: int = 0
    orders: dict[str, BookOrder] = field(default_factory=dict)
    fills: list[Fill] = field(default_factory=list)
    actions: list[CorporateAction] = field(default_factory=list)
    live: dict[str, dict[str, BookOrder]] = field(default_factory=dict)
    venue_ids: dict[str, str] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    next_expiry_ns: int | None = None
    revision: int = 0
    _cumulative: dict[str, Decimal] = field(default_factory=dict)
    _counted: dict[str, Decimal] = field(default_factory=dict)
    _updates: list[tuple[int, str]] = field(default_factory=list)
    _dirty_orders: dict[str, BookOrder] = field(default_factory=dict)
    _new_fills: list[Fill] = field(default_factory=list)
    _new_actions: list[CorporateAction] = field(default_factory=list)

    @classmethod
    def restore(cls, saved: Snapshot, new_account: AccountBook) -> State:
        """Rebuild a state and its indexes from the books; `new_account` stands where no money has moved yet."""
        state = cls(
            account=new_account if saved.account is None else saved.account,
            now_ns=saved.clock.now_ns,
            cursor=saved.clock.cursor,
            event=saved.clock.event,
            last_changed=saved.clock.changed,
            sequence=saved.clock.sequence,
            fills=list(saved.fills),
            actions=list(saved.actions),
        )
        for order in sorted(saved.orders, key=lambda order: order.sequence):
            state._index(order)
        state._updates = sorted((order.updated_ns, order.client_id) for order in saved.orders)
        return state

    def next_sequence(self) -> int:
        """Take the next number of the one sequence of orders, fills and corporate actions."""
        self.sequence += 1
        return self.sequence

    def add(self, order: BookOrder) -> None:
        """Take a new order into the books."""
        self._index(order)
        self.touch(order)

    def touch(self, order: BookOrder) -> None:
        """Note a change of an order that its owner can see."""
        order.updated_ns = self.now_ns
        self.revision += 1
        self._dirty_orders[order.client_id] = order
        self.changed[order.client_id] = None
        self._updates.append((self.now_ns, order.client_id))

    def touch_silently(self, order: BookOrder) -> None:
        """Note a change that must be kept but that its owner cannot see."""
        self._dirty_orders[order.client_id] = order

    def retire(self, order: BookOrder, state: OrderState, reason: str) -> None:
        """Move an order into a terminal state."""
        order.state = state
        order.reason = reason
        working = self.live[order.symbol]
        del working[order.client_id]
        if not working:
            del self.live[order.symbol]
        self.touch(order)

    def record_fill(self, fill: Fill) -> None:
        """Append an execution to the journal."""
        self.revision += 1
        self.fills.append(fill)
        self._new_fills.append(fill)

    def record_action(self, action: CorporateAction) -> None:
        """Append a split or dividend to the journal."""
        self.revision += 1
        self.actions.append(action)
        self._new_actions.append(action)

    def expiring(self, at_ns: int) -> list[BookOrder]:
        """Return working orders that expire at or before a time, oldest first, and find the next expiry."""
        working = [order for orders in self.live.values() for order in orders.values() if order.expires_ns is not None]
        due = [order for order in working if order.expires_ns is not None and order.expires_ns <= at_ns]
        later = [order.expires_ns for order in working if order.expires_ns is not None and order.expires_ns > at_ns]
        self.next_expiry_ns = min(later, default=None)
        return sorted(due, key=lambda order: order.sequence)

    def fills_after(self, exec_id: str | None) -> list[Fill]:
        """Return executions after an execution id, oldest first."""
        if exec_id is None:
            return list(self.fills)
        fills = self.fills
        known = len(fills)
        # who follows the journal has seen all but the last ones
        for _ in range(min(known, _NEWEST_FILLS)):
            if fills[known - 1].exec_id <= exec_id:
                return fills[known:]
            known -= 1
        return fills[bisect_right(fills, exec_id, hi=known, key=lambda fill: fill.exec_id) :]

    def cumulative_qty(self, exec_id: str) -> Decimal:
        """Return an order's filled quantity after one of its executions."""
        for fill in self.fills[len(self._cumulative) :]:
            total = self._counted.get(fill.client_id, ZERO) + fill.qty
            self._counted[fill.client_id] = self._cumulative[fill.exec_id] = total
        return self._cumulative[exec_id]

    def updated_since(self, since_ns: int) -> list[BookOrder]:
        """Return orders updated at or after a time, by sequence."""
        first = bisect_left(self._updates, (since_ns, ""))
        found = {client_id: self.orders[client_id] for _, client_id in self._updates[first:]}
        return sorted(found.values(), key=lambda order: order.sequence)

    def changes(self) -> Changes:
        """Return what the next transaction must write."""
        return Changes(
            clock=ClockMark(self.now_ns, self.cursor, self.event, self.last_changed, self.sequence),
            account=self.account if self._new_fills or self._new_actions else None,
            orders=tuple(self._dirty_orders.values()),
            fills=tuple(self._new_fills),
            actions=tuple(self._new_actions),
        )

    def committed(self) -> None:
        """Forget what has been written."""
        if self._dirty_orders:
            self._dirty_orders.clear()
        if self._new_fills:
            self._new_fills.clear()
        if self._new_actions:
            self._new_actions.clear()

    def _index(self, order: BookOrder) -> None:
        self.orders[order.client_id] = order
        self.venue_ids[order.venue_id] = order.client_id
        if order.state.is_terminal:
            return
        self.live.setdefault(order.symbol, {})[order.client_id] = order
        if order.expires_ns is not None and (self.next_expiry_ns is None or order.expires_ns < self.next_expiry_ns):
            self.next_expiry_ns = order.expires_ns
