"""What bars that nobody learned from bear out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_parts import ensemble_of, market, paying, small
from small_markets import table_of, walk

from training.dqn.belief import FACTORS, Paid, believe, pay
from training.market import MarketTable
from training.validation import performance, policy_targets


def pooled() -> MarketTable:
    return table_of(walk("A", 400, seed=1), walk("B", 390, seed=2), holes=(0, 1, 77))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), shorts=st.booleans(), free=st.booleans())
def test_what_values_pay_is_what_the_validation_says_of_the_same_policy(*, seed: int, shorts: bool, free: bool) -> None:
    table, rng = pooled(), np.random.default_rng(seed)
    held = (-1, 0, 1) if shorts else (0, 1)
    n, rows = len(held), table.start_rows
    value_RNN = rng.normal(size=(len(rows), n, n)) if free else np.repeat(rng.normal(size=(len(rows), 1, n)), n, 1)
    cost_NN = np.zeros((1, 1)) if free else -0.7 * np.abs(np.subtract.outer(held, held))
    paid = pay(table, rows, value_RNN if free else value_RNN[:, 0], cost_NN, held)
    at = {table.features_TF[row].tobytes(): place for place, row in enumerate(rows)}

    def greedy(features_BF: np.ndarray[Any, Any], position_B: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        place = [at[one.tobytes()] for one in features_BF]
        old = position_B[0] - held[0]
        return np.array(held)[(value_RNN[place, old] + (cost_NN if free else cost_NN[old])).argmax(axis=1)]

    wanted = performance(table, policy_targets(table, greedy, shorts=shorts))
    assert paid.mean_bps == pytest.approx(wanted.mean_bps, abs=1e-9)
    assert paid.error_bps == pytest.approx(wanted.error_bps, rel=1e-9)
    assert paid.turnover == pytest.approx(wanted.turnover)
    assert sum(paid.target_shares.values()) == pytest.approx(1.0)
    assert sum(share for position, share in paid.target_shares.items() if position) == pytest.approx(wanted.exposure)


def test_equal_values_keep_the_position() -> None:
    table = market()
    rows = table.start_rows
    paid = pay(table, rows, np.ones((len(rows), 3)), np.zeros((3, 3)), (-1, 0, 1))
    assert paid.turnover == 0.0
    assert paid.target_shares == {-1: 0.0, 0: 1.0, 1: 0.0}


def of_factors(*by_factor: np.ndarray[Any, Any]) -> list[list[Paid]]:
    """The last is that of zero, which pays nothing."""
    zero = np.zeros(len(by_factor[0]))
    return [[Paid(log_R, 0.0, {})] for log_R in (*by_factor, zero)]


def test_what_plainly_earns_is_believed_as_it_is() -> None:
    rng = np.random.default_rng(1)
    noise_R = rng.normal(0.0, 0.01, 4_000)
    belief = believe(of_factors(noise_R + 0.002, noise_R + 0.0015, noise_R + 0.001, noise_R + 0.0005))
    assert belief.factor == 1.0
    assert belief.mean_bps == pytest.approx((noise_R + 0.002).mean() * 1e4)
    assert belief.by_factor_bps[0.0] == 0.0


def test_a_smaller_factor_is_taken_where_it_is_plainly_better() -> None:
    noise_R = np.random.default_rng(1).normal(0.0, 0.01, 4_000)
    other_R = np.random.default_rng(2).normal(0.0, 0.001, 4_000)
    belief = believe(of_factors(noise_R + 0.001, noise_R + 0.001, noise_R + other_R + 0.002, noise_R + 0.0005))
    assert belief.factor == FACTORS[2] == 0.5


def test_what_loses_is_not_believed() -> None:
    noise_R = np.random.default_rng(1).normal(0.0, 0.01, 4_000)
    belief = believe(of_factors(*(noise_R - loss for loss in (0.002, 0.0015, 0.001, 0.0005))))
    assert (belief.factor, belief.mean_bps, belief.error_bps) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_costly_trades_on_noise_are_hardly_ever_believed_and_free_ones_seldom() -> None:
    """Of positions drawn at random, one in six earns more than its standard error by luck: the criterion's own rate."""
    costly, free = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        log_R = rng.normal(0.0, 0.01, 2_000)
        held_R = rng.integers(0, 2, 2_000)
        free += believe(of_factors(*[held_R * log_R] * 4)).factor > 0.0
        costly += believe(of_factors(*[held_R * log_R - 0.0005 * np.abs(np.diff(held_R, prepend=0))] * 4)).factor > 0.0
    assert costly <= 3
    assert free <= 0.25 * 300


def skilled(n: int, *, side: float, skill: float, seed: int = 0) -> MarketTable:
    """Feature 0 tells a share of the next bar; the others tell nothing."""
    rng = np.random.default_rng(seed)
    table = table_of(walk(n=n, seed=seed), holes=())
    features_TF = table.features_TF
    day_T = 0.01 * (skill * features_TF[:, 0] + np.sqrt(1.0 - skill**2) * rng.normal(size=n))
    return paying(table, np.zeros(n), day_T - 0.00005, np.full(n, side))


LEARNED = {"hidden": (16,), "updates": 150, "batch_bars": 64, "members": 2, "evaluations": 1, "gamma": 0.9}


def test_planted_skill_is_believed_as_it_was_learned() -> None:
    ensemble = ensemble_of(small(**LEARNED), skilled(3_000, side=0.001, skill=0.5))
    ensemble.run(150)
    belief = ensemble.believed()
    assert belief.factor == 1.0
    assert belief.mean_bps > 4.0 * belief.error_bps > 0.0


@pytest.mark.slow
def test_noise_is_hardly_ever_believed() -> None:
    believed = 0
    for seed in range(20):
        ensemble = ensemble_of(small(**LEARNED), skilled(3_000, side=0.001, skill=0.0, seed=seed), seed=seed)
        ensemble.run(150)
        believed += ensemble.believed().factor > 0.0
    assert believed <= 2


@pytest.mark.parametrize("changes", [{"belief": False}, {"value_heads": "free"}], ids=str)
def test_without_belief_everything_is_taken_as_learned(changes: dict[str, Any]) -> None:
    ensemble = ensemble_of(small(**changes), market())
    ensemble.run(12)
    belief = ensemble.believed()
    assert belief.factor == 1.0
    assert belief.by_factor_bps == {1.0: belief.mean_bps}


def test_evidence_is_of_bars_that_the_member_never_learned_from() -> None:
    table = skilled(1_000, side=0.001, skill=0.5)
    ensemble = ensemble_of(small(**LEARNED), table)
    ensemble.run(150)
    evidence = ensemble.believed()
    other = np.setdiff1d(np.arange(1_000), np.concatenate([one.own for one in ensemble.members]))
    ensemble.table.reward_TPN[other] = 1.0
    assert ensemble.believed() == evidence
    own = ensemble.members[0].own
    ensemble.table.reward_TPN[own] = 0.0
    assert ensemble.believed().mean_bps != evidence.mean_bps
    assert not set(own.tolist()) & set(ensemble.members[0].rows.tolist())
