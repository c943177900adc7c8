"""Scenarios keep what they promise of their source, and the gate refuses series that lost it."""

from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_markets import ALL_COSTS, walk

from brokers.bars import load_bars
from brokers.calendar import calendar
from brokers.series import BarSeries
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from training.environment import MarketBatch
from training.errors import TrainingError
from training.market import build_table
from training.scenario_gate import ScenarioError, Tolerances, check, compare, facts
from training.scenarios import (
    Scenario,
    draw_blocks,
    log_returns,
    regime_mix,
    rescale_volatility,
    stationary_bootstrap,
    volatility_regimes,
)

BARS = 20_000
MIX = {"regime_bars": (300, 300), "source_shares": (0.6, 0.4), "window_bars": 100, "expected_block_bars": 200}


@cache
def source() -> dict[str, BarSeries]:
    """Two symbols with clustered volatility, heavy tails and common regimes."""
    return dict(generate(SyntheticMarketSettings(bars=BARS, symbols=("AAA", "BBB")), calendar("24/7")))


def made_of(returns: np.ndarray) -> BarSeries:
    """Return bars whose total log returns are the given ones, gapless."""
    bars = source()["AAA"].slice(0, len(returns) + 1)
    close = 100.0 * np.exp(np.append(0.0, np.cumsum(returns)))
    opened = np.append(100.0, close[:-1])
    ends = {"high": np.maximum(opened, close), "low": np.minimum(opened, close)}
    return replace(bars, open=opened, close=close, adj_factor=np.ones(len(close)), **ends)


def judged(returns: np.ndarray) -> None:
    """Put returns through the gate as a scenario of the first symbol."""
    bars = source()["AAA"]
    none = np.zeros(len(bars), dtype=np.int64)
    check({"AAA": bars}, Scenario({"AAA": made_of(returns)}, none, none, none))


@pytest.mark.parametrize("seed", range(4))
def test_a_bootstrap_passes_the_gate(seed: int) -> None:
    check(source(), stationary_bootstrap(source(), expected_block_bars=200, seed=seed))


@pytest.mark.parametrize("seed", range(4))
def test_a_mix_of_regimes_passes_the_gate_within_each_regime(seed: int) -> None:
    differences = check(source(), regime_mix(source(), seed=seed, **MIX))
    assert any("regime 1" in one.what for one in differences)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_rescaled_path_passes_the_gate_for_its_factor(factor: float) -> None:
    check(source(), rescale_volatility(source(), factor=factor), factor=factor)


def test_the_source_is_a_scenario_of_itself() -> None:
    judged(log_returns(source()["AAA"]))


def test_shuffled_returns_have_lost_the_memory_of_their_size() -> None:
    with pytest.raises(ScenarioError, match=r"\(1 of 17 measures\): AAA: mean autocorrelation of absolute returns"):
        judged(np.random.default_rng(0).permutation(log_returns(source()["AAA"])))


def test_blocks_of_one_bar_have_lost_it_too() -> None:
    with pytest.raises(ScenarioError, match="mean autocorrelation of absolute returns"):
        check(source(), stationary_bootstrap(source(), expected_block_bars=1, seed=0))


def test_returns_that_follow_each_other_are_refused() -> None:
    returns = log_returns(source()["AAA"])
    returns[1:] += 0.15 * returns[:-1]
    with pytest.raises(ScenarioError, match="autocorrelation of returns at lag 1"):
        judged(returns)


def test_normal_tails_are_refused_though_their_sizes_keep_their_memory() -> None:
    returns = log_returns(source()["AAA"])
    ranks = np.argsort(np.argsort(returns))
    normal = np.sort(np.random.default_rng(0).normal(returns.mean(), returns.std(), len(returns)))
    with pytest.raises(ScenarioError, match="tail index of falls") as refused:
        judged(normal[ranks])
    assert "mean autocorrelation" not in str(refused.value)


def test_heavier_tails_are_refused() -> None:
    rng = np.random.default_rng(0)
    returns = log_returns(source()["AAA"])
    with pytest.raises(ScenarioError, match=r"quantile 0\.1% in deviations"):
        judged(returns * np.where(rng.random(len(returns)) < 0.01, 8.0, 1.0))


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_another_volatility_than_was_asked_for_is_refused(factor: float) -> None:
    with pytest.raises(ScenarioError, match="AAA: standard deviation"):
        check(source(), rescale_volatility(source(), factor=factor))


