from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_markets import ALL_COSTS, FEE_ONLY, reward_by_hand, table_of, walk

from strategies.baselines import banded_target
from training.evaluation.books import MULTIPLES, keep_books
from training.evaluation.rules import matched_positions, targeted_positions
from training.evaluation.tracks import band_positions, begins, follow, held_before, spells
from training.validation import follow as follow_one_by_one

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.floats(0.0, 1.0), st.sampled_from([-1, 0]))
@settings(max_examples=60, deadline=None)
def test_following_at_once_is_following_one_by_one(seed: int, stubborn: float, lowest: int) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(walk("AAA", 70), walk("BBB", 50), holes=(0, 1, 20, 21, 40))
    targets = rng.integers(lowest, 2, (3, len(table)))
    stays = rng.random(len(table)) < stubborn
    targets[:, stays] = np.array([[lowest], [0], [1]])
    rows = table.start_rows
    rewards, positions = follow_one_by_one(table, targets)
    held = follow(targets[:, rows], begins(rows))
    np.testing.assert_array_equal(held, positions)
    before = held_before(held, begins(rows))
    np.testing.assert_array_equal(table.reward_TPN[rows, before + 1, held + 1], rewards)


def test_a_position_that_is_kept_for_long_is_followed_through() -> None:
    targets = np.tile(np.array([[-1], [0], [1]]), 5_000)
    targets[:, 3] = 1
    runs = np.zeros(5_000, dtype=bool)
    runs[[0, 4_000]] = True
    held = follow(targets, runs)
    assert (held[:3] == 0).all()
    assert (held[3:4_000] == 1).all()
    assert (held[4_000:] == 0).all()


@given(SEEDS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_band_is_the_shared_rule_with_hysteresis(seed: int, shorts: bool) -> None:  # noqa: FBT001 -- drawn
    rng = np.random.default_rng(seed)
    score = rng.standard_normal(80).round(1)
    runs = rng.random(80) < 0.05
    runs[0] = True
    held, expected = 0, []
    for value, starts in zip(score.tolist(), runs.tolist(), strict=True):
        # beyond the band, not at it: the shared rule enters at the threshold itself
        held = banded_target(value, 0 if starts else held, 0.7 + 1e-9, -0.7, shorts=shorts)
        expected.append(held)
    assert band_positions(score, 0.7, runs, shorts=shorts).tolist() == expected


def test_books_pay_what_the_table_pays_to_the_last_bit() -> None:
    series = {one.symbol: one for one in (walk("AAA", 80, events={30: 2.0, 50: 1.01}), walk("BBB", 60, seed=3))}
    costs = replace(ALL_COSTS, latency_bars=2)
    table, books = table_of(*series.values(), costs=costs), keep_books(series, costs, capital_usd=10_000.0)
    rows = table.start_rows
    rng = np.random.default_rng(0)
    before, held = rng.integers(-1, 2, (2, len(rows)))
    as_units = books.growth(1, rows, before, held)
    as_shares = books.growth(1, rows, before.astype(float), held.astype(float))
    np.testing.assert_array_equal(as_units, table.reward_TPN[rows, before + 1, held + 1])
    np.testing.assert_array_equal(as_shares, as_units)


def test_a_multiple_of_the_costs_is_the_cost_model_with_every_cost_multiplied() -> None:
    bars = walk("AAA", 40)
    books = keep_books({"AAA": bars}, ALL_COSTS, capital_usd=10_000.0)
    for multiple in MULTIPLES:
        paid = books.growth(multiple, np.array([10]), np.array([0]), np.array([1]))
        model = replace(ALL_COSTS, fee_bps=10.0 * multiple, half_spread_bps=2.0 * multiple, impact=0.5 * multiple)
        assert paid[0] == pytest.approx(reward_by_hand(bars, 10, 0, 1, model, 10_000.0), abs=1e-15)


def test_half_a_position_pays_half_the_fee_and_earns_half_the_bar() -> None:
    bars = walk("AAA", 40)
    books = keep_books({"AAA": bars}, FEE_ONLY, capital_usd=10_000.0)
    paid = books.growth(1, np.array([10]), np.array([0.0]), np.array([0.5]))
    intrabar = bars.close[11] / bars.open[11] - 1.0
    assert paid[0] == pytest.approx(np.log((1 - 0.5 * 0.003) * (1 + 0.5 * intrabar)), abs=1e-15)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_matched_chance_has_the_exposure_and_nearly_the_turnover_of_the_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = np.repeat(rng.integers(-1, 2, 60), rng.integers(1, 9, 60)).astype(np.int8)
    runs = np.zeros(len(held), dtype=bool)
    runs[[0, len(held) // 2]] = True
    made = matched_positions(held, runs, rng)
    half = len(held) // 2
    for part in (slice(None, half), slice(half, None)):
        assert np.sort(made[part]).tolist() == np.sort(held[part]).tolist()
        # a seam can join two spells and open another: some trades of one run, two sides each
        assert abs(sides(made[part]) - sides(held[part])) <= 6
    assert len(spells(made, runs)[0]) <= len(spells(held, runs)[0])


def sides(held: np.ndarray) -> int:
    return int(np.abs(np.diff(held.astype(int), prepend=0)).sum())


def test_a_policy_that_never_moves_is_matched_by_itself() -> None:
    held = np.ones(50, dtype=np.int8)
    runs = np.arange(50) == 0
    assert matched_positions(held, runs, np.random.default_rng(0)).tolist() == held.tolist()


def test_constant_risk_holds_less_when_it_moves_more_and_does_not_chase_small_changes() -> None:
    volatility = np.array([0.01, 0.01, 0.0105, 0.02, 0.0205, 0.005, np.nan])
    runs = np.arange(7) == 0
    held = targeted_positions(volatility, np.full(7, 0.01), runs)
    assert held.tolist() == [1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.0]
