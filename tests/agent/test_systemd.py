from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.health import Probes
from agent.systemd import STATUS_LENGTH_MAX, Notifier


class Manager:
    """The service manager's end of a real notify socket."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(0)

    def heard(self) -> list[str]:
        """Return every datagram so far; a datagram is there as soon as its sender has returned."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and not sys.platform.startswith("linux"):
        pytest.skip("abstract sockets are Linux's")
    listening = Manager(str(tmp_path / "notify") if request.param == "path" else f"@tandem-test-{secrets.token_hex(8)}")
    yield listening
    listening.close()


def test_ready_status_and_stopping_arrive_as_systemd_expects_them(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    assert notifier.ready("reconciled, 2 symbols")
    assert notifier.status("next close 14:05")
    assert notifier.stopping()
    assert manager.heard() == [
        "READY=1\nSTATUS=reconciled, 2 symbols",
        "STATUS=next close 14:05",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_the_watchdog_is_fed_while_every_probe_is_fresh(manager: Manager) -> None:
    assert Notifier(manager.environ).watchdog(Probes({"loop": 60.0}))
    assert manager.heard() == ["WATCHDOG=1"]


def test_the_watchdog_is_not_fed_when_one_probe_is_stale(manager: Manager) -> None:
    now = [0.0]
    probes = Probes({"loop": 60.0, "ledger": 5.0}, monotonic=lambda: now[0])
    now[0] = 10.0
    assert not Notifier(manager.environ).watchdog(probes)
    assert manager.heard() == ["STATUS=no progress: ledger"]


def test_a_thread_of_its_own_may_not_feed_the_watchdog(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    refused: list[str] = []

    def feed() -> None:
        try:
            notifier.watchdog(Probes({}))
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=feed)
    thread.start()
    thread.join()
    assert refused
    assert "another thread" in refused[0]
    assert manager.heard() == []


def test_the_keep_alive_interval_is_half_of_the_managers_limit(manager: Manager) -> None:
    assert Notifier(manager.environ).watchdog_interval_s == 10.0


def test_a_watchdog_meant_for_another_process_is_not_fed(manager: Manager) -> None:
    notifier = Notifier({**manager.environ, "WATCHDOG_PID": "1"})
    assert notifier.watchdog_interval_s is None
    assert not notifier.watchdog(Probes({}))
    assert manager.heard() == []


def test_a_status_cannot_smuggle_a_second_assignment(manager: Manager) -> None:
    Notifier(manager.environ).status("venue says:\nWATCHDOG=trigger " + "x" * 500)
    (message,) = manager.heard()
    assert "\n" not in message
    assert len(message) == len("STATUS=") + STATUS_LENGTH_MAX


def test_without_a_service_manager_nothing_is_sent() -> None:
    notifier = Notifier({})
    assert not notifier.enabled
    assert not notifier.ready("alone")


def test_a_manager_that_has_gone_does_not_stop_the_daemon(tmp_path: Path) -> None:
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).status("still here")


@pytest.mark.parametrize("address", ["relative/path", "@", "vsock:2:1234"])
def test_an_address_that_is_not_understood_is_refused_by_name(address: str) -> None:
    with pytest.raises(ValueError, match="neither an absolute path nor an abstract"):
        Notifier({"NOTIFY_SOCKET": address})


def test_a_watchdog_interval_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WATCHDOG_USEC='soon'"):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "soon"})
