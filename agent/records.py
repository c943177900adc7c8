"""Writing down what the venue said: orders, legs, fills, positions, exits.

Every function takes the caller's transaction and keeps `TradingState` in step with it. Fills are what the
venue says they are; `filled_qty` only grows; a terminal order stays so unless a late fill proves otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, select, update

from agent.ledger import schema
from agent.ledger.store import Ledger, LedgerError
from agent.orders import Intent, scope_prefix
from agent.trading_state import ArmedExit, KnownOrder, TradingState, intent_of, known_order
from brokers.domain import ExitPlan, Fill, Leg, Order, OrderState
from strategies.strategy import Reason

_LEG_SUFFIX = {".stop": Leg.STOP, ".tp": Leg.TAKE_PROFIT}

# Statements asked at every fill are built once: building one takes longer than its answer.
_ORDER = select(schema.orders).where(schema.orders.c.client_id == bindparam("client_id"))
_EXECUTION = select(schema.fills.c.exec_id).where(
    schema.fills.c.venue == bindparam("venue"), schema.fills.c.exec_id == bindparam("exec_id")
)
_FORESEEN = select(schema.intents.c.reference_price, schema.intents.c.predicted_cost_fraction).where(
    schema.intents.c.intent_id == bindparam("intent_id")
)
_NEWEST_ENTRY = (
    select(schema.intents)
    .where(schema.intents.c.symbol == bindparam("symbol"), schema.intents.c.leg == Leg.ENTRY.value)
    .where(schema.intents.c.side == bindparam("side"))
    .order_by(schema.intents.c.close_time.desc())
    .limit(1)
)
_OUTCOME = update(schema.decisions).where(
    schema.decisions.c.close_time == bindparam("decided_at"), schema.decisions.c.symbol == bindparam("decided_for")
)


class VenueOrder(Protocol):
    """What a venue says of an order, as far as it changes."""

    @property
    def state(self) -> OrderState:
        """Its state."""
        ...

    @property
    def qty(self) -> Decimal:
        """Its quantity, units."""
        ...

    @property
    def filled_qty(self) -> Decimal:
        """What of it has filled, units."""
        ...

    @property
    def stop_price(self) -> Decimal | None:
        """Its stop, quote currency."""
        ...

    @property
    def limit_price(self) -> Decimal | None:
        """Its limit, quote currency."""
        ...


def record_orders(
    connection: Connection, ledger: Ledger, state: TradingState, venue_orders: Iterable[Order], venue_now: datetime
) -> list[str]:
    """Merge venue orders of ours (legs included); returns the client ids of foreign ones."""
    foreign: list[str] = []
    rows: list[dict[str, Any]] = []
    for order in flattened(venue_orders):
        known = state.orders.get(order.client_id) or _stored(connection, order.client_id)
        if known is None:
            known = _adopted(connection, ledger, state, order)
        if known is None:
            foreign.append(order.client_id)
            continue
        if known.state.is_terminal and order.filled_qty <= known.filled_qty:
            continue
        if known.state.is_terminal:
            detail = f"order {order.client_id} was {known.state}, now filled {order.filled_qty}"
            ledger.incident(connection, venue_now, "late_fill", detail, order.symbol)
        if order.client_id in state.orders and not differs(known, order):
            continue
        take_news(known, order)
        rows.append(_row(known, order))
        if known.state.is_terminal:
            state.orders.pop(order.client_id, None)
        else:
            state.orders[order.client_id] = known
    ledger.upsert(connection, schema.orders, rows)
    return foreign


def take_news(known: KnownOrder, order: VenueOrder) -> None:
    """Bring what is known of an order in step with what the venue says of it."""
    known.state = order.state
    known.filled_qty = max(known.filled_qty, order.filled_qty)
    known.qty = order.qty
    known.stop_price, known.limit_price = order.stop_price, order.limit_price


def differs(known: KnownOrder, order: VenueOrder) -> bool:
    """Tell whether the venue says anything of an order that is not known of it."""
    return (
        known.state is not order.state
        or known.filled_qty != order.filled_qty
        or known.qty != order.qty
        or known.stop_price != order.stop_price
        or known.limit_price != order.limit_price
    )


def record_fills(
    connection: Connection, ledger: Ledger, state: TradingState, venue: str, venue_fills: Sequence[Fill]
) -> list[Fill]:
    """Book new executions of ours, oldest first; returns those that were new and ours.

    A foreign execution moves the mark of what has been read, and leaves an incident.
    """
    booked: list[Fill] = []
    for fill in venue_fills:
        if _already(connection, venue, fill.exec_id):
            continue
        known = state.orders.get(fill.client_id) or _stored(connection, fill.client_id)
        if known is None:
            detail = f"execution {fill.exec_id} of {fill.qty} belongs to order {fill.client_id}, which is not ours"
            ledger.incident(connection, fill.at, "foreign_fill", detail, fill.symbol)
            continue
        ledger.insert_new(connection, schema.fills, [_fill_row(venue, fill, known)])
        ledger.insert_new(connection, schema.costs, [_cost_row(connection, venue, fill, known)])
        state.book.fill(fill.symbol, fill.side, fill.qty, fill.price, fill.fee)
        booked.append(fill)
    if venue_fills:
        state.last_exec_id = venue_fills[-1].exec_id
        ledger.set_state(connection, "last_execution", {"exec_id": state.last_exec_id})
    for symbol in dict.fromkeys(fill.symbol for fill in booked):
        record_position(connection, ledger, state, symbol, booked[-1].at)
    return booked


def record_position(
    connection: Connection, ledger: Ledger, state: TradingState, symbol: str, venue_now: datetime
) -> None:
    """Write the symbol's own count of its position."""
    holding = state.book.holdings.get(symbol)
    row = {
        "symbol": symbol,
        "qty": Decimal(0) if holding is None else holding.qty,
        "avg_cost": Decimal(0) if holding is None else holding.avg_cost,
        "updated_at": venue_now,
    }
    ledger.upsert(connection, schema.positions, [row])


