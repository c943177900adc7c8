"""Features of a whole series at once. Axes: T bars, F features, K rows of a summary, L leaves of a chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from brokers.calendar import TradingCalendar
from brokers.series import BarSeries
from strategies.features.clock import clock_columns
from strategies.features.columns import BarArrays, Float, base_columns, usable
from strategies.features.ladder import SeriesLadder
from strategies.features.spec import VOLATILITY_WINDOW, FeatureError, FeatureSpec
from strategies.features.view import MarketView, Scores

CHUNK_BARS = 4_096
"""Bars evaluated together: their summaries fit in a core's cache."""


REMEDY = "prices and adj_factor are above zero, volume is not below it; clean the bars with `tandem data check`"


class SeriesView(MarketView):
    """The last `count` bars of a chunk."""

    def __init__(
        self,
        spec: FeatureSpec,
        ladder: SeriesLadder,
        count: int,
        clock: Callable[[str], Float],
        signals: Mapping[str, Float],
        scores: Scores | None,
    ) -> None:
        """Take the chunk's ladder, what gives clock columns of its `count` bars, and user columns from further back."""
        super().__init__(spec.plan.rows)
        self._ladder = ladder
        self.count = count
        self._clock = clock
        self._signals = signals
        self._scores = scores

    def _block(self, size: int, lag: int) -> Float:
        return self._ladder.block(size, lag, self.count)

    def clock(self, name: str) -> Float:
        """Return a clock column."""
        return self._clock(name)

    def signal(self, name: str, window: int) -> Float:
        """Return windows of a user column, (count, window)."""
        return np.lib.stride_tricks.sliding_window_view(self._reach(name, window), window)

    def score(self, name: str, window: int) -> Float:
        """Return scores of a user column."""
        return super().score(name, window) if self._scores is None else self._scores(self._reach(name, window), window)

    def _reach(self, name: str, window: int) -> Float:
        return self._signals[name][-(self.count + window - 1) :]


def compute_frame(spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar) -> Float:
    """Return the features of every bar, (T, F); rows before `spec.memory_bars` bars are NaN.

    Raises:
        FeatureError: The series lacks a user column of the spec.
    """
    out_TF = np.empty((len(series), len(spec.names)))
    fill_frame(out_TF, spec, series, calendar)
    return out_TF


def fill_frame(
    out_TF: NDArray[np.floating],
    spec: FeatureSpec,
    series: BarSeries,
    calendar: TradingCalendar,
    *,
    scores: Scores | None = None,
) -> None:
    """Write what `compute_frame` returns into an array, which may be of less precision.

    Args:
        out_TF: Where to.
        spec: The features.
        series: The bars.
        calendar: Their sessions.
        scores: Another way to the scores of user columns, of the same result.

    Raises:
        FeatureError: As there.
    """
    out_TF[: spec.memory_bars - 1] = np.nan
    for begin, view in _views(spec, series, calendar, scores):
        for column, values in enumerate(spec.row(view)):
            out_TF[begin : begin + len(values), column] = values


def features_and_volatility(spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar) -> tuple[Float, Float]:
    """Return what `compute_frame` and `volatility_frame` return, (T, F) and (T,), computed together.

    Raises:
        FeatureError: As there.
    """
    out_TF, volatility_T = np.full((len(series), len(spec.names)), np.nan), np.full(len(series), np.nan)
    for begin, view in _views(spec, series, calendar):
        volatility_T[begin : begin + view.count] = view.sigma(VOLATILITY_WINDOW)
        for column, values in enumerate(spec.row(view)):
            out_TF[begin : begin + len(values), column] = values
    return out_TF, volatility_T


def volatility_frame(spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar) -> Float:
    """Return the volatility of one bar at every bar, (T,): what sizing and exits use; NaN before warm-up."""
    out_T = np.full(len(series), np.nan)
    for begin, view in _views(spec, series, calendar):
        sigma = view.sigma(VOLATILITY_WINDOW)
        out_T[begin : begin + len(sigma)] = sigma
    return out_T


def _views(
    spec: FeatureSpec, series: BarSeries, calendar: TradingCalendar, scores: Scores | None = None
) -> Iterator[tuple[int, SeriesView]]:
    missing = [name for name in spec.signal_windows if name not in series.signals]
    if missing:
        raise FeatureError(f"bars of {series.symbol} lack the columns {', '.join(missing)} of the feature spec")
    bars = len(series)
    if bars < spec.memory_bars:
        return
    check_prices(series)
    session_T = calendar.session_ids(series.start_ns)
    plan = spec.plan
    # column arrays start at bar 1, the first that has a predecessor
    columns = series_columns(series, session_T, plan.rows.columns)
    known: dict[str, Float] = {}

    def clock(name: str, begin: int, end: int) -> Float:
        if not known:  # most small specs never ask
            known.update(clock_columns(calendar, session_T, series.close_ns))
        return known[name][begin:end]

    for begin in range(spec.memory_bars - 1, bars, CHUNK_BARS):
        end = min(begin + CHUNK_BARS, bars)
        reach = slice(begin - plan.bars, end - 1)
        ladder = SeriesLadder(plan, plan.rows.leaves({name: column[reach] for name, column in columns.items()}))
        yield (
            begin,
            SeriesView(
                spec,
                ladder,
                end - begin,
                partial(clock, begin=begin, end=end),
                {name: series.signals[name][:end] for name in spec.signal_windows},
                scores,
            ),
        )


def check_prices(series: BarSeries) -> None:
    """Refuse a series that holds a price or volume that no market has.

    Raises:
        FeatureError: Names the first such bar.
    """
    columns = (series.open, series.high, series.low, series.close, series.volume, series.adj_factor)
    if len(series) and all(float(column.max()) < math.inf for column in columns):  # False where one is not a number
        positive = (series.open, series.high, series.low, series.close, series.adj_factor)
        if all(float(column.min()) > 0.0 for column in positive) and float(series.volume.min()) >= 0.0:
            return
    for place in np.flatnonzero(~usable(np.column_stack(columns))):
        raise FeatureError(f"{series.bar(int(place))} has a price or volume that no market has: {REMEDY}")


def series_columns(
    series: BarSeries, session_T: np.ndarray[tuple[int], np.dtype[np.int64]], wanted: frozenset[str] | None = None
) -> dict[str, Float]:
    """Return the base columns of bars 1 … T-1, (T - 1,); the first of them has no `lagged`.

    `wanted` names those that are needed; None for all.
    """
    return base_columns(
        BarArrays(
            open=series.open[1:],
            high=series.high[1:],
            low=series.low[1:],
            close=series.close[1:],
            volume=series.volume[1:],
            adj_factor=series.adj_factor[1:],
            previous_close=series.close[:-1],
            previous_adj_factor=series.adj_factor[:-1],
            begins_session=session_T[1:] != session_T[:-1],
        ),
        previous_ret=None,
        wanted=wanted,
    )
