"""The stand-in as a process, or in a thread beside a test."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from agent.ollama.api import application
from agent.ollama.standin import Standin

__all__ = ["ServerError", "Standin", "serve", "serve_in_thread"]

_STOP_S = 1
"""Wall seconds that open answers get at the end."""
_START_S = 10.0
_CONNECTIONS_MAX = 2_048


class ServerError(Exception):
    """The stand-in cannot listen; the message names the address and the remedy."""


class _Server(uvicorn.Server):
    """Uvicorn that says when it listens, ends hanging answers first, and ends quietly on SIGTERM."""

    def __init__(self, standin: Standin, on_ready: Callable[[], None]) -> None:
        self._closing = asyncio.Event()
        self._on_ready = on_ready
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
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

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
        server = _Server(standin, lambda: on_ready(_url(listener)))
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again once it has stopped
        try:
            server.run([listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join(_START_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only on sockets that say they are TCP
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        msg = (
            f"the stand-in cannot listen on {host}:{port} ({reason}): give another --host or --port, or port 0 for any"
        )
        raise ServerError(msg) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
