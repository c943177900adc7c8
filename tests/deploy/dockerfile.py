"""Reading a Dockerfile: as much of the format as ours uses; what it does not know is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = frozenset(
    "ARG CMD COPY ENTRYPOINT ENV HEALTHCHECK LABEL RUN STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905 - one line
)


@dataclass(frozen=True)
class Instruction:
    """One instruction; `text` is what follows its name, continued lines joined."""

    line: int
    name: str
    text: str

    @property
    def pairs(self) -> dict[str, str]:
        """KEY=value words of ENV, LABEL and ARG."""
        return {key: value for key, _, value in (word.partition("=") for word in shlex.split(self.text))}

    @property
    def words(self) -> list[str]:
        """The exec form of CMD, ENTRYPOINT; HEALTHCHECK's command; the words of COPY without its options."""
        if self.name == "HEALTHCHECK":
            return list(json.loads(self.text.partition(" CMD ")[2]))
        if self.name in {"CMD", "ENTRYPOINT"}:
            return list(json.loads(self.text))
        return [word for word in self.text.split() if not word.startswith("--")]

    @property
    def options(self) -> dict[str, str]:
        """--key=value words that come first."""
        found = {}
        for word in self.text.split():
            if not word.startswith("--"):
                break
            key, _, value = word.removeprefix("--").partition("=")
            found[key] = value
        return found


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction | None:
        return next((i for i in reversed(self.instructions) if i.name == name), None)


@dataclass(frozen=True)
class Dockerfile:
    arguments: Mapping[str, str]
    stages: Mapping[str, Stage]

    def chain(self, name: str) -> list[Stage]:
        """Return a stage and those it is built on, the lowest first."""
        stage = self.stages[name]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def needed(self, name: str) -> list[str]:
        """Return the stages that one needs, itself last: its bases, and those it copies from."""
        found: list[str] = []
        for stage in self.chain(name):
            for instruction in stage.instructions:
                if source := instruction.options.get("from"):
                    found += [n for n in self.needed(source) if n not in found]
            found += [stage.name] if stage.name not in found else []
        return found


def read_dockerfile(path: Path) -> Dockerfile:
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line, text in _logical_lines(path.read_text(encoding="utf-8")):
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z-]+)", rest)
            if match is None:
                raise ValueError(f"line {line}: a stage has no name: {text}")
            base = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], match[1])
            stage = stages[match[2]] = Stage(match[2], base)
        elif stage is None:
            if name != "ARG":
                raise ValueError(f"line {line}: {name} before the first FROM")
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name in KNOWN:
            stage.instructions.append(Instruction(line, name, rest))
        else:
            raise ValueError(f"line {line}: {name} is not an instruction that is known here")
    return Dockerfile(arguments, stages)


def included(ignore_file: Path) -> list[str]:
    """Return what the build context holds: our .dockerignore leaves out everything, then names what belongs to it."""
    lines = [line.strip() for line in ignore_file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines[0] != "*" or lines[-1] != "**/__pycache__":
        raise ValueError(f"{ignore_file} does not leave out everything first, and caches last")
    return [line.removeprefix("!") for line in lines[1:-1]]


def _logical_lines(text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    parts: list[str] = []
    began = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):  # comments may stand between continued lines
            continue
        began = began if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            found.append((began, " ".join(parts)))
            parts = []
    return found
