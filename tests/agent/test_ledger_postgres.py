"""The ledger on a real PostgreSQL server: one daemon each, kills, restarts of the server, older schemas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from postgres_server import PostgresServer
from sqlalchemy import create_engine, make_url, select

from agent.ledger import schema
from agent.ledger.store import Ledger, LedgerError, open_ledger

AT = datetime(2024, 3, 1, 14, 30, tzinfo=UTC)
HOLDER = (
    "import sys, time\n"
    "from agent.ledger.store import open_ledger\n"
    "ledger = open_ledger(sys.argv[1], exclusive=True)\n"
    "with ledger.transaction() as connection:\n"
    "    ledger.set_state(connection, 'committed', {'yes': True})\n"
    "with ledger.transaction() as connection:\n"
    "    ledger.set_state(connection, 'open', {'yes': True})\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def frail(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Return a server of the test's own, which it may stop and start."""
    del postgres  # asked for first: where there is none, it skips
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


def write(ledger: Ledger, key: str = "key") -> None:
    with ledger.transaction() as connection:
        ledger.set_state(connection, key, {"value": 1})


def holder(url: str) -> subprocess.Popen[str]:
    started = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def test_a_second_daemon_is_refused_by_the_number_of_the_first(url: str) -> None:
    with holder(url) as first:
        with pytest.raises(LedgerError, match=rf"session \d+ \(tandem, process {first.pid}\) runs on it: stop it"):
            open_ledger(url, exclusive=True)
        command_of_an_operator = open_ledger(url, create=False)
        assert command_of_an_operator.get_state("committed") == {"yes": True}
        write(command_of_an_operator)
        command_of_an_operator.close()
        first.kill()


def test_a_kill_within_a_transaction_leaves_what_was_committed_and_frees_the_lock(url: str) -> None:
    with holder(url) as first:
        first.kill()
    after = open_ledger(url, exclusive=True)
    assert after.get_state("committed") == {"yes": True}
    assert after.get_state("open") is None
    write(after)
    after.close()


def test_the_lock_ends_when_the_ledger_is_closed(url: str) -> None:
    open_ledger(url, exclusive=True).close()
    open_ledger(url, exclusive=True).close()


def test_a_write_that_fails_gives_up_neither_lock_nor_ledger(url: str) -> None:
    ledger = open_ledger(url, exclusive=True)

    def too_long() -> None:
        with ledger.transaction() as connection:
            ledger.upsert(
                connection, schema.positions, [{"symbol": "x" * 41, "qty": 1, "avg_cost": 1, "updated_at": AT}]
            )

    for _ in range(3):
        with pytest.raises(LedgerError, match="value too long"):
            too_long()
    write(ledger)
    with pytest.raises(LedgerError, match="runs on it"):
        open_ledger(url, exclusive=True)
    ledger.close()


def test_a_writer_whose_lock_another_daemon_has_taken_writes_no_more(postgres: PostgresServer, url: str) -> None:
    lost = open_ledger(url, exclusive=True)
    write(lost)
    postgres.ask(
        str(make_url(url).database),
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()",
    )
    with closing(open_ledger(url, exclusive=True)) as other:
        with pytest.raises(LedgerError, match="the database server ended the connection"):
            write(lost)
        with pytest.raises(LedgerError, match=r"the connection was lost, and the daemon of session \d+ .* runs on it"):
            write(lost)
        write(other, "other")
    assert lost.get_state("other") == {"value": 1}
    lost.close()


def test_a_server_that_restarts_under_a_ledger_is_an_error_and_no_loss(frail: PostgresServer) -> None:
    url = frail.new_database()
    ledger = open_ledger(url, exclusive=True)
    write(ledger, "before")
    assert ledger.get_state("before") == {"value": 1}
    frail.stop()
    for use in (lambda: write(ledger), lambda: ledger.get_state("before")):
        with pytest.raises(LedgerError, match=r"the database server (ended the connection|cannot be reached)"):
            use()
    with pytest.raises(LedgerError, match="the database server cannot be reached: start it"):
        open_ledger(url)
    frail.start()
    write(ledger, "after")
    assert {row.key for row in ledger.rows(select(schema.state.c.key))} == {"before", "after"}
    with pytest.raises(LedgerError, match="runs on it"):
        open_ledger(url, exclusive=True)
    ledger.close()


def test_an_older_ledger_is_brought_up_to_date_and_keeps_what_is_there(url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO state VALUES ('kept', '{\"n\":1}')")
    engine.dispose()
    with pytest.raises(LedgerError, match="is older than"):
        open_ledger(url, create=False)
    ledger = open_ledger(url, exclusive=True)
    assert ledger.get_state("kept") == {"n": 1}
    assert ledger.migrated is not None
    assert (ledger.migrated.before, ledger.migrated.after, ledger.migrated.copy) == ("0001", schema.REVISION, None)
    ledger.close()


def test_words_of_a_venue_that_no_server_takes_are_written_all_the_same(url: str) -> None:
    ledger = open_ledger(url)
    with ledger.transaction() as connection:
        ledger.incident(connection, AT, "rejected", "no\0thing \N{SNOWMAN} " + "x" * 600)
    [row] = ledger.rows(select(schema.incidents))
    assert row.detail.startswith("no\N{REPLACEMENT CHARACTER}thing \N{SNOWMAN}")
    assert len(row.detail) == 500
    ledger.close()


def test_another_process_that_sits_in_a_transaction_is_waited_for_only_so_long(url: str) -> None:
    first, second = open_ledger(url), open_ledger(url, busy_timeout_s=0.1)
    write(first)
    with first.transaction() as connection:
        first.set_state(connection, "key", {"value": 2})
        with pytest.raises(LedgerError, match="another process holds it for too long"):
            write(second)
    assert second.get_state("key") == {"value": 2}
    second.close()
    first.close()
