"""Bar closes as jobs: APScheduler on venue time.

APScheduler reads the wall clock in four places; the two small subclasses below take now, timer and misfire
check from the venue's `Clock` instead, so that a stepped venue and a running one are scheduled by the same
code. Jobs are `date` jobs made from the calendar: cron triggers and daylight-saving do not mix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.executors.base import BaseExecutor
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from brokers.protocol import Clock

log = structlog.get_logger("tandem.schedule")

JobFunction = Callable[..., Awaitable[None]]
OnMissed = Callable[[str, datetime], None]


class VenueExecutor(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Runs coroutine jobs on the daemon's loop, one after another; lateness is measured in venue time.

    Never two at once: each may find an order in flight, and would take another job's for one that was lost.
    """

    def __init__(self, clock: Clock, on_missed: OnMissed) -> None:
        super().__init__()
        self._clock = clock
        self._on_missed = on_missed
        self._running: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._failed = False

    async def idle(self) -> None:
        """Wait until no job runs. An error of a job is raised here, in the daemon, not swallowed.

        No job outlives an error or a cancellation: it would go on with a venue and a ledger that are being closed.
        """
        try:
            while self._running:
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._running.discard(task)
                    task.result()
        finally:
            await self._end()

    async def _end(self) -> None:
        left, self._running = self._running, set()
        for task in left:
            task.cancel()
        for outcome in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("a job failed while it was ended", exc_info=outcome)

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        self._running.add(asyncio.get_running_loop().create_task(self._run(job, run_times)))

    async def _run(self, job: Job, run_times: list[datetime]) -> None:
        async with self._turn:
            if not self._failed:
                await self._run_alone(job, run_times)

    async def _run_alone(self, job: Job, run_times: list[datetime]) -> None:
        jobstore = job._jobstore_alias  # noqa: SLF001 - the executor interface of APScheduler hands it over so
        run_time = run_times[-1]
        lateness = self._clock.now() - run_time
        grace_s = job.misfire_grace_time
        if grace_s is not None and lateness > timedelta(seconds=grace_s):
            event = JobExecutionEvent(EVENT_JOB_MISSED, job.id, jobstore, run_time)
            self._run_job_success(job.id, [event])
            self._on_missed(job.id, run_time)  # not a listener: APScheduler swallows their errors
            return
        try:
            await job.func(*job.args, **job.kwargs)
        except Exception:
            self._failed = True  # the daemon ends with it: what waits for its turn must not begin
            self._run_job_success(job.id, [JobExecutionEvent(EVENT_JOB_ERROR, job.id, jobstore, run_time)])
            raise
        self._run_job_success(job.id, [])


class VenueScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """An AsyncIOScheduler that is driven: the daemon waits until `next_wakeup` and calls `run_due`.

    Args:
        clock: Venue time.
        misfire_grace_s: A job later than this is missed, not run.
        on_missed: Told the name and the time of a missed job; it must plan what comes after it.
    """

    def __init__(self, clock: Clock, misfire_grace_s: float, on_missed: OnMissed) -> None:
        self._clock = clock
        self.venue_executor = VenueExecutor(clock, on_missed)
        super().__init__(
            timezone=UTC,
            executors={"default": self.venue_executor},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": misfire_grace_s},
        )

    def at(self, when: datetime, function: JobFunction, name: str, *args: Any, grace: bool = True) -> None:
        """Run `function(*args)` at a venue time; a job of the same name is replaced."""
        options: dict[str, Any] = {} if grace else {"misfire_grace_time": None}
        self.add_job(
            function,
            trigger="date",
            run_date=when,
            args=args,
            id=name,
            name=name,
            replace_existing=True,
            next_run_time=when,
            **options,
        )

    def next_wakeup(self) -> datetime | None:
        """Return the venue time of the earliest job; None for none."""
        times = [job.next_run_time for job in self.get_jobs() if job.next_run_time is not None]
        return min(times, default=None)

    async def run_due(self) -> None:
        """Run every job whose time has come, in the order of their times, and return when the last has ended."""
        self._process_jobs()
        await self.venue_executor.idle()

    def _setup_timer(self, _wait_s: float | None = None) -> None:
        """Timers are the daemon's: it waits on the venue's clock."""

    def _start_timer(self, _wait_s: float | None) -> None:
        """See `_setup_timer`."""

    def _stop_timer(self) -> None:
        """See `_setup_timer`."""

    def wakeup(self) -> None:
        """Jobs are started by `run_due` only."""

    def _process_jobs(self) -> None:
        """Submit due jobs; APScheduler's own version of this asks the wall clock."""
        now = self._clock.now()
        with self._jobstores_lock:
            for store in self._jobstores.values():
                for job in sorted(store.get_due_jobs(now), key=lambda job: (job.next_run_time, job.id)):
                    run_times = job._get_run_times(now)  # noqa: SLF001 - as APScheduler's own scheduler does
                    if not run_times:
                        continue
                    self.venue_executor.submit_job(job, run_times[-1:] if job.coalesce else run_times)
                    store.remove_job(job.id)
                    log.debug("job", name=job.name, at=run_times[-1].isoformat())
