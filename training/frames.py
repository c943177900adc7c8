"""Features of long series for training: the very numbers of `strategies.features`, sooner and in half of the memory.

Nearly all of the time goes into the scores of user columns, two medians of 128 values a bar. Here a window is kept
sorted from bar to bar, so a bar costs one search, one move and two selections. The live process never sees this: it
has one bar at a time, and no compiler.

Axes: T bars, F features, W values of a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from brokers.calendar import TradingCalendar
from brokers.series import BarSeries
from strategies.features import FeatureSpec, fill_frame
from strategies.features.view import robust_score
from training.machine_code import machine_code

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]


def training_frame(spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar) -> Float32:
    """Return `compute_frame` rounded to float32, (T, F).

    Raises:
        FeatureError: As there.
    """
    out_TF = np.empty((len(series), len(spec.names)), dtype=np.float32)
    fill_frame(out_TF, spec, series, calendar, scores=rolling_scores)
    return out_TF


def exact_frame(spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar) -> Float:
    """Return `compute_frame`, (T, F).

    Raises:
        FeatureError: As there.
    """
    out_TF = np.empty((len(series), len(spec.names)))
    fill_frame(out_TF, spec, series, calendar, scores=rolling_scores)
    return out_TF


def rolling_scores(value_T: Float, window: int) -> Float:
    """Return `robust_score` of every window of a column, (T - window + 1,)."""
    windows_nW = np.lib.stride_tricks.sliding_window_view(value_T, window)
    if not np.isfinite(value_T).all():
        return robust_score(windows_nW)
    score_n = np.empty(len(windows_nW))
    _scores(np.ascontiguousarray(value_T), np.empty(window), score_n)
    # where most of a window is one value there is another scale: rare, and left to the definition
    rest_n = np.isnan(score_n)
    if rest_n.any():
        score_n[rest_n] = robust_score(windows_nW[rest_n])
    return score_n


@machine_code
def _scores(value_T: Any, sorted_W: Any, score_n: Any) -> None:
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
