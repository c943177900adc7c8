from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from tandem_cli import tandem

from agent.cli import COMMANDS, app
from agent.commands.errors import CommandError, run_guarded

HEAVY = {"polars", "onnxruntime", "alpaca", "pandas", "sqlalchemy", "numpy", "rich", "torch", "exchange_calendars"}
"""What `tandem --help` must not pay for."""


def every_command(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or typer.main.get_command(app)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        if path or name in COMMANDS:  # commands of other packages have tests of their own
            yield from every_command(command.get_command(None, name), (*path, name))


def test_the_help_of_the_root_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from agent.cli import app\n"
        "sys.argv = ['tandem', '--help']\n"
        "app(standalone_mode=False)\n"
        f"sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name


def test_no_command_module_imports_anything_heavy_at_its_top() -> None:
    modules = sorted({place.partition(":")[0] for place, _ in COMMANDS.values()})
    heavy = HEAVY - {"rich"}  # Typer itself reaches for Rich when it builds a command
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += f"sys.exit(', '.join({heavy!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_and_every_option_says_what_it_is_for() -> None:
    silent = []
    for path, command in every_command():
        name = " ".join(path)
        if not (command.help or "").strip():
            silent.append(name)
        silent += [f"{name} {p.name}" for p in command.params if p.name != "help" and not getattr(p, "help", None)]
    assert silent == []


def test_every_command_answers_help() -> None:
    for path, _ in every_command():
        done = tandem(*path, "--help")
        assert done.code == 0, path
        assert "Usage" in done.out


def test_every_command_that_prints_a_result_has_json() -> None:
    without = {" ".join(path) for path, command in every_command() if all(p.name != "as_json" for p in command.params)}
    assert without == {"config schema"}  # which is JSON by nature


def test_every_command_that_reads_settings_takes_set() -> None:
    without = {
        " ".join(path)
        for path, command in every_command()
        if any(p.name == "config" for p in command.params) and all("--set" not in p.opts for p in command.params)
    }
    assert without == set()


def test_the_line_in_the_list_is_there_for_every_command() -> None:
    assert all(text.endswith(".") and len(text) < 90 for _, text in COMMANDS.values())


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["why"], ["status", "--nosuch"], ["models", "nosuch"], ["halt", "a", "b"]]
)
def test_wrong_usage_ends_with_code_2(arguments: list[str]) -> None:
    done = tandem(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_version_is_told() -> None:
    done = tandem("--version")
    assert (done.code, done.out.startswith("tandem ")) == (0, True)


def failing(error: BaseException) -> typer.Typer:
    single = typer.Typer(pretty_exceptions_enable=False)

    @single.command()
    def command() -> None:
        raise error

    return single


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CommandError("no bars: name a file"), 1, "error: no bars: name a file"),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 1, "x.yaml"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (typer.Exit(2), 2, ""),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["tandem"])
    assert run_guarded(failing(error)) == code
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_a_fault_of_the_program_is_a_traceback_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tandem"])
    assert run_guarded(failing(ZeroDivisionError("oops"))) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "a fault of the program" in told
