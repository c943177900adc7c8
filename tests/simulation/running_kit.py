"""A venue whose time runs by itself, over an engine in this process: waits end at once, and the machine may sleep."""

from __future__ import annotations

from datetime import datetime, timedelta

from crash_kit import Tap

from brokers.simulated.engine import MatchingEngine


class RunningClock:
    """Time of a running venue. A wait that passes `sleeps_at` oversleeps by `sleeps_for`: the machine was off."""

    stepped = False

    def __init__(
        self, engine: MatchingEngine, sleeps_at: datetime | None = None, sleeps_for: timedelta = timedelta(0)
    ) -> None:
        self._engine = engine
        self._sleeps_at = sleeps_at
        self._sleeps_for = sleeps_for

    @property
    def feed_ended(self) -> bool:
        return self._engine.feed_ended

    def now(self) -> datetime:
        return self._engine.now

    async def advance(self, idle_until: datetime) -> datetime:
        target = idle_until
        if self._sleeps_at is not None and idle_until >= self._sleeps_at:
            target, self._sleeps_at = idle_until + self._sleeps_for, None
        if target > self._engine.now:
            self._engine.run_until(target)
        return self._engine.now


class TappedRunningClock(RunningClock):
    """The same, with a point at which the daemon can die on either side of a wait."""

    def __init__(self, engine: MatchingEngine, tap: Tap) -> None:
        super().__init__(engine)
        self._tap = tap

    async def advance(self, idle_until: datetime) -> datetime:
        self._tap.point("before advance")
        now = await super().advance(idle_until)
        self._tap.point("after advance")
        return now
