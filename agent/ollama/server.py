"""The stand-in as a process, or in a thread beside a test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from agent.ollama.api import application
from agent.ollama.standin import Standin
from brokers.serving import QuietServer, ServerError, listen, url_of

__all__ = ["ServerError", "Standin", "serve", "serve_in_thread"]

_STOP_S = 1
"""Wall seconds that open answers get at the end."""
_START_S = 10.0
_CONNECTIONS_MAX = 2_048


class _Server(QuietServer):
    """Ends the answers that hang before it waits for the others."""

    def __init__(self, standin: Standin, on_ready: Callable[[], None]) -> None:
        self._closing = asyncio.Event()
        config = uvicorn.Config(
            application(standin, self._closing),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # an answer that breaks off is what a fault is for, and nothing to report
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_graceful_shutdown=_STOP_S,
        )
        super().__init__(config, on_ready)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


def serve(
    standin: Standin, *, host: str = "127.0.0.1", port: int = 0, on_ready: Callable[[str], None] = lambda _url: None
) -> None:
    """Listen until SIGTERM or SIGINT.

    Args:
        standin: What is served.
        host: Interface.
        port: TCP port; 0 lets the system choose.
        on_ready: Called with the URL once connections are accepted.

    Raises:
        ServerError: The address is taken or not this machine's.
    """
    with _listen(host, port) as listener:
        _Server(standin, lambda: on_ready(url_of(listener))).run_on(listener)


@contextlib.contextmanager
def serve_in_thread(standin: Standin, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve beside the caller, on a free port of loopback unless told otherwise; yield the URL.

    Raises:
        ServerError: The address is taken, or nothing listens after 10 seconds.
    """
    with _listen(host, port) as listener:
        ready = threading.Event()
        server = _Server(standin, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), name="ollama stand-in", daemon=True)
        thread.start()
        try:
            if not ready.wait(_START_S):
                raise ServerError(f"the stand-in did not start within {_START_S:g} s: the machine is too busy")
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(_START_S)


def _listen(host: str, port: int) -> socket.socket:
    return listen(host, port, who="the stand-in", remedy="give another --host or --port, or port 0 for any")
