"""Domain types: instruments, bars, quotes, orders, fills, positions, accounts, broker errors.

Everything here is frozen and slotted. Money and quantities are `Decimal`; every time is an
aware `datetime` in UTC; floats appear only in bars, which feed features and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from enum import StrEnum, unique
from types import MappingProxyType

NO_SIGNALS: Mapping[str, float] = MappingProxyType({})


@unique
class AssetClass(StrEnum):
    """What kind of thing trades; decides venue rules, never the code path."""

    EQUITY = "us_equity"
    CRYPTO = "crypto"


@unique
class Side(StrEnum):
    """Direction of an order."""

    BUY = "buy"
    SELL = "sell"

    @property
    def sign(self) -> int:
        """+1 for BUY, -1 for SELL."""
        return 1 if self is Side.BUY else -1

    @property
    def opposite(self) -> Side:
        """The other side."""
        return Side.SELL if self is Side.BUY else Side.BUY


@unique
class OrderType(StrEnum):
    """How an order is priced."""

    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"


@unique
class TimeInForce(StrEnum):
    """How long an order works."""

    DAY = "day"
    GTC = "gtc"


@unique
class Leg(StrEnum):
    """What an order is for. Part of its identity, so one decision cannot become two orders."""

    ENTRY = "entry"
    CLOSE = "close"
    STOP = "stop"
    TAKE_PROFIT = "take_profit"


@unique
class OrderState(StrEnum):
    """The closed set of order states (three outcomes of a wire attempt: ACCEPTED, REJECTED, UNKNOWN)."""

    PLANNED = "planned"
    """Committed, not yet sent."""
    SUBMITTING = "submitting"
    """Committed as about to be sent: after a crash its outcome is unknown."""
    UNKNOWN = "unknown"
    """Sent, and the answer was lost or not understood: resolved by asking for the client id."""
    NOT_PLACED = "not_placed"
    """Sent perhaps, but the venue has no such client id for the whole look-up window."""
    ACCEPTED = "accepted"
    HELD = "held"
    """A bracket leg that waits for its entry."""
    PARTIAL = "partial"
    CANCELING = "canceling"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    REPLACED = "replaced"

    @property
    def is_terminal(self) -> bool:
        """True where no further fill is expected."""
        return self in _TERMINAL

    @property
    def is_working(self) -> bool:
        """True where the venue holds the order and it may still fill."""
        return self in _WORKING


_TERMINAL = frozenset(
    {
        OrderState.NOT_PLACED,
        OrderState.FILLED,
        OrderState.CANCELED,
        OrderState.EXPIRED,
        OrderState.REJECTED,
        OrderState.REPLACED,
    }
)
_WORKING = frozenset({OrderState.ACCEPTED, OrderState.HELD, OrderState.PARTIAL, OrderState.CANCELING})


@dataclass(frozen=True, slots=True)
class Instrument:
    """One tradable symbol and the venue's rules for its sizes and prices.

    Args:
        symbol: Canonical name, as in the bars file (`ETHUSDT`, `SPY`, `BTC/USD`).
        asset_class: Equity or crypto.
        price_tick: Smallest price step, in quote currency.
        qty_step: Smallest quantity step, in units of the instrument.
        min_notional: Smallest order value, in quote currency.
        shortable: True where a negative position is allowed.
        calendar: Calendar id (`24/7`, `XNYS`).
    """

    symbol: str
    asset_class: AssetClass
    price_tick: Decimal = Decimal("0.000001")
    qty_step: Decimal = Decimal("0.000001")
    min_notional: Decimal = Decimal(1)
    shortable: bool = False
    calendar: str = "24/7"

    def round_qty(self, qty: Decimal) -> Decimal:
        """Round a quantity toward zero at the instrument's step."""
        return round_toward_zero(qty, self.qty_step)

    def round_price(self, price: Decimal) -> Decimal:
        """Round a price half-even at the instrument's tick."""
        return (price / self.price_tick).quantize(Decimal(1), ROUND_HALF_EVEN) * self.price_tick


def round_toward_zero(value: Decimal, step: Decimal) -> Decimal:
    """Return the multiple of `step` nearest to `value` whose magnitude does not exceed it."""
    return (value / step).quantize(Decimal(1), ROUND_DOWN) * step


@dataclass(frozen=True, slots=True)
class Bar:
    """One completed bar.

    Args:
        symbol: Canonical symbol.
        start: Bar start, aware UTC.
        close_time: min(start + period, session close), aware UTC.
        open: First price (quote currency); `high`, `low`, `close` likewise.
        volume: Traded quantity (units of the instrument).
        adj_factor: Multiply a raw price by it to get the split- and dividend-adjusted price.
            Only ratios between neighbouring bars may be used: the level knows the future.
        revision: 0 as first seen; counts corrections by the venue.
        signals: Further numeric columns of the user's file.
    """

    symbol: str
    start: datetime
    close_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    adj_factor: float = 1.0
    revision: int = 0
    signals: Mapping[str, float] = field(default_factory=lambda: NO_SIGNALS)


@dataclass(frozen=True, slots=True)
class Quote:
    """Best bid and ask (quote currency) at a venue time."""

    symbol: str
    bid: Decimal
    ask: Decimal
    at: datetime

    @property
    def mid(self) -> Decimal:
        """Middle of bid and ask."""
        return (self.bid + self.ask) / 2


