import numpy as np
import pytest

from training.evaluation.bootstrap import block_length, intervals, resampled_means


def ar1(rho: float, count: int, rng: np.random.Generator) -> np.ndarray:
    value = np.zeros(count)
    for place, kick in enumerate(rng.standard_normal(count)[1:], start=1):
        value[place] = rho * value[place - 1] + kick
    return value


@pytest.mark.parametrize(
    ("rho", "count", "seed", "other"),
    [(0.8, 2_000, 2, 23.084), (-0.4, 3_000, 4, 14.937)],
)
def test_the_block_length_is_that_of_another_implementation(rho: float, count: int, seed: int, other: float) -> None:
    # `other`: optimal_block_length of arch 8.0.0 on the same numbers
    assert block_length(ar1(rho, count, np.random.default_rng(seed))) == pytest.approx(other, rel=0.01)


def test_the_block_length_of_a_long_autoregression_is_the_one_in_theory() -> None:
    count, rho = 100_000, 0.5
    in_theory = (2.0 * rho / (1.0 - rho**2)) ** (2.0 / 3.0) * count ** (1.0 / 3.0)
    assert block_length(ar1(rho, count, np.random.default_rng(5))) == pytest.approx(in_theory, rel=0.15)


def test_a_series_that_does_not_move_needs_no_blocks() -> None:
    assert block_length(np.zeros(500)) == 1.0


def test_the_spread_of_resampled_means_is_the_one_in_theory() -> None:
    # Politis & Romano 1994, lemma 1: weights of the circle's autocovariances
    count, block = 200, 8.0
    value = ar1(0.6, count, np.random.default_rng(1))
    about = value - value.mean()
    circular = np.array([about @ np.roll(about, -lag) / count for lag in range(count)])
    lag = np.arange(1, count)
    in_theory = (circular[0] + 2.0 * ((1 - lag / count) * (1 - 1 / block) ** lag * circular[1:]).sum()) / count
    means = resampled_means(value[None], block, 6_000, np.random.default_rng(2))
    assert means.mean() == pytest.approx(value.mean(), abs=4 * np.sqrt(in_theory / 6_000))
    assert means.var() == pytest.approx(in_theory, rel=0.08)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for seed in range(200):
        (found,), _ = intervals(ar1(0.3, 400, rng)[None], resamples=200, confidence=0.9, seed=seed)
        covered.append(found.contains_zero)
    assert 0.82 <= np.mean(covered) <= 0.96


def test_series_are_drawn_together_so_that_a_difference_keeps_what_they_share() -> None:
    rng = np.random.default_rng(4)
    market = rng.standard_normal(1_000)
    pair = np.stack([market + 0.01, market])
    means = resampled_means(pair, 10.0, 100, rng)
    np.testing.assert_allclose(means[0] - means[1], 0.01, atol=1e-12)


def test_the_same_seed_gives_the_same_interval() -> None:
    value = ar1(0.3, 300, np.random.default_rng(0))[None]
    first, again, other = (intervals(value, resamples=100, confidence=0.95, seed=s)[0] for s in (1, 1, 2))
    assert first == again
    assert first != other
