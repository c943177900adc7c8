"""Bars from anywhere into a clean bars file: sort, drop duplicates, resample to longer bars; and nothing else.

What cannot be repaired without inventing values (missing or contradicting prices) stays an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brokers.bar_faults import find_faults, rfc3339
from brokers.bars import (
    PRICES,
    BarsError,
    Fault,
    RawBars,
    infer_period,
    is_reserved,
    period_text,
    read_columns,
    to_series,
)
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.costs import SPLIT_RATIO
from brokers.files import write_parquet
from brokers.series import BarSeries, Int

Columns = Mapping[str, NDArray[Any]]

_EXTREMES = {"high": np.maximum, "low": np.minimum}
_SUMMED = frozenset({"volume", "trade_count"})


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import read, repaired and wrote.

    Args:
        source: File read.
        destination: File written.
        symbols: Symbols in it.
        period: Period of the written bars, as text.
        rows_read: Rows of the source.
        rows_written: Rows of the destination.
        rows_moved: Rows that stood out of order.
        exact_duplicates: Rows dropped because an equal one stood there.
        conflicts_replaced: Rows dropped because a later one for the same bar differed.
        outside_sessions: Rows outside every session; dropped by resampling, else kept.
    """

    source: str
    destination: str
    symbols: tuple[str, ...]
    period: str
    rows_read: int
    rows_written: int
    rows_moved: int
    exact_duplicates: int
    conflicts_replaced: int
    outside_sessions: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return asdict(self)


@dataclass(slots=True)
class _Repairs:
    rows_read: int = 0
    rows_moved: int = 0
    exact_duplicates: int = 0
    conflicts_replaced: int = 0


def import_bars(
    source: str | Path,
    destination: str | Path,
    *,
    calendar: TradingCalendar,
    period: timedelta | None = None,
    symbol: str | None = None,
    keep_last: bool = False,
    timezone: str | None = None,
) -> ImportReport:
    """Read a bars file, repair its order and duplicates, and write a clean Parquet file, whole or not at all.

    Args:
        source: Parquet or CSV file.
        destination: Parquet file to write; replaced if it exists.
        calendar: Sessions of the venue.
        period: Resample to this longer period; None keeps the source's.
        symbol: Name of a single-symbol file's symbol; the file's stem if None.
        keep_last: Of two different rows for one bar keep the one that stands later; otherwise that is an error.
        timezone: Zone of naive timestamps; None refuses them.

    Raises:
        BarsError: What cannot be repaired.
        OSError: The destination cannot be written; what stood there stands untouched.
    """
    target = Path(destination)
    if target.suffix.lower() not in {".parquet", ".pq"}:
        fault = Fault("the destination is not a Parquet file", "", "", target.name, 0, "name it something.parquet")
        raise BarsError(str(target), [fault])
    raw = read_columns(source, symbol=symbol, timezone=timezone)
    repairs = _Repairs()
    columns = {name: _ordered(bars, repairs) for name, bars in raw.columns.items()}
    conflicts = [] if keep_last else _conflicts(columns)
    columns = {name: _without_duplicates(bars, repairs) for name, bars in columns.items()}
    faults = [*raw.faults, *conflicts, *find_faults(columns, raw.signals)]
    if faults:
        raise BarsError(raw.source, faults)
    own = infer_period((bars["start_ns"] for bars in columns.values()), raw.source)
    clean = RawBars(raw.source, columns, raw.signals, raw.reserved)
    series = to_series(clean, own, calendar)  # also refuses bars off the clock grid
    outside = sum(len(bars["start_ns"]) for bars in columns.values()) - sum(len(bars) for bars in series.values())
    if period is not None and period != own:
        columns = {name: _resampled(columns[name], bars, period, calendar) for name, bars in series.items()}
    rows = sum(len(bars["start_ns"]) for bars in columns.values())
    _write(columns, target)
    return ImportReport(
        source=raw.source,
        destination=str(target),
        symbols=tuple(columns),
        period=period_text(period or own),
        rows_read=repairs.rows_read,
        rows_written=rows,
        rows_moved=repairs.rows_moved,
        exact_duplicates=repairs.exact_duplicates,
        conflicts_replaced=repairs.conflicts_replaced,
        outside_sessions=outside,
    )


def resample(series: BarSeries, period: timedelta, calendar: TradingCalendar) -> BarSeries:
    """Return longer bars: first open, highest high, lowest low, last close, summed volume, last signals.

    Bars never reach over a session's close. Where `adj_factor` steps inside a longer bar, the earlier prices are
    brought to the last one's level. A last bar whose final piece is not there yet is left out: it is not complete.

    Raises:
        BarsError: The bars do not nest in the longer period.
    """
    fixed = {name: getattr(series, name) for name in (*PRICES, "volume", "adj_factor")}
    columns: Columns = {"start_ns": series.start_ns, **fixed, **series.signals}
    longer = _resampled(columns, series, period, calendar)
    open_ns, close_ns, _ = calendar.bounds_ns(longer["start_ns"], period_to_ns(period))
    return BarSeries(
        symbol=series.symbol,
        start_ns=longer["start_ns"],
        close_ns=close_ns,
        open_ns=open_ns,
        **{name: longer[name] for name in fixed},
        signals={name: longer[name] for name in series.signals},
    )


