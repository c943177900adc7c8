from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from postgres_server import PostgresServer
from sqlalchemy import create_engine, inspect, select
from tandem_cli import replay_settings, replayed

from agent.ledger import schema
from agent.ledger.store import Ledger, LedgerError, open_ledger
from agent.minds import StartError

AT = datetime(2024, 3, 1, 14, 30, tzinfo=UTC)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> PostgresServer | None:
    """Return what holds the databases; None for files."""
    found: PostgresServer | None = request.getfixturevalue("postgres") if request.param == "postgres" else None
    return found


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def url(server: PostgresServer | None, file_url: str) -> str:
    return file_url if server is None else server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = open_ledger(url)
    yield opened
    opened.close()


def position(symbol: str, qty: str) -> dict[str, Any]:
    return {"symbol": symbol, "qty": Decimal(qty), "avg_cost": Decimal("1.5"), "updated_at": AT}


def held(ledger: Ledger) -> dict[str, Decimal]:
    return {row.symbol: row.qty for row in ledger.rows(select(schema.positions))}


# ---- writing -------------------------------------------------------------------------------------------


def test_an_upsert_inserts_new_rows_and_replaces_old_ones(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [position("A", "1"), position("B", "2")])
        ledger.upsert(connection, schema.positions, [position("B", "3"), position("C", "4")])
    assert held(ledger) == {"A": Decimal(1), "B": Decimal(3), "C": Decimal(4)}


def test_an_upsert_of_nothing_does_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [])
    assert held(ledger) == {}


def test_insert_new_leaves_what_is_there(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.insert_new(connection, schema.positions, [position("A", "1")])
        ledger.insert_new(connection, schema.positions, [position("A", "9"), position("B", "2")])
    assert held(ledger) == {"A": Decimal(1), "B": Decimal(2)}


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def write_and_fail() -> None:
        with ledger.transaction() as connection:
            ledger.upsert(connection, schema.positions, [position("A", "1")])
            ledger.set_state(connection, "halt", {"halted": True})
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        write_and_fail()
    assert held(ledger) == {}
    assert ledger.get_state("halt") is None
    with ledger.transaction() as connection:  # and the next one works
        ledger.upsert(connection, schema.positions, [position("A", "2")])
    assert held(ledger) == {"A": Decimal(2)}


def test_a_question_within_a_transaction_sees_its_changes_and_others_do_not(ledger: Ledger, url: str) -> None:
    other = open_ledger(url)
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [position("A", "1")])
        assert held(ledger) == {"A": Decimal(1)}
        assert held(other) == {}
    assert held(other) == {"A": Decimal(1)}
    other.close()


def test_a_snapshot_answers_from_one_state_while_another_process_writes(ledger: Ledger, url: str) -> None:
    other = open_ledger(url)
    with ledger.snapshot():
        assert held(ledger) == {}
        with other.transaction() as connection:
            other.upsert(connection, schema.positions, [position("A", "1")])
        assert held(ledger) == {}
    assert held(ledger) == {"A": Decimal(1)}
    other.close()


def test_what_was_committed_is_there_after_a_kill(url: str, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from agent.ledger.store import open_ledger\n"
        f"ledger = open_ledger({url!r})\n"
        "with ledger.transaction() as connection:\n"
        "    ledger.set_state(connection, 'committed', {'yes': True})\n"
        "with ledger.transaction() as connection:\n"
        "    ledger.set_state(connection, 'open', {'yes': True})\n"
        "    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 9
    after = open_ledger(url)
    assert after.get_state("committed") == {"yes": True}
    assert after.get_state("open") is None
    after.close()


def test_a_naive_time_is_refused(ledger: Ledger) -> None:
    naive = {**position("A", "1"), "updated_at": AT.replace(tzinfo=None)}
    with pytest.raises(LedgerError, match="naive time"), ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [naive])
    assert held(ledger) == {}


def test_incidents_are_cut_and_keep_both_clocks(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.incident(connection, AT, "test", "x" * 2_000, "SPY")
    (row,) = ledger.rows(select(schema.incidents))
    assert (row.at, row.symbol, len(row.detail)) == (AT, "SPY", 500)
    assert abs(datetime.now(UTC) - row.recorded_at) < timedelta(minutes=1)


# ---- types ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(server: PostgresServer | None) -> Iterator[Ledger]:
    opened = open_ledger("sqlite://" if server is None else server.new_database(), durable=False)
    yield opened
    opened.close()


finite = st.decimals(allow_nan=False, allow_infinity=False, places=None, min_value=-(10**20), max_value=10**20)


@given(value=finite)
def test_money_comes_back_as_the_same_number(memory: Ledger, value: Decimal) -> None:
    if len(format(value, "f")) > 64:
        return
    with memory.transaction() as connection:
        memory.upsert(connection, schema.positions, [{**position("A", "0"), "qty": value}])
    assert held(memory)["A"] == value


aware = st.datetimes(
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])
)


@given(at=aware)
def test_a_time_comes_back_as_the_same_instant_in_utc(memory: Ledger, at: datetime) -> None:
    try:
        at.astimezone(UTC)
    except OverflowError:
        return
    with memory.transaction() as connection:
        memory.upsert(connection, schema.positions, [{**position("A", "1"), "updated_at": at}])
    row = memory.first(select(schema.positions))
    assert row is not None
    assert row.updated_at == at
    assert row.updated_at.utcoffset() == timedelta(0)


