"""The command lines of the units beside the daemon's, run as systemd would hand them to the shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from units import DEPLOY, PROGRAM, ROOT, TRAINER, read_unit

from agent.ledger.backup import read_backup

pytestmark = pytest.mark.slow

HERE = str(Path(sys.executable).parent / "tandem")
SETTINGS = {
    "account_scope": "units",
    "symbols": ["AAA"],
    "exchange": {"synthetic": {"bars": 9_000}, "start": "2024-01-29T00:00:00Z"},
    "strategy": {"name": "random", "params": {"flip_probability": 0.2, "seed": 5}},
    "daemon": {"max_bars": 30},
}


def words_of(unit: str, key: str, config: Path) -> list[str]:
    """Return the words that systemd starts: its own escapes of `$` and `%` undone, installed paths replaced."""
    (line,) = read_unit(DEPLOY / unit)["Service"][key]
    line = line.replace("$$", "$").replace("%%", "%").replace(PROGRAM, HERE).replace(TRAINER, HERE)
    return shlex.split(line.replace("/etc/tandem/tandem.yaml", str(config)))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory, and a configuration beside it."""
    (tmp_path / "tandem.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    state = tmp_path / "state"
    state.mkdir()
    return state


def run(words: list[str], state: Path, **environ: str) -> str:
    done = subprocess.run(
        words, cwd=state, env=os.environ | environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_backup_unit_makes_a_backup_and_drops_those_of_last_month(state: Path) -> None:
    config = state.parent / "tandem.yaml"
    run(words_of("tandem.service", "ExecStart", config), state)
    run(words_of("tandem-backup.service", "ExecStart", config), state)
    (made,) = (state / "backups").iterdir()
    old = state / "backups" / "20200101T000000Z"
    shutil.copytree(made, old)
    os.utime(old, (time.time() - 40 * 86_400,) * 2)
    run(words_of("tandem-backup.service", "ExecStartPost", config), state)
    assert list((state / "backups").iterdir()) == [made]
    assert re.fullmatch(r"\d{8}T\d{6}Z", made.name)
    assert read_backup(made).books is not None


def test_the_retraining_unit_leaves_a_bundle_that_can_be_promoted_and_promotes_nothing(state: Path) -> None:
    config = state.parent / "tandem.yaml"
    options = "--updates 20 --end 2024-01-29"
    run(words_of("tandem-retrain.service", "ExecStart", config), state, TANDEM_TRAIN_OPTIONS=options)
    (bundle,) = (state / "runs").iterdir()
    assert bundle.name.startswith(f"retrain-{datetime.now(UTC):%Y}")
    assert not (state / "models").exists()
    run([HERE, "models", "promote", str(bundle), "--config", str(config)], state)
    assert (state / "models" / "slots" / "default.json").exists()


def test_the_exchange_unit_serves_the_daemon_that_is_told_of_it(state: Path) -> None:
    config = state.parent / "tandem.yaml"
    words = words_of("tandem-exchange.service", "ExecStart", config)
    port = words.index("--port") + 1
    words[port] = "0"
    with subprocess.Popen([*words, "--json"], cwd=state, stdout=subprocess.PIPE, text=True) as exchange:
        try:
            assert exchange.stdout is not None
            url = yaml.safe_load(exchange.stdout.readline())["url"]
            daemon = [*words_of("tandem.service", "ExecStart", config), "--set", f"venue.url={url}"]
            run(daemon, state)
            asked = run([HERE, "ledger", "backup", "--config", str(config), "--set", f"venue.url={url}",
                         "--books", "var/exchange.sqlite", "--out", "backup", "--json"], state)  # fmt: skip
        finally:
            exchange.terminate()
    assert exchange.returncode == 0
    assert yaml.safe_load(asked)["books"] is not None


def test_logrotate_takes_the_configuration_and_the_daemon_follows(state: Path) -> None:
    tool = shutil.which("logrotate")
    if tool is None:
        pytest.skip("there is no logrotate")
    if os.geteuid() != 0:
        pytest.skip("logrotate changes to the file's user: it is run by root")
    text = (DEPLOY / "logrotate.conf").read_text(encoding="utf-8")
    text = text.replace("/var/log/tandem", str(state)).replace("su tandem tandem", "su root root")
    rules = state.parent / "rotate"
    rules.write_text(text, encoding="utf-8")
    config = state.parent / "tandem.yaml"
    setting = ["--set", "log.file=tandem.log", "--set", "log.format=json", "--set", "daemon.max_bars=3000"]
    words = [*words_of("tandem.service", "ExecStart", config), *setting]
    with (state / "err").open("wb") as err, subprocess.Popen(words, cwd=state, stderr=err) as daemon:
        try:
            until = time.monotonic() + 30
            log = state / "tandem.log"
            while not (log.exists() and "first_close" in log.read_text()) and time.monotonic() < until:
                time.sleep(0.05)
            run([tool, "--force", "--state", str(state.parent / "s"), str(rules)], state)
        finally:
            daemon.terminate()
    lines = (state / "tandem.log.1").read_text() + (state / "tandem.log").read_text()
    assert lines == (state / "err").read_text()


def test_nothing_in_the_units_names_a_path_of_this_machine() -> None:
    assert [path.name for path in DEPLOY.iterdir() if path.is_file() and str(ROOT) in path.read_text()] == []
