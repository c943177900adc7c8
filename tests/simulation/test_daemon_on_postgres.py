"""The whole daemon with its ledger on a PostgreSQL server: the same as on a file, through crashes and restarts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from crash_kit import HISTORY_BARS, Tap, World, Worlds, differences, settings, walk
from postgres_server import PostgresServer

Scale = Callable[[int, int], int]
PERIOD = timedelta(minutes=5)

pytestmark = pytest.mark.slow


@dataclass
class ServerWorld(World):
    """A world whose ledger lies on a server."""

    database: str = ""

    @property
    def url(self) -> str:
        return self.database


@pytest.fixture
def worlds(tmp_path: Path) -> Worlds:
    return Worlds(tmp_path, settings(), {symbol: walk(symbol, HISTORY_BARS + 20, 1) for symbol in "AB"})


def on_server(worlds: Worlds, postgres: PostgresServer) -> ServerWorld:
    plain = worlds.new()
    return ServerWorld(plain.settings, plain.engine, plain.path, database=postgres.new_database())


def test_a_ledger_on_a_server_holds_what_one_in_a_file_holds_whatever_crashes(
    worlds: Worlds, postgres: PostgresServer, scale: Scale
) -> None:
    plain = worlds.new()
    plain.play()
    expected = plain.ledger()
    draws = random.Random(5)
    for number in range(scale(20, 3)):
        world = on_server(worlds, postgres)
        tap = world.play(Tap(every=draws.randrange(60, 400)) if number else Tap())
        assert differences(expected, world.ledger()) == [], f"{len(tap.crashes)} crashes: {tap.crashes[-3:]}"
        assert world.problems == []


@pytest.fixture
def frail(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Return a server of the test's own, which it may stop and start."""
    del postgres  # asked for first: where there is none, it skips
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


def run(url: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    overrides = [
        f"ledger.url={url}",
        f"exchange.books={folder / 'exchange.sqlite'}",
        "exchange.synthetic.bars=4000",
        "daemon.bar_store=null",
        "strategy.name=random",
        "strategy.params={flip_probability: 0.2, seed: 5}",
        "symbols=[ALFA, BRAVO]",
        *more,
    ]
    sets = [word for each in overrides for word in ("--set", each)]
    command = [sys.executable, "-m", "agent.cli", "run", *sets]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder)


def asked(url: str, *command: str) -> str:
    """Return what an operator's command says of a ledger on the server."""
    whole = [sys.executable, "-m", "agent.cli", *command, "--set", f"ledger.url={url}"]
    return subprocess.run(whole, check=True, capture_output=True, text=True).stdout


def closes(server: PostgresServer, database: str) -> list[datetime]:
    found = server.ask(database, "SELECT close_time FROM cycles ORDER BY close_time")
    return [datetime.fromisoformat(str(row[0])) for row in found]


def wait_for_closes(server: PostgresServer, database: str, count: int, daemon: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while "cycles" not in tables(server, database) or len(closes(server, database)) < count:
        assert time.monotonic() < deadline
        assert daemon.poll() is None, daemon.communicate()[1][-3000:]
        time.sleep(0.05)


def tables(server: PostgresServer, database: str) -> set[str]:
    return {str(row[0]) for row in server.ask(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_a_daemon_whose_server_stops_ends_with_what_to_do_and_goes_on_afterwards(
    frail: PostgresServer, tmp_path: Path
) -> None:
    url = frail.new_database()
    database = "ledger1"
    with run(url, tmp_path) as daemon:
        wait_for_closes(frail, database, 5, daemon)
        frail.stop()
        _, told = daemon.communicate(timeout=60)
        assert daemon.returncode == 1, told[-3000:]
        assert "the database server " in told.splitlines()[-1], told[-3000:]
    frail.start()
    with run(url, tmp_path) as daemon:
        wait_for_closes(frail, database, len(closes(frail, database)) + 5, daemon)
        daemon.kill()
        daemon.communicate()
    with run(url, tmp_path, "daemon.max_bars=20") as daemon:
        _, told = daemon.communicate(timeout=120)
        assert daemon.returncode == 0, told[-3000:]
    status = asked(url, "status", "--json")
    assert json.loads(status)["run"]["end_reason"] == "max_bars"
    assert "ALFA" in asked(url, "why", "ALFA")
    decided = closes(frail, database)
    assert decided == [decided[0] + number * PERIOD for number in range(len(decided))]
    assert frail.ask(database, "SELECT DISTINCT status FROM cycles") == [("done",)]
    assert frail.ask(database, "SELECT count(*) FROM intents WHERE state = 'planned'") == [(0,)]
    assert frail.ask(database, "SELECT kind FROM incidents WHERE kind <> 'rejected'") == []
