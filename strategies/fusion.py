"""Two minds, one target: a log-pool of the network's and the language model's distributions over targets.

The network's Q-values become a distribution by a softmax of temperature tau (in the unit of Q, log equity). The
pool's score of a target is log p_network + w * log p_llm (Genest and Zidek 1986, "Combining probability
distributions", section 3: a logarithmic opinion pool), so the weight w of the language model is what it adds per
unit of evidence. It is zero until it was earned out of sample: at zero the network decides alone and the language
model's vote is only written down.

Where both want opposite directions at a weight above zero, no exposure is added: the position is kept, or left where
the network wants to leave it. A mind that does not answer contributes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from strategies.features import FeatureSpec
from strategies.strategy import Abstention, Observations, Opinion, Reason, Strategy

Answer = Opinion | Abstention

LEAST_PROBABILITY = 1e-6
"""What a target counts as whose probability is smaller: one mind alone can make it unlikely, never impossible."""


class FusionError(ValueError):
    """Weights that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionWeights:
    """How the two distributions are pooled.

    Args:
        llm_weight: Exponent of the language model's distribution, >= 0; 0 until it was earned.
        temperature: Of the softmax over the network's Q-values, in their unit (log equity), > 0.
    """

    llm_weight: float = 0.0
    temperature: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what is no weight or temperature."""
        if not (math.isfinite(self.llm_weight) and self.llm_weight >= 0.0):
            raise FusionError(f"fusion.llm_weight is {self.llm_weight}: give a number from 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise FusionError(f"fusion.temperature is {self.temperature}: give a positive number, in the unit of Q")

    @classmethod
    def of_slot(cls, fusion: Mapping[str, Any] | None) -> FusionWeights:
        """Read a slot's `fusion` entry; none means the defaults.

        Raises:
            FusionError: It holds something else.
        """
        known = {"llm_weight", "temperature"}
        given = dict(fusion or {})
        if unknown := sorted(given.keys() - known):
            raise FusionError(f"the slot's fusion holds {unknown[0]!r}: it knows {', '.join(sorted(known))}")
        try:
            return cls(**{key: float(value) for key, value in given.items()})
        except (TypeError, ValueError) as error:
            raise FusionError(f"the slot's fusion {given} cannot be used: {error}") from error


class SecondMind(Strategy, Protocol):
    """A mind that is slow, and is asked first where the order of the rows says so."""

    async def opinions_in_order(self, observations: Observations, order: Sequence[int]) -> Sequence[Answer]:
        """Return one answer per symbol, in the order of `observations.symbols`; rows are asked in `order`."""
        ...


class Fused:
    """The network and the language model as one Strategy."""

    def __init__(self, network: Strategy, llm: SecondMind, weights: FusionWeights, *, name: str = "fused") -> None:
        """Put two minds together.

        Args:
            network: Answers at once, with a Q-value per target.
            llm: Answers until the deadline.
            weights: Of the pool.
            name: Key of the fused vote in the ledger.
        """
        self.network = network
        self.llm = llm
        self.weights = weights
        self._name = name

    @property
    def name(self) -> str:
        """Key of its vote."""
        return self._name

    @property
    def feature_spec(self) -> FeatureSpec:
        """The network's features: the language model reads the same."""
        return self.network.feature_spec

    async def warm_up(self) -> None:
        """Let the language model be loaded."""
        warm_up = getattr(self.llm, "warm_up", None)
        if warm_up is not None:
            await warm_up()

    async def aclose(self) -> None:
        """Let the language model's connections go."""
        close = getattr(self.llm, "aclose", None)
        if close is not None:
            await close()

    async def opinions(self, observations: Observations) -> Sequence[Answer]:
        """Return one fused answer per symbol; see `Strategy.opinions`.

        The network is asked first. The language model is asked about the symbols that the network could judge,
        those first where it wants a change.
        """
        first = list(await self.network.opinions(observations))
        judged = [row for row, answer in enumerate(first) if isinstance(answer, Opinion)]
        second: list[Answer] = [
            Abstention(symbol, Reason.BAD_FEATURES, "the network could not judge it, so it was not asked")
            for symbol in observations.symbols
        ]
        if judged:
            asked = replace(
                observations,
                symbols=[observations.symbols[row] for row in judged],
                features_SF=observations.features_SF[judged],
                positions_S=observations.positions_S[judged],
            )
            changes = [first[row].target != int(observations.positions_S[row]) for row in judged]  # type: ignore[union-attr]  # judged rows are opinions
            order = sorted(range(len(judged)), key=lambda place: not changes[place])
            for row, answer in zip(judged, await self._ask_llm(asked, order), strict=True):
                second[row] = answer
        return [
            fuse(network, llm, int(position), self.weights, names=(self.network.name, self.llm.name))
            for network, llm, position in zip(first, second, observations.positions_S, strict=True)
        ]

    async def _ask_llm(self, observations: Observations, order: Sequence[int]) -> Sequence[Answer]:
        """Ask the language model; whatever goes wrong with it is an abstention of it alone."""
        symbols = observations.symbols
        try:
            answers = [_sound(answer) for answer in await self.llm.opinions_in_order(observations, order)]
            answered = [answer.symbol for answer in answers]
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 -- a mind that fails has no vote; the network decides
            return [
                Abstention(symbol, Reason.MODEL_ERROR, f"{type(error).__name__}: {error}"[:200]) for symbol in symbols
            ]
        if answered != list(symbols):
            return [Abstention(symbol, Reason.LLM_BAD_ANSWER, "answers for other symbols") for symbol in symbols]
        return answers


