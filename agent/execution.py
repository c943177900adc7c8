"""The order desk: intents in, orders at the venue out, with one of three outcomes each.

Accepted, definitively rejected, or UNKNOWN. An order row is committed as SUBMITTING before the venue hears
of it; there is one wire attempt per client order id; UNKNOWN is resolved by asking for that id, never by
sending again. Only a proven absence over the venue's look-up window allows a fresh attempt, with a new id.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, unique
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, select

from agent.ledger import schema
from agent.ledger.store import Ledger, update_intent
from agent.metrics import Metrics
from agent.orders import Intent, IntentState, client_order_id, request_of
from agent.reconcile import Reconciler
from agent.records import arm_exits, record_orders, record_outcome
from agent.trading_state import KnownOrder, TradingState, known_order
from brokers.domain import (
    BrokerError,
    DuplicateClientIdError,
    Instrument,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OutcomeUnknownError,
    RateLimitedError,
    RejectedError,
    UnavailableError,
)
from brokers.protocol import Broker, Clock
from strategies.strategy import Reason

log = structlog.get_logger("tandem.desk")

CANCEL_WAIT_S_MAX = 5.0
"""Longest wall wait for cancelled orders to become terminal before a close."""
LOOKUP_PAUSES_S = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between two look-ups of an unknown order; the last one repeats."""
POSITION_LAG_S_MAX = 2.0
"""Longest wall wait for a venue's positions to agree with its fills before a close takes the venue's word."""
RATE_LIMIT_WAIT_S_MAX = 5.0
"""Longest wall wait for a venue that limits the rate, whatever it asks for: exits wait behind it."""
LOOKUPS_MAX = 10_000
"""Most look-ups of one order, whatever the clock says."""

_ATTEMPTS = (
    select(schema.orders)
    .where(schema.orders.c.intent_id == bindparam("intent_id"), schema.orders.c.parent_client_id.is_(None))
    .order_by(schema.orders.c.attempt)
)


@unique
class _Found(Enum):
    ABSENT = "absent"
    """The venue said 'not found' at least twice, over its whole look-up window."""
    UNREACHABLE = "unreachable"
    """No usable answer: the order stays UNKNOWN."""


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """Bounds of the desk: wire attempts per intent, and seconds without any answer."""

    attempts_max: int
    outage_s_max: float


