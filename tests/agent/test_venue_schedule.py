"""Jobs on venue time: in order, one at a time, missed ones told, closes across a change to daylight-saving time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from agent.schedule import VenueScheduler
from brokers.calendar import calendar

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)


class HandClock:
    """Venue time that a test moves."""

    stepped = False

    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    async def advance(self, idle_until: datetime) -> datetime:
        self.time = max(self.time, idle_until)
        return self.time


class Bench:
    """A scheduler, its clock, and what its jobs did."""

    def __init__(self, now: datetime = NOON, grace_s: float = 30.0) -> None:
        self.clock = HandClock(now)
        self.done: list[str] = []
        self.missed: list[tuple[str, datetime]] = []
        self.running = 0
        self.scheduler = VenueScheduler(self.clock, grace_s, lambda name, at: self.missed.append((name, at)))
        self.scheduler.start()

    async def job(self, name: str) -> None:
        self.running += 1
        assert self.running == 1, f"{name} began while another job ran"
        await asyncio.sleep(0.001)
        self.running -= 1
        self.done.append(name)


def test_jobs_that_are_due_together_run_one_at_a_time_in_the_order_of_their_times() -> None:
    async def run() -> list[str]:
        bench = Bench()
        bench.scheduler.at(NOON + timedelta(seconds=3), bench.job, "close", "close")
        bench.scheduler.at(NOON + timedelta(seconds=2), bench.job, "sync", "sync")
        bench.scheduler.at(NOON + timedelta(seconds=2), bench.job, "reconcile", "reconcile")
        await bench.clock.advance(NOON + timedelta(seconds=5))
        await bench.scheduler.run_due()
        return bench.done

    assert asyncio.run(run()) == ["reconcile", "sync", "close"]


def test_a_job_that_is_not_due_waits() -> None:
    async def run() -> tuple[list[str], datetime | None]:
        bench = Bench()
        bench.scheduler.at(NOON + timedelta(seconds=3), bench.job, "close", "close")
        await bench.scheduler.run_due()
        return bench.done, bench.scheduler.next_wakeup()

    assert asyncio.run(run()) == ([], NOON + timedelta(seconds=3))


@pytest.mark.parametrize(("late_s", "runs"), [(30.0, True), (30.001, False)])
def test_a_job_later_than_the_grace_is_told_and_not_run(late_s: float, *, runs: bool) -> None:
    async def run() -> Bench:
        bench = Bench()
        bench.scheduler.at(NOON, bench.job, "close", "close")
        bench.clock.time = NOON + timedelta(seconds=late_s)
        await bench.scheduler.run_due()
        return bench

    bench = asyncio.run(run())
    assert (bench.done, bench.missed) == ((["close"], []) if runs else ([], [("close", NOON)]))


def test_upkeep_is_never_too_late() -> None:
    async def run() -> Bench:
        bench = Bench()
        bench.scheduler.at(NOON, bench.job, "sync", "sync", grace=False)
        bench.clock.time = NOON + timedelta(days=3)
        await bench.scheduler.run_due()
        return bench

    bench = asyncio.run(run())
    assert (bench.done, bench.missed) == (["sync"], [])


def test_a_job_planned_twice_runs_once_at_its_newer_time() -> None:
    async def run() -> tuple[list[str], datetime | None]:
        bench = Bench()
        bench.scheduler.at(NOON, bench.job, "sync", "first")
        bench.scheduler.at(NOON + timedelta(seconds=1), bench.job, "sync", "second")
        wakeup = bench.scheduler.next_wakeup()
        await bench.clock.advance(NOON + timedelta(seconds=2))
        await bench.scheduler.run_due()
        await bench.scheduler.run_due()
        return bench.done, wakeup

    assert asyncio.run(run()) == (["second"], NOON + timedelta(seconds=1))


def test_an_error_of_a_job_is_raised_and_not_swallowed() -> None:
    async def fail() -> None:
        raise OSError("the disk is gone")

    async def run() -> None:
        bench = Bench()
        bench.scheduler.at(NOON, fail, "close")
        await bench.scheduler.run_due()

    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(run())


def test_an_error_while_a_missed_job_is_told_is_raised_as_well() -> None:
    def tell(_name: str, _at: datetime) -> None:
        raise OSError("the ledger is gone")

    async def run() -> None:
        clock = HandClock(NOON + timedelta(hours=1))
        scheduler = VenueScheduler(clock, 30.0, tell)
        scheduler.start()
        scheduler.at(NOON, Bench().job, "close", "close")
        await scheduler.run_due()

    with pytest.raises(OSError, match="the ledger is gone"):
        asyncio.run(run())


def test_closes_of_new_york_keep_their_local_time_across_the_change_to_summer_time() -> None:
    sessions = calendar("XNYS")
    hour = timedelta(hours=1)

    async def run() -> list[datetime]:
        bench = Bench(datetime(2024, 3, 8, 20, 59, tzinfo=UTC))
        ran: list[datetime] = []

        async def close(at: datetime) -> None:
            assert bench.clock.now() == at
            ran.append(at)
            bench.scheduler.at(sessions.next_close(at, hour), close, "close", sessions.next_close(at, hour))

        first = sessions.next_close(bench.clock.now(), hour)
        bench.scheduler.at(first, close, "close", first)
        while len(ran) < 16:
            wakeup = bench.scheduler.next_wakeup()
            assert wakeup is not None
            await bench.clock.advance(wakeup)
            await bench.scheduler.run_due()
        assert bench.missed == []
        return ran

    ran = asyncio.run(run())
    assert ran == sessions.closes_between(datetime(2024, 3, 8, 20, 59, tzinfo=UTC), ran[-1], hour)
    last_of_session = [at for at, following in pairwise(ran) if following.date() > at.date()]
    assert [at.hour for at in last_of_session] == [21, 20, 20]


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_no_job_outlives_the_end_of_the_daemon(how: str) -> None:
    """A job that went on would do so with a venue and a ledger that are being closed."""
    done: list[str] = []

    async def first() -> None:
        if how == "failed":
            raise RuntimeError(how)
        await asyncio.sleep(3_600)

    async def second() -> None:
        done.append("second")

    async def run() -> None:
        bench = Bench()
        bench.scheduler.at(NOON, first, "first")
        bench.scheduler.at(NOON, second, "second")
        due = asyncio.create_task(bench.scheduler.run_due())
        await asyncio.sleep(0.01)
        due.cancel()
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            await due
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert done == []
