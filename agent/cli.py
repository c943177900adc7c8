"""The `tandem` command: a lazy root. A sub-command's module is imported only when it is run or asked for help.

Sub-commands of other packages (`train`) come in through the entry-point group `tandem.commands`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# one thread for BLAS and OpenMP, before anything loads them: on small matrices more threads only spin
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Polars' allocator otherwise keeps what a write to the bar store took: 70 MB after ten sessions of 100 symbols
os.environ.setdefault("_RJEM_MALLOC_CONF", "background_thread:true,dirty_decay_ms:0,muzzy_decay_ms:0")
# ONNX Runtime reports on the models it loads unless told not to; training may load it before we do
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ENTRY_POINT_GROUP = "tandem.commands"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": (
        "agent.commands.demo:demo",
        "Offline, no account: train a small champion, run the daemon, tell what happened.",
    ),
    "run": ("agent.commands.run:run", "Run the daemon."),
    "backtest": ("agent.commands.backtest:backtest", "Replay recorded bars through the live cycle."),
    "exchange": ("agent.commands.exchange:exchange", "Run the built-in paper exchange for any client."),
    "ollama": ("agent.commands.ollama:ollama", "Stand in for an Ollama server: answers by rule or script, and faults."),
    "status": ("agent.commands.operate:status", "Show the account, positions, exits, orders and incidents."),
    "why": ("agent.commands.operate:why", "Explain what was decided on a bar, traded or not."),
    "report": ("agent.commands.report:report", "Write a tearsheet: one HTML file of a daemon's run or a backtest."),
    "halt": ("agent.commands.operate:halt", "Stop entries until `tandem resume`; exits go on."),
    "resume": ("agent.commands.operate:resume", "End a halt; forget pauses and reject streaks."),
    "ledger": ("agent.commands.ledger:app", "The ledger: backup, restore, migrate."),
    "health": ("agent.commands.health:health", "Ask a running daemon whether it makes progress."),
    "doctor": ("agent.commands.doctor:doctor", "Check the installation, settings, ledger, venue and model."),
    "data": ("agent.commands.data:app", "Bars: import and check."),
    "models": ("agent.commands.models:app", "The model registry: list, show, promote, rollback."),
    "notify": ("agent.commands.notify:app", "Messages to people: test whether one arrives."),
    "config": ("agent.commands.config:app", "Settings: show, check and schema."),
}
"""Name → (where it lives, its line of help)."""

FOREIGN: Mapping[str, str] = {"train": "Train models offline (needs the `train` extra)."}
"""Commands that other packages bring, with the line that stands for them until they are loaded."""


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and help, and imports them one by one."""

    _only_names = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return every command's name, in the order of the manual."""
        del ctx
        return [*COMMANDS, *_foreign()]

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete names without importing any command: the shell asks at every press of a key."""
        self._only_names = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._only_names = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return one command; None where there is no such name."""
        del ctx
        if self._only_names:
            return TyperCommand(cmd_name)
        if cmd_name in COMMANDS:
            return _load(cmd_name, COMMANDS[cmd_name][0])
        point = _foreign().get(cmd_name)
        if point is None:
            return None
        return _as_command(cmd_name, point.load())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without importing any of them."""
        del ctx
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(name, FOREIGN.get(name, "")) for name in _foreign()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="tandem",
    cls=LazyGroup,
    help="A paper-trading daemon that decides at every bar close; orders go to paper only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:  # noqa: FBT001 - Typer hands the flag's value over by position
    if value:
        from importlib.metadata import version  # noqa: PLC0415 - only when asked

        typer.echo(f"tandem {version('tandem-trader')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(  # noqa: FBT001 - Typer's way to declare a flag
        False,  # noqa: FBT003 - as above
        "--version",
        help="Show the version and exit.",
        is_eager=True,
        callback=_version,
    ),
) -> None:
    """A paper-trading daemon that decides at every bar close; orders go to paper only."""
    del version  # told by its callback, which needs no sub-command


def main() -> None:
    """Run the command line; errors a user can mend end in one screen and exit code 1, wrong usage in 2."""
    if os.getpid() == 1:
        # the first process of a container: a signal that it has no handler for is ignored, unlike anywhere else
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from agent.commands.errors import run_guarded  # noqa: PLC0415 - the guard knows the error types without importing them

    sys.exit(run_guarded(app))


def _foreign() -> dict[str, Any]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name)}


def _load(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    return _as_command(name, getattr(import_module(module), attribute))


def _as_command(name: str, target: Any) -> Any:
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
    else:
        single = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        single.command(name)(target)
        command = typer.main.get_command(single)
    command.name = name
    return command


if __name__ == "__main__":
    main()
