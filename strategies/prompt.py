"""Prompts of the language model: one renderer and one parser for tuning, testing and serving.

A prompt shows the position and every feature, as a word and a rounded number. It holds no price, date, symbol
or credential, and its length is bounded. An answer is one flat JSON object, `action` first; anything else is
a `Refusal`, never an action. `read_back` recovers from a prompt what the renderer was told.

Axes: F features.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from functools import cached_property
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from strategies.features import FeatureSpec
from strategies.strategy import Action

PROMPT_VERSION: Final = "1"
"""Raised whenever a prompt or the reading of an answer changes: models are tuned on one version."""
CHARACTERS_MAX: Final = 8_000
"""Most characters of a prompt, all messages together; a spec that could exceed them is refused."""
REASON_CHARACTERS_MAX: Final = 120
"""Most characters of the reason in an answer."""
ANSWER_CHARACTERS_MAX: Final = 600
"""Most characters of an answer; a longer one is refused unread."""

ANSWER_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "enum": ["BUY", "HOLD", "SELL"]},
        "reason": {"type": "string", "maxLength": REASON_CHARACTERS_MAX},
    },
    "required": ["action", "reason"],
    "additionalProperties": False,
}
"""JSON Schema of an answer. The action comes first, so that its probability is not conditioned on the reason."""

_POSITIONS: Final[Mapping[int, str]] = {-1: "short", 0: "flat", 1: "long"}
_CHOICES: Final[Mapping[tuple[int, ...], str]] = {(0, 1): "flat or long", (-1, 0, 1): "short, flat or long"}
_TWO_SIDED: Final = ("very low", "low", "slightly low", "neutral", "slightly high", "high", "very high")
_ONE_SIDED: Final = ("very low", "low", "medium", "high", "very high")
_WORD_CHARACTERS: Final = max(map(len, (*_TWO_SIDED, *_ONE_SIDED)))

_SYSTEM: Final = (
    "You decide the position of a paper-trading account in one instrument until the next bar closes: {choices}.\n"
    "You are given the position and measurements of the market. Each has a word and a number without unit: returns "
    "and distances in volatilities, volumes and volatilities as logarithms of ratios, the rest as shares.\n{levels}"
    "BUY: be long. SELL: be {sold}. HOLD: keep the position.\n"
    'Answer with one JSON object and nothing else: {{"action": "BUY", "HOLD" or "SELL", '
    '"reason": at most {characters} characters}}.'
)
_LEVELS_TOLD: Final = "Levels are the account's own columns in units of their own, on a logarithmic scale beyond one.\n"
_USER_KINDS: Final = ("signals", "levels")
"""Group kinds whose features bear the names of user columns."""
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ENTRY = re.compile(rf"({_LABEL.pattern}) ([a-z ]{{1,{_WORD_CHARACTERS}}}) ([+-]\d+\.\d+)")
_LINE = re.compile(rf"({_LABEL.pattern}): (.+)")


class PromptError(ValueError):
    """Something that no prompt can be made of, or a prompt that was not made here."""


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Scale:
    """How a number is put in words.

    Args:
        edges: Ascending and positive; a bucket begins at each, on both sides of zero if `two_sided`.
        two_sided: True where values below zero occur.
        decimals: Digits shown; the word belongs to the number as shown.
    """

    edges: tuple[float, ...]
    two_sided: bool
    decimals: int = 2

    def number(self, value: float) -> str:
        """Return the number as shown, with its sign; zero is always +."""
        text = f"{value:+.{self.decimals}f}"
        return text.replace("-", "+") if float(text) == 0.0 else text

    def word(self, number: float) -> str:
        """Return the bucket of a number as shown."""
        steps = bisect_right(self.edges, abs(number))
        if not self.two_sided:
            return _ONE_SIDED[steps]
        return _TWO_SIDED[len(self.edges) + (steps if number > 0.0 else -steps)]


def scale_of(low: float, high: float) -> Scale:
    """Return the scale of a feature by its range: sigmas, logarithms, shares or plain returns."""
    if low >= 0.0:
        return Scale((0.1, 0.35, 0.65, 0.9) if high <= 1.0 else (0.25, 1.0, 2.0, 4.0), two_sided=False)
    if high <= 0.5:
        return Scale((0.001, 0.005, 0.02), two_sided=True, decimals=4)
    if high <= 1.0:
        return Scale((0.1, 0.35, 0.7), two_sided=True)
    return Scale((0.1, 0.4, 1.0) if high <= 5.0 else (0.25, 1.0, 2.0), two_sided=True)


@dataclass(frozen=True, slots=True)
class Told:
    """What a prompt says.

    Args:
        position: -1, 0 or 1.
        targets: Positions that may be chosen, ascending.
        words: The bucket of each measurement, by `group.label`, in order.
        numbers: The number of each, as shown.
    """

    position: int
    targets: tuple[int, ...]
    words: Mapping[str, str]
    numbers: Mapping[str, float]


class Template:
    """Renders prompts for one feature spec.

    Args:
        spec: Features shown. User columns are shown by their place (`column_1`): their names are free text.
        shorts: True where SELL means short; else it means flat.

    Raises:
        PromptError: So many features that a prompt could exceed `CHARACTERS_MAX`.
    """

    def __init__(self, spec: FeatureSpec, *, shorts: bool = False) -> None:
        self.targets: tuple[int, ...] = (-1, 0, 1) if shorts else (0, 1)
        self.labels = _labels(spec)
        self._low_F, self._high_F = spec.ranges.T
        self._scales = tuple(scale_of(float(low), float(high)) for low, high in spec.ranges)
        self._system = _SYSTEM.format(
            choices=_CHOICES[self.targets],
            levels=_LEVELS_TOLD if any(group.kind == "levels" for group in spec.definitions) else "",
            sold=_POSITIONS[self.targets[0]],
            characters=REASON_CHARACTERS_MAX,
        )
        self.characters_max = self._longest(spec)
        """Most characters that a prompt of this template can have."""
        if self.characters_max > CHARACTERS_MAX:
            raise PromptError(
                f"a prompt with {len(self.labels)} features has up to {self.characters_max} characters, "
                f"{CHARACTERS_MAX} are the most: tune the language model on a policy with fewer features"
            )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that shapes a prompt or the reading of an answer, hexadecimal."""
        scales = [[scale.edges, scale.two_sided, scale.decimals] for scale in self._scales]
        content = [PROMPT_VERSION, self._system, self.labels, scales, _TWO_SIDED, _ONE_SIDED, ANSWER_SCHEMA]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def told(self, features_F: NDArray[np.floating], position: int) -> Told:
        """Return what a prompt will say; values outside of a feature's range are shown at its end.

        Raises:
            PromptError: Another number of features, one that is not finite, or no position.
        """
        if len(features_F) != len(self.labels) or not np.isfinite(features_F).all():
            raise PromptError(
                f"{len(features_F)} features, {int(np.isfinite(features_F).sum())} of them finite: give "
                f"{len(self.labels)} finite ones"
            )
        if position not in _POSITIONS:
            raise PromptError(f"position {position} is none of -1, 0 and 1")
        words, numbers = {}, {}
        values = np.minimum(np.maximum(features_F, self._low_F), self._high_F).tolist()
        for label, scale, value in zip(self.labels, self._scales, values, strict=True):
            numbers[label] = float(scale.number(value))
            words[label] = scale.word(numbers[label])
        return Told(position=int(position), targets=self.targets, words=words, numbers=numbers)

    def messages(self, features_F: NDArray[np.floating], position: int) -> list[Message]:
        """Return the chat messages, at most `CHARACTERS_MAX` characters; see `told` for what is refused."""
        return self._render(self.told(features_F, position))

    def _render(self, told: Told) -> list[Message]:
        lines = [f"position: {_POSITIONS[told.position]}"]
        groups: dict[str, list[str]] = {}
        for scale, (label, number) in zip(self._scales, told.numbers.items(), strict=True):
            group, _, name = label.partition(".")
            groups.setdefault(group, []).append(f"{name} {told.words[label]} {scale.number(number)}")
        lines += [f"{group}: {'; '.join(entries)}" for group, entries in groups.items()]
        return [Message(role="system", content=self._system), Message(role="user", content="\n".join(lines))]

    def _longest(self, spec: FeatureSpec) -> int:
        numbers = {}
        for label, scale, ends in zip(self.labels, self._scales, spec.ranges.tolist(), strict=True):
            low, high = ends
            numbers[label] = low if len(scale.number(low)) > len(scale.number(high)) else high
        words = dict.fromkeys(self.labels, "x" * _WORD_CHARACTERS)
        longest = self._render(Told(position=-1, targets=self.targets, words=words, numbers=numbers))
        return sum(len(message["content"]) for message in longest)