def record_outcome(connection: Connection, intent: Intent, reason: Reason) -> None:
    """Write what became of a decision; exits that the daemon fires itself keep the outcome that says so."""
    if intent.leg in (Leg.STOP, Leg.TAKE_PROFIT):
        return
    decision = {"decided_at": intent.close_time, "decided_for": intent.symbol}
    connection.execute(_OUTCOME, {**decision, "outcome": reason.value})


def arm_exits(
    connection: Connection, ledger: Ledger, state: TradingState, venue_now: datetime, *, only: str | None = None
) -> list[str]:
    """Bring the exits in step with positions: every position has a plan, every plan a mode.

    Args:
        connection: The caller's transaction.
        ledger: Where exits are kept.
        state: Changed in place.
        venue_now: Venue time.
        only: The one symbol of which something has changed; None for all.

    Returns:
        The symbols that hold a position without any plan (the caller must give them one).
    """
    ended, changed, naked = step_exits(
        state, lambda symbol: _planned_exit(connection, state, symbol, venue_now), only=only
    )
    for symbol in ended:
        connection.execute(schema.exits.delete().where(schema.exits.c.symbol == symbol))
    for armed in changed:
        write_exit(connection, ledger, state, armed)
    return naked


def step_exits(
    state: TradingState, planned: Callable[[str], ArmedExit | None], *, only: str | None = None
) -> tuple[list[str], list[ArmedExit], list[str]]:
    """Bring the exits that are known in step with positions.

    Args:
        state: Positions, orders and exits; changed in place.
        planned: Gives the exits that the newest entry on the side of a symbol's position was planned with.
        only: The one symbol of which something has changed; None for all.

    Returns:
        The symbols whose exits have ended, the exits that are new or of another mode, and the symbols that hold a
        position without any plan.
    """
    holdings = state.book.holdings
    ended: list[str] = []
    changed: list[ArmedExit] = []
    naked: list[str] = []
    if not state.exits and not holdings:
        return ended, changed, naked
    if state.exits:
        known = list(state.exits) if only is None else {only} & state.exits.keys()
        ended = [symbol for symbol in known if not state.book.qty(symbol)]
        for symbol in ended:
            del state.exits[symbol]
    for symbol in list(holdings) if only is None else {only} & holdings.keys():
        holding = holdings[symbol]
        armed = state.exits.get(symbol)
        if armed is None or not _closes(armed, holding.qty):
            # none yet, or a reversal between two looks left those of the other side: the entry's own plan counts
            armed = planned(symbol)
        if armed is None or not _closes(armed, holding.qty):
            naked.append(symbol)
            continue
        mode = protection_mode(state, armed)
        if armed is state.exits.get(symbol) and mode == armed.mode:
            continue
        armed.mode = mode
        state.exits[symbol] = armed
        changed.append(armed)
    return ended, changed, naked


