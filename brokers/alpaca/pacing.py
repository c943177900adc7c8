"""How fast a venue may be asked: a token bucket with a reserve for exits, and the waits that answers ask for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_BURST_SHARE = 0.3
"""Burst and refill of one minute together keep the limit: 0.3 + 0.7 of it."""
_RESERVE_SHARE = 0.15


class TokenBucket:
    """Requests per minute, of which a share of the burst is kept for urgent ones (exits, cancels, look-ups).

    Args:
        per_minute: The venue's limit over any minute; None for none.
        monotonic: Wall clock in seconds.
    """

    def __init__(self, per_minute: int | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._unlimited = per_minute is None
        limit = float(per_minute or 0)
        self._burst = max(1.0, limit * _BURST_SHARE)
        self._reserve = limit * _RESERVE_SHARE
        self._refill_per_s = max(limit * (1 - _BURST_SHARE) / 60.0, 1e-9)
        self._tokens = self._burst
        self._at = monotonic()
        self._closed_until = self._at

    def take(self, *, urgent: bool) -> float:
        """Take one token and return 0, or return the seconds until it is worth asking again."""
        now = self._monotonic()
        if now < self._closed_until:
            return self._closed_until - now
        if self._unlimited:
            return 0.0
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._refill_per_s)
        self._at = now
        needed = 1.0 if urgent else min(self._burst, 1.0 + self._reserve)
        if self._tokens >= needed:
            self._tokens -= 1.0
            return 0.0
        return (needed - self._tokens) / self._refill_per_s

    def close_for(self, seconds: float) -> None:
        """Refuse everything for a while, because the venue said so."""
        self._closed_until = max(self._closed_until, self._monotonic() + seconds)


def demanded_wait_s(headers: Mapping[str, str], now: Callable[[], datetime] | None = None) -> float | None:
    """Return the wait that an answer asks for, in seconds: `Retry-After`, else `X-RateLimit-Reset`; None for none."""
    at = datetime.now(UTC) if now is None else now()
    after = headers.get("Retry-After", "").strip()
    if after.isascii() and after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, (parsedate_to_datetime(after) - at).total_seconds())
        except (TypeError, ValueError):
            return None
    reset = headers.get("X-RateLimit-Reset", "").strip()
    if reset.isascii() and reset.isdigit():
        return max(0.0, int(reset) - at.timestamp())
    return None
