"""Reconciliation against the exchange: our count is corrected, strangers are left alone, twice is the same as once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from crash_kit import HISTORY_BARS, PERIOD, Crash, Tap, World, Worlds, differences, ledger_rows, settings, walk
from hypothesis import given
from hypothesis import strategies as st
from running_kit import RunningClock
from sqlalchemy import select

from agent.ledger import schema
from agent.orders import client_order_id, intent_id
from agent.parts import Parts
from agent.reconcile import Reconciliation
from agent.records import record_position
from brokers.account import Holding
from brokers.domain import Fill, Leg, OrderRequest, Position, Side, UnavailableError

T = TypeVar("T")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    series = {symbol: walk(symbol, HISTORY_BARS + 30, 1) for symbol in "AB"}
    return Worlds(tmp_path_factory.mktemp("worlds"), settings(), series)


def during(world: World, body: Callable[[Parts], Awaitable[T]]) -> T:
    async def life() -> T:
        async with world.parts(Tap()) as parts:
            return await body(parts)

    return asyncio.run(life())


def reconciled(world: World) -> Reconciliation:
    async def body(parts: Parts) -> Reconciliation:
        return await parts.reconciler.reconcile()

    return during(world, body)


def rows(world: World, table: Any) -> list[Any]:
    async def body(parts: Parts) -> list[Any]:
        return list(parts.ledger.rows(select(table)))

    return during(world, body)


def crashed(worlds: Worlds, point: int) -> World:
    """Return a world whose daemon died at a point and has not been started again."""
    world = worlds.new()

    async def life() -> None:
        await world._life(Tap(crash_at=frozenset([point])))

    with pytest.raises(Crash):
        asyncio.run(life())
    return world


@pytest.mark.slow
@given(point=st.integers(1, 700))
def test_a_second_reconciliation_changes_nothing(worlds: Worlds, point: int) -> None:
    world = crashed(worlds, point)

    async def body(parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
        await parts.reconciler.reconcile()
        first = ledger_rows(parts.ledger)
        await parts.reconciler.reconcile()
        await parts.reconciler.sync()
        return first, ledger_rows(parts.ledger)

    first, second = during(world, body)
    assert differences(first, second) == []
    assert differences(first, world.ledger()) == []
    worlds.drop(world)


def foreign_order(world: World, qty: str = "5") -> str:
    """Trade on the account past the daemon, as a person would."""
    world.engine.advance(world.engine.now, world.engine.now + timedelta(seconds=1))
    world.engine.submit(OrderRequest(client_id="by-hand", symbol="A", side=Side.BUY, qty=Decimal(qty)))
    return "by-hand"


def test_an_order_of_somebody_else_is_reported_and_left_alone(worlds: Worlds) -> None:
    world = worlds.new()
    client_id = foreign_order(world)
    assert reconciled(world).foreign == (client_id,)
    order = world.engine.order(client_id)
    assert order is not None
    assert order.state == "accepted"
    assert rows(world, schema.orders) == []


def test_an_order_of_another_scope_of_this_program_is_told_once_and_left_alone(worlds: Worlds) -> None:
    world = worlds.new()
    other = worlds.new()
    other.settings = world.settings.model_copy(update={"account_scope": "other"})
    other.engine = world.engine
    world.engine.advance(world.engine.now, world.engine.now + timedelta(seconds=1))
    close = world.engine.now - timedelta(seconds=1)
    client_id = client_order_id(intent_id("other", "A", close, Side.BUY, Leg.ENTRY), 1)
    request = OrderRequest(client_id=client_id, symbol="A", side=Side.BUY, qty=Decimal(5))
    world.engine.submit(replace(request, stop_loss=Decimal(50), take_profit=Decimal(200)))
    assert set(reconciled(world).foreign) == {client_id, f"{client_id}.stop", f"{client_id}.tp"}
    reconciled(world)
    assert rows(world, schema.orders) == []
    assert [row.kind for row in rows(world, schema.incidents)] == ["foreign_order"] * 3
    assert reconciled(other).foreign == ()
    assert {row.client_id for row in rows(other, schema.orders)} == {client_id, f"{client_id}.stop", f"{client_id}.tp"}


def test_an_open_order_of_somebody_else_is_no_news_after_a_restart(worlds: Worlds) -> None:
    world = worlds.new()
    foreign_order(world)
    for _ in range(3):
        reconciled(world)
    assert [row.kind for row in rows(world, schema.incidents)] == ["foreign_order"]


def test_a_position_that_we_did_not_count_is_taken_over_told_and_protected(worlds: Worlds) -> None:
    world = worlds.new()
    foreign_order(world)
    world.engine.run_until(world.engine.now + PERIOD)
    found = reconciled(world)
    assert (found.corrected, found.naked) == (("A",), ("A",))
    kinds = [row.kind for row in rows(world, schema.incidents)]
    assert kinds == ["foreign_fill", "position_drift", "unprotected", "foreign_order"]
    [position], [armed] = rows(world, schema.positions), rows(world, schema.exits)
    assert position.qty == world.engine.positions()["A"].qty > 0
    assert (armed.side, armed.mode) == ("sell", "local")
    assert armed.stop is not None
    again = reconciled(world)
    assert (again.fills, again.corrected, again.naked) == (0, (), ())
    assert len(rows(world, schema.incidents)) == 4


def test_a_position_that_the_venue_does_not_have_goes_with_its_exits(worlds: Worlds) -> None:
    world = worlds.new()

    async def imagine(parts: Parts) -> None:
        parts.state.book.holdings["B"] = Holding(qty=Decimal(3), avg_cost=Decimal(100))
        with parts.ledger.transaction() as connection:
            record_position(connection, parts.ledger, parts.state, "B", parts.clock.now())

    during(world, imagine)
    assert reconciled(world).corrected == ("B",)
    assert [row.qty for row in rows(world, schema.positions)] == [0]
    assert rows(world, schema.exits) == []
    assert [row.kind for row in rows(world, schema.incidents)] == ["position_drift"]


def test_an_order_that_the_venue_denies_pauses_its_symbol_and_is_told_once(worlds: Worlds) -> None:
    world = worlds.new()

    async def imagine(parts: Parts) -> None:
        row = {
            "client_id": "tdm-lost-1",
            "intent_id": "tdm-lost",
            "attempt": 1,
            "symbol": "A",
            "side": "buy",
            "leg": "entry",
            "type": "market",
            "qty": Decimal(1),
            "state": "accepted",
            "filled_qty": Decimal(0),
            "submitted_at": parts.clock.now(),
            "updated_at": parts.clock.now(),
        }
        with parts.ledger.transaction() as connection:
            connection.execute(schema.orders.insert(), row)

    during(world, imagine)
    reconciled(world)
    reconciled(world)
    assert [row.kind for row in rows(world, schema.incidents)] == ["order_lost"]
    assert [row.state for row in rows(world, schema.orders)] == ["canceled"]
    assert {row.key: row.value for row in rows(world, schema.state)}["paused"] == {"A": "order_lost"}


def test_an_entry_that_filled_and_stopped_out_unseen_is_booked_in_full(worlds: Worlds) -> None:
    """The daemon dies with its order on the wire, and the venue's time runs on: all of it is there afterwards."""
    first = worlds.new().play()
    submitted = first.labels.index("after submit") + 1
    world = crashed(worlds, submitted)
    world.engine.run_until(world.engine.now + 20 * PERIOD)
    assert len(world.engine.fills()) > 1
    found = reconciled(world)
    assert found.fills == len(world.engine.fills())
    assert found.corrected == ()
    assert rows(world, schema.incidents) == []


