"""What the daemon knows, as one object: read from the ledger at the start, changed only with its commits.

Start-up and recovery are one path: `TradingState.load` gives the same state after a clean stop and after a
kill, because nothing is kept here that the ledger does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, ValuesView
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Row, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.orders import Intent, IntentState
from brokers.account import AccountBook, Holding
from brokers.domain import ExitPlan, Leg, OrderState, Side


@dataclass(slots=True)
class KnownOrder:
    """One order of ours, or a bracket leg of one, as the ledger holds it."""

    client_id: str
    intent_id: str
    attempt: int
    parent_client_id: str | None
    symbol: str
    side: Side
    leg: Leg
    qty: Decimal
    filled_qty: Decimal
    state: OrderState
    stop_price: Decimal | None
    limit_price: Decimal | None


_NO_ORDERS: dict[str, KnownOrder] = {}


class KnownOrders(MutableMapping[str, KnownOrder]):
    """Orders by client id, oldest first, and by symbol: a close asks for those of each symbol several times."""

    def __init__(self) -> None:
        self._by_id: dict[str, KnownOrder] = {}
        self._by_symbol: dict[str, dict[str, KnownOrder]] = {}

    def of(self, symbol: str) -> ValuesView[KnownOrder]:
        """Return the orders of one symbol, oldest first."""
        return self._by_symbol.get(symbol, _NO_ORDERS).values()

    def values(self) -> ValuesView[KnownOrder]:
        """Return every order, oldest first."""
        return self._by_id.values()

    def __getitem__(self, client_id: str) -> KnownOrder:
        return self._by_id[client_id]

    def __setitem__(self, client_id: str, order: KnownOrder) -> None:
        self._by_id[client_id] = order
        self._by_symbol.setdefault(order.symbol, {})[client_id] = order

    def __delitem__(self, client_id: str) -> None:
        symbol = self._by_id.pop(client_id).symbol
        of_symbol = self._by_symbol[symbol]
        del of_symbol[client_id]
        if not of_symbol:
            del self._by_symbol[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"KnownOrders({list(self._by_id)})"


@dataclass(slots=True)
class ArmedExit:
    """The protective exits of one open position: at the venue, or armed locally."""

    symbol: str
    intent_id: str
    side: Side
    plan: ExitPlan
    mode: str
    armed_at: datetime


@dataclass(slots=True)
class TradingState:
    """Everything that a cycle needs to remember.

    `orders` holds the orders that are not terminal; `intents` those that are still planned; `resumed` counts the
    times that `tandem resume` was heeded.
    """

    book: AccountBook = field(default_factory=lambda: AccountBook(cash=Decimal(0)))
    orders: KnownOrders = field(default_factory=KnownOrders)
    intents: dict[str, Intent] = field(default_factory=dict)
    exits: dict[str, ArmedExit] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    paused: dict[str, str] = field(default_factory=dict)
    last_exec_id: str | None = None
    last_close: datetime | None = None
    last_close_done: bool = True
    peak_equity: Decimal = Decimal(0)
    day_start_equity: Decimal = Decimal(0)
    last_equity: Decimal | None = None
    day: str = ""
    resumed: int = 0

    @classmethod
    def load(cls, ledger: Ledger) -> TradingState:
        """Read the state that the last commit left."""
        loaded = cls()
        # first: a `tandem resume` that comes while the rest is read is then seen as new at the first close
        loaded.resumed = int((ledger.get_state("resumed") or {}).get("count", 0))
        terminal = [state.value for state in OrderState if state.is_terminal]
        for row in ledger.rows(select(schema.orders).where(schema.orders.c.state.not_in(terminal))):
            loaded.orders[row.client_id] = known_order(row)
        planned = select(schema.intents).where(schema.intents.c.state == IntentState.PLANNED.value)
        for row in ledger.rows(planned.order_by(schema.intents.c.close_time, schema.intents.c.sequence)):
            loaded.intents[row.intent_id] = intent_of(row)
        for row in ledger.rows(select(schema.positions)):
            if row.qty:
                loaded.book.holdings[row.symbol] = Holding(qty=row.qty, avg_cost=row.avg_cost)
        for row in ledger.rows(select(schema.exits)):
            loaded.exits[row.symbol] = ArmedExit(
                symbol=row.symbol,
                intent_id=row.intent_id,
                side=Side(row.side),
                plan=ExitPlan(stop=row.stop, take_profit=row.take_profit, max_loss_usd=row.max_loss_usd),
                mode=row.mode,
                armed_at=row.armed_at,
            )
        loaded.rejects = {str(k): int(v) for k, v in (ledger.get_state("rejects") or {}).items()}
        loaded.paused = {str(k): str(v) for k, v in (ledger.get_state("paused") or {}).items()}
        executions = ledger.get_state("last_execution")
        loaded.last_exec_id = None if executions is None else executions["exec_id"]
        cycle = ledger.last_cycle()
        if cycle is not None:
            loaded.last_close = cycle.close_time
            loaded.last_close_done = cycle.status == "done"
        equity = ledger.last_equity()
        if equity is not None:
            resumed = ledger.get_state("resumed")
            if resumed is None or resumed["at"] < schema.iso(equity.close_time):
                loaded.peak_equity = equity.peak  # else the drawdown is counted anew, as `tandem resume` promised
            loaded.last_equity = equity.equity
            loaded.day_start_equity = equity.day_start
            loaded.day = equity.close_time.date().isoformat()
        return loaded

    def working_orders(self, symbol: str) -> list[KnownOrder]:
        """Return the symbol's orders that may still fill."""
        orders = self.orders.of(symbol)
        return [order for order in orders if not order.state.is_terminal] if orders else []

    def working_entry(self, symbol: str) -> KnownOrder | None:
        """Return the symbol's entry that may still fill."""
        for order in self.orders.of(symbol):
            if order.leg is Leg.ENTRY and not order.state.is_terminal:
                return order
        return None


def known_order(row: Row[tuple[object, ...]]) -> KnownOrder:
    """Build from a row of the orders table."""
    return KnownOrder(
        client_id=row.client_id,
        intent_id=row.intent_id,
        attempt=row.attempt,
        parent_client_id=row.parent_client_id,
        symbol=row.symbol,
        side=Side(row.side),
        leg=Leg(row.leg),
        qty=row.qty,
        filled_qty=row.filled_qty,
        state=OrderState(row.state),
        stop_price=row.stop_price,
        limit_price=row.limit_price,
    )


def intent_of(row: Row[tuple[object, ...]]) -> Intent:
    """Build from a row of the intents table."""
    exits = None
    if row.leg == Leg.ENTRY.value and (row.stop is not None or row.max_loss_usd is not None):
        exits = ExitPlan(stop=row.stop, take_profit=row.take_profit, max_loss_usd=row.max_loss_usd)
    return Intent(
        intent_id=row.intent_id,
        sequence=row.sequence,
        close_time=row.close_time,
        symbol=row.symbol,
        side=Side(row.side),
        leg=Leg(row.leg),
        qty=row.qty,
        exits=exits,
        reference_price=row.reference_price,
        predicted_cost_fraction=row.predicted_cost_fraction,
        valid_until=row.valid_until,
        state=IntentState(row.state),
    )
