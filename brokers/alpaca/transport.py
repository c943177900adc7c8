"""One wire attempt: alpaca-py's REST client with the limits that it does not set itself.

alpaca-py 0.44 sets no timeout, sleeps and resends POSTs on 429 and 504, and raises from inside its error
objects when a body is not JSON. Here each attempt has its own time and size limits, nothing is resent, and the
outcome is a value: no exception object carries request headers, so keys cannot reach a traceback.

Of alpaca-py only `alpaca.common.rest` is imported: `TradingClient` is that class plus typed methods which put
floats on the wire, and importing it costs pandas (52 MB and 0.25 CPU-seconds, measured).
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from alpaca.common.exceptions import APIError
from alpaca.common.rest import RESTClient
from requests.adapters import HTTPAdapter

from brokers.alpaca.settings import AlpacaSettings, Credentials, is_loopback
from brokers.domain import BrokerError

_NEEDED_OF_SDK = ("_session", "_retry", "_retry_codes", "_request")
_CHUNK_BYTES = 1 << 16
_TEXT_MAX = 200


class IncompatibleSdkError(BrokerError):
    """The installed alpaca-py no longer has the parts that are set here: orders could be sent twice."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one attempt.

    Args:
        status: HTTP status; None where no whole answer came.
        body: Decoded JSON; None where the body is empty or is not JSON.
        is_json: True where the body was JSON.
        text: The start of the body, or the network's failure; without secrets.
        headers: Headers of the answer.
    """

    status: int | None
    body: Any = None
    is_json: bool = False
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True for 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def code(self) -> str:
        """Alpaca's error code, else the HTTP status, else `no_answer`."""
        code = self.body.get("code") if isinstance(self.body, dict) else None
        if isinstance(code, int | str) and not isinstance(code, bool) and str(code):
            return str(code)
        return "no_answer" if self.status is None else f"http_{self.status}"

    @property
    def message(self) -> str:
        """Alpaca's message, else the start of the body."""
        message = self.body.get("message") if isinstance(self.body, dict) else None
        return message[:_TEXT_MAX] if isinstance(message, str) and message else self.text

    def describe(self) -> str:
        """Return one line for an error: status and message."""
        status = "no answer" if self.status is None else f"HTTP {self.status}"
        return f"{status}: {self.message}" if self.message else status


class _Limits(HTTPAdapter):
    """Times out connect, first byte and whole body; bounds the body; keeps the answer for its caller."""

    def __init__(self, settings: AlpacaSettings) -> None:
        self._timeout_s = (settings.connect_timeout_s, settings.read_timeout_s)
        self._bytes_max = settings.answer_bytes_max
        self._last: requests.Response | None = None
        super().__init__(pool_connections=2, pool_maxsize=1, max_retries=0)

    def send(self, request: requests.PreparedRequest, *_args: Any, **options: Any) -> requests.Response:
        """Send with our limits, whatever the caller asked for."""
        options.update(timeout=self._timeout_s, stream=True)
        response = super().send(request, **options)
        body = self._read(response)
        response.raw = io.BytesIO(body)
        response.encoding = "utf-8"
        self._last = response
        return response

    def take_last(self) -> requests.Response | None:
        """Return the last answer and forget it."""
        response, self._last = self._last, None
        return response

    def _read(self, response: requests.Response) -> bytes:
        """Read the whole body; every chunk waits at most the read timeout, and all of them together as well."""
        deadline = time.monotonic() + self._timeout_s[1]
        body = bytearray()
        complete = False
        try:
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
                body += chunk
                self._check(len(body), deadline)
            complete = True
        finally:
            if complete:
                response.raw.release_conn()
            else:
                response.raw.close()
        return bytes(body)

    def _check(self, size: int, deadline: float) -> None:
        if size > self._bytes_max:
            raise requests.exceptions.ContentDecodingError(f"the answer exceeds {self._bytes_max} bytes")
        if time.monotonic() > deadline:
            raise requests.exceptions.ReadTimeout(f"the answer is not complete after {self._timeout_s[1]:g} s")


