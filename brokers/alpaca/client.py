"""Questions and commands to the venue: pace, bounded repetition of questions, never of commands.

A question is repeated within `outage_s_max` and then fails with UnavailableError. A command (an order, a
cancellation) is one attempt whose Answer the caller judges.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from brokers.alpaca.pacing import TokenBucket, demanded_wait_s
from brokers.alpaca.settings import AlpacaSettings, load_credentials
from brokers.alpaca.transport import Answer, Transport
from brokers.domain import AuthError, Health, RateLimitedError, UnavailableError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NOT_FOUND = "40410000"
AUTH_FAILED = "40110000"

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 2.0
_REPEATED = frozenset({None, 408, 425, 429, 500, 502, 503, 504})


class Runner(Protocol):
    """Runs a blocking call off the event loop, like `asyncio.to_thread`."""

    def __call__(self, call: Callable[..., T_co], /, *args: Any, **kwargs: Any) -> Awaitable[T_co]:
        """Run `call` and return its result."""
        ...


async def inline(call: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Run a blocking call where it stands: for simulation and tests."""
    return call(*args, **kwargs)


class AlpacaClient:
    """One venue's REST face.

    Args:
        settings: Hosts and limits.
        run: Carries blocking calls off the event loop.
        sleep: Waits between two attempts of a question (wall seconds).
        monotonic: Wall clock in seconds.

    Raises:
        AuthError: No usable keys.
        IncompatibleSdkError: See `brokers.alpaca.transport`.
    """

    def __init__(
        self,
        settings: AlpacaSettings,
        *,
        run: Runner = asyncio.to_thread,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._transport = Transport(settings, load_credentials(settings))
        self._run = run
        self._sleep = sleep
        self._monotonic = monotonic
        self._bucket = TokenBucket(settings.capabilities.requests_per_minute, monotonic)
        self._jitter = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self._health = Health(ok=False, detail="not asked yet")

    def __repr__(self) -> str:
        return f"AlpacaClient({self.settings.kind}, {self.settings.trading_url})"

    def health(self) -> Health:
        """Return how the last attempt went."""
        return self._health

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    async def ask(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        version: str = "v2",
        market: bool = False,
        urgent: bool = False,
    ) -> Any:
        """Return the JSON of a GET.

        Raises:
            AuthError: The keys are refused.
            UnavailableError: No usable answer within `outage_s_max`.
        """
        answer = await self._ask(path, params, version=version, market=market, urgent=urgent)
        if not answer.ok or not answer.is_json:
            raise self._unusable(path, answer)
        return answer.body

    async def find(self, path: str, params: Mapping[str, Any] | None = None) -> Any | None:
        """Return the JSON of a GET, None only where the venue itself says that there is no such thing.

        A 404 without Alpaca's own code comes from something in between and proves nothing.

        Raises:
            AuthError: The keys are refused.
            UnavailableError: No usable answer within `outage_s_max`.
        """
        answer = await self._ask(path, params, urgent=True)
        if answer.status == 404 and answer.code == NOT_FOUND:
            return None
        if not answer.ok or not answer.is_json:
            raise self._unusable(path, answer)
        return answer.body

    def _unusable(self, path: str, answer: Answer) -> UnavailableError:
        what = f"{self.settings.kind} at {self.settings.trading_url}"
        return UnavailableError(
            f"{what}: GET {path} was not answered as such a venue does ({answer.describe()}): check venue.url"
        )

    async def command(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        version: str = "v2",
        urgent: bool = False,
    ) -> Answer:
        """Make one attempt of a POST or DELETE.

        Raises:
            RateLimitedError: The pace forbids it now; nothing was sent.
        """
        wait_s = self._bucket.take(urgent=urgent)
        if wait_s > 0:
            raise RateLimitedError(
                f"{method} {path} was not sent: the request limit allows it in {wait_s:.1f} s", wait_s
            )
        return await self._attempt(method, path, body, version)

    async def _ask(
        self,
        path: str,
        params: Mapping[str, Any] | None,
        *,
        version: str = "v2",
        market: bool = False,
        urgent: bool = False,
    ) -> Answer:
        deadline = self._monotonic() + self.settings.outage_s_max
        backoff_s = _BACKOFF_FIRST_S
        last = "the request limit is used up"
        while True:
            wait_s = self._bucket.take(urgent=urgent)
            if wait_s <= 0:
                answer = await self._attempt("GET", path, params, version, market=market)
                if answer.status not in _REPEATED:
                    self._refuse_bad_keys(answer)
                    return answer
                last = answer.describe()
                wait_s = max(demanded_wait_s(answer.headers) or 0.0, backoff_s * self._jitter.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)
            if self._monotonic() + wait_s > deadline:
                raise UnavailableError(
                    f"{self.settings.kind} at {self.settings.trading_url}: GET {path} got no usable answer within "
                    f"{self.settings.outage_s_max:g} s ({last}): check that it runs there, or correct venue.url"
                )
            await self._sleep(wait_s)

    async def _attempt(
        self, method: str, path: str, data: Mapping[str, Any] | None, version: str, *, market: bool = False
    ) -> Answer:
        answer = await self._run(self._transport.call, method, path, data, version, market=market)
        if answer.status == 429:
            self._bucket.close_for(demanded_wait_s(answer.headers) or 1.0)
        usable = answer.status is not None and answer.status < 500 and answer.status not in {401, 429}
        self._health = Health(ok=usable, detail="" if usable else f"{method} {path}: {answer.describe()}")
        return answer

    def _refuse_bad_keys(self, answer: Answer) -> None:
        if is_auth_failure(answer):
            raise AuthError(f"{self.settings.kind} refused the keys ({answer.describe()}): check them")


def is_auth_failure(answer: Answer) -> bool:
    """Tell whether an answer says that the keys are wrong (401; Alpaca also sends a bare 403 'forbidden.')."""
    if answer.status == 401 or (answer.code == AUTH_FAILED and not answer.ok):
        return True
    return answer.status == 403 and answer.code == "http_403" and answer.message.strip().lower() == "forbidden."