@given(one=aware, two=aware)
def test_times_sort_as_text_as_they_sort_as_times(one: datetime, two: datetime) -> None:
    try:
        texts = [schema.iso(at) for at in (one, two)]
    except OverflowError:
        return
    assert (texts[0] < texts[1]) == (one < two)


def test_money_is_text_in_the_file(file_url: str) -> None:
    exact = "0.1234567890123456789"
    ledger = open_ledger(file_url)
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [position("A", exact)])
    ledger.close()
    raw = sqlite3.connect(file_url.removeprefix("sqlite:///"))
    assert raw.execute("SELECT qty, typeof(qty), updated_at FROM positions").fetchone() == (
        exact,
        "text",
        "2024-03-01T14:30:00.000000Z",
    )
    raw.close()


# ---- schema --------------------------------------------------------------------------------------------


def _described(engine: Any) -> dict[str, Any]:
    seen = inspect(engine)
    return {
        name: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column.get("primary_key"))
                for column in seen.get_columns(name)
            },
            "primary key": seen.get_pk_constraint(name)["constrained_columns"],
            "indexes": sorted((index["name"], tuple(index["column_names"])) for index in seen.get_indexes(name)),
        }
        for name in seen.get_table_names()
    }


def test_a_new_ledger_has_exactly_the_tables_that_the_migrations_make(
    ledger: Ledger, server: PostgresServer | None
) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    empty = "sqlite://" if server is None else server.new_database().replace("postgresql:", "postgresql+psycopg:")
    plain = create_engine(empty)
    with plain.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        migrated = _described(connection)
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    plain.dispose()
    assert _described(ledger.engine) == migrated
    assert revision == schema.REVISION


def test_opening_twice_migrates_once_and_keeps_what_is_there(ledger: Ledger, url: str) -> None:
    with ledger.transaction() as connection:
        ledger.set_state(connection, "kept", {"n": 1})
    again = open_ledger(url, create=False)
    assert again.get_state("kept") == {"n": 1}
    again.close()


def test_the_ledger_is_durable_and_readable_while_it_is_written(file_url: str) -> None:
    ledger = open_ledger(file_url)
    with ledger.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    ledger.close()


# ---- what can go wrong ---------------------------------------------------------------------------------


def test_a_locked_ledger_says_who_could_hold_it(file_url: str) -> None:
    first = open_ledger(file_url)
    second = open_ledger(file_url, busy_timeout_s=0.1)
    with (
        first.transaction(),
        pytest.raises(LedgerError, match="another process holds it: stop the other daemon"),
        second.transaction(),
    ):
        pytest.fail("two writers at one time")
    second.close()
    first.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes and no database at all, whatever their length may be\n" * 50)
    with pytest.raises(LedgerError, match="not a SQLite database: move it away or correct"):
        open_ledger(f"sqlite:///{path}")


def test_a_missing_ledger_is_only_made_by_who_writes_it(file_url: str) -> None:
    with pytest.raises(LedgerError, match="run the daemon first"):
        open_ledger(file_url, create=False)
    assert not Path(file_url.removeprefix("sqlite:///")).exists()


def test_too_little_space_is_refused_before_anything_is_made(file_url: str) -> None:
    with pytest.raises(LedgerError, match="free some space or lower"):
        open_ledger(file_url, free_bytes_min=10**18)
    assert not Path(file_url.removeprefix("sqlite:///")).exists()


def test_a_ledger_that_may_not_be_written_says_so(file_url: str) -> None:
    ledger = open_ledger(file_url)

    def write() -> None:
        with ledger.transaction() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")  # SQLite then refuses as it does for a read-only file
            ledger.set_state(connection, "halt", {"halted": True})

    with pytest.raises(LedgerError, match="it is read-only: make the file"):
        write()
    ledger.close()


_FILL_THE_DISK = """
import resource, signal, sys
from agent.ledger.store import LedgerError, open_ledger

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = open_ledger({url!r})
with ledger.transaction() as connection:
    ledger.set_state(connection, "before", {{"n": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    for number in range(10_000):
        with ledger.transaction() as connection:
            ledger.set_state(connection, f"key{{number}}", {{"text": "x" * 2_000}})
except LedgerError as error:
    sys.stderr.write(str(error))
    sys.exit(7)
"""


def test_a_full_disk_is_an_error_with_a_remedy_and_what_was_committed_stays(file_url: str) -> None:
    code = _FILL_THE_DISK.format(url=file_url, limit=400_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "disk" in done.stderr
    assert "free" in done.stderr
    after = open_ledger(file_url)
    assert after.get_state("before") == {"n": 1}
    keys = {row.key for row in after.rows(select(schema.state.c.key))}
    written = len(keys) - 1
    assert keys == {"before", *(f"key{number}" for number in range(written))}
    after.close()


def test_another_account_scope_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    replayed(path, bars=80)
    with pytest.raises(StartError, match="the ledger belongs to account_scope 'paper'"):
        replayed(path, bars=80, settings=replay_settings(account_scope="another"))


@pytest.mark.parametrize("url", ["nosuchdialect://user:hunter2@host/db", "nosuchdialect://host/db?password=hunter2"])
def test_a_password_in_the_url_is_never_shown(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        open_ledger(url)
    assert "hunter2" not in str(caught.value)
