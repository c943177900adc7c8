"""The watchdog is bound to progress: a stuck daemon is not vouched for, though its loop turns."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_kit import HISTORY_BARS, Tap, World, Worlds, settings, walk

from agent import daemon as daemon_module
from agent.daemon import Daemon
from agent.parts import Parts

Hang = Callable[[Parts], None]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return Worlds(tmp_path, settings("venue.outage_s_max=0"), {s: walk(s, HISTORY_BARS + 20, 1) for s in "AB"}).new()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return the service manager's end of a notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        monkeypatch.setattr(daemon_module, "HEARTBEAT_S", 0.02)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


class Hanging:
    """A part of the venue of which one question is never answered."""

    def __init__(self, whole: Any, name: str) -> None:
        self._whole = whole
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return _never if name == self._name else getattr(self._whole, name)


async def _never(*_args: Any) -> None:
    await asyncio.Event().wait()


def the_account(parts: Parts) -> None:
    """Hang in the middle of a close."""
    broker: Any = Hanging(parts.broker, "account")
    parts.broker = broker


def the_clock(parts: Parts) -> None:
    """Hang in the wait for the next job."""
    clock: Any = Hanging(parts.clock, "advance")
    parts.clock = clock


@pytest.mark.parametrize("hang", [the_account, the_clock])
def test_a_step_that_never_ends_is_not_vouched_for(
    world: World, manager: socket.socket, monkeypatch: pytest.MonkeyPatch, hang: Hang
) -> None:
    for name in ("JOBS_SILENCE_S_MAX", "STEP_SILENCE_S_MAX"):
        monkeypatch.setattr(daemon_module, name, 0.3)
    monkeypatch.setattr(daemon_module, "LOOP_SILENCE_S_MAX", 60.0)

    async def life() -> tuple[list[str], list[str]]:
        async with world.parts(Tap()) as parts:
            daemon = Daemon(world.settings)
            trader, first = await daemon._recover(parts)
            hang(parts)
            tasks = [asyncio.create_task(daemon._live(parts, trader, first)), asyncio.create_task(daemon._heartbeat())]
            await asyncio.sleep(0.2)
            alive = heard(manager)
            await asyncio.sleep(0.5)
            heard(manager)
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return alive, heard(manager)

    alive, stuck = asyncio.run(life())
    assert "WATCHDOG=1" in alive
    assert "WATCHDOG=1" not in stuck
    assert any(message.startswith("STATUS=no progress") and "schedule" in message for message in stuck)
