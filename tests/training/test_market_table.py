import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_markets import ALL_COSTS, FEE_ONLY, NO_COSTS, reward_by_hand, table_of, walk

from brokers.costs import CostModel, ReferenceBar
from training.errors import TrainingError
from training.market import RUIN_FRACTION, UNUSABLE, build_table, reward_table, side_fractions

SPLIT_AND_DIVIDEND = {20: 2.0, 40: 1.01}


@pytest.mark.parametrize("old", [-1, 0, 1])
@pytest.mark.parametrize("new", [-1, 0, 1])
def test_the_reward_of_every_row_is_the_one_computed_by_hand(old: int, new: int) -> None:
    bars = walk(events=SPLIT_AND_DIVIDEND)
    rewards = reward_table(bars, ALL_COSTS, capital_usd=10_000.0)
    for t in range(len(bars) - 1):
        expected = reward_by_hand(bars, t, old, new, ALL_COSTS, 10_000.0)
        assert math.isclose(rewards[t, old + 1, new + 1], expected, rel_tol=1e-12, abs_tol=1e-15)


def test_holding_long_earns_the_market_move_even_through_a_split() -> None:
    bars = walk(events={20: 4.0})
    rewards = reward_table(bars, ALL_COSTS, capital_usd=10_000.0)
    adjusted = bars.close * bars.adj_factor
    np.testing.assert_allclose(rewards[:-1, 2, 2], np.diff(np.log(adjusted)), atol=1e-12)


def test_holding_long_through_a_dividend_earns_the_cash() -> None:
    bars = walk(events={30: 1.02})
    rewards = reward_table(bars, NO_COSTS, capital_usd=10_000.0)
    cash = bars.close[29] * (1 - 1 / 1.02)
    expected = math.log((bars.open[30] + cash) / bars.close[29]) + math.log(bars.close[30] / bars.open[30])
    assert math.isclose(rewards[29, 2, 2], expected, rel_tol=1e-12)


def test_staying_flat_earns_exactly_nothing() -> None:
    rewards = reward_table(walk(events=SPLIT_AND_DIVIDEND), ALL_COSTS, capital_usd=10_000.0)
    assert (rewards[:-1, 1, 1] == 0.0).all()


def test_each_side_pays_the_fee_once() -> None:
    bars = walk()
    free = reward_table(bars, NO_COSTS, capital_usd=10_000.0)
    paid = reward_table(bars, FEE_ONLY, capital_usd=10_000.0)
    one_side = math.log(1 - 0.003)
    for old, new in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        np.testing.assert_allclose((paid - free)[:-1, old + 1, new + 1], one_side, rtol=1e-9)
    np.testing.assert_allclose((paid - free)[:-1, 0, 2], math.log(1 - 0.006), rtol=1e-9)
    assert (paid == free)[:-1, [0, 1, 2], [0, 1, 2]].all()


def test_a_larger_capital_pays_a_larger_impact() -> None:
    bars = walk()
    small, large = (reward_table(bars, ALL_COSTS, capital_usd=c) for c in (1_000.0, 100_000.0))
    assert (small[:-1, 1, 2] > large[:-1, 1, 2]).all()


@pytest.mark.parametrize("latency", [2, 3])
def test_latency_delays_the_fill_by_whole_bars(latency: int) -> None:
    bars = walk(events=SPLIT_AND_DIVIDEND)
    one = reward_table(bars, FEE_ONLY, capital_usd=10_000.0)
    late = reward_table(bars, replace(FEE_ONLY, latency_bars=latency), capital_usd=10_000.0)
    np.testing.assert_array_equal(late[:-latency], one[latency - 1 : -1])
    assert np.isnan(late[-latency:]).all()


def test_a_price_that_wipes_the_account_out_pays_the_ruin_reward() -> None:
    bars = walk(n=10)
    bars.close[5] = bars.open[5] * 2.5
    rewards = reward_table(bars, NO_COSTS, capital_usd=10_000.0)
    assert rewards[4, 0, 0] == math.log(RUIN_FRACTION)


def test_two_losses_beyond_the_whole_equity_are_ruin_not_a_gain() -> None:
    bars = walk(n=10)
    bars.open[5] = bars.close[4] * 2.5
    bars.close[5] = bars.open[5] * 2.5
    bars.high[5] = bars.close[5]
    rewards = reward_table(bars, NO_COSTS, capital_usd=10_000.0)
    assert rewards[4, 0, 0] == math.log(RUIN_FRACTION)


def test_a_later_fill_pays_the_impact_of_the_bar_before_it_in_its_own_units() -> None:
    bars = walk(events={20: 4.0})
    bars.volume[20:] *= 4.0
    one = reward_table(bars, ALL_COSTS, capital_usd=10_000.0)
    late = reward_table(bars, replace(ALL_COSTS, latency_bars=2), capital_usd=10_000.0)
    np.testing.assert_array_equal(late[:-2], one[1:-1])


@given(
    qty=st.floats(0, 1e7),
    high=st.floats(1.0, 3.0),
    volume=st.floats(0, 1e6),
    fee=st.floats(0, 100),
    impact=st.floats(0, 5),
)
def test_the_vector_of_costs_is_the_cost_model(
    qty: float, high: float, volume: float, fee: float, impact: float
) -> None:
    costs = CostModel(fee_bps=fee, impact=impact)
    reference = ReferenceBar.of(100.0 * high, 100.0, volume)
    vector = side_fractions(costs, np.array([qty]), np.array([reference.sigma]), np.array([volume]))
    assert math.isclose(vector[0], costs.side_fraction(qty, reference), rel_tol=1e-12, abs_tol=1e-15)


def test_runs_end_at_unusable_rows_and_at_the_end_of_each_series() -> None:
    table = table_of(walk("AAA", 10), walk("BBB", 8), holes=(0, 1, 5))
    assert table.run_end_T.tolist() == (
        [UNUSABLE] * 2 + [4] * 3 + [UNUSABLE] + [9] * 4 + [UNUSABLE] * 2 + [14] * 3 + [UNUSABLE] + [17] * 2
    )


def test_no_step_starts_where_the_fill_would_be_past_the_last_bar() -> None:
    table = table_of(walk("AAA", 10), walk("BBB", 10), costs=replace(FEE_ONLY, latency_bars=3))
    assert table.start_rows.tolist() == [2, 3, 4, 5, 6, 12, 13, 14, 15, 16]
    assert np.isfinite(table.reward_TPN[table.start_rows]).all()


def test_rows_outside_a_window_become_unusable() -> None:
    table = table_of(walk("AAA", 20))
    window = table.where(np.arange(20) >= 12)
    assert window.start_rows.tolist() == list(range(12, 19))
    assert window.run_end_T[11] == UNUSABLE


def test_features_that_do_not_fit_their_bars_are_refused() -> None:
    bars = walk(n=10)
    with pytest.raises(TrainingError, match="10 bars but 9 rows"):
        build_table({"AAA": bars}, {"AAA": np.zeros((9, 2))}, NO_COSTS, capital_usd=1.0)
