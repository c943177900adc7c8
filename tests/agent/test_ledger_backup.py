from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from tandem_cli import Done, replayed, tandem

from agent.ledger import schema
from agent.ledger.store import LedgerError, open_ledger
from brokers.simulated.sqlite_books import SqliteBooks

ROOT = Path(__file__).resolve().parents[2]

AGREE = {
    "decisions without their cycle": (
        "SELECT count(*) FROM decisions WHERE close_time NOT IN (SELECT close_time FROM cycles)"
    ),
    "cycles without their decisions": (
        "SELECT count(*) FROM cycles c"
        " WHERE symbols != (SELECT count(*) FROM decisions d WHERE d.close_time = c.close_time)"
    ),
    "intents without their decision": (
        "SELECT count(*) FROM intents i WHERE NOT EXISTS"
        " (SELECT 1 FROM decisions d WHERE d.close_time = i.close_time AND d.symbol = i.symbol)"
    ),
    "orders without their intent": "SELECT count(*) FROM orders WHERE intent_id NOT IN (SELECT intent_id FROM intents)",
    "fills without their order": "SELECT count(*) FROM fills WHERE client_id NOT IN (SELECT client_id FROM orders)",
    "orders whose fills are another quantity": (
        "SELECT count(*) FROM orders o WHERE abs(CAST(filled_qty AS REAL) - coalesce("
        "(SELECT sum(CAST(qty AS REAL)) FROM fills f WHERE f.client_id = o.client_id), 0)) > 1e-9"
    ),
}


def disagreements(ledger: Path) -> dict[str, int]:
    with closing(sqlite3.connect(ledger)) as copy:
        found = {what: copy.execute(query).fetchone()[0] for what, query in AGREE.items()}
    return {what: count for what, count in found.items() if count}


def rows(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as database:
        names = [n for (n,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f"SELECT * FROM {name}"), key=repr) for name in names}  # noqa: S608 - its own


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    replayed(folder / "ledger.sqlite", bars=300)
    return folder


@pytest.fixture
def home(played: Path, tmp_path: Path) -> Path:
    """A folder with a ledger that a real replay wrote."""
    home = tmp_path / "home"
    shutil.copytree(played, home)
    return home


def asked(home: Path, *words: str | Path) -> Done:
    return tandem(
        "ledger",
        *words,
        *("--set", f"ledger.url=sqlite:///{home / 'ledger.sqlite'}"),
        *("--set", f"exchange.books={home / 'books.sqlite'}"),
    )


def backed_up(home: Path, name: str = "backup") -> Path:
    out = home / name
    assert asked(home, "backup", "--out", out).code == 0
    return out


# ---- backup ---------------------------------------------------------------------------------------------


def test_a_backup_holds_every_row_of_the_ledger(home: Path) -> None:
    assert rows(backed_up(home) / "ledger.sqlite") == rows(home / "ledger.sqlite")


def test_a_backup_says_what_it_holds_as_json(home: Path) -> None:
    told = asked(home, "backup", "--out", home / "backup", "--json").json
    copied = rows(home / "backup" / "ledger.sqlite")
    assert told["rows"]["fills"] == len(copied["fills"]) > 0
    assert told["last_close"] == max(row[0] for row in copied["cycles"])
    assert told["books"] is None


def test_a_backup_is_one_file_for_each_database_with_no_log_beside_it(home: Path) -> None:
    assert sorted(path.name for path in backed_up(home).iterdir()) == ["backup.json", "ledger.sqlite"]


def test_a_backup_never_overwrites(home: Path) -> None:
    first = rows(backed_up(home) / "ledger.sqlite")
    done = asked(home, "backup", "--out", home / "backup")
    assert (done.code, "not overwritten" in done.err) == (1, True)
    assert rows(home / "backup" / "ledger.sqlite") == first


