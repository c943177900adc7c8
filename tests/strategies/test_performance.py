from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from bars_for_features import random_series, split
from hypothesis import given
from hypothesis import strategies as st

from strategies.performance import (
    YEAR_NS,
    Executions,
    Performance,
    PerformanceError,
    Split,
    drawdowns,
    measure,
    performance,
    round_trips,
    sharpe_ratio,
    splits_of,
)

DAY_NS = 86_400 * 10**9
NONE = Executions((), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))


def executions(*rows: tuple[str, float, float, float]) -> Executions:
    """Rows of (symbol, signed quantity, price, fee), one a day."""
    symbols, qty, price, fee = zip(*rows, strict=True)
    at = np.arange(len(rows), dtype=np.int64) * DAY_NS
    return Executions(symbols, np.array(qty), np.array(price), np.array(fee), at)


def curve(equity: Sequence[float], **more: object) -> Performance:
    """Daily closes."""
    times = np.arange(len(equity), dtype=np.int64) * DAY_NS
    return measure(np.array(equity), times, more.pop("executions", NONE), **more)  # type: ignore[arg-type]  # as a caller would


def profits(*rows: tuple[str, float, float, float], splits: Sequence[Split] = ()) -> list[float]:
    return [trip.profit for trip in round_trips(executions(*rows), splits)]


def test_returns_and_growth_by_hand() -> None:
    measured = curve([100.0, 110.0, 99.0])
    years = 2 / 365.25
    assert measured.total_return == pytest.approx(-0.01)
    assert measured.cagr == pytest.approx(0.99 ** (1 / years) - 1)
    assert measured.closes_per_year == pytest.approx(365.25)


def test_volatility_sharpe_and_sortino_by_hand() -> None:
    # returns +10%, -10%, +10%: mean 1/30, sample sd sqrt(4/300), downside sqrt(0.01/3)
    measured = curve([100.0, 110.0, 99.0, 108.9])
    year = math.sqrt(365.25)
    assert measured.volatility == pytest.approx(math.sqrt(4 / 300) * year)
    assert measured.sharpe == pytest.approx((1 / 30) / math.sqrt(4 / 300) * year)
    assert measured.sortino == pytest.approx((1 / 30) / math.sqrt(0.01 / 3) * year)


def test_the_standard_error_of_a_small_sharpe_is_one_over_the_root_of_years() -> None:
    rng = np.random.default_rng(0)
    _, error = sharpe_ratio(rng.normal(0.0, 0.01, 252 * 4), 252.0)
    assert error == pytest.approx(0.5, rel=0.02)


def test_the_standard_error_covers_what_repeated_samples_show() -> None:
    rng = np.random.default_rng(1)
    samples = [sharpe_ratio(rng.normal(0.001, 0.01, 500), 252.0) for _ in range(400)]
    ratios = [ratio for ratio, _ in samples if ratio is not None]
    errors = [error for _, error in samples if error is not None]
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)


def test_the_standard_error_of_a_large_sharpe_of_normal_returns_has_its_own_variance_in_it() -> None:
    returns = np.random.default_rng(5).normal(0.02, 0.01, 20_000)
    ratio, error = sharpe_ratio(returns, 1.0)
    assert ratio is not None
    assert error == pytest.approx(math.sqrt((1.0 + ratio**2 / 2.0) / 20_000), rel=0.03)


def test_a_constant_equity_has_no_sharpe_and_no_drawdown() -> None:
    measured = curve([100.0] * 5)
    assert (measured.sharpe, measured.sharpe_se, measured.sortino) == (None, None, None)
    assert (measured.max_drawdown, measured.max_drawdown_closes) == (0.0, 0)


def test_the_deepest_drawdown_and_the_longest_one_are_found() -> None:
    # from 120 down to 90 and back above within 3 closes; then 4 closes just below 130
    measured = curve([100, 120, 90, 100, 125, 130, 129, 129, 129, 129])
    assert measured.max_drawdown == pytest.approx(0.25)
    assert measured.max_drawdown_closes == 4
    assert measured.max_drawdown_days == pytest.approx(4.0)


@given(st.lists(st.floats(1.0, 1e3), min_size=2, max_size=60))
def test_drawdowns_agree_with_a_plain_loop(values: list[float]) -> None:
    peak, peak_at, deepest, longest = values[0], 0, 0.0, 0
    for at, value in enumerate(values):
        if value < peak:
            longest = max(longest, at - peak_at)
            deepest = max(deepest, 1 - value / peak)
        else:
            longest = max(longest, at - peak_at if at - peak_at > 1 else 0)
            peak, peak_at = value, at
    times = np.arange(len(values), dtype=np.int64) * DAY_NS
    depth, closes, ns = drawdowns(np.array(values), times)
    assert (depth, closes, ns) == (pytest.approx(deepest), longest, longest * DAY_NS)


def test_profits_are_after_the_fees_of_both_sides() -> None:
    assert profits(("X", 2, 100, 1), ("X", -2, 110, 1)) == [18.0]


def test_a_short_earns_when_the_price_falls() -> None:
    assert profits(("X", -2, 100, 0), ("X", 2, 90, 0)) == [20.0]