def write_exit(connection: Connection, ledger: Ledger, state: TradingState, armed: ArmedExit) -> None:
    """Write one position's exits."""
    state.exits[armed.symbol] = armed
    row = {
        "symbol": armed.symbol,
        "intent_id": armed.intent_id,
        "side": armed.side.value,
        "stop": armed.plan.stop,
        "take_profit": armed.plan.take_profit,
        "max_loss_usd": armed.plan.max_loss_usd,
        "mode": armed.mode,
        "armed_at": armed.armed_at,
    }
    ledger.upsert(connection, schema.exits, [row])


def split_plan(plan: ExitPlan, ratio: Decimal) -> ExitPlan:
    """Return exits in the prices after a split."""
    return replace(
        plan,
        stop=None if plan.stop is None else plan.stop / ratio,
        take_profit=None if plan.take_profit is None else plan.take_profit / ratio,
    )


def protection_mode(state: TradingState, armed: ArmedExit) -> str:
    """Tell whether the venue holds all of a plan (`venue`), or the daemon must watch it (`local`)."""
    plan = armed.plan
    if plan.stop is None:
        return "local"
    held = abs(state.book.qty(armed.symbol))
    is_covered = _covered_qty(state, armed, Leg.STOP) >= held
    if is_covered and plan.take_profit is not None:
        is_covered = _covered_qty(state, armed, Leg.TAKE_PROFIT) >= held
    return "venue" if is_covered else "local"


def _covered_qty(state: TradingState, armed: ArmedExit, leg: Leg) -> Decimal:
    """Return what the venue's legs would close: a leg that waits for its own entry protects nothing yet."""
    return sum(
        (
            order.qty - order.filled_qty
            for order in state.working_orders(armed.symbol)
            if order.leg is leg
            and order.side is armed.side
            and order.parent_client_id is not None
            and order.state is not OrderState.HELD
        ),
        Decimal(0),
    )


def _closes(armed: ArmedExit, qty: Decimal) -> bool:
    """Tell whether exits are on the side that closes a position."""
    return (armed.side.sign > 0) != (qty > 0)


def _planned_exit(connection: Connection, state: TradingState, symbol: str, venue_now: datetime) -> ArmedExit | None:
    held_long = state.book.qty(symbol) > 0
    row = connection.execute(_NEWEST_ENTRY, {"symbol": symbol, "side": "buy" if held_long else "sell"}).first()
    return None if row is None else exit_of(intent_of(row), venue_now)


def exit_of(entry: Intent, venue_now: datetime) -> ArmedExit | None:
    """Return the exits of a position that an entry has opened, of no mode yet; None where it was planned with none."""
    if entry.exits is None:
        return None
    return ArmedExit(
        symbol=entry.symbol,
        intent_id=entry.intent_id,
        side=entry.side.opposite,
        plan=entry.exits,
        mode="",
        armed_at=venue_now,
    )


def flattened(venue_orders: Iterable[Order]) -> Iterable[Order]:
    """Give each order, followed by its legs."""
    for order in venue_orders:
        yield order
        yield from order.legs


def is_known(ledger: Ledger, state: TradingState, client_id: str) -> bool:
    """Tell whether an order is in the ledger."""
    if client_id in state.orders:
        return True
    return ledger.first(select(schema.orders.c.client_id).where(schema.orders.c.client_id == client_id)) is not None


def _stored(connection: Connection, client_id: str) -> KnownOrder | None:
    row = connection.execute(_ORDER, {"client_id": client_id}).first()
    return None if row is None else known_order(row)


