"""The faults that the stand-in can show, and when each of them acts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.ollama.draws import draw

__all__ = ["Fault", "FaultError", "FaultName", "FaultPlan", "parse_fault", "spoil"]


class FaultError(ValueError):
    """A fault that does not exist, or a value that it cannot have; the message names the known ones."""


class FaultName(StrEnum):
    """What can go wrong."""

    HANG = "hang"
    """No byte of an answer, until the client leaves."""
    DRIBBLE = "dribble"
    """A streamed token, or a byte of an unstreamed answer, every `value` seconds."""
    RUBBISH = "rubbish"
    """Status 200 and a body that is not JSON."""
    RUBBISH_CONTENT = "rubbish_content"
    """A proper answer whose content is not JSON."""
    WRONG_SCHEMA = "wrong_schema"
    """Content that is JSON and not what was asked for; `value` picks one of `WRONG_KINDS`, else they take turns."""
    MISSING_MODEL = "missing_model"
    """404, and no such model in the lists."""
    DROP = "drop"
    """The connection closes in the middle of the body."""
    QUEUE_FULL = "queue_full"
    """503."""
    MID_STREAM_ERROR = "mid_stream_error"
    """An error line after the first tokens of a stream; 500 without one."""
    TRUNCATED = "truncated"
    """The content stops half-way, with `done_reason` length."""
    LOW_MASS = "low_mass"
    """The choice's words together have only the probability `value`."""
    NO_LOGPROBS = "no_logprobs"
    """A server from before log probabilities: asked for or not, none are given."""
    WRONG_DIGEST = "wrong_digest"
    """The model is another one than before."""
    SLOW_LOAD = "slow_load"
    """The model is cold: loading it takes `value` seconds."""


