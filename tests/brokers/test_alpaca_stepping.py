"""Venue time over the wire: advanced step by step, repeated after a loss, or waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loopback import Loopback, Reply, Seen, serving

from brokers.alpaca import AlpacaBroker, AlpacaClient, AlpacaSettings, SteppedClock, WallClock, convert, inline
from brokers.domain import RejectedError, UnavailableError

START = datetime(2026, 3, 17, 14, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Exchange:
    """The stepping face: one event each minute, every advance answered idempotently in `from`."""

    def __init__(self) -> None:
        self.now = START
        self.moves = 0
        self.faults: list[Callable[[Reply], Reply]] = []

    def answer(self, seen: Seen) -> Reply:
        reply = self._advance(seen.body) if seen.method == "POST" else Reply(200, self._clock() | {"stepped": True})
        return self.faults.pop(0)(reply) if self.faults else reply

    def _clock(self) -> dict[str, Any]:
        return {"now": convert.stamp(self.now), "feed_ended": self.now >= START + 5 * MINUTE}

    def _advance(self, body: dict[str, str]) -> Reply:
        origin, until = convert.time(body["from"]), convert.time(body["idle_until"])
        if origin > self.now:
            return Reply(409, {"code": 40910000, "message": f"clock {self.now} is before from {origin}"})
        repeated = origin < self.now
        if not repeated:
            self.now = min(self.now + MINUTE, until)
            self.moves += 1
        return Reply(200, self._clock() | {"event": "close", "repeated": repeated, "orders_changed": False})


def stepped(run: Callable[[SteppedClock, Exchange, Loopback], Awaitable[Any]], **changes: Any) -> Any:
    exchange = Exchange()

    async def main(server: Loopback) -> Any:
        settings = AlpacaSettings(
            kind="exchange", url=server.url, **({"read_timeout_s": 0.3, "outage_s_max": 2.0} | changes)
        )
        client = AlpacaClient(settings, run=inline)
        clock = SteppedClock(client)
        await clock.connect()
        try:
            return await run(clock, exchange, server)
        finally:
            client.close()

    with serving(exchange.answer) as server:
        return asyncio.run(main(server))


def test_time_stands_until_it_is_advanced() -> None:
    async def run(clock: SteppedClock, *_: Any) -> list[datetime]:
        return [clock.now(), clock.now(), await clock.advance(START + timedelta(hours=1)), clock.now()]

    assert stepped(run) == [START, START, START + MINUTE, START + MINUTE]


def test_an_advance_goes_no_further_than_asked() -> None:
    async def run(clock: SteppedClock, *_: Any) -> datetime:
        return await clock.advance(START + timedelta(seconds=7))

    assert stepped(run) == START + timedelta(seconds=7)


@pytest.mark.parametrize(
    "fault",
    [
        lambda _: Reply(hang=True),
        lambda _: Reply(502, b"<html>"),
        lambda reply: Reply(200, reply.body, reset_after=5),
        lambda _: Reply(200, b"not json"),
        lambda _: Reply(429, {"message": "slow down"}, {"Retry-After": "0"}),
    ],
    ids=["hang", "502", "reset", "garbage", "429"],
)
def test_an_advance_whose_answer_was_lost_is_repeated_and_moves_time_once(fault: Callable[[Reply], Reply]) -> None:
    async def run(clock: SteppedClock, exchange: Exchange, server: Loopback) -> tuple[datetime, int, Any, Any]:
        exchange.faults = [fault]
        now = await clock.advance(START + timedelta(hours=1))
        return now, exchange.moves, [seen.body["from"] for seen in server.seen if seen.method == "POST"], clock.last

    now, moves, origins, last = stepped(run)

    assert (now, moves) == (START + MINUTE, 1)
    assert origins == [convert.stamp(START)] * 2
    assert (last.repeated, last.orders_changed) == (True, True)


def test_an_exchange_that_stays_away_is_unavailable_within_the_limit() -> None:
    async def run(clock: SteppedClock, exchange: Exchange, _: Loopback) -> None:
        exchange.faults = [lambda _: Reply(503, b"")] * 100
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="did not advance"):
            await clock.advance(START + MINUTE)
        assert time.monotonic() - began < 1.0

    stepped(run, outage_s_max=0.3)


def test_an_exchange_whose_books_were_replaced_is_an_error_that_names_both_times() -> None:
    async def run(clock: SteppedClock, exchange: Exchange, _: Loopback) -> None:
        exchange.now -= timedelta(days=1)
        with pytest.raises(RejectedError, match="is before from"):
            await clock.advance(START + MINUTE)

    stepped(run)


def test_the_end_of_the_feed_is_known() -> None:
    async def run(clock: SteppedClock, *_: Any) -> tuple[bool, bool]:
        before = clock.feed_ended
        for _ in range(5):
            await clock.advance(START + timedelta(hours=1))
        return before, clock.feed_ended

    assert stepped(run) == (False, True)


def test_an_exchange_that_runs_by_itself_is_refused() -> None:
    with serving(lambda _: Reply(200, {"now": convert.stamp(START), "stepped": False})) as server:
        clock = SteppedClock(AlpacaClient(AlpacaSettings(kind="exchange", url=server.url), run=inline))
        with pytest.raises(RejectedError, match="stepped"):
            asyncio.run(clock.connect())


def test_venue_time_before_connecting_is_unknown() -> None:
    clock = SteppedClock(AlpacaClient(AlpacaSettings(kind="exchange", url="http://127.0.0.1:9"), run=inline))

    with pytest.raises(UnavailableError):
        clock.now()


def test_a_wall_clock_follows_the_venues_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCA_API_KEY_ID", "KEY")
    monkeypatch.setenv("APCA_API_SECRET_KEY", "SECRET")
    ahead = timedelta(seconds=5)

    def answer(seen: Seen) -> Reply:
        if seen.path == "/v2/account":
            return Reply(200, {"status": "ACTIVE"})
        return Reply(200, {"timestamp": convert.stamp(datetime.now(UTC) + ahead), "is_open": True})

    with serving(answer) as server:
        broker = AlpacaBroker(AlpacaSettings(url=server.url), run=inline)
        asyncio.run(broker.connect())
        asyncio.run(broker.close())

    assert abs(broker.clock.now() - datetime.now(UTC) - ahead) < timedelta(seconds=0.2)


def test_a_wall_clock_waits_until_the_asked_time() -> None:
    async def run() -> timedelta:
        clock = WallClock()
        target = clock.now() + timedelta(seconds=0.1)
        return await clock.advance(target) - target

    assert timedelta(0) <= asyncio.run(run()) < timedelta(seconds=0.5)


def test_a_waiting_wall_clock_can_be_woken_and_cancelled() -> None:
    async def run() -> float:
        clock = WallClock()
        began = time.monotonic()
        waiting = asyncio.create_task(clock.advance(clock.now() + timedelta(hours=1)))
        await asyncio.sleep(0.02)
        clock.wake()
        await waiting
        cancelled = asyncio.create_task(clock.advance(clock.now() + timedelta(hours=1)))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return time.monotonic() - began

    assert asyncio.run(run()) < 1.0
