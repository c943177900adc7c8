"""The order desk against the exchange: every outcome of a wire attempt, and what the ledger says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from crash_kit import HISTORY_BARS, PERIOD, Tap, World, Worlds, settings, walk
from running_kit import TappedRunningClock
from sqlalchemy import select

from agent.cycle import Trader
from agent.ledger import schema
from agent.orders import Intent, IntentState, client_order_id, intent_id, request_of
from agent.parts import Parts
from brokers.domain import ExitPlan, Leg, Side
from strategies.strategy import Reason

T = TypeVar("T")
Body = Callable[[Parts], Awaitable[T]]


@pytest.fixture
def worlds(tmp_path: Path) -> Worlds:
    chosen = settings("venue.outage_s_max=0", "strategy.shorts=false", "exchange.partial_fill_probability=0")
    return Worlds(tmp_path, chosen, {symbol: walk(symbol, HISTORY_BARS + 20, 1) for symbol in "AB"})


@pytest.fixture
def world(worlds: Worlds) -> World:
    made = worlds.new()
    made.engine.advance(made.engine.now, made.engine.now + timedelta(seconds=1))
    return made


def during(world: World, body: Body[T], faults: Mapping[str, Sequence[str | None]] | None = None) -> T:
    """Run a body in one life of a daemon; `faults` names what goes wrong with the first calls of a kind."""
    planned = {name: list(kinds) for name, kinds in (faults or {}).items()}

    def fault_of(kinds: Sequence[str | None]) -> Callable[[int], str | None]:
        return lambda number: kinds[number - 1] if number <= len(kinds) else None

    async def life() -> T:
        async with world.parts(Tap(faults={name: fault_of(kinds) for name, kinds in planned.items()})) as parts:
            await parts.reconciler.reconcile()
            return await body(parts)

    return asyncio.run(life())


def entry(parts: Parts, symbol: str = "A", qty: str = "10") -> Intent:
    """Return a planned long entry of the present close, in state and ledger."""
    close = parts.calendar.previous_close(parts.clock.now(), PERIOD)
    intent = Intent(
        intent_id=intent_id(parts.settings.account_scope, symbol, close, Side.BUY, Leg.ENTRY),
        sequence=1,
        close_time=close,
        symbol=symbol,
        side=Side.BUY,
        leg=Leg.ENTRY,
        qty=Decimal(qty),
        exits=ExitPlan(stop=Decimal(50), take_profit=Decimal(200)),
        reference_price=100.0,
        predicted_cost_fraction=0.001,
        valid_until=close + timedelta(seconds=10),
    )
    return plan(parts, intent)


def closing(parts: Parts, symbol: str = "A") -> Intent:
    """Return a planned close of what is held."""
    close = parts.calendar.previous_close(parts.clock.now(), PERIOD)
    return plan(
        parts,
        Intent(
            intent_id=intent_id(parts.settings.account_scope, symbol, close, Side.SELL, Leg.CLOSE),
            sequence=0,
            close_time=close,
            symbol=symbol,
            side=Side.SELL,
            leg=Leg.CLOSE,
            qty=Decimal(10),
            exits=None,
            reference_price=100.0,
            predicted_cost_fraction=0.001,
            valid_until=None,
        ),
    )


def plan(parts: Parts, intent: Intent) -> Intent:
    with parts.ledger.transaction() as connection:
        Trader(parts)._write_intents(connection, [intent])
    return intent


async def carried_out(parts: Parts, *intents: Intent) -> list[Reason]:
    outcomes = await parts.desk.execute(intents)
    return [outcomes[intent.intent_id] for intent in intents]


async def enter(parts: Parts) -> list[Reason]:
    return await carried_out(parts, entry(parts))


def rows(world: World, table: Any) -> list[Any]:
    async def read() -> list[Any]:
        async with world.parts(Tap()) as parts:
            return list(parts.ledger.rows(select(table)))

    return asyncio.run(read())


def attempts(world: World) -> list[tuple[int, str]]:
    found = [row for row in rows(world, schema.orders) if row.parent_client_id is None]
    return sorted((row.attempt, row.state) for row in found)


def intent_states(world: World) -> list[str]:
    return [row.state for row in rows(world, schema.intents)]


def hold(world: World) -> None:
    """Enter ten of A and let the entry fill."""
    assert during(world, enter) == [Reason.TRADED]
    world.engine.run_until(world.engine.now + PERIOD)


def test_an_accepted_entry_is_in_the_ledger_with_its_legs(world: World) -> None:
    assert during(world, enter) == [Reason.TRADED]
    legs = sorted((row.leg, row.state) for row in rows(world, schema.orders))
    assert legs == [("entry", "accepted"), ("stop", "held"), ("take_profit", "held")]
    assert intent_states(world) == [IntentState.DONE]


def test_a_rejected_entry_is_dropped_and_counted(world: World) -> None:
    async def body(parts: Parts) -> tuple[list[Reason], Mapping[str, int]]:
        intent = replace(entry(parts), exits=ExitPlan(stop=Decimal(500), take_profit=None))
        return await carried_out(parts, intent), dict(parts.state.rejects)

    assert during(world, body) == ([Reason.REJECTED], {"A": 1})
    assert attempts(world) == [(1, "rejected")]
    assert intent_states(world) == [IntentState.DROPPED]
    assert [row.kind for row in rows(world, schema.incidents)] == ["rejected"]


def test_a_streak_of_rejections_outlives_a_restart_and_ends_with_an_acceptance(world: World) -> None:
    async def refused(parts: Parts) -> Mapping[str, int]:
        await carried_out(parts, replace(entry(parts), exits=ExitPlan(stop=Decimal(500), take_profit=None)))
        return dict(parts.state.rejects)

    async def accepted(parts: Parts) -> Mapping[str, int]:
        assert await enter(parts) == [Reason.TRADED]
        return dict(parts.state.rejects)

    streaks = []
    for _ in range(3):
        streaks.append(during(world, refused)["A"])
        world.engine.run_until(world.engine.now + PERIOD)
    assert streaks == [1, 2, 3]
    assert during(world, accepted) == {}


@pytest.mark.parametrize("fault", ["unanswered", "lost"])
def test_an_unknown_outcome_is_looked_up_and_never_becomes_two_orders(world: World, fault: str) -> None:
    assert during(world, enter, {"submit": [fault]}) == [Reason.TRADED]
    placed = [row for row in world.engine.book().values() if row.parent_client_id is None]
    assert len(placed) == 1
    expected = [(1, "accepted")] if fault == "unanswered" else [(1, "not_placed"), (2, "accepted")]
    assert attempts(world) == expected


def test_a_rate_limited_attempt_is_made_again_under_a_new_id(world: World) -> None:
    assert during(world, enter, {"submit": ["limited"]}) == [Reason.TRADED]
    assert attempts(world) == [(1, "not_placed"), (2, "accepted")]


def test_look_ups_without_an_answer_prove_nothing(world: World) -> None:
    silent = during(world, enter, {"submit": ["unanswered"], "order": ["silent"] * 12_000})
    assert silent == [Reason.UNRESOLVED_ORDER]
    assert attempts(world) == [(1, "unknown")]
    assert intent_states(world) == [IntentState.PLANNED]

    async def later(parts: Parts) -> None:
        await Trader(parts).resume()

    during(world, later)
    assert attempts(world) == [(1, "accepted")]
    assert intent_states(world) == [IntentState.DONE]


def test_an_order_that_the_venue_has_under_our_id_is_adopted(world: World) -> None:
    async def body(parts: Parts) -> list[Reason]:
        intent = entry(parts)
        request = request_of(intent, client_order_id(intent.intent_id, 1), intent.qty, at_venue=True)
        world.engine.submit(request)
        return await carried_out(parts, intent)

    assert during(world, body) == [Reason.TRADED]
    assert attempts(world) == [(1, "accepted")]


def test_an_entry_after_its_deadline_is_not_sent(world: World) -> None:
    async def body(parts: Parts) -> list[Reason]:
        intent = entry(parts)
        world.engine.run_until(world.engine.now + timedelta(seconds=11))
        return await carried_out(parts, intent)

    assert during(world, body) == [Reason.LATE]
    assert attempts(world) == []


def test_attempts_that_never_arrive_leave_the_intent_planned_for_the_next_look(world: World) -> None:
    assert during(world, enter, {"submit": ["lost"] * 3}) == [Reason.NO_ANSWER]
    assert intent_states(world) == [IntentState.PLANNED]

    async def later(parts: Parts) -> None:
        await Trader(parts).resume()

    during(world, later)
    assert attempts(world) == [(1, "not_placed"), (2, "not_placed"), (3, "not_placed"), (4, "accepted")]


@pytest.mark.parametrize("fault", ["lost", "unanswered"])
def test_a_cancellation_without_an_answer_is_repeated_before_the_close(world: World, fault: str) -> None:
    hold(world)

    async def body(parts: Parts) -> list[Reason]:
        parts.desk.limits = replace(parts.desk.limits, outage_s_max=5.0)
        return await carried_out(parts, closing(parts))

    assert during(world, body, {"cancel": [fault]}) == [Reason.TRADED]
    legs = [row.state for row in world.engine.book().values() if row.parent_client_id is not None]
    assert legs == ["canceled", "canceled"]


def test_a_close_that_cannot_be_sent_stays_planned_and_holds_its_reversal_back(world: World) -> None:
    hold(world)

    async def body(parts: Parts) -> list[Reason]:
        return await carried_out(parts, closing(parts), entry(parts))

    silent = during(world, body, {"cancel": ["lost"] * 12_000})
    assert silent == [Reason.NO_ANSWER, Reason.ORDER_WORKING]
    assert sorted(intent_states(world)) == [IntentState.DONE, IntentState.PLANNED, IntentState.PLANNED]
    assert len([row for row in world.engine.book().values() if row.parent_client_id is None]) == 1


def test_a_close_of_nothing_is_done_without_an_order(world: World) -> None:
    async def body(parts: Parts) -> list[Reason]:
        return await carried_out(parts, closing(parts))

    assert during(world, body) == [Reason.TARGET_HELD]
    assert attempts(world) == []


def test_the_same_decision_twice_is_the_same_order(world: World) -> None:
    async def body(parts: Parts) -> list[Reason]:
        intent = entry(parts)
        return await carried_out(parts, intent) + await carried_out(parts, intent)

    assert during(world, body) == [Reason.TRADED, Reason.TRADED]
    assert attempts(world) == [(1, "accepted")]


# ---- reversals on a venue whose time runs by itself -----------------------------------------------------


@pytest.fixture
def long_ten(tmp_path: Path) -> World:
    """Return a running venue on which ten of A are held, a second after a close."""
    chosen = settings("venue.outage_s_max=0", "exchange.partial_fill_probability=0")
    made = Worlds(tmp_path, chosen, {symbol: walk(symbol, HISTORY_BARS + 20, 1) for symbol in "AB"}).new()
    made.make_clock = TappedRunningClock
    made.engine.run_until(made.engine.now + timedelta(seconds=1))
    hold(made)
    return made


async def reverse(parts: Parts) -> list[Reason]:
    close = parts.calendar.previous_close(parts.clock.now(), PERIOD)
    entering = replace(
        entry(parts),
        intent_id=intent_id(parts.settings.account_scope, "A", close, Side.SELL, Leg.ENTRY),
        side=Side.SELL,
        exits=ExitPlan(stop=Decimal(200), take_profit=Decimal(50)),
    )
    # the buying entry of the helper is another decision's: only the two of the reversal are carried out
    parts.state.intents.clear()
    with parts.ledger.transaction() as connection:
        connection.execute(schema.intents.delete().where(schema.intents.c.state == IntentState.PLANNED.value))
    return await carried_out(parts, closing(parts), plan(parts, entering))


async def resume(parts: Parts) -> None:
    await Trader(parts).resume()


def entries_sent(world: World) -> int:
    return sum(order.leg is Leg.ENTRY and order.side is Side.SELL for order in world.engine.book().values())


def test_a_reversals_entry_waits_until_its_close_is_filled(long_ten: World) -> None:
    assert during(long_ten, reverse) == [Reason.TRADED, Reason.ORDER_WORKING]
    assert entries_sent(long_ten) == 0
    during(long_ten, resume)  # nothing has filled
    assert entries_sent(long_ten) == 0
    long_ten.engine.run_until(long_ten.engine.now + timedelta(seconds=9))  # the open at which the close fills
    assert long_ten.engine.positions() == {}
    during(long_ten, resume)
    assert entries_sent(long_ten) == 1
    long_ten.engine.run_until(long_ten.engine.now + PERIOD)
    assert long_ten.engine.positions()["A"].qty == Decimal(-10)


def test_a_reversals_entry_is_too_late_where_its_close_takes_too_long(long_ten: World) -> None:
    assert during(long_ten, reverse) == [Reason.TRADED, Reason.ORDER_WORKING]
    long_ten.engine.run_until(long_ten.engine.now + timedelta(seconds=30))
    during(long_ten, resume)
    assert entries_sent(long_ten) == 0
    dropped = [row for row in rows(long_ten, schema.intents) if row.state == IntentState.DROPPED]
    assert [(row.leg, row.note.partition(":")[0]) for row in dropped] == [("entry", "late")]


def test_a_reversals_entry_goes_down_with_a_close_that_was_cancelled(long_ten: World) -> None:
    during(long_ten, reverse)
    [close] = [order for order in long_ten.engine.live_orders() if order.leg is Leg.CLOSE]
    long_ten.engine.cancel(close.client_id)
    during(long_ten, resume)
    assert entries_sent(long_ten) == 0
    assert sorted(intent_states(long_ten)) == [IntentState.DONE, IntentState.DONE, IntentState.DROPPED]
    assert long_ten.engine.positions()["A"].qty == 10
