"""Telling people: what the ledger has to tell goes to every notification URL, at least once, and never in the way.

Each URL is a reader of the ledger with a cursor of its own, which is kept in the ledger: what was committed while the
process was dead, or the URL silent, is told later; only what was being sent when the process died is told twice. The
queue is the ledger itself, so there is none to overflow. Sending happens in a child process that is bounded in time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from agent.delivery import Message, Sender, labels
from agent.ledger.store import Ledger, LedgerError
from agent.metrics import Metrics
from agent.news import KINDS, Event, News, NewsDesk, Position, fold
from agent.settings import NotificationSettings

log = structlog.get_logger("tandem.notify")

LOOK_S = 1.0
"""Wall time between two looks at the ledger while there is nothing to tell."""
FAULT_PAUSE_S = 60.0
"""Wait after news that could not be read or written down."""
STATE_KEY = "notifications."
TITLE_LENGTH_MAX, BODY_LENGTH_MAX = 150, 2_000


@dataclass(slots=True)
class Cursor:
    """What one URL was told; and, for each kind of event, the interval that its messages are counted in.

    Args:
        positions: By kind: see `news.NewsDesk`.
        windows: By kind: when the interval began (seconds since the epoch), messages sent in it, and whether the
            interval before it was used up.
        undelivered: Events that were dropped since the last message was delivered.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    windows: dict[str, tuple[float, int, bool]] = field(default_factory=dict)
    undelivered: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what is kept in the ledger."""
        windows = {kind: list(window) for kind, window in self.windows.items()}
        return {"positions": dict(self.positions), "windows": windows, "undelivered": self.undelivered}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cursor:
        """Read it back."""
        windows = {kind: (float(w[0]), int(w[1]), bool(w[2])) for kind, w in value["windows"].items()}
        return cls(dict(value["positions"]), windows, int(value["undelivered"]))


@dataclass(slots=True)
class _Target:
    url: str
    label: str
    key: str
    cursor: Cursor
    failures: int = 0
    tried_since: float | None = None
    """Monotonic time of the first attempt of the message that is not delivered yet."""
    quiet_marks: dict[str, str] = field(default_factory=dict)
    """By kind its mark when there was nothing of it to tell."""


class Notifications:
    """Tells every URL what it has not been told.

    Args:
        desk: Reads the news.
        ledger: Keeps the cursors; its redactor cleans every message.
        metrics: Counts messages sent, failed and dropped.
        settings: Events, limits and times.
        urls: Where messages go.
        sender: Delivers one message; bounded in time, never raises.
        scope: Names the account in titles.
        now: System time in seconds since the epoch.
    """

    def __init__(
        self,
        desk: NewsDesk,
        ledger: Ledger,
        metrics: Metrics,
        settings: NotificationSettings,
        urls: Sequence[str],
        sender: Sender,
        *,
        scope: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._desk = desk
        self._ledger = ledger
        self._metrics = metrics
        self._settings = settings
        self._sender = sender
        self._scope = scope
        self._now = now
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._targets = [
            _Target(url, label, STATE_KEY + hashlib.sha256(url.encode()).hexdigest()[:16], Cursor())
            for url, label in zip(urls, labels(urls), strict=True)
        ]

    def start(self) -> None:
        """Find out where the telling stands, and go on from there.

        Raises:
            LedgerError: It cannot be read or written.
        """
        chosen: frozenset[str] = frozenset(self._settings.events)
        for target in self._targets:
            cursor = self._stored(target)
            positions: dict[str, Position] = {
                kind: cursor.positions[kind] if kind in cursor.positions else self._desk.start(kind)
                for kind in KINDS
                if kind in chosen
            }
            target.cursor = Cursor(positions, cursor.windows, cursor.undelivered)
            self._commit(target)
        self._tasks = [asyncio.create_task(self._serve(target)) for target in self._targets]

    def _stored(self, target: _Target) -> Cursor:
        """Return the cursor that the ledger keeps; a new one where there is none, or none that can be understood."""
        stored = self._ledger.get_state(target.key)
        try:
            return Cursor() if stored is None else Cursor.from_json(stored)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            log.error("a cursor cannot be read: told from now on", target=target.label, error=repr(error))  # noqa: TRY400 - the value says all
            return Cursor()

    async def finish(self, limit_s: float) -> None:
        """Tell what is left, for at most `limit_s`; the rest waits in the ledger for the next start."""
        self._closing.set()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=max(limit_s, 0.0))
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if late:
            log.info("some news are told at the next start", urls=len(late))

    async def _serve(self, target: _Target) -> None:
        """Tell one URL everything, until the daemon stops; a fault here is logged, and must not reach who trades."""
        told_fault = False
        while True:
            closing = self._closing.is_set()
            if closing and target.failures:
                return
            wait_s = 0.0
            try:
                if not await self._tell_next(target):
                    wait_s = LOOK_S
                elif target.failures:
                    wait_s = min(self._settings.retry_s_max, 2.0 ** min(target.failures - 1, 30))
                told_fault = False
            except Exception as error:
                if not told_fault:
                    log.exception("news cannot be told", target=target.label, error=str(error))
                told_fault, wait_s = True, FAULT_PAUSE_S
            if wait_s and closing:
                return
            if wait_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), wait_s)

    async def _tell_next(self, target: _Target) -> bool:
        """Send the next message, if there is one and its kind may send; returns whether one was tried."""
        for kind, position in target.cursor.positions.items():
            began, sent, was_full = self._window(target, kind)
            if sent >= self._settings.messages_max:
                continue
            mark = self._desk.mark(kind)
            if mark is not None and mark == target.quiet_marks.get(kind):
                continue
            news = self._desk.news(kind, position)
            if not news.total:
                if mark is not None:
                    target.quiet_marks[kind] = mark
                continue
            is_folded = was_full and news.total > 1
            event = fold(kind, news) if is_folded else news.events[0]
            fault = await self._sender.send(target.url, self._message(target, event))
            if fault is not None:
                self._failed(target, fault)
                return True
            target.cursor.positions[kind] = news.after_all if is_folded else news.after_first
            target.cursor.windows[kind] = (began, sent + 1, was_full and not is_folded)
            self._delivered(target)
            return True
        return False

    def _window(self, target: _Target, kind: str) -> tuple[float, int, bool]:
        """Return the interval that a message of this kind falls into now."""
        now = self._now()
        began, sent, was_full = target.cursor.windows.get(kind, (now, 0, False))
        if began <= now < began + self._settings.interval_s:  # a clock that was set back begins a new one
            return began, sent, was_full
        return now, 0, sent >= self._settings.messages_max

    def _message(self, target: _Target, event: Event) -> Message:
        redact = self._ledger.redactor.text
        body = event.body
        if target.cursor.undelivered:
            body = f"{target.cursor.undelivered:,} events before this could not be delivered\n{body}"
        title = f"tandem {self._scope}: {event.title}"
        return Message(redact(title)[:TITLE_LENGTH_MAX], redact(body)[:BODY_LENGTH_MAX], event.level)

    def _delivered(self, target: _Target) -> None:
        self._metrics.notified("sent")
        if target.failures:
            log.info("notifications are delivered again", target=target.label, attempts=target.failures + 1)
        target.failures, target.tried_since = 0, None
        target.cursor.undelivered = 0
        self._commit(target)

    def _failed(self, target: _Target, fault: str) -> None:
        self._metrics.notified("failed")
        target.failures += 1
        if target.failures == 1:
            error = self._ledger.redactor.text(fault)
            log.warning("a notification was not delivered; it is tried again", target=target.label, error=error)
        now = time.monotonic()
        if target.tried_since is None:
            target.tried_since = now
        elif now - target.tried_since > self._settings.give_up_after_s:
            self._drop(target)

    def _drop(self, target: _Target) -> None:
        """Give up what could not be delivered for too long; the next message that arrives says how much it was."""
        dropped = 0
        for kind, position in target.cursor.positions.items():
            news: News = self._desk.news(kind, position)
            if news.total:
                dropped += news.total
                target.cursor.positions[kind] = news.after_all
        target.cursor.undelivered += dropped
        target.tried_since = None
        self._metrics.notified("dropped", dropped)
        log.error("notifications dropped", target=target.label, events=dropped, after_s=self._settings.give_up_after_s)
        self._commit(target)

    def _commit(self, target: _Target) -> None:
        """Keep the cursor; if that fails this process still knows what it has told, and only a restart repeats it."""
        try:
            with self._ledger.transaction() as connection:
                self._ledger.set_state(connection, target.key, target.cursor.to_json())
        except LedgerError as error:
            log.error("what was told could not be written down", target=target.label, error=str(error))  # noqa: TRY400 - the ledger's message says all
