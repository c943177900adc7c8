from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from units import DEPLOY, PROGRAM, TRAINER, read_unit, systemd_analyze

from agent.cli import app
from agent.daemon import HEARTBEAT_S, LOOP_SILENCE_S_MAX
from agent.settings import DaemonSettings, load

UNITS = sorted(path.name for path in DEPLOY.glob("*.*") if path.suffix in {".service", ".timer"})
SERVICES = [name for name in UNITS if name.endswith(".service")]
EXPOSURE_MAX = {
    "tandem.service": 1.2,
    "tandem-exchange.service": 1.0,
    "tandem-retrain.service": 0.6,
    "tandem-backup.service": 0.5,
}
"""What `systemd-analyze security` gave when the unit was written, of 10; lower is better. What is left of the daemon's
is the network, which it trades over."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they would be installed, their program where there is one."""
    for name in UNITS:
        text = (DEPLOY / name).read_text(encoding="utf-8")
        program = str(Path(sys.executable).parent / "tandem")
        (tmp_path / name).write_text(text.replace(PROGRAM, program).replace(TRAINER, program), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, installed: Path) -> None:
    done = systemd_analyze("verify", "--man=no", "--recursive-errors=no", installed / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_as_little_as_it_was(name: str, installed: Path) -> None:
    done = systemd_analyze("security", "--offline=true", installed / name)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= EXPOSURE_MAX[name]


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".timer")])
def test_a_timer_has_a_next_time_and_a_service_to_start(name: str) -> None:
    timer = read_unit(DEPLOY / name)["Timer"]
    assert (DEPLOY / name).with_suffix(".service").exists()
    assert systemd_analyze("calendar", *timer["OnCalendar"]).returncode == 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_starts_a_command_that_exists_with_options_that_it_has(name: str) -> None:
    (line,) = read_unit(DEPLOY / name)["Service"]["ExecStart"]
    words = shlex.split(line)
    if words[:2] == ["/bin/sh", "-c"]:
        words = shlex.split(words[2])[1:]  # without the exec
    assert words[0] in (PROGRAM, TRAINER)
    command: Any = typer.main.get_command(app)
    for word in words[1:]:
        if not hasattr(command, "get_command"):
            break
        command = command.get_command(None, word)
        assert command is not None, f"there is no command {word}"
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_watchdog_waits_longer_than_a_healthy_loop_is_ever_silent() -> None:
    watchdog_s = float(read_unit(DEPLOY / "tandem.service")["Service"]["WatchdogSec"][0])
    assert watchdog_s > LOOP_SILENCE_S_MAX + 2 * HEARTBEAT_S


def test_systemd_waits_longer_for_the_end_than_the_daemon_may_take() -> None:
    longest = max(limit.le for limit in DaemonSettings.model_fields["stop_timeout_s"].metadata if hasattr(limit, "le"))
    assert float(read_unit(DEPLOY / "tandem.service")["Service"]["TimeoutStopSec"][0]) > longest


def test_what_does_not_get_better_by_repetition_is_not_repeated() -> None:
    service = read_unit(DEPLOY / "tandem.service")["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == (["on-failure"], ["2"])


def test_a_retraining_leaves_the_machine_to_the_daemon() -> None:
    retrain = read_unit(DEPLOY / "tandem-retrain.service")["Service"]
    assert (retrain["Nice"], retrain["IOSchedulingClass"], retrain["CPUWeight"]) == (["19"], ["idle"], ["1"])
    assert "promote" not in " ".join(retrain["ExecStart"])


def test_the_default_places_of_state_lie_in_the_units_state_directory() -> None:
    settings = load(None)
    assert settings.ledger.url == "sqlite:///var/tandem.sqlite"  # relative: below WorkingDirectory
    assert not settings.exchange.books.is_absolute()
    service = read_unit(DEPLOY / "tandem.service")["Service"]
    assert (service["WorkingDirectory"], service["StateDirectory"]) == (["%S/tandem"], ["tandem"])
