"""The rows of a market table from which exits can be learned: state, volatility, and what came of every bracket.

Axes: as in `labels`; F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brokers.costs import SPLIT_RATIO, CostModel, ReferenceBar
from brokers.series import BarSeries
from strategies.features import VOLATILITY_WINDOW, FeatureSpec
from strategies.features.groups import TYPICAL_SIGMA
from training.errors import TrainingError
from training.exits.labels import Labels, Prices, label
from training.exits.settings import ExitSettings
from training.market import Float, Float32, Int, MarketTable, side_fractions

VOLATILITY_FEATURE = f"volatility.level_{VOLATILITY_WINDOW}"
"""The feature that tells the daemon's own volatility of one bar: its logarithm over `TYPICAL_SIGMA`."""
ROWS_MIN = 200
"""Fewest rows that exits are learned from."""

_PARKINSON = ReferenceBar.of(math.e, 1.0, 0.0).sigma


@dataclass(frozen=True, slots=True)
class ExitRows:
    """Rows with their labels, in the order of time.

    Args:
        features_RF: float32.
        sigma_R: Volatility of one bar, recovered from the features, so that it is the one the model sees.
        labels: What came of each row.
        decided_R: Time of the decision, ns or any other increasing number.
        known_R: Time from which the whole label is known.
        table_row_R: Row of the table.
    """

    features_RF: Float32
    sigma_R: Float
    labels: Labels
    decided_R: Int
    known_R: Int
    table_row_R: Int

    def __len__(self) -> int:
        """Return R."""
        return len(self.decided_R)


def volatility_column(spec: FeatureSpec) -> int:
    """Return the place of the feature that volatility is recovered from.

    Raises:
        TrainingError: The spec has none: exits in volatilities would have no scale.
    """
    if VOLATILITY_FEATURE not in spec.names:
        raise TrainingError(
            f"exits are learned in volatilities, and the features lack {VOLATILITY_FEATURE}: train with "
            "training.features=default, or set training.exits.head=off"
        )
    return spec.names.index(VOLATILITY_FEATURE)


def level_columns(spec: FeatureSpec) -> NDArray[np.bool_]:
    """Return (F,) True where a feature is the logarithm of a volatility over `TYPICAL_SIGMA`."""
    return np.array([name.startswith("volatility.level_") for name in spec.names])


def sigma_of(features_RF: Float32, column: int) -> Float:
    """Return the volatility of one bar that features tell."""
    sigma_R: Float = np.exp(features_RF[:, column].astype(np.float64)) * TYPICAL_SIGMA
    return sigma_R


def exit_rows(
    table: MarketTable,
    series: Mapping[str, BarSeries],
    spec: FeatureSpec,
    settings: ExitSettings,
    costs: CostModel,
    *,
    capital_usd: float,
) -> ExitRows:
    """Return every usable row of a table whose whole horizon lies in the same unbroken run of bars.

    Args:
        table: The market; rows outside of its runs are neither decided on nor looked at.
        series: The bars it was built from.
        spec: Its features.
        settings: Horizon and levels.
        costs: The shared cost model.
        capital_usd: Notional of one unit of position, for the size impact.

    Raises:
        TrainingError: Bars that are not the table's, features without volatility, or too few rows.
    """
    column = volatility_column(spec)
    if tuple(series) != table.symbols or sum(map(len, series.values())) != len(table):
        raise TrainingError("exits are learned from the very bars of the table: give the series that it was built from")
    row_T = np.arange(len(table))
    end_T = row_T + table.latency_bars + settings.horizon_bars - 1
    rows = np.flatnonzero(end_T <= table.run_end_T)
    if len(rows) < ROWS_MIN:
        raise TrainingError(
            f"{len(rows)} bars have {settings.horizon_bars} bars after them in one piece, exits need {ROWS_MIN}: give "
            "more bars, shorten training.exits.horizon_bars, or set training.exits.head=off"
        )
    rows = rows[np.argsort(table.close_ns_T[rows], kind="stable")]
    features_RF = table.features_TF[rows]
    sigma_R = sigma_of(features_RF, column)
    end_R = end_T[rows]
    parts = [prices_of(one, costs, capital_usd=capital_usd) for one in series.values()]
    names = ("open_T", "high_T", "low_T", "close_T", "dividend_T", "taking_T")
    prices = Prices(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}, making=parts[0].making
    )
    return ExitRows(
        features_RF=features_RF,
        sigma_R=sigma_R,
        labels=label(prices, rows, rows + table.latency_bars, end_R, sigma_R, settings.levels),
        decided_R=table.close_ns_T[rows],
        known_R=table.close_ns_T[end_R],
        table_row_R=rows,
    )


def prices_of(bars: BarSeries, costs: CostModel, *, capital_usd: float) -> Prices:
    """Return a series' prices with its splits taken out, its dividends, and what a side costs at each bar."""
    ratio_t = bars.adj_factor[1:] / bars.adj_factor[:-1]
    split_t = (ratio_t >= SPLIT_RATIO) | (ratio_t <= 1.0 / SPLIT_RATIO)
    unit_T = np.cumprod(np.concatenate([[1.0], np.where(split_t, ratio_t, 1.0)]))
    cash_t = np.where(split_t, 0.0, bars.close[:-1] * (1.0 - 1.0 / ratio_t)) * unit_T[1:]
    sigma_T = np.log(bars.high / bars.low) * _PARKINSON
    return Prices(
        open_T=bars.open * unit_T,
        high_T=bars.high * unit_T,
        low_T=bars.low * unit_T,
        close_T=bars.close * unit_T,
        dividend_T=np.concatenate([[0.0], np.cumsum(cash_t)]),
        taking_T=np.minimum(side_fractions(costs, capital_usd / bars.close, sigma_T, bars.volume), 0.99),
        making=costs.fee_bps * 1e-4,
    )
