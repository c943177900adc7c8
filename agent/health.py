"""Whether the daemon makes progress, and who is told: `/healthz`, `/readyz`, `/metrics`.

Progress is measured where it happens: the loop, the scheduler, the cycle and the ledger each `beat` a probe, and a
probe that has not beaten within its limit makes the process unhealthy. A thread that answers HTTP proves nothing by
answering; only the ages that it reports do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock, Thread
from types import TracebackType
from typing import Any, Self

import structlog

from agent.metrics import Metrics

REQUESTS_MAX = 8
"""Requests answered at one time; a further one gets 503 at once."""
REQUEST_TIMEOUT_S = 5.0
"""Longest wait for a client's next byte."""
_STOP_POLL_S = 0.2

_log = structlog.stdlib.get_logger(__name__)


class HealthServerError(Exception):
    """The health server cannot listen; the message names the address and the remedy."""


class Probes:
    """Progress probes with limits, in monotonic wall time.

    A probe's age counts from its last beat, and before the first one from its registration. Safe to use from
    several threads.
    """

    def __init__(
        self, limits_s: Mapping[str, float | None], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Register probes.

        Args:
            limits_s: Largest age of each probe, seconds; None reports the age without judging it.
            monotonic: Clock, seconds.
        """
        self._monotonic = monotonic
        self._lock = Lock()
        now = monotonic()
        self._limits_s = dict(limits_s)
        self._beaten_at = dict.fromkeys(limits_s, now)

    def beat(self, name: str) -> None:
        """Note progress of a registered probe.

        Raises:
            KeyError: No such probe: a beat nobody judges is a mistake.
        """
        with self._lock:
            self._known(name)
            self._beaten_at[name] = self._monotonic()

    def expect(self, name: str, within_s: float | None) -> None:
        """Set a probe's limit and start its age anew: the next beat is due within `within_s`; None for no limit.

        For progress whose rhythm changes, such as the cycle, which is due at the next bar close.
        """
        with self._lock:
            self._known(name)
            self._limits_s[name] = within_s
            self._beaten_at[name] = self._monotonic()

    def ages(self) -> dict[str, float]:
        """Return seconds since each probe's last beat."""
        with self._lock:
            now = self._monotonic()
            return {name: now - at for name, at in self._beaten_at.items()}

    def report(self) -> dict[str, ProbeReport]:
        """Return age, limit and verdict of each probe."""
        ages = self.ages()
        with self._lock:
            return {name: ProbeReport(age_s, self._limits_s[name]) for name, age_s in ages.items()}

    def stale(self) -> tuple[str, ...]:
        """Return the probes whose age exceeds their limit; empty means healthy."""
        return tuple(name for name, probe in self.report().items() if not probe.fresh)

    def _known(self, name: str) -> None:
        if name not in self._limits_s:
            raise KeyError(f"no probe {name!r}; registered: {', '.join(sorted(self._limits_s))}")


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """One probe: seconds since its last beat, and its limit (None for none)."""

    age_s: float
    limit_s: float | None

    @property
    def fresh(self) -> bool:
        """True where the age is within the limit."""
        return self.limit_s is None or self.age_s <= self.limit_s


class Readiness:
    """Whether the daemon may trade: not before it has reconciled. A halted one is ready, and says that it is halted."""

    def __init__(self) -> None:
        """Start not ready."""
        self._lock = Lock()
        self._ready = False
        self._detail = "starting"
        self._halt_reason: str | None = None

    def set_ready(self, detail: str = "reconciled") -> None:
        """Say that the daemon has reconciled and decides."""
        with self._lock:
            self._ready, self._detail = True, detail

    def set_not_ready(self, detail: str) -> None:
        """Say why the daemon cannot decide (reconciling, venue lost, stopping)."""
        with self._lock:
            self._ready, self._detail = False, detail

    def set_halted(self, reason: str | None) -> None:
        """Say why entries are halted; None after a resume."""
        with self._lock:
            self._halt_reason = reason

    @property
    def ready(self) -> bool:
        """True once reconciled."""
        with self._lock:
            return self._ready

    def report(self) -> dict[str, Any]:
        """Return what `/readyz` says."""
        with self._lock:
            return {
                "ready": self._ready,
                "detail": self._detail,
                "halted": self._halt_reason is not None,
                "halt_reason": self._halt_reason,
            }


class HealthServer:
    """Serves `/healthz`, `/readyz` and `/metrics` from a small bounded thread pool. A context manager."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        probes: Probes,
        readiness: Readiness,
        metrics: Metrics,
        language_model: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Listen; 0 as the port lets the system choose.

        Args:
            host: Address to listen on.
            port: Port.
            probes: Progress, for `/healthz`.
            readiness: For `/readyz`.
            metrics: For `/metrics`.
            language_model: Its state, shown by `/readyz`, which it never makes unready; None where there is none.

        Raises:
            HealthServerError: The address cannot be listened on.
        """
        metrics.watch_ages(probes.ages)
        pages = {
            "/healthz": lambda: _health_page(probes),
            "/readyz": lambda: _readiness_page(readiness, language_model),
            "/metrics": lambda: _Page(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", metrics.exposition()),
        }
        try:
            self._server = _Server((host, port), pages)
        except (OSError, OverflowError) as error:
            raise HealthServerError(
                f"health server cannot listen on {host}:{port}: {error}. "
                "Set health.port to a free port, to 0 (the system chooses), or to null (no server)."
            ) from error
        self._thread = Thread(
            target=self._server.serve_forever, args=(_STOP_POLL_S,), name="tandem-health", daemon=True
        )
        self._thread.start()
        self.port: int = self._server.server_address[1]
        _log.info("health server listens", host=host, port=self.port)

    def close(self) -> None:
        """Stop listening and wait for the server's thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(REQUEST_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Page:
    status: HTTPStatus
    content_type: str
    body: bytes


def _json_page(status: HTTPStatus, content: Mapping[str, Any]) -> _Page:
    return _Page(status, "application/json", json.dumps(content).encode() + b"\n")


def _health_page(probes: Probes) -> _Page:
    report = probes.report()
    stale = [name for name, probe in report.items() if not probe.fresh]
    return _json_page(
        HTTPStatus.SERVICE_UNAVAILABLE if stale else HTTPStatus.OK,
        {
            "healthy": not stale,
            "stale": stale,
            "probes": {
                name: {"age_s": round(probe.age_s, 3), "limit_s": probe.limit_s} for name, probe in report.items()
            },
        },
    )


def _readiness_page(readiness: Readiness, language_model: Callable[[], Mapping[str, Any]] | None) -> _Page:
    report = readiness.report()
    if language_model is not None:
        report["language_model"] = dict(language_model())
    return _json_page(HTTPStatus.OK if report["ready"] else HTTPStatus.SERVICE_UNAVAILABLE, report)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Callable[[], _Page]]) -> None:
        self.pages = pages
        self._slots = BoundedSemaphore(REQUESTS_MAX)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            request.settimeout(0.1)
            try:
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            except OSError as error:
                _log.debug("health client left", error=str(error))
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the base class's signature
        _log.warning("health request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_S
    server_version = "tandem"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        make = self.server.pages.get(path)
        if make is None:
            page = _json_page(HTTPStatus.NOT_FOUND, {"error": "no such page", "pages": sorted(self.server.pages)})
        else:
            page = make()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's signature
        _log.debug("health request", request=format % args)
