from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent.ledger import schema
from agent.ledger.store import Ledger, LedgerError, open_ledger

HOLDER = (
    "import sys, time\n"
    "from agent.ledger.store import open_ledger\n"
    "ledger = open_ledger(sys.argv[1], exclusive=True)\n"
    "print('held', flush=True)\n"
    "time.sleep(60)\n"
)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.sqlite'}"


def daemon_on(folder: Path) -> Ledger:
    return open_ledger(url_of(folder), exclusive=True)


def write(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.set_state(connection, "key", {"value": 1})


def test_a_second_daemon_on_a_ledger_is_refused_by_the_number_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, url_of(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match=f"process {holder.pid} runs on it: stop it"):
            daemon_on(tmp_path)
        holder.kill()


def test_the_lock_ends_with_a_killed_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, url_of(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    daemon_on(tmp_path).close()


def test_the_lock_ends_when_the_ledger_is_closed(tmp_path: Path) -> None:
    daemon_on(tmp_path).close()
    daemon_on(tmp_path).close()


def test_a_ledger_reached_by_another_path_is_the_same_ledger(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    held = daemon_on(tmp_path)
    with pytest.raises(LedgerError, match="runs on it"):
        daemon_on(tmp_path / "link")
    held.close()


def test_commands_read_and_write_a_ledger_that_a_daemon_holds(tmp_path: Path) -> None:
    held = daemon_on(tmp_path)
    command = open_ledger(url_of(tmp_path), create=False)
    write(command)
    assert held.get_state("key") == {"value": 1}
    command.close()
    held.close()


def test_a_ledger_that_cannot_be_opened_is_not_held(tmp_path: Path) -> None:
    daemon_on(tmp_path).close()
    revision_of(tmp_path, "0099")
    with pytest.raises(LedgerError, match="not known to this program"):
        daemon_on(tmp_path)
    revision_of(tmp_path, schema.REVISION)
    daemon_on(tmp_path).close()


def test_a_ledger_of_a_newer_program_is_left_as_it_is(tmp_path: Path) -> None:
    daemon_on(tmp_path).close()
    revision_of(tmp_path, "0099")
    with pytest.raises(LedgerError, match="revision '0099' is not known"):
        open_ledger(url_of(tmp_path))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0099",)]
    connection.close()


def test_a_database_of_something_else_gets_no_tables(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.execute("CREATE TABLE addresses (name TEXT)")
    connection.close()
    with pytest.raises(LedgerError, match=r"tables of something else \(addresses\)"):
        open_ledger(url_of(tmp_path))
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("addresses",)]
    connection.close()


def test_nothing_is_written_into_a_ledger_that_was_removed(tmp_path: Path) -> None:
    ledger = daemon_on(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(LedgerError, match="removed or replaced while it was in use"):
        write(ledger)
    ledger.close()


def test_a_value_that_is_no_json_is_said_to_be_damage(tmp_path: Path) -> None:
    ledger = daemon_on(tmp_path)
    write(ledger)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE state SET value = '{'")
    connection.close()
    with pytest.raises(LedgerError, match=r"cannot be read .*: restore a backup"):
        ledger.get_state("key")
    ledger.close()


def test_a_url_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(LedgerError, match="not a database URL") as caught:
        open_ledger("user:geheim@nowhere")
    assert "geheim" not in str(caught.value)


def revision_of(folder: Path, revision: str) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()
