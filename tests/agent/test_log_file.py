from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from agent import logs
from agent.logfile import LogFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    structlog.reset_defaults()
    for handler in [h for h in root.handlers if isinstance(h, logs._RedactingHandler)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


Say = Callable[[str], None]


@pytest.fixture
def say(tmp_path: Path) -> Say:
    """Log into tmp_path/log, rotated by others."""
    logs.configure(
        style="json",
        secrets=["sk-hidden-word"],
        stream=io.StringIO(),
        file=LogFile(tmp_path / "log", bytes_max=None, files_kept=5),
    )
    return lambda text: logging.getLogger("test").warning(text)


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_is_in_the_file_when_the_call_returns(say: Say, tmp_path: Path) -> None:
    say("one")
    assert events(tmp_path / "log") == ["one"]


def test_a_renamed_file_is_followed_and_no_record_is_lost(say: Say, tmp_path: Path) -> None:
    say("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    say("after")
    assert (events(tmp_path / "log.1"), events(tmp_path / "log")) == (["before"], ["after"])


def test_a_file_that_was_replaced_by_an_empty_one_is_followed(say: Say, tmp_path: Path) -> None:
    say("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").touch()  # logrotate's `create`
    say("after")
    assert events(tmp_path / "log") == ["after"]


def test_a_file_whose_folder_is_gone_does_not_stop_the_program_and_is_told(
    say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").unlink()
    tmp_path.rename(tmp_path.with_name("moved"))
    say("lost")
    tmp_path.with_name("moved").rename(tmp_path)
    say("found again")
    assert events(tmp_path / "log") == ["found again"]
    assert "a log record of test could not be written: FileNotFoundError" in capsys.readouterr().err


def test_no_secret_reaches_the_file(say: Say, tmp_path: Path) -> None:
    say("the key is sk-hidden-word")
    assert events(tmp_path / "log") == ["the key is [redacted]"]


def test_the_file_has_no_colours_where_the_terminal_has(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logs.configure(stream=terminal, file=LogFile(tmp_path / "log", bytes_max=None, files_kept=5))
    logging.getLogger("test").warning("seen")
    assert ("\x1b[" in terminal.getvalue(), "\x1b[" in (tmp_path / "log").read_text()) == (True, False)


def test_a_file_above_its_size_is_rotated_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log", bytes_max=100, files_kept=2)
    for number in range(40):
        file.current().write(f"{number:03d}" + "." * 46 + "\n")
        file.current().flush()
    file.close()
    kept = {path.name: [int(line[:3]) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert kept == {"log.2": [34, 35], "log.1": [36, 37], "log": [38, 39]}


def test_a_new_configuration_lets_go_of_the_old_file(tmp_path: Path) -> None:
    first = LogFile(tmp_path / "first", bytes_max=None, files_kept=1)
    logs.configure(stream=io.StringIO(), file=first)
    logs.configure(stream=io.StringIO())
    assert first._file.closed


def test_the_daemon_writes_its_file(tmp_path: Path) -> None:
    chosen = ("daemon.max_bars=2", "strategy.name=flat", "log.file=logs/tandem.log", "log.format=json")
    words = [word for setting in chosen for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "run", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"ready", "ended"} <= set(events(tmp_path / "logs" / "tandem.log"))
    assert done.stderr == (tmp_path / "logs" / "tandem.log").read_text(encoding="utf-8")
