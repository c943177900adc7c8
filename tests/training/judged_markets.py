"""Grounds to judge on, with a column that tells the next bar, or nothing, or more than it may."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import numpy as np
from small_markets import walk

from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.series import BarSeries
from training.data import Market
from training.evaluation.ground import FeaturesOf, Ground, prepare
from training.evaluation.settings import EvaluationSettings
from training.market import MarketTable
from training.settings import TrainingConfiguration, TrainingSettings, load_training
from training.validation import TargetOf

MEMORY = 30
QUICK = EvaluationSettings(folds=2, embargo_bars=5, seeds=2, resamples=300, draws=4, cuts=2)


def told(symbol: str = "AAA", n: int = 1_500, seed: int = 0, worth: float = 0.0, ahead: int = 1) -> BarSeries:
    """Bars that open at the close before, whose column `x` is correlated by `worth` with the bar `ahead` bars later."""
    rng = np.random.default_rng(seed)
    column, noise = rng.standard_normal((2, n))
    moved = worth * np.roll(column, ahead) + np.sqrt(1.0 - worth**2) * noise
    close = 100.0 * np.exp(0.01 * np.cumsum(moved))
    opened = np.append(100.0, close[:-1])
    return replace(
        walk(symbol, n, seed),
        open=opened,
        high=np.maximum(opened, close) * 1.002,
        low=np.minimum(opened, close) * 0.998,
        close=close,
        signals={"x": column},
    )


def market_of(*series: BarSeries) -> Market:
    return Market({one.symbol: one for one in series}, timedelta(hours=1), calendar("24/7"), "a test", None)


def configuration_of(costs: CostModel) -> TrainingConfiguration:
    given = [
        f"costs.{name}={getattr(costs, name)}" for name in ("fee_bps", "half_spread_bps", "impact", "latency_bars")
    ]
    return load_training(None, [*given, "period=1h", "training.capital_usd=10000"], environ={})


def column_x(bars: BarSeries) -> np.ndarray:
    """The feature `x`, warm after `MEMORY` bars."""
    features = np.full((len(bars), 1), np.nan)
    features[MEMORY - 1 :, 0] = bars.signals["x"][MEMORY - 1 :]
    return features


def move_after(bars: BarSeries, ahead: int) -> np.ndarray:
    """A feature that may not be: the move of a bar `ahead` bars later, as far as the bars go."""
    move = np.log(bars.close / bars.open)
    features = np.full((len(bars), 1), np.nan)
    features[MEMORY - 1 :, 0] = np.append(move[ahead:], np.zeros(ahead))[MEMORY - 1 :]
    return features


def ground_of(
    series: Mapping[str, BarSeries], costs: CostModel, features_of: FeaturesOf = column_x, *, shorts: bool = False
) -> Ground:
    return prepare(
        market_of(*series.values()),
        configuration_of(costs),
        memory_bars=MEMORY,
        features_of=features_of,
        shorts=shorts,
    )


def with_the_column(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
    """A learner of one number: long where the column says what paid on the training rows."""
    del settings, seed
    rows = table.start_rows
    x, paid = table.features_TF[rows, 0], table.reward_TPN[rows, 2, 2]
    slope = np.corrcoef(x, paid)[0, 1]

    def policy(features: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return (features[:, 0] * slope > 0).astype(np.int64) * np.ones_like(positions)

    return policy
