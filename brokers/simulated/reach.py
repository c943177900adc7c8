"""Where in a series something could happen to resting orders: found by looking at many bars at once."""

from __future__ import annotations

import math

import numpy as np

from brokers.series import BarSeries, Float

_CHUNK_BARS = 64
_CHUNK_GROWTH = 4
_CHUNK_BARS_MAX = 65_536


class Reach:
    """The extremes of one symbol's bars, and the bars that open with a corporate action.

    Args:
        series: The symbol's bars.
    """

    def __init__(self, series: BarSeries) -> None:
        # opens within high and low are the rule, but nothing here may depend on it
        is_low, is_high = bool((series.low <= series.open).all()), bool((series.high >= series.open).all())
        self._low: Float = series.low if is_low else np.minimum(series.low, series.open)
        self._high: Float = series.high if is_high else np.maximum(series.high, series.open)
        self._lowest = float(self._low.min()) if len(series) else math.inf
        self._highest = float(self._high.max()) if len(series) else -math.inf
        self._actions = np.flatnonzero(series.adj_factor[1:] != series.adj_factor[:-1]) + 1
        self._with_action = frozenset(self._actions.tolist())

    def first(self, begin: int, end: int, below: float, above: float) -> int:
        """Return the first bar of begin .. end (exclusive) that trades at or beyond a level; `end` where none does."""
        if below < self._lowest and above > self._highest:
            return end
        size = _CHUNK_BARS
        looks_up = above < math.inf
        while begin < end:
            stop = min(begin + size, end)
            if self._low[begin:stop].min() <= below or (looks_up and self._high[begin:stop].max() >= above):
                reached = (self._low[begin:stop] <= below) | (self._high[begin:stop] >= above)
                return begin + int(reached.argmax())
            begin, size = stop, min(size * _CHUNK_GROWTH, _CHUNK_BARS_MAX)
        return end

    def next_action(self, begin: int, end: int) -> int:
        """Return the first bar of begin .. end (exclusive) that opens with a split or dividend; `end` where none."""
        if not len(self._actions):
            return end
        place = int(self._actions.searchsorted(begin))
        return end if place == len(self._actions) else min(int(self._actions[place]), end)

    @property
    def has_actions(self) -> bool:
        """True where any bar opens with a split or dividend."""
        return bool(self._with_action)

    def opens_with_action(self, bar: int) -> bool:
        """Tell whether a bar opens with a split or dividend."""
        return bar in self._with_action
