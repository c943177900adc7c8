"""What happens on the floor at one event: corporate actions, triggers, fills, legs, expiries.

The rules of `engine` in code: it moves a `State`, reads the feed, and knows neither books nor clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal

from brokers.account import ZERO, split_quantity
from brokers.costs import PRICE_QUANTUM, CostModel, dividend_per_unit, is_split, reference_before, split_ratio
from brokers.domain import Fill, Instrument, OrderState, OrderType, Side
from brokers.series import from_ns
from brokers.simulated.feed import CLOSE, Feed, Timeline
from brokers.simulated.matching import BarPath, Execution, Triggered, fillable_qty, match
from brokers.simulated.orders import BookOrder
from brokers.simulated.reach import Reach
from brokers.simulated.settings import EngineSettings
from brokers.simulated.state import CorporateAction, Event, State


class Floor:
    """Moves a state from event to event of one feed.

    Raises:
        FeedError: The bars are too short for the decision deadline.
    """

    def __init__(
        self, feed: Feed, costs: CostModel, settings: EngineSettings, instruments: Mapping[str, Instrument]
    ) -> None:
        self.timeline = Timeline.of(feed, settings.decision_deadline_ns)
        self._symbols = feed.symbols
        self._series = [feed.series[symbol] for symbol in feed.symbols]
        self._costs = costs
        self._settings = settings
        self._instruments = instruments
        self._places = {symbol: place for place, symbol in enumerate(feed.symbols)}
        self._reach: dict[str, Reach] = {}

    def skip(self, state: State, until_ns: int) -> bool:
        """Pass the events up to `until_ns` in which nothing can happen; True where that time was reached.

        Where it returns False, the next event may change something and wants a `step`.
        """
        index = self._next_stir(state, until_ns)
        if index is not None:
            if index > state.cursor:
                state.cursor = index
                state.now_ns = int(self.timeline.times_ns[index - 1])
            return False
        timeline = self.timeline
        state.cursor = max(state.cursor, timeline.after(until_ns))
        state.now_ns = until_ns
        last = state.cursor - 1
        if last >= 0 and timeline.times_ns[last] == until_ns:
            state.event = Event.CLOSE if timeline.kinds[timeline.offsets[last]] == CLOSE else Event.OPEN
        else:
            state.event = Event.IDLE
        return True

    def reach(self, symbol: str) -> Reach:
        """Return where a symbol's bars can meet resting orders; made when first asked for."""
        found = self._reach.get(symbol)
        if found is None:
            found = self._reach[symbol] = Reach(self._series[self._places[symbol]])
        return found

    def _next_stir(self, state: State, until_ns: int) -> int | None:
        """Return the index of the first event up to `until_ns` that may change more than the clock; None for none."""
        if state.next_expiry_ns is not None and state.next_expiry_ns <= until_ns:
            return state.cursor
        if not state.live and not state.account.holdings:
            return None
        stir_ns = None
        for symbol in {**state.live, **state.account.holdings}:
            orders = state.live.get(symbol, {}).values()
            if any(order.opens_to_wait or order.type is OrderType.MARKET for order in orders):
                return state.cursor
            if not (orders or self.reach(symbol).has_actions):
                continue
            place = self._places[symbol]
            closes, opens = self._series[place].close_ns, self.timeline.opens_ns[place]
            begin = int(closes.searchsorted(state.now_ns, side="right"))
            end = int(opens.searchsorted(until_ns, side="right"))
            if begin >= end:
                continue
            reach = self.reach(symbol)
            bar = reach.next_action(begin, end)
            if orders:
                bar = reach.first(begin, bar, *_levels(orders))
            if bar < end:
                at_ns = int(opens[bar]) if opens[bar] > state.now_ns else int(closes[bar])
                stir_ns = at_ns if stir_ns is None else min(stir_ns, at_ns)
        if stir_ns is None or stir_ns > until_ns:
            return None
        return int(self.timeline.times_ns.searchsorted(stir_ns))

    def step(self, state: State, idle_ns: int) -> Event:
        """Move to the next instant and handle it, or to `idle_ns` if nothing comes first."""
        timeline, index = self.timeline, state.cursor
        at_ns = timeline.times_ns.item(index) if index < len(timeline.times_ns) else None
        if at_ns is None or at_ns > idle_ns:
            state.now_ns = idle_ns
            self._expire(state, idle_ns)
            return Event.IDLE
        state.cursor = index + 1
        state.now_ns = at_ns
        begin, end = timeline.offsets.item(index), timeline.offsets.item(index + 1)
        is_close = timeline.kinds.item(begin) == CLOSE
        if state.live or (state.account.holdings and timeline.has_action[index]):
            self._expire(state, at_ns - 1)
            opens = begin
            while opens < end and timeline.kinds.item(opens) == CLOSE:
                self._on_close(state, timeline.symbols.item(opens), timeline.bars.item(opens))
                opens += 1
            self._expire(state, at_ns)
            for item in range(opens, end):
                self._on_open(state, timeline.symbols.item(item), timeline.bars.item(item))
        return Event.CLOSE if is_close else Event.OPEN

    def _on_close(self, state: State, index: int, bar: int) -> None:
        """Let resting orders meet the range of the bar that just completed."""
        orders = state.live.get(self._symbols[index])
        if orders is None:
            return
        series = self._series[index]
        path = BarPath(
            open=series.open.item(bar),
            high=series.high.item(bar),
            low=series.low.item(bar),
            reference=reference_before(series, bar),
        )
        self._match_resting(state, orders, path, at_ns=state.now_ns, legs_wait=1)

    def _on_open(self, state: State, index: int, bar: int) -> None:
        """Corporate actions, then resting orders that the open triggers, then market orders."""
        series, symbol = self._series[index], self._symbols[index]
        if bar:
            ratio = series.adj_factor.item(bar) / series.adj_factor.item(bar - 1)
            if ratio != 1.0:
                self._corporate_action(state, symbol, ratio, series.close.item(bar - 1))
        orders = state.live.get(symbol)
        if orders is None:
            return
        for order in orders.values():
            if order.opens_to_wait and order.state is not OrderState.HELD:
                order.opens_to_wait -= 1
                state.touch_silently(order)
        path = BarPath.at_open(series.open.item(bar), reference_before(series, bar))
        close_ns = series.close_ns.item(bar)
        matchable = _matchable(orders)
        market = [order for order in matchable if order.type is OrderType.MARKET]
        if len(market) < len(matchable):
            self._match_resting(state, orders, path, at_ns=state.now_ns, legs_wait=0)
        step = self._instruments[symbol].qty_step
        for order in market:
            if order.state.is_terminal:
                continue
            qty = fillable_qty(
                order.remaining_qty,
                step,
                self._settings.partial_fill_probability,
                seed=self._settings.seed,
                symbol=symbol,
                close_ns=close_ns,
                side=order.side,
                leg=order.leg,
            )
            execution = match(order, qty, path, self._costs)
            if isinstance(execution, Execution):
                self._fill(state, order, qty, execution, state.now_ns, legs_wait=0)

    def _match_resting(
        self, state: State, orders: Mapping[str, BookOrder], path: BarPath, *, at_ns: int, legs_wait: int
    ) -> None:
        """Match stops, then limits, each oldest first."""
        resting = [order for order in _matchable(orders) if order.type is not OrderType.MARKET]
        if not resting:
            return
        for order in sorted(resting, key=_worst_first):
            if order.state.is_terminal:
                continue
            qty = order.remaining_qty
            if order.reduce_only:
                qty = min(qty, self._closable_qty(state, order))
            outcome = match(order, qty, path, self._costs)
            if isinstance(outcome, Triggered):
                order.is_triggered = True
                state.touch(order)
            elif outcome is not None and not qty:
                self.end(state, order, OrderState.CANCELED, "position_closed")
            elif outcome is not None:
                self._fill(state, order, qty, outcome, max(at_ns, order.submitted_ns), legs_wait=legs_wait)

    def _fill(
        self, state: State, order: BookOrder, qty: Decimal, execution: Execution, at_ns: int, *, legs_wait: int
    ) -> None:
        """Book one execution and let it arm, cancel or complete the orders that belong to it."""
        fee = self._costs.fee(qty, execution.price)
        state.account.fill(order.symbol, order.side, qty, execution.price, fee)
        state.record_fill(
            Fill(
                exec_id=f"{state.next_sequence():012d}",
                client_id=order.client_id,
                symbol=order.symbol,
                side=order.side,
                qty=qty,
                price=execution.price,
                fee=fee,
                at=from_ns(at_ns),
                mark_price=execution.mark_price,
            )
        )
        order.filled_qty += qty
        order.filled_value += qty * execution.price
        order.filled_ns = at_ns
        if not order.remaining_qty:
            state.retire(order, OrderState.FILLED, "")
        else:
            order.state = OrderState.PARTIAL
            state.touch(order)
        if order.parent_client_id is not None:
            self._complete_leg(state, order)
        elif order.leg_ids:
            self._arm(state, order, qty, legs_wait)

    def _arm(self, state: State, entry: BookOrder, qty: Decimal, legs_wait: int) -> None:
        """Let the legs protect what has filled: at once (native), or when the entry is complete (alpaca)."""
        if self._settings.rule_set == "alpaca" and entry.remaining_qty:
            return
        for client_id in entry.leg_ids:
            leg = state.orders[client_id]
            if leg.state.is_terminal:
                continue
            if leg.state is OrderState.HELD:
                leg.state = OrderState.ACCEPTED
                leg.opens_to_wait = legs_wait
                if self._settings.rule_set == "native":
                    leg.qty = qty
            else:
                leg.qty += qty
            state.touch(leg)

    def _complete_leg(self, state: State, leg: BookOrder) -> None:
        """One leg traded: its sibling and whatever is left of the entry must not."""
        if not leg.state.is_terminal:
            self.end(state, leg, OrderState.CANCELED, "position_closed")
        self.end_siblings(state, leg, "oco")
        entry = state.orders[leg.parent_client_id or ""]
        if not entry.state.is_terminal:
            self.end(state, entry, OrderState.CANCELED, "bracket_exited")

    def end_siblings(self, state: State, leg: BookOrder, reason: str) -> None:
        """Cancel the other working legs of a leg's bracket."""
        entry = state.orders[leg.parent_client_id or ""]
        for client_id in entry.leg_ids:
            sibling = state.orders[client_id]
            if sibling is not leg and not sibling.state.is_terminal:
                self.end(state, sibling, OrderState.CANCELED, reason)

    def end(self, state: State, order: BookOrder, terminal: OrderState, reason: str) -> None:
        """Cancel or expire a working order; legs live on only for what the entry has filled."""
        unfilled = order.remaining_qty
        state.retire(order, terminal, reason)
        for client_id in order.leg_ids:
            leg = state.orders[client_id]
            if leg.state is not OrderState.HELD:
                continue
            if not order.filled_qty:
                state.retire(leg, OrderState.CANCELED, "entry_ended")
                continue
            leg.state = OrderState.ACCEPTED
            leg.qty -= unfilled
            leg.opens_to_wait = 1
            state.touch(leg)

    def _expire(self, state: State, at_ns: int) -> None:
        """Expire DAY orders whose session closed at or before a time."""
        if state.next_expiry_ns is None or state.next_expiry_ns > at_ns:
            return
        for order in state.expiring(at_ns):
            if not order.state.is_terminal:
                self.end(state, order, OrderState.EXPIRED, "session_closed")

    def _corporate_action(self, state: State, symbol: str, ratio: float, previous_close: float) -> None:
        """Apply a step of `adj_factor` to the holding and, for a split, to the open orders."""
        held = bool(state.account.qty(symbol))
        if not is_split(ratio):
            per_unit = dividend_per_unit(previous_close, ratio)
            if held and per_unit:
                cash = state.account.dividend(symbol, per_unit)
                action = CorporateAction(state.next_sequence(), state.now_ns, symbol, "dividend", per_unit, cash)
                state.record_action(action)
            return
        factor = split_ratio(ratio)
        if held:
            state.account.split(symbol, factor)
            state.record_action(CorporateAction(state.next_sequence(), state.now_ns, symbol, "split", factor, ZERO))
        for order in state.live.get(symbol, {}).values():
            order.qty = order.filled_qty + split_quantity(order.remaining_qty, factor)
            order.opening_qty = split_quantity(order.opening_qty, factor)
            order.reserve_price = (order.reserve_price / factor).quantize(PRICE_QUANTUM)
            if order.stop_price is not None:
                order.stop_price = (order.stop_price / factor).quantize(PRICE_QUANTUM)
            if order.limit_price is not None:
                order.limit_price = (order.limit_price / factor).quantize(PRICE_QUANTUM)
            state.touch(order)

    @staticmethod
    def _closable_qty(state: State, order: BookOrder) -> Decimal:
        return max(-order.side.sign * state.account.qty(order.symbol), ZERO)


def _matchable(orders: Mapping[str, BookOrder]) -> list[BookOrder]:
    return [order for order in orders.values() if not order.opens_to_wait and order.state is not OrderState.HELD]


def _levels(orders: Iterable[BookOrder]) -> tuple[float, float]:
    """Return the prices at or below which, and at or above which, one of some resting orders may trade."""
    below, above = -math.inf, math.inf
    for order in orders:
        is_stop = order.stop_price is not None and not order.is_triggered
        price = order.stop_price if is_stop else order.limit_price
        if price is None or order.state is OrderState.HELD:
            continue
        if (order.side is Side.SELL) == is_stop:
            below = max(below, float(price))
        else:
            above = min(above, float(price))
    return below, above


def _worst_first(order: BookOrder) -> tuple[bool, int]:
    is_stop = order.stop_price is not None and not order.is_triggered
    return (not is_stop, order.sequence)