def test_a_backup_of_a_damaged_ledger_is_refused_and_leaves_nothing(home: Path) -> None:
    path = home / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    for page in range(6, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\x7f" * 64
    path.write_bytes(content)
    done = asked(home, "backup", "--out", home / "backup")
    assert done.code == 1
    assert [p.name for p in home.iterdir() if "backup" in p.name] == []


def test_a_backup_without_a_ledger_says_where_it_looked(tmp_path: Path) -> None:
    done = asked(tmp_path, "backup", "--out", tmp_path / "backup")
    assert f"there is no ledger at {tmp_path / 'ledger.sqlite'}" in done.err


def test_a_ledger_on_a_server_is_left_to_its_own_tools(tmp_path: Path) -> None:
    url = "postgresql://tandem:hidden-word@db/ledger"
    done = tandem("ledger", "backup", "--out", tmp_path / "b", "--set", f"ledger.url={url}")
    assert (done.code, "pg_dump" in done.err, "hidden-word" in done.err) == (1, True, False)


# ---- backup of a running daemon ---------------------------------------------------------------------------

RUN = (
    *("--set", "strategy.name=random"),
    *("--set", "strategy.params={flip_probability: 0.2, seed: 5}"),
    *("--set", "strategy.shorts=true"),
    *("--set", "exits.stop_volatility=0.5"),
    *("--set", "exits.take_profit_volatility=0.7"),
    *("--set", "risk.drawdown_fraction=0.9"),
    *("--set", "risk.daily_loss_fraction=0.9"),
    *("--set", "ledger.url=sqlite:///ledger.sqlite"),
    *("--set", "exchange.books=books.sqlite"),
    *("--set", "daemon.bar_store=null"),
)


@contextmanager
def running(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon on an exchange of its own, at full speed."""
    command = [sys.executable, "-m", "agent.cli", "run", *RUN, *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log, subprocess.Popen(command, cwd=folder, env=environ, stderr=log) as daemon:
        try:
            yield daemon
        finally:
            daemon.kill()


def wait_for_fills(folder: Path, count: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with closing(sqlite3.connect(f"file:{folder}/ledger.sqlite?mode=ro", uri=True)) as ledger:
                if ledger.execute("SELECT count(*) FROM fills").fetchone()[0] >= count:
                    return
        except sqlite3.OperationalError:  # not made yet
            pass
        time.sleep(0.05)
    pytest.fail((folder / "log").read_text()[-2000:])


def finished(folder: Path, closes: int) -> None:
    command = [sys.executable, "-m", "agent.cli", "run", *RUN, "--set", f"daemon.max_bars={closes}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_backups_under_load_are_consistent_and_a_daemon_goes_on_from_each_as_from_a_kill(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with running(live) as daemon:
        for number, fills in enumerate((20, 60, 100)):
            wait_for_fills(live, fills)
            done = asked(live, "backup", "--out", tmp_path / f"b{number}", "--json")
            assert done.code == 0, done.err
            assert done.json["books"] is not None
        assert daemon.poll() is None  # the daemon did not mind
    for number in range(3):
        copy, again = tmp_path / f"b{number}", tmp_path / f"again{number}"
        assert disagreements(copy / "ledger.sqlite") == {}
        again.mkdir()
        shutil.copy(copy / "ledger.sqlite", again / "ledger.sqlite")
        shutil.copy(copy / "exchange.sqlite", again / "books.sqlite")
        finished(again, 40)
        books, ledger = rows(again / "books.sqlite"), rows(again / "ledger.sqlite")
        assert {row[0] for row in books["fills"]} == {row[1] for row in ledger["fills"]}
        assert {row[0] for row in books["orders"]} == {row[0] for row in ledger["orders"]}
        held = {(row[0], row[1]) for row in books["holdings"]}
        assert held == {(row[0], row[1]) for row in ledger["positions"] if float(row[1]) != 0}


@pytest.mark.slow
def test_a_restore_is_refused_while_the_daemon_runs(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with running(live) as daemon:
        wait_for_fills(live, 5)
        copy = backed_up(live)
        done = asked(live, "restore", copy)
        assert (done.code, f"process {daemon.pid} runs on it: stop it" in done.err) == (1, True)


def test_the_books_of_a_running_exchange_are_not_restored_over(home: Path) -> None:
    with closing(sqlite3.connect(home / "books.sqlite")) as books:
        books.execute("CREATE TABLE clock (now_ns INTEGER)")
    copy = backed_up(home)
    (home / "books.sqlite").unlink()
    books_in_use = SqliteBooks(home / "books.sqlite")
    books_in_use.open({"seed": "1"})
    done = asked(home, "restore", copy)
    books_in_use.close()
    assert (done.code, f"the exchange of process {os.getpid()} runs on them" in done.err) == (1, True)


# ---- restore --------------------------------------------------------------------------------------------


def forget_everything(home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.sqlite")) as ledger:
        ledger.execute("DELETE FROM fills")
        ledger.commit()


def test_a_restored_ledger_is_what_was_backed_up(home: Path) -> None:
    before = rows(home / "ledger.sqlite")
    copy = backed_up(home)
    forget_everything(home)
    assert asked(home, "restore", copy).code == 0
    assert rows(home / "ledger.sqlite") == before


def test_what_a_restore_replaces_is_kept_beside_it(home: Path) -> None:
    copy = backed_up(home)
    forget_everything(home)
    kept = asked(home, "restore", copy, "--json").json["kept"]
    assert [rows(Path(path))["fills"] for path in kept] == [[]]


def test_a_log_beside_the_replaced_ledger_is_kept_with_it(home: Path) -> None:
    copy = backed_up(home)
    code = (
        "import os, sys\nfrom agent.ledger.store import open_ledger\n"
        "ledger = open_ledger(sys.argv[1])\n"
        "with ledger.transaction() as connection:\n"
        "    ledger.set_state(connection, 'late', {'yes': True})\n"
        "os._exit(9)\n"  # killed: the change is in the log alone
    )
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{home / 'ledger.sqlite'}"], cwd=ROOT, check=False)
    kept = asked(home, "restore", copy, "--json").json["kept"]
    assert "late" in {row[0] for row in rows(Path(kept[0]))["state"]}
    assert "late" not in {row[0] for row in rows(home / "ledger.sqlite")["state"]}


def test_a_backup_restores_where_there_is_no_ledger(home: Path, tmp_path: Path) -> None:
    copy = backed_up(home)
    assert asked(tmp_path / "new", "restore", copy).code == 0
    assert rows(tmp_path / "new" / "ledger.sqlite") == rows(home / "ledger.sqlite")


def test_a_damaged_backup_is_refused_and_the_ledger_stays(home: Path) -> None:
    copy = backed_up(home)
    content = bytearray((copy / "ledger.sqlite").read_bytes())
    content[9_000] ^= 1
    (copy / "ledger.sqlite").write_bytes(content)
    before = rows(home / "ledger.sqlite")
    done = asked(home, "restore", copy)
    assert (done.code, "ledger.sqlite is not what was written" in done.err) == (1, True)
    assert rows(home / "ledger.sqlite") == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}', "\x00"])
def test_what_is_no_backup_is_refused(home: Path, content: str) -> None:
    copy = backed_up(home)
    (copy / "backup.json").write_text(content)
    done = asked(home, "restore", copy)
    assert done.code == 1
    assert str(copy) in done.err
    assert "doctor" not in done.err
    assert "Traceback" not in done.err


def test_another_accounts_backup_is_refused(home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.sqlite")) as ledger:
        ledger.execute("INSERT OR REPLACE INTO state VALUES ('account_scope', ?)", (json.dumps({"name": "other"}),))
        ledger.commit()
    done = asked(home, "restore", backed_up(home))
    assert (done.code, "belongs to the account scope 'other'" in done.err) == (1, True)


def test_books_are_not_dropped_where_the_settings_name_no_exchange_of_this_machine(home: Path) -> None:
    with closing(sqlite3.connect(home / "books.sqlite")) as books:
        books.execute("CREATE TABLE clock (now_ns INTEGER)")
    copy = backed_up(home)
    done = asked(home, "restore", copy, "--set", "venue.url=http://127.0.0.1:9")
    assert (done.code, "say with --books" in done.err) == (1, True)


def test_a_ledger_whose_restore_was_killed_cannot_be_opened_until_it_is_restored_again(home: Path) -> None:
    copy = backed_up(home)
    before = rows(home / "ledger.sqlite")
    # what a kill between the two renames leaves: the old ledger is aside, the new one not in its place
    (home / "ledger.sqlite.restoring").write_text(".before-restore-1")
    (home / "ledger.sqlite").rename(home / "ledger.sqlite.before-restore-1")
    with pytest.raises(LedgerError, match="a restore of it was interrupted"):
        open_ledger(f"sqlite:///{home / 'ledger.sqlite'}")
    assert asked(home, "restore", copy).code == 0
    assert rows(home / "ledger.sqlite") == before
    assert (home / "ledger.sqlite.before-restore-1").exists()
    open_ledger(f"sqlite:///{home / 'ledger.sqlite'}").close()


# ---- migrate --------------------------------------------------------------------------------------------


def test_a_ledger_that_is_up_to_date_is_left_as_it_is(home: Path) -> None:
    before = (home / "ledger.sqlite").read_bytes()
    told = asked(home, "migrate", "--json").json
    assert (told["changed"], told["before"]) == (False, told["after"])
    assert (home / "ledger.sqlite").read_bytes() == before


def test_migrate_makes_no_ledger_where_there_is_none(tmp_path: Path) -> None:
    done = asked(tmp_path, "migrate")
    assert (done.code, "there is no ledger" in done.err) == (1, True)
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with a ledger of the first schema, as the first program made it."""
    home = tmp_path / "older"
    home.mkdir()
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{home / 'ledger.sqlite'}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO state VALUES ('key', '{}')")
    engine.dispose()
    return home


def test_an_older_ledger_is_brought_up_to_date_and_kept_as_it_was(older: Path) -> None:
    before = rows(older / "ledger.sqlite")
    told = asked(older, "migrate", "--json").json
    assert (told["changed"], told["before"], told["after"]) == (True, "0001", schema.REVISION)
    assert rows(Path(told["copy"])) == before
    assert rows(older / "ledger.sqlite")["state"] == before["state"]
    assert rows(older / "ledger.sqlite")["alembic_version"] == [(schema.REVISION,)]


def test_commands_that_only_ask_refuse_an_older_ledger_and_say_what_to_do(older: Path) -> None:
    done = tandem("status", "--set", f"ledger.url=sqlite:///{older / 'ledger.sqlite'}")
    assert (done.code, "tandem ledger migrate" in done.err) == (1, True)


def test_a_ledger_of_which_no_copy_can_be_made_is_not_migrated(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", no_space)
    done = asked(older, "migrate")
    monkeypatch.undo()
    assert (done.code, "was not migrated, because no copy" in done.err, "free some space" in done.err) == (
        1,
        True,
        True,
    )
    assert rows(older / "ledger.sqlite")["alembic_version"] == [("0001",)]
    assert [path.name for path in older.iterdir() if "revision" in path.name] == []


def test_a_migration_that_breaks_off_leaves_the_ledger_as_it_was(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(older / "ledger.sqlite")

    def interrupted(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise OSError(errno.EIO, "the power went")

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", interrupted)
    assert asked(older, "migrate").code == 1
    monkeypatch.undo()
    assert rows(older / "ledger.sqlite") == before


def test_a_backup_of_an_older_ledger_is_restored_and_then_migrated(older: Path) -> None:
    copy = backed_up(older)
    assert asked(older, "migrate").code == 0
    assert asked(older, "restore", copy).code == 0
    assert rows(older / "ledger.sqlite")["alembic_version"] == [("0001",)]
    assert asked(older, "migrate").code == 0
