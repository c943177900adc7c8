"""Small markets for the tests of `training`: bars with gaps, splits and dividends, and features with holes."""

import math

import numpy as np

from brokers.costs import CostModel, ReferenceBar, is_split
from brokers.series import BarSeries
from training.market import MarketTable, build_table

HOUR_NS = 3_600_000_000_000
EPOCH_NS = 1_700_000_000_000_000_000 // HOUR_NS * HOUR_NS

NO_COSTS = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=0.0)
FEE_ONLY = CostModel(fee_bps=30.0, half_spread_bps=0.0, impact=0.0)
ALL_COSTS = CostModel(fee_bps=10.0, half_spread_bps=2.0, impact=0.5)


def walk(symbol: str = "AAA", n: int = 60, seed: int = 0, events: dict[int, float] | None = None) -> BarSeries:
    """A random walk with overnight gaps; `events[i]` is the step of adj_factor at bar i."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    open_ = np.empty(n)
    open_[0] = 100.0
    open_[1:] = close[:-1] * np.exp(rng.normal(0, 0.004, n - 1))
    factor = np.ones(n)
    for index, ratio in (events or {}).items():
        factor[index:] *= ratio
        # a split makes the raw price fall by its ratio, a dividend by its amount: the same division
        close[index:] /= ratio
        open_[index:] /= ratio
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.003, n)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.003, n)))
    start = EPOCH_NS + HOUR_NS * np.arange(n, dtype=np.int64)
    return BarSeries(
        symbol=symbol,
        start_ns=start,
        close_ns=start + HOUR_NS,
        open_ns=start,
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=rng.uniform(500.0, 5000.0, n),
        adj_factor=factor,
    )


def some_features(bars: BarSeries, n_features: int = 3, holes: tuple[int, ...] = (0, 1)) -> np.ndarray:
    rng = np.random.default_rng(len(bars))
    features = rng.normal(size=(len(bars), n_features))
    features[list(holes)] = np.nan
    return features


def table_of(
    *series: BarSeries, costs: CostModel = ALL_COSTS, capital_usd: float = 10_000.0, holes: tuple[int, ...] = (0, 1)
) -> MarketTable:
    return build_table(
        {s.symbol: s for s in series},
        {s.symbol: some_features(s, holes=holes) for s in series},
        costs,
        capital_usd=capital_usd,
    )


def reward_by_hand(bars: BarSeries, t: int, old: int, new: int, costs: CostModel, capital_usd: float) -> float:
    """The definition, in scalars and through the scalar cost functions: a decision at the close of bar t."""
    fill = t + costs.latency_bars
    close, before = bars.close[fill - 1], fill - 1
    ratio = bars.adj_factor[fill] / bars.adj_factor[before]
    worth_at_open = bars.open[fill] * ratio if is_split(ratio) else bars.open[fill] + close * (1 - 1 / ratio)
    equity = 1.0 + old * (worth_at_open / close - 1.0)
    reference = ReferenceBar.of(bars.high[before], bars.low[before], bars.volume[before])
    units = abs(new - old)
    equity *= 1.0 - units * costs.side_fraction(units * capital_usd / close, reference)
    equity *= 1.0 + new * (bars.close[fill] / bars.open[fill] - 1.0)
    return math.log(equity)
