"""A service out of a fresh installation: what its unit promises, watched from where systemd stands."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from service_kit import Prefix, Service, build_wheel, open_folder, rows, unprivileged
from sqlalchemy import create_engine
from units import ROOT, read_unit, syscalls_of

from agent.ledger import schema

pytestmark = pytest.mark.slow

MIGRATIONS = ROOT / "agent" / "ledger" / "migrations"
SAME = {  # what must be the same whether the service was interrupted or not
    "decisions": ("close_time", "symbol", "action", "target", "position", "held_qty", "reason", "outcome"),
    "fills": ("symbol", "side", "leg", "qty", "price", "fee", "at"),
    "positions": ("symbol", "qty", "avg_cost"),
    "equity": ("close_time", "equity", "cash"),
}


@pytest.fixture(scope="module")
def prefix() -> Iterator[Prefix]:
    with open_folder() as folder:
        made = Prefix(folder, unprivileged())
        made.install(build_wheel(folder))
        yield made


@pytest.fixture
def service(prefix: Prefix, request: pytest.FixtureRequest) -> Iterator[Service]:
    made = prefix.service(request.node.name[:60])
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGCONT)
        made.kill()


@pytest.fixture(scope="module")
def undisturbed(prefix: Prefix) -> Service:
    """A service that played the whole feed without an interruption."""
    service = prefix.service("undisturbed")
    service.start()
    assert service.finish() == 0, service.journal()[-3000:]
    return service


# ---- what is installed ------------------------------------------------------------------------------------


def test_the_daemon_is_installed_without_what_trains_models(prefix: Prefix) -> None:
    brought = {path.name.partition("-")[0].lower() for path in prefix.site_packages.glob("*.dist-info")}
    assert "tandem_trader" in brought
    assert brought & {"torch", "gymnasium", "stable_baselines3", "numba", "onnxscript", "tensorboard"} == set()


def test_the_service_writes_nothing_into_its_program_and_could_not(undisturbed: Service) -> None:
    prefix = undisturbed.prefix
    written = {path for path, about in prefix.code().items() if about[1] / 1e9 > undisturbed.config.stat().st_mtime}
    assert written == set()
    if prefix.user.uid is not None:
        done = undisturbed.tandem("config", "show", "--set", "log.level=info")
        assert done.returncode == 0
        probe = [str(prefix.program.with_name("python")), "-c", f"open({str(prefix.site_packages / 'x')!r}, 'w')"]
        assert subprocess.run(probe, check=False, capture_output=True, **prefix.user.changed).returncode == 1


def test_all_that_the_service_leaves_lies_in_its_state_directory_and_is_its_own(undisturbed: Service) -> None:
    left = [path for path in undisturbed.state.rglob("*") if path.is_file()]
    assert oct(undisturbed.state.stat().st_mode & 0o777) == "0o700"
    assert {"tandem.sqlite", "exchange.sqlite", "tandem.log"} <= {path.name for path in left}
    assert [path.name for path in left if path.stat().st_mode & 0o077 and "bars" not in path.parts] == []
    if undisturbed.prefix.user.uid is not None:
        assert {path.stat().st_uid for path in left} == {undisturbed.prefix.user.uid}


# ---- what the service manager hears -------------------------------------------------------------------------


def test_the_manager_hears_ready_then_the_watchdog_then_stopping(service: Service) -> None:
    service.start()
    service.listen(30, until="READY=1")
    before = len(rows(service.ledger)["cycles"])
    service.listen(4.5)
    beats = [at for at, line in service.messages if line == "WATCHDOG=1"]
    assert len(beats) >= 3
    assert max(b - a for a, b in pairwise(beats)) < 5.0
    assert len(rows(service.ledger)["cycles"]) > before  # fed by a loop that gets on
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    service.listen(10, until="STOPPING=1")
    assert service.stop() == 0


def test_a_loop_that_stands_feeds_the_watchdog_no_more_and_one_that_goes_on_does(service: Service) -> None:
    service.start()
    service.listen(30, until="READY=1")
    service.listen(10, until="WATCHDOG=1")
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    service.listen(0.5)  # what was on its way
    assert service.listen(5) == []
    service.process.send_signal(signal.SIGCONT)
    service.listen(10, until="WATCHDOG=1")
    assert service.stop() == 0


def test_a_wrong_configuration_ends_with_the_code_that_is_not_repeated(service: Service) -> None:
    service.config.chmod(0o644)
    service.config.write_text("stratgy: {name: random}\n", encoding="utf-8")
    service.start()
    assert service.process is not None
    code = service.finish()
    unit = read_unit(ROOT / "deploy" / "tandem.service")["Service"]
    assert str(code) in unit["RestartPreventExitStatus"][0].split()


# ---- restarts and upgrades ------------------------------------------------------------------------------


def played(ledger: Path) -> Mapping[str, list[tuple[Any, ...]]]:
    """Return what happened, in an order that does not depend on when it was written."""
    found = rows(ledger)
    return {table: sorted(tuple(row[name] for name in names) for row in found[table]) for table, names in SAME.items()}


def test_a_killed_service_goes_on_as_if_it_had_not_been(service: Service, undisturbed: Service) -> None:
    for fills in (20, 60):
        service.start()
        service.wait_for_fills(fills)
        service.kill()
    service.start()
    assert service.finish() == 0, service.journal()[-3000:]
    assert played(service.ledger) == played(undisturbed.ledger)


def revisions() -> list[str]:
    """Return the ledger's schema revisions, oldest first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def as_an_older_program_left_it(ledger: Path, revision: str) -> None:
    """Give a ledger an older revision: make the old tables by the migrations, and carry over what they can hold."""
    old = ledger.with_name("older.sqlite")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with closing(sqlite3.connect(old, isolation_level=None)) as older:
        older.execute("PRAGMA journal_mode=WAL")
        older.execute("ATTACH ? AS newer", (str(ledger),))
        tables = [name for (name,) in older.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table == "alembic_version" or table.startswith("sqlite_"):
                continue
            kept = {name for _, name, *_ in older.execute(f"PRAGMA newer.table_info({table})")}
            names = ", ".join(n for _, n, *_ in older.execute(f"PRAGMA main.table_info({table})") if n in kept)
            older.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM newer.{table}")  # noqa: S608 - its own names
    owner = ledger.stat()
    for path in ledger.parent.glob(f"{ledger.name}*"):
        if path.suffix != ".lock":
            path.unlink()
    old.rename(ledger)
    for tail in ("-wal", "-shm"):
        Path(f"{old}{tail}").unlink(missing_ok=True)
    os.chown(ledger, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize("revision", [r for r in revisions() if r != schema.REVISION] or [None])
def test_an_upgrade_over_a_migration_loses_nothing(
    service: Service, undisturbed: Service, revision: str | None
) -> None:
    if revision is None:
        pytest.skip("the ledger has only had one schema so far")
    service.start()
    service.wait_for_fills(40)
    service.kill()
    as_an_older_program_left_it(service.ledger, revision)
    before = rows(service.ledger)
    assert min(len(before[table]) for table in ("decisions", "orders", "fills")) > 30
    rehearsal = service.state / "rehearsal.sqlite"
    shutil.copy(service.ledger, rehearsal)
    shutil.chown(rehearsal, service.ledger.stat().st_uid, service.ledger.stat().st_gid)
    done = service.tandem("ledger", "migrate", "--set", f"ledger.url=sqlite:///{rehearsal}", "--json")
    assert done.returncode == 0, done.stderr
    after = rows(rehearsal)
    for table, kept in before.items():
        if table != "alembic_version":
            shared = [{name: row[name] for name in old} for old, row in zip(kept, after[table], strict=True)]
            assert shared == kept, table
    service.start()  # the new program on the old ledger, where a kill left it
    assert service.finish() == 0, service.journal()[-3000:]
    assert played(service.ledger) == played(undisturbed.ledger)
    (copy,) = service.ledger.parent.glob(f"tandem.sqlite.revision-{revision}-*")
    assert rows(copy) == before


def test_a_backup_taken_while_the_service_runs_is_restored_and_played_to_the_same_end(
    service: Service, undisturbed: Service
) -> None:
    service.start()
    service.wait_for_fills(30)
    made = service.tandem("ledger", "backup", "--out", "backups/one")
    assert made.returncode == 0, made.stderr
    refused = service.tandem("ledger", "restore", "backups/one")
    assert (refused.returncode, "stop it before you restore" in refused.stderr) == (1, True)
    service.wait_for_fills(60)
    assert service.stop() == 0
    assert service.tandem("ledger", "restore", "backups/one").returncode == 0
    service.start()
    assert service.finish() == 0, service.journal()[-3000:]
    assert played(service.ledger) == played(undisturbed.ledger)


# ---- the unit's restrictions --------------------------------------------------------------------------------


def confined(service: Service) -> tuple[str, ...]:
    """Return what starts a command as the service's user under the restrictions of its unit."""
    if sys.platform != "linux" or not any(Path("/usr/lib").rglob("libseccomp.so.2")):
        pytest.skip("there is no libseccomp")
    unit, user = read_unit(ROOT / "deploy" / "tandem.service")["Service"], service.prefix.user
    return (
        str(service.prefix.program.with_name("python")),
        str(Path(__file__).with_name("confined.py")),
        *(("-", "-") if user.uid is None else (str(user.uid), str(user.gid))),
        unit["MemoryDenyWriteExecute"][0],
        unit["SystemCallErrorNumber"][0],
        ",".join(sorted(syscalls_of(unit["SystemCallFilter"]))),
    )


def test_a_model_answers_under_the_restrictions_of_the_unit(service: Service) -> None:
    code = (
        "import numpy, onnxruntime\n"
        "from pathlib import Path\n"
        "model = Path(onnxruntime.__file__).parent / 'datasets' / 'sigmoid.onnx'\n"
        "session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])\n"
        "print(session.run(None, {'x': numpy.zeros((3, 4, 5), 'float32')})[0].mean())\n"
    )
    asked = [*confined(service), str(service.prefix.program.with_name("python")), "-c", code]
    done = subprocess.run(
        asked, cwd=service.state, env=service.environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "0.5\n", done.stderr


def test_the_service_lives_under_the_restrictions_of_its_unit(service: Service, undisturbed: Service) -> None:
    """Its system calls, no privileges, no memory that is both writable and executable; what it trades is the same."""
    service.launcher = confined(service)
    service.start()
    code = service.finish()
    assert code == 0, f"exit code {code}: {service.journal()[-3000:]}"
    assert played(service.ledger) == played(undisturbed.ledger)


def test_the_exchange_process_ends_with_a_killed_service(service: Service) -> None:
    service.start()
    service.wait_for_fills(1)
    assert service.process is not None
    (exchange,) = psutil.Process(service.process.pid).children()
    service.kill()
    end = time.monotonic() + 10
    while exchange.is_running() and exchange.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not exchange.is_running() or exchange.status() == psutil.STATUS_ZOMBIE
