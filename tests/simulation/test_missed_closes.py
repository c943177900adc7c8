"""On a venue that does not wait: closes that nobody decided are counted and told, and the daemon goes on."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from crash_kit import HISTORY_BARS, PERIOD, T0, World, Worlds, no_pause, settings, walk
from running_kit import RunningClock
from sqlalchemy import select

from agent.app import Venue, end_run, make_calendar, make_strategy, wire
from agent.daemon import Daemon
from agent.ledger import schema
from agent.ledger.store import open_ledger
from brokers.simulated.broker import SimulatedBroker

BEGIN = T0 + HISTORY_BARS * PERIOD


@pytest.fixture
def world(tmp_path: Path) -> World:
    chosen = settings("daemon.max_bars=12")
    return Worlds(tmp_path, chosen, {symbol: walk(symbol, HISTORY_BARS + 80, 1) for symbol in "AB"}).new()


def live(world: World, clock: RunningClock) -> Daemon:
    """Let the daemon decide twelve closes."""

    async def life() -> Daemon:
        ledger = open_ledger(world.url, durable=False)
        try:
            strategy, strategy_id = make_strategy(world.settings)
            broker = SimulatedBroker(world.engine)
            parts = await wire(
                world.settings,
                Venue(broker=broker, data=broker, clock=clock),
                ledger,
                strategy,
                strategy_id,
                trading_calendar=make_calendar(world.settings),
                pause=no_pause,
            )
            daemon = Daemon(world.settings)
            trader, first = await daemon._recover(parts)
            await daemon._live(parts, trader, first)
            end_run(ledger, parts.run_id, daemon.report.reason)
            return daemon
        finally:
            ledger.close()

    return asyncio.run(life())


def told(world: World) -> list[tuple[str, str]]:
    ledger = open_ledger(world.url)
    try:
        return [(row.kind, row.detail) for row in ledger.rows(select(schema.incidents))]
    finally:
        ledger.close()


def decided(world: World) -> list[datetime]:
    ledger = open_ledger(world.url)
    try:
        return [row.close_time for row in ledger.rows(select(schema.cycles).order_by(schema.cycles.c.close_time))]
    finally:
        ledger.close()


def missed(daemon: Daemon) -> float:
    value = daemon.metrics.registry.get_sample_value("tandem_missed_jobs_total", {"job": "close"})
    return value or 0.0


def test_a_machine_that_sleeps_over_closes_counts_them_and_goes_on_with_the_next(world: World) -> None:
    at = BEGIN + 4 * PERIOD
    daemon = live(world, RunningClock(world.engine, at, timedelta(minutes=47)))
    closes = decided(world)
    gaps = [(one, two) for one, two in pairwise(closes) if two - one > PERIOD]
    assert len(closes) == 12
    assert len(gaps) == 1
    skipped = (gaps[0][1] - gaps[0][0]) // PERIOD - 1
    assert skipped == 10
    assert missed(daemon) == skipped
    kinds = [kind for kind, _ in told(world)]
    assert kinds == ["missed_job", "missed_closes"]


def test_closes_that_passed_between_two_runs_are_told_by_the_second(world: World) -> None:
    live(world, RunningClock(world.engine))
    last = decided(world)[-1]
    world.engine.run_until(last + 6 * PERIOD + timedelta(minutes=1))
    daemon = live(world, RunningClock(world.engine))
    assert missed(daemon) == 6
    assert [kind for kind, _ in told(world)] == ["missed_closes"]
    assert f"6 closes from {(last + PERIOD).isoformat()}" in told(world)[0][1]


def test_a_running_venue_is_followed_without_a_missed_close(world: World) -> None:
    daemon = live(world, RunningClock(world.engine))
    closes = decided(world)
    assert closes == [BEGIN + index * PERIOD for index in range(12)]
    assert missed(daemon) == 0
    assert told(world) == []
