"""What is in a bars file: spans, gaps, zero volumes, outliers, splits, and every fault; changes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from brokers.bar_faults import find_faults, rfc3339
from brokers.bars import BarsError, Fault, RawBars, infer_period, period_text, read_columns, to_series
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.costs import is_split
from brokers.series import BarSeries, Float, Int

OUTLIER_SIGMAS = 20.0
"""A return beyond this many robust standard deviations (1.4826 x median absolute deviation) is listed."""
SHOWN_MAX = 20
"""Longest gaps and largest outliers listed per symbol; all are counted."""

_SPLIT_RATIOS = (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 1.5)
_SPLIT_TOLERANCE = 0.06


@dataclass(frozen=True, slots=True)
class Gap:
    """Neighbouring bar closes that the calendar expects and the file lacks."""

    first_close: str
    last_close: str
    bars: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A bar whose adjusted close moved far: its start, the simple return, and how many robust sd that is."""

    start: str
    change: float
    sigmas: float


@dataclass(frozen=True, slots=True)
class Split:
    """A split: start of the first bar after it, and new units per old unit."""

    start: str
    ratio: float


@dataclass(frozen=True, slots=True)
class SymbolReport:
    """One symbol's bars.

    Args:
        symbol: Canonical symbol.
        rows: Bars inside sessions.
        outside_sessions: Bars that no session overlaps; readers drop them.
        first: Start of the first bar, RFC 3339.
        last: Start of the last bar, RFC 3339.
        expected: Bar closes of the calendar from the first bar's to the last one's.
        missing: Those without a bar.
        gaps: The longest runs of missing closes.
        gap_count: All such runs.
        zero_volume: Bars in which nothing traded.
        outliers: The largest outliers.
        outlier_count: All of them.
        splits: Steps of adj_factor that are splits.
        dividends: Steps of adj_factor that are cash dividends.
        suspected_splits: Session opens that look like splits which adj_factor does not know.
    """

    symbol: str
    rows: int
    outside_sessions: int
    first: str
    last: str
    expected: int
    missing: int
    gaps: tuple[Gap, ...]
    gap_count: int
    zero_volume: int
    outliers: tuple[Outlier, ...]
    outlier_count: int
    splits: tuple[Split, ...]
    dividends: int
    suspected_splits: tuple[Split, ...]


