"""What everything is judged on: bars, features, what rows pay, and the volatility that was known at each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from brokers.series import BarSeries
from strategies.features import VOLATILITY_WINDOW, FeatureError, FeatureSpec, Group, compute_frame, volatility_frame
from training.data import Market
from training.errors import TrainingError
from training.evaluation.books import Books, keep_books
from training.evaluation.tracks import follow
from training.market import Float, Float32, MarketTable, build_table
from training.settings import TrainingConfiguration
from training.validation import TargetOf

FeaturesOf = Callable[[BarSeries], Float]
"""Bars of one symbol to (T, F) features, NaN before they are warm."""


@dataclass(frozen=True, slots=True)
class Ground:
    """One market, ready to be traded.

    Args:
        market: Its bars.
        features_of: Computes a symbol's features.
        memory_bars: Bars that one row of features looks at, its own included.
        table: Features and rewards.
        books: What rows pay, at every multiple of the costs.
        volatility_T: Volatility of one bar, known at each row; NaN before it is warm.
        shorts: Whether -1 is an allowed position.
    """

    market: Market
    features_of: FeaturesOf
    memory_bars: int
    table: MarketTable
    books: Books
    volatility_T: Float
    shorts: bool


def prepare(
    market: Market,
    configuration: TrainingConfiguration,
    *,
    memory_bars: int,
    features_of: FeaturesOf,
    shorts: bool,
) -> Ground:
    """Compute everything that does not depend on a policy.

    Raises:
        TrainingError: Bars that lack a column of the features, or hold prices that no market has.
    """
    costs, capital_usd = configuration.costs.model(), configuration.training.capital_usd
    try:
        features = {symbol: features_of(bars) for symbol, bars in market.series.items()}
    except FeatureError as error:
        raise TrainingError(f"{market.source}: {error}") from error
    volatility = FeatureSpec(
        (Group("returns", "returns", {"horizons": [1], "unit": VOLATILITY_WINDOW}),), market.period.total_seconds()
    )
    return Ground(
        market=market,
        features_of=features_of,
        memory_bars=memory_bars,
        table=build_table(market.series, features, costs, capital_usd=capital_usd),
        books=keep_books(market.series, costs, capital_usd=capital_usd),
        volatility_T=np.concatenate(
            [volatility_frame(volatility, bars, market.calendar) for bars in market.series.values()]
        ),
        shorts=shorts,
    )


def features_by(spec: FeatureSpec, market: Market) -> FeaturesOf:
    """Return what computes the features of a spec."""
    return partial(_frame, spec, market)


def _frame(spec: FeatureSpec, market: Market, bars: BarSeries) -> Float:
    return compute_frame(spec, bars, market.calendar)


def positions_of(
    policy: TargetOf, features_RF: Float32, begins_R: NDArray[np.bool_], *, shorts: bool
) -> NDArray[np.int8]:
    """Return what a policy holds over rows when it is asked at each of them, (R,); flat where runs begin."""
    target_PR = np.zeros((3, len(features_RF)), dtype=np.int8)
    for position in (-1, 0, 1) if shorts else (0, 1):
        target_PR[position + 1] = policy(features_RF, np.full(len(features_RF), position, dtype=np.int64))
    return follow(target_PR, begins_R)
