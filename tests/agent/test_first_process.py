"""A command as the first process of a process namespace, as in a container: there signals have no default effect."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    tool = shutil.which("unshare")
    if tool is None or os.geteuid() != 0:
        pytest.skip("a process namespace is made by root, with unshare")
    spaces = (tool, "--pid", "--fork", "--kill-child")
    if subprocess.run([*spaces, "true"], check=False).returncode != 0:
        pytest.skip("process namespaces cannot be made here")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*spaces, sys.executable, "-m", "agent.cli", *words]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)


def first_of(outer: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    end = time.monotonic() + 10
    while not (found := children.read_text().split()) and time.monotonic() < end:
        time.sleep(0.01)
    return int(found[0])


def wait_for(folder: Path, word: str) -> None:
    end = time.monotonic() + 30
    while word not in (folder / "log").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert word in (folder / "log").read_text()


def handles_sigterm(pid: int) -> bool:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) & 1 << signal.SIGTERM - 1)


def test_a_daemon_that_trades_stops_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--set", "strategy.name=flat") as outer:
        wait_for(tmp_path, "first_close")
        os.kill(first_of(outer), signal.SIGTERM)
        assert outer.wait(10) == 0


def test_a_daemon_that_still_starts_stops_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--set", "strategy.name=flat") as outer:
        first = first_of(outer)
        end = time.monotonic() + 10
        while not handles_sigterm(first) and time.monotonic() < end:
            time.sleep(0.005)  # the interpreter itself
        os.kill(first, signal.SIGTERM)
        assert outer.wait(10) in (0, 128 + signal.SIGTERM)


def test_an_exchange_stops_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "exchange", "--synthetic-bars", "500") as outer:
        wait_for(tmp_path, "exchange ready")
        os.kill(first_of(outer), signal.SIGTERM)
        assert outer.wait(10) == 0
