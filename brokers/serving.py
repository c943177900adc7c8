"""What the HTTP servers of this project do alike: bind or say why not, say when they listen, end quietly on SIGTERM."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

__all__ = ["QuietServer", "ServerError", "listen", "url_of"]


class ServerError(Exception):
    """A server cannot listen; the message names the address and the remedy."""


class QuietServer(uvicorn.Server):
    """Uvicorn that says when it listens, and for which a stop by signal is a normal end."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._on_ready()

    def run_on(self, listener: socket.socket) -> None:
        """Serve one bound socket until SIGTERM or SIGINT; for the main thread."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again once it has stopped
        try:
            self.run([listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int, *, who: str, remedy: str) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Interface.
        port: TCP port; 0 lets the system choose.
        who: Wants to listen, for the message.
        remedy: What to do where the address cannot be had.

    Raises:
        ServerError: The address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only on sockets that say they are TCP; with it, each answer takes 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        msg = f"{who} cannot listen on {host}:{port} ({reason}): {remedy}"
        raise ServerError(msg) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL that a listening socket answers to."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
