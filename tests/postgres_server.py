"""A PostgreSQL server of the tests' own: in a folder of its own, reached by a socket in it, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "TANDEM_POSTGRES_BIN"
START_S_MAX = 30.0


def binaries() -> Path | None:
    """Return the folder of `initdb` and `postgres`: as TANDEM_POSTGRES_BIN names it, or where systems put them."""
    named = os.environ.get(VARIABLE)
    on_path = shutil.which("postgres")
    usual = [
        *(Path(named).parent / Path(named).name for named in ([named] if named else [])),
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *(Path(found).parent for found in ([on_path] if on_path else [])),
        Path("/opt/homebrew/bin"),
        Path("/usr/pgsql/bin"),
    ]
    return next((folder for folder in usual if (folder / "initdb").is_file() and (folder / "postgres").is_file()), None)


def why_not() -> str | None:
    """Return why no server can be started; None where one can."""
    if binaries() is None:
        return f"no PostgreSQL server found: set {VARIABLE} to the folder of initdb and postgres"
    if find_spec("psycopg") is None:
        return "psycopg is not installed: pip install '.[postgres]'"
    return None


class PostgresServer:
    """One server; PostgreSQL refuses root, so that root starts it as another user."""

    def __init__(self) -> None:
        found = binaries()
        if found is None:
            raise FileNotFoundError(VARIABLE)
        self._bin = found
        self._user = _other_user()
        self.folder = Path(tempfile.mkdtemp(prefix="tandem-pg-"))  # short: a socket's path has 107 characters at most
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        data = str(self.folder / "data")
        command = [self._bin / "initdb", "-D", data, "-U", "tandem", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run(
            [*command, "--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"],
            user=self._user,
            cwd=self.folder,
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="]
        # a killed daemon's data is what counts here, not a killed machine's
        command += ["-c", "fsync=off", "-c", "max_connections=30", "-c", "shared_buffers=16MB"]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(command, user=self._user, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError((self.folder / "log").read_text(errors="replace")[-2_000:])
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it at once, connections and all."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
            self._process = None

    def remove(self) -> None:
        """End it and remove all of it."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """Make a database; returns its URL as a person writes it."""
        self._databases += 1
        name = f"ledger{self._databases}"
        self.ask("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://tandem@/{database}?host={self.folder}"

    def ask(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Carry out one statement on a connection of its own."""
        import psycopg  # noqa: PLC0415 - only where a server can be started

        with psycopg.connect(host=str(self.folder), dbname=database, user="tandem", autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def _answers(self) -> bool:
        import psycopg  # noqa: PLC0415 - only where a server can be started

        try:
            self.ask("postgres", "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _other_user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
