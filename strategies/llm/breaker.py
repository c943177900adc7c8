"""A circuit breaker: a server that fails again and again is left alone for a while, then probed."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Counts failures in a row.

    Args:
        failures: So many open it.
        pause_s: How long it stays open; then one request may probe, and decides.
        clock: Monotonic seconds.
    """

    def __init__(self, *, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures_max = failures
        self._pause_s = pause_s
        self._clock = clock
        self._opened_at: float | None = None
        self.failures = 0
        """Failures since the last success."""

    @property
    def is_open(self) -> bool:
        """True where nothing may be asked. May be read by any thread."""
        opened_at = self._opened_at
        return opened_at is not None and self._clock() < opened_at + self._pause_s

    @property
    def is_half_open(self) -> bool:
        """True where one request may probe."""
        return self._opened_at is not None and not self.is_open

    def failed(self) -> None:
        """Count a failure; a probe's opens it again at once."""
        self.failures += 1
        if self.failures >= self._failures_max:
            self._opened_at = self._clock()

    def succeeded(self) -> None:
        """Close it."""
        self.failures = 0
        self._opened_at = None
