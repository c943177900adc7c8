"""`--json` on every command that prints a result: one JSON object on stdout and nothing else, also when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from tandem_cli import Done, replayed, tandem
from test_models_commands import tiny as tiny_models
from webhook import webhook

from agent.cli import COMMANDS, app
from agent.health import HealthServer, Probes, Readiness
from agent.metrics import Metrics
from strategies.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = {("config", "schema"): "its result is JSON with or without"}
"""Commands that need no `--json`, and why."""
Path_ = tuple[str, ...]


def leaves(command: Any = None, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    command = command or typer.main.get_command(app)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from leaves(command.get_command(None, name), (*path, name))


LEAVES = dict(leaves())


def options(command: Any) -> set[str]:
    return {spelling for parameter in command.params for spelling in getattr(parameter, "opts", [])}


@dataclass
class House:
    """What the commands work on: a ledger, bars, policies, a webhook, a health server."""

    folder: Path
    bundle: Bundle
    webhook_url: str
    health_url: str

    def set(self, *pairs: str) -> list[str]:
        return [part for pair in pairs for part in ("--set", pair)]

    @property
    def ledger(self) -> list[str]:
        return self.set(f"ledger.url=sqlite:///{self.folder / 'ledger.sqlite'}")

    @property
    def models(self) -> list[str]:
        return self.set(f"strategy.models={self.folder / 'models'}")

    @property
    def bars(self) -> Path:
        return self.folder / "bars.csv"

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        return str(self.folder / f"{name}-{len(list(self.folder.iterdir()))}")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    replayed(folder / "ledger.sqlite", bars=120)
    (folder / "bars.csv").write_text(_bars())
    probes = Probes({"loop": None})
    readiness = Readiness()
    readiness.set_ready()
    server = HealthServer("127.0.0.1", 0, probes=probes, readiness=readiness, metrics=Metrics())
    with webhook() as hook:
        (folder / "urls").write_text(hook.url)
        bundle = tiny_models.make_bundle(folder / "bundle")
        yield House(folder, bundle, hook.url, f"http://127.0.0.1:{server.port}")
    server.close()


def _bars() -> str:
    rows = ["timestamp,open,high,low,close,volume"]
    for minute in range(0, 60 * 24, 5):
        price = 100 + minute % 35 / 7
        rows.append(f"2024-01-01T{minute // 60:02d}:{minute % 60:02d}:00Z,{price},{price + 1},{price - 1},{price},10")
    return "\n".join(rows) + "\n"


def _promoted(house: House) -> list[str]:
    for _ in range(2):
        assert tandem("models", "promote", house.bundle.path, *house.models).code == 0
    return house.models


def _backed_up(house: House) -> list[str]:
    out = house.fresh("backup")
    assert tandem("ledger", "backup", "--out", out, *house.ledger).code == 0
    return [out, *house.ledger]


def _backtest(house: House) -> list[str]:
    return ["--out", house.fresh("out"), "--bars", str(house.bars), "--strategy", "momentum"]


ARGUMENTS: dict[Path_, Callable[[House], list[str]]] = {
    ("backtest",): _backtest,
    ("status",): lambda house: house.ledger,
    ("why",): lambda house: ["AAA", *house.ledger],
    ("report",): lambda house: ["--out", house.fresh("report") + ".html", *house.ledger],
    ("halt",): lambda house: ["a reason", *house.ledger],
    ("resume",): lambda house: house.ledger,
    ("ledger", "backup"): lambda house: ["--out", house.fresh("backup"), *house.ledger],
    ("ledger", "restore"): _backed_up,
    ("ledger", "migrate"): lambda house: house.ledger,
    ("health",): lambda house: ["--url", house.health_url],
    ("doctor",): lambda house: [*house.ledger, *house.set("strategy.name=momentum")],
    ("data", "import"): lambda house: [str(house.bars), "--out", house.fresh("bars") + ".parquet"],
    ("data", "check"): lambda house: [str(house.bars)],
    ("models", "list"): lambda house: house.models,
    ("models", "show"): lambda house: [str(house.bundle.path), *house.models],
    ("models", "promote"): lambda house: [str(house.bundle.path), *house.models],
    ("models", "rollback"): _promoted,
    ("notify", "test"): lambda house: house.set(f"notifications.urls_file={house.folder / 'urls'}"),
    ("config", "show"): lambda house: [],
    ("config", "schema"): lambda house: [],
    ("config", "check"): lambda house: house.set("strategy.name=momentum"),
}
"""How each command is called so that it succeeds."""
PROCESSES = {("run",), ("exchange",), ("ollama",), ("demo",)}
"""Commands that serve, or end their process: asked further below."""


def one_object(text: str) -> dict[str, Any]:
    content = json.loads(text)
    assert isinstance(content, dict)
    return content


def ids(path: Path_) -> str:
    return " ".join(path)


def test_every_command_has_json_or_a_reason_not_to() -> None:
    assert [ids(path) for path, leaf in LEAVES.items() if "--json" not in options(leaf) and path not in WITHOUT] == []


def test_every_command_of_the_daemons_package_is_asked_for_json_here() -> None:
    ours = {path for path in LEAVES if path[0] in COMMANDS}
    assert ours == {*ARGUMENTS, *PROCESSES}


@pytest.mark.parametrize("path", ARGUMENTS, ids=ids)
def test_a_result_as_json_is_one_object_on_stdout(path: Path_, house: House) -> None:
    flag = [] if path in WITHOUT else ["--json"]
    done = tandem(*path, *ARGUMENTS[path](house), *flag)
    assert done.code == 0, done.err + done.out
    assert one_object(done.out)


@pytest.mark.parametrize("path", [path for path in ARGUMENTS if "--set" in options(LEAVES[path])], ids=ids)
def test_wrong_usage_is_an_exit_code_and_words_on_stderr_and_no_object(path: Path_, house: House) -> None:
    arguments = [] if path == ("health",) else ARGUMENTS[path](house)  # with --url it reads no settings
    done = tandem(*path, *arguments, "--json", "--set", "nosuch.key=1")
    if path == ("doctor",):  # settings that cannot be read are one of its findings
        assert (done.code, one_object(done.out)["ok"]) == (1, False)
        return
    assert done.code == 2
    assert done.out == ""
    assert "nosuch" in done.err


FAILURES: dict[str, list[str]] = {
    "no ledger": ["status", "--set", "ledger.url=sqlite:////nowhere/ledger.sqlite"],
    "no such symbol": ["why", "NOSUCH"],
    "no such policy": ["models", "show", "nosuch"],
    "nobody listens": ["health", "--url", "http://127.0.0.1:9"],
    "no such file": ["data", "import", "nosuch.csv", "--out", "out.parquet"],
    "no URLs": ["notify", "test"],
}


@pytest.mark.parametrize("arguments", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_exit_code_one_and_words_on_stderr_and_no_object(arguments: list[str], house: House) -> None:
    more = house.ledger if arguments[0] == "why" else house.models if arguments[0] == "models" else []
    done = tandem(*arguments, *more, "--json")
    assert done.code == 1
    assert done.out == ""
    assert done.err.strip()


def first_line(*arguments: str) -> str:
    """Start a command that serves, read its first line, end it; there must be no other line."""
    command = [sys.executable, "-m", "agent.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        late = threading.Timer(60, process.kill)
        late.start()
        line = process.stdout.readline()
        late.cancel()
        process.terminate()
        assert process.stdout.read() == ""
    return line


def test_servers_print_one_ready_line_as_json() -> None:
    small = ("--set", "exchange.synthetic.bars=500")
    assert one_object(first_line("exchange", "--json", *small))["url"].startswith("http://127.0.0.1:")
    assert one_object(first_line("ollama", "--json", "--port", "0"))["url"].startswith("http://127.0.0.1:")


def finished(*arguments: str, folder: Path) -> Done:
    command = [sys.executable, "-m", "agent.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_run_prints_its_summary_as_one_object_at_its_end(tmp_path: Path) -> None:
    small = ("--set", "exchange.synthetic.bars=500", "--set", "daemon.max_bars=2", "--strategy", "momentum")
    done = finished("run", "--json", *small, folder=tmp_path)
    assert done.code == 0, done.err
    assert one_object(done.out)["closes"] == 2


@pytest.mark.slow
def test_the_demo_prints_its_facts_as_one_object(tmp_path: Path) -> None:
    done = finished("demo", "--json", "--bars", "20", "--out", str(tmp_path / "demo"), folder=tmp_path)
    assert done.code == 0, done.err
    assert one_object(done.out)["bars"] == 20