@dataclass(frozen=True, slots=True)
class ExitPlan:
    """Protective exits of one position; committed together with the entry's intent.

    `stop` and `take_profit` are absolute prices (quote currency) for the position's side.
    A plan without a stop is explicit and carries the largest loss that is accepted instead.
    """

    stop: Decimal | None
    take_profit: Decimal | None
    max_loss_usd: Decimal | None = None

    def __post_init__(self) -> None:
        """Refuse a plan that neither stops nor bounds the loss."""
        if self.stop is None and self.max_loss_usd is None:
            msg = "an ExitPlan without a stop needs max_loss_usd: name the loss that is accepted instead"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """What goes over the wire: one order, perhaps with bracket legs.

    Args:
        client_id: Our id, derived from the decision (`agent.execution.client_order_id`).
        symbol: Canonical symbol.
        side: BUY or SELL.
        qty: Positive quantity at the instrument's step.
        type: Market, limit, stop or stop-limit.
        tif: DAY or GTC; one for all legs.
        limit_price: For limit and stop-limit.
        stop_price: For stop and stop-limit.
        take_profit: Limit price of the bracket's take-profit leg; None for no such leg.
        stop_loss: Stop price of the bracket's stop leg; None for no such leg.
        leg: What the order is for.
    """

    client_id: str
    symbol: str
    side: Side
    qty: Decimal
    type: OrderType = OrderType.MARKET
    tif: TimeInForce = TimeInForce.GTC
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    take_profit: Decimal | None = None
    stop_loss: Decimal | None = None
    leg: Leg = Leg.ENTRY

    @property
    def is_bracket(self) -> bool:
        """True where at least one protective leg is attached."""
        return self.take_profit is not None or self.stop_loss is not None


@dataclass(frozen=True, slots=True)
class Order:
    """An order as the venue reports it.

    Legs of a bracket are Orders of their own with `parent_client_id` set. Money is `Decimal`.
    """

    client_id: str
    venue_id: str
    symbol: str
    side: Side
    qty: Decimal
    type: OrderType
    tif: TimeInForce
    state: OrderState
    filled_qty: Decimal
    avg_price: Decimal | None
    submitted_at: datetime
    updated_at: datetime
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    parent_client_id: str | None = None
    leg: Leg = Leg.ENTRY
    reason: str = ""
    legs: tuple[Order, ...] = ()

    @property
    def remaining_qty(self) -> Decimal:
        """Quantity that has not filled."""
        return self.qty - self.filled_qty


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution. Identity is (venue, exec_id). `fee` is in quote currency, >= 0.

    `mark_price` is the venue's reference price before spread and impact where it reports one.
    """

    exec_id: str
    client_id: str
    symbol: str
    side: Side
    qty: Decimal
    price: Decimal
    fee: Decimal
    at: datetime
    mark_price: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Held quantity (signed), what of it no working order claims, average cost and current mark."""

    symbol: str
    qty: Decimal
    qty_available: Decimal
    avg_cost: Decimal
    mark: Decimal


@dataclass(frozen=True, slots=True)
class Account:
    """Equity, cash and buying power in quote currency at a venue time."""

    equity: Decimal
    cash: Decimal
    buying_power: Decimal
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a venue can be used now, and why not."""

    ok: bool
    detail: str = ""
    info: Mapping[str, str] = field(default_factory=dict)


class BrokerError(Exception):
    """Base of everything a venue can fail with. Never stands for zero, flat or empty."""


class RejectedError(BrokerError):
    """The venue definitively refused: nothing of the order exists there."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the machine-readable code beside the venue's words."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class DuplicateClientIdError(RejectedError):
    """The venue already knows this client id: look it up and adopt it."""


class RateLimitedError(BrokerError):
    """The venue refused before acting; `retry_after_s` says when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        """Keep the wait beside the message."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AuthError(BrokerError):
    """Credentials are wrong or not allowed: fatal, never retried."""


class UnavailableError(BrokerError):
    """A question (not a submission) got no usable answer."""


class OutcomeUnknownError(BrokerError):
    """A submission was sent and its outcome is not known; resolve by `client_id`."""

    def __init__(self, client_id: str, detail: str) -> None:
        """Keep the id that resolves it."""
        super().__init__(f"outcome of order {client_id} is unknown ({detail}); it will be looked up by its client id")
        self.client_id = client_id


def utc(value: datetime) -> datetime:
    """Return an aware UTC time; a naive one is refused.

    Raises:
        ValueError: `value` has no time zone.
    """
    if value.tzinfo is None:
        msg = f"naive time {value.isoformat()}: give it a time zone, for example {value.isoformat()}+00:00"
        raise ValueError(msg)
    return value.astimezone(UTC)


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_period(text: str) -> timedelta:
    """Parse a bar period such as `5m`, `1h`, `1d`.

    Raises:
        ValueError: The text is not a positive whole number and one of s, m, h, d.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not number.isascii() or not number.isdigit() or int(number) == 0:
        msg = f"period {text!r} is not a positive whole number followed by s, m, h or d, for example '5m'"
        raise ValueError(msg)
    return timedelta(seconds=int(number) * _UNITS_S[unit])