def _adopted(connection: Connection, ledger: Ledger, state: TradingState, order: Order) -> KnownOrder | None:
    """Take over an order of this ledger's account scope that is not in it (a leg, or the ledger is new); else None."""
    parent_id = order.parent_client_id
    parent = None
    if parent_id is not None:
        parent = state.orders.get(parent_id) or _stored(connection, parent_id)
    if parent is None and not order.client_id.startswith(_own_prefix(ledger)):
        return None
    leg = order.leg
    intent_id, attempt = "", 0
    if parent is not None:
        intent_id, attempt = parent.intent_id, parent.attempt
    else:
        stem, _, number = order.client_id.partition(".")[0].rpartition("-")
        intent_id, attempt = stem, int(number) if number.isdigit() else 0
        leg = next((leg for suffix, leg in _LEG_SUFFIX.items() if order.client_id.endswith(suffix)), leg)
    return KnownOrder(
        client_id=order.client_id,
        intent_id=intent_id,
        attempt=attempt,
        parent_client_id=parent_id,
        symbol=order.symbol,
        side=order.side,
        leg=leg,
        qty=order.qty,
        filled_qty=Decimal(0),
        state=OrderState.SUBMITTING,
        stop_price=order.stop_price,
        limit_price=order.limit_price,
    )


def _own_prefix(ledger: Ledger) -> str:
    scope = ledger.get_state("account_scope")
    if scope is None:
        raise LedgerError("the ledger names no account_scope: no order can be told to be its own; start the daemon")
    return scope_prefix(scope["name"])


def _row(known: KnownOrder, order: Order) -> dict[str, Any]:
    return {
        "client_id": known.client_id,
        "intent_id": known.intent_id,
        "attempt": known.attempt,
        "parent_client_id": known.parent_client_id,
        "venue_id": order.venue_id,
        "symbol": known.symbol,
        "side": known.side.value,
        "leg": known.leg.value,
        "type": order.type.value,
        "qty": known.qty,
        "limit_price": known.limit_price,
        "stop_price": known.stop_price,
        "state": known.state.value,
        "filled_qty": known.filled_qty,
        "avg_price": order.avg_price,
        "submitted_at": order.submitted_at,
        "updated_at": order.updated_at,
        "reason": order.reason,
    }


def _already(connection: Connection, venue: str, exec_id: str) -> bool:
    return connection.execute(_EXECUTION, {"venue": venue, "exec_id": exec_id}).first() is not None


def _fill_row(venue: str, fill: Fill, known: KnownOrder) -> dict[str, Any]:
    return {
        "venue": venue,
        "exec_id": fill.exec_id,
        "client_id": fill.client_id,
        "symbol": fill.symbol,
        "side": fill.side.value,
        "leg": known.leg.value,
        "qty": fill.qty,
        "price": fill.price,
        "fee": fill.fee,
        "at": fill.at,
    }


def _cost_row(connection: Connection, venue: str, fill: Fill, known: KnownOrder) -> dict[str, Any]:
    intent = connection.execute(_FORESEEN, {"intent_id": known.intent_id}).first()
    foreseen = None if intent is None else (intent.reference_price, intent.predicted_cost_fraction)
    return {"venue": venue, "exec_id": fill.exec_id, **fill_cost(fill, known.leg, foreseen)}


def fill_cost(fill: Fill, leg: Leg, foreseen: tuple[float, float] | None) -> dict[str, float | None]:
    """Return the predicted against the realised cost of an execution, per side, as fractions of notional.

    Realised: how much worse than the venue's own reference price (or, where it names none, than the
    decision price) the fill was, plus its fee.

    Args:
        fill: The execution.
        leg: What its order was for.
        foreseen: Reference price and predicted cost of the intent behind it; None where there is none.
    """
    decision_price = None if foreseen is None or leg in (Leg.STOP, Leg.TAKE_PROFIT) else foreseen[0]
    quote = None if fill.mark_price is None else float(fill.mark_price)
    base = quote if quote is not None else decision_price
    realised = None
    if base is not None:
        slipped = fill.side.sign * (float(fill.price) / base - 1.0)
        realised = slipped + float(fill.fee) / float(fill.qty * fill.price)
    return {
        "decision_price": decision_price,
        "quote_price": quote,
        "predicted_fraction": None if foreseen is None else foreseen[1],
        "realised_fraction": realised,
    }