@dataclass(frozen=True, slots=True)
class BarsReport:
    """A bars file.

    Args:
        source: File read.
        period: Bar period as text; empty where it cannot be told.
        period_inferred: True where the period is the most frequent difference between starts.
        calendar: Calendar id.
        signals: Numeric columns that become features.
        reserved: Columns with a fixed meaning found in it.
        faults: Why readers would refuse the file; empty for a usable one.
        symbols: Each symbol's bars; of a faulty file, after sorting and dropping duplicates.
    """

    source: str
    period: str
    period_inferred: bool
    calendar: str
    signals: tuple[str, ...]
    reserved: tuple[str, ...]
    faults: tuple[Fault, ...]
    symbols: tuple[SymbolReport, ...]

    @property
    def usable(self) -> bool:
        """True where readers would take the file."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {**asdict(self), "usable": self.usable}


def check_bars(
    path: str | Path, *, calendar: TradingCalendar, period: timedelta | None = None, symbol: str | None = None
) -> BarsReport:
    """Read a bars file and report what is in it and what is wrong with it.

    Raises:
        BarsError: It cannot be read at all (no such file, columns missing).
    """
    raw = read_columns(path, symbol=symbol)
    faults = [*raw.faults, *find_faults(raw.columns, raw.signals)]
    inferred = period is None
    unique = {name: _sorted_unique(bars) for name, bars in raw.columns.items()}
    reports: list[SymbolReport] = []
    try:
        period = period or infer_period((bars["start_ns"] for bars in unique.values()), raw.source)
        series = to_series(RawBars(raw.source, unique, raw.signals, raw.reserved), period, calendar)
    except BarsError as error:
        faults += error.faults
    else:
        reports = [
            _symbol_report(bars, len(unique[name]["start_ns"]) - len(bars), period, calendar)
            for name, bars in series.items()
        ]
    return BarsReport(
        source=raw.source,
        period=period_text(period) if period else "",
        period_inferred=inferred,
        calendar=calendar.id,
        signals=raw.signals,
        reserved=raw.reserved,
        faults=tuple(faults),
        symbols=tuple(reports),
    )


def _sorted_unique(bars: dict[str, Any]) -> dict[str, Any]:
    _, rows = np.unique(bars["start_ns"], return_index=True)
    return {name: values[rows] for name, values in bars.items()}


def _symbol_report(bars: BarSeries, outside: int, period: timedelta, calendar: TradingCalendar) -> SymbolReport:
    _, _, expected = calendar.grid_ns(int(bars.close_ns[0]) - 1, int(bars.close_ns[-1]), period_to_ns(period))
    runs = _runs_of_missing(expected, bars.close_ns)
    longest = sorted(runs, key=lambda run: run[1] - run[0], reverse=True)[:SHOWN_MAX]
    outliers = _outliers(bars)
    splits, dividends = _splits(bars)
    return SymbolReport(
        symbol=bars.symbol,
        rows=len(bars),
        outside_sessions=outside,
        first=rfc3339(int(bars.start_ns[0])),
        last=rfc3339(int(bars.start_ns[-1])),
        expected=len(expected),
        missing=sum(end - begin + 1 for begin, end in runs),
        gaps=tuple(Gap(rfc3339(int(expected[b])), rfc3339(int(expected[e])), e - b + 1) for b, e in longest),
        gap_count=len(runs),
        zero_volume=int((bars.volume == 0).sum()),
        outliers=tuple(sorted(outliers, key=lambda found: found.sigmas, reverse=True)[:SHOWN_MAX]),
        outlier_count=len(outliers),
        splits=splits,
        dividends=dividends,
        suspected_splits=_suspected_splits(bars, calendar),
    )


def _runs_of_missing(expected: Int, present: Int) -> list[tuple[int, int]]:
    """Return (first, last) indices into `expected` of each run of closes that are not present."""
    absent = np.flatnonzero(~np.isin(expected, present))
    if not len(absent):
        return []
    breaks = np.flatnonzero(np.diff(absent) > 1)
    begins = absent[np.concatenate([[0], breaks + 1])]
    ends = absent[np.concatenate([breaks, [len(absent) - 1]])]
    return [(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True)]


def _log_moves(bars: BarSeries) -> Float:
    with np.errstate(invalid="ignore", divide="ignore"):  # a faulty file may hold zeros; those are reported as faults
        return np.asarray(np.diff(np.log(bars.close * bars.adj_factor)), dtype=np.float64)


def _outliers(bars: BarSeries) -> list[Outlier]:
    moves = _log_moves(bars)
    finite = moves[np.isfinite(moves)]
    if not len(finite):
        return []
    sigma = 1.4826 * float(np.median(np.abs(finite - np.median(finite))))
    if sigma == 0.0:
        return []
    far = np.flatnonzero(np.abs(moves) > OUTLIER_SIGMAS * sigma)
    return [
        Outlier(rfc3339(int(bars.start_ns[i + 1])), float(np.expm1(moves[i])), abs(float(moves[i])) / sigma)
        for i in far
        if np.isfinite(moves[i])
    ]


def _splits(bars: BarSeries) -> tuple[tuple[Split, ...], int]:
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = bars.adj_factor[1:] / bars.adj_factor[:-1]
    at = np.flatnonzero((steps != 1.0) & np.isfinite(steps))
    splits = tuple(Split(rfc3339(int(bars.start_ns[i + 1])), float(steps[i])) for i in at if is_split(float(steps[i])))
    return splits, len(at) - len(splits)


def _suspected_splits(bars: BarSeries, calendar: TradingCalendar) -> tuple[Split, ...]:
    """Return session opens whose adjusted price jumps by nearly a usual split ratio."""
    if len(bars) < 2 or calendar.id == "24/7":
        return ()
    new_session = np.diff(calendar.session_ids(bars.start_ns)) > 0
    adjusted_open, adjusted_close = bars.open * bars.adj_factor, bars.close * bars.adj_factor
    with np.errstate(invalid="ignore", divide="ignore"):
        jumps = adjusted_close[:-1] / adjusted_open[1:]
    found = []
    for i in np.flatnonzero(new_session & ((jumps > 1.4) | (jumps < 1.0 / 1.4))):
        jump = float(jumps[i])
        near = min((r for n in _SPLIT_RATIOS for r in (n, 1.0 / n)), key=lambda ratio: abs(jump / ratio - 1.0))
        if abs(jump / near - 1.0) < _SPLIT_TOLERANCE:
            found.append(Split(rfc3339(int(bars.start_ns[i + 1])), near))
    return tuple(found)
