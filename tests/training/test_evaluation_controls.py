from dataclasses import replace

import numpy as np
import pytest
from judged_markets import (
    QUICK,
    column_x,
    configuration_of,
    ground_of,
    market_of,
    move_after,
    told,
    with_the_column,
)
from small_markets import FEE_ONLY, NO_COSTS, walk

from brokers.series import BarSeries
from training.evaluation.controls import one_bar_lag, shuffled, shuffled_returns, truncated_features
from training.evaluation.folds import walk_forward
from training.evaluation.ground import FeaturesOf, Ground
from training.evaluation.play import Played, play
from training.market import overnight_returns


def pair(worth: float = 0.0, ahead: int = 1, n: int = 1_500) -> dict[str, BarSeries]:
    return {name: told(name, n=n, seed=seed, worth=worth, ahead=ahead) for seed, name in enumerate(("AAA", "BBB"))}


def played_on(ground: Ground) -> Played:
    folds = walk_forward(ground.table, QUICK, memory_bars=ground.memory_bars)
    return play(ground, folds, with_the_column, configuration_of(NO_COSTS).training, QUICK, seeds=(1,))


def peeks(bars: BarSeries) -> np.ndarray:
    return move_after(bars, 1)


def peeks_two_bars_ahead(bars: BarSeries) -> np.ndarray:
    return move_after(bars, 2)


def knows_the_mean_of_all(bars: BarSeries) -> np.ndarray:
    features = column_x(bars)
    return features - np.nanmean(features)


@pytest.mark.parametrize("worth", [0.0, 0.3])
def test_honest_features_pass_every_control_with_skill_and_without(worth: float) -> None:
    ground = ground_of(pair(worth), NO_COSTS)
    played = played_on(ground)
    configuration = configuration_of(NO_COSTS)
    assert truncated_features(ground, QUICK, seed=1).passed
    assert one_bar_lag(ground, played, QUICK, seed=1).passed
    assert shuffled_returns(ground, configuration, with_the_column, QUICK, seed=1).passed


def test_a_feature_that_peeks_at_the_next_bar_gains_on_shuffled_bars() -> None:
    ground = ground_of(pair(), NO_COSTS, peeks)
    control = shuffled_returns(ground, configuration_of(NO_COSTS), with_the_column, QUICK, seed=1)
    assert not control.passed
    assert control.number > 10.0


@pytest.mark.parametrize("features_of", [peeks, peeks_two_bars_ahead, knows_the_mean_of_all])
def test_a_feature_that_knows_later_bars_is_not_the_same_without_them(features_of: FeaturesOf) -> None:
    control = truncated_features(ground_of(pair(), NO_COSTS, features_of), QUICK, seed=1)
    assert not control.passed
    assert control.number >= 1
    assert "first: AAA, cut at bar" in control.says


def test_features_that_are_a_bar_too_early_serve_better_a_bar_late() -> None:
    ground = ground_of(pair(), NO_COSTS, peeks_two_bars_ahead)
    # on bars without any structure the learner finds no sign in them: it is told to go with them
    folds = walk_forward(ground.table, QUICK, memory_bars=ground.memory_bars)

    def believing(*_: object) -> object:
        return lambda features, positions: (features[:, 0] > 0).astype(np.int64) * np.ones_like(positions)

    played = play(ground, folds, believing, configuration_of(NO_COSTS).training, QUICK, seeds=(1,))  # type: ignore[arg-type]
    control = one_bar_lag(ground, played, QUICK, seed=1)
    assert not control.passed
    assert control.number > 10.0


def test_a_policy_that_is_merely_wrong_rings_no_bell_when_it_is_late() -> None:
    ground = ground_of(pair(worth=0.3), FEE_ONLY)
    folds = walk_forward(ground.table, QUICK, memory_bars=ground.memory_bars)

    def contrary(*_: object) -> object:
        return lambda features, positions: (features[:, 0] < 0).astype(np.int64) * np.ones_like(positions)

    played = play(ground, folds, contrary, configuration_of(FEE_ONLY).training, QUICK, seeds=(1,))  # type: ignore[arg-type]
    control = one_bar_lag(ground, played, QUICK, seed=1)
    assert control.number > 0.0
    assert control.passed


def test_a_control_rings_no_more_often_than_it_says() -> None:
    ground = ground_of(pair(n=600), NO_COSTS)
    loud = QUICK.model_copy(update={"alarm": 0.2, "folds": 1})
    configuration = configuration_of(NO_COSTS)
    rings = [not shuffled_returns(ground, configuration, with_the_column, loud, seed=seed).passed for seed in range(40)]
    assert 1 <= sum(rings) <= 16  # of 40 at 0.2


@pytest.mark.parametrize("block_bars", [1, 7])
def test_shuffled_bars_are_the_same_moves_in_another_order(block_bars: int) -> None:
    bars = walk("AAA", 200, events={50: 2.0, 90: 1.02})
    mixed = shuffled({"AAA": bars}, block_bars, seed=1)["AAA"]
    for moves in (lambda one: one.close / one.open, lambda one: 1.0 + overnight_returns(one)[1:]):
        np.testing.assert_allclose(np.sort(moves(mixed)), np.sort(moves(bars)), rtol=1e-9)
    assert mixed.start_ns.tolist() == bars.start_ns.tolist()
    assert np.abs(np.corrcoef(mixed.close / mixed.open, bars.close / bars.open)[0, 1]) < 0.3


def test_symbols_on_the_same_bars_are_shuffled_together() -> None:
    bars = walk("AAA", 200)
    mixed = shuffled(market_of(bars, replace(bars, symbol="BBB")).series, 1, seed=1)
    np.testing.assert_array_equal(mixed["AAA"].close, mixed["BBB"].close)
