"""`python -m agent.apprise_process`: sends one notification, or checks URLs, in a process of its own.

Apprise and its plugins take 60 MB and a fifth of a CPU second, and the other side may hang, dribble, answer without
end or redirect. Here all of that meets limits of time and memory, and the daemon never feels it.

The question is one JSON object on stdin, the answer one on stdout: `{"faults": [text or null, ...]}`, one for each URL.
No URL is ever written: they hold tokens.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from apprise import NotifyBase

MEMORY_BYTES_MAX = 256 * 1024 * 1024
"""Resident memory of this process, which needs 70 MB: an answer without end fails here, not in the daemon."""
MEMORY_LOOK_S = 0.02
TOO_LARGE = 3
"""Exit code where that was too little."""
NICENESS = 10
"""A message never outruns a decision."""
WORDS_LENGTH_MAX = 300


class _LateError(BaseException):
    """Time is up. No library may swallow it, so it is no `Exception`."""


def main() -> None:
    """Read the question, do what it asks, write the answer."""
    with suppress(PermissionError):  # a hardened unit may forbid it
        os.nice(NICENESS)
    threading.Thread(target=_watch_memory, name="memory", daemon=True).start()
    question = json.load(sys.stdin)
    signal.signal(signal.SIGALRM, _late)
    words = _Words()
    _prepare(words)
    faults: list[str | None] = []
    for url in question["urls"]:
        # importing and parsing are this program's own work: only the sending is timed
        service, fault = _service(url, frozenset(question["trusted_hosts"]), float(question["timeout_s"]))
        if service is not None and question.get("body") is not None:
            fault = _send(service, question, words)
        faults.append(fault)
    json.dump({"faults": faults}, sys.stdout)


def _prepare(words: _Words) -> None:
    """Forbid redirects, and listen to what Apprise says."""
    import requests  # noqa: PLC0415 - only in this process

    # an answer elsewhere would carry the message to a host that nobody named
    setattr(requests.sessions.Session, "get_redirect_target", _nowhere)  # noqa: B010 - not for a type checker
    logger = logging.getLogger("apprise")
    logger.handlers[:] = [words]
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def _nowhere(_session: object, _response: object) -> None:
    """Return where a redirect leads: a service that redirects has not taken the message."""


def _service(url: str, trusted: frozenset[str], timeout_s: float) -> tuple[NotifyBase | None, str | None]:
    """Return what sends to a URL, or why it may not be used."""
    from apprise import Apprise, AppriseAsset  # noqa: PLC0415 - see `_prepare`

    asset = AppriseAsset(
        app_id="Tandem", app_desc="Tandem", app_url="", async_mode=False, http_redirects=False, secure_logging=True
    )
    service = Apprise.instantiate(url, asset=asset)
    if service is None:
        return None, "Apprise cannot read this URL: compare it with Apprise's page on that service"
    fault = _exposed(service, url.partition("://")[0].lower(), trusted)
    if fault is not None:
        return None, fault
    service.redirects = False
    service.socket_connect_timeout = service.socket_read_timeout = timeout_s
    return service, None


def _exposed(service: NotifyBase, scheme: str, trusted: frozenset[str]) -> str | None:
    """Say why a message could be read on its way; None where it could not, or where the host is trusted."""
    hosts = {str(host).rstrip(".").lower() for name in ("host", "smtp_host") if (host := getattr(service, name, None))}
    beyond = sorted(host for host in hosts if not _is_loopback(host) and host not in trusted)
    is_plain = scheme in _schemes(service.protocol) or getattr(service, "secure_mode", None) == "insecure"
    if is_plain and beyond:  # without a host it stays on this machine: the desktop, the system's log
        safe = next(iter(sorted(_schemes(service.secure_protocol))), None)
        remedy = f"write {safe}://" if safe is not None else "use another service"
        return f"{scheme}:// goes to {beyond[0]} in plain text: {remedy}, or name it in notifications.trusted_hosts"
    if not service.verify_certificate and beyond:
        return (
            f"the certificate of {beyond[0]} would not be checked: remove verify=no, or name the host in "
            "notifications.trusted_hosts"
        )
    return None


def _schemes(value: Any) -> frozenset[str]:
    if not value:
        return frozenset()
    return frozenset([value] if isinstance(value, str) else map(str, value))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _send(service: NotifyBase, question: dict[str, Any], words: _Words) -> str | None:
    """Send within the time; returns why that failed, None where it was delivered."""
    timeout_s = float(question["timeout_s"])
    words.lines.clear()
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        delivered = service.notify(
            body=question["body"], title=question["title"], notify_type=question["level"], body_format="text"
        )
    except _LateError:
        return f"no complete answer within {timeout_s:g} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if delivered:
        return None
    return " ".join(" ".join(words.lines).split())[:WORDS_LENGTH_MAX] or "the service did not take it"


def _watch_memory() -> None:
    """End this process at its limit. A limit of the system's would do, but a hardened unit forbids to set one."""
    while _resident_bytes() < MEMORY_BYTES_MAX:
        time.sleep(MEMORY_LOOK_S)
    os._exit(TOO_LARGE)


def _resident_bytes() -> int:
    """Return what this process holds now; on Linux its peak would begin with that of the daemon that started it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read fifty times a second
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _late(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _LateError


class _Words(logging.Handler):
    """What Apprise says of a failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    main()