_ALIASES = {"503": FaultName.QUEUE_FULL, "404": FaultName.MISSING_MODEL}
_DEFAULTS = {FaultName.DRIBBLE: 0.2, FaultName.LOW_MASS: 0.01, FaultName.SLOW_LOAD: 5.0}
"""Values of the faults that take a number. Seconds, probability, seconds."""
WRONG_KINDS = ("key", "value", "extra", "type", "list", "twice")
"""Ways in which JSON can differ from what was asked."""
_VALUE_MAX = 86_400.0
_GENERATING = ("/api/chat", "/api/generate")
_SPELLED = re.compile(
    r"(?P<name>\w+)(=(?P<value>[\w.]+))?(\*(?P<times>\d+))?(@(?P<probability>[\d.]+))?(:(?P<path>/[\w/-]+))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        name: Which.
        value: Its number (seconds or probability) or, of `wrong_schema`, its kind.
        times: Requests that it meets before it is over; None for ever.
        probability: That it meets a request, drawn by seed and request number.
        paths: Paths that it touches.
    """

    name: FaultName
    value: float | str | None = None
    times: int | None = None
    probability: float = 1.0
    paths: tuple[str, ...] = _GENERATING

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.name in _DEFAULTS:
            most = 1.0 if self.name is FaultName.LOW_MASS else _VALUE_MAX
            if not 0 <= self.number <= most:
                raise FaultError(f"fault {self.name}: value {self.value!r} is not a number from 0 to {most:g}")
        elif self.name is FaultName.WRONG_SCHEMA:
            if self.value is not None and self.value not in WRONG_KINDS:
                raise FaultError(f"fault {self.name}: value {self.value!r} is not one of {', '.join(WRONG_KINDS)}")
        elif self.value is not None:
            raise FaultError(f"fault {self.name} takes no value, {self.value!r} was given")
        if self.times is not None and self.times < 1:
            raise FaultError(f"fault {self.name}: times is {self.times}; give a count from 1, or leave it out")
        if not 0 <= self.probability <= 1:
            raise FaultError(f"fault {self.name}: probability {self.probability} is not from 0 to 1")

    @property
    def number(self) -> float:
        """The value in force of a fault that takes a number."""
        value = _DEFAULTS.get(self.name, 0.0) if self.value is None else self.value
        try:
            return float(value)
        except ValueError:
            return -1.0

    def json(self) -> dict[str, Any]:
        """Return the fault as the control face takes and shows it."""
        return {
            "name": self.name.value,
            "value": self.number if self.name in _DEFAULTS else self.value,
            "times": self.times,
            "probability": self.probability,
            "paths": list(self.paths),
        }


def parse_fault(given: object) -> Fault:
    """Read a fault: `NAME[=VALUE][*TIMES][@PROBABILITY][:PATH]`, or an object with these keys.

    Raises:
        FaultError: It is not one.
    """
    if isinstance(given, Fault):
        return given
    if isinstance(given, str):
        found = _SPELLED.fullmatch(given.strip())
        if found is None:
            raise FaultError(f"fault {given[:60]!r}: write NAME[=VALUE][*TIMES][@PROBABILITY][:PATH]")
        given = {key: text for key, text in found.groupdict().items() if text is not None}
        if "path" in given:
            given["paths"] = [given.pop("path")]
    if not isinstance(given, Mapping):
        raise FaultError(f"fault {str(given)[:60]!r} is neither text nor an object")
    unknown = sorted(set(given) - {"name", "value", "times", "probability", "paths"})
    if unknown:
        raise FaultError(f"fault has unknown key {unknown[0]!r}: use name, value, times, probability, paths")
    paths = given.get("paths", _GENERATING)
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise FaultError(f"fault {given.get('name')}: paths {str(paths)[:60]!r} is not a list of paths")
    try:
        times = given.get("times")
        return Fault(
            name=_name(given.get("name")),
            value=given.get("value"),
            times=None if times is None else int(times),
            probability=float(given.get("probability", 1.0)),
            paths=tuple(paths),
        )
    except (TypeError, ValueError) as error:
        raise FaultError(str(error)) from error


def spoil(right: str, kind: str) -> str:
    """Return a JSON object, differing in one way from the right one."""
    read = json.loads(right)
    content = dict(read) if isinstance(read, dict) and read else {"action": read}
    first, value = next(iter(content.items()))
    if kind == "key":
        return json.dumps({f"the_{key}" if key == first else key: each for key, each in content.items()})
    if kind == "twice":
        return f"{{{json.dumps(first)}: {json.dumps(value)}, {json.dumps(content)[1:]}"
    if kind == "list":
        return json.dumps([content])
    changes: dict[str, dict[str, Any]] = {"value": {first: "MAYBE"}, "extra": {"size": 1_000_000}, "type": {first: 1}}
    return json.dumps(content | changes[kind])


class FaultPlan:
    """The faults in force, and how often each still acts."""

    def __init__(self, faults: Iterable[object], seed: int) -> None:
        self._seed = seed
        self._faults: tuple[Fault, ...] = ()
        self._met: list[int] = []
        self.set(faults)

    def set(self, faults: Iterable[object]) -> tuple[Fault, ...]:
        """Replace all faults; their counts start anew.

        Raises:
            FaultError: One is not a fault; nothing is changed.
        """
        chosen = tuple(parse_fault(fault) for fault in faults)
        self._faults, self._met = chosen, [0] * len(chosen)
        return chosen

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those that still act."""
        return tuple(
            fault
            for fault, met in zip(self._faults, self._met, strict=True)
            if fault.times is None or met < fault.times
        )

    def meeting(self, path: str, number: int, among: frozenset[FaultName]) -> dict[FaultName, Fault]:
        """Return those of some faults that a request meets, and count them."""
        meets: dict[FaultName, Fault] = {}
        for index, fault in enumerate(self._faults):
            over = fault.times is not None and self._met[index] >= fault.times
            if over or fault.name not in among or path not in fault.paths or fault.name in meets:
                continue
            if fault.probability < 1 and draw(self._seed, fault.name.value, index, number) >= fault.probability:
                continue
            self._met[index] += 1
            meets[fault.name] = fault
        return meets

    def standing(self, name: FaultName) -> Fault | None:
        """Return a fault that is a state of the server and is not used up by requests; None without it."""
        return next((fault for fault in self.faults if fault.name is name), None)


def _name(given: object) -> FaultName:
    if isinstance(given, str) and given in _ALIASES:
        return _ALIASES[given]
    try:
        return FaultName(str(given))
    except ValueError:
        raise FaultError(f"fault {str(given)[:60]!r} is not known: use {', '.join(FaultName)}") from None