def _sound(answer: Answer) -> Answer:
    """Return an answer, or an abstention where it holds a number that is none: the pool must not meet it."""
    if isinstance(answer, Opinion):
        numbers = (*answer.probabilities.values(), *answer.detail.values(), *answer.q.values())
        if answer.target not in {-1, 0, 1} or not all(math.isfinite(number) for number in numbers):
            return Abstention(answer.symbol, Reason.LLM_BAD_ANSWER, "a number of it is none")
    return answer


def fuse(
    network: Answer, llm: Answer, position: int, weights: FusionWeights, *, names: tuple[str, str] = ("policy", "llm")
) -> Answer:
    """Fuse two answers about one symbol.

    Args:
        network: Its opinion has a Q-value for each target that is allowed.
        llm: Its opinion has a probability per target; without one it has no weight.
        position: -1, 0 or 1.
        weights: Of the pool.
        names: Keys of both votes.

    Returns:
        The network's abstention where it abstains. Else an opinion: its `detail` holds the weight that the language
        model had and whether it changed the target (`llm_effect`), its `probabilities` the pooled distribution.
    """
    votes = dict(zip(names, (network, llm), strict=True))
    if isinstance(network, Abstention):
        return replace(network, votes=votes)
    heard = isinstance(llm, Opinion) and bool(llm.probabilities) and bool(network.q)
    weight = weights.llm_weight if heard else 0.0
    pooled = _pool(network, llm, weight, weights.temperature) if network.q else {}
    target, reason = network.target, network.reason
    if weight > 0.0 and isinstance(llm, Opinion):
        target, reason = _best(pooled, network.target), Reason.FUSED
        if _opposite(network.target, llm.target, position):
            target, reason = _without_more_exposure(network.target, position), Reason.DISAGREEMENT
    detail = {**network.detail, "llm_weight": weight, "llm_effect": float(target != network.target)}
    return replace(
        network,
        target=target,
        reason=reason,
        exits=network.exits if target == network.target else None,
        detail=detail,
        probabilities=pooled,
        votes=votes,
    )


def _pool(network: Opinion, llm: Answer, weight: float, temperature: float) -> dict[int, float]:
    """Return the pooled distribution over the network's targets."""
    targets = sorted(network.q)
    scores = np.array([network.q[target] for target in targets]) / temperature
    if weight > 0.0 and isinstance(llm, Opinion):
        said = np.array([max(llm.probabilities.get(target, 0.0), LEAST_PROBABILITY) for target in targets])
        scores = scores + weight * np.log(said / said.sum())
    odds = np.exp(scores - scores.max())
    return {target: float(p) for target, p in zip(targets, odds / odds.sum(), strict=True)}


def _best(pooled: Mapping[int, float], preferred: int) -> int:
    """Return the likeliest target; the network's where it is among the best."""
    most = max(pooled.values())
    return preferred if pooled.get(preferred) == most else max(pooled, key=lambda target: pooled[target])


def _opposite(one: int, other: int, position: int) -> bool:
    """Tell whether two targets lie on opposite sides of the position, or of zero."""
    return (one - position) * (other - position) < 0 or one * other < 0


def _without_more_exposure(target: int, position: int) -> int:
    """Return the position, or flat where the network wants to leave or turn it: a reduction is never blocked."""
    return 0 if target * position <= 0 else position