class LateFills:
    """A venue that reports a position a moment before the fill that made it."""

    def __init__(self, parts: Parts, late: int) -> None:
        self._venue = parts.broker
        self._late = late
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._venue, name)

    async def fills(self, after: str | None) -> list[Fill]:
        self.asked += 1
        return [] if self.asked <= self._late else list(await self._venue.fills(after))


def test_a_position_ahead_of_its_fill_is_no_drift(worlds: Worlds) -> None:
    """On a running venue only a difference that stays after a second look is corrected."""
    submitted = worlds.new().play().labels.index("after submit") + 1
    world = crashed(worlds, submitted)
    world.engine.run_until(world.engine.now + PERIOD)

    async def body(parts: Parts) -> Reconciliation:
        parts.reconciler.clock = RunningClock(world.engine)
        parts.reconciler.broker = LateFills(parts, late=2)  # type: ignore[assignment]  # it answers as the broker does
        return await parts.reconciler.reconcile()

    found = during(world, body)
    assert (found.corrected, found.naked) == ((), ())
    assert found.fills > 0
    assert rows(world, schema.incidents) == []


class Vanished(LateFills):
    """A venue on which the position was closed past the daemon, and its exits were left standing."""

    deaf = 0

    async def positions(self) -> dict[str, Position]:
        return {}

    async def cancel(self, client_id: str) -> None:
        if self.deaf:
            self.deaf -= 1
            raise UnavailableError("no answer")
        await self._venue.cancel(client_id)


def holding(worlds: Worlds) -> World:
    """Return a world whose daemon died while it held a position that the venue guards."""
    labels = worlds.new().play().labels
    for point in range(labels.index("after submit") + 1, len(labels), 7):
        world = crashed(worlds, point)
        legs = {order.symbol for order in world.engine.live_orders() if order.leg is not Leg.ENTRY}
        entering = {order.symbol for order in world.engine.live_orders() if order.leg is Leg.ENTRY}
        if legs & set(world.engine.positions()) - entering:
            return world
        worlds.drop(world)
    raise AssertionError("no position with exits at the venue was ever held")


def guarded(world: World) -> set[str]:
    """Return the legs that work at the venue; those of entries that may still fill are left out."""
    live = {order.client_id: order for order in world.engine.live_orders()}
    return {name for name, order in live.items() if order.leg is not Leg.ENTRY and order.parent_client_id not in live}


