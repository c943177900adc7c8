from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_markets import MEMORY, QUICK
from small_markets import ALL_COSTS, table_of, walk

from training.errors import TrainingError
from training.evaluation.folds import cut, walk_forward
from training.market import MarketTable


def two_symbols(latency: int = 1) -> MarketTable:
    costs = replace(ALL_COSTS, latency_bars=latency)
    return table_of(walk("AAA", 900), walk("BBB", 800, seed=1), costs=costs)


@pytest.mark.parametrize("latency", [1, 3])
@pytest.mark.parametrize("embargo", [0, 7])
def test_exactly_the_embargo_lies_between_the_last_bar_that_pays_and_the_first_that_is_seen(
    latency: int, embargo: int
) -> None:
    table = two_symbols(latency)
    for fold in walk_forward(table, replace_settings(embargo_bars=embargo), memory_bars=MEMORY):
        for symbol in (0, 1):
            train = fold.train_rows[table.symbol_T[fold.train_rows] == symbol]
            test = fold.test_rows[table.symbol_T[fold.test_rows] == symbol]
            last_bar_that_pays = train.max() + latency
            first_bar_seen = test.min() - (MEMORY - 1)
            assert first_bar_seen - last_bar_that_pays - 1 == embargo


def replace_settings(**changes: object) -> type(QUICK):
    return QUICK.model_copy(update=changes)


def test_test_windows_follow_one_another_without_holes_and_end_with_the_bars() -> None:
    table = two_symbols()
    folds = walk_forward(table, replace_settings(folds=3), memory_bars=MEMORY)
    tested = np.sort(np.concatenate([fold.test_rows for fold in folds]))
    starts = table.start_rows
    assert tested.tolist() == starts[table.close_ns_T[starts] >= folds[0].test_begin_ns].tolist()
    assert [fold.test_end_ns for fold in folds[:-1]] == [fold.test_begin_ns for fold in folds[1:]]


def test_an_expanding_window_keeps_its_beginning_and_a_rolling_one_its_length() -> None:
    table = two_symbols()
    expanding = walk_forward(table, replace_settings(folds=3), memory_bars=MEMORY)
    rolling = walk_forward(table, replace_settings(folds=3, window="rolling"), memory_bars=MEMORY)
    assert len({fold.train_begin_ns for fold in expanding}) == 1
    lengths = [fold.test_begin_ns - fold.train_begin_ns for fold in rolling]
    assert len(set(lengths)) == 1
    assert len({len(fold.train_rows) for fold in rolling}) == 1


def test_a_window_with_too_few_bars_is_refused_with_its_number() -> None:
    with pytest.raises(TrainingError, match="fold 1 has 0 bars for training"):
        walk_forward(two_symbols(), replace_settings(embargo_bars=5_000), memory_bars=MEMORY)


def test_a_learner_is_given_no_row_and_no_reward_beyond_its_steps() -> None:
    table = two_symbols()
    fold = walk_forward(table, QUICK, memory_bars=MEMORY)[0]
    given_ = cut(table, fold.train_rows)
    assert given_.close_ns_T.max() < fold.test_begin_ns
    assert len(given_) == len(fold.train_rows) + 2  # one row more a symbol: where its last step ends
    assert np.isnan(given_.reward_TPN[np.setdiff1d(np.arange(len(given_)), given_.start_rows)]).all()


@given(st.lists(st.integers(0, 95), min_size=1, max_size=60, unique=True))
def test_a_cut_table_has_the_steps_asked_for_as_they_were(wanted: list[int]) -> None:
    table = table_of(walk("AAA", 60), walk("BBB", 60), holes=(0, 1, 20))
    starts = np.sort(table.start_rows[np.array(wanted) % len(table.start_rows)])
    starts = np.unique(starts)
    small = cut(table, starts)
    own = small.start_rows
    np.testing.assert_array_equal(small.close_ns_T[own], table.close_ns_T[starts])
    np.testing.assert_array_equal(small.symbol_T[own], table.symbol_T[starts])
    np.testing.assert_array_equal(small.reward_TPN[own], table.reward_TPN[starts])
    np.testing.assert_array_equal(small.features_TF[own], table.features_TF[starts])
    np.testing.assert_array_equal(small.features_TF[own + 1], table.features_TF[starts + 1])