class _Rest(RESTClient):
    """alpaca-py's client with its resending switched off."""

    def __init__(self, settings: AlpacaSettings, credentials: Credentials) -> None:
        super().__init__(
            base_url=settings.trading_url,
            api_key=credentials.key_id.get_secret_value(),
            secret_key=credentials.secret_key.get_secret_value(),
            raw_data=True,
        )
        require_sdk(self)
        self.limits = _Limits(settings)
        self._session.mount("http://", self.limits)
        self._session.mount("https://", self.limits)
        self._session.trust_env = not is_loopback(settings.trading_url)
        self._retry = 0
        self._retry_codes = []

    def request(self, method: str, base_url: str, version: str, path: str, data: Mapping[str, Any] | None) -> Any:
        """Send one request below `base_url/version`."""
        return self._request(method, path, dict(data) if data is not None else None, base_url, version)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def require_sdk(rest: object) -> None:
    """Check that the SDK still has what is switched off here.

    Raises:
        IncompatibleSdkError: Naming the missing parts.
    """
    if not hasattr(urllib3.HTTPResponse, "read1"):
        raise IncompatibleSdkError("the installed urllib3 cannot read an answer in bounded steps: install 2.3 or newer")
    missing = [name for name in _NEEDED_OF_SDK if not hasattr(rest, name)]
    if missing:
        raise IncompatibleSdkError(
            f"the installed alpaca-py has no {', '.join(missing)}: its resending of orders cannot be switched off, "
            "install a version within the range that pyproject.toml names"
        )


class Transport:
    """Wire attempts from any thread. A session serves one thread at a time; the last used is used next."""

    def __init__(self, settings: AlpacaSettings, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._free = threading.BoundedSemaphore(settings.connections_max)
        self._idle = deque([_Rest(settings, credentials)])
        self._closed = False

    def __repr__(self) -> str:
        return f"Transport({self._settings.trading_url})"

    def call(
        self,
        method: str,
        path: str,
        data: Mapping[str, Any] | None = None,
        version: str = "v2",
        *,
        market: bool = False,
    ) -> Answer:
        """Make one attempt. Returns an Answer whatever the network does; never raises for it.

        Args:
            method: GET, POST or DELETE.
            path: Below the version, with its slash.
            data: Query for GET and DELETE, JSON for POST.
            version: Path prefix, such as `v2` or `v1beta3`.
            market: True for the data host.
        """
        patience_s = self._settings.connect_timeout_s + 2 * self._settings.read_timeout_s
        if not self._free.acquire(timeout=patience_s):
            return Answer(None, text=f"all {self._settings.connections_max} connections stayed busy")
        try:
            rest = self._take()
            base_url = self._settings.market_data_url if market else self._settings.trading_url
            try:
                return self._attempt(rest, method, base_url, version, path, data)
            finally:
                self._give_back(rest)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the idle connections, and the busy ones when their attempt ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _give_back(self, rest: _Rest) -> None:
        if self._closed:
            rest.close()
        else:
            self._idle.append(rest)

    def _take(self) -> _Rest:
        try:
            return self._idle.pop()
        except IndexError:
            return _Rest(self._settings, self._credentials)

    def _attempt(
        self, rest: _Rest, method: str, base_url: str, version: str, path: str, data: Mapping[str, Any] | None
    ) -> Answer:
        rest.limits.take_last()
        refused = False
        body: Any = None
        try:
            body = rest.request(method, base_url, version, path, data)
        except (APIError, json.JSONDecodeError, requests.exceptions.JSONDecodeError, RecursionError):
            refused = True
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return Answer(None, text=self._credentials.scrub(f"{type(error).__name__}: {_cause(error)}")[:_TEXT_MAX])
        response = rest.limits.take_last()
        if response is None:
            return Answer(None, text="no answer was read")
        if refused:
            return self._refused(response)
        return Answer(response.status_code, body, is_json=body is not None, headers=response.headers)

    def _refused(self, response: requests.Response) -> Answer:
        text = self._credentials.scrub(response.text)
        try:
            body, is_json = json.loads(text), True
        except (ValueError, RecursionError):
            body, is_json = None, False
        return Answer(response.status_code, body, is_json=is_json, text=text[:_TEXT_MAX], headers=response.headers)


def _cause(error: BaseException) -> BaseException:
    """Return the network's own failure out of those that the client's layers wrapped around it."""
    while error.args:
        inner = getattr(error.args[0], "reason", None) or (error.args[0] if len(error.args) == 1 else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
