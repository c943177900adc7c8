"""The daemon's life: reconcile → schedule → decide → trade → stop.

Start-up and recovery are one path. Time is the venue's: a stepped exchange moves when it is told to, a
running venue is waited for; either way the same jobs run in the same order. On SIGTERM the daemon commits
what it is doing, leaves protective exits standing and ends within `daemon.stop_timeout_s`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import structlog

from agent.app import Venue, check_bar_store, claim_bar_store, end_run, make_calendar, wire
from agent.cycle import CycleReport, Trader
from agent.delivery import AppriseSender, check_urls, notification_urls
from agent.health import HealthServer, Probes, Readiness
from agent.known_secrets import redactor_of
from agent.ledger.store import Ledger, open_ledger
from agent.metrics import Metrics
from agent.minds import Minds, StartError, make_minds
from agent.news import NewsDesk
from agent.notify import Notifications
from agent.parts import Parts
from agent.schedule import VenueScheduler
from agent.settings import Settings
from agent.store_lock import held_bar_store
from agent.systemd import Notifier
from agent.venue import check_venue, open_venue
from brokers.calendar import TradingCalendar
from brokers.domain import AuthError, BrokerError

log = structlog.get_logger("tandem.daemon")

HEARTBEAT_S = 1.0
"""Wall seconds between two beats of the loop; also how often the watchdog is told."""
LOOP_SILENCE_S_MAX = 10.0
"""A loop that has not beaten for so long is stuck."""
NEWS_SHARE = 0.9
"""Of `daemon.stop_timeout_s`: by when nobody waits for a notification any more."""
STOP_SHARE = 0.4
"""Of `daemon.stop_timeout_s`: how long a step may take to end after a signal, and then to be cut short."""
LAST_NEWS_S_MAX = 2.0
"""How long the end of a run may wait for its own notification; what is left of the stop's time, if that is less."""
FILL_LOOK_S = 1.0
"""On a running venue, venue seconds between two looks while an entry or a close may fill."""
CYCLES_TIMED_MAX = 1_000
"""Newest cycles whose median time the report gives."""
STEP_SILENCE_S_MAX = 120.0
"""On a stepped venue, longest wall time between two cycles."""
WAIT_SILENCE_S_MAX = 60.0
"""On a running venue, longest wall time by which the wait for the next job may overrun."""
JOBS_SILENCE_S_MAX = 300.0
"""Longest wall time of the jobs of one step, beside `venue.outage_s_max`: look-ups of unknown orders take minutes."""


@dataclass(slots=True)
class DaemonReport:
    """What one run of the daemon came to."""

    reason: str = ""
    closes: int = 0
    decisions: int = 0
    intents: int = 0
    ready_s: float = 0.0
    cycle_s_median: float = 0.0
    equity_start_usd: Decimal | None = None
    equity_end_usd: Decimal | None = None


Progress = Callable[[Parts, CycleReport], None]


