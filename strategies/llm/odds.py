"""Probabilities of the actions at the token that decides, from a server's log probabilities.

The numbers are the raw model's, before any grammar: what the three actions have together (their mass) tells how
well the model knows its task, and only their shares say which action it prefers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from strategies.answers import ACTION_ORDER
from strategies.strategy import Action

PROBABILITY_MIN: Final = 1e-6
"""Least probability of an action: one outside of the server's list is unlikely, not impossible."""

_BEFORE_ACTION = re.compile(r'\{\s*"action"\s*:\s*"')
_ROUNDING = 1e-3


class TokensError(ValueError):
    """Log probabilities that are none."""


class Token(NamedTuple):
    """One token of an answer: its text, its log probability, and those of the likeliest at its place."""

    text: str
    logprob: float
    alternatives: Sequence[tuple[str, float]]


class ActionOdds(NamedTuple):
    """Shares of SELL, HOLD and BUY, summing to 1 (None where none has any), and their mass before that."""

    probabilities: tuple[float, float, float] | None
    mass: float


def action_odds(tokens: Sequence[Token], action: Action) -> ActionOdds | None:
    """Return the odds at the token with which the answer's action begins.

    A token counts for the one action that it begins, or that it spells with its closing quote. Where the place
    cannot be found, there are no odds.

    Args:
        tokens: Of the answer, in order.
        action: What the answer says.

    Raises:
        TokensError: A log probability that is not a number or above zero, or a mass above 1.
    """
    text = "".join(token.text for token in tokens)
    found = _BEFORE_ACTION.search(text)
    if found is None or not text.startswith(f'{action.name}"', found.end()):
        return None
    end = 0
    for token in tokens:
        begin, end = end, end + len(token.text)
        if end > found.end():
            return _odds(token, token.text[: found.end() - begin])
    return None


def _odds(token: Token, before: str) -> ActionOdds:
    """Sum a token's alternatives by action; `before` is what of the token comes before the action."""
    masses = dict.fromkeys(ACTION_ORDER, 0.0)
    alternatives = list(token.alternatives)
    if all(text != token.text for text, _ in alternatives):
        alternatives.append((token.text, token.logprob))
    for text, logprob in alternatives:
        if math.isnan(logprob) or logprob > _ROUNDING:
            raise TokensError(f"the log probability of {text[:20]!r} is {logprob}")
        action = _action_begun(text[len(before) :]) if text.startswith(before) else None
        if action is not None:
            masses[action] += math.exp(logprob)
    mass = math.fsum(masses.values())
    if mass > 1.0 + _ROUNDING:
        raise TokensError(f"the actions have a probability of {mass} together")
    if mass <= 0.0:
        return ActionOdds(None, 0.0)
    sell, hold, buy = (masses[one] / mass for one in ACTION_ORDER)
    return ActionOdds((sell, hold, buy), min(mass, 1.0))


def _action_begun(text: str) -> Action | None:
    """Return the one action that a text begins, or spells up to its closing quote."""
    begun = [one for one in ACTION_ORDER if text and (one.name.startswith(text) or text.startswith(f'{one.name}"'))]
    return begun[0] if len(begun) == 1 else None


def calibrated(probabilities: tuple[float, float, float], temperature: float) -> tuple[float, float, float]:
    """Return probabilities p^(1/T), summing to 1, none below `PROBABILITY_MIN` before that (Guo et al. 2017)."""
    logs = [math.log(max(one, PROBABILITY_MIN)) / temperature for one in probabilities]
    top = max(logs)
    weights = [math.exp(one - top) for one in logs]
    total = math.fsum(weights)
    sell, hold, buy = (weight / total for weight in weights)
    return sell, hold, buy


def target_probabilities(
    probabilities: tuple[float, float, float], *, position: int, targets: Sequence[int]
) -> dict[int, float]:
    """Return the probability of each target: BUY is long, SELL the lowest target allowed, HOLD the position.

    A position outside of `targets` (a short one where none may be opened) is a target of HOLD alone.
    """
    sell, hold, buy = probabilities
    result = dict.fromkeys(sorted({*targets, position}), 0.0)
    result[min(targets)] += sell
    result[position] += hold
    result[max(targets)] += buy
    return result


def target_of(action: Action, *, position: int, targets: Sequence[int]) -> int:
    """Return the target that an action word means, seen from the position."""
    return {Action.BUY: max(targets), Action.SELL: min(targets), Action.HOLD: position}[action]


def likeliest(probabilities: Mapping[int, float], *, position: int, tie: float) -> int:
    """Return the likeliest target; the position where the best two are within `tie`."""
    best, second = sorted(probabilities, key=lambda target: -probabilities[target])[:2]
    return position if probabilities[best] - probabilities[second] <= tie else best
