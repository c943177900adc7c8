"""The program installed into a prefix of its own, and its unit started as a service manager would start it.

Code belongs to whoever runs the tests and cannot be written; the service runs as another user where that is possible
(root drops to `nobody`), in a state directory of its own, with a notification socket that is watched here.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from units import PROGRAM, ROOT, read_unit

WAIT_S_MAX = 60.0
PACKAGES = ("agent", "brokers", "strategies", "training")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt")

SETTINGS: Mapping[str, Any] = {
    "account_scope": "prefix",
    "symbols": ["AAA", "BBB"],
    "exchange": {"partial_fill_probability": 0.4, "synthetic": {"bars": 850}, "start": "2024-01-02T00:00:00Z"},
    "strategy": {"name": "random", "params": {"flip_probability": 0.2, "seed": 5}},
    "exits": {"stop_volatility": 0.5, "take_profit_volatility": 0.7, "horizon_bars": 4},
    "risk": {"drawdown_fraction": 0.9, "daily_loss_fraction": 0.9},
    "log": {"format": "json", "file": "log/tandem.log"},
}
"""A restless strategy on the synthetic market: fills, stops and partial fills within seconds, then the feed's end."""


@dataclass(frozen=True)
class User:
    """Who the service runs as; None keeps the user of the tests."""

    uid: int | None
    gid: int | None

    @property
    def changed(self) -> Mapping[str, Any]:
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def unprivileged() -> User:
    if os.geteuid() != 0:
        return User(None, None)
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-prefix-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if os.geteuid() != 0:  # root may remove from what cannot be written
            for path in (p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()):
                path.chmod(0o755)
        shutil.rmtree(folder)


def interpreter(user: User) -> str:
    """Return a Python that the user may run."""
    code = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
    names = [getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    for name in names:
        try:
            done = subprocess.run([name, "-c", code], check=False, capture_output=True, cwd="/", **user.changed)
        except OSError:
            continue
        if done.returncode == 0:
            return name
    pytest.skip(f"no Python of {', '.join(names)} can be run by an unprivileged user")


def run(*words: str | Path, cwd: Path, timeout: float = 240) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{shlex.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, with the pinned build backend that is installed."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder / "wheels", source, cwd=folder)
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


@dataclass
class Prefix:
    """An installation: `opt` holds code nobody may write, `etc` the configuration."""

    folder: Path
    user: User

    @property
    def program(self) -> Path:
        return self.folder / "opt" / "tandem" / ".venv" / "bin" / "tandem"

    @property
    def site_packages(self) -> Path:
        (found,) = (self.program.parents[1] / "lib").glob("python3.*/site-packages")
        return found

    def install(self, wheel: Path) -> None:
        """As docs/install-systemd.md says: an environment of its own, the daemon's requirements, pinned."""
        environment = self.program.parents[1]
        run(interpreter(self.user), "-m", "venv", "--without-pip", environment, cwd=self.folder)
        pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet")
        run(*pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=self.folder)
        (self.folder / "etc").mkdir()
        for path in (self.folder / "opt").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))

    def code(self) -> dict[str, tuple[int, int]]:
        """Return size and time of change of every file of the program."""
        found = {path: path.lstat() for path in (self.folder / "opt").rglob("*")}
        return {str(path): (about.st_size, about.st_mtime_ns) for path, about in found.items()}

    def service(self, name: str, **changes: Any) -> Service:
        """Give a service with a state directory and a configuration of its own."""
        state = self.folder / name
        state.mkdir()
        state.chmod(0o700)
        if self.user.uid is not None:
            os.chown(state, self.user.uid, self.user.gid or 0)
        config = self.folder / "etc" / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**SETTINGS, **changes}), encoding="utf-8")
        config.chmod(0o644)
        return Service(self, state, config)


@dataclass
class Service:
    """One `tandem.service`, started from the lines of its unit."""

    prefix: Prefix
    state: Path
    config: Path
    launcher: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    messages: list[tuple[float, str]] = field(default_factory=list)
    _socket: socket.socket | None = None

    @property
    def ledger(self) -> Path:
        return self.state / "var" / "tandem.sqlite"

    @property
    def books(self) -> Path:
        return self.state / "var" / "exchange.sqlite"

    def command(self) -> list[str]:
        (line,) = read_unit(ROOT / "deploy" / "tandem.service")["Service"]["ExecStart"]
        line = line.replace(PROGRAM, str(self.prefix.program)).replace("/etc/tandem/tandem.yaml", str(self.config))
        return [*self.launcher, *shlex.split(line)]

    def environ(self) -> dict[str, str]:
        service = read_unit(ROOT / "deploy" / "tandem.service")["Service"]
        given = dict(word.split("=", 1) for line in service["Environment"] for word in shlex.split(line))
        watchdog_us = int(float(service["WatchdogSec"][0]) * 1e6)
        return given | {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "LANG": "C.UTF-8",
            "STATE_DIRECTORY": str(self.state),
            "NOTIFY_SOCKET": str(self.prefix.folder / f"{self.state.name}.notify"),
            "WATCHDOG_USEC": str(watchdog_us),
        }

    def start(self) -> None:
        environ = self.environ()
        address = Path(environ["NOTIFY_SOCKET"])
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        address.chmod(0o666)
        self.messages.clear()
        with (self.prefix.folder / f"{self.state.name}.journal").open("ab") as journal:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.state,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                umask=0o077,
                **({} if self.launcher else self.prefix.user.changed),
            )

    def listen(self, seconds: float, until: str | None = None) -> list[str]:
        """Return the lines that come to the notification socket; at once when one is `until`."""
        assert self._socket is not None
        heard: list[str] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                lines = self._socket.recv(65_536).decode().splitlines()
            except TimeoutError:
                break
            heard += lines
            self.messages += [(time.monotonic(), line) for line in lines]
            if until in lines:
                return heard
        if until is not None:
            pytest.fail(f"{until} was not heard within {seconds:g} s, but {heard}\n{self.journal()[-3000:]}")
        return heard

    def journal(self) -> str:
        return (self.prefix.folder / f"{self.state.name}.journal").read_text(encoding="utf-8", errors="replace")

    def wait_for_fills(self, count: int) -> None:
        end = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < end:
            if self.ledger.exists() and len(rows(self.ledger).get("fills", ())) >= count:
                return
            time.sleep(0.1)
        pytest.fail(f"no {count} fills: {self.journal()[-3000:]}")

    def kill(self) -> None:
        """End it as a power cut does; what it started ends with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S_MAX)
        self._close()

    def stop(self) -> int:
        """End it as `systemctl stop` does, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_S_MAX)
        self._close()
        return code

    def finish(self) -> int:
        """Wait for the end of the feed, and return the exit code."""
        assert self.process is not None
        assert self._socket is not None
        end = time.monotonic() + 3 * WAIT_S_MAX
        while self.process.poll() is None and time.monotonic() < end:
            self.listen(0.2)  # a socket that nobody reads fills up
        code = self.process.wait(1)
        self._close()
        return code

    def tandem(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the installed program as the service's user, in its place."""
        return subprocess.run(
            [str(self.prefix.program), *map(str, words), "--config", str(self.config)],
            cwd=self.state,
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
            check=False,
            umask=0o077,
            **self.prefix.user.changed,
        )

    def _close(self) -> None:
        assert self._socket is not None
        self._socket.close()


def rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every row of a database, read as the owner of the file would and leaving nothing beside it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        try:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {
                name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")]  # noqa: S608 - its own names
                for name in names
            }
        except sqlite3.OperationalError:  # being made
            return {}
