import math

import numpy as np
import pytest

from training.evaluation.skill import (
    deflated_sharpe,
    luckiest_sharpe,
    probabilistic_sharpe,
    shifted_gains,
    timing_p_value,
)


def sticky(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.integers(-1, 2, count), rng.integers(1, 20, count))[:count]


def test_shifts_are_what_a_loop_would_add_up() -> None:
    rng = np.random.default_rng(0)
    held = [rng.integers(-1, 2, 31) for _ in range(3)]
    gain = {-1: rng.standard_normal(31), 1: rng.standard_normal(31)}
    by_hand = [
        np.mean([sum(gain[int(p)][(t + s) % 31] for t, p in enumerate(one) if p) for one in held]) for s in range(31)
    ]
    np.testing.assert_allclose(shifted_gains(held, gain), by_hand, atol=1e-12)


def test_without_skill_the_p_value_is_uniform() -> None:
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(400):
        move = 0.001 + 0.01 * rng.standard_normal(300)  # drift earns nothing
        p_values.append(timing_p_value([shifted_gains([sticky(300, rng)], {-1: -move, 1: move})]))
    distance = np.abs(np.sort(p_values) - (np.arange(400) + 0.5) / 400).max()
    assert distance < 1.63 / math.sqrt(400)  # Kolmogorov and Smirnov, 1 %


def test_a_little_knowledge_of_the_next_bar_is_found() -> None:
    rng = np.random.default_rng(2)
    move = rng.standard_normal((2, 2_000))
    by_symbol = []
    for one in move:
        held = np.sign(0.1 * one + rng.standard_normal(2_000)).astype(int)
        by_symbol.append(shifted_gains([held], {-1: -one, 1: one}))
    assert timing_p_value(by_symbol) < 0.01


@pytest.mark.parametrize("position", [0, 1])
def test_who_never_moves_has_no_timing(position: int) -> None:
    move = np.random.default_rng(3).standard_normal(200)
    assert timing_p_value([shifted_gains([np.full(200, position)], {-1: -move, 1: move})]) == 1.0


@pytest.mark.parametrize(("trials", "published"), [(100, 0.9004), (46, 0.9505)])
def test_the_deflated_sharpe_ratio_is_the_published_one(trials: int, published: float) -> None:
    # Bailey & López de Prado 2014, "A Numerical Example": an annual ratio of 2.5 over five years of 250 days, skewness
    # -3, kurtosis 10, variance of the trials' annual ratios 1/2
    daily = 1.0 / math.sqrt(250.0)
    luckiest = luckiest_sharpe(trials, math.sqrt(0.5) * daily)
    if trials == 100:
        assert luckiest == pytest.approx(0.1132, abs=5e-5)
    found = probabilistic_sharpe(2.5 * daily, luckiest, 1_250, -3.0, 10.0)
    assert found == pytest.approx(published, abs=2e-4)


def test_one_trial_is_not_deflated_and_more_trials_are_more() -> None:
    value = 0.05 + np.random.default_rng(4).standard_normal(2_000)
    once, often = (deflated_sharpe(value, trials, 0.02) for trials in (1, 50))
    assert once is not None
    assert often is not None
    assert once > often
    assert luckiest_sharpe(1, 1.0) == 0.0


def test_equity_that_does_not_move_has_no_sharpe_ratio() -> None:
    assert deflated_sharpe(np.zeros(100), 3, None) is None


def test_the_best_of_many_trials_without_skill_is_as_lucky_as_expected() -> None:
    best = np.random.default_rng(5).standard_normal((2_000, 50)).max(axis=1).mean()
    assert luckiest_sharpe(50, 1.0) == pytest.approx(best, rel=0.03)
