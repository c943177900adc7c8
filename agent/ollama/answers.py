"""What the stand-in's model says: by a rule over the prompt, or out of a script.

An answerer is a function of a `Question`. It returns an `Answer`, or plain text, or the probability of each word
of the choice, from which the content is written that the asked format wants.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from agent.ollama.draws import draw
from agent.ollama.schema import choices, fill
from agent.ollama.tokens import Choice, Token

__all__ = [
    "ACTIONS",
    "Answer",
    "Answerer",
    "AnswersError",
    "Question",
    "Script",
    "by_hash",
    "by_numbers",
    "compose",
    "load_answers",
    "spoken",
]

ACTIONS = ("SELL", "HOLD", "BUY")
"""The words of a choice where the asked format names none."""

_SIGNED = re.compile(r"(?<![\w.])[+\-\u2212]\d+(?:\.\d+)?")
_STEEPNESS = 10.0
"""Logits of BUY, and less of SELL, at a mean far from zero: a prompt of many features has a mean near it."""
_HOLD_LOGIT = 1.0
_ENTRY_KEYS = {"prompt", "prompt_sha256", "content", "action", "probabilities", "mass", "thinking", "logprobs"}
_FILE_BYTES_MAX = 64 * 2**20


class AnswersError(Exception):
    """Answers cannot be read, or a script has none for a prompt; the message names the thing and the remedy."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked.

    Args:
        model: Name, as the client spelled it.
        prompt: The messages' contents, or system and prompt, one below the other.
        last: The last message's content, or the prompt alone.
        format: JSON schema, "json", or None.
        options: The request's options.
        number: Of the request that is answered, from 1.
        seed: The stand-in's.
    """

    model: str
    prompt: str
    last: str
    format: Mapping[str, Any] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    number: int = 1
    seed: int = 1

    @property
    def sha256(self) -> str:
        """The prompt's hash: what a script may match on."""
        return sha256(self.prompt.encode(errors="replace")).hexdigest()

    @property
    def words(self) -> tuple[str, ...]:
        """The words to choose from: the schema's first list of words, else the three actions."""
        named = choices(self.format) if isinstance(self.format, Mapping) else ()
        return named or ACTIONS


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says.

    Args:
        content: The text.
        choice: Where in it a word was chosen, and how likely each was; None for text without a choice.
        thinking: What it says before; shown by models that think, when asked to.
        tokens: The content's tokens, where they are given; None makes them.
    """

    content: str
    choice: Choice | None = None
    thinking: str = ""
    tokens: tuple[Token, ...] | None = None


Answerer = Callable[[Question], "Answer | str | Mapping[str, float]"]


def by_numbers(question: Question) -> Mapping[str, float]:
    """Choose by the signed numbers of the last message: a positive mean buys, a negative one sells.

    Without a signed number, or with other words than the three actions, the prompt's hash chooses.
    """
    if not set(question.words) <= set(ACTIONS):
        return by_hash(question)
    signed = [float(text.replace("\u2212", "-")) for text in _SIGNED.findall(question.last)]
    if not signed:
        return by_hash(question)
    lean = math.tanh(sum(signed) / len(signed))
    logits = {"SELL": -_STEEPNESS * lean, "HOLD": _HOLD_LOGIT, "BUY": _STEEPNESS * lean}
    return _softmax({word: logits[word] for word in question.words})


def by_hash(question: Question) -> Mapping[str, float]:
    """Choose by a hash of the prompt: every prompt has its answer, spread evenly over the words."""
    return _softmax({word: 4.0 * draw(question.seed, "answer", question.sha256, word) for word in question.words})


def compose(question: Question, probabilities: Mapping[str, float], *, mass: float | None = None) -> Answer:
    """Return the answer that the asked format wants, with the likeliest word, or at a temperature a drawn one.

    Args:
        question: What is asked; its format binds the content, as a grammar binds a model.
        probabilities: Of each word; made to sum to 1.
        mass: Probability of all words together; None leaves the default.

    Raises:
        AnswersError: No word has a probability.
    """
    total = sum(probabilities.values())
    if not total > 0 or not all(value >= 0 for value in probabilities.values()):
        raise AnswersError(f"probabilities {dict(probabilities)} are not: give each word one from 0, not all 0")
    shares = {word: value / total for word, value in probabilities.items()}
    allowed = {word: shares[word] for word in shares if word in question.words} or dict.fromkeys(question.words, 1.0)
    word = _pick(question, allowed)
    if isinstance(question.format, Mapping):
        content, start = fill(question.format, word)
    else:
        content = json.dumps({"action": word})
        start = content.index(word, content.index(":"))
    return Answer(content, None if start is None else _choice(start, word, shares, mass))


def spoken(
    content: str,
    question: Question,
    *,
    probabilities: Mapping[str, float] | None = None,
    mass: float | None = None,
) -> Answer:
    """Return a given content as an answer; its choice is the first of the words that stands in it."""
    words = tuple(probabilities or question.words)
    found = re.search(r"\b(" + "|".join(map(re.escape, words)) + r")\b", content)
    if found is None:
        return Answer(content)
    if probabilities is None:
        probabilities = {word: 0.9 if word == found[1] else 0.1 / max(len(words) - 1, 1) for word in words}
    return Answer(content, _choice(found.start(1), found[1], probabilities, mass))


class Script:
    """Answers written down beforehand: some for prompts, the others in order.

    Args:
        entries: Objects with `content`, or `action`, or `probabilities`, or `logprobs`; with `prompt` (a part of
            the prompt) or `prompt_sha256` an answer is given whenever they match, without them once, in turn.
        otherwise: Who answers when the script does not; None refuses.
        loop: Start again after the last answer in order.

    Raises:
        AnswersError: An entry is not one.
    """

    def __init__(
        self, entries: Sequence[Mapping[str, Any]], *, otherwise: Answerer | None = None, loop: bool = False
    ) -> None:
        checked = [_checked(entry, number) for number, entry in enumerate(entries, start=1)]
        self._keyed = [entry for entry in checked if "prompt" in entry or "prompt_sha256" in entry]
        self._ordered = [entry for entry in checked if entry not in self._keyed]
        self._otherwise = otherwise
        self._loop = loop
        self._next = 0

    def __call__(self, question: Question) -> Answer | str | Mapping[str, float]:
        """Return the script's answer.

        Raises:
            AnswersError: There is none.
        """
        for entry in self._keyed:
            if entry.get("prompt_sha256", question.sha256) == question.sha256 and entry.get("prompt", "") in (
                question.prompt
            ):
                return _scripted(entry, question)
        if self._next >= len(self._ordered) and self._loop:
            self._next = 0
        if self._next < len(self._ordered):
            self._next += 1
            return _scripted(self._ordered[self._next - 1], question)
        if self._otherwise is not None:
            return self._otherwise(question)
        raise AnswersError(
            f"the script has no answer for the prompt with sha256 {question.sha256}: add one, or give `otherwise`"
        )


RULES: Mapping[str, Answerer] = {"rule": by_numbers, "hash": by_hash}
"""Answerers by their names on the command line."""


def load_answers(given: str) -> Answerer:
    """Return an answerer: `rule`, `hash`, or a script's file.

    A file is JSON lines of entries, or JSON: a list of entries, or an object with `answers`, `otherwise` (`rule` or
    `hash`) and `loop`.

    Raises:
        AnswersError: The file cannot be read, or holds something else.
    """
    if given in RULES:
        return RULES[given]
    path = Path(given)
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise AnswersError(f"answers {given}: larger than {_FILE_BYTES_MAX} bytes; split the script")
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        content = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise AnswersError(f"answers {given}: {error}; give rule, hash, or a JSON or JSON lines file") from error
    if isinstance(content, list):
        content = {"answers": content}
    if not isinstance(content, Mapping) or not isinstance(content.get("answers"), list):
        raise AnswersError(f"answers {given}: neither a list of answers nor an object with `answers`")
    unknown = sorted(set(content) - {"answers", "otherwise", "loop"})
    otherwise = content.get("otherwise")
    if unknown or otherwise not in {None, *RULES}:
        raise AnswersError(f"answers {given}: use the keys answers, otherwise (rule or hash) and loop")
    return Script(
        content["answers"], otherwise=None if otherwise is None else RULES[otherwise], loop=bool(content.get("loop"))
    )


def _checked(entry: object, number: int) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise AnswersError(f"answer {number} is not an object: {str(entry)[:60]!r}")
    unknown = sorted(set(entry) - _ENTRY_KEYS)
    if unknown:
        raise AnswersError(f"answer {number} has unknown key {unknown[0]!r}: use {', '.join(sorted(_ENTRY_KEYS))}")
    if not {"content", "action", "probabilities", "logprobs"} & set(entry):
        raise AnswersError(f"answer {number} says nothing: give content, action, probabilities or logprobs")
    return entry


def _scripted(entry: Mapping[str, Any], question: Question) -> Answer:
    """Return what an entry says; only a content of its own escapes the asked format."""
    thinking = str(entry.get("thinking", ""))
    if "logprobs" in entry:
        tokens = tuple(_token(each) for each in entry["logprobs"])
        return Answer("".join(token.text for token in tokens), None, thinking, tokens)
    probabilities = entry.get("probabilities")
    if "action" in entry and probabilities is None:
        rest = [word for word in question.words if word != entry["action"]]
        probabilities = {entry["action"]: 0.9} | dict.fromkeys(rest, 0.1 / max(len(rest), 1))
    mass = entry.get("mass")
    if "content" not in entry:
        made = compose(question, probabilities or {}, mass=mass)
        return Answer(made.content, made.choice, thinking)
    said = spoken(str(entry["content"]), question, probabilities=probabilities, mass=mass)
    return Answer(said.content, said.choice, thinking)


def _token(given: Mapping[str, Any]) -> Token:
    try:
        alternatives = tuple((str(each["token"]), float(each["logprob"])) for each in given.get("top_logprobs", ()))
        return Token(str(given["token"]), float(given["logprob"]), alternatives)
    except (KeyError, TypeError, ValueError) as error:
        raise AnswersError(f"token {str(given)[:80]} is not {{token, logprob, top_logprobs}}: {error}") from error


def _choice(start: int, word: str, probabilities: Mapping[str, float], mass: float | None) -> Choice:
    return Choice(start, word, probabilities) if mass is None else Choice(start, word, probabilities, float(mass))


def _pick(question: Question, probabilities: Mapping[str, float]) -> str:
    """Return the likeliest word at temperature 0, else one drawn by the seed option."""
    temperature = question.options.get("temperature", 0.8)
    if not temperature > 0:
        return max(probabilities, key=lambda word: probabilities[word])
    most = max(probabilities.values())
    weights = {word: (value / most) ** (1 / temperature) for word, value in probabilities.items()}
    point = draw(int(question.options.get("seed", question.number)), "sample", question.sha256) * sum(weights.values())
    for word, weight in weights.items():
        point -= weight
        if point < 0:
            return word
    return next(reversed(weights))


def _softmax(logits: Mapping[str, float]) -> dict[str, float]:
    most = max(logits.values())
    weights = {word: math.exp(value - most) for word, value in logits.items()}
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items()}
