"""Broker truth: reading orders and fills back, and the full comparison that start-up and recovery share.

A question that fails raises; nothing is ever concluded from silence. Positions of the venue win over our own
count, and every correction leaves an incident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import structlog

from agent.ledger.store import Ledger
from agent.metrics import Metrics
from agent.records import arm_exits, record_fills, record_orders, record_position, write_exit
from agent.trading_state import ArmedExit, KnownOrder, TradingState
from brokers.account import Holding
from brokers.domain import ExitPlan, Fill, Order, OrderState, Position, Side
from brokers.protocol import Broker, Clock

log = structlog.get_logger("tandem.reconcile")


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


class Reconciler:
    """Brings ledger and state in step with the venue.

    Args:
        broker: The venue.
        clock: Venue time.
        ledger: Where it is written down.
        state: The daemon's knowledge, kept in step.
        default_exits: Makes an ExitPlan for a position that has none: (symbol, side of the position, price).
        metrics: Counters.
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
    ) -> None:
        self.broker = broker
        self.clock = clock
        self.ledger = ledger
        self.state = state
        self.default_exits = default_exits
        self.metrics = metrics

    async def sync(self) -> list[Fill]:
        """Read the state of our working orders and their new fills; returns the new fills.

        Costs nothing while nothing of ours works at the venue.

        Raises:
            BrokerError: The venue did not answer; nothing was concluded.
        """
        at_venue = [order for order in self.state.orders.values() if order.state.is_working]
        if not at_venue:
            return []
        found = list(await self.broker.open_orders())
        found += await self._ended(at_venue, found)
        fills = await self.broker.fills(self.state.last_exec_id)
        if not fills and not self._changed(found):
            return []
        return self._write(found, fills)

    async def reconcile(self) -> Reconciliation:
        """Compare everything with the venue and correct our own count where they differ.

        Raises:
            BrokerError: The venue did not answer; the daemon must not trade.
        """
        open_orders = list(await self.broker.open_orders())
        at_venue = [order for order in self.state.orders.values() if order.state.is_working]
        found = open_orders + await self._ended(at_venue, open_orders)
        fills = await self.broker.fills(self.state.last_exec_id)
        positions = await self.broker.positions()
        booked = self._write(found, fills)
        corrected = self._correct(positions)
        naked = self._protect_naked(positions)
        foreign = tuple(
            order.client_id
            for order in open_orders
            if order.client_id not in self.state.orders and order.parent_client_id not in self.state.orders
        )
        if corrected or naked or foreign or booked:
            log.info(
                "reconciled", fills=len(booked), corrected=list(corrected), naked=list(naked), foreign=len(foreign)
            )
        return Reconciliation(fills=len(booked), corrected=corrected, foreign=foreign, naked=naked)

    async def _ended(self, at_venue: list[KnownOrder], open_orders: list[Order]) -> list[Order]:
        """Ask for each order of ours that is no longer open, and check that the venue still knows it."""
        still_open = {order.client_id for order in open_orders}
        ended: list[Order] = []
        for known in at_venue:
            if known.client_id in still_open:
                continue
            order = await self.broker.order(known.client_id)
            if order is None:
                self._lost(known)
            else:
                ended.append(order)
        return ended

    def _changed(self, found: list[Order]) -> bool:
        for order in found:
            known = self.state.orders.get(order.client_id)
            if known is None or known.state is not order.state or known.filled_qty != order.filled_qty:
                return True
            if known.qty != order.qty or known.stop_price != order.stop_price:
                return True
        return False

    def _write(self, found: list[Order], fills: Sequence[Fill]) -> list[Fill]:
        now = self.clock.now()
        with self.ledger.transaction() as connection:
            # fills first need their orders; orders that only the fills mention are asked for by the next sync
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
        """Mark an order that the venue confirmed once and now denies: nobody can say what it did."""
        detail = f"the venue no longer knows order {known.client_id}; the symbol is paused until `tandem resume`"
        self.state.paused[known.symbol] = "order_lost"
        with self.ledger.transaction() as connection:
            self.ledger.incident(connection, self.clock.now(), "order_lost", detail, known.symbol)
            self.ledger.set_state(connection, "paused", dict(self.state.paused))
        self.metrics.incident("order_lost")
        known.state = OrderState.UNKNOWN

    def _correct(self, positions: Mapping[str, Position]) -> tuple[str, ...]:
        """Let the venue's positions win over our own count."""
        now = self.clock.now()
        differing = [
            symbol
            for symbol in dict.fromkeys((*positions, *self.state.book.holdings))
            if self.state.book.qty(symbol) != (positions[symbol].qty if symbol in positions else Decimal(0))
        ]
        if not differing:
            return ()
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
        return tuple(differing)

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
