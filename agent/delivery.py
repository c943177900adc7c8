"""Handing a message to one notification URL: by a child process, so that the other side can do the daemon no harm."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import structlog

from agent.apprise_process import TOO_LARGE
from agent.known_secrets import URLS_VARIABLE
from agent.settings import NotificationSettings
from brokers.configuration import ConfigurationError

log = structlog.get_logger("tandem.notify")

TARGETS_MAX = 10
"""Notification URLs of one daemon."""
REAP_S_MAX = 5.0
"""Longest wall wait for a process that was killed to be gone."""
START_S_MAX = 15.0
"""What the child may take beyond the time of sending: it loads Apprise, on a machine that may be busy."""

Level = Literal["info", "success", "warning", "failure"]


class NotificationError(ConfigurationError):
    """Notifications are not configured so that they can be sent; the message names the source and the remedy."""


class ChildError(Exception):
    """The process that sends did not do its work; that says nothing of the URLs."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it is sent."""

    title: str
    body: str
    level: Level = "info"


class Sender(Protocol):
    """Delivers messages."""

    async def send(self, url: str, message: Message) -> str | None:
        """Return None once the other side has taken the message, else why not. Bounded in time, never raises."""
        ...


def notification_urls(settings: NotificationSettings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the URLs that messages go to; empty where none are configured.

    Raises:
        NotificationError: The file cannot be read, or holds something else; its content is not shown.
    """
    if settings.urls_file is not None:
        source = f"notifications.urls_file {settings.urls_file}"
        lines = _lines(settings.urls_file, source)
    else:
        source = f"environment variable {URLS_VARIABLE}"
        lines = (os.environ if environ is None else environ).get(URLS_VARIABLE, "").split()
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        scheme, separator, rest = text.partition("://")
        if not separator or not scheme.isalnum() or not rest or any(sign.isspace() for sign in text):
            raise NotificationError(f"{source}: entry {number} is not a URL such as json://localhost:8080/path")
        found.append(text)
    if len(found) > TARGETS_MAX:
        raise NotificationError(f"{source} holds {len(found)} URLs, at most {TARGETS_MAX} are served: remove some")
    if settings.urls_file is not None and not found:
        raise NotificationError(f"{source} holds no URL: write one a line, or remove the setting")
    return list(dict.fromkeys(found))


def labels(urls: Sequence[str]) -> list[str]:
    """Return what logs and results call the URLs: the service and its number, nothing of what is secret."""
    return [f"{url.partition('://')[0].lower()}#{number}" for number, url in enumerate(urls, start=1)]


async def check_urls(settings: NotificationSettings, urls: Sequence[str]) -> str | None:
    """Refuse URLs that Apprise does not know, or that would carry messages in plain text beyond this machine.

    Returns:
        Why they could not be checked; None where they were.

    Raises:
        NotificationError: Naming the URL by its label, and the remedy.
    """
    if not urls:
        return None
    try:
        faults = await AppriseSender(settings).ask(urls, {})
    except ChildError as error:  # each sending checks its URL again: trading need not wait for that
        log.warning("the notification URLs could not be checked", error=str(error))
        return str(error)
    for label, fault in zip(labels(urls), faults, strict=True):
        if fault is not None:
            raise NotificationError(f"notification URL {label}: {fault}")
    return None


class AppriseSender:
    """Delivers through Apprise, one child process for each message."""

    def __init__(self, settings: NotificationSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._trusted_hosts = settings.trusted_hosts

    async def send(self, url: str, message: Message) -> str | None:
        """Return None once the other side has taken the message, else why not."""
        try:
            return (await self.ask([url], {"title": message.title, "body": message.body, "level": message.level}))[0]
        except ChildError as error:
            return str(error)

    async def ask(self, urls: Sequence[str], message: Mapping[str, str]) -> list[str | None]:
        """Run the child once; returns one fault or None for each URL.

        Raises:
            ChildError: It gave no answer.
        """
        common = {"urls": list(urls), "timeout_s": self._timeout_s, "trusted_hosts": list(self._trusted_hosts)}
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent.apprise_process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(),
            )
        except OSError as error:
            raise ChildError(f"no process could be started to send it ({error.strerror or error})") from error
        try:
            limit_s = START_S_MAX + self._timeout_s * len(urls)
            question = json.dumps({**common, **message}).encode()
            answer, _ = await asyncio.wait_for(process.communicate(question), limit_s)
            return _faults(answer, process.returncode)
        except TimeoutError:
            raise ChildError("the process that sends it did not end in time") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    process.kill()
                with suppress(TimeoutError):  # it is dead; a loop that does not hear of it must not wait for ever
                    await asyncio.wait_for(process.wait(), REAP_S_MAX)


def _faults(answer: bytes, code: int | None) -> list[str | None]:
    if code == TOO_LARGE:
        raise ChildError("the answer is larger than any answer should be")
    try:
        faults = json.loads(answer)["faults"]
    except (ValueError, KeyError, TypeError):
        raise ChildError(f"the process that sends it ended with code {code} and no answer") from None
    return [None if fault is None else str(fault) for fault in faults]


def _environment() -> dict[str, str]:
    """Return this process's environment without settings and keys: the child needs proxies and paths alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TANDEM_", "APCA_"))}
    root = str(Path(__file__).resolve().parents[1])  # for a daemon that runs from source, in any working directory
    kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    return kept


def _lines(file: Path, source: str) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotificationError(
            f"{source} cannot be read ({error.strerror or error}): write one Apprise URL a line into it, readable for "
            "this user"
        ) from None
    except UnicodeDecodeError:
        raise NotificationError(f"{source} is not UTF-8 text: write one Apprise URL a line into it") from None