def _labels(spec: FeatureSpec) -> tuple[str, ...]:
    """Return `group.label` of every feature, of plain characters; a user's column is known by its place."""
    columns = {kind: itertools.count(1) for kind in _USER_KINDS}
    labels: list[str] = []
    for group in spec.definitions:
        names = spec.names[spec.group_slices[group.name]]
        place = columns.get(group.kind)
        labels += names if place is None else [f"{group.kind}.column_{next(place)}" for _ in names]
    for label in labels:
        prefix, _, own = label.partition(".")
        if not (_LABEL.fullmatch(prefix) and _LABEL.fullmatch(own)) or prefix == "position":
            raise PromptError(f"feature {label!r} has no plain name of at most 32 characters: rename it")
    return tuple(labels)


def prompt_hash(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of a prompt, hexadecimal: what a recorded answer is found by."""
    content = json.dumps([[one["role"], one["content"]] for one in messages], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def read_back(messages: Sequence[Message]) -> Told:
    """Return what the renderer of a prompt was told.

    Raises:
        PromptError: Not a prompt of this version, or one in which a word or line was changed.
    """
    if [one["role"] for one in messages] != ["system", "user"]:
        raise PromptError("a prompt has a system and a user message: give what Template.messages returned")
    system, user = (one["content"] for one in messages)
    targets = next((t for t, words in _CHOICES.items() if f" closes: {words}.\n" in system), None)
    first, *rest = user.split("\n")
    position = next((p for p, word in _POSITIONS.items() if first == f"position: {word}"), None)
    if targets is None or position is None or not rest:
        raise PromptError(f"a prompt that begins {first[:40]!r}: give what Template.messages returned")
    words: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for line in rest:
        found = _LINE.fullmatch(line)
        for entry in found[2].split("; ") if found else [line]:
            read = _ENTRY.fullmatch(entry)
            if found is None or read is None or f"{found[1]}.{read[1]}" in words:
                raise PromptError(f"prompt line {line[:80]!r} cannot be read at {entry[:40]!r}")
            words[f"{found[1]}.{read[1]}"] = read[2]
            numbers[f"{found[1]}.{read[1]}"] = float(read[3])
    return Told(position=position, targets=targets, words=words, numbers=numbers)


@unique
class RefusalCode(StrEnum):
    """Why a text is no answer."""

    TOO_LONG = "too_long"
    NOT_JSON = "not_json"
    NOT_THE_SCHEMA = "not_the_schema"
    UNKNOWN_ACTION = "unknown_action"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A text that is no answer: a code, and one printable line on what was found."""

    code: RefusalCode
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An action and the reason given for it: one printable line, no more than words."""

    action: Action
    reason: str


def answer_text(action: Action, reason: str) -> str:
    """Return the answer as a model is tuned to write it.

    Raises:
        PromptError: A reason that is too long or not one printable line: no parser would give it back.
    """
    text = json.dumps({"action": action.name, "reason": reason}, ensure_ascii=False)
    if parse_answer(text) != Answer(action, reason):
        raise PromptError(
            f"reason {reason[:40]!r} is not one printable line of at most {REASON_CHARACTERS_MAX} characters"
        )
    return text


def parse_answer(text: str) -> Answer | Refusal:
    """Return the action of an answer that follows `ANSWER_SCHEMA` to the letter, else why it is refused."""
    if len(text) > ANSWER_CHARACTERS_MAX:
        return Refusal(RefusalCode.TOO_LONG, f"{len(text)} characters, {ANSWER_CHARACTERS_MAX} are the most")
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Refusal(RefusalCode.NOT_JSON, f"{type(error).__name__} in {one_line(text)[:60]!r}")
    if not isinstance(pairs, _Pairs) or [key for key, _ in pairs] != ["action", "reason"]:
        return Refusal(RefusalCode.NOT_THE_SCHEMA, f"not an object of action and reason: {one_line(text)[:60]!r}")
    (_, action), (_, reason) = pairs
    if not isinstance(reason, str) or len(reason) > REASON_CHARACTERS_MAX:
        return Refusal(RefusalCode.NOT_THE_SCHEMA, f"no reason of at most {REASON_CHARACTERS_MAX} characters")
    if not isinstance(action, str) or action not in Action.__members__:
        return Refusal(RefusalCode.UNKNOWN_ACTION, f"action {one_line(str(action))[:40]!r}")
    return Answer(Action[action], one_line(reason))


def one_line(text: str) -> str:
    """Return a text on one line of printable characters: it goes to logs and terminals."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key given twice is seen."""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
