from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    texts = [
        *project["project"]["dependencies"],
        *extras["train"],
        *extras["dev"],
        *project["build-system"]["requires"],
    ]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} has no pin in constraints.txt"
    assert requirement.specifier.contains(pinned)


def test_a_pin_is_exact_and_good_for_every_machine() -> None:
    odd = {name: version for name, version in pins().items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)}
    assert odd == {}  # no local versions (+cpu), no ranges


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make looks at."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    inherited = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(
        ["make", "--no-print-directory", *words],  # noqa: S607  # the make of whoever works here
        cwd=folder,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_says_so_when_python_is_missing(checkout: Path) -> None:
    done = make(checkout, "setup", PYTHON="python-that-is-not-there")
    assert done.returncode != 0
    assert "No 'python-that-is-not-there' found. Install Python 3.11 or newer" in done.stderr


def test_make_says_so_when_python_is_too_old(checkout: Path) -> None:
    old = checkout / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = make(checkout, "setup", PYTHON=str(old))
    assert done.returncode != 0
    assert "is Python 3.9.18; 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_runs_again_only_when_the_versions_change(checkout: Path) -> None:
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(checkout / name, ns=(0, 0))
    assert make(checkout, "--question", "setup").returncode == 0
    os.utime(checkout / "constraints.txt")
    os.utime(stamp, ns=(1, 1))
    assert make(checkout, "--question", "setup").returncode == 1


def test_every_target_of_make_is_named_in_its_help(checkout: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    named = set(re.findall(r"^make (\S+)", make(checkout, "help").stdout, re.MULTILINE))
    assert named == set(phony.group(1).split()) - {"help"}


LEAVES_A_CHILD = """
import subprocess, sys, warnings

def test_that_forgets_a_child():
    warnings.simplefilter("ignore")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

def test_that_is_tidy():
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_a_test_that_leaves_a_process_behind_fails_and_only_that_one(tmp_path: Path) -> None:
    (tmp_path / "test_children.py").write_text(LEAVES_A_CHILD, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "left running" in done.stdout
    assert "2 passed, 1 error" in done.stdout
