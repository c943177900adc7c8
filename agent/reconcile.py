"""Broker truth: reading orders and fills back, and the full comparison that start-up and recovery share.

A question that fails raises; nothing is ever concluded from silence. Positions of the venue win over our own
count, and every correction leaves an incident.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import structlog

from agent.ledger.store import Ledger, update_order
from agent.metrics import Metrics
from agent.records import (
    arm_exits,
    differs,
    flattened,
    is_known,
    record_fills,
    record_orders,
    record_position,
    write_exit,
)
from agent.splits import meet_split
from agent.stranded import LOOKS_MAX as CLEARING_LOOKS_MAX
from agent.stranded import cancel, is_booked, stranded_orders
from agent.trading_state import ArmedExit, KnownOrder, TradingState
from brokers.account import Holding
from brokers.domain import ExitPlan, Fill, Order, OrderState, Position, Side, UnavailableError
from brokers.protocol import Broker, Clock

log = structlog.get_logger("tandem.reconcile")

LOOKS_MAX = 5
"""Most looks at a running venue for one in which no execution came between the questions."""
SECOND_LOOK_S = 2.0
"""On a running venue, wall wait before a difference of positions is looked at again."""
CORRECTED_LOOK_S = 10.0
"""The same after a correction, before orders that would close more than is held are cancelled."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a full comparison found.

    Args:
        fills: Executions that were not in the ledger.
        corrected: Symbols whose position the venue corrected.
        foreign: Open orders of the venue that are not ours; they are never touched.
        naked: Symbols that were given exits because they had none.
    """

    fills: int
    corrected: tuple[str, ...]
    foreign: tuple[str, ...]
    naked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """The venue at one instant; `orders` are its open ones and those of ours that have ended."""

    orders: list[Order]
    open_orders: list[Order]
    fills: list[Fill]
    positions: Mapping[str, Position]


class Reconciler:
    """Brings ledger and state in step with the venue.

    Args:
        broker: The venue.
        clock: Venue time.
        ledger: Where it is written down.
        state: The daemon's knowledge, kept in step.
        default_exits: Makes an ExitPlan for a position that has none: (symbol, side of the position, price).
        metrics: Counters.
        pause: Waits wall seconds (injected: a simulation does not wait).
    """

    def __init__(
        self,
        *,
        broker: Broker,
        clock: Clock,
        ledger: Ledger,
        state: TradingState,
        default_exits: Callable[[str, Side, Decimal], ExitPlan],
        metrics: Metrics,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.broker = broker
        self.clock = clock
        self.ledger = ledger
        self.state = state
        self.default_exits = default_exits
        self.metrics = metrics
        self.pause = pause
        self._stranded: dict[str, int] = {}  # looks left by client id

    async def sync(self) -> list[Fill]:
        """Read the state of our orders that may still fill, and new fills; returns the new fills.

        Costs nothing while nothing of ours works at the venue.

        Raises:
            BrokerError: The venue did not answer; nothing was concluded.
        """
        if not self.state.orders:
            return []
        booked = await self._read_back()
        if self._stranded:
            booked = [*booked, *await self._clear_stranded()]
        return booked

    async def _read_back(self) -> list[Fill]:
        found, _ = await self._our_orders()
        fills = await self.broker.fills(self.state.last_exec_id)
        found += await self._orders_of(fills, found)
        if not fills and not self._changed(found):
            return []
        return self._write(found, fills)

    async def reconcile(self) -> Reconciliation:
        """Compare everything with the venue and correct our own count where they differ.

        Raises:
            BrokerError: The venue did not answer; the daemon must not trade.
        """
        seen = await self._look()
        booked = self._write(seen.orders, seen.fills)
        differing = self._differing(seen.positions)
        if differing and not self.clock.stepped:
            # a running venue may report a position before its fill: only a difference that stays is one
            await self.pause(SECOND_LOOK_S)
            seen = await self._look()
            booked += self._write(seen.orders, seen.fills)
            differing = [symbol for symbol in self._differing(seen.positions) if symbol in differing]
        now = self.clock.now()
        split = [s for s in differing if meet_split(self.ledger, self.state, s, seen.positions.get(s), now)]
        differing = [symbol for symbol in differing if symbol not in split]
        self._correct(seen.positions, differing)
        naked = self._protect_naked(seen.positions)
        foreign = tuple(
            order.client_id
            for order in seen.open_orders
            if order.client_id not in self.state.orders and order.parent_client_id not in self.state.orders
        )
        self._tell_foreign(foreign)
        booked += await self._cancel_stranded(seen.positions, differing)
        if differing or naked or foreign or booked or split:
            log.info(
                "reconciled",
                fills=len(booked),
                corrected=differing,
                split=split,
                naked=list(naked),
                foreign=len(foreign),
            )
        return Reconciliation(fills=len(booked), corrected=tuple(differing), foreign=foreign, naked=naked)

    def _tell_foreign(self, foreign: Sequence[str]) -> None:
        """Leave one incident for each open order on the account that is not ours, however often it is met."""
        known = set((self.ledger.get_state("foreign_orders") or {}).get("open", ()))
        if known == set(foreign):
            return
        now = self.clock.now()
        with self.ledger.transaction() as connection:
            for client_id in foreign:
                if client_id not in known:
                    detail = f"order {client_id} is not of this ledger's account_scope: it is left alone"
                    self.ledger.incident(connection, now, "foreign_order", detail)
                    self.metrics.incident("foreign_order")
            self.ledger.set_state(connection, "foreign_orders", {"open": sorted(foreign)})

    async def _look(self) -> _Seen:
        """Read orders, fills and positions of one instant: again, where a fill came between the questions.

        Raises:
            BrokerError: The venue did not answer, or fills never paused.
        """
        for _ in range(LOOKS_MAX):
            found, open_orders = await self._our_orders()
            fills = list(await self.broker.fills(self.state.last_exec_id))
            found += await self._orders_of(fills, found)
            positions = await self.broker.positions()
            newest = fills[-1].exec_id if fills else self.state.last_exec_id
            if self.clock.stepped or not await self.broker.fills(newest):
                return _Seen(orders=found, open_orders=open_orders, fills=fills, positions=positions)
        raise UnavailableError(f"executions came between the questions of {LOOKS_MAX} looks at the venue")

    async def _our_orders(self) -> tuple[list[Order], list[Order]]:
        """Return the venue's open orders and those of ours that have ended; and the open orders alone."""
        before = list(self.state.orders.values())
        open_orders = list(await self.broker.open_orders())
        return open_orders + await self._ended(before, open_orders), open_orders

    async def _ended(self, ours: list[KnownOrder], open_orders: list[Order]) -> list[Order]:
        """Ask for each order of ours that is not open, and check that the venue knows those it has confirmed."""
        still_open = {order.client_id for order in open_orders}
        ended: list[Order] = []
        for known in ours:
            if known.client_id in still_open:
                continue
            order = await self.broker.order(known.client_id)
            if order is not None:
                ended.append(order)
            elif known.state.is_working:
                self._lost(known)
            # an attempt that was never confirmed is the order desk's to settle
        return ended

    async def _orders_of(self, fills: Sequence[Fill], found: Sequence[Order]) -> list[Order]:
        """Ask for the orders that only fills speak of, such as a leg that was armed and hit while nobody looked."""
        listed = {order.client_id for order in flattened(found)}
        unknown = [
            client_id
            for client_id in dict.fromkeys(fill.client_id for fill in fills)
            if client_id not in listed and not is_known(self.ledger, self.state, client_id)
        ]
        orders: list[Order] = []
        for client_id in unknown:
            order = await self.broker.order(client_id)
            if order is not None and order.parent_client_id is not None:
                order = await self.broker.order(order.parent_client_id) or order
            if order is not None:
                orders.append(order)
        return orders

    def _changed(self, found: list[Order]) -> bool:
        for order in found:
            known = self.state.orders.get(order.client_id)
            if known is None or differs(known, order):
                return True
        return False

    def _write(self, found: list[Order], fills: Sequence[Fill]) -> list[Fill]:
        now = self.clock.now()
        with self.ledger.transaction() as connection:
            # orders first: a fill is booked on the order that it belongs to
            record_orders(connection, self.ledger, self.state, found, now)
            booked = record_fills(connection, self.ledger, self.state, self.broker.capabilities.name, fills)
            arm_exits(connection, self.ledger, self.state, now)
        for fill in booked:
            self.metrics.filled(fill.side.value)
            log.info(
                "fill",
                symbol=fill.symbol,
                side=fill.side.value,
                qty=str(fill.qty),
                price=str(fill.price),
                client_id=fill.client_id,
            )
        return booked

    def _lost(self, known: KnownOrder) -> None:
        """Give up an order that the venue confirmed once and now denies: nobody can say what it did.

        Its symbol takes no entries until somebody has looked; closing what is held stays possible, and an
        execution that turns up after all is booked as a late one.
        """
        detail = f"the venue no longer knows order {known.client_id}; no entries until `tandem resume`"
        self.state.paused[known.symbol] = "order_lost"
        with self.ledger.transaction() as connection:
            update_order(
                connection, known.client_id, state=OrderState.CANCELED.value, reason="the venue no longer knows it"
            )
            self.ledger.incident(connection, self.clock.now(), "order_lost", detail, known.symbol)
            self.ledger.set_state(connection, "paused", dict(self.state.paused))
        self.metrics.incident("order_lost")
        known.state = OrderState.CANCELED
        self.state.orders.pop(known.client_id, None)

    def _differing(self, positions: Mapping[str, Position]) -> list[str]:
        return [
            symbol
            for symbol in dict.fromkeys((*positions, *self.state.book.holdings))
            if self.state.book.qty(symbol) != (positions[symbol].qty if symbol in positions else Decimal(0))
        ]

    def _correct(self, positions: Mapping[str, Position], differing: Sequence[str]) -> None:
        """Let the venue's positions win over our own count."""
        now = self.clock.now()
        if not differing:
            return
        with self.ledger.transaction() as connection:
            for symbol in differing:
                ours, theirs = self.state.book.qty(symbol), positions.get(symbol)
                held = Decimal(0) if theirs is None else theirs.qty
                detail = f"our count was {ours}, the venue holds {held}; the venue's is taken"
                self.ledger.incident(connection, now, "position_drift", detail, symbol)
                self.metrics.incident("position_drift")
                if theirs is None or not held:
                    self.state.book.holdings.pop(symbol, None)
                else:
                    self.state.book.holdings[symbol] = Holding(qty=held, avg_cost=theirs.avg_cost)
                record_position(connection, self.ledger, self.state, symbol, now)
            arm_exits(connection, self.ledger, self.state, now)

    async def _cancel_stranded(self, positions: Mapping[str, Position], corrected: Sequence[str]) -> list[Fill]:
        """Cancel orders of ours that would close what is not held."""
        if not stranded_orders(self.state, positions, corrected):
            return []
        if not self.clock.stepped:
            # the sibling of a leg that has filled goes by itself; a correction may have believed a position told late
            await self.pause(CORRECTED_LOOK_S if corrected else SECOND_LOOK_S)
        booked = await self._read_back()
        if corrected:
            positions = await self.broker.positions()
        found = [each for each in stranded_orders(self.state, positions, corrected) if is_booked(self.ledger, each)]
        self._stranded = {order.client_id: CLEARING_LOOKS_MAX for order in found}
        return booked + await self._clear_stranded()

    async def _clear_stranded(self) -> list[Fill]:
        """Ask for their cancellation at each look; each is told of when it succeeds, and once when it does not."""
        for client_id, looks in list(self._stranded.items()):
            order = self.state.orders.get(client_id)
            problem = "" if order is None else await cancel(self.broker, client_id, self.pause)
            if problem and looks > 1:
                self._stranded[client_id] = looks - 1
            else:
                del self._stranded[client_id]
            if order is None or (problem and looks < CLEARING_LOOKS_MAX):
                continue
            told = f"not cancelled yet ({problem})" if problem else "cancelled"
            detail = f"order {client_id} would close {order.qty - order.filled_qty} that are not held: {told}"
            with self.ledger.transaction() as connection:
                self.ledger.incident(connection, self.clock.now(), "stranded_order", detail, order.symbol)
            self.metrics.incident("stranded_order")
            log.warning("stranded order", client_id=client_id, symbol=order.symbol, problem=problem)
        return await self._read_back() if self.state.orders else []

    def _protect_naked(self, positions: Mapping[str, Position]) -> tuple[str, ...]:
        """Give every position without a plan the configured exits, armed locally."""
        now = self.clock.now()
        with self.ledger.transaction() as connection:
            naked = arm_exits(connection, self.ledger, self.state, now)
            for symbol in naked:
                holding = self.state.book.holdings[symbol]
                side = Side.BUY if holding.qty > 0 else Side.SELL
                mark = positions[symbol].mark if symbol in positions else holding.avg_cost
                plan = self.default_exits(symbol, side, mark)
                armed = ArmedExit(
                    symbol=symbol, intent_id="", side=side.opposite, plan=plan, mode="local", armed_at=now
                )
                write_exit(connection, self.ledger, self.state, armed)
                detail = f"the position of {holding.qty} had no exits; stop {plan.stop} is armed locally"
                self.ledger.incident(connection, now, "unprotected", detail, symbol)
                self.metrics.incident("unprotected")
        return tuple(naked)
