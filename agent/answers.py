"""What a strategy said, checked: one usable answer for each symbol, an Abstention where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from strategies.strategy import Abstention, Opinion, Reason

Answer = Opinion | Abstention


def checked(symbols: Sequence[str], answers: Iterable[Answer]) -> dict[str, Answer]:
    """Return one answer per symbol; what a model got wrong is an abstention of that symbol alone, never a vote."""
    given = list(answers)
    if [answer.symbol for answer in given] == list(symbols) == list(dict.fromkeys(symbols)):  # as it should be
        return {answer.symbol: _usable(answer) for answer in given}
    said: dict[str, list[Answer]] = {symbol: [] for symbol in symbols}
    for answer in given:
        if answer.symbol in said:
            said[answer.symbol].append(answer)
    return {symbol: _the_one(symbol, found) for symbol, found in said.items()}


def _the_one(symbol: str, found: Sequence[Answer]) -> Answer:
    if len(found) != 1:
        return Abstention(symbol, Reason.MODEL_ERROR, f"{len(found)} answers where one is due")
    return _usable(found[0])


def _usable(answer: Answer) -> Answer:
    wrong = _fault(answer) if isinstance(answer, Opinion) else None
    return answer if wrong is None else Abstention(answer.symbol, Reason.MODEL_ERROR, wrong)


def _fault(opinion: Opinion) -> str | None:
    """Return what is wrong with an opinion; None for nothing."""
    if opinion.target not in {-1, 0, 1}:
        return f"target {opinion.target!r} is none of -1, 0 and 1"
    for name, values in (("q", opinion.q), ("detail", opinion.detail), ("probability", opinion.probabilities)):
        for key, value in values.items():
            if not math.isfinite(value):
                return f"{name} of {key} is {value}"
    exits = opinion.exits
    for distance in () if exits is None else (exits.stop, exits.take_profit):
        if distance is not None and not (math.isfinite(distance) and distance > 0.0):
            return f"an exit lies at a distance of {distance}"
    for mind, vote in opinion.votes.items():
        if isinstance(vote, Opinion) and (wrong := _fault(vote)) is not None:
            return f"{mind}: {wrong}"
    return None
