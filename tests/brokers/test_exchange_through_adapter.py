"""One plan, two ways to the exchange: in-process, and through the Alpaca adapter over HTTP. The same must come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import pytest
from exchange_kit import FAR, PERIOD, T0, Floor, walk
from exchange_process import served

from brokers.alpaca.broker import AlpacaBroker
from brokers.alpaca.settings import AlpacaSettings
from brokers.costs import CostModel
from brokers.domain import DuplicateClientIdError, Leg, OrderRequest, OrderType, RejectedError, Side
from brokers.protocol import Broker, Clock, MarketData
from brokers.simulated.broker import SimulatedBroker, SimulatedClock
from brokers.simulated.engine import MatchingEngine

SYMBOLS = ("A", "BTC/USD")
CLOSES = 36


class Venue(Broker, MarketData, Protocol):
    """Both sides of a venue."""


@dataclass
class Told:
    """Everything that a venue answered."""

    answers: list[Any]

    def add(self, *answers: Any) -> None:
        self.answers += answers


def engine() -> MatchingEngine:
    return Floor(
        {symbol: walk(symbol, CLOSES + 2, seed=index) for index, symbol in enumerate(SYMBOLS)},
        costs=CostModel(),
        partial_fill_probability=0.4,
        shorting=True,
        seed=11,
    ).engine


def by_id(orders: Sequence[Any]) -> list[Any]:
    return sorted(orders, key=lambda order: order.client_id)


async def play(venue: Venue, clock: Clock) -> Told:
    """Trade for a while and write down every answer."""
    told = Told([await venue.instruments(SYMBOLS)])
    last: str | None = None
    while clock.now() < T0 + CLOSES * PERIOD:
        before = clock.now()
        now = await clock.advance(FAR)
        for symbol in SYMBOLS:
            await decide(venue, symbol, now, told)
        fills = await venue.fills(last)
        last = fills[-1].exec_id if fills else last
        told.add(now, fills, await venue.positions(), await venue.account(), by_id(await venue.open_orders()))
        told.add(by_id(await venue.orders_since(before)), await venue.quotes(SYMBOLS))
        told.add(await venue.bars(SYMBOLS, PERIOD, now - 3 * PERIOD, now))
    return told


async def decide(venue: Venue, symbol: str, now: datetime, told: Told) -> None:
    """Send brackets, limits and closes in turn; refusals are answers too."""
    count = round((now - T0) / timedelta(seconds=10)) + SYMBOLS.index(symbol)
    name = f"{symbol.replace('/', '')}-{count}"
    quote = (await venue.quotes([symbol])).get(symbol)
    if quote is None:
        return
    side = (Side.BUY, Side.SELL)[count % 2]
    width = Decimal("0.008") * side.sign
    stop, profit = (
        (quote.mid * (1 - width)).quantize(Decimal("0.01")),
        (quote.mid * (1 + width)).quantize(Decimal("0.01")),
    )
    requests = {
        0: OrderRequest(name, symbol, side, Decimal("7.25"), stop_loss=stop, take_profit=profit),
        1: OrderRequest(name, symbol, side, Decimal(3), type=OrderType.LIMIT, limit_price=stop),
        2: OrderRequest(name, symbol, side, Decimal(2), stop_loss=stop),
        3: OrderRequest(name, symbol, side, Decimal(10_000)),
    }
    if count % 5 == 4:
        for order in await venue.open_orders():
            if order.symbol == symbol:
                await venue.cancel(order.client_id)
        position = (await venue.positions()).get(symbol)
        if position is None or not position.qty_available:
            return
        side = Side.SELL if position.qty > 0 else Side.BUY
        request = OrderRequest(name, symbol, side, abs(position.qty_available), leg=Leg.CLOSE)
    else:
        request = requests[count % 5]
    try:
        told.add(await venue.submit(request), await venue.order(name))
    except RejectedError as refused:
        told.add((refused.code, refused.message))


def test_the_adapter_over_http_gives_every_answer_that_the_engine_gives() -> None:
    own = engine()
    expected = asyncio.run(play(SimulatedBroker(own), SimulatedClock(own)))
    with served(engine()) as client:
        broker = AlpacaBroker(AlpacaSettings(kind="exchange", url=client.url))

        async def over_http() -> Told:
            await broker.connect()
            try:
                return await play(broker, broker.clock)
            finally:
                await broker.close()

        found = asyncio.run(over_http())
    for index, (got, wanted) in enumerate(zip(found.answers, expected.answers, strict=True)):
        assert got == wanted, index
    assert any(isinstance(answer, tuple) for answer in expected.answers), "no order was refused"
    assert len(own.fills()) > 20


def test_both_ways_refuse_a_known_client_id() -> None:
    async def twice(venue: Broker) -> None:
        request = OrderRequest("a", "A", Side.BUY, Decimal(1))
        await venue.submit(request)
        with pytest.raises(DuplicateClientIdError):
            await venue.submit(request)

    own = engine()
    own.run_until(T0 + PERIOD)
    asyncio.run(twice(SimulatedBroker(own)))
    other = engine()
    other.run_until(T0 + PERIOD)
    with served(other) as client:
        broker = AlpacaBroker(AlpacaSettings(kind="exchange", url=client.url))
        asyncio.run(twice(broker))
        asyncio.run(broker.close())
