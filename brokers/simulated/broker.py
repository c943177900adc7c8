"""The engine behind the `Broker`, `MarketData` and `Clock` protocols, in-process: methods never suspend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from brokers.domain import (
    Account,
    AssetClass,
    Bar,
    Fill,
    Health,
    Instrument,
    Order,
    OrderRequest,
    OutcomeUnknownError,
    Position,
    Quote,
    RejectedError,
)
from brokers.protocol import Capabilities
from brokers.simulated.books import BooksError
from brokers.simulated.engine import Advance, MatchingEngine
from brokers.simulated.feed import SessionCalendar
from brokers.simulated.orders import RejectCode


class SimulatedBroker:
    """`Broker` and `MarketData` over one engine."""

    def __init__(self, engine: MatchingEngine) -> None:
        self._engine = engine
        native = engine.settings.rule_set == "native"
        self._capabilities = Capabilities(
            name="exchange",
            brackets=frozenset({AssetClass.EQUITY, AssetClass.CRYPTO} if native else {AssetClass.EQUITY}),
            fractional=True,
            shorting=engine.settings.shorting,
            stepped=True,
            requests_per_minute=None,
            lookup_window_s=0.0,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the exchange can do."""
        return self._capabilities

    async def connect(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Release the books."""
        self._engine.close()

    def health(self) -> Health:
        """An engine in this process is always reachable."""
        return Health(ok=True, info={"venue": "in-process exchange"})

    async def instruments(self, symbols: Sequence[str]) -> Mapping[str, Instrument]:
        """Return the rules of each symbol.

        Raises:
            RejectedError: Names the symbols that the exchange does not play.
        """
        self._check_symbols(symbols)
        return {symbol: self._engine.instruments[symbol] for symbol in symbols}

    async def account(self) -> Account:
        """Return equity, cash and buying power."""
        return self._engine.account()

    async def positions(self) -> Mapping[str, Position]:
        """Return every open position by symbol."""
        return self._engine.positions()

    async def open_orders(self) -> Sequence[Order]:
        """Return every order that may still fill, flat."""
        return self._engine.open_orders()

    async def order(self, client_id: str) -> Order | None:
        """Return one order with its legs; None where it is unknown."""
        return self._engine.order(client_id)

    async def orders_since(self, since: datetime) -> Sequence[Order]:
        """Return orders of any state updated at or after a venue time, flat."""
        return self._engine.orders_since(since)

    async def fills(self, after: str | None) -> Sequence[Fill]:
        """Return executions after an execution id, oldest first."""
        return self._engine.fills(after)

    async def submit(self, request: OrderRequest) -> Order:
        """Send one order.

        Raises:
            RejectedError: A rule is broken; nothing of the order exists.
            DuplicateClientIdError: The client id is known.
            OutcomeUnknownError: The books could not be written.
        """
        try:
            return self._engine.submit(request)
        except BooksError as error:
            raise OutcomeUnknownError(request.client_id, str(error)) from error

    async def cancel(self, client_id: str) -> None:
        """Cancel a working order; a terminal or unknown one is left as it is."""
        self._engine.cancel(client_id)

    async def bars(
        self, symbols: Sequence[str], period: timedelta, start: datetime, end: datetime
    ) -> Mapping[str, Sequence[Bar]]:
        """Return completed bars with start <= bar.start < end, oldest first.

        Raises:
            RejectedError: An unknown symbol, or a period other than the feed's.
        """
        self._check_symbols(symbols)
        if period != self._engine.feed.period:
            msg = f"the exchange has bars of {self._engine.feed.period}, not of {period}: ask for its own period"
            raise RejectedError(RejectCode.WRONG_FIELDS, msg)
        return {symbol: self._engine.bars(symbol, start, end) for symbol in symbols}

    async def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the quote of each symbol that has one."""
        self._check_symbols(symbols)
        found = {symbol: self._engine.quote(symbol) for symbol in symbols}
        return {symbol: quote for symbol, quote in found.items() if quote is not None}

    def _check_symbols(self, symbols: Sequence[str]) -> None:
        unknown = [symbol for symbol in symbols if symbol not in self._engine.instruments]
        if unknown:
            msg = f"the exchange does not play {', '.join(unknown)}; it plays {', '.join(self._engine.instruments)}"
            raise RejectedError(RejectCode.UNKNOWN_SYMBOL, msg)


class SimulatedClock:
    """`Clock` over one engine: time stands until `advance`."""

    def __init__(self, engine: MatchingEngine) -> None:
        self._engine = engine
        self._last: Advance | None = None

    @property
    def stepped(self) -> bool:
        """Time stands until `advance`."""
        return True

    @property
    def feed_ended(self) -> bool:
        """True where no event is left."""
        return self._engine.feed_ended

    @property
    def last(self) -> Advance | None:
        """The answer to the last advance; None before the first."""
        return self._last

    def now(self) -> datetime:
        """Return venue time."""
        return self._engine.now

    async def advance(self, idle_until: datetime) -> datetime:
        """Move to the next event, at most to `idle_until`, and return the new time."""
        self._last = self._engine.advance(self._engine.now, idle_until)
        return self._last.now


def default_instruments(
    symbols: Sequence[str], calendar: SessionCalendar, *, shortable: bool = False
) -> dict[str, Instrument]:
    """Return an instrument of domain defaults per symbol: crypto on a 24/7 calendar, otherwise equity."""
    asset_class = AssetClass.CRYPTO if calendar.id == "24/7" else AssetClass.EQUITY
    return {
        symbol: Instrument(symbol=symbol, asset_class=asset_class, shortable=shortable, calendar=calendar.id)
        for symbol in symbols
    }
