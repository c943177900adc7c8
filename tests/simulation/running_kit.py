"""A venue whose time runs by itself, over an engine in this process: waits end at once, and the machine may sleep."""

from __future__ import annotations

from datetime import datetime, timedelta

from brokers.simulated.engine import MatchingEngine


class RunningClock:
    """Time of a running venue. A wait that passes `sleeps_at` oversleeps by `sleeps_for`: the machine was off."""

    stepped = False
    feed_ended = False

    def __init__(
        self, engine: MatchingEngine, sleeps_at: datetime | None = None, sleeps_for: timedelta = timedelta(0)
    ) -> None:
        self._engine = engine
        self._sleeps_at = sleeps_at
        self._sleeps_for = sleeps_for

    def now(self) -> datetime:
        return self._engine.now

    async def advance(self, idle_until: datetime) -> datetime:
        target = idle_until
        if self._sleeps_at is not None and idle_until >= self._sleeps_at:
            target, self._sleeps_at = idle_until + self._sleeps_for, None
        if target > self._engine.now:
            self._engine.run_until(target)
        return self._engine.now
