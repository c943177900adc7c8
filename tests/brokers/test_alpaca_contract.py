"""One suite, two venues: the engine in this process, and the adapter speaking to the exchange process over HTTP.

The same plan must give the same orders, fills, positions, account, bars and quotes on both, step by step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from exchange_driver import BARS, SYMBOLS, engine, running
from exchange_kit import FAR, PERIOD, at

from brokers.alpaca import AlpacaBroker, AlpacaSettings, SteppedClock, inline
from brokers.domain import (
    DuplicateClientIdError,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OrderType,
    RejectedError,
    Side,
)
from brokers.simulated.broker import SimulatedBroker, SimulatedClock

Broker = SimulatedBroker | AlpacaBroker
Clock = SimulatedClock | SteppedClock
T = TypeVar("T")
Play = Callable[[Callable[[Broker, Clock], Awaitable[Any]]], Any]

BUY = partial(OrderRequest, symbol="A", side=Side.BUY, qty=Decimal("10.5"))


def play_in_process(run: Callable[[Broker, Clock], Awaitable[T]]) -> T:
    exchange = engine()
    try:
        return asyncio.run(_started(run, SimulatedBroker(exchange), SimulatedClock(exchange)))
    finally:
        exchange.close()


def play_over_http(url: str, run: Callable[[Broker, Clock], Awaitable[T]]) -> T:
    async def main() -> T:
        broker = AlpacaBroker(AlpacaSettings(kind="exchange", url=url), run=inline)
        await broker.connect()
        try:
            assert isinstance(broker.clock, SteppedClock)
            return await _started(run, broker, broker.clock)
        finally:
            await broker.close()

    return asyncio.run(main())


async def _started(run: Callable[[Broker, Clock], Awaitable[T]], broker: Broker, clock: Clock) -> T:
    await step_to(clock, at(3))
    return await run(broker, clock)


async def step_to(clock: Clock, when: datetime) -> None:
    while clock.now() < when:
        await clock.advance(when)


@contextmanager
def over_http(folder: Path) -> Iterator[Play]:
    with running(folder / "books.sqlite") as (url, _):
        yield partial(play_over_http, url)


@pytest.fixture(params=["in_process", "over_http"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Play]:
    if request.param == "in_process":
        yield play_in_process
    else:
        with over_http(tmp_path) as played:
            yield played


def decide(turn: int, symbol: str, close: float) -> OrderRequest:
    """A plan with every kind of order, as a function of the turn alone."""
    side = Side.BUY if turn % 3 else Side.SELL
    price = lambda move: Decimal(repr(round(close * (1 + side.sign * move), 4)))  # noqa: E731
    kinds: list[dict[str, Any]] = [
        {"stop_loss": price(-0.005), "take_profit": price(0.006)},
        {"type": OrderType.LIMIT, "limit_price": price(-0.002)},
        {"stop_loss": price(-0.004)},
        {"type": OrderType.STOP, "stop_price": price(0.002), "take_profit": price(0.012)},
    ]
    qty = Decimal("12.345678") if turn % 2 else Decimal(7)
    return OrderRequest(f"{symbol}-{turn}", symbol, side, qty, **kinds[turn % len(kinds)])


async def trade(broker: Broker, symbol: str, turn: int, now: datetime) -> Order | str:
    """Send what the plan wants; every fifth turn close instead. Returns what became of it."""
    bars = await broker.bars([symbol], PERIOD, at(0), now)
    try:
        if turn % 5:
            return await broker.submit(decide(turn, symbol, bars[symbol][-1].close))
        for order in await broker.open_orders():
            if order.symbol == symbol:
                await broker.cancel(order.client_id)
        position = (await broker.positions()).get(symbol)
        if position is None or not position.qty_available:
            return "nothing to close"
        side = Side.SELL if position.qty > 0 else Side.BUY
        request = OrderRequest(f"{symbol}-{turn}", symbol, side, abs(position.qty_available), leg=Leg.CLOSE)
        return await broker.submit(request)
    except RejectedError as error:
        return str(error)


async def whole_life(broker: Broker, clock: Clock) -> list[dict[str, Any]]:
    """Trade the whole feed and note everything that can be asked, after every event."""
    notes: list[dict[str, Any]] = [{"instruments": dict(await broker.instruments(SYMBOLS))}]
    last: str | None = None
    turn = 0
    while not clock.feed_ended:
        before = clock.now()
        now = await clock.advance(FAR)
        assert clock.last is not None
        said = []
        if str(clock.last.event) == "close":
            turn += 1
            said = [await trade(broker, symbol, turn, now) for symbol in SYMBOLS]
        fills = await broker.fills(last)
        last = fills[-1].exec_id if fills else last
        notes.append(
            {
                "now": now,
                "event": str(clock.last.event),
                "changed": bool(clock.last.orders_changed),
                "said": said,
                "fills": list(fills),
                "account": await broker.account(),
                "positions": dict(await broker.positions()),
                "open": list(await broker.open_orders()),
                "since": list(await broker.orders_since(before)),
                "bars": {name: list(bars) for name, bars in (await broker.bars(SYMBOLS, PERIOD, before, now)).items()},
                "quotes": dict(await broker.quotes(SYMBOLS)),
            }
        )
    notes.append({"all fills": list(await broker.fills(None)), "all": list(await broker.orders_since(at(0)))})
    return notes


def test_a_whole_life_of_trading_is_the_same_in_process_and_over_http(tmp_path: Path) -> None:
    with over_http(tmp_path) as play:
        wired = play(whole_life)
    direct = play_in_process(whole_life)

    assert len(direct[-1]["all fills"]) > BARS // 2
    assert {order.state for order in direct[-1]["all"]} >= {OrderState.FILLED, OrderState.CANCELED}
    for ours, theirs in zip(direct, wired, strict=True):
        for key, value in ours.items():
            assert theirs[key] == value, f"{key} at {ours.get('now')}"


def test_both_say_the_same_of_what_the_venue_can_do(play: Play) -> None:
    async def run(broker: Broker, _: Clock) -> tuple[Any, ...]:
        can = broker.capabilities
        return can.name, can.brackets, can.shorting, can.stepped, can.requests_per_minute

    assert play(run) == ("exchange", {"us_equity", "crypto"}, True, True, None)


def test_a_client_id_is_taken_once(play: Play) -> None:
    async def run(broker: Broker, _: Clock) -> str:
        await broker.submit(BUY("once"))
        with pytest.raises(DuplicateClientIdError) as caught:
            await broker.submit(BUY("once", qty=Decimal(1)))
        return caught.value.code

    assert play(run) == "duplicate_client_id"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (BUY("x", qty=Decimal(1_000_000)), "insufficient_buying_power"),
        (BUY("x", qty=Decimal("0.0000001")), "wrong_qty"),
        (BUY("x", symbol="NOPE"), "unknown_symbol"),
        (BUY("x", stop_loss=Decimal(1_000)), "wrong_price"),
        (BUY("x", type=OrderType.LIMIT), "wrong_fields"),
    ],
    ids=["power", "step", "symbol", "stop", "fields"],
)
def test_a_refusal_has_the_same_code_and_leaves_nothing(play: Play, request_: OrderRequest, code: str) -> None:
    async def run(broker: Broker, _: Clock) -> tuple[str, Any]:
        with pytest.raises(RejectedError) as caught:
            await broker.submit(request_)
        return caught.value.code, await broker.order("x")

    assert play(run) == (code, None)


def test_an_order_that_was_never_sent_is_definitely_absent(play: Play) -> None:
    async def run(broker: Broker, _: Clock) -> Any:
        return await broker.order("never-sent")

    assert play(run) is None


def test_a_cancellation_can_be_repeated_and_ignores_what_it_cannot_find(play: Play) -> None:
    async def run(broker: Broker, _: Clock) -> Any:
        await broker.submit(BUY("a", stop_loss=Decimal(50)))
        for client_id in ("a", "a", "a.stop", "never-sent"):
            await broker.cancel(client_id)
        order = await broker.order("a")
        assert order is not None
        return order.state, [leg.state for leg in order.legs], list(await broker.open_orders())

    assert play(run) == (OrderState.CANCELED, [OrderState.CANCELED], [])


def test_legs_have_names_that_can_be_asked_for(play: Play) -> None:
    async def run(broker: Broker, _: Clock) -> Any:
        await broker.submit(BUY("a", stop_loss=Decimal(50), take_profit=Decimal(200)))
        found = [await broker.order(name) for name in ("a.stop", "a.tp")]
        return [(each.leg, each.parent_client_id, each.state) for each in found if each is not None]

    assert play(run) == [(Leg.STOP, "a", OrderState.HELD), (Leg.TAKE_PROFIT, "a", OrderState.HELD)]


def test_a_leg_that_was_hit_is_found_by_the_time_of_its_fill(play: Play) -> None:
    async def run(broker: Broker, clock: Clock) -> Any:
        close = (await broker.bars(["A"], PERIOD, at(0), clock.now()))["A"][-1].close
        await broker.submit(BUY("a", stop_loss=Decimal(repr(round(close * 0.9999, 4)))))
        await step_to(clock, at(12))
        fills = await broker.fills(None)
        changed = await broker.orders_since(fills[-1].at)
        return [each.client_id for each in changed], fills[-1].client_id

    changed, hit = play(run)

    assert hit == "a.stop"
    assert "a.stop" in changed


def test_a_killed_exchange_continues_where_its_books_stand(tmp_path: Path) -> None:
    books = tmp_path / "books.sqlite"

    async def main() -> tuple[datetime, Any]:
        with running(books) as (url, process):
            port = int(url.rsplit(":", 1)[1])
            broker = AlpacaBroker(AlpacaSettings(kind="exchange", url=url, outage_s_max=20.0))
            await broker.connect()
            await step_to(broker.clock, at(3))
            await broker.submit(BUY("a", stop_loss=Decimal(50)))
            before = broker.clock.now()
            process.kill()
            process.wait(10)
            waiting = asyncio.create_task(broker.clock.advance(FAR))
            await asyncio.sleep(0.3)
        with running(books, port=port):
            now = await waiting
            assert now > before
            order = await broker.order("a")
            await broker.close()
            return now, order

    began = time.monotonic()
    now, order = asyncio.run(main())

    assert now == at(3, 10)
    assert order is not None
    assert order.state in {OrderState.PARTIAL, OrderState.FILLED}
    assert time.monotonic() - began < 25


def test_the_alpaca_rule_set_takes_brackets_for_equities_alone_and_spells_positions_its_way(tmp_path: Path) -> None:
    async def run(broker: Broker, clock: Clock) -> Any:
        await broker.submit(OrderRequest("c", "B/USD", Side.BUY, Decimal(1)))
        await step_to(clock, at(6))
        return broker.capabilities.brackets, list(await broker.positions())

    with running(tmp_path / "books.sqlite", rules="alpaca") as (url, _):
        assert play_over_http(url, run) == ({"us_equity"}, ["B/USD"])
