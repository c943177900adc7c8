"""Bars for the tests of features: seeded random walks with gaps, splits, flat stretches and silent bars."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from brokers.bars import load_bars
from brokers.calendar import TradingCalendar, calendar, period_to_ns
from brokers.series import BarSeries, to_ns

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("TANDEM_MARKET_DATA", REPOSITORY / ".." / "shared" / "data"))


def recorded(name: str, period: timedelta, venue: TradingCalendar) -> dict[str, BarSeries]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no market data at {path}: set TANDEM_MARKET_DATA")
    return load_bars(path, period=period, calendar=venue)


def random_series(
    seed: int, bars: int, *, venue: TradingCalendar | None = None, period: timedelta = timedelta(minutes=5)
) -> BarSeries:
    rng = np.random.default_rng(seed)
    venue = venue or calendar("24/7")
    begin = to_ns(datetime(2023, 1, 2, tzinfo=UTC))
    start, opened, closed = venue.grid_ns(begin, begin + 86_400 * 10**9 * 4_000, period_to_ns(period))
    kept = np.sort(rng.choice(min(len(start), bars + bars // 20 + 1), size=bars, replace=False))
    flat = rng.random(bars) < 0.1
    if bars > 200:
        flat[100:180] = True
    ret = np.where(flat, 0.0, rng.standard_t(3, bars) * 2e-3)
    close = 50.0 * np.exp(np.cumsum(ret))
    open_ = np.concatenate(([close[0]], close[:-1])) * np.exp(np.where(flat, 0.0, rng.normal(0, 5e-4, bars)))
    open_ = np.where(flat, close, open_)
    stretch = np.where(flat, 0.0, np.abs(rng.normal(0, 1e-3, bars)))
    volume = rng.lognormal(5, 1, bars) * (rng.random(bars) > 0.1)
    if bars > 200:
        volume[100:180] = 0.0
    adj_factor = np.exp(np.cumsum(np.where(rng.random(bars) < 0.005, 0.004, 0.0)))
    return BarSeries(
        symbol="X",
        start_ns=start[kept],
        close_ns=closed[kept],
        open_ns=opened[kept],
        open=open_,
        high=np.maximum(open_, close) * np.exp(stretch),
        low=np.minimum(open_, close) * np.exp(-stretch),
        close=close,
        volume=volume,
        adj_factor=adj_factor,
        signals={
            "flow": rng.normal(1e6, 3.0, bars),
            "flag": (rng.random(bars) < 0.05).astype(float),
            "same": np.ones(bars),
        },
    )


def priced(series: BarSeries, factor: float) -> BarSeries:
    """The same market with every price times a constant."""
    return replace(
        series,
        open=series.open * factor,
        high=series.high * factor,
        low=series.low * factor,
        close=series.close * factor,
    )


def split(series: BarSeries, at: int, ratio: float) -> BarSeries:
    """The same market with a split before bar `at`: raw prices fall, quantities grow, adj_factor says so."""
    after = np.arange(len(series)) >= at
    price = np.where(after, 1.0 / ratio, 1.0)
    return replace(
        series,
        open=series.open * price,
        high=series.high * price,
        low=series.low * price,
        close=series.close * price,
        volume=series.volume / price,
        adj_factor=series.adj_factor / price,
    )
