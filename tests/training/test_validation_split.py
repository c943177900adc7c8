import math
from dataclasses import replace

import numpy as np
import pytest
from small_markets import ALL_COSTS, FEE_ONLY, table_of, walk

from training.errors import TrainingError
from training.validation import baselines, follow, performance, policy_targets, split_in_time

MEMORY = 30


def targets(table_length: int, value: int) -> np.ndarray:
    return np.full((3, table_length), value, dtype=np.int64)


@pytest.mark.parametrize("latency", [1, 2, 3])
def test_training_ends_before_the_boundary_and_validation_begins_a_memory_later(latency: int) -> None:
    table = table_of(walk(n=400), costs=replace(ALL_COSTS, latency_bars=latency))
    split = split_in_time(table, validation_fraction=0.4, memory_bars=MEMORY)
    last_train = split.train.start_rows.max()
    # the last training step still earns the return of its fill's bar, which closes before the boundary
    assert table.close_ns_T[last_train + latency] < split.boundary_ns
    first_validation = split.validation.start_rows.min()
    assert first_validation - MEMORY >= last_train + 1


@pytest.mark.parametrize("latency", [1, 3])
def test_no_bar_that_pays_a_training_reward_is_in_a_validation_feature(latency: int) -> None:
    table = table_of(walk(n=400), costs=replace(ALL_COSTS, latency_bars=latency))
    split = split_in_time(table, validation_fraction=0.4, memory_bars=MEMORY)
    last_bar_used = split.train.start_rows.max() + latency
    first_bar_seen = split.validation.start_rows.min() - (MEMORY - 1)
    assert last_bar_used < first_bar_seen


def test_every_symbol_is_split_at_the_same_instant() -> None:
    table = table_of(walk("AAA", 400), walk("BBB", 300))
    split = split_in_time(table, validation_fraction=0.4, memory_bars=MEMORY)
    for symbol in (0, 1):
        train = split.train.start_rows[table.symbol_T[split.train.start_rows] == symbol]
        validation = split.validation.start_rows[table.symbol_T[split.validation.start_rows] == symbol]
        assert table.close_ns_T[train].max() < split.boundary_ns <= table.close_ns_T[validation].min()


def test_too_few_bars_on_one_side_are_refused_with_their_number() -> None:
    with pytest.raises(TrainingError, match="left for validation"):
        split_in_time(table_of(walk(n=200)), validation_fraction=0.2, memory_bars=MEMORY)


def test_following_a_rule_earns_what_the_table_pays() -> None:
    table = table_of(walk(n=100), costs=FEE_ONLY)
    rewards, positions = follow(table, targets(len(table), 1))
    rows = table.start_rows
    assert positions.tolist() == [1] * len(rows)
    assert rewards[0] == table.reward_TPN[rows[0], 1, 2]
    np.testing.assert_array_equal(rewards[1:], table.reward_TPN[rows[1:], 2, 2])


def test_a_rule_begins_flat_in_every_run_of_rows() -> None:
    table = table_of(walk("AAA", 40), walk("BBB", 40), holes=(0, 1, 20))
    one = performance(table, targets(len(table), 1))
    assert math.isclose(one.turnover, 4 / len(table.start_rows))


def test_the_mean_is_the_sum_of_log_returns_over_bars() -> None:
    table = table_of(walk(n=300))
    rewards, _ = follow(table, targets(len(table), 1))
    assert math.isclose(performance(table, targets(len(table), 1)).mean_bps, rewards.mean() * 1e4)


def test_a_symbol_that_is_a_copy_of_another_adds_no_evidence() -> None:
    bars = walk(n=600)
    alone, doubled = table_of(bars), table_of(bars, replace(bars, symbol="COPY"))
    one, two = (performance(table, targets(len(table), 1)) for table in (alone, doubled))
    assert math.isclose(two.mean_bps, one.mean_bps)
    assert math.isclose(two.error_bps, one.error_bps, rel_tol=0.05)


def test_baselines_are_flat_long_and_random() -> None:
    found = baselines(table_of(walk(n=300)), shorts=True, seed=0)
    assert (found["flat"].mean_bps, found["flat"].exposure) == (0.0, 0.0)
    assert found["buy_and_hold"].exposure == 1.0
    assert 0.6 < found["random"].exposure < 0.72
    assert found["random"].mean_bps < found["flat"].mean_bps


def test_a_policy_is_asked_in_every_position_that_is_allowed() -> None:
    table = table_of(walk(n=60))
    asked: list[int] = []

    def policy(features: np.ndarray, positions: np.ndarray) -> np.ndarray:
        asked.append(int(positions[0]))
        assert len(features) == len(positions) == len(table.start_rows)
        return positions

    policy_targets(table, policy, shorts=False)
    policy_targets(table, policy, shorts=True)
    assert asked == [0, 1, -1, 0, 1]
