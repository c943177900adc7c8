"""What systemd is told over its notify socket (sd_notify(3)): ready, status, watchdog, stopping.

The watchdog is bound to progress: `WATCHDOG=1` leaves only where every probe is fresh, and only from the thread that
made the notifier, which is the loop's. A helper thread that kept a stuck daemon alive would defeat the watchdog.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping

import structlog

from agent.health import Probes

STATUS_LENGTH_MAX = 200
"""Characters of a status line."""

_log = structlog.stdlib.get_logger(__name__)


class Notifier:
    """Speaks to the service manager; silent where there is none (`NOTIFY_SOCKET` is not set)."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.

        Raises:
            ValueError: The socket's address or the watchdog's interval is not understood.
        """
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._owner = threading.get_ident()
        self._watchdog_s = _watchdog_s(environ)

    @property
    def enabled(self) -> bool:
        """True where a service manager listens."""
        return self._address is not None

    @property
    def watchdog_interval_s(self) -> float | None:
        """Seconds between two calls of `watchdog` (half of the manager's limit); None where it does not watch."""
        return None if self._watchdog_s is None or self._address is None else self._watchdog_s / 2

    def ready(self, status: str) -> bool:
        """Say that start-up, reconciliation included, is done."""
        return self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> bool:
        """Set the one line that `systemctl status` shows."""
        return self._send(f"STATUS={_line(status)}")

    def stopping(self, status: str = "stopping") -> bool:
        """Say that the daemon shuts down."""
        return self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def watchdog(self, probes: Probes) -> bool:
        """Keep the watchdog quiet if every probe is fresh; otherwise say which is not, and let it bite.

        Returns:
            True where the keep-alive was sent.

        Raises:
            RuntimeError: Called from a thread other than the one that made the notifier.
        """
        if threading.get_ident() != self._owner:
            raise RuntimeError("the watchdog is fed from another thread than the loop's: it would outlive a stuck loop")
        stale = probes.stale()
        if stale:
            _log.error("watchdog not fed: no progress", stale=list(stale))
            self.status(f"no progress: {', '.join(stale)}")
            return False
        return self._watchdog_s is not None and self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.settimeout(0)  # never wait for the manager
            try:
                wire.sendto(message.encode(), self._address)
            except OSError as error:
                # The manager may be gone or slow; trading goes on, and a missed keep-alive is what the watchdog is for.
                _log.warning("service manager not reached", error=str(error), message=message.partition("\n")[0])
                return False
        return True


def _address(text: str) -> str | None:
    if not text:
        return None
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    if text.startswith("/"):
        return text
    raise ValueError(f"NOTIFY_SOCKET={text!r} is neither an absolute path nor an abstract @name")


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get("WATCHDOG_USEC")
    if not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"WATCHDOG_USEC={text!r} is not a positive whole number of microseconds")
    return int(text) / 1e6


def _line(text: str) -> str:
    return " ".join(text.split())[:STATUS_LENGTH_MAX]
