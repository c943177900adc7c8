"""The order side of Alpaca paper and of the built-in exchange: one live path for both.

A submission is one wire attempt with one of three outcomes: an Order, a RejectedError (nothing exists at the
venue), or OutcomeUnknownError. A question that fails raises; it never becomes an empty list.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import quote

from brokers.alpaca import convert
from brokers.alpaca.client import NOT_FOUND, AlpacaClient, Runner, is_auth_failure
from brokers.alpaca.market_data import AlpacaMarketData
from brokers.alpaca.pacing import demanded_wait_s
from brokers.alpaca.settings import AlpacaSettings
from brokers.alpaca.stepping import SteppedClock, WallClock
from brokers.alpaca.transport import Answer
from brokers.domain import (
    Account,
    AssetClass,
    AuthError,
    Bar,
    DuplicateClientIdError,
    Fill,
    Health,
    Instrument,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OutcomeUnknownError,
    Position,
    Quote,
    RateLimitedError,
    RejectedError,
    UnavailableError,
    utc,
)
from brokers.protocol import Capabilities

T = TypeVar("T")

_DUPLICATE = "40010001"
_DUPLICATE_NATIVE = "duplicate_client_id"
_ORDERS_PER_PAGE = 500
_FILLS_PER_PAGE = 100
_ASSETS_ONE_BY_ONE = 25
_REMEMBERED_MAX = 4_000
"""Orders and legs whose family is remembered: those of a thousand symbols; others are asked for."""
_MICROSECOND = timedelta(microseconds=1)
_DEFINITE = frozenset({400, 403, 404, 422})


class AlpacaBroker:
    """`Broker` and `MarketData` over Alpaca's REST.

    Args:
        settings: Hosts and limits.
        run: Carries blocking calls off the event loop, like `asyncio.to_thread`.
        client: Shared with other parts; None makes one.
        clock: Venue time; None makes a SteppedClock for the exchange and a WallClock for Alpaca.

    Raises:
        AuthError: No usable keys.
    """

    def __init__(
        self,
        settings: AlpacaSettings,
        *,
        run: Runner = asyncio.to_thread,
        client: AlpacaClient | None = None,
        clock: SteppedClock | WallClock | None = None,
    ) -> None:
        self.settings = settings
        self.client = AlpacaClient(settings, run=run) if client is None else client
        self._capabilities = settings.capabilities
        self._native = settings.kind == "exchange"
        if clock is None:
            clock = SteppedClock(self.client) if self._native else WallClock(self.skew)
        self.clock = clock
        self._data = AlpacaMarketData(self.client, self.clock.now)
        self._symbols = convert.Symbols()
        self._instruments: dict[str, Instrument] = {}
        self._remembered: OrderedDict[str, tuple[str, str | None, Leg]] = OrderedDict()
        self._venue_ids: OrderedDict[str, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"AlpacaBroker({self.settings.kind}, {self.settings.trading_url})"

    @property
    def capabilities(self) -> Capabilities:
        """What the venue can do; whether it shorts is known for certain after `connect`."""
        return self._capabilities

    async def connect(self) -> None:
        """Check the keys, that the account may trade, and venue time.

        Raises:
            AuthError: The keys are refused, or the account is blocked.
            UnavailableError: No usable answer within `outage_s_max`.
        """
        content = await self._read("/account", convert.mapping)
        blocks = [name for name in ("account_blocked", "trading_blocked") if content.get(name) is True]
        status = content.get("status")
        if blocks or (isinstance(status, str) and status.upper() != "ACTIVE"):
            raise AuthError(f"the account may not trade: status {status!r}, {', '.join(blocks) or 'no blocks'}")
        shorting = self.settings.shorting and content.get("shorting_enabled") is not False
        self._capabilities = replace(self._capabilities, shorting=shorting)
        await self.clock.connect()
        if isinstance(self.clock, SteppedClock) and self.clock.description.get("rule_set") == "alpaca":
            self._capabilities = replace(self._capabilities, brackets=frozenset({AssetClass.EQUITY}))

    async def close(self) -> None:
        """Close idle connections."""
        self.client.close()

    def health(self) -> Health:
        """Return how the last wire attempt went."""
        return self.client.health()

    async def skew(self) -> timedelta:
        """Return venue time minus system time, measured against the middle of the round trip.

        Raises:
            UnavailableError: No usable answer.
        """
        before = datetime.now(UTC)
        at = await self._read("/clock", lambda body: convert.time(convert.mapping(body).get("timestamp"), "timestamp"))
        after = datetime.now(UTC)
        return at - (before + (after - before) / 2)

    async def instruments(self, symbols: Sequence[str]) -> Mapping[str, Instrument]:
        """Return the rules of each symbol.

        Raises:
            RejectedError: Naming the symbols that do not trade here, and how the venue spells them.
            UnavailableError: No usable answer.
        """
        wanted = [symbol for symbol in symbols if symbol not in self._instruments]
        assets = await (self._assets_one_by_one(wanted) if len(wanted) <= _ASSETS_ONE_BY_ONE else self._all_assets())
        unknown = []
        for symbol in wanted:
            asset = assets.get(symbol)
            found = None if asset is None else self._understood("/assets", convert.instrument, asset)
            if asset is None or found is None or asset.get("tradable") is False:
                unknown.append(symbol)
            elif found.symbol != symbol:
                unknown.append(f"{symbol} (write {found.symbol})")
            else:
                self._instruments[symbol] = found
        if unknown:
            raise RejectedError("unknown_symbol", f"not tradable here: {', '.join(unknown)}")
        self._symbols.learn(wanted)
        return {symbol: self._instruments[symbol] for symbol in symbols}

    async def account(self) -> Account:
        """Return equity, cash and buying power; unlevered buying power where crypto is traded."""
        crypto = any(each.asset_class is AssetClass.CRYPTO for each in self._instruments.values())
        return await self._read(
            "/account", lambda body: convert.account(convert.mapping(body), self.clock.now(), crypto=crypto)
        )

    async def positions(self) -> Mapping[str, Position]:
        """Return every open position by canonical symbol."""
        rows = await self._read("/positions", _rows)
        await self._learn_spellings(rows)
        found = [self._understood("/positions", lambda row: convert.position(row, self._symbols), row) for row in rows]
        return {each.symbol: each for each in found}

    async def open_orders(self) -> Sequence[Order]:
        """Return every order that may still fill, legs flattened, held legs included."""
        orders = await self._list_orders({"status": "open"})
        return [each for each in orders if not each.state.is_terminal]

    async def order(self, client_id: str) -> Order | None:
        """Return one order with its legs; None only where the venue itself says that it has none."""
        path = "/orders:by_client_order_id"
        body = await self.client.find(path, {"client_order_id": client_id, "nested": "true"})
        if body is None:
            return None
        content = self._understood(path, convert.mapping, body)
        alone = not content.get("legs") and not content.get("parent_client_order_id")
        if alone and content.get("order_class") in {"bracket", "oto", "oco"}:
            nested = f"/orders/{quote(self._understood(path, lambda row: convert.text(row, 'id'), content), safe='')}"
            content = self._understood(nested, convert.mapping, await self.client.ask(nested, {"nested": "true"}))
        found = self._understood(path, self._order, content)
        if found.client_id != client_id:
            raise UnavailableError(f"asked for order {client_id} and was told of {found.client_id}")
        return found

    async def orders_since(self, since: datetime) -> Sequence[Order]:
        """Return orders of any state updated at or after a venue time, legs flattened.

        Alpaca lists by time of submission alone, so everything that may still have been alive is paged through;
        the exchange also lists by time of update.
        """
        begin = utc(since)
        if self._native:
            query = {"updated_since": convert.stamp(begin)}
        else:
            query = {"after": convert.stamp(begin - timedelta(days=self.settings.order_history_days))}
        orders = await self._list_orders({"status": "all"} | query)
        return [each for each in orders if each.updated_at >= begin]

    async def fills(self, after: str | None) -> Sequence[Fill]:
        """Return executions after an execution id, oldest first; None for all that the venue keeps."""
        path = "/account/activities/FILL"
        found: list[Fill] = []
        token = after
        for _ in range(self.settings.pages_max):
            params: dict[str, Any] = {"direction": "asc", "page_size": _FILLS_PER_PAGE}
            if token is not None:
                params["page_token"] = token
            rows = await self._read(path, _rows, params)
            found += [await self._fill(row) for row in rows]
            if len(rows) < _FILLS_PER_PAGE:
                return found
            if found[-1].exec_id == token:
                raise UnavailableError(f"GET {path} repeats the page after {token}")
            token = found[-1].exec_id
        raise UnavailableError(f"GET {path} has more than {self.settings.pages_max} pages after {after}")

    async def submit(self, request: OrderRequest) -> Order:
        """Send one order in at most one wire attempt.

        Returns:
            The order as accepted. `reason` is `convert.LEGS_MISSING` where a protective leg is not in the answer,
            and `state` is UNKNOWN where its status is one we do not know.

        Raises:
            RejectedError: Definitively refused; nothing of it exists.
            DuplicateClientIdError: The venue knows the id already: look it up.
            RateLimitedError: Definitively not placed.
            AuthError: The keys are refused; not placed.
            OutcomeUnknownError: Sent, and no answer that settles it.
        """
        body = convert.order_body(request, native=self._native)
        answer = await self.client.command("POST", "/orders", body, urgent=request.leg is not Leg.ENTRY)
        if not answer.ok:
            raise self._refusal(request.client_id, answer)
        try:
            placed = self._order(convert.mapping(answer.body))
        except convert.WireError as error:
            raise OutcomeUnknownError(request.client_id, f"HTTP {answer.status}, {error}") from error
        if placed.client_id != request.client_id:
            raise OutcomeUnknownError(request.client_id, f"the answer speaks of order {placed.client_id}")
        return convert.mark_missing_legs(replace(placed, leg=request.leg), request)

    async def cancel(self, client_id: str) -> None:
        """Ask for cancellation; a terminal or unknown order is left as it is.

        Raises:
            UnavailableError: It is not known whether the venue heard.
        """
        venue_id = self._venue_ids.get(client_id)
        if venue_id is None:
            known = await self.order(client_id)
            if known is None or known.state.is_terminal:
                return
            venue_id = known.venue_id
        path = f"/orders/{quote(venue_id, safe='')}"
        try:
            answer = await self.client.command("DELETE", path, urgent=True)
        except RateLimitedError as error:
            raise UnavailableError(f"cancellation of order {client_id} was not sent: {error}") from error
        if answer.ok or (answer.status == 404 and answer.code == NOT_FOUND):
            return
        if is_auth_failure(answer):
            raise AuthError(f"{self.settings.kind} refused the keys ({answer.describe()}): check them")
        if answer.status == 422 and answer.is_json:
            known = await self.order(client_id)
            if known is None or known.state.is_terminal or known.state is OrderState.CANCELING:
                return
        raise UnavailableError(f"cancellation of order {client_id} is not settled ({answer.describe()})")

    async def bars(
        self, symbols: Sequence[str], period: timedelta, start: datetime, end: datetime
    ) -> Mapping[str, Sequence[Bar]]:
        """Return completed bars with start <= bar.start < end, oldest first, a key for every symbol."""
        known = await self.instruments(symbols)
        return await self._data.bars(list(known.values()), period, utc(start), utc(end))

    async def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the latest two-sided quote of each symbol that has one."""
        known = await self.instruments(symbols)
        return await self._data.quotes(list(known.values()))

    def _refusal(self, client_id: str, answer: Answer) -> Exception:
        """Return the error that a failed submission stands for."""
        if is_auth_failure(answer):
            return AuthError(f"order {client_id} was not placed, the keys are refused ({answer.describe()})")
        if answer.status == 429:
            wait_s = demanded_wait_s(answer.headers) or 1.0
            return RateLimitedError(f"order {client_id} was not placed: {answer.describe()}", wait_s)
        if answer.status not in _DEFINITE or not isinstance(answer.body, dict):
            return OutcomeUnknownError(client_id, answer.describe())
        native = answer.body.get("reject_reason") if self._native else None
        code = native if isinstance(native, str) else answer.code
        if answer.code == _DUPLICATE and ("client_order_id" in answer.message or code == _DUPLICATE_NATIVE):
            return DuplicateClientIdError(code, answer.message)
        return RejectedError(code, answer.message)

    async def _list_orders(self, params: Mapping[str, Any]) -> list[Order]:
        """Return orders, oldest first, each followed by its legs.

        Pages go backwards by time of submission and overlap by one instant, so equal times are not lost.
        """
        query: dict[str, Any] = dict(params) | {"nested": "true", "limit": _ORDERS_PER_PAGE, "direction": "desc"}
        found: dict[str, Order] = {}
        for _ in range(self.settings.pages_max):
            rows = await self._read("/orders", _rows, query)
            page = [self._understood("/orders", self._order, row) for row in rows]
            before = len(found)
            found |= {each.venue_id: each for each in page if each.venue_id not in found}
            if sum(1 for _ in convert.flatten(page)) < _ORDERS_PER_PAGE:
                flat = convert.flatten(reversed(found.values()))
                return list({each.venue_id: each for each in flat}.values())
            if len(found) == before:
                raise UnavailableError(f"more than {_ORDERS_PER_PAGE} orders were submitted at {page[-1].submitted_at}")
            query["until"] = convert.stamp(page[-1].submitted_at + _MICROSECOND)
        raise UnavailableError(f"GET /orders has more than {self.settings.pages_max} pages")

    async def _fill(self, row: Mapping[str, Any]) -> Fill:
        path = "/account/activities/FILL"
        client_id = row.get("client_order_id")
        if not isinstance(client_id, str) or not client_id:
            client_id = await self._client_id_of(
                self._understood(path, lambda each: convert.text(each, "order_id"), row)
            )
        rate = Decimal(repr(self.settings.crypto_fee_bps)) / 10_000 if "/" in str(row.get("symbol")) else Decimal(0)
        return self._understood(path, lambda each: convert.fill(each, client_id, self._symbols, rate), row)

    async def _client_id_of(self, venue_id: str) -> str:
        """Return an order's client id; an order that the venue no longer keeps is named by its own id."""
        if venue_id not in self._remembered:
            path = f"/orders/{quote(venue_id, safe='')}"
            body = await self.client.find(path, {"nested": "true"})
            if body is None:
                return venue_id
            self._understood(path, lambda each: self._order(convert.mapping(each)), body)
        known = self._remembered.get(venue_id)
        return venue_id if known is None else known[0]

    def _order(self, row: Mapping[str, Any]) -> Order:
        """Convert an order and remember its family: later answers may list a leg without its parent."""
        found = convert.order(row, self._symbols)
        kept = self._remembered.get(found.venue_id) or self._remembered.get(str(row.get("replaces")))
        if kept is not None and kept[1] is not None and found.parent_client_id is None:
            found = replace(found, parent_client_id=kept[1], leg=kept[2])
        for each in convert.flatten([found]):
            _keep(self._remembered, each.venue_id, (each.client_id, each.parent_client_id, each.leg))
            _keep(self._venue_ids, each.client_id, each.venue_id)
        return found

    async def _assets_one_by_one(self, symbols: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found = {}
        for symbol in symbols:
            path = f"/assets/{quote(symbol, safe='')}"
            body = await self.client.find(path)
            if body is not None:
                found[symbol] = self._understood(path, convert.mapping, body)
        return found

    async def _all_assets(self, **params: str) -> dict[str, Mapping[str, Any]]:
        rows = await self._read("/assets", _rows, {"status": "active"} | params)
        return {str(row.get("symbol")): row for row in rows}

    async def _learn_spellings(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Read the venue's crypto pairs where a position has a spelling that was not seen yet."""
        crypto = [str(row.get("symbol")) for row in rows if row.get("asset_class") == AssetClass.CRYPTO]
        if not all(map(self._symbols.knows, crypto)):
            self._symbols.learn(await self._all_assets(asset_class=AssetClass.CRYPTO.value))
            self._symbols.learn(name for name in crypto if not self._symbols.knows(name))

    async def _read(self, path: str, parse: Callable[[Any], T], params: Mapping[str, Any] | None = None) -> T:
        return self._understood(path, parse, await self.client.ask(path, params))

    def _understood(self, path: str, parse: Callable[[Any], T], content: Any) -> T:
        """Parse an answer to a question; what is not understood is not an answer."""
        try:
            return parse(content)
        except convert.WireError as error:
            raise UnavailableError(f"{self.settings.kind} GET {path} is not usable: {error}") from error


def _rows(body: Any) -> list[Mapping[str, Any]]:
    return [convert.mapping(row) for row in convert.listing(body)]


def _keep(memory: OrderedDict[str, T], key: str, value: T) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _REMEMBERED_MAX:
        memory.popitem(last=False)
