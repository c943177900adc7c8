"""The matching engine: one account, many symbols, orders filled against recorded bars in venue time.

Venue time moves only on `advance`. Its events are the opens and closes of bars (`feed.Timeline`): at an open,
corporate actions come first, then resting orders that the open price already triggers, then market orders; at a
close, stops and limits that the bar's range reached, stops first, because the order of prices inside a bar is not
known and the worse must be assumed. Legs armed by a fill at a bar's open may trigger within that bar; legs armed
within a bar wait for the next open.

Nothing here suspends, and nothing reads a wall clock. All money moves through `brokers.account.AccountBook`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from brokers.account import AccountBook
from brokers.costs import PRICE_QUANTUM, CostModel
from brokers.domain import (
    Account,
    Bar,
    BrokerError,
    DuplicateClientIdError,
    Fill,
    Instrument,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OrderType,
    Position,
    Quote,
    TimeInForce,
)
from brokers.series import BarSeries, Int, from_ns, to_ns
from brokers.simulated import money, rules
from brokers.simulated.books import Books, BooksError
from brokers.simulated.feed import Feed
from brokers.simulated.floor import Floor
from brokers.simulated.market import Market
from brokers.simulated.orders import BookOrder, RefusedError, RejectCode
from brokers.simulated.settings import EngineSettings
from brokers.simulated.state import CorporateAction, Event, State

__all__ = ["Advance", "ClockConflictError", "EngineSettings", "MatchingEngine"]

_LEG_SUFFIXES = ("stop", "tp")
"""Client ids of bracket legs are the entry's, a dot, and one of these."""


