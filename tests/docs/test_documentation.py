from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import commands_reference
import grimp
import pytest
import settings_reference

from agent.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PACKAGES = ("agent", "brokers", "strategies", "training")

EXECUTED = "<!-- executed -->"
"""A comment on the line before a console block: its commands run in a temporary folder, with `configs/` beside them."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    executed: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    previous, opened = "", None
    content: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```") and opened is None:
            opened, content = (number, line[3:].strip(), previous == EXECUTED), []
        elif line.startswith("```") and opened is not None:
            yield Block(page, *opened, "\n".join(content))
            opened = None
        elif opened is not None:
            content.append(line)
        previous = line.strip() or previous
    assert opened is None, f"{page}: a code block is not closed"


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def console_commands(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            yield line[2:].partition(" #")[0].strip()


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.executed], ids=str)
def test_the_commands_of_an_executed_block_succeed(block: Block, tmp_path: Path) -> None:
    if importlib.util.find_spec("agent.cli") is None:
        pytest.skip("there is no command line yet")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    commands = list(console_commands(block.text))
    assert commands, f"{block} has no line that starts with '$ '"
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block}: {command}\n{done.stdout}\n{done.stderr}"


def test_the_picture_of_the_rooms_is_the_import_graph() -> None:
    (picture,) = (b for b in ALL_BLOCKS if b.language == "rooms")
    drawn = {}
    for line in picture.text.splitlines():
        room, _, imported = line.partition("->")
        drawn[room.strip()] = set(imported.split())
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    real = {
        room: {
            other
            for other in PACKAGES
            if other != room and graph.find_shortest_chains(importer=room, imported=other, as_packages=True)
        }
        for room in PACKAGES
    }
    assert drawn == real


def test_every_setting_is_documented_as_it_is() -> None:
    page = settings_reference.PAGE.read_text(encoding="utf-8")
    assert settings_reference.documented(page) == settings_reference.table(Settings), (
        "docs/configuration.md is not what the settings are: run tests/docs/settings_reference.py --write"
    )


def test_every_setting_says_what_it_means() -> None:
    assert [s.name for s in settings_reference.settings_of(Settings) if not s.meaning] == []


def test_every_command_is_documented_as_it_is() -> None:
    if importlib.util.find_spec("agent.cli") is None:
        pytest.skip("there is no command line yet")
    page = commands_reference.PAGE.read_text(encoding="utf-8")
    assert commands_reference.documented(page) == commands_reference.sections(commands_reference.root_command()), (
        "docs/commands.md is not what the command line is: run tests/docs/commands_reference.py --write"
    )


def test_every_command_in_a_block_exists() -> None:
    if importlib.util.find_spec("agent.cli") is None:
        pytest.skip("there is no command line yet")
    known = {path for path, _ in commands_reference.commands(commands_reference.root_command())}
    missing = []
    for block in ALL_BLOCKS:
        for command in console_commands(block.text) if block.language == "console" else ():
            words = shlex.split(command)
            if words[:1] != ["tandem"] or words[1:2] == ["--help"]:
                continue
            if not {" ".join(words[:2]), " ".join(words[:3])} & known:
                missing.append(f"{block}: {command}")
    assert missing == []


def test_every_metric_is_documented() -> None:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # used here alone

    from agent.metrics import Metrics  # noqa: PLC0415  # same

    metrics = Metrics()
    metrics.watch_ages(lambda: {"loop": 0.0})
    metrics.watch_llm(lambda: {"asked": 0})
    families = text_string_to_metric_families(metrics.exposition().decode())
    names = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    ours = {name for name in names if name.startswith("tandem_")}
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert ours == set(re.findall(r"^\| `(tandem_\w+)` \|", page, re.MULTILINE))


def test_every_event_of_the_language_model_is_documented() -> None:
    from strategies.llm.model import COUNTED  # noqa: PLC0415  # used here alone
    from strategies.strategy import Reason  # noqa: PLC0415  # same

    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (row,) = (line for line in operations.splitlines() if line.startswith("| `tandem_llm_total` |"))
    assert [event for event in COUNTED if f"`{event}`" not in row] == []
    page = (ROOT / "docs" / "language-model.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(llm_\w+)` \|", page, re.MULTILINE))
    assert told == {one.value for one in Reason if one.name.startswith("LLM_") and one is not Reason.LLM_VOTE}


def test_no_relative_link_is_dead() -> None:
    dead = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            path = target.partition("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def test_every_page_of_the_manual_can_be_reached_from_its_index() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8")):
            linked = (page.parent / target).resolve()
            if linked.exists():
                waiting.append(linked)
    records = set((ROOT / "docs" / "decisions").glob("*.md"))  # numbered: the first leads to the others by name
    assert {p for p in PAGES if "docs" in p.relative_to(ROOT).parts} - reached - records == set()


def test_no_line_of_prose_is_too_long_to_read() -> None:
    generated = (settings_reference, commands_reference)
    long = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for reference in generated:
            text = text.replace(reference.documented(text), "") if page == reference.PAGE else text
        lines = enumerate(text.splitlines(), start=1)
        long += [f"{page.name}:{n}" for n, line in lines if len(line) > 120 and not line.startswith("|")]
    assert long == []


NOT_OURS = re.compile(
    # absolute paths of somebody's machine; hosts of package registries (a Makefile variable names them where needed)
    r"(?<![\w.])/(?:home|Users|root|work|workspace)/\w"
    r"|\b(?:pypi|pythonhosted|download\.pytorch)\.org\b"
    r"|\b(?:artifactory|nexus|devpi)\.\w",
    re.IGNORECASE,
)


def repository_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607  # the git of whoever works here
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_repository_names_no_workplace_and_no_registry() -> None:
    found = []
    for file in repository_files():
        if file == Path(__file__):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{file.relative_to(ROOT)}: {match.group()}" for match in NOT_OURS.finditer(text)]
    assert found == []


def test_the_repository_holds_no_pickle_and_no_recorded_data() -> None:
    suffixes = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".parquet", ".sqlite", ".zip"}
    assert [str(f.relative_to(ROOT)) for f in repository_files() if f.suffix in suffixes] == []