def _resampled(columns: Columns, series: BarSeries, period: timedelta, calendar: TradingCalendar) -> dict[str, Any]:
    """Aggregate the in-session rows of `columns` (those of `series`) into bars of `period`."""
    rows = np.searchsorted(columns["start_ns"], series.start_ns)
    target = calendar.starts_ns(series.open_ns, period_to_ns(period))
    _, close_ns, _ = calendar.bounds_ns(target, period_to_ns(period))
    crossing = series.close_ns > close_ns
    if crossing.any():
        at = rfc3339(int(series.start_ns[crossing.argmax()]))
        remedy = "choose a longer period, a multiple of the bars' own"
        fault = Fault(
            "bars do not nest in the period", series.symbol, at, period_text(period), int(crossing.sum()), remedy
        )
        raise BarsError(series.symbol, [fault])
    first = np.flatnonzero(np.diff(target, prepend=target[:1] - 1))
    last = np.append(first[1:], len(target)) - 1
    if len(last) and series.close_ns[last[-1]] < close_ns[last[-1]]:
        stop = first[-1]
        first, last, rows = first[:-1], last[:-1], rows[:stop]
    result: dict[str, Any] = {"start_ns": target[first]}
    level = _level(columns, rows, first, last)
    volume = columns["volume"][rows]
    for name, values in columns.items():
        if name != "start_ns":
            result[name] = _aggregate(name, values[rows], (first, last), level, volume)
    return result


def _level(columns: Columns, rows: Int, first: Int, last: Int) -> NDArray[np.float64]:
    """Return what brings each row's price to the level of the last row of its longer bar."""
    if "adj_factor" not in columns:
        return np.ones(len(rows))
    factor = columns["adj_factor"][rows]
    return np.asarray(factor / np.repeat(factor[last], last - first + 1), dtype=np.float64)


def _aggregate(
    name: str,
    values: NDArray[np.float64],
    groups: tuple[Int, Int],
    level: NDArray[np.float64],
    volume: NDArray[np.float64],
) -> NDArray[np.float64]:
    first, last = groups
    if not len(first):
        return values[:0]
    if name == "open":
        return (values * level)[first]
    if name in _EXTREMES:
        return np.asarray(_EXTREMES[name].reduceat(values * level, first), dtype=np.float64)
    if name in _SUMMED:
        is_split = (level >= SPLIT_RATIO) | (level <= 1.0 / SPLIT_RATIO)
        units = values / level if name == "volume" else values
        return np.add.reduceat(np.where(is_split, units, values), first)
    if name == "vwap":
        weight = np.add.reduceat(volume, first)
        paid = np.add.reduceat(np.where(volume > 0, values * level * volume, 0.0), first)
        return np.where(weight > 0, paid / np.where(weight > 0, weight, 1.0), values[last])
    return values[last]


def _ordered(bars: Columns, repairs: _Repairs) -> dict[str, NDArray[Any]]:
    order = np.argsort(bars["start_ns"], kind="stable")
    repairs.rows_read += len(order)
    repairs.rows_moved += int((order != np.arange(len(order))).sum())
    return {name: values[order] for name, values in bars.items()}


def _same_as_next(bars: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (next row is of the same bar, and is equal in every column) for each row but the last."""
    same = bars["start_ns"][1:] == bars["start_ns"][:-1]
    equal = same.copy()
    for name, values in bars.items():
        if name != "start_ns":
            equal &= (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    return same, equal


def _conflicts(columns: Mapping[str, Columns]) -> list[Fault]:
    count, first = 0, ("", "", "")
    for symbol, bars in columns.items():
        same, equal = _same_as_next(bars)
        differ = same & ~equal
        if differ.any() and not count:
            row = int(differ.argmax())
            values = f"close={bars['close'][row]:g} and close={bars['close'][row + 1]:g}"
            first = (symbol, rfc3339(int(bars["start_ns"][row])), values)
        count += int(differ.sum())
    remedy = "decide which is right, or keep the one that stands later with --keep-last"
    return [Fault("two different rows for one bar", *first, count, remedy)] if count else []


def _without_duplicates(bars: Columns, repairs: _Repairs) -> dict[str, NDArray[Any]]:
    same, equal = _same_as_next(bars)
    repairs.exact_duplicates += int(equal.sum())
    repairs.conflicts_replaced += int((same & ~equal).sum())
    keep = np.append(~same, np.ones(min(1, len(bars["start_ns"])), dtype=np.bool_))
    return {name: values[keep] for name, values in bars.items()}


def _write(columns: Mapping[str, Columns], target: Path) -> None:
    import polars as pl  # noqa: PLC0415  heavy: only who writes files pays for it

    frames = []
    for symbol, bars in columns.items():
        stamp = pl.Series(bars["start_ns"]).cast(pl.Datetime("ns", "UTC")).cast(pl.Datetime("us", "UTC"))
        fixed = {name: bars[name] for name in (*PRICES, "volume")}
        further = {name: v for name, v in bars.items() if name not in fixed and name != "start_ns"}
        named = sorted(further, key=lambda name: (not is_reserved(name), name))
        rest = {name: further[name] for name in named}
        frames.append(pl.DataFrame({"timestamp": stamp, **fixed, "symbol": pl.Series([symbol] * len(stamp)), **rest}))
    write_parquet(pl.concat(frames, how="diagonal"), target)
