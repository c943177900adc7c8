"""One close under hard conditions: revised bars, answers that cannot be used, positions that are not counted right."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from crash_kit import HISTORY_BARS, PERIOD, T0, Tap, TappedClock, World, Worlds, settings, walk
from running_kit import TappedRunningClock
from sqlalchemy import select

from agent import control, cycle
from agent.cycle import Trader
from agent.daemon import Daemon
from agent.ledger import schema
from agent.ledger.store import LedgerError
from agent.parts import Parts
from agent.recent import Recent
from brokers.calendar import calendar
from brokers.domain import Bar, OrderRequest, Quote, Side
from strategies.strategy import Abstention, ExitLevels, Observations, Opinion, Reason, Strategy

T = TypeVar("T")
BEGIN = T0 + HISTORY_BARS * PERIOD
DEEP = Decimal("0.01")


def world_of(folder: Path, *more: str, running: bool = False, symbols: str = "AB") -> World:
    series = {symbol: walk(symbol, HISTORY_BARS + 40, 1) for symbol in symbols}
    world = Worlds(folder, settings(*more), series).new()
    world.make_clock = TappedRunningClock if running else TappedClock
    return world


def during(world: World, body: Callable[[Parts, Trader, datetime], Awaitable[T]]) -> T:
    """Recover, as a new process does, then do something."""

    async def life() -> T:
        async with world.parts(Tap()) as parts:
            trader, first = await Daemon(world.settings)._recover(parts)
            return await body(parts, trader, first)

    return asyncio.run(life())


def rows(parts: Parts, table: Any) -> list[Any]:
    return list(parts.ledger.rows(select(table)))


# ---- revised bars -----------------------------------------------------------------------------------------------


class Revising:
    """Market data that corrects the close of one bar as soon as a later one is there."""

    def __init__(self, parts: Parts, start: datetime) -> None:
        self._data = parts.data
        self._start = start

    async def bars(
        self, symbols: Sequence[str], period: timedelta, start: datetime, end: datetime
    ) -> dict[str, list[Bar]]:
        found = await self._data.bars(symbols, period, start, end)
        return {symbol: [self._corrected(bar) for bar in bars] for symbol, bars in found.items()}

    def _corrected(self, bar: Bar) -> Bar:
        return replace(bar, volume=bar.volume + 1.0) if bar.start == self._start else bar


def test_a_bar_that_was_revised_when_the_next_one_closed_counts_once_and_the_next_one_is_decided(
    tmp_path: Path,
) -> None:
    world = world_of(tmp_path, running=True)

    async def body(parts: Parts, trader: Trader, first: datetime) -> tuple[int, list[Any]]:
        await parts.clock.advance(first)
        await trader.on_close(first)
        revising: Any = Revising(parts, first - PERIOD)
        parts.data = parts.history.data = revising
        await parts.clock.advance(first + PERIOD)
        report = await trader.on_close(first + PERIOD)
        return report.bars, [row for row in rows(parts, schema.bars_seen) if row.revision == 1]

    new_bars, revised = during(world, body)
    assert new_bars == 2
    assert [row.symbol for row in revised] == ["A", "B"]


class Damaging(Revising):
    """Market data with one bar that is never right."""

    def _corrected(self, bar: Bar) -> Bar:
        return replace(bar, close=math.nan) if bar.start == self._start and bar.symbol == "A" else bar


def test_a_bar_that_is_refused_at_every_look_leaves_one_incident(tmp_path: Path) -> None:
    world = world_of(tmp_path, "daemon.decision_deadline_s=9", running=True)

    async def body(parts: Parts, trader: Trader, first: datetime) -> list[Any]:
        damaging: Any = Damaging(parts, first - PERIOD)
        parts.data = parts.history.data = damaging
        for close in (first, first + PERIOD):
            await parts.clock.advance(close)
            await trader.on_close(close)
        return rows(parts, schema.incidents)

    assert [(row.kind, row.symbol) for row in during(world, body)] == [("bad_bar", "A")]


# ---- answers ----------------------------------------------------------------------------------------------------


class Faulty:
    """A strategy that says what it is told to say."""

    def __init__(self, sound: Strategy, answers: Sequence[Opinion | Abstention]) -> None:
        self.name = sound.name
        self.feature_spec = sound.feature_spec
        self._answers = answers

    async def opinions(self, _observations: Observations) -> Sequence[Opinion | Abstention]:
        return self._answers


GOOD = {"A": Opinion("A", 0, q={0: 0.0}), "B": Opinion("B", 0, q={0: 0.0})}


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([GOOD["B"]], id="none for a symbol"),
        pytest.param([GOOD["A"], GOOD["B"], Opinion("A", 1)], id="two for a symbol"),
        pytest.param([Opinion("A", 2), GOOD["B"]], id="a target that is none"),
        pytest.param([Opinion("A", 1, q={1: math.nan}), GOOD["B"]], id="a value that is no number"),
        pytest.param([Opinion("A", 1, detail={"spread": math.inf}), GOOD["B"]], id="a detail that is no number"),
        pytest.param([Opinion("A", 1, exits=ExitLevels(math.nan, None)), GOOD["B"]], id="an exit that is no number"),
        pytest.param([Opinion("A", 1, exits=ExitLevels(0.0, None)), GOOD["B"]], id="an exit without distance"),
        pytest.param([Abstention("C", Reason.NO_ANSWER), GOOD["B"]], id="another symbol's"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_abstention_of_its_symbol_alone(
    answers: list[Opinion | Abstention], tmp_path: Path
) -> None:
    world = world_of(tmp_path)

    async def body(parts: Parts, trader: Trader, first: datetime) -> dict[str, Any]:
        parts.strategy = Faulty(parts.strategy, answers)
        while parts.clock.now() < first:
            await parts.clock.advance(first)
        report = await trader.on_close(first)
        assert report.intents == 0
        return {row.symbol: row.votes["random"] for row in rows(parts, schema.decisions)}

    votes = during(world, body)
    assert votes["A"]["abstained"] == "model_error"
    assert "abstained" not in votes["B"]


@pytest.mark.parametrize("answers", [None, [None], [Opinion("A", 1, q={1: "much"}), GOOD["B"]]], ids=repr)  # type: ignore[dict-item]  # what a mind may get wrong
def test_what_is_no_answer_at_all_is_an_abstention_and_the_daemon_goes_on(answers: Any, tmp_path: Path) -> None:
    world = world_of(tmp_path)

    async def body(parts: Parts, trader: Trader, first: datetime) -> list[Any]:
        parts.strategy = Faulty(parts.strategy, answers)
        while parts.clock.now() < first:
            await parts.clock.advance(first)
        await trader.on_close(first)
        return rows(parts, schema.decisions)

    assert {row.votes["random"]["abstained"] for row in during(world, body)} == {"model_error"}


@pytest.mark.parametrize(("gone_s", "left_s"), [(0.0, 10.0), (6.5, 3.5), (60.0, 1.0)])
def test_a_mind_has_what_is_left_of_the_decision_deadline(gone_s: float, left_s: float, tmp_path: Path) -> None:
    world = world_of(tmp_path, running=True)

    class Asked(Faulty):
        async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
            assert observations.deadline_monotonic_s is not None
            given_s.append(observations.deadline_monotonic_s - time.monotonic())
            return self._answers

    given_s: list[float] = []

    async def body(parts: Parts, trader: Trader, first: datetime) -> None:
        parts.strategy = Asked(parts.strategy, list(GOOD.values()))
        await parts.clock.advance(first + timedelta(seconds=gone_s))
        await trader.on_close(first)

    during(world, body)
    assert given_s == [pytest.approx(left_s, abs=0.5)]


# ---- local exits --------------------------------------------------------------------------------------------------


async def crash_quotes(symbols: Sequence[str]) -> dict[str, Quote]:
    return {symbol: Quote(symbol, DEEP, DEEP, BEGIN) for symbol in symbols}


def bought_by_hand(world: World, symbol: str, qty: str = "5") -> None:
    """Trade on the account past the daemon, as a person would."""
    order = OrderRequest(client_id=f"by-hand-{symbol}-{qty}", symbol=symbol, side=Side.BUY, qty=Decimal(qty))
    world.engine.submit(order)
    world.engine.run_until(world.engine.now + 3 * PERIOD)


@pytest.mark.parametrize("counted", ["4.9", "5.1"])
def test_an_exit_is_not_held_up_by_a_count_that_is_off(counted: str, tmp_path: Path) -> None:
    """A fee that the venue takes from what was bought leaves less than was filled."""
    world = world_of(tmp_path, running=True)
    bought_by_hand(world, "A")

    async def body(parts: Parts, trader: Trader, _first: datetime) -> list[Any]:
        parts.state.book.holdings["A"].qty = Decimal(counted)
        parts.data.quotes = crash_quotes  # type: ignore[method-assign]  # the market falls through the stop
        await trader.watch_exits()
        return rows(parts, schema.orders)

    [order] = during(world, body)
    assert (order.leg, order.qty) == ("stop", world.engine.positions()["A"].qty)


def test_the_exit_of_a_symbol_that_is_no_longer_traded_still_fires(tmp_path: Path) -> None:
    world = world_of(tmp_path, running=True, symbols="ABZ")
    bought_by_hand(world, "Z")

    async def body(parts: Parts, trader: Trader, _first: datetime) -> list[Any]:
        assert "Z" not in parts.symbols
        parts.data.quotes = crash_quotes  # type: ignore[method-assign]  # the market falls through the stop
        await trader.watch_exits()
        return rows(parts, schema.orders)

    [order] = during(world, body)
    assert (order.symbol, order.leg) == ("Z", "stop")


# ---- what other processes say -----------------------------------------------------------------------


def test_a_resume_during_the_start_of_the_daemon_ends_pauses_too(tmp_path: Path) -> None:
    world = world_of(tmp_path)

    async def life() -> dict[str, str]:
        async with world.parts(Tap()) as parts:
            with parts.ledger.transaction() as connection:
                parts.ledger.set_state(connection, "paused", {"A": "order_lost"})
        async with world.parts(Tap()) as parts:
            control.resume(parts.ledger, parts.clock.now())  # after the state was read, before the first close
            trader, first = await Daemon(world.settings)._recover(parts)
            while parts.clock.now() < first:
                await parts.clock.advance(first)
            await trader.on_close(first)
            return dict(parts.state.paused)

    assert asyncio.run(life()) == {}


def test_an_entry_that_was_decided_before_a_halt_is_not_sent_after_it(tmp_path: Path) -> None:
    world = world_of(tmp_path, "strategy.params={flip_probability: 1.0, seed: 3}")

    async def life() -> tuple[int, list[Any]]:
        async with world.parts(Tap()) as parts:
            trader, close = await Daemon(world.settings)._recover(parts)
            sent, carry_out = 0, trader._carry_out

            async def die(intents: list[Any]) -> Any:
                nonlocal sent
                sent = len(intents)
                if intents:
                    raise KeyboardInterrupt
                return await carry_out(intents)

            trader._carry_out = die  # type: ignore[method-assign]  # the process is killed between commit and wire
            try:
                while True:
                    while parts.clock.now() < close:
                        await parts.clock.advance(close)
                    await trader.on_close(close)
                    close += PERIOD
            except KeyboardInterrupt:
                assert sent
        async with world.parts(Tap()) as parts:
            control.halt(parts.ledger, "something is wrong", parts.clock.now())
            await Daemon(world.settings)._recover(parts)
            return sent, rows(parts, schema.orders)

    planned, orders = asyncio.run(life())
    assert planned > 0
    assert orders == []


class Slow:
    """A strategy that thinks while the venue goes on; afterwards it notes what is guarded."""

    def __init__(self, parts: Parts, wanted: int) -> None:
        self.name = parts.strategy.name
        self.feature_spec = parts.strategy.feature_spec
        self._parts = parts
        self._wanted = wanted
        self.guarded: dict[str, bool] = {}

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        if self._parts.state.orders:
            await self._parts.clock.advance(observations.close_time + timedelta(seconds=11))
            await asyncio.sleep(0.3)
            state = self._parts.state
            self.guarded = {symbol: symbol in state.exits for symbol in state.book.holdings}
        return [Opinion(symbol, self._wanted) for symbol in observations.symbols]


def test_what_fills_while_a_mind_thinks_is_guarded_before_it_has_thought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "GUARD_EVERY_S", 0.05)
    world = world_of(tmp_path, "costs.latency_bars=2", "exchange.partial_fill_probability=0", running=True)

    async def body(parts: Parts, trader: Trader, first: datetime) -> dict[str, bool]:
        slow = Slow(parts, 1)
        parts.strategy = slow
        await parts.clock.advance(first)
        await trader.on_close(first)  # its entries fill at the open after the next one
        await parts.clock.advance(first + PERIOD)
        await trader.on_close(first + PERIOD)
        return slow.guarded

    assert during(world, body) == {"A": True, "B": True}


def test_a_ledger_that_fails_while_a_mind_thinks_ends_the_close_and_is_no_abstention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "GUARD_EVERY_S", 0.05)
    world = world_of(tmp_path, "costs.latency_bars=2", running=True)

    async def body(parts: Parts, trader: Trader, first: datetime) -> None:
        slow = Slow(parts, 1)
        parts.strategy = slow
        await parts.clock.advance(first)
        await trader.on_close(first)
        await parts.clock.advance(first + PERIOD)
        asked = 0
        sound = parts.reconciler.sync

        async def full_disk() -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:  # the first look is that of the close itself
                raise LedgerError("the disk is full")
            return await sound()

        parts.reconciler.sync = full_disk  # type: ignore[method-assign]  # a disk that fills up at this moment
        with pytest.raises(LedgerError, match="disk is full"):
            await trader.on_close(first + PERIOD)

    during(world, body)


# ---- the gate ---------------------------------------------------------------------------------------------------


def test_a_cooldown_outlasts_a_weekend(tmp_path: Path) -> None:
    world = world_of(tmp_path, "risk.cooldown_bars=3")

    async def body(parts: Parts, _trader: Trader, _first: datetime) -> dict[str, int]:
        friday = datetime.fromisoformat("2024-01-05T20:57:00+00:00")
        monday = datetime.fromisoformat("2024-01-08T14:35:00+00:00")
        recent = Recent(parts.ledger, calendar("XNYS"), PERIOD, cooldown_bars=3)
        fill = {"venue": "v", "exec_id": "1", "client_id": "c", "symbol": "A", "side": "sell", "leg": "stop"}
        amounts = {"qty": Decimal(1), "price": Decimal(1), "fee": Decimal(0), "at": friday}
        with parts.ledger.transaction() as connection:
            parts.ledger.insert_new(connection, schema.fills, [fill | amounts])
        return dict(recent.before(monday).bars_since_stop)

    assert during(world, body) == {"A": 2}


# ---- the bar store ----------------------------------------------------------------------------------------------


def test_a_bar_store_that_cannot_be_written_is_told_and_the_daemon_goes_on(tmp_path: Path) -> None:
    kept = tmp_path / "bars"
    series = {symbol: walk(symbol, 24 * 12 + 20, 1) for symbol in "AB"}
    world = Worlds(tmp_path, settings(f"daemon.bar_store={kept}", "daemon.reconcile_interval_s=90000"), series).new()
    kept.write_text("a file, where a folder is due")

    async def life() -> list[Any]:
        async with world.parts(Tap()) as parts:
            daemon = Daemon(world.settings)
            trader, first = await daemon._recover(parts)
            await daemon._live(parts, trader, first)
            assert daemon.report.reason == "feed ended"
            return rows(parts, schema.incidents)

    incidents = asyncio.run(life())
    assert [row.kind for row in incidents].count("bars_not_stored") == 1