class Daemon:
    """One run of the daemon.

    Args:
        settings: All settings.
        progress: Called after each close (the demo shows a bar); None for nobody.
    """

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress = progress
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.probes = Probes({"loop": LOOP_SILENCE_S_MAX, "schedule": None, "cycle": None, "ledger": None})
        self.notifier = Notifier()
        self.report = DaemonReport()
        self._began = time.monotonic()
        self._notifications: Notifications | None = None
        self._stop_by: float | None = None
        self._between_steps = asyncio.Event()
        self._between_steps.set()
        self._cycle_s: deque[float] = deque(maxlen=CYCLES_TIMED_MAX)

    async def run(self) -> DaemonReport:
        """Run until the feed ends, `daemon.max_bars` is reached, or a signal.

        Raises:
            StartError, LedgerError, BrokerError, HealthServerError, NotificationError: The daemon cannot start or go
                on.
        """
        stop = _stop_on_signals()
        trading_calendar = make_calendar(self.settings)
        check_venue(self.settings)
        check_bar_store(self.settings)
        await check_urls(self.settings.notifications, notification_urls(self.settings.notifications))
        minds = make_minds(self.settings)
        ledger = open_ledger(
            self.settings.ledger.url,
            busy_timeout_s=self.settings.ledger.busy_timeout_s,
            free_bytes_min=self.settings.ledger.free_bytes_min,
            exclusive=True,
            redactor=redactor_of(self.settings),
        )
        health: HealthServer | None = None
        try:
            health = self._serve_health(minds)
            work = asyncio.create_task(self._work(ledger, minds, trading_calendar))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not work.done():
                await self._stop(work)
            else:
                work.result()
        finally:
            await self._tell_last_news()
            if health is not None:
                health.close()
            ledger.close()
        return self.report

    async def _stop(self, work: asyncio.Task[None]) -> None:
        self.readiness.set_not_ready("stopping")
        self.notifier.stopping()
        self.report.reason = "signal"
        self._stop_by = time.monotonic() + NEWS_SHARE * self.settings.daemon.stop_timeout_s
        # a step that has begun is finished if that is quick: cut short between the cancellation of a position's
        # exits and its close, it would leave the position bare until the next start
        step_s = STOP_SHARE * self.settings.daemon.stop_timeout_s
        with suppress(TimeoutError):
            await asyncio.wait_for(self._between_steps.wait(), step_s)
        work.cancel()
        await asyncio.wait({work}, timeout=step_s)
        if not work.done():
            log.warning("stopped in the middle of a step: the next start finishes it")
        elif not work.cancelled() and (error := work.exception()) is not None:
            log.error("failed while stopping; the next start recovers", error=str(error))

    def _tell_news(self, parts: Parts) -> None:
        """Begin to tell people what the ledger says, where notification URLs are configured."""
        chosen = parts.settings.notifications
        urls = notification_urls(chosen)
        if urls:
            self._notifications = Notifications(
                NewsDesk(
                    parts.ledger,
                    parts.clock,
                    parts.calendar,
                    run_id=parts.run_id,
                    decision_deadline_s=parts.settings.daemon.decision_deadline_s,
                ),
                parts.ledger,
                self.metrics,
                chosen,
                urls,
                AppriseSender(chosen),
                scope=parts.settings.account_scope,
            )
            self._notifications.start()

    async def _tell_last_news(self) -> None:
        """Tell how the run ended, if that is quick; otherwise the next run tells it."""
        if self._notifications is not None:
            left_s = LAST_NEWS_S_MAX if self._stop_by is None else self._stop_by - time.monotonic()
            await self._notifications.finish(min(left_s, LAST_NEWS_S_MAX))

    def _serve_health(self, minds: Minds) -> HealthServer | None:
        health = self.settings.health
        if health.port is None:
            return None
        server = HealthServer(
            health.host,
            health.port,
            probes=self.probes,
            readiness=self.readiness,
            metrics=self.metrics,
            language_model=minds.status,
        )
        log.info("health", url=f"http://{health.host}:{server.port}")
        return server

    async def _work(self, ledger: Ledger, minds: Minds, trading_calendar: TradingCalendar) -> None:
        async with open_venue(self.settings) as venue:
            settings = _with_symbols(self.settings, venue)
            parts = await wire(
                settings,
                venue,
                ledger,
                minds.strategy,
                minds.pinned,
                trading_calendar=trading_calendar,
                pause=asyncio.sleep,
                metrics=self.metrics,
                bar_store=settings.daemon.bar_store,
                answers=minds.answers,
            )
            if minds.counters is not None:
                self.metrics.watch_llm(minds.counters)
            warming = asyncio.create_task(minds.warm_up())
            heartbeat = asyncio.create_task(self._heartbeat())
            reason = "failed"
            try:
                with held_bar_store(settings.daemon.bar_store):
                    claim_bar_store(settings)
                    self._tell_news(parts)
                    trader, first = await self._recover(parts)
                    if parts.clock.stepped and not warming.done():
                        # venue time stands, so nothing is missed, and a restart decides what the dead run would have
                        log.info("waiting for the language model to be loaded", seconds_max=self.settings.llm.warm_up_s)
                        await asyncio.wait({warming})
                    await self._live(parts, trader, first)
                reason = self.report.reason
            except asyncio.CancelledError:
                reason = "signal"
                raise
            except Exception as error:
                reason = f"failed: {error}"
                raise
            finally:
                heartbeat.cancel()
                warming.cancel()
                if self._cycle_s:
                    self.report.cycle_s_median = sorted(self._cycle_s)[len(self._cycle_s) // 2]
                end_run(ledger, parts.run_id, ledger.redactor.text(reason))
                await minds.aclose()

    async def _recover(self, parts: Parts) -> tuple[Trader, datetime]:
        """Agree with the venue, finish what was begun, warm the features; then the daemon may trade."""
        self.readiness.set_not_ready("reconciling")
        found = await parts.reconciler.reconcile()
        first = first_close(parts)
        self._count_missed(parts, first)
        # not the bar of the first close itself: that close may be due now, and its bar is new to it
        before = parts.calendar.previous_close(first - timedelta(microseconds=1), parts.settings.bar_period)
        parts.newest_bars = await parts.history.warm_all(before)
        trader = Trader(parts)
        self._between_steps.clear()
        await trader.resume()
        self._between_steps.set()
        account = await parts.broker.account()
        self.report.equity_start_usd = self.report.equity_end_usd = account.equity
        self.report.ready_s = time.monotonic() - self._began
        self.readiness.set_ready()
        self.metrics.ready.set(1)
        self.notifier.ready(f"{parts.strategy.name} on {parts.broker.capabilities.name}, {len(parts.symbols)} symbols")
        log.info(
            "ready",
            seconds=round(self.report.ready_s, 3),
            first_close=first.isoformat(),
            positions=len(parts.state.book.holdings),
            found_fills=found.fills,
        )
        return trader, first

    async def _live(self, parts: Parts, trader: Trader, first: datetime) -> None:
        """Wait for venue time, run what is due, until there is nothing left to do."""
        jobs = _Jobs(self, parts, trader)
        scheduler = jobs.scheduler
        scheduler.start()
        try:
            jobs.plan_close(first)
            jobs.plan_upkeep()
            jobs.check_feed(first)
            while not jobs.finished:
                wakeup = scheduler.next_wakeup()
                if wakeup is None:
                    raise StartError("the schedule is empty: no bar close lies ahead in the calendar")
                self.probes.expect("schedule", _wait_s_max(parts, wakeup))
                await parts.clock.advance(wakeup)
                self._between_steps.clear()
                self.probes.expect("schedule", JOBS_SILENCE_S_MAX + parts.settings.venue.outage_s_max)
                if parts.clock.stepped and _orders_changed(parts):
                    await parts.reconciler.sync()
                await scheduler.run_due()
                self._between_steps.set()
        finally:
            self.probes.expect("schedule", None)
            scheduler.shutdown(wait=False)
        self.report.reason = jobs.finished

    async def _heartbeat(self) -> None:
        """Beat for the loop, and tell systemd's watchdog while every probe is fresh.

        That the loop turns does not show that anything is done: a step that never ends stops the watchdog's food by
        the probe `schedule`, a close that is never decided by `cycle`.
        """
        while True:
            self.probes.beat("loop")
            self.notifier.watchdog(self.probes)
            await asyncio.sleep(HEARTBEAT_S)

    def _count_missed(self, parts: Parts, first: datetime) -> None:
        """Count the closes that passed while no daemon ran; they were not decided, and the ledger says so."""
        last = parts.state.last_close
        if last is None:
            return
        missed = [c for c in parts.calendar.closes_between(last, first, parts.settings.bar_period) if c < first]
        if missed:
            self.missed_closes(parts, missed)

    def missed_closes(self, parts: Parts, missed: Sequence[datetime]) -> None:
        """Count closes that nobody decided, and tell of them once."""
        for _ in missed:
            self.metrics.missed_job("close")
        detail = f"{len(missed)} closes from {missed[0].isoformat()} to {missed[-1].isoformat()} passed undecided"
        with parts.ledger.transaction() as connection:
            parts.ledger.incident(connection, parts.clock.now(), "missed_closes", detail)
        log.warning("closes missed", count=len(missed), first=missed[0].isoformat(), last=missed[-1].isoformat())

    def closed(self, parts: Parts, report: CycleReport) -> None:
        """Note that a close was decided and carried out."""
        self.report.closes += 1
        self.report.decisions += report.decisions
        self.report.intents += report.intents
        self.report.equity_end_usd = Decimal(repr(self.metrics.equity_usd._value.get()))  # noqa: SLF001 - the client has no public getter
        self._cycle_s.append(report.seconds)
        self.probes.beat("cycle")
        self.probes.beat("ledger")
        self.readiness.set_halted(report.halted)
        self.metrics.halted.set(0 if report.halted is None else 1)
        if self.progress is not None:
            self.progress(parts, report)


class _Jobs:
    """The daemon's jobs; each plans its own successor."""

    def __init__(self, daemon: Daemon, parts: Parts, trader: Trader) -> None:
        self.daemon = daemon
        self.parts = parts
        self.trader = trader
        self.scheduler = VenueScheduler(parts.clock, parts.settings.daemon.misfire_grace_s, self.missed)
        self.finished = ""
        grace_s = 0.0 if parts.clock.stepped else parts.settings.daemon.bar_grace_s
        self._grace = timedelta(seconds=grace_s)

    def plan_close(self, close: datetime) -> None:
        """Schedule one close."""
        self.scheduler.at(close + self._grace, self.close, "close", close)
        stepped = self.parts.clock.stepped
        silence_s = STEP_SILENCE_S_MAX if stepped else (close - self.parts.clock.now()).total_seconds() + 60.0
        self.daemon.probes.expect("cycle", silence_s + self.parts.settings.daemon.decision_deadline_s)

    def plan_upkeep(self) -> None:
        """Schedule the looks at the venue between closes."""
        daemon, now = self.parts.settings.daemon, self.parts.clock.now()
        if not self.parts.clock.stepped:
            self.scheduler.at(now + timedelta(seconds=daemon.sync_interval_s), self.sync, "sync", grace=False)
        self.scheduler.at(
            now + timedelta(seconds=daemon.reconcile_interval_s), self.reconcile, "reconcile", grace=False
        )

    async def close(self, close: datetime) -> None:
        """Decide and trade one close, then plan the next one."""
        parts = self.parts
        try:
            report = await self.trader.on_close(close)
        except AuthError:
            raise
        except BrokerError as error:
            if parts.clock.stepped:
                raise
            self._failed("cycle_failed", f"close {close.isoformat()} was not decided: {error}")
        else:
            self.daemon.closed(parts, report)
            self._store_bars(close)
            self._look_soon()
        self._check_end()
        if not self.finished:
            self._plan_next(close)

    def _store_bars(self, close: datetime) -> None:
        """Move a session's bars to the bar store; a store that fails must not end who watches the exits."""
        try:
            self.parts.history.compact(close)
        except (OSError, ValueError) as error:  # the store's own error is a ValueError
            detail = f"bars up to {close.isoformat()} stay in the ledger until the next session's end: {error}"
            self._failed("bars_not_stored", detail)

    def missed(self, name: str, scheduled: datetime) -> None:
        """Count a job that came too late to be run (the machine slept, say), and go on with the closes after it."""
        self.daemon.metrics.missed_job(name)
        self._failed("missed_job", f"job {name} of {scheduled.isoformat()} came too late and was not run")
        if name == "close":
            self._plan_next(scheduled - self._grace)

    def check_feed(self, first: datetime) -> None:
        """Finish at once where a former run has decided the last close of the feed."""
        if getattr(self.parts.clock, "feed_ended", False) and first > self.parts.clock.now():
            self.finished = "feed ended"

    def _plan_next(self, close: datetime) -> None:
        """Plan the first close after one that can still be traded on; those in between are missed, and counted."""
        parts = self.parts
        upcoming = parts.calendar.next_close(close, parts.settings.bar_period)
        missed: list[datetime] = []
        while not parts.clock.stepped and upcoming + max(self._limit(), self._grace) < parts.clock.now():
            missed.append(upcoming)
            upcoming = parts.calendar.next_close(upcoming, parts.settings.bar_period)
        if missed:
            self.daemon.missed_closes(parts, missed)
        self.plan_close(upcoming)

    async def sync(self) -> None:
        """Look at working orders and at locally armed exits."""
        try:
            await self.trader.resume()
            await self.parts.reconciler.sync()
            await self.trader.watch_exits()
        except AuthError:
            raise
        except BrokerError as error:
            log.warning("sync failed", error=str(error))
        self.scheduler.at(self.parts.clock.now() + self._until_next_look(), self.sync, "sync", grace=False)

    async def reconcile(self) -> None:
        """Compare everything with the venue."""
        try:
            await self.parts.reconciler.reconcile()
        except AuthError:
            raise
        except BrokerError as error:
            self._failed("reconcile_failed", str(error))
        interval = timedelta(seconds=self.parts.settings.daemon.reconcile_interval_s)
        self.scheduler.at(self.parts.clock.now() + interval, self.reconcile, "reconcile", grace=False)

    def _look_soon(self) -> None:
        """Bring the next look forward where orders have just left: an entry may wait for the close before it."""
        if not self.parts.clock.stepped and self.parts.state.intents:
            self.scheduler.at(self.parts.clock.now() + self._until_next_look(), self.sync, "sync", grace=False)

    def _until_next_look(self) -> timedelta:
        """Look often while an entry or a close may fill (its exits must stand within 2 s), seldom at resting legs."""
        state = self.parts.state
        waiting = bool(state.intents) or any(order.parent_client_id is None for order in state.orders.values())
        slow_s = self.parts.settings.daemon.sync_interval_s
        return timedelta(seconds=min(slow_s, FILL_LOOK_S) if waiting else slow_s)

    def _limit(self) -> timedelta:
        return timedelta(seconds=self.parts.settings.daemon.decision_deadline_s)

    def _check_end(self) -> None:
        limit = self.parts.settings.daemon.max_bars
        if getattr(self.parts.clock, "feed_ended", False):
            self.finished = "feed ended"
        elif limit is not None and self.daemon.report.closes >= limit:
            self.finished = "max_bars"

    def _failed(self, kind: str, detail: str) -> None:
        self.daemon.metrics.incident(kind)
        with self.parts.ledger.transaction() as connection:
            self.parts.ledger.incident(connection, self.parts.clock.now(), kind, detail)
        log.error(kind, detail=detail)


def first_close(parts: Parts) -> datetime:
    """Return the close to decide first: one that is due now and undecided, otherwise the next one.

    A close that lies further back than the decision deadline is too late: orders of it would be late.
    """
    period, now = parts.settings.bar_period, parts.clock.now()
    latest = parts.calendar.previous_close(now + timedelta(microseconds=1), period)
    deadline = timedelta(seconds=parts.settings.daemon.decision_deadline_s)
    last = parts.state.last_close
    if now - latest <= deadline and (last is None or latest > last):
        return latest
    return parts.calendar.next_close(max(now, last) if last is not None else now, period)


def _wait_s_max(parts: Parts, wakeup: datetime) -> float:
    """Return how long the wait for a venue time may take, wall seconds."""
    if parts.clock.stepped:
        return STEP_SILENCE_S_MAX
    return max((wakeup - parts.clock.now()).total_seconds(), 0.0) + WAIT_SILENCE_S_MAX


def _orders_changed(parts: Parts) -> bool:
    last = getattr(parts.clock, "last", None)
    return last is None or bool(last.orders_changed)


def _with_symbols(settings: Settings, venue: Venue) -> Settings:
    if settings.symbols:
        return settings
    played = getattr(venue.clock, "description", {}).get("symbols", ())
    if not played:
        raise StartError("symbols is empty and the venue does not say what it plays: name the symbols")
    return settings.model_copy(update={"symbols": tuple(str(symbol) for symbol in played)})


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError, ValueError):  # not the main thread: the caller stops us in its own way
            loop.add_signal_handler(number, stop.set)
    return stop
