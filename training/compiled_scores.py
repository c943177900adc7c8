"""Scores of every window of a column, in machine code: a window is kept sorted from bar to bar.

Axes: T bars, n windows, W values of a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.machine_code import machine_code


@machine_code
def _deviation(sorted_W: Any, middle: Any, rank: Any) -> Any:
    """Return the deviation from `middle` that `rank` others do not exceed.

    Deviations fall towards the middle from both ends: the `window - rank - 1` largest are a stretch of each end, and
    the search is for how many of them are at the low one.
    """
    window = len(sorted_W)
    larger = window - rank - 1
    few, many = 0, larger
    while few < many:
        at_low = (few + many) // 2
        # one more belongs to the low end while its deviation exceeds the smallest one taken from the high end
        if middle - sorted_W[at_low] > sorted_W[window - (larger - at_low)] - middle:
            few = at_low + 1
        else:
            many = at_low
    lowest, highest = sorted_W[few], sorted_W[window - 1 - (larger - few)]
    return max(middle - lowest, highest - middle)


@machine_code
def write_scores(value_T: Any, sorted_W: Any, score_n: Any) -> None:
    """Write the score of every window, NaN where the median deviation is zero; `sorted_W` is working space."""
    window = len(sorted_W)
    for row in range(len(score_n)):
        newest = value_T[row + window - 1]
        if row == 0:
            sorted_W[:] = np.sort(value_T[:window])
        else:
            place = np.searchsorted(sorted_W, value_T[row - 1])
            while place + 1 < window and sorted_W[place + 1] < newest:
                sorted_W[place] = sorted_W[place + 1]
                place += 1
            while place > 0 and sorted_W[place - 1] > newest:
                sorted_W[place] = sorted_W[place - 1]
                place -= 1
            sorted_W[place] = newest
        middle = (sorted_W[(window - 1) // 2] + sorted_W[window // 2]) / 2.0
        low = _deviation(sorted_W, middle, (window - 1) // 2)
        high = low if window % 2 else _deviation(sorted_W, middle, window // 2)
        scale = (low + high) / 2.0 * 1.4826
        score_n[row] = (newest - middle) / scale if scale > 0.0 else np.nan
