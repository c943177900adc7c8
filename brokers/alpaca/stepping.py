"""Venue time: stepped by us on the built-in exchange, or running by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from brokers.alpaca import convert
from brokers.alpaca.client import AlpacaClient, is_auth_failure
from brokers.alpaca.transport import Answer
from brokers.domain import AuthError, RateLimitedError, RejectedError, UnavailableError, utc

VERSION = "exchange/v1"

_REFUSALS = frozenset({400, 403, 404, 409, 422})
_BACKOFF_FIRST_S = 0.02
_BACKOFF_MAX_S = 1.0
_NAP_S = 30.0
"""Longest sleep between two looks at the system clock, which may be set or may have slept with the machine."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What the exchange's clock met.

    Args:
        now: Venue time.
        event: `open`, `close` or `idle`.
        repeated: True where the exchange had already moved: the same question was answered before.
        feed_ended: True where no further bar will come.
        orders_changed: True where orders may have changed; always True of a repeated answer.
    """

    now: datetime
    event: str
    repeated: bool
    feed_ended: bool
    orders_changed: bool


class SteppedClock:
    """The built-in exchange's time, which moves only on `advance`.

    Args:
        client: Speaks to the exchange.
        sleep: Waits between two attempts (wall seconds).
        monotonic: Wall clock in seconds.
    """

    stepped = True

    def __init__(
        self,
        client: AlpacaClient,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._sleep = sleep
        self._monotonic = monotonic
        self._now: datetime | None = None
        self._feed_ended = False
        self.last: Advance | None = None
        """The last answer to `advance`."""
        self.description: dict[str, Any] = {}
        """What the exchange says it plays: feed_start, feed_end, period, symbols, seed."""

    @property
    def feed_ended(self) -> bool:
        """True where the exchange will play no further bar."""
        return self._feed_ended

    async def connect(self) -> None:
        """Read the exchange's clock.

        Raises:
            UnavailableError: No usable answer within `outage_s_max`.
            RejectedError: The exchange runs by itself.
        """
        answer = await self._client.ask("/clock", version=VERSION)
        try:
            content = convert.mapping(answer)
            self._now = convert.time(content.get("now"), "now")
        except convert.WireError as error:
            raise UnavailableError(f"the exchange's clock is not usable: {error}") from error
        if content.get("stepped") is not True:
            raise RejectedError("not_stepped", "the exchange runs by itself: start it without --free-running")
        self._feed_ended = content.get("feed_ended") is True
        self.description = dict(content)

    def now(self) -> datetime:
        """Return the time of the exchange's last answer.

        Raises:
            UnavailableError: Before `connect`.
        """
        if self._now is None:
            raise UnavailableError("venue time is not known before the clock is connected")
        return self._now

    async def advance(self, idle_until: datetime) -> datetime:
        """Move to the next event, at most to `idle_until`; repeated with the same `from` while no answer comes.

        Raises:
            RejectedError: The exchange's clock is behind ours (its books were replaced), or it refuses.
            UnavailableError: No usable answer within `outage_s_max`.
            AuthError: The keys are refused.
        """
        before = self.now()
        body = {"from": convert.stamp(before), "idle_until": convert.stamp(utc(idle_until))}
        deadline = self._monotonic() + self._client.settings.outage_s_max
        backoff_s = _BACKOFF_FIRST_S
        while True:
            answer = await self._attempt(body)
            if answer.ok and answer.is_json:
                return self._accept(answer, before)
            if is_auth_failure(answer):
                raise AuthError(f"the exchange refused the keys ({answer.describe()})")
            if answer.status in _REFUSALS:
                raise RejectedError(answer.code, f"advance from {body['from']}: {answer.message}")
            if self._monotonic() + backoff_s > deadline:
                raise UnavailableError(
                    f"the exchange did not advance from {body['from']} within "
                    f"{self._client.settings.outage_s_max:g} s ({answer.describe()})"
                )
            await self._sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _attempt(self, body: dict[str, str]) -> Answer:
        try:
            return await self._client.command("POST", "/advance", body, version=VERSION, urgent=True)
        except RateLimitedError as error:
            return Answer(None, text=str(error))

    def _accept(self, answer: Answer, before: datetime) -> datetime:
        try:
            content = convert.mapping(answer.body)
            now = convert.time(content.get("now"), "now")
        except convert.WireError as error:
            raise UnavailableError(f"the exchange's answer to advance is not usable: {error}") from error
        if now < before:
            raise RejectedError("clock_behind", f"the exchange answered {now.isoformat()}, before {before.isoformat()}")
        repeated = content.get("repeated") is True
        self._now = now
        self._feed_ended = content.get("feed_ended") is True
        self.last = Advance(
            now=now,
            event=str(content.get("event", "")),
            repeated=repeated,
            feed_ended=self._feed_ended,
            orders_changed=repeated or bool(content.get("orders_changed", True)),
        )
        return now


class WallClock:
    """Time of a venue that runs by itself: system time in UTC plus the measured skew.

    Args:
        measure_skew: Returns venue time minus system time; None for none.
        system_now: System time, aware UTC.
    """

    stepped = False
    feed_ended = False

    def __init__(
        self,
        measure_skew: Callable[[], Awaitable[timedelta]] | None = None,
        *,
        system_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._measure_skew = measure_skew
        self._system_now = system_now
        self._skew = timedelta(0)
        self._woken = asyncio.Event()

    @property
    def skew(self) -> timedelta:
        """Venue time minus system time, as last measured."""
        return self._skew

    async def connect(self) -> None:
        """Measure the skew.

        Raises:
            UnavailableError: The venue's clock got no answer.
        """
        if self._measure_skew is not None:
            self._skew = await self._measure_skew()

    def now(self) -> datetime:
        """Return venue time."""
        return self._system_now() + self._skew

    def wake(self) -> None:
        """End the present `advance`, or the next one, early."""
        self._woken.set()

    async def advance(self, idle_until: datetime) -> datetime:
        """Sleep until venue time reaches `idle_until`, or until `wake` or cancellation."""
        target = utc(idle_until)
        while (remaining_s := (target - self.now()).total_seconds()) > 0:
            try:
                await asyncio.wait_for(self._woken.wait(), min(remaining_s, _NAP_S))
            except TimeoutError:
                continue
            break
        self._woken.clear()
        return self.now()