def test_a_regime_that_is_not_the_sources_is_refused() -> None:
    mixed = regime_mix(source(), seed=0, **MIX)
    with pytest.raises(ScenarioError, match="regime 0"):
        check(source(), replace(mixed, regime_T=1 - mixed.regime_T))


def test_a_price_that_does_not_move_has_no_facts() -> None:
    with pytest.raises(ScenarioError, match="does not move"):
        facts(np.zeros(2_000))


def test_too_few_returns_are_no_proof() -> None:
    with pytest.raises(ScenarioError, match="999 returns"):
        facts(np.ones(999))


def test_facts_of_a_known_series_are_the_known_facts() -> None:
    rng = np.random.default_rng(0)
    measured = facts(rng.standard_t(4.0, 400_000))
    assert measured.tail_lower == pytest.approx(3.4, abs=0.3)  # Hill at 2.5 %: nearing 4 in the far tail alone
    assert abs(measured.returns_L).max() < 0.01
    assert abs(measured.sizes) < 0.01
    moved = rng.normal(size=400_000)
    moved[1:] += 0.5 * moved[:-1]
    assert facts(moved).returns_L[:2] == pytest.approx([0.4, 0.0], abs=0.2)


def test_every_measure_is_compared_at_its_own_tolerance() -> None:
    measured = facts(log_returns(source()["AAA"]))
    assert all(one.passes for one in compare(measured, measured, Tolerances()))
    assert not any(
        one.passes
        for one in compare(measured, replace(measured, deviation=float("nan")), Tolerances())
        if one.what == "standard deviation"
    )


@given(
    seed=st.integers(0, 2**16),
    expected=st.floats(1, 50),
    kinds=st.lists(st.integers(0, 2), min_size=4, max_size=60).filter(lambda kinds: set(kinds[1:]) == {0, 1, 2}),
)
def test_blocks_hold_the_wanted_kinds_and_never_the_first_row(seed: int, expected: float, kinds: list[int]) -> None:
    source_kind = np.array(kinds)
    rng = np.random.default_rng(seed)
    wanted = rng.integers(3, size=80)
    rows = draw_blocks(source_kind, wanted, expected, rng)
    np.testing.assert_array_equal(source_kind[rows], wanted)
    assert rows.min() >= 1


def test_blocks_are_as_long_as_expected_and_begin_everywhere() -> None:
    none = np.zeros(100_000, dtype=np.int64)
    rows = draw_blocks(none, none, 25.0, np.random.default_rng(0))
    joints = int((np.diff(rows) != 1).sum())
    assert 100_000 / (joints + 1) == pytest.approx(25.0, rel=0.05)
    assert np.histogram(rows, bins=10)[0] == pytest.approx(np.full(10, 10_000), rel=0.2)


def test_the_bars_of_a_block_move_as_in_the_source() -> None:
    bars = walk(n=400, events={100: 2.0, 250: 1.02})
    scenario = stationary_bootstrap({"AAA": bars}, expected_block_bars=30, seed=1)
    made, rows = scenario.series["AAA"], scenario.source_row_T
    np.testing.assert_allclose(log_returns(made), log_returns(bars)[rows[1:] - 1], atol=1e-12)
    for name in ("high", "low", "close"):
        moves = [getattr(one, name) / one.open for one in (made, bars)]
        np.testing.assert_allclose(moves[0], moves[1][rows], rtol=1e-12)
    np.testing.assert_allclose(made.volume * made.close, (bars.volume * bars.close)[rows], rtol=1e-12)
    assert (made.adj_factor == 1.0).all()
    assert made.open[0] == bars.open[0]


def test_symbols_are_drawn_together() -> None:
    scenario = stationary_bootstrap(source(), expected_block_bars=50, seed=2)
    for name, bars in source().items():
        made = log_returns(scenario.series[name])
        np.testing.assert_allclose(made, log_returns(bars)[scenario.source_row_T[1:] - 1], atol=1e-12)


def test_symbols_at_different_times_are_refused() -> None:
    with pytest.raises(TrainingError, match="BBB and AAA do not have the same bars"):
        stationary_bootstrap({"AAA": walk(n=60), "BBB": walk("BBB", 50)}, expected_block_bars=5, seed=0)


