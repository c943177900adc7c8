"""The order desk of a fast replay: a stepped venue that never fails, no waiting, no ledger.

It does what `agent.execution`, `agent.reconcile` and `agent.records` do there. Every order is accepted or refused at
once; nothing is ever unknown, late or foreign. The rules themselves (what is news of an order, which exits a position
has, how a split moves a count) are the live rooms' own functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from agent.bar_splits import split_holding
from agent.orders import Intent, client_order_id, request_of
from agent.records import differs, exit_of, fill_cost, split_plan, step_exits, take_news
from agent.trading_state import ArmedExit, KnownOrder, TradingState
from brokers.calendar import TradingCalendar
from brokers.costs import is_split, split_ratio
from brokers.domain import Bar, Fill, Instrument, Leg, Position, RejectedError, Side
from brokers.simulated.engine import MatchingEngine
from strategies.strategy import Reason

ZERO = Decimal(0)


class ReplayDesk:
    """Carries out intents on an engine in this process, and keeps the state in step with it.

    Args:
        engine: The exchange.
        state: What the replay knows; no intent ever waits in it.
        instruments: Rules by symbol.
        calendar: Sessions.
        period: Bar period.
        brackets: Names of the asset classes whose exits the venue holds.
    """

    def __init__(
        self,
        engine: MatchingEngine,
        state: TradingState,
        instruments: Mapping[str, Instrument],
        calendar: TradingCalendar,
        period: timedelta,
        brackets: frozenset[str],
    ) -> None:
        self._engine = engine
        self._state = state
        self._calendar = calendar
        self._period = period
        self._has_brackets = {symbol: rules.asset_class.value in brackets for symbol, rules in instruments.items()}
        self._known: dict[str, KnownOrder] = {}
        self._entries: dict[tuple[str, Side], Intent] = {}
        self._decided: dict[str, datetime] = {}
        self._fills: dict[str, list[Fill]] = {}
        self._foreseen: dict[str, tuple[float, float]] = {}
        self.stopped: dict[str, datetime] = {}
        """When a stop of a symbol last traded."""
        self.rejections: list[tuple[datetime, str, str]] = []
        """Orders that the venue refused: venue time, symbol, and why."""

    def leg_of(self, client_id: str) -> Leg:
        """Return what an order was for."""
        return self._known[client_id].leg

    def cost_of(self, fill: Fill) -> dict[str, float | None]:
        """Return the predicted and the realised cost of an execution; see `agent.records.fill_cost`."""
        known = self._known[fill.client_id]
        return fill_cost(fill, known.leg, self._foreseen.get(known.intent_id))

    # ---- looking ------------------------------------------------------------------------------------

    def sync(self, client_ids: Iterable[str] | None = None) -> None:
        """Take over what has become of orders, and new fills; of some orders, or of all that may still fill."""
        state, book = self._state, self._engine.book()
        if not state.orders:
            return
        has_news = False
        for client_id in list(state.orders) if client_ids is None else client_ids:
            order, known = book[client_id], state.orders.get(client_id)
            if known is None or not differs(known, order):
                continue
            has_news = True
            take_news(known, order)
            if known.state.is_terminal:
                del state.orders[client_id]
        fills = self._engine.fills(state.last_exec_id)
        for fill in fills:
            self._book(fill)
        if fills or has_news:
            step_exits(state, self._planned)

    def _book(self, fill: Fill) -> None:
        state = self._state
        state.book.fill(fill.symbol, fill.side, fill.qty, fill.price, fill.fee)
        state.last_exec_id = fill.exec_id
        self._fills.setdefault(fill.symbol, []).append(fill)
        if self._known[fill.client_id].leg is Leg.STOP:
            self.stopped[fill.symbol] = fill.at

    def _planned(self, symbol: str) -> ArmedExit | None:
        side = Side.BUY if self._state.book.qty(symbol) > 0 else Side.SELL
        entry = self._entries.get((symbol, side))
        return None if entry is None else exit_of(entry, self._engine.now)

    def split(self, symbol: str, bar: Bar, before: Bar, positions: Mapping[str, Position]) -> None:
        """Apply the split that a bar shows, if it shows one; see `agent.bar_splits`."""
        ratio = bar.adj_factor / before.adj_factor
        if not is_split(ratio):
            return
        factor, state = split_ratio(ratio), self._state
        venue = positions.get(symbol)
        if state.book.qty(symbol) != (ZERO if venue is None else venue.qty):
            opened = self._calendar.open_of(bar.start, self._period)
            later = [fill for fill in self._fills.get(symbol, ()) if fill.at >= opened]
            split_holding(state, symbol, sum((fill.side.sign * fill.qty for fill in later), ZERO), factor)
        armed = state.exits.get(symbol)
        if armed is not None and self._decided.get(armed.intent_id, armed.armed_at) <= bar.start:
            state.exits[symbol] = replace(armed, plan=split_plan(armed.plan, factor))

    # ---- carrying out -------------------------------------------------------------------------------

    def note(self, intents: Sequence[Intent]) -> None:
        """Remember intents that have been decided."""
        for intent in intents:
            self._decided[intent.intent_id] = intent.close_time
            self._foreseen[intent.intent_id] = (intent.reference_price, intent.predicted_cost_fraction)
            if intent.leg is Leg.ENTRY:
                self._entries[intent.symbol, intent.side] = intent

    def execute(self, intents: Sequence[Intent], *, halted: bool) -> dict[str, Reason]:
        """Carry out the intents of one close in their order; returns the outcome by intent id."""
        outcomes: dict[str, Reason] = {}
        unclosed: set[str] = set()
        for intent in intents:
            if intent.leg is not Leg.ENTRY:
                outcome = self._close(intent)
                if outcome is Reason.REJECTED:
                    unclosed.add(intent.symbol)
            elif halted:
                outcome = Reason.HALTED
            elif intent.symbol in unclosed:
                outcome = Reason.ORDER_WORKING
            else:
                outcome = self._send(intent, intent.qty)
            outcomes[intent.intent_id] = outcome
        return outcomes

    def _close(self, intent: Intent) -> Reason:
        """Cancel what works on the symbol and close what is held."""
        working = self._state.working_orders(intent.symbol)
        for order in working:
            if order.state.is_working:
                self._engine.cancel(order.client_id)
        if working:
            self.sync()
        held = -intent.side.sign * self._engine.account_book().qty(intent.symbol)
        return self._send(intent, held) if held > 0 else Reason.TARGET_HELD

    def _send(self, intent: Intent, qty: Decimal) -> Reason:
        state = self._state
        client_id = client_order_id(intent.intent_id, 1)
        request = request_of(intent, client_id, qty, at_venue=self._has_brackets[intent.symbol])
        try:
            order = self._engine.accept(request)
        except RejectedError as error:
            self.rejections.append((self._engine.now, intent.symbol, str(error)))
            state.rejects[intent.symbol] = state.rejects.get(intent.symbol, 0) + 1
            return Reason.REJECTED
        placed = [order, *map(self._engine.book().__getitem__, order.leg_ids)] if order.leg_ids else [order]
        for new in placed:
            known = KnownOrder(
                client_id=new.client_id,
                intent_id=intent.intent_id,
                attempt=1,
                parent_client_id=new.parent_client_id,
                symbol=new.symbol,
                side=new.side,
                leg=new.leg,
                qty=new.qty,
                filled_qty=ZERO,
                state=new.state,
                stop_price=new.stop_price,
                limit_price=new.limit_price,
            )
            self._known[new.client_id] = state.orders[new.client_id] = known
        step_exits(state, self._planned, only=intent.symbol)
        state.rejects.pop(intent.symbol, None)
        return Reason.TRADED
