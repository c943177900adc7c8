"""What every venue gives: orders, data, time. `agent` knows nothing else of a venue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from brokers.domain import Account, Bar, Fill, Health, Instrument, Order, OrderRequest, Position, Quote


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a venue can do, and the limits that the order desk must keep.

    Args:
        name: Venue name; scopes fill identity.
        brackets: Asset classes (values of `AssetClass`) whose entries may carry exits at the venue.
        fractional: True where fractional quantities trade.
        shorting: True where negative positions are allowed.
        stepped: True where venue time moves only on `Clock.advance`.
        requests_per_minute: Rate limit; None for none.
        lookup_window_s: Wall seconds over which a client id must stay unknown to the venue before
            its order counts as not placed.
        max_client_id_length: Longest client order id, in characters.
    """

    name: str
    brackets: frozenset[str]
    fractional: bool
    shorting: bool
    stepped: bool
    requests_per_minute: int | None
    lookup_window_s: float
    max_client_id_length: int = 128


class Broker(Protocol):
    """A venue's order side. Every method raises a `BrokerError`; none returns a default on failure."""

    @property
    def capabilities(self) -> Capabilities:
        """What the venue can do."""
        ...

    async def connect(self) -> None:
        """Open connections and check that the venue may be used.

        Raises:
            AuthError: Wrong credentials, or a live trading host.
            UnavailableError: No answer.
        """
        ...

    async def close(self) -> None:
        """Release connections. Never raises for a venue that is already gone."""
        ...

    def health(self) -> Health:
        """Return the last known state of the connection, without a wire call."""
        ...

    async def instruments(self, symbols: Sequence[str]) -> Mapping[str, Instrument]:
        """Return the rules of each symbol; raises RejectedError naming the unknown ones."""
        ...

    async def account(self) -> Account:
        """Return equity, cash and buying power."""
        ...

    async def positions(self) -> Mapping[str, Position]:
        """Return every open position by symbol; an empty mapping means truly flat."""
        ...

    async def open_orders(self) -> Sequence[Order]:
        """Return every order that may still fill, legs flattened, held legs included."""
        ...

    async def order(self, client_id: str) -> Order | None:
        """Return one order with its legs; None only on the venue's definite 'not found'."""
        ...

    async def orders_since(self, since: datetime) -> Sequence[Order]:
        """Return orders of any state updated at or after a venue time, legs flattened."""
        ...

    async def fills(self, after: str | None) -> Sequence[Fill]:
        """Return executions after an execution id, oldest first; None for all that the venue keeps."""
        ...

    async def submit(self, request: OrderRequest) -> Order:
        """Send one order: at most one wire attempt.

        Raises:
            RejectedError: Definitively refused.
            DuplicateClientIdError: Known already; look it up.
            OutcomeUnknownError: Sent, answer lost.
        """
        ...

    async def cancel(self, client_id: str) -> None:
        """Ask for cancellation; a terminal or unknown order is left as it is, without an error."""
        ...


class MarketData(Protocol):
    """A venue's data side."""

    async def bars(
        self, symbols: Sequence[str], period: timedelta, start: datetime, end: datetime
    ) -> Mapping[str, Sequence[Bar]]:
        """Return completed bars with start <= bar.start < end, oldest first, a key for every symbol."""
        ...

    async def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the latest quote of each symbol that has one."""
        ...


class Clock(Protocol):
    """Venue time. Stepped venues move only on `advance`; others move by themselves."""

    @property
    def stepped(self) -> bool:
        """True where time stands until `advance` is called."""
        ...

    def now(self) -> datetime:
        """Return venue time, aware UTC; for a stepped venue the time of its last answer."""
        ...

    async def advance(self, idle_until: datetime) -> datetime:
        """Let venue time pass to its next event, at most to `idle_until`, and return the new time.

        A stepped venue is asked with (from = `now()`, idle_until), which it answers idempotently;
        a venue that runs by itself is simply waited for.
        """
        ...
