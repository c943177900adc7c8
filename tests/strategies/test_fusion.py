"""Fusion: a log-pool that is the network alone at weight zero, and never adds exposure against the other mind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.baselines import make_baseline
from strategies.features import FeatureSpec
from strategies.fusion import Answer, Fused, FusionError, FusionWeights, fuse
from strategies.strategy import Abstention, ExitLevels, Observations, Opinion, Reason

TARGETS = (-1, 0, 1)
PERIOD = timedelta(minutes=5)

probabilities = st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3).map(
    lambda raw: {target: value / sum(raw) for target, value in zip(TARGETS, raw, strict=True)}
)
values = st.lists(st.floats(-0.01, 0.01), min_size=3, max_size=3).map(lambda raw: dict(zip(TARGETS, raw, strict=True)))
positions = st.sampled_from(TARGETS)
weights_above_zero = st.builds(FusionWeights, llm_weight=st.floats(0.01, 20.0), temperature=st.floats(1e-4, 0.1))


def network(q: dict[int, float], position: int = 0) -> Opinion:
    best = max(q, key=lambda target: (q[target], target == position, target == 0))
    return Opinion("A", best, q=q, reason=Reason.POLICY_GREEDY, detail={"spread": 0.1})


def llm(p: dict[int, float]) -> Opinion:
    return Opinion("A", max(p, key=lambda target: p[target]), reason=Reason.LLM_VOTE, probabilities=p)


@given(values, probabilities, positions)
def test_at_weight_zero_the_network_decides_alone_and_the_other_vote_is_written_down(
    q: dict[int, float], p: dict[int, float], position: int
) -> None:
    one, other = network(q, position), llm(p)
    fused = fuse(one, other, position, FusionWeights())
    assert isinstance(fused, Opinion)
    assert (fused.target, fused.reason, fused.exits) == (one.target, one.reason, one.exits)
    assert fused.votes == {"policy": one, "llm": other}
    assert fused.detail["llm_weight"] == fused.detail["llm_effect"] == 0.0


@given(values, positions, weights_above_zero, st.sampled_from([Reason.LLM_TIMEOUT, Reason.LLM_LOW_MASS]))
def test_a_mind_that_abstains_has_no_weight(
    q: dict[int, float], position: int, weights: FusionWeights, why: Reason
) -> None:
    one = network(q, position)
    fused = fuse(one, Abstention("A", why), position, weights)
    assert isinstance(fused, Opinion)
    assert (fused.target, fused.detail["llm_weight"]) == (one.target, 0.0)


@given(values, positions, weights_above_zero)
def test_a_vote_without_probabilities_has_no_weight(q: dict[int, float], position: int, weights: FusionWeights) -> None:
    one = network(q, position)
    fused = fuse(one, Opinion("A", 1, reason=Reason.LLM_VOTE), position, weights)
    assert isinstance(fused, Opinion)
    assert (fused.target, fused.detail["llm_weight"]) == (one.target, 0.0)


def test_the_network_s_abstention_stays_one_and_keeps_both_votes() -> None:
    silent = Abstention("A", Reason.WARMING_UP)
    fused = fuse(silent, llm({-1: 0.1, 0: 0.1, 1: 0.8}), 0, FusionWeights(llm_weight=5.0))
    assert isinstance(fused, Abstention)
    assert fused.reason is Reason.WARMING_UP
    assert fused.votes["llm"].symbol == "A"


@given(values, probabilities, weights_above_zero)
def test_the_pool_is_the_normalised_product_of_both_distributions(
    q: dict[int, float], p: dict[int, float], weights: FusionWeights
) -> None:
    fused = fuse(network(q), llm(p), 0, weights)
    assert isinstance(fused, Opinion)
    odds = {
        target: math.exp((q[target] - max(q.values())) / weights.temperature) * p[target] ** weights.llm_weight
        for target in TARGETS
    }
    total = sum(odds.values())
    if total > 1e-250:  # below, the plain product has no digits left to compare with
        assert fused.probabilities == pytest.approx({t: value / total for t, value in odds.items()}, abs=1e-9)


@given(values, probabilities, positions, weights_above_zero)
def test_no_exposure_is_added_against_the_other_mind_and_no_reduction_is_blocked(
    q: dict[int, float], p: dict[int, float], position: int, weights: FusionWeights
) -> None:
    one, other = network(q, position), llm(p)
    fused = fuse(one, other, position, weights)
    assert isinstance(fused, Opinion)
    opposed = one.target * other.target < 0 or (one.target - position) * (other.target - position) < 0
    if opposed:
        assert fused.reason is Reason.DISAGREEMENT
        assert abs(fused.target) <= abs(position)
        if one.target * position <= 0:  # the network leaves or turns the position
            assert fused.target == 0


def test_a_heavy_vote_changes_the_target_and_the_ledger_s_numbers_say_so() -> None:
    q = {0: 0.0, 1: 0.0002}
    p = {0: 0.95, 1: 0.05}
    one = network(q)
    assert one.target == 1
    fused = fuse(one, llm(p), 0, FusionWeights(llm_weight=1.0))
    assert isinstance(fused, Opinion)
    assert (fused.target, fused.reason) == (0, Reason.FUSED)
    assert (fused.detail["llm_weight"], fused.detail["llm_effect"]) == (1.0, 1.0)


def test_the_network_s_exits_go_with_its_target_and_a_target_that_was_changed_has_none_of_its_own() -> None:
    exits = ExitLevels(stop=0.01, take_profit=None)
    one = replace(network({0: 0.0, 1: 0.0002}), exits=exits)
    other = replace(llm({0: 0.1, 1: 0.9}), exits=ExitLevels(stop=0.5, take_profit=0.5))
    agreed = fuse(one, other, 0, FusionWeights(llm_weight=1.0))
    assert isinstance(agreed, Opinion)
    assert (agreed.target, agreed.exits) == (1, exits)
    changed = fuse(replace(one, target=0, q={0: 0.0, 1: -0.0002}), other, 0, FusionWeights(llm_weight=1.0))
    assert isinstance(changed, Opinion)
    assert (changed.target, changed.exits) == (1, None)


@pytest.mark.parametrize(
    "given_weights",
    [{"llm_weight": -1}, {"llm_weight": "x"}, {"weight": 1}, {"temperature": 0}, {"llm_weight": math.nan}],
)
def test_a_slot_with_weights_that_are_none_is_refused(given_weights: dict[str, object]) -> None:
    with pytest.raises(FusionError):
        FusionWeights.of_slot(given_weights)


class Recorder:
    """A second mind that notes the order in which it was asked."""

    name = "llm"

    def __init__(self, spec: FeatureSpec, failure: Exception | None = None) -> None:
        self.feature_spec = spec
        self.failure = failure
        self.asked: list[str] = []

    async def opinions(self, observations: Observations) -> Sequence[Answer]:
        return await self.opinions_in_order(observations, range(len(observations.symbols)))

    async def opinions_in_order(self, observations: Observations, order: Sequence[int]) -> Sequence[Answer]:
        if self.failure is not None:
            raise self.failure
        self.asked = [observations.symbols[row] for row in order]
        return [Opinion(s, 1, reason=Reason.LLM_VOTE, probabilities={0: 0.1, 1: 0.9}) for s in observations.symbols]


def observed() -> tuple[Observations, FeatureSpec]:
    always = make_baseline("buy_and_hold", {"shorts": False}, PERIOD)
    features = np.zeros((3, len(always.feature_spec.names)))
    features[1] = np.nan
    positions_S = np.array([1, 0, 0], dtype=np.int8)
    at = datetime(2024, 1, 1, tzinfo=UTC)
    return Observations(["HELD", "COLD", "WANTED"], at, features, positions_S), always.feature_spec


def test_the_second_mind_is_asked_first_where_the_network_wants_a_change_and_never_where_it_could_not_judge() -> None:
    observations, spec = observed()
    mind = Recorder(spec)
    fused = Fused(make_baseline("buy_and_hold", {"shorts": False}, PERIOD), mind, FusionWeights())
    answers = asyncio.run(fused.opinions(observations))
    assert mind.asked == ["WANTED", "HELD"]
    assert [answer.symbol for answer in answers] == ["HELD", "COLD", "WANTED"]
    assert isinstance(answers[1], Abstention)


class Nonsense(Recorder):
    """A second mind that says what cannot be pooled."""

    def __init__(self, spec: FeatureSpec, said: object) -> None:
        super().__init__(spec)
        self.said = said

    async def opinions_in_order(self, observations: Observations, order: Sequence[int]) -> Sequence[Answer]:
        del observations, order
        return self.said  # type: ignore[return-value]  # that is the point


@pytest.mark.parametrize(
    "said",
    [
        None,
        [None, None],
        [Opinion("HELD", 1, probabilities={0: math.nan, 1: 1.0}), Opinion("WANTED", 7)],
        [Opinion("HELD", 1, detail={"mass": math.inf}), Opinion("WANTED", 1, probabilities={1: math.nan})],
    ],
)
def test_nonsense_of_the_second_mind_takes_nothing_from_the_first(said: object) -> None:
    observations, spec = observed()
    alone = make_baseline("buy_and_hold", {"shorts": False}, PERIOD)
    answers = asyncio.run(Fused(alone, Nonsense(spec, said), FusionWeights(llm_weight=3.0)).opinions(observations))
    for place in (0, 2):
        fused = answers[place]
        assert isinstance(fused, Opinion)
        assert fused.target == 1
        assert isinstance(fused.votes["llm"], Abstention)


def test_a_second_mind_that_fails_takes_nothing_from_the_first() -> None:
    observations, spec = observed()
    alone = make_baseline("buy_and_hold", {"shorts": False}, PERIOD)
    fused = Fused(alone, Recorder(spec, RuntimeError("out of memory")), FusionWeights(llm_weight=3.0))
    answers = asyncio.run(fused.opinions(observations))
    said = asyncio.run(alone.opinions(observations))
    assert [(type(answer), answer.symbol, answer.reason) for answer in answers] == [
        (type(plain), plain.symbol, plain.reason) for plain in said
    ]
    assert [a.target for a in answers if isinstance(a, Opinion)] == [a.target for a in said if isinstance(a, Opinion)]
    vote = answers[0].votes["llm"]
    assert isinstance(vote, Abstention)
    assert (vote.reason, vote.detail) == (Reason.MODEL_ERROR, "RuntimeError: out of memory")
