"""What every bracket would have earned, against the exchange's rules in scalars."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_markets import ALL_COSTS, FEE_ONLY, NO_COSTS, walk

from brokers.costs import CostModel, ReferenceBar, is_split, limit_fill_price, stop_trigger_price
from brokers.domain import Side
from brokers.series import BarSeries
from training.errors import TrainingError
from training.exits.bench import bench_settings, episode_labels
from training.exits.labels import Labels, label
from training.exits.rows import prices_of
from training.markets.exits import Bracket, ExitTrend

CAPITAL = 10_000.0
LEVELS = (0.5, 1.0, 3.0)
GRID = (None, *LEVELS)
SIGMA = 0.01
HORIZON = 8
BRACKETS = [(stop, take) for stop in GRID for take in GRID]


def labels_of(bars: BarSeries, costs: CostModel = ALL_COSTS, horizon: int = HORIZON) -> Labels:
    row_R = np.arange(1, len(bars) - horizon - costs.latency_bars + 1)
    entry_R = row_R + costs.latency_bars
    prices = prices_of(bars, costs, capital_usd=CAPITAL)
    return label(prices, row_R, entry_R, entry_R + horizon - 1, np.full(len(row_R), SIGMA), LEVELS)


def earned_by_hand(bars: BarSeries, row: int, sign: int, stop: float | None, take: float | None) -> float:
    """One trade through the scalar fill functions, prices and exits in the units of each bar."""
    costs, entry = ALL_COSTS, row + ALL_COSTS.latency_bars
    leaves = Side.SELL if sign > 0 else Side.BUY
    before = entry - 1
    reference = ReferenceBar.of(bars.high[before], bars.low[before], bars.volume[before])
    side = costs.side_fraction(CAPITAL / bars.close[before], reference)
    units, cash, left, last = 1.0, 0.0, None, side
    anchor = bars.close[row]
    paid = None
    for bar in range(row + 1, entry + HORIZON):
        ratio = bars.adj_factor[bar] / bars.adj_factor[bar - 1]
        if is_split(ratio):
            anchor /= ratio
            units *= ratio if paid is not None else 1.0
        elif paid is not None:
            cash += units * bars.close[bar - 1] * (1.0 - 1.0 / ratio)
        if bar < entry:
            continue
        if bar == entry:
            paid = bars.open[bar]
        stop_price = None if stop is None else anchor * math.exp(-sign * stop * SIGMA)
        take_price = None if take is None else anchor * math.exp(sign * take * SIGMA)
        bar_open = bars.open[bar]
        # the exits of an entry are armed after its bar has opened: what the open triggers comes first later on only
        for high, low in ([] if bar == entry else [(bar_open, bar_open)]) + [(bars.high[bar], bars.low[bar])]:
            if stop_price is not None and left is None:
                left = stop_trigger_price(leaves, stop_price, bar_open, high, low)
            if take_price is not None and left is None:
                left = limit_fill_price(leaves, take_price, bar_open, high, low)
                last = side if left is None else costs.fee_bps * 1e-4
        if left is not None:
            break
    assert paid is not None
    worth = units * (bars.close[entry + HORIZON - 1] if left is None else left) + cash
    return math.log1p(-side) + math.log1p(-last) + math.log(1.0 + sign * (worth / paid - 1.0))


@given(seed=st.integers(0, 10_000), event=st.sampled_from([2.0, 0.25, 1.02, 1.0]))
def test_every_bracket_earns_what_the_exchange_s_rules_pay(seed: int, event: float) -> None:
    bars = walk(n=22, seed=seed, events={10: event})
    value_RSK = labels_of(bars).value_RSK
    for place, (row, sign) in enumerate((row, sign) for row in (3, 7, 8, 9, 10) for sign in (1, -1)):
        for bracket, (stop, take) in enumerate(BRACKETS):
            expected = earned_by_hand(bars, row, sign, stop, take)
            assert math.isclose(value_RSK[row - 1, place % 2, bracket], expected, rel_tol=1e-4, abs_tol=2e-7)


def test_excursions_are_the_extremes_of_the_horizon_seen_from_the_close_decided_on() -> None:
    bars = walk(n=30, seed=4)
    labels = labels_of(bars)
    high, low = bars.high[6 : 6 + HORIZON].max(), bars.low[6 : 6 + HORIZON].min()
    assert labels.above_R[4] == pytest.approx(max(math.log(high / bars.close[5]), 0.0), rel=1e-5)
    assert labels.below_R[4] == pytest.approx(max(math.log(bars.close[5] / low), 0.0), rel=1e-5)


def test_a_split_moves_no_label() -> None:
    plain, split = (labels_of(walk(n=30, seed=2, events=events), FEE_ONLY) for events in (None, {12: 4.0}))
    np.testing.assert_allclose(split.value_RSK, plain.value_RSK, atol=1e-6)
    np.testing.assert_allclose(split.above_R, plain.above_R, atol=1e-6)


def test_a_later_fill_is_entered_later() -> None:
    bars = walk(n=40, seed=6)
    now = labels_of(bars, NO_COSTS, horizon=5)
    later = labels_of(bars, CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=0.0, latency_bars=3), horizon=5)
    np.testing.assert_allclose(later.value_RSK[:20, 0, 0], now.value_RSK[2:22, 0, 0], atol=1e-6)


def test_a_take_profit_pays_no_spread_and_a_stop_does() -> None:
    bars = walk(n=60, seed=1)
    free = labels_of(bars, FEE_ONLY).value_RSK
    spread = labels_of(bars, CostModel(fee_bps=30.0, half_spread_bps=50.0, impact=0.0)).value_RSK
    lost_RK = (free - spread)[:, 0]
    one, two = math.log1p(-0.003) - math.log1p(-0.008), 2 * (math.log1p(-0.003) - math.log1p(-0.008))
    takes_K = [bracket for bracket, (stop, take) in enumerate(BRACKETS) if stop is None and take == LEVELS[0]]
    stops_K = [bracket for bracket, (stop, take) in enumerate(BRACKETS) if take is None]
    np.testing.assert_allclose(lost_RK[:, stops_K], two, atol=1e-6)
    is_one, is_two = np.isclose(lost_RK[:, takes_K], one, atol=1e-6), np.isclose(lost_RK[:, takes_K], two, atol=1e-6)
    assert (is_one | is_two).all()
    assert is_one.any()


def test_a_horizon_beyond_the_bars_is_refused() -> None:
    prices = prices_of(walk(n=10), NO_COSTS, capital_usd=CAPITAL)
    row = np.array([5])
    with pytest.raises(TrainingError, match="outside of the bars"):
        label(prices, row, row + 1, row + 6, np.array([SIGMA]), LEVELS)


def test_simulated_episodes_get_the_values_of_their_own_law() -> None:
    world, settings = ExitTrend(), bench_settings("quantile")
    episodes = world.episodes(300, seed=8)
    value_EK = episode_labels(world, episodes, settings).value_RSK[:, 0]
    grid = (None, *settings.levels)
    for bracket, (stop, take) in enumerate((stop, take) for stop in grid for take in grid):
        np.testing.assert_allclose(value_EK[:, bracket], episodes.earned(world, Bracket(stop, take)), atol=1e-6)
