"""An answer's content as tokens with log probabilities: the model's own, before any grammar.

The word that the model chose is a token of its own, and its alternatives carry the probabilities of the other
words. A tokenizer may split words: `Split` says how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Choice", "Split", "Token", "tokenise"]

Split = Literal["word", "pieces", "mixed"]
"""A choice's word as one token, as first letter and rest, or as the one with some probability on the other."""

_PIECE = re.compile(r"\s?[^\w\s]+|\s?\w+|\s+")
_SURE = math.log(0.9995)
"""Log probability of a token that follows from what stands before it."""
_OTHERS = (" The", "\n", "{", "I", "<", " buy", "Based", "-", "0", "Yes", "No", "**")
"""Tokens that share what probability the words leave."""
_FLOOR = 1e-9
_MIXED_SHARE = 0.25
"""Part of a word's probability that `mixed` puts on its first letter."""


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, its log probability and its alternatives, likeliest first, itself among them."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where in the content the chosen word stands, and how likely each word was among the words.

    Args:
        start: Index of the word's first character.
        word: The word.
        probabilities: Of every word, summing to 1.
        mass: Probability of all words together; the rest is on other tokens.
    """

    start: int
    word: str
    probabilities: Mapping[str, float]
    mass: float = 0.995


def tokenise(content: str, choice: Choice | None, split: Split = "word") -> tuple[Token, ...]:
    """Return the content's tokens."""
    if choice is None:
        return tuple(map(_sure, _PIECE.findall(content)))
    before, after = content[: choice.start], content[choice.start + len(choice.word) :]
    return (
        *map(_sure, _PIECE.findall(before)),
        *_chosen(choice, split),
        *map(_sure, _PIECE.findall(after)),
    )


def _sure(text: str) -> Token:
    return Token(text, _SURE, ((text, _SURE), *_rest(math.exp(_SURE), {text})))


def _chosen(choice: Choice, split: Split) -> tuple[Token, ...]:
    weights: dict[str, float] = {}
    for word, probability in choice.probabilities.items():
        whole = {"word": 1.0, "pieces": 0.0, "mixed": 1 - _MIXED_SHARE}[split] if len(word) > 1 else 1.0
        for text, share in ((word, whole), (word[:1], 1 - whole)):
            if share:
                weights[text] = weights.get(text, 0.0) + share * choice.mass * probability
    top = [(text, math.log(max(weight, _FLOOR))) for text, weight in weights.items()]
    top += _rest(choice.mass, set(weights))
    alternatives = tuple(sorted(top, key=lambda each: -each[1]))
    first = choice.word if choice.word in weights else choice.word[:1]
    tokens = [Token(first, dict(alternatives)[first], alternatives)]
    if len(first) < len(choice.word):
        tokens.append(_sure(choice.word[len(first) :]))
    return tuple(tokens)


def _rest(taken: float, texts: set[str]) -> list[tuple[str, float]]:
    """Return other tokens with the probability that is left, each half as likely as the one before."""
    left = max(1.0 - taken, 0.0)
    others = [text for text in _OTHERS if text not in texts]
    return [(text, math.log(max(left * 0.5 ** (rank + 1), _FLOOR))) for rank, text in enumerate(others)]
