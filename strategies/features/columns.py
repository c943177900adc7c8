"""Base columns: what every feature is made of, computed from a bar and the two bars before it, elementwise.

Prices enter only as log-ratios and money only as price times volume, so a constant factor on prices changes
no column but dollar volume, and a split changes none. `adj_factor` enters as the ratio between neighbouring
bars, rounded to ten digits: its level knows the future, and a rescaled series gives the same bits.

Axes: T bars or S symbols; every array here has one of them as its only axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

RATIO_STEPS = 2.0**34
"""Steps to which the mantissa of a ratio of `adj_factor` is rounded: about ten decimal digits."""
BASE_BARS = 2
"""Bars before a bar that its columns read."""

FLOOR = 1e-6
"""Smallest scale of a log return (0.01 basis points): added to denominators, so that flat prices give zeros."""

COLUMNS: Mapping[str, str] = {
    "ret": "log return, close to close, adjusted for splits and dividends",
    "ret2": "its square",
    "abs_ret": "its magnitude",
    "down2": "the square of its negative part",
    "lagged": "its product with the return before it",
    "range": "log(high / low)",
    "parkinson": "Parkinson's variance, range squared / (4 ln 2)",
    "gap": "log return from the previous close to the open",
    "intraday": "log(close / open)",
    "overnight": "the gap where a session begins, else 0",
    "session_ret": "log return since the session's open, bar by bar: the first bar's counts from its open",
    "one": "1: counts bars",
    "dollars": "close times volume, quote currency",
    "flow": "dollars signed by the return's direction, smooth around zero",
    "to_high": "log(high / close), >= 0",
    "to_low": "log(low / close), <= 0",
}

_PARKINSON = 1.0 / (4.0 * math.log(2.0))


@dataclass(frozen=True, slots=True)
class BarArrays:
    """Bars as arrays, each beside its predecessor. Prices in quote currency, volume in units."""

    open: Float
    high: Float
    low: Float
    close: Float
    volume: Float
    adj_factor: Float
    previous_close: Float
    previous_adj_factor: Float
    begins_session: Bool


def base_columns(bars: BarArrays, previous_ret: Float | None, wanted: frozenset[str] | None = None) -> dict[str, Float]:
    """Return base columns.

    Args:
        bars: The bars and what precedes each.
        previous_ret: `ret` of the bar before each; None where the bars are consecutive (a time axis), where
            it is shifted by one and the first is NaN.
        wanted: Those that are needed besides `ret`; None for all.
    """
    mantissa, exponent = np.frexp(bars.adj_factor / bars.previous_adj_factor)
    ratio = np.ldexp(np.rint(mantissa * RATIO_STEPS) / RATIO_STEPS, exponent)
    ret = np.log(bars.close * ratio / bars.previous_close)
    span = cache(lambda: np.log(bars.high / bars.low))
    gap = cache(lambda: np.log(bars.open * ratio / bars.previous_close))
    intraday = cache(lambda: np.log(bars.close / bars.open))
    magnitude = cache(lambda: np.abs(ret))
    down = cache(lambda: np.minimum(ret, 0.0))
    dollars = cache(lambda: bars.close * bars.volume)
    columns: dict[str, Callable[[], Float]] = {
        "ret2": lambda: ret * ret,
        "abs_ret": magnitude,
        "down2": lambda: down() * down(),
        "lagged": lambda: ret * (np.concatenate(([np.nan], ret[:-1])) if previous_ret is None else previous_ret),
        "range": span,
        "parkinson": lambda: span() * span() * _PARKINSON,
        "gap": gap,
        "intraday": intraday,
        "overnight": lambda: np.where(bars.begins_session, gap(), 0.0),
        "session_ret": lambda: np.where(bars.begins_session, intraday(), ret),
        "one": lambda: np.ones_like(ret),
        "dollars": dollars,
        "flow": lambda: dollars() * (ret / (magnitude() + FLOOR)),
        "to_high": lambda: np.log(bars.high / bars.close),
        "to_low": lambda: np.log(bars.low / bars.close),
        "begins_session": lambda: bars.begins_session.astype(np.float64),
    }
    return {"ret": ret, **{name: make() for name, make in columns.items() if wanted is None or name in wanted}}


def usable(values_T6: Float) -> Bool:
    """Tell which bars features can be computed from, (T,); columns are open, high, low, close, volume, adj_factor."""
    finite = np.isfinite(values_T6).all(axis=-1)
    positive = (values_T6[:, [0, 1, 2, 3, 5]] > 0.0).all(axis=-1)
    return np.asarray(finite & positive & (values_T6[:, 4] >= 0.0), dtype=np.bool_)
