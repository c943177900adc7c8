"""Every metric of a return series against jquantstats, a library that shares no line with ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jquantstats import Data
from numpy.typing import NDArray

from strategies.performance import Executions, measure, relative

DAY_NS = 86_400 * 10**9
NONE = Executions((), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
PER_YEAR = 365.25
SEEDS = st.integers(0, 2**32 - 1)


def returns_of(seed: int, count: int, *, tail: float = 4.0) -> NDArray[np.float64]:
    """Skewed daily returns with fat tails, none below -30 %."""
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.float64] = 0.0004 + 0.01 * rng.standard_t(tail, count) + 0.004 * (rng.exponential(1.0, count) - 1)
    return np.maximum(drawn, -0.3)


def library(returns: NDArray[np.float64], benchmark: NDArray[np.float64] | None = None) -> Data:
    begin = datetime(2020, 1, 2, tzinfo=UTC).replace(tzinfo=None)
    dates = [begin + timedelta(days=day) for day in range(len(returns))]
    frame = pl.DataFrame({"date": dates, "run": returns})
    other = None if benchmark is None else pl.DataFrame({"date": dates, "hold": benchmark})
    return Data.from_returns(frame, benchmark=other)


def ours(returns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    equity = 100_000.0 * np.concatenate(([1.0], np.cumprod(1.0 + returns)))
    return equity, np.arange(len(equity), dtype=np.int64) * DAY_NS


@settings(max_examples=25)
@given(SEEDS, st.integers(40, 700))
def test_risk_and_return_are_those_of_an_independent_library(seed: int, count: int) -> None:
    returns = returns_of(seed, count)
    stats = library(returns).stats
    equity, times = ours(returns)
    found = measure(equity, times, NONE)
    assert found.closes_per_year == pytest.approx(PER_YEAR)
    assert found.total_return == pytest.approx(stats.comp()["run"])
    assert found.volatility == pytest.approx(stats.volatility(periods=PER_YEAR)["run"])
    assert found.sharpe == pytest.approx(stats.sharpe(periods=PER_YEAR)["run"])
    assert found.sortino == pytest.approx(stats.sortino(periods=PER_YEAR)["run"])
    assert found.cagr == pytest.approx(stats.cagr(periods=PER_YEAR)["run"])
    assert found.best_close == pytest.approx(stats.best()["run"])
    assert found.worst_close == pytest.approx(stats.worst()["run"])
    # the library's drawdown begins at the first return's end; with the start in front it is the same curve
    whole = library(np.concatenate(([0.0], returns))).stats
    assert found.max_drawdown == pytest.approx(abs(whole.max_drawdown()["run"]))
    assert found.calmar == pytest.approx(found.cagr / abs(whole.max_drawdown()["run"]))  # type: ignore[operator]  # never None here


@settings(max_examples=25)
@given(SEEDS, st.integers(20, 700))
def test_skewness_and_kurtosis_are_those_of_the_library_without_its_correction_for_bias(seed: int, n: int) -> None:
    returns = returns_of(seed, n)
    stats = library(returns).stats
    found = measure(*ours(returns), NONE)
    assert found.skewness is not None
    assert found.excess_kurtosis is not None
    corrected = found.skewness * np.sqrt(n * (n - 1.0)) / (n - 2.0)
    assert corrected == pytest.approx(stats.skew()["run"], rel=1e-6)
    unbiased = ((n + 1.0) * found.excess_kurtosis + 6.0) * (n - 1.0) / ((n - 2.0) * (n - 3.0))
    assert unbiased == pytest.approx(stats.kurtosis()["run"], rel=1e-6)


@settings(max_examples=25)
@given(SEEDS, st.integers(2, 20))
def test_expected_shortfall_is_that_of_the_library_from_history(seed: int, twenties: int) -> None:
    returns = returns_of(seed, 20 * twenties)  # its interpolated quantile then has as many returns below it
    stats = library(returns).stats
    found = measure(*ours(returns), NONE)
    assert found.expected_shortfall == pytest.approx(stats.conditional_value_at_risk(method="historical")["run"])


@settings(max_examples=25)
@given(SEEDS, st.integers(30, 600))
def test_beta_alpha_and_information_ratio_are_those_of_the_library(seed: int, count: int) -> None:
    other = returns_of(seed, count)
    own = 0.4 * other + 0.6 * returns_of(seed ^ 1, count)
    stats = library(own, other).stats
    (equity, times), (held, _) = ours(own), ours(other)
    found = relative(equity, held, times)
    greeks = stats.greeks(periods_per_year=PER_YEAR)["run"]
    assert found.beta == pytest.approx(greeks["beta"])
    assert found.alpha == pytest.approx(greeks["alpha"])
    ratio = stats.information_ratio(periods_per_year=PER_YEAR, annualise=True)["run"]
    assert found.information_ratio == pytest.approx(ratio)
    assert found.correlation == pytest.approx(np.corrcoef(own, other)[0, 1])


@settings(max_examples=25)
@given(SEEDS, st.integers(2, 60))
def test_profit_factor_hit_rate_and_payoff_of_round_trips_are_those_of_the_library(seed: int, count: int) -> None:
    profits = np.random.default_rng(seed).normal(2.0, 50.0, count)
    profits[:2] = [30.0, -20.0]  # one of each, so that every ratio is defined
    qty, price = np.tile([1.0, -1.0], count), np.full(2 * count, 1_000.0)
    price[1::2] += profits
    times = np.arange(2 * count, dtype=np.int64) * DAY_NS
    trades = Executions(["X"] * (2 * count), qty, price, np.zeros(2 * count), times)
    found = measure(*ours(np.zeros(10)), trades)
    stats = library(profits).stats  # profits in place of returns: the ratios do not know the unit
    assert found.win_rate == pytest.approx(stats.win_rate()["run"])
    assert found.profit_factor == pytest.approx(stats.profit_factor()["run"])
    assert found.payoff_ratio == pytest.approx(stats.payoff_ratio()["run"])


@settings(max_examples=25)
@given(SEEDS, st.integers(30, 400))
def test_the_longest_drawdown_is_the_library_s(seed: int, count: int) -> None:
    returns = np.concatenate(([0.0], returns_of(seed, count)))
    found = measure(*ours(returns), NONE)
    details = library(returns).stats.drawdown_details()["run"]
    # the library counts from the first close below the peak, we from the peak
    stretches = [row["duration"] + (row["end"] is not None) for row in details.iter_rows(named=True)]
    longest = max(stretches, default=0)
    assert found.max_drawdown_closes == longest
    assert found.max_drawdown_days == pytest.approx(longest)
