"""The installation pages name what is there: files, folders, units, commands and their options."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
import yaml
from dockerfile import read_dockerfile
from units import DEPLOY, PROGRAM, ROOT, TRAINER, read_unit

from agent.cli import app

PAGES = {name: (ROOT / "docs" / f"install-{name}.md").read_text(encoding="utf-8") for name in ("systemd", "docker")}
LINES = [
    (name, line.removeprefix("$ "))
    for name, page in PAGES.items()
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def command_lines() -> list[list[str]]:
    """Return the words of every `tandem` command of the pages, however it is started there."""
    found = []
    for _, line in LINES:
        words = shlex.split(line)
        for index, word in enumerate(words):
            is_program = word in (PROGRAM, TRAINER) or (word == "tandem" and words[index - 1] in ("daemon", "tandem"))
            if is_program and index + 1 < len(words):
                found.append(words[index + 1 :])
        if words[:2] == ["docker", "run"] and "tandem-training" in words:
            found.append(words[words.index("tandem-training") + 1 :])
        if "--no-deps" in words and words[0] == "docker":
            found.append(words[words.index("exchange", words.index("--no-deps")) + 1 :])
    return found


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_a_command_of_the_pages_exists_with_the_options_given(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "get_command"):
            break
        command = command.get_command(None, word)
        assert command is not None, f"there is no command {word}"
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_service_page_makes_what_the_units_use() -> None:
    page = PAGES["systemd"]
    for unit in DEPLOY.glob("*.service"):
        service = read_unit(unit)["Service"]
        assert f"useradd --system --home-dir /var/lib/{service['StateDirectory'][0]}" in page
        assert f"nologin {service['User'][0]}\n" in page
        for path in re.findall(r"/(?:opt|etc)/tandem/[\w./-]+", " ".join(service["ExecStart"])):
            folder = path.partition("/bin/")[0]
            assert folder in page, f"{unit.name} uses {path}, which nothing on the page makes"


def test_every_unit_is_named_on_the_page_that_installs_them() -> None:
    for unit in (*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")):
        assert unit.stem in PAGES["systemd"]


def test_every_unit_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\btandem[\w-]*\.(?:service|timer)\b", PAGES["systemd"]))
    assert {name for name in named if not (DEPLOY / name).exists()} == set()


def test_every_file_that_the_pages_take_from_the_sources_is_there() -> None:
    taken = {word for _, line in LINES for word in re.findall(r"(?<![\w/])(?:configs|deploy)/[\w.*-]+", line)}
    taken -= {"deploy/secrets"}
    assert taken
    assert {name for name in taken if not list(ROOT.glob(name))} == set()


def test_the_images_that_are_built_are_stages_and_what_is_run_in_compose_is_a_service() -> None:
    stages = read_dockerfile(ROOT / "Dockerfile").stages
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for _, line in LINES:
        assert all(target in stages for target in re.findall(r"--target (\S+)", line))
        assert all(name in services for name in re.findall(r" exec (\S+) ", line) if "compose" in line)
