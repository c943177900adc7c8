"""Shell completion, in a real interactive bash and through the protocol of the other shells."""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cli import COMMANDS

BIN = Path(sys.executable).parent
BASH = shutil.which("bash")
CPU_S_MAX = 0.15
"""For completing a command's name; the test allows twice that, because machines differ."""

needs_bash = pytest.mark.skipif(BASH is None, reason="no bash here")
needs_tandem = pytest.mark.skipif(not (BIN / "tandem").exists(), reason="the command is not installed beside Python")


class Terminal:
    """An interactive bash on a terminal of its own."""

    def __init__(self, master: int) -> None:
        self.master = master

    def type(self, text: str, *, until: str, wait_s: float = 20.0) -> str:
        """Type, and return what the terminal shows until the words appear in it."""
        os.write(self.master, text.encode())
        shown, deadline = "", time.monotonic() + wait_s
        while until not in shown:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{until!r} was not shown after {text!r}: {shown!r}"
            if select.select([self.master], [], [], left_s)[0]:
                shown += os.read(self.master, 65_536).decode(errors="replace")
        return shown


@contextmanager
def interactive_bash(folder: Path) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "PS1": "ready> ", "TERM": "dumb", "HOME": str(folder)}
    assert BASH is not None
    command = [BASH, "--norc", "--noprofile", "-i"]
    shell = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=folder, start_new_session=True
    )
    os.close(slave)
    try:
        terminal = Terminal(master)
        terminal.type("bind 'set enable-bracketed-paste off'; PS1='on> '\n", until="on> ")
        terminal.type('eval "$(_TANDEM_COMPLETE=source_bash tandem)"; echo do""ne\n', until="done")
        yield terminal
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


@needs_bash
@needs_tandem
def test_a_tab_in_bash_completes_commands_options_settings_and_strategies(tmp_path: Path) -> None:
    with interactive_bash(tmp_path) as terminal:
        for typed, completed in [
            ("tandem mod\t", "models "),
            ("tandem models sh\t", "show "),
            ("tandem status --j\t", "--json "),
            ("tandem status --set risk.cooldown\t", "risk.cooldown_bars=0 "),
            ("tandem run --strategy mom\t", "momentum "),
        ]:
            terminal.type(typed, until=completed)
            terminal.type("\x15echo e''mpty\n", until="empty")  # Ctrl-U: a new line


def complete(shell: str, words: str) -> str:
    """Ask as the shell's own script does."""
    environment = {**os.environ, "_TANDEM_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['tandem']; from agent.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_told_the_names_of_all_commands(shell: str) -> None:
    told = complete(shell, "tandem ")
    assert [name for name in (*COMMANDS, "train") if name not in told] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    environment = {**os.environ, "_TANDEM_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['tandem']; from agent.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"_TANDEM_COMPLETE=complete_{shell}" in done.stdout


def test_a_settings_default_completes_with_its_key() -> None:
    told = complete("bash", "tandem run --set daemon.").split()
    assert "daemon.max_bars=null" in told
    assert "daemon.bar_store=var/bars" in told
    assert "strategy.params=" in complete("bash", "tandem run --set strategy.p").split()


def test_completing_a_command_costs_little_and_imports_none() -> None:
    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    costs = []
    for _ in range(3):
        before = cpu_s()
        assert complete("bash", "tandem mod") == "models\n"
        costs.append(cpu_s() - before)
    assert min(costs) < 2 * CPU_S_MAX
    code = (
        "import os, sys\n"
        "os.environ |= {'COMP_WORDS': 'tandem ', 'COMP_CWORD': '1', '_TANDEM_COMPLETE': 'complete_bash'}\n"
        "sys.argv = ['tandem']\n"
        "from agent.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('agent.commands.')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
