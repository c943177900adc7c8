"""Orders as the exchange keeps them, and the closed set of reasons for which it refuses one."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum, unique

from brokers.account import ZERO
from brokers.costs import PRICE_QUANTUM
from brokers.domain import Leg, Order, OrderState, OrderType, RejectedError, Side, TimeInForce
from brokers.series import from_ns


@unique
class RejectCode(StrEnum):
    """Why an order was refused: `RejectedError.code` in-process, `reject_reason` in the REST body."""

    DUPLICATE_CLIENT_ID = "duplicate_client_id"
    UNKNOWN_SYMBOL = "unknown_symbol"
    WRONG_FIELDS = "wrong_fields"
    WRONG_PRICE = "wrong_price"
    WRONG_QTY = "wrong_qty"
    BELOW_MINIMUM = "below_minimum"
    NO_PRICE = "no_price"
    INSUFFICIENT_BUYING_POWER = "insufficient_buying_power"
    INSUFFICIENT_QTY = "insufficient_qty_available"
    SHORT_NOT_ALLOWED = "short_not_allowed"
    WASH_TRADE = "wash_trade"
    NOT_ALLOWED_HERE = "not_allowed_here"


class RefusedError(RejectedError):
    """A refusal with the numbers that explain it, such as available and held quantity."""

    def __init__(self, code: RejectCode, message: str, **facts: str) -> None:
        """Keep the facts beside code and message; they become extra keys of the REST body."""
        super().__init__(str(code), message)
        self.facts = facts


@dataclass(slots=True)
class BookOrder:
    """One order in the exchange's books; moved only by the engine.

    Args:
        client_id: The client's id; bracket legs carry `<parent>.stop` and `<parent>.tp`.
        venue_id: The exchange's id, a UUID derived from the client id.
        sequence: Place in the exchange's one sequence; decides priority.
        submitted_ns: Arrival, venue time.
        updated_ns: Venue time of the last change.
        filled_value: Sum of quantity times price over the fills, quote currency.
        opens_to_wait: Opens of its symbol that must still pass before it may match; 0 = it may.
        is_triggered: A stop-limit whose stop was reached: it rests as a limit.
        opening_qty: Part of the quantity that opens or grows a position; the rest reduces one.
        reserve_price: Buying power that each opening unit claims while working, quote currency.
        reduce_only: A bracket leg: never fills beyond the position that it protects.
    """

    client_id: str
    venue_id: str
    sequence: int
    symbol: str
    side: Side
    qty: Decimal
    type: OrderType
    tif: TimeInForce
    leg: Leg
    state: OrderState
    submitted_ns: int
    updated_ns: int
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    parent_client_id: str | None = None
    leg_ids: tuple[str, ...] = ()
    filled_qty: Decimal = ZERO
    filled_value: Decimal = ZERO
    filled_ns: int | None = None
    expires_ns: int | None = None
    opens_to_wait: int = 0
    is_triggered: bool = False
    opening_qty: Decimal = ZERO
    reserve_price: Decimal = ZERO
    reason: str = ""

    @property
    def remaining_qty(self) -> Decimal:
        """Quantity that has not filled."""
        return self.qty - self.filled_qty

    @property
    def reduce_only(self) -> bool:
        """True for a bracket leg."""
        return self.parent_client_id is not None

    @property
    def avg_price(self) -> Decimal | None:
        """Average fill price, half-even at 1e-9 of the quote currency; None before the first fill."""
        if not self.filled_qty:
            return None
        return (self.filled_value / self.filled_qty).quantize(PRICE_QUANTUM, ROUND_HALF_EVEN)

    def snapshot(self, legs: tuple[Order, ...] = ()) -> Order:
        """Return the order as the venue reports it."""
        return Order(
            client_id=self.client_id,
            venue_id=self.venue_id,
            symbol=self.symbol,
            side=self.side,
            qty=self.qty,
            type=self.type,
            tif=self.tif,
            state=self.state,
            filled_qty=self.filled_qty,
            avg_price=self.avg_price,
            submitted_at=from_ns(self.submitted_ns),
            updated_at=from_ns(self.updated_ns),
            limit_price=self.limit_price,
            stop_price=self.stop_price,
            parent_client_id=self.parent_client_id,
            leg=self.leg,
            reason=self.reason,
            legs=legs,
        )