def test_signals_come_with_their_bars() -> None:
    bars = replace(walk(n=50), signals={"news": np.arange(50.0)})
    scenario = stationary_bootstrap({"AAA": bars}, expected_block_bars=5, seed=0)
    np.testing.assert_array_equal(scenario.series["AAA"].signals["news"], scenario.source_row_T)


def test_with_a_calendar_every_bar_keeps_its_place_in_the_session() -> None:
    sessions = calendar("XNYS")
    bars = generate(SyntheticMarketSettings(bars=3_000, period=timedelta(hours=1), calendar="XNYS"), sessions)
    rows = stationary_bootstrap(bars, expected_block_bars=20, seed=0, calendar=sessions).source_row_T
    session_T = sessions.session_ids(bars["SYNTH"].start_ns)
    first_T = np.append(True, session_T[1:] != session_T[:-1])
    np.testing.assert_array_equal(first_T[rows][1:], first_T[1:])


def test_regimes_last_as_long_as_asked_for() -> None:
    scenario = regime_mix(source(), **{**MIX, "regime_bars": (300, 100)}, seed=3)
    assert scenario.regime_T.mean() == pytest.approx(0.25, abs=0.06)
    np.testing.assert_array_equal(scenario.source_regime_T[scenario.source_row_T], scenario.regime_T)


def test_the_volatile_regime_moves_more() -> None:
    regime_T = volatility_regimes(source(), shares=(0.6, 0.4), window_bars=100)
    moves = np.abs(log_returns(source()["AAA"]))
    assert moves[regime_T[1:] == 1].mean() > 1.3 * moves[regime_T[1:] == 0].mean()
    assert regime_T.mean() == pytest.approx(0.4, abs=0.001)


def test_a_rescaled_path_keeps_its_drift_and_stretches_the_rest() -> None:
    bars = source()["BBB"]
    before, after = log_returns(bars), log_returns(rescale_volatility({"BBB": bars}, factor=1.7).series["BBB"])
    np.testing.assert_allclose(after - after.mean(), 1.7 * (before - before.mean()), atol=1e-12)
    assert after.mean() == pytest.approx(before.mean(), abs=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expected_block_bars": 0.5}, "expected_block_bars is 0.5"),
        ({"regime_bars": (100,)}, "two or more regimes"),
        ({"source_shares": (0.6, 0.6)}, "add up to 1"),
        ({"window_bars": BARS}, f"window_bars is {BARS}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        regime_mix(source(), **{**MIX, **options}, seed=0)  # type: ignore[arg-type]  # what a user may write


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_volatility_factor_that_is_not_positive_is_refused(factor: float) -> None:
    with pytest.raises(TrainingError, match="volatility factor"):
        rescale_volatility(source(), factor=factor)


def test_the_same_seed_makes_the_same_scenario() -> None:
    first, again, other = (
        stationary_bootstrap(source(), expected_block_bars=50, seed=seed).series["AAA"].close for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_environment_steps_on_scenarios_as_on_recorded_bars() -> None:
    series = {"AAA": walk(n=400)}
    scenario = regime_mix(
        series, regime_bars=(40, 20), source_shares=(0.5, 0.5), window_bars=20, expected_block_bars=20, seed=0
    )
    table = build_table(scenario.series, {"AAA": np.zeros((400, 2))}, ALL_COSTS, capital_usd=10_000.0)
    batch = MarketBatch(table, 8)
    batch.reset(np.random.default_rng(0))
    assert np.isfinite(batch.step(np.ones(8, dtype=np.int64))[0]).all()


@pytest.mark.parametrize("seed", range(3))
def test_scenarios_of_recorded_bars_pass_the_gate(market_data: Path, seed: int) -> None:
    hours = calendar("24/7")
    series = load_bars(market_data / "bitstamp_btcusd_1h.parquet", period=timedelta(hours=1), calendar=hours)
    check(series, stationary_bootstrap(series, expected_block_bars=200, seed=seed))
    check(series, stationary_bootstrap(series, expected_block_bars=200, seed=seed, calendar=hours))
    check(series, regime_mix(series, seed=seed, **MIX))