def test_partial_fills_belong_to_one_round_trip() -> None:
    assert profits(("X", 1, 100, 0), ("X", 1, 110, 0), ("X", -0.5, 120, 0), ("X", -1.5, 120, 0)) == [30.0]


def test_an_execution_that_turns_the_position_closes_one_trip_and_opens_the_next() -> None:
    assert profits(("X", 1, 100, 0), ("X", -3, 110, 3), ("X", 2, 105, 0)) == [9.0, 8.0]


def test_an_open_position_is_no_round_trip() -> None:
    assert profits(("X", 1, 100, 0), ("Y", 1, 5, 0), ("Y", -1, 6, 0)) == [1.0]


def test_a_split_while_held_is_no_trade() -> None:
    sale = ("X", -40.0, 26.0, 0.0)
    assert profits(("X", 10, 100, 0), sale, splits=[Split("X", DAY_NS // 2, 4.0)]) == [40.0]


def test_splits_are_read_from_the_bars() -> None:
    series = split(replace(random_series(1, 60), adj_factor=np.ones(60)), 40, 4.0)
    assert splits_of({"X": series}) == [Split("X", int(series.open_ns[40]), 4.0)]


def test_win_rate_and_profit_factor_by_hand() -> None:
    rows = [("X", 1.0, 100.0, 0.0), ("X", -1.0, 130.0, 0.0), ("X", 1.0, 100.0, 0.0), ("X", -1.0, 90.0, 0.0)]
    rows += [("X", 1.0, 100.0, 0.0), ("X", -1.0, 95.0, 0.0)]
    measured = curve([100.0, 101.0], executions=executions(*rows))
    assert (measured.round_trips, measured.win_rate, measured.profit_factor) == (3, pytest.approx(1 / 3), 2.0)
    assert measured.mean_trip_days == pytest.approx(1.0)


def test_without_a_loss_the_profit_factor_is_undefined() -> None:
    measured = curve([100.0, 101.0], executions=executions(("X", 1, 100, 0), ("X", -1, 130, 0)))
    assert measured.profit_factor is None


def test_turnover_and_costs_by_hand() -> None:
    measured = curve([100.0, 100.0], executions=executions(("X", 1, 50, 0.05), ("X", -1, 50, 0.05)))
    assert measured.turnover == pytest.approx(365.25)
    assert measured.fees == pytest.approx(0.1)
    assert measured.fees_bps == pytest.approx(10.0)


def test_exposure_is_the_mean_over_closes() -> None:
    measured = curve([100.0, 100.0, 100.0, 100.0], exposure_T=np.array([0.0, 0.5, 0.5, 0.0]))
    assert (measured.exposure, measured.time_in_market) == (0.25, 0.5)


def test_annual_figures_follow_the_closes_that_exist() -> None:
    # 252 sessions spread over a year, not 365
    times = np.linspace(0, YEAR_NS, 253).astype(np.int64)
    equity = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, 253)))
    measured = measure(equity, times, NONE)
    assert measured.closes_per_year == pytest.approx(252.0)
    assert measured.volatility == pytest.approx(0.16, rel=0.1)


def test_tables_are_measured_like_arrays() -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    equity = pl.DataFrame(
        {
            "close_time": [begin + timedelta(days=k) for k in range(3)],
            "equity": [100.0, 110.0, 120.0],
            "gross_exposure": [0.0, 1.0, 0.0],
        }
    )
    trades = pl.DataFrame(
        {
            "symbol": ["X", "X"],
            "side": ["buy", "sell"],
            "qty": [Decimal("1.5"), Decimal("1.5")],
            "price": [Decimal(100), Decimal(120)],
            "fee": [Decimal("0.5"), Decimal("0.5")],
            "filled_at": [begin, begin + timedelta(days=1)],
        },
        schema_overrides={name: pl.Decimal(38, 12) for name in ("qty", "price", "fee")},
    )
    measured = performance(equity, trades)
    assert (measured.round_trips, measured.win_rate, measured.fees) == (1, 1.0, 1.0)
    assert measured.max_drawdown == 0.0
    assert measured.years == pytest.approx(2 / 365.25)


def test_a_table_without_trades_is_measured() -> None:
    equity = pl.DataFrame(
        {
            "close_time": [datetime(2024, 1, k, tzinfo=UTC) for k in (1, 2)],
            "equity": [1.0, 1.0],
            "gross_exposure": [0.0, 0.0],
        }
    )
    empty = {"symbol": pl.String, "side": pl.String, "qty": pl.Float64, "price": pl.Float64, "fee": pl.Float64}
    measured = performance(equity, pl.DataFrame(schema={**empty, "filled_at": pl.Datetime("us", "UTC")}))
    assert (measured.executions, measured.win_rate, measured.fees_bps) == (0, None, None)


@pytest.mark.parametrize("equity", [[100.0], [100.0, math.nan], [100.0, 0.0], [100.0, -5.0]])
def test_equity_without_returns_is_an_error(equity: list[float]) -> None:
    with pytest.raises(PerformanceError):
        curve(equity)


def test_times_that_do_not_increase_are_an_error() -> None:
    with pytest.raises(PerformanceError, match="sort it"):
        measure(np.ones(2), np.zeros(2, dtype=np.int64), NONE)
