from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.bar_faults import find_faults
from brokers.calendar import calendar
from brokers.costs import CostModel, is_split
from brokers.series import BarSeries
from brokers.simulated.synthetic import SyntheticMarketSettings, generate, planted_edge

COLUMNS = ("start_ns", "open_ns", "close_ns", "open", "high", "low", "close", "volume", "adj_factor")
FREE = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=0.0)


def one(**changes: Any) -> BarSeries:
    return next(iter(generate(SyntheticMarketSettings(**changes)).values()))


def returns(series: BarSeries) -> np.ndarray:
    return np.diff(np.log(series.close))


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 400), st.sampled_from(["24/7", "XNYS"]))
@settings(max_examples=25)
def test_a_longer_market_begins_with_the_shorter_one_bit_for_bit(seed: int, fewer: int, more: int, name: str) -> None:
    world = SyntheticMarketSettings(seed=seed, bars=fewer, calendar=name, symbols=("A", "B"), splits=((30, 4.0),))
    short, long = generate(world), generate(replace(world, bars=fewer + more))
    for symbol in world.symbols:
        for column in COLUMNS:
            assert np.array_equal(getattr(short[symbol], column), getattr(long[symbol], column)[:fewer])


@given(st.integers(0, 2**32), st.sampled_from(["24/7", "XNYS"]), st.sampled_from([5, 60, 1440]))
@settings(max_examples=25)
def test_every_market_is_a_valid_bars_file(seed: int, name: str, minutes: int) -> None:
    world = SyntheticMarketSettings(seed=seed, bars=500, calendar=name, period=timedelta(minutes=minutes))
    series = generate(world)["SYNTH"]
    columns = {c: getattr(series, c) for c in ("start_ns", "open", "high", "low", "close", "volume", "adj_factor")}
    assert find_faults({"SYNTH": columns}) == []
    _, _, in_session = calendar(name).bounds_ns(series.start_ns, minutes * 60_000_000_000)
    assert in_session.all()


def test_seeds_and_symbols_have_paths_of_their_own() -> None:
    both = generate(SyntheticMarketSettings(bars=50, symbols=("A", "B")))
    assert not np.array_equal(both["A"].close, both["B"].close)
    assert not np.array_equal(both["A"].close, one(bars=50, symbols=("A",), seed=8).close)


def test_a_symbols_path_does_not_depend_on_its_neighbours() -> None:
    assert np.array_equal(one(bars=50, symbols=("A",)).close, one(bars=50, symbols=("A", "B")).close)


def test_the_planted_deviation_has_the_stated_size_and_half_life() -> None:
    x = one(bars=200_000, reveal=True).signals["deviation"]
    lag = np.corrcoef(x[12:], x[:-12])[0, 1]
    assert x.std() == pytest.approx(0.01, rel=0.05)
    assert lag == pytest.approx(0.5, abs=0.03)


def test_returns_have_heavy_tails_and_clustered_volatility() -> None:
    r = returns(one(bars=100_000))
    squared = r * r
    assert np.mean(squared**2) / np.mean(squared) ** 2 > 4.0
    assert np.corrcoef(squared[20:], squared[:-20])[0, 1] > 0.05


def test_volume_follows_volatility() -> None:
    series = one(bars=20_000)
    assert np.corrcoef(np.log(series.volume), np.log(series.high / series.low))[0, 1] > 0.3


def test_only_markets_with_sessions_have_overnight_gaps() -> None:
    def gap_sd(name: str) -> float:
        series = one(bars=20_000, calendar=name)
        gaps = np.log(series.open[1:] / series.close[:-1])
        nights = np.diff(calendar(name).session_ids(series.start_ns)) > 0
        return float(gaps[nights].std())

    assert gap_sd("XNYS") > 0.003
    assert gap_sd("24/7") < 0.0005


def test_a_split_moves_raw_prices_and_the_factor_but_not_adjusted_prices() -> None:
    plain, split = one(bars=100), one(bars=100, splits=((40, 4.0),))
    assert is_split(split.adj_factor[40] / split.adj_factor[39])
    assert np.allclose(split.close * split.adj_factor, plain.close, atol=1e-5)
    assert split.close[40] == pytest.approx(plain.close[40] / 4.0, abs=1e-6)


def test_the_gross_worth_is_what_the_sign_rule_earns_on_the_known_deviation() -> None:
    world = SyntheticMarketSettings(bars=300_000, reveal=True)
    series = generate(world)["SYNTH"]
    x = series.signals["deviation"]
    earned = float(np.mean(-np.sign(x[:-1]) * returns(series))) * 1e4
    assert earned == pytest.approx(planted_edge(world).gross_long_short_bps, rel=0.08)


@pytest.mark.parametrize("name", ["24/7", "XNYS"])
def test_the_edge_is_worth_trading_after_default_costs_from_prices_alone(name: str) -> None:
    edge = planted_edge(SyntheticMarketSettings(calendar=name))
    assert edge.visible_net_bps > 8 * edge.error_bps
    assert edge.known_net_bps > edge.visible_net_bps
    assert edge.known_net_bps < edge.gross_long_flat_bps


def test_without_a_planted_edge_trading_only_costs() -> None:
    edge = planted_edge(SyntheticMarketSettings(deviation_sd=0.0))
    assert edge.visible_net_bps < -0.5
    free = planted_edge(SyntheticMarketSettings(deviation_sd=0.0), FREE)
    assert abs(free.visible_net_bps) < 4 * free.error_bps


def test_the_worth_prints_with_its_parameters_and_costs() -> None:
    text = str(planted_edge(SyntheticMarketSettings()))
    for part in ("half-life of 12 bars", "1.00%", "after 12 bp a side", "bp/bar"):
        assert part in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bars": 0}, "synthetic.bars is 0"),
        ({"symbols": ()}, "synthetic.symbols"),
        ({"deviation_sd": -0.1}, "synthetic.deviation_sd is -0.1"),
        ({"calm": 1.0}, "synthetic.calm is 1.0"),
        ({"splits": ((0, 2.0),)}, r"synthetic.splits has \(0, 2.0\)"),
    ],
)
def test_settings_that_make_no_market_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SyntheticMarketSettings(**change)
