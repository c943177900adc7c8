"""What one step of the environment pays, written to be read: one episode, in scalars, from bars and the cost model.

Nothing here is fast and nothing is shared with the market table: splits, dividends, sizes and costs are asked of
`brokers.costs` bar by bar. The table, the batched core, the compiled core and the Gymnasium face must agree with
it, which tests/training/test_equal_environments.py shows on random markets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brokers.costs import CostModel, dividend_per_unit, is_split, reference_before, split_ratio
from brokers.series import BarSeries
from strategies.strategy import Action
from training.errors import TrainingError
from training.market import RUIN_FRACTION


@dataclass(frozen=True, slots=True)
class PlainStep:
    """What one step gave.

    Args:
        observation: (F + 1,) float32, the next row's features and the new position.
        reward: Change of log equity.
        terminated: Ruined.
        truncated: The episode reached its length, or no further step exists.
    """

    observation: NDArray[np.float32]
    reward: float
    terminated: bool
    truncated: bool


class PlainEnvironment:
    """One episode at a time on several series.

    Args:
        series: Bars of each symbol.
        features: (T, F) of each symbol; rows that are not finite cannot be observed.
        costs: The shared cost model.
        capital_usd: Notional of one unit of position, for the size impact.
        episode_bars: Longest episode, in steps.
        shorts: SELL means short (-1) instead of flat (0).
        joined: (T,) of each symbol: False at the last bar before a gap; None where there is no gap.
    """

    def __init__(
        self,
        series: Mapping[str, BarSeries],
        features: Mapping[str, NDArray[np.floating]],
        costs: CostModel,
        *,
        capital_usd: float,
        episode_bars: int = 1000,
        shorts: bool = False,
        joined: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> None:
        self._series = series
        self._features = features
        self._costs = costs
        self._capital_usd = capital_usd
        self._episode_bars = episode_bars
        self._shorts = shorts
        self._joined = joined

    def start(self, symbol: str, row: int, position: int) -> NDArray[np.float32]:
        """Begin an episode at the close of bar `row`; returns the observation.

        Raises:
            TrainingError: No step exists there.
        """
        if not self._step_exists(symbol, row):
            raise TrainingError(f"no step of {symbol} starts at bar {row}")
        self._symbol, self._row, self._position, self._steps = symbol, row, position, 0
        return self._observation()

    def step(self, action: int) -> PlainStep:
        """Decide at the current close, and move to the next."""
        target = self._target(action)
        reward = math.log(max(self._growth(self._position, target), RUIN_FRACTION))
        self._row += 1
        self._steps += 1
        self._position = target
        terminated = reward <= math.log(RUIN_FRACTION)
        ends = self._steps >= self._episode_bars or not self._step_exists(self._symbol, self._row)
        return PlainStep(self._observation(), reward, terminated, ends and not terminated)

    def _target(self, action: int) -> int:
        if action == Action.HOLD:
            return self._position
        if action == Action.BUY:
            return 1
        return -1 if self._shorts else 0

    def _growth(self, old: int, new: int) -> float:
        """Return the factor by which a decision at the current close changes the equity, in the bar it fills in."""
        bars, fill = self._series[self._symbol], self._row + self._costs.latency_bars
        previous_close, opened, close = float(bars.close[fill - 1]), float(bars.open[fill]), float(bars.close[fill])
        ratio = float(bars.adj_factor[fill] / bars.adj_factor[fill - 1])
        units_after, cash = 1.0, 0.0  # of one unit held over the night
        if is_split(ratio):
            units_after = float(split_ratio(ratio))
        elif ratio != 1.0:
            cash = float(dividend_per_unit(previous_close, ratio))
        overnight = (opened * units_after + cash) / previous_close - 1.0
        intrabar = close / opened - 1.0

        size = abs(new - old)
        qty = size * self._capital_usd / previous_close * units_after
        cost = size * self._costs.side_fraction(qty, reference_before(bars, fill))
        return max(1.0 + old * overnight, 0.0) * max(1.0 - cost, 0.0) * (1.0 + new * intrabar)

    def _step_exists(self, symbol: str, row: int) -> bool:
        """Tell whether a decision at this row fills in the series, before any gap, and is observed at both ends."""
        bars, features, fill = self._series[symbol], self._features[symbol], row + self._costs.latency_bars
        if fill >= len(bars):
            return False
        if self._joined is not None and not self._joined[symbol][row:fill].all():
            return False
        return bool(np.isfinite(features[row]).all() and np.isfinite(features[row + 1]).all())

    def _observation(self) -> NDArray[np.float32]:
        features = self._features[self._symbol][self._row]
        return np.append(features.astype(np.float32), np.float32(self._position))
