"""What every bar pays for every position, at several levels of costs, positions of any size included.

A position is a share of equity that is rebased at every fill, as in `training.market`: from `before` to `held` the
log equity of a row changes by

    log[(1 + before * overnight) * (1 - |held - before| * side_fraction) * (1 + held * intrabar)]

and the size impact is that of the notional traded. Between fills a share is not rebalanced and pays nothing for the
drift of its weight, so a position of 0.4 that stays 0.4 trades nothing. At -1, 0 and 1 these are the table's rewards
to the last bit.

Axes: T rows of the whole table, R scored rows, P, N positions before and after a fill (-1, 0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brokers.costs import HALF_SPREAD_BPS_MAX, CostModel, ReferenceBar
from brokers.series import BarSeries
from training.market import RUIN_FRACTION, Float, Int, overnight_returns, reward_table, side_fractions

MULTIPLES = (0, 1, 2, 3)
"""Times the configured costs at which everything is scored."""

_PARKINSON = ReferenceBar.of(float(np.e), 1.0, 0.0).sigma


def costs_times(costs: CostModel, multiple: float) -> CostModel:
    """Return the cost model with fee, spread and impact times `multiple`."""
    return replace(
        costs,
        fee_bps=costs.fee_bps * multiple,
        half_spread_bps=min(costs.half_spread_bps * multiple, HALF_SPREAD_BPS_MAX),
        impact=costs.impact * multiple,
    )


@dataclass(frozen=True, slots=True)
class Books:
    """What rows pay. A row's numbers are those of the bar that fills its decision; NaN where there is none.

    Args:
        overnight_T: Total return from the close before the fill's open to that open.
        intrabar_T: From that open to the bar's close.
        units_T: Units of the instrument that one unit of position is.
        sigma_T: Parkinson's volatility of the bar before the fill, for the size impact.
        volume_T: Units traded in that bar.
        costs: By multiple.
        rewards: (T, P, N) by multiple.
    """

    overnight_T: Float
    intrabar_T: Float
    units_T: Float
    sigma_T: Float
    volume_T: Float
    costs: Mapping[int, CostModel]
    rewards: Mapping[int, Float]

    def growth(self, multiple: int, rows_R: Int, before_R: NDArray[np.number], held_R: NDArray[np.number]) -> Float:
        """Return the log-equity change of rows, (R,), at `multiple` times the costs."""
        if np.issubdtype(held_R.dtype, np.integer):
            at_unit_R: Float = self.rewards[multiple][rows_R, before_R + 1, held_R + 1]
            return at_unit_R
        traded_R = np.abs(held_R - before_R)
        cost_R = traded_R * side_fractions(
            self.costs[multiple], traded_R * self.units_T[rows_R], self.sigma_T[rows_R], self.volume_T[rows_R]
        )
        before_growth_R = np.maximum(1.0 + before_R * self.overnight_T[rows_R], 0.0)
        growth_R = before_growth_R * np.maximum(1.0 - cost_R, 0.0) * (1.0 + held_R * self.intrabar_T[rows_R])
        log_growth_R: Float = np.log(np.maximum(growth_R, RUIN_FRACTION))
        return log_growth_R

    def position_gain(self, rows_R: Int, position: int) -> Float:
        """Return what holding one position pays from a row's fill to the open after that bar, before costs, (R,)."""
        after_R = self.overnight_T[np.minimum(rows_R + 1, len(self.overnight_T) - 1)]
        overnight_R = np.where(np.isnan(after_R), 0.0, after_R)
        worth_R = (1.0 + position * self.intrabar_T[rows_R]) * (1.0 + position * overnight_R)
        gain_R: Float = np.log(np.maximum(worth_R, RUIN_FRACTION))
        return gain_R

    def side_cost(self, rows_R: Int, multiple: int) -> float:
        """Return the mean cost of one side of one unit of position, a fraction."""
        costs_R = side_fractions(
            self.costs[multiple], self.units_T[rows_R], self.sigma_T[rows_R], self.volume_T[rows_R]
        )
        return float(costs_R.mean())


def keep_books(series: Mapping[str, BarSeries], costs: CostModel, *, capital_usd: float) -> Books:
    """Return the books of all series, in the row order of `training.market.build_table`."""
    columns = [_columns(bars, costs.latency_bars, capital_usd) for bars in series.values()]
    overnight_T, intrabar_T, units_T, sigma_T, volume_T = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    by_multiple = {multiple: costs_times(costs, multiple) for multiple in MULTIPLES}
    return Books(
        overnight_T=overnight_T,
        intrabar_T=intrabar_T,
        units_T=units_T,
        sigma_T=sigma_T,
        volume_T=volume_T,
        costs=by_multiple,
        rewards={
            multiple: np.concatenate([reward_table(bars, model, capital_usd=capital_usd) for bars in series.values()])
            for multiple, model in by_multiple.items()
        },
    )


def _columns(bars: BarSeries, latency_bars: int, capital_usd: float) -> tuple[Float, ...]:
    """Return what the rows of one series pay and what trading in them costs, each (T,)."""
    found = tuple(np.full(len(bars), np.nan) for _ in range(5))
    if len(bars) <= latency_bars:
        return found
    before = np.s_[latency_bars - 1 : -1]
    filled = (
        overnight_returns(bars)[latency_bars:],
        bars.close[latency_bars:] / bars.open[latency_bars:] - 1.0,
        capital_usd / bars.close[before],
        np.log(bars.high[before] / bars.low[before]) * _PARKINSON,
        bars.volume[before],
    )
    for column, values in zip(found, filled, strict=True):
        column[:-latency_bars] = values
    return found
