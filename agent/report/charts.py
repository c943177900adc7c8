"""What the page's script draws: thinned series, markers and spans, as small numbers.

Times are whole seconds, each as the difference to the one before; values carry six digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from agent.report.data import NotMeasured, ReportData
from agent.report.figures import Figures, times_ns
from agent.report.thinning import banded, thin
from brokers.series import Float, Int

BUCKETS = 900
"""Parts of the time axis of a curve over the whole run, of which lowest and highest value are kept."""
BANDS = 400
"""Parts of the time axis of a mean with a band."""
PRICE_POINTS_MAX = 40_000
"""Points of all price curves together."""
PRICE_BUCKETS = 5_000
"""Parts of the time axis of one price, many more than a screen has: prices are looked at closely."""
MARKERS_MAX = 12_000
"""Markers of all symbols together; more are joined where they would lie on one another."""
SPANS_MAX = 4_000
"""Spans of held positions of all symbols together."""
SYMBOLS_MAX = 120
"""Symbols that have a price chart: those with the most executions."""
_S = 1_000_000_000

MARKS: Sequence[tuple[str, str, str]] = (
    ("buy", "triangle-up", "entry, bought"),
    ("short", "triangle-down", "entry, sold short"),
    ("close", "circle", "closed by the strategy"),
    ("stop", "cross", "closed by its stop"),
    ("take_profit", "diamond", "closed by its take-profit"),
)
"""Key, shape and meaning of each marker."""


def payload(data: ReportData, found: Figures) -> dict[str, Any]:
    """Return everything that the script needs, by chart."""
    time_T, equity_T = found.close_ns_T, found.equity_T
    charts: dict[str, Any] = {}
    if len(time_T) >= 2:
        own, other = [_curve("run", time_T, equity_T / equity_T[0] - 1.0)], []
        falls = [_curve("run", time_T, _underwater(equity_T))]
        if not isinstance(found.benchmark, NotMeasured):
            held_T = found.benchmark.equity_T
            other = [_curve("hold", time_T, held_T / held_T[0] - 1.0)]
            falls.append(_curve("hold", time_T, _underwater(held_T)))
        charts["equity"] = {"unit": "percent", "zero": True, "series": own + other}
        charts["drawdown"] = {"unit": "percent", "top": 0.0, "fill": True, "series": falls}
        exposure_T = data.equity["gross_exposure"].to_numpy()
        charts["exposure"] = {"unit": "percent", "bottom": 0.0, "series": [_band("gross", time_T, exposure_T)]}
    return {"charts": charts, "symbols": _price_charts(data)}


def shown_symbols(data: ReportData) -> list[str]:
    """Return the symbols that have a price chart, those with the most executions first."""
    counts = {str(name): int(n) for name, n in data.executions.group_by("symbol").len().iter_rows()}
    return sorted(data.symbols, key=lambda symbol: -counts.get(symbol, 0))[:SYMBOLS_MAX]


def _price_charts(data: ReportData) -> list[dict[str, Any]]:
    symbols = shown_symbols(data)
    share = max(1, len(symbols))
    buckets = min(PRICE_BUCKETS, max(100, PRICE_POINTS_MAX // (2 * share)))
    markers, spans = MARKERS_MAX // share, SPANS_MAX // share
    charts = []
    for symbol in symbols:
        rows = data.executions.filter(pl.col("symbol") == symbol)
        chart: dict[str, Any] = {
            "name": symbol,
            "unit": "price",
            "series": [],
            "marks": _marks(rows, max(40, markers)),
            "spans": _spans(data.decisions.filter(pl.col("symbol") == symbol), max(40, spans)),
        }
        bars = None if isinstance(data.bars, NotMeasured) else data.bars.get(symbol)
        if bars is not None:
            chart["series"] = [_curve("price", bars.close_ns, bars.close, buckets)]
        charts.append(chart)
    return charts


def _underwater(equity_T: Float) -> Float:
    fall_T: Float = equity_T / np.maximum.accumulate(equity_T) - 1.0
    return fall_T


def _curve(name: str, time_T: Int, value_T: Float, buckets: int = BUCKETS) -> dict[str, Any]:
    kept = thin(time_T, value_T, buckets)
    return {"name": name, "t": _times(time_T[kept]), "y": _values(value_T[kept])}


def _band(name: str, time_T: Int, value_T: Float) -> dict[str, Any]:
    if len(time_T) <= 2 * BANDS:
        return {"name": name, "t": _times(time_T), "y": _values(value_T)}
    at, mean, lowest, highest = banded(time_T, value_T, BANDS)
    return {"name": name, "t": _times(at), "y": _values(mean), "lo": _values(lowest), "hi": _values(highest)}


def _marks(rows: pl.DataFrame, most: int) -> dict[str, Any]:
    """Return executions by kind of marker; of too many, one for each kind and part of the time axis, with a count."""
    if not rows.height:
        return {}
    side, leg = rows["side"].to_numpy(), rows["leg"].to_numpy()
    kind = np.where(leg == "entry", np.where(side == "buy", "buy", "short"), leg)
    time, price = times_ns(rows["filled_at"]), rows["price"].to_numpy()
    found: dict[str, Any] = {}
    for key, _, _ in MARKS:
        at, value = time[kind == key], price[kind == key]
        if not len(at):
            continue
        count = np.ones(len(at), dtype=np.int64)
        if rows.height > most:
            buckets = max(20, most // len(MARKS))
            width = max(1, (int(time.max()) - int(time.min())) // buckets + 1)
            bucket = (at - int(time.min())) // width
            first = np.concatenate(([0], np.flatnonzero(np.diff(bucket)) + 1))
            count = np.diff(np.concatenate((first, [len(at)])))
            at, value = at[first], value[first]
        found[key] = {"t": _times(at), "y": _values(value), "n": count.tolist()}
    return found


def _spans(decisions: pl.DataFrame, most: int) -> dict[str, list[int]]:
    """Return when the symbol was held long and short, as begins and ends in seconds; short gaps of too many joined."""
    held = decisions["position_before"].to_numpy()
    time = times_ns(decisions["close_time"]) // _S
    found: dict[str, list[int]] = {}
    for name, sign in (("long", 1), ("short", -1)):
        inside = np.concatenate(([False], held == sign, [False]))
        edges = np.flatnonzero(np.diff(inside.astype(np.int8))).reshape(-1, 2)
        pairs = [(int(time[b]), int(time[min(e, len(time) - 1)])) for b, e in edges.tolist()]
        if len(pairs) > most:
            pairs = _joined(pairs, (int(time[-1]) - int(time[0])) // most)
        if pairs:
            found[name] = [moment for pair in pairs for moment in pair]
    return found


def _joined(pairs: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    kept = [pairs[0]]
    for begin, end in pairs[1:]:
        if begin - kept[-1][1] <= gap:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((begin, end))
    return kept


def _times(time_T: Int) -> list[int]:
    seconds = time_T // _S
    return [int(seconds[0]), *np.diff(seconds).tolist()] if len(seconds) else []


def _values(value_T: Float) -> list[float]:
    return [_short(value) for value in value_T.tolist()]


def _short(value: float) -> float:
    """Return a number with six digits; whole ones without a point."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def unpack(series: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Return times in seconds and values of a packed series: what the script does, for programs and tests."""
    return np.cumsum(series["t"]).tolist(), list(series["y"])
