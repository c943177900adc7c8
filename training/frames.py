"""Features of long series for training: the very numbers of `strategies.features`, sooner and in half of the memory.

Nearly all of the time goes into the scores of user columns, two medians of 128 values a bar. Here a window is kept
sorted from bar to bar, so a bar costs one search, one move and two selections. The live process never sees this: it
has one bar at a time, and no compiler.

Axes: T bars, F features, W values of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brokers.calendar import TradingCalendar
from brokers.series import BarSeries
from strategies.features import FeatureSpec, fill_frame
from strategies.features.view import robust_score

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
    from training.compiled_scores import write_scores  # noqa: PLC0415 -- the compiler is loaded where columns are

    score_n = np.empty(len(windows_nW))
    write_scores(np.ascontiguousarray(value_T), np.empty(window), score_n)
    # where most of a window is one value there is another scale: rare, and left to the definition
    rest_n = np.isnan(score_n)
    if rest_n.any():
        score_n[rest_n] = robust_score(windows_nW[rest_n])
    return score_n