class OrderDesk:
    """Carries out intents, one at a time.

    Args:
        broker: The venue.
        clock: Venue time, for an entry's validity.
        ledger: Where every step is committed before the next one.
        state: The daemon's knowledge, kept in step.
        reconciler: Reads orders and fills back.
        instruments: Rules by symbol.
        limits: Bounds.
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
        reconciler: Reconciler,
        instruments: dict[str, Instrument],
        limits: DeskLimits,
        metrics: Metrics,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self.broker = broker
        self.clock = clock
        self.ledger = ledger
        self.state = state
        self.reconciler = reconciler
        self.instruments = instruments
        self.limits = limits
        self.metrics = metrics
        self.pause = pause

    async def execute(self, intents: Sequence[Intent]) -> dict[str, Reason]:
        """Carry out intents in their order; returns the outcome by intent id.

        An intent ends when the venue has an order of it or refuses one, or when it is too late for it. Until then it
        stays planned, and is carried out again by the next call with it, also in another process.
        """
        outcomes: dict[str, Reason] = {}
        for intent in sorted(intents, key=lambda i: (i.close_time, i.sequence)):
            outcomes[intent.intent_id] = await self._carry_out(intent)
        return outcomes

    async def _carry_out(self, intent: Intent) -> Reason:
        attempts = self._former_attempts(intent)
        for former in attempts:
            settled = await self._settle_former(intent, former)
            if settled is not None:
                return settled
        # attempts that a kill cut short are proven absent by now: they use up none of this process's
        for attempt in range(len(attempts) + 1, len(attempts) + 1 + self.limits.attempts_max):
            outcome = await self._attempt(intent, attempt)
            if outcome is not None:
                return outcome
        return self._postpone(intent, Reason.NO_ANSWER, "the venue had none of its attempts")

    def _former_attempts(self, intent: Intent) -> list[KnownOrder]:
        return [known_order(row) for row in self.ledger.rows(_ATTEMPTS, {"intent_id": intent.intent_id})]

    async def _settle_former(self, intent: Intent, former: KnownOrder) -> Reason | None:
        """Find out what became of an attempt made before a restart; None where a fresh attempt is right."""
        if former.state is OrderState.NOT_PLACED:
            return None
        if former.state is OrderState.REJECTED:
            return self._drop(intent, Reason.REJECTED, "rejected before the restart")
        if former.state not in (OrderState.SUBMITTING, OrderState.UNKNOWN):
            return self._finish(intent, Reason.TRADED, reached_venue=True)
        found = await self._look_up(former.client_id)
        return self._settle_found(intent, former.client_id, found)

    async def _attempt(self, intent: Intent, attempt: int) -> Reason | None:
        """Make one wire attempt; None where the venue provably has nothing of it and another may follow."""
        if intent.valid_until is not None and self.clock.now() > intent.valid_until:
            return self._drop(intent, Reason.LATE, f"not sent by {intent.valid_until.isoformat()}")
        if intent.leg is Leg.ENTRY:
            if (self.ledger.get_state("halt") or {}).get("halted"):  # since the decision, or since a kill after it
                return self._drop(intent, Reason.HALTED, "entries were halted before it was sent")
            held_back = await self._close_before(intent)
            if held_back is not None:
                return held_back
        qty = intent.qty
        if intent.leg is not Leg.ENTRY:
            freed = await self._free_position(intent)
            if isinstance(freed, Reason):
                return freed
            qty = freed
        client_id = client_order_id(intent.intent_id, attempt)
        at_venue = self.instruments[intent.symbol].asset_class.value in self.broker.capabilities.brackets
        request = request_of(intent, client_id, qty, at_venue=at_venue)
        self._commit_submitting(intent, request, attempt)
        return await self._send(intent, request)

    async def _close_before(self, intent: Intent) -> Reason | None:
        """Tell whether an entry must wait for, or go down with, the close of the same decision (a reversal).

        A stepped venue fills both at one open. On a running one the close may wait for days (a market that is shut, a
        halt): the entry waits until it is filled, at most until the entry's own `valid_until`.
        """
        question = (
            select(schema.intents.c.intent_id, schema.intents.c.state)
            .where(schema.intents.c.close_time == intent.close_time, schema.intents.c.symbol == intent.symbol)
            .where(schema.intents.c.leg != Leg.ENTRY.value)
        )
        closes = {row.intent_id: row.state for row in self.ledger.rows(question)}
        if IntentState.PLANNED.value in closes.values():
            return self._postpone(intent, Reason.ORDER_WORKING, "the position that it follows is not closed yet")
        if IntentState.DROPPED.value in closes.values():
            return self._drop(intent, Reason.ORDER_WORKING, "the position that it follows was not closed")
        return await self._close_working(intent, list(closes)) if closes and not self.clock.stepped else None

    async def _close_working(self, intent: Intent, closes: Sequence[str]) -> Reason | None:
        try:
            await self.reconciler.sync()
        except (UnavailableError, RateLimitedError) as error:
            return self._postpone(intent, Reason.NO_ANSWER, f"its close cannot be looked at: {error}")
        orders = [row for close in closes for row in self.ledger.rows(_ATTEMPTS, {"intent_id": close})]
        if any(not OrderState(row.state).is_terminal for row in orders):
            return self._postpone(intent, Reason.ORDER_WORKING, "the position that it follows is not closed yet")
        still_held = intent.side.sign * self.state.book.qty(intent.symbol) < 0
        if still_held and orders and orders[-1].filled_qty < orders[-1].qty:
            return self._drop(intent, Reason.ORDER_WORKING, f"its close ended unfilled, as {orders[-1].state}")
        return None

    async def _send(self, intent: Intent, request: OrderRequest) -> Reason | None:
        try:
            order = await self.broker.submit(request)
        except DuplicateClientIdError:
            return self._settle_found(intent, request.client_id, await self._look_up(request.client_id))
        except RateLimitedError as error:
            self._set_state(request.client_id, OrderState.NOT_PLACED, str(error))
            self.metrics.order("not_placed")
            await self.pause(min(error.retry_after_s, RATE_LIMIT_WAIT_S_MAX))
            return None
        except RejectedError as error:
            return self._rejected(intent, request.client_id, error)
        except (OutcomeUnknownError, UnavailableError) as error:
            log.warning("order outcome unknown", client_id=request.client_id, symbol=intent.symbol, error=str(error))
            self.metrics.order("unknown")
            self._set_state(request.client_id, OrderState.UNKNOWN, str(error))
            return self._settle_found(intent, request.client_id, await self._look_up(request.client_id))
        return self._accepted(intent, order)

    def _commit_submitting(self, intent: Intent, request: OrderRequest, attempt: int) -> None:
        now = self.clock.now()
        known = KnownOrder(
            client_id=request.client_id,
            intent_id=intent.intent_id,
            attempt=attempt,
            parent_client_id=None,
            symbol=intent.symbol,
            side=intent.side,
            leg=intent.leg,
            qty=request.qty,
            filled_qty=Decimal(0),
            state=OrderState.SUBMITTING,
            stop_price=request.stop_price,
            limit_price=request.limit_price,
        )
        row = {
            "client_id": known.client_id,
            "intent_id": known.intent_id,
            "attempt": attempt,
            "symbol": known.symbol,
            "side": known.side.value,
            "leg": known.leg.value,
            "type": request.type.value,
            "qty": known.qty,
            "state": known.state.value,
            "filled_qty": known.filled_qty,
            "submitted_at": now,
            "updated_at": now,
        }
        with self.ledger.transaction() as connection:
            self.ledger.upsert(connection, schema.orders, [row])
        self.state.orders[known.client_id] = known

    def _accepted(self, intent: Intent, order: Order) -> Reason:
        with self.ledger.transaction() as connection:
            record_orders(connection, self.ledger, self.state, [order], self.clock.now())
            arm_exits(connection, self.ledger, self.state, self.clock.now(), only=order.symbol)
            self._settle(connection, intent, IntentState.DONE, Reason.TRADED)
            self._reset_rejects(connection, intent.symbol)
            if order.reason == "legs_missing":
                detail = f"order {order.client_id} was accepted without its exits; they are armed locally"
                self.ledger.incident(connection, self.clock.now(), "legs_missing", detail, intent.symbol)
        self.metrics.order("accepted")
        log.info(
            "order accepted",
            symbol=intent.symbol,
            side=intent.side.value,
            leg=intent.leg.value,
            qty=str(order.qty),
            client_id=order.client_id,
        )
        return Reason.TRADED

    def _rejected(self, intent: Intent, client_id: str, error: RejectedError) -> Reason:
        streak = self.state.rejects.get(intent.symbol, 0) + 1
        self.state.rejects[intent.symbol] = streak
        note = f"{error.code}: {error.message}"
        with self.ledger.transaction() as connection:
            self._write_state(connection, client_id, OrderState.REJECTED, note)
            self._settle(connection, intent, IntentState.DROPPED, Reason.REJECTED, note)
            self.ledger.set_state(connection, "rejects", dict(self.state.rejects))
            self.ledger.incident(connection, self.clock.now(), "rejected", note, intent.symbol)
        self.state.orders.pop(client_id, None)
        self.metrics.order("rejected")
        log.warning("order rejected", symbol=intent.symbol, client_id=client_id, error=note, streak=streak)
        return Reason.REJECTED

    def _settle_found(self, intent: Intent, client_id: str, found: Order | _Found) -> Reason | None:
        if isinstance(found, Order):
            self.metrics.order("resolved")
            return self._accepted(intent, found)
        if found is _Found.ABSENT:
            log.info("order was not placed", client_id=client_id, symbol=intent.symbol)
            self.metrics.order("not_placed")
            self._set_state(client_id, OrderState.NOT_PLACED, "unknown to the venue for the whole look-up window")
            return None
        with self.ledger.transaction() as connection:
            detail = f"order {client_id}: the venue cannot be asked what became of it; the symbol waits"
            self.ledger.incident(connection, self.clock.now(), "unresolved_order", detail, intent.symbol)
        return Reason.UNRESOLVED_ORDER

    async def _look_up(self, client_id: str) -> Order | _Found:
        """Ask for a client id until it is found, or proven absent, or the venue stays silent too long."""
        window_s = self.broker.capabilities.lookup_window_s
        began = last_answer = time.monotonic()
        absences = 0
        for turn in range(LOOKUPS_MAX):
            try:
                order = await self.broker.order(client_id)
            except BrokerError as error:
                if time.monotonic() - last_answer > self.limits.outage_s_max:
                    log.exception("order cannot be looked up", client_id=client_id, error=str(error))
                    return _Found.UNREACHABLE
            else:
                if order is not None:
                    return order
                absences += 1
                last_answer = time.monotonic()
                if absences >= 2 and last_answer - began >= window_s:
                    return _Found.ABSENT
            await self.pause(LOOKUP_PAUSES_S[min(turn, len(LOOKUP_PAUSES_S) - 1)])
        return _Found.UNREACHABLE

    async def _free_position(self, intent: Intent) -> Decimal | Reason:
        """Cancel what works on the symbol, wait until it is terminal, and return the quantity to close."""
        own = intent.intent_id
        try:
            for order in self.state.working_orders(intent.symbol):
                if order.state.is_working and order.intent_id != own:
                    await self._cancel(order.client_id)
            began = time.monotonic()
            await self.reconciler.sync()
            while any(o.state.is_working and o.intent_id != own for o in self.state.working_orders(intent.symbol)):
                if time.monotonic() - began > CANCEL_WAIT_S_MAX:
                    return self._postpone(intent, Reason.ORDER_WORKING, "orders of the symbol did not cancel in time")
                await self.pause(0.1)
                await self.reconciler.sync()
            held = await self._held(intent)
        except RejectedError as error:
            return self._drop(intent, Reason.REJECTED, str(error))
        except (UnavailableError, RateLimitedError) as error:
            return self._postpone(intent, Reason.NO_ANSWER, f"the position could not be freed: {error}")
        if held <= 0:
            return self._finish(intent, Reason.TARGET_HELD, note="nothing was left to close")
        return held

    async def _held(self, intent: Intent) -> Decimal:
        """Return what the venue holds against the intent's side, to the last digit: a rest would stay for ever.

        A running venue's positions lag behind its fills: where they differ from our own count they are asked again.
        """
        began = time.monotonic()
        while True:
            positions = await self.broker.positions()
            position = positions.get(intent.symbol)
            qty = Decimal(0) if position is None else position.qty
            agreed = self.clock.stepped or qty == self.state.book.qty(intent.symbol)
            if agreed or time.monotonic() - began > POSITION_LAG_S_MAX:
                return -intent.side.sign * qty
            await self.pause(0.5)
            await self.reconciler.sync()

    async def _cancel(self, client_id: str) -> None:
        """Ask for a cancellation until the venue has heard it: cancelling twice is harmless.

        Raises:
            UnavailableError: Not within `outage_s_max`.
        """
        began = time.monotonic()
        for turn in range(LOOKUPS_MAX):
            try:
                await self.broker.cancel(client_id)
            except UnavailableError as error:
                if time.monotonic() - began > self.limits.outage_s_max:
                    raise
                log.warning("cancellation is not settled", client_id=client_id, error=str(error))
            else:
                return
            await self.pause(LOOKUP_PAUSES_S[min(turn, len(LOOKUP_PAUSES_S) - 1)])
        raise UnavailableError(f"the cancellation of order {client_id} is not settled after {LOOKUPS_MAX} attempts")

    def _finish(self, intent: Intent, reason: Reason, *, note: str = "", reached_venue: bool = False) -> Reason:
        with self.ledger.transaction() as connection:
            self._settle(connection, intent, IntentState.DONE, reason, note)
            if reached_venue:
                self._reset_rejects(connection, intent.symbol)
        return reason

    def _drop(self, intent: Intent, reason: Reason, note: str) -> Reason:
        with self.ledger.transaction() as connection:
            self._settle(connection, intent, IntentState.DROPPED, reason, f"{reason.value}: {note}")
        self.metrics.order("dropped")
        log.warning("intent dropped", symbol=intent.symbol, leg=intent.leg.value, reason=reason.value, note=note)
        return reason

    def _postpone(self, intent: Intent, reason: Reason, note: str) -> Reason:
        """Leave an intent planned: it is carried out again with the next look at the venue."""
        log.warning("intent waits", symbol=intent.symbol, leg=intent.leg.value, reason=reason.value, note=note)
        return reason

    def _settle(
        self, connection: Connection, intent: Intent, state: IntentState, reason: Reason, note: str = ""
    ) -> None:
        """Write the end of an intent and, with it, what became of its decision: a kill cannot come in between."""
        update_intent(connection, intent.intent_id, state=state.value, note=note)
        record_outcome(connection, intent, reason)
        self.state.intents.pop(intent.intent_id, None)

    def _set_state(self, client_id: str, state: OrderState, reason: str) -> None:
        with self.ledger.transaction() as connection:
            self._write_state(connection, client_id, state, reason)
        known = self.state.orders.get(client_id)
        if known is not None:
            known.state = state
            if state.is_terminal:
                del self.state.orders[client_id]

    def _write_state(self, connection: Connection, client_id: str, state: OrderState, reason: str) -> None:
        values: dict[str, Any] = {"state": state.value, "reason": reason, "updated_at": self.clock.now()}
        connection.execute(schema.orders.update().where(schema.orders.c.client_id == client_id).values(**values))

    def _reset_rejects(self, connection: Connection, symbol: str) -> None:
        if self.state.rejects.pop(symbol, None) is not None:
            self.ledger.set_state(connection, "rejects", dict(self.state.rejects))
