"""Reading unit files, and asking systemd's own tool about them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROGRAM = "/opt/tandem/.venv/bin/tandem"
TRAINER = "/opt/tandem/train/bin/tandem"


def read_unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return section → key → values in their order; an empty value forgets those before it, as systemd does."""
    sections: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith(("#", ";")):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", text):
            section = match[1]
            continue
        key, _, value = text.partition("=")
        if value:
            sections[section][key].append(value)
        else:
            sections[section][key].clear()
    return {name: dict(keys) for name, keys in sections.items()}


def systemd_analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("there is no systemd-analyze")
    return subprocess.run(
        [tool, "--no-pager", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def syscalls_of(filters: list[str]) -> set[str]:
    """Return the system calls that `SystemCallFilter=` lines allow together."""
    allowed: set[str] = set()
    for line in filters:
        names = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | _calls("@default")


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    done = systemd_analyze("syscall-filter", word)
    assert done.returncode == 0, done.stderr
    inner = [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return {call for name in inner for call in _calls(name)}