def test_exits_left_by_a_position_that_is_gone_are_cancelled(worlds: Worlds) -> None:
    world = holding(worlds)
    left = guarded(world)
    assert left

    async def body(parts: Parts) -> None:
        parts.reconciler.broker = Vanished(parts, late=0)  # type: ignore[assignment]  # it answers as the broker does
        await parts.reconciler.reconcile()
        assert all(not order.state.is_working for order in map(parts.state.orders.get, left) if order is not None)

    during(world, body)
    assert guarded(world) == set()
    assert {row.state for row in rows(world, schema.orders) if row.client_id in left} == {"canceled"}
    told = [row.detail for row in rows(world, schema.incidents) if row.kind == "stranded_order"]
    assert len(told) == len(left)
    assert all(text.endswith("not held: cancelled") for text in told)


def test_a_cancellation_that_is_not_heard_is_tried_again_at_the_next_looks(worlds: Worlds) -> None:
    world = holding(worlds)

    async def body(parts: Parts) -> list[set[str]]:
        venue = Vanished(parts, late=0)
        parts.reconciler.broker = venue  # type: ignore[assignment]  # it answers as the broker does
        venue.deaf = 10_000
        await parts.reconciler.reconcile()
        deaf = guarded(world)
        venue.deaf = 0
        await parts.reconciler.sync()
        return [deaf, guarded(world)]

    left = guarded(world)
    assert during(world, body) == [left, set()]
    told = [row.detail for row in rows(world, schema.incidents) if row.kind == "stranded_order"]
    assert sum("not cancelled yet (no answer)" in text for text in told) == len(left)
    assert sum(text.endswith("not held: cancelled") for text in told) == len(left)


class Lagging(LateFills):
    """A venue that says that an order has filled, and tells neither the fill nor the position yet."""

    async def positions(self) -> dict[str, Position]:
        return {} if self.asked <= self._late else dict(await self._venue.positions())


def just_entered(worlds: Worlds) -> World:
    """Return a world whose daemon died after it sent an entry, which has filled since, and whose legs stand."""
    labels = worlds.new().play().labels
    for point in [number for number, label in enumerate(labels, start=1) if label == "after submit"]:
        world = crashed(worlds, point)
        world.engine.run_until(world.engine.now + PERIOD)
        if guarded(world) and not any(row.qty for row in rows(world, schema.positions)):
            return world
        worlds.drop(world)
    raise AssertionError("no entry filled in the bar after it was sent")


def test_exits_of_a_position_that_is_told_late_stay(worlds: Worlds) -> None:
    world = just_entered(worlds)
    legs = guarded(world)

    async def body(parts: Parts) -> Reconciliation:
        parts.reconciler.clock = RunningClock(world.engine)
        parts.reconciler.broker = Lagging(parts, late=10)  # type: ignore[assignment]  # it answers as the broker does
        return await parts.reconciler.reconcile()

    assert during(world, body).corrected == ()
    assert guarded(world) == legs
    assert reconciled(world).fills > 0
    assert guarded(world) == legs
    assert rows(world, schema.incidents) == []


class Forgetful(LateFills):
    """A venue that for its first answers tells no positions, although it has told their fills."""

    answers = 0

    async def positions(self) -> dict[str, Position]:
        self.answers += 1
        return {} if self.answers <= self._late else dict(await self._venue.positions())


def test_exits_stay_where_a_corrected_position_turns_out_to_be_held_after_all(worlds: Worlds) -> None:
    world = holding(worlds)
    legs = guarded(world)
    reconciled(world)

    async def body(parts: Parts) -> Reconciliation:
        parts.reconciler.clock = RunningClock(world.engine)
        parts.reconciler.broker = Forgetful(parts, late=2)  # type: ignore[assignment]  # it answers as the broker does
        return await parts.reconciler.reconcile()

    assert during(world, body).corrected != ()
    assert guarded(world) == legs
    reconciled(world)
    assert guarded(world) == legs
    assert {row.symbol for row in rows(world, schema.exits)} >= {world.engine.book()[leg].symbol for leg in legs}


def test_exits_of_a_position_that_is_held_stay(worlds: Worlds) -> None:
    world = holding(worlds)
    left = guarded(world)
    reconciled(world)
    assert guarded(world) == left


def test_a_question_without_an_answer_concludes_nothing(worlds: Worlds) -> None:
    world = crashed(worlds, 300)
    before = world.ledger()

    class Silent(LateFills):
        async def positions(self) -> dict[str, Position]:
            raise UnavailableError("no answer")

    async def body(parts: Parts) -> None:
        parts.reconciler.broker = Silent(parts, late=0)  # type: ignore[assignment]  # it answers as the broker does
        with pytest.raises(UnavailableError):
            await parts.reconciler.reconcile()

    during(world, body)
    assert differences(before, world.ledger()) == []


def test_a_new_ledger_on_old_books_finds_every_order_and_fill_of_ours(worlds: Worlds) -> None:
    world = worlds.new()
    world.play()
    lost, world.path = world.ledger(), worlds.new().path
    found = reconciled(world)
    assert found.fills == len(world.engine.fills())
    assert found.corrected == ()
    rebuilt = world.ledger()
    assert rebuilt["fills"] == lost["fills"]
    assert {row.kind for row in rows(world, schema.incidents)} <= {"unprotected"}