_UUID_4 = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""What a hexadecimal digit becomes that holds the variant of a UUID 4 (RFC 9562)."""


def _leg_ids(request: OrderRequest) -> list[str]:
    return [f"{request.client_id}.{suffix}" for suffix in _LEG_SUFFIXES]


class ClockConflictError(BrokerError):
    """A client believes in a time that the exchange has not reached: it speaks to the wrong books."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The answer to one advance.

    Args:
        now: Venue time.
        event: What was met on the way to `now`.
        repeated: True where `now` had been reached before the question.
        feed_ended: True where no event is left.
        orders_changed: Client ids of the orders that changed on the way to `now`.
    """

    now: datetime
    event: Event
    repeated: bool
    feed_ended: bool
    orders_changed: tuple[str, ...]


class MatchingEngine:
    """See the module.

    Args:
        feed: Bars, calendar and where venue time starts.
        costs: The project's cost model.
        settings: Seed, account and rule set.
        books: Where state is kept; opened here.
        instruments: Rules of every symbol of the feed.

    Raises:
        BooksError: The books cannot be used, or belong to something else.
        FeedError: The bars are too short for the decision deadline.
        ValueError: A symbol of the feed has no instrument.
    """

    def __init__(
        self,
        feed: Feed,
        costs: CostModel,
        settings: EngineSettings,
        books: Books,
        instruments: Mapping[str, Instrument],
    ) -> None:
        missing = [symbol for symbol in feed.symbols if symbol not in instruments]
        if missing:
            msg = f"no instrument for {', '.join(missing)}: give the rules of every symbol of the feed"
            raise ValueError(msg)
        self.feed = feed
        self.costs = costs
        self.settings = settings
        self.instruments = {symbol: instruments[symbol] for symbol in feed.symbols}
        self._floor = Floor(feed, costs, settings, self.instruments)
        self._times_ns = self._floor.timeline.times_ns
        self._market = Market(feed, self._floor.timeline)
        self._books = books
        self._identity = self._describe() if books.keeps else {}
        self._failure: BooksError | None = None
        self._now = (0, from_ns(0))
        self._last_worth: money.Worth | None = None
        self._state = self._load()

    # --- time -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """Venue time."""
        now_ns = self._usable().now_ns
        if now_ns != self._now[0]:
            self._now = (now_ns, from_ns(now_ns))
        return self._now[1]

    @property
    def last_event(self) -> Event:
        """What the last advance met."""
        return self._usable().event

    @property
    def feed_ended(self) -> bool:
        """True where no event is left."""
        return self._usable().cursor >= len(self._times_ns)

    def opens_ns(self, symbol: str) -> Int:
        """Return when each bar of a symbol opens for trading, ns since the epoch."""
        return self._floor.timeline.opens_ns[self.feed.symbols.index(symbol)]

    def next_event_at(self) -> datetime | None:
        """Return when the next event happens; None at the feed's end."""
        cursor = self._usable().cursor
        return None if self.feed_ended else from_ns(self._times_ns[cursor])

    def advance(self, since: datetime, idle_until: datetime) -> Advance:
        """Move to the next event, at most to `idle_until`; idempotent in `since`.

        Args:
            since: The venue time that the client knows. Where the exchange is further already, nothing moves.
            idle_until: Where to stop if no event comes first.

        Raises:
            ClockConflictError: The exchange has not reached `since`.
            BooksError: The step could not be committed; it did not happen.
        """
        state = self._usable()
        since_ns = to_ns(since)
        if since_ns != state.now_ns:
            if since_ns > state.now_ns:
                msg = (
                    f"the exchange stands at {from_ns(state.now_ns).isoformat()}, before the client's "
                    f"{since.isoformat()}: the client's ledger belongs to other books; use the books it was made with"
                )
                raise ClockConflictError(msg)
            return self._answer(state, repeated=True)
        idle_ns = to_ns(idle_until)
        if idle_ns <= since_ns:
            return Advance(since, Event.IDLE, repeated=False, feed_ended=self.feed_ended, orders_changed=())
        self._pass_event(state, idle_ns)
        return self._answer(state, repeated=False)

    @property
    def now_ns(self) -> int:
        """Venue time, ns since the epoch."""
        return self._usable().now_ns

    def pass_event(self, idle_ns: int) -> tuple[str, ...]:
        """Move to the next event, at most to `idle_ns`; return the client ids that changed.

        `advance` for who shares this process and its time.
        """
        state = self._usable()
        self._pass_event(state, idle_ns)
        return state.last_changed

    def run_until(self, until: datetime) -> tuple[str, ...]:
        """Pass every event up to `until` and stop there, in one transaction; return the client ids that changed."""
        return self.pass_events(to_ns(until))

    def pass_events(self, until_ns: int) -> tuple[str, ...]:
        """Do what `run_until` does.

        Stretches cost nothing in which no price reaches a resting order and no holding meets a corporate action.
        """
        state = self._usable()
        state.changed.clear()
        while state.now_ns < until_ns and not self._floor.skip(state, until_ns):
            self._step(state, until_ns)
        state.last_changed = tuple(state.changed)
        self._commit(state)
        return state.last_changed

    # --- orders -----------------------------------------------------------------------------------------------

    def submit(self, request: OrderRequest) -> Order:
        """Take one order, with its bracket legs, into the books.

        Raises:
            DuplicateClientIdError: The client id is known.
            RefusedError: A rule of `rules` is broken; nothing of the order exists.
            BooksError: The order could not be committed; look its client id up.
        """
        return self._snapshot(self._usable(), self.accept(request))

    def accept(self, request: OrderRequest) -> BookOrder:
        """Do what `submit` does; return the order as the exchange keeps it, to be read, not changed."""
        state = self._usable()
        is_known = request.client_id in state.orders
        if is_known or (request.is_bracket and any(name in state.orders for name in _leg_ids(request))):
            raise DuplicateClientIdError(RejectCode.DUPLICATE_CLIENT_ID, "client_order_id must be unique")
        instrument = self.instruments.get(request.symbol)
        if instrument is None:
            msg = f"asset {request.symbol!r} not found: the exchange plays {', '.join(self.feed.symbols)}"
            raise RefusedError(RejectCode.UNKNOWN_SYMBOL, msg)
        admission = rules.admit(request, instrument, self._standing(state, request.symbol), self.settings)
        order = self._new_order(state, request)
        order.opening_qty = admission.opening_qty
        order.reserve_price = admission.reserve_price
        legs = self._new_legs(state, request, order) if request.is_bracket else []
        order.leg_ids = tuple([leg.client_id for leg in legs])
        for new in (order, *legs):
            state.add(new)
        self._commit(state)
        return order

    def cancel(self, client_id: str) -> Order | None:
        """Cancel a working order and return it; a terminal one stays as it is, an unknown id gives None."""
        state = self._usable()
        order = state.orders.get(client_id)
        if order is None:
            return None
        if not order.state.is_terminal:
            self._floor.end(state, order, OrderState.CANCELED, "canceled")
            if order.parent_client_id is not None and self.settings.rule_set == "alpaca":
                self._floor.end_siblings(state, order, "canceled")
            self._commit(state)
        return self._snapshot(state, order)

    def order(self, client_id: str) -> Order | None:
        """Return one order with its legs; None where the client id is unknown."""
        state = self._usable()
        order = state.orders.get(client_id)
        return None if order is None else self._snapshot(state, order)

    def order_by_venue_id(self, venue_id: str) -> Order | None:
        """Return one order by the exchange's id; None where it is unknown."""
        client_id = self._usable().venue_ids.get(venue_id)
        return None if client_id is None else self.order(client_id)

    def open_orders(self) -> list[Order]:
        """Return every order that may still fill, flat, held legs included, oldest first."""
        state = self._usable()
        return [self._snapshot(state, order) for order in self.live_orders()] if state.live else []

    def orders_since(self, since: datetime) -> list[Order]:
        """Return orders of any state updated at or after a venue time, flat, oldest first."""
        state = self._usable()
        return [self._snapshot(state, order) for order in state.updated_since(to_ns(since))]

    def book(self) -> Mapping[str, BookOrder]:
        """Return every order as the exchange keeps it by client id, oldest first; to be read, not changed."""
        return self._usable().orders

    def book_order_by_venue_id(self, venue_id: str) -> BookOrder | None:
        """Return one order as the exchange keeps it; None where the id is unknown."""
        state = self._usable()
        client_id = state.venue_ids.get(venue_id)
        return None if client_id is None else state.orders[client_id]

    def only_legs_rest(self) -> bool:
        """Tell whether nothing works but legs of brackets that may trade."""
        live = self._usable().live
        return not live or all(
            order.parent_client_id is not None and not order.opens_to_wait
            for orders in live.values()
            for order in orders.values()
        )

    def live_orders(self) -> list[BookOrder]:
        """Return the orders that may still fill, as the exchange keeps them, oldest first."""
        found = [order for orders in self._usable().live.values() for order in orders.values()]
        return sorted(found, key=lambda order: order.sequence)

    def book_orders_since(self, since: datetime) -> list[BookOrder]:
        """Return the orders updated at or after a venue time, as the exchange keeps them, oldest first."""
        return self._usable().updated_since(to_ns(since))

    def free_client_id(self) -> str:
        """Return a client id for an order that came without one."""
        state = self._usable()
        number = state.sequence + 1
        while f"exchange-{number:012d}" in state.orders:  # somebody's own id
            number += 1
        return f"exchange-{number:012d}"

    def fills(self, after: str | None = None) -> list[Fill]:
        """Return executions after an execution id, oldest first."""
        return self._usable().fills_after(after)

    def cumulative_qty(self, exec_id: str) -> Decimal:
        """Return an order's filled quantity after one of its executions."""
        return self._usable().cumulative_qty(exec_id)

    def corporate_actions(self) -> Sequence[CorporateAction]:
        """Return the splits and dividends that moved a holding, oldest first."""
        return tuple(self._usable().actions)

    # --- money ------------------------------------------------------------------------------------------------

    def moves(self) -> int:
        """Return how many fills, splits and dividends have moved the account so far."""
        state = self._usable()
        return len(state.fills) + len(state.actions)

    def account(self) -> Account:
        """Return equity at the last completed closes (in units after a split that has opened), cash, buying power."""
        state = self._usable()
        worth = self._worth(state)
        return Account(worth.equity, state.account.cash, worth.buying_power, self.now)

    def account_book(self) -> AccountBook:
        """Return the account's book; to be read, not changed."""
        return self._usable().account

    def positions(self) -> dict[str, Position]:
        """Return open positions by symbol."""
        state = self._usable()
        found: dict[str, Position] = {}
        if not state.account.holdings:
            return found
        marks = self._worth(state).marks
        for symbol, holding in sorted(state.account.holdings.items()):
            free = money.available_qty(state, symbol)
            found[symbol] = Position(
                symbol=symbol,
                qty=holding.qty,
                qty_available=free if holding.qty > 0 else -free,
                avg_cost=holding.avg_cost.quantize(PRICE_QUANTUM),
                mark=marks[symbol],
            )
        return found

    # --- data -------------------------------------------------------------------------------------------------

    def bars(self, symbol: str, start: datetime, end: datetime) -> list[Bar]:
        """Return completed bars with start <= bar.start < end, oldest first."""
        return self._market.bars(symbol, to_ns(start), to_ns(end), self._usable().now_ns)

    def completed(self, symbol: str, start: datetime, end: datetime) -> BarSeries:
        """Return completed bars with start <= bar.start < end as columns."""
        return self._market.completed(symbol, to_ns(start), to_ns(end), self._usable().now_ns)

    def previous_close(self, symbol: str) -> Decimal | None:
        """Return the close before the last completed one; None where there is none."""
        return self._market.previous_close(symbol, self._usable().now_ns)

    def quote(self, symbol: str) -> Quote | None:
        """Return last close minus and plus the half-spread; None before the first close."""
        return self._market.quote(symbol, self._usable().now_ns, self.costs)

    # --- books ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the books."""
        self._books.close()

    def _describe(self) -> dict[str, str]:
        """Return what books belong to: everything that changes how the same orders would fill."""
        instruments = [repr(self.instruments[symbol]) for symbol in self.feed.symbols]
        return {
            "seed": str(self.settings.seed),
            "feed": self.feed.fingerprint(),
            "symbols": json.dumps(self.feed.symbols),
            "period_s": f"{self.feed.period.total_seconds():g}",
            "begin": self.feed.start.isoformat(),
            "costs": repr(self.costs),
            "settings": repr(self.settings),
            "instruments": hashlib.sha256(json.dumps(instruments).encode()).hexdigest(),
        }

    def _load(self) -> State:
        saved = self._books.open(self._identity)
        self._market.forget()
        self._last_worth = None
        account = AccountBook(cash=self.settings.initial_cash)
        if saved is not None:
            return State.restore(saved, account)
        begin_ns = to_ns(self.feed.start)
        return State(
            account=account,
            now_ns=begin_ns,
            cursor=self._floor.timeline.after(begin_ns),
        )

    def _usable(self) -> State:
        """Return the state; after a failed step or commit, first go back to what the books really hold.

        Raises:
            BooksError: There are no books to go back to.
        """
        if self._failure is not None:
            if not self._books.keeps:
                raise self._failure
            self._state = self._load()
            self._failure = None
        return self._state

    def _pass_event(self, state: State, idle_ns: int) -> None:
        state.changed.clear()
        self._step(state, idle_ns)
        state.last_changed = tuple(state.changed)
        self._commit(state)

    def _step(self, state: State, idle_ns: int) -> None:
        """Make sure that nothing continues from a step that failed half-way: part of it has moved the state."""
        since_ns = state.now_ns
        try:
            state.event = self._floor.step(state, idle_ns)
        except Exception as error:
            self._failure = BooksError(
                f"the step from {from_ns(since_ns).isoformat()} failed ({error!r}); it did not happen: "
                "check the bars of that time, the exchange cannot pass it"
            )
            raise self._failure from error

    def _commit(self, state: State) -> None:
        if self._books.keeps:
            try:
                self._books.commit(state.changes())
            except BooksError as failure:
                self._failure = failure
                raise
        state.committed()

    def _answer(self, state: State, *, repeated: bool) -> Advance:
        return Advance(
            now=from_ns(state.now_ns),
            event=state.event,
            repeated=repeated,
            feed_ended=state.cursor >= len(self._times_ns),
            orders_changed=state.last_changed,
        )

    def _standing(self, state: State, symbol: str) -> rules.Standing:
        price = self._market.last_price(symbol, state.now_ns)
        return money.standing(state, price, symbol, self._worth(state).buying_power)

    def _worth(self, state: State) -> money.Worth:
        found = self._last_worth = money.worth(state, self._market, self.settings.leverage, self._last_worth)
        return found

    def _new_order(self, state: State, request: OrderRequest) -> BookOrder:
        expires_ns = None
        if request.tif is TimeInForce.DAY:
            expires_ns = to_ns(self.feed.calendar.session_close_after(from_ns(state.now_ns)))
        return BookOrder(
            client_id=request.client_id,
            venue_id=self._venue_id(request.client_id),
            sequence=state.next_sequence(),
            symbol=request.symbol,
            side=request.side,
            qty=request.qty,
            type=request.type,
            tif=request.tif,
            leg=request.leg,
            state=OrderState.ACCEPTED,
            submitted_ns=state.now_ns,
            updated_ns=state.now_ns,
            limit_price=request.limit_price,
            stop_price=request.stop_price,
            expires_ns=expires_ns,
            opens_to_wait=self.costs.latency_bars,
        )

    def _new_legs(self, state: State, request: OrderRequest, entry: BookOrder) -> list[BookOrder]:
        legs: list[BookOrder] = []
        for leg, suffix, kind, price in (
            (Leg.STOP, _LEG_SUFFIXES[0], OrderType.STOP, request.stop_loss),
            (Leg.TAKE_PROFIT, _LEG_SUFFIXES[1], OrderType.LIMIT, request.take_profit),
        ):
            if price is None:
                continue
            client_id = f"{request.client_id}.{suffix}"
            legs.append(
                BookOrder(
                    client_id=client_id,
                    venue_id=self._venue_id(client_id),
                    sequence=state.next_sequence(),
                    symbol=request.symbol,
                    side=request.side.opposite,
                    qty=request.qty,
                    type=kind,
                    tif=request.tif,
                    leg=leg,
                    state=OrderState.HELD,
                    submitted_ns=state.now_ns,
                    updated_ns=state.now_ns,
                    limit_price=price if kind is OrderType.LIMIT else None,
                    stop_price=price if kind is OrderType.STOP else None,
                    parent_client_id=request.client_id,
                    expires_ns=entry.expires_ns,
                )
            )
        return legs

    def _venue_id(self, client_id: str) -> str:
        digest = hashlib.blake2b(f"{self.settings.seed}|{client_id}".encode(), digest_size=16).digest()
        # str(uuid.UUID(bytes=digest, version=4)), which takes longer than everything else of an order
        text = digest.hex()
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_UUID_4[text[16]]}{text[17:20]}-{text[20:]}"

    def _snapshot(self, state: State, order: BookOrder) -> Order:
        if not order.leg_ids:
            return order.snapshot()
        return order.snapshot(tuple(state.orders[client_id].snapshot() for client_id in order.leg_ids))
