"""The feature groups: each feature is one formula of window statistics, free of scale, clipped to its range.

Units: distances and returns are in volatilities of the same number of bars ("how many sigmas"), volumes in
their own mean, sizes of volatility in logarithms. `unit` is the window, in bars, of the volatility that
divides. All denominators are guarded: flat prices and zero volume give finite values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.features.columns import FLOOR, Float
from strategies.features.view import MarketView

SIGMAS = 8.0
"""Range of features measured in volatilities."""
LOGS = 5.0
"""Range of logarithms of ratios."""
LEVELS = 32.0
"""Range of user columns at their own level: the inverse hyperbolic sine of 4e13."""
TYPICAL_SIGMA = 2e-3
"""The volatility of a bar that counts as zero on the logarithmic scale of `volatility`."""


Formula = Callable[..., Float]
"""Called with a `MarketView` alone; further parameters are defaults that pin a loop's variable."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the model's input.

    Args:
        name: `group.feature`, unique in its spec.
        low: Smallest value it takes; the formula is clipped there.
        high: Largest value.
        formula: Window statistics in, values out.
    """

    name: str
    low: float
    high: float
    formula: Formula


def sigmas(name: str, formula: Formula) -> Feature:
    """Return a feature measured in volatilities."""
    return Feature(name, -SIGMAS, SIGMAS, formula)


def logs(name: str, formula: Formula) -> Feature:
    """Return a feature that is the logarithm of a ratio."""
    return Feature(name, -LOGS, LOGS, formula)


def share(name: str, formula: Formula, low: float = -1.0) -> Feature:
    """Return a feature within [low, 1]."""
    return Feature(name, low, 1.0, formula)


def _over(numerator: Float, denominator: Float) -> Float:
    """Divide where the denominator is positive; zero elsewhere."""
    positive = denominator > 0.0
    return np.where(positive, numerator / np.where(positive, denominator, 1.0), 0.0)


def _log_ratio(numerator: Float, denominator: Float) -> Float:
    """Logarithm of a ratio of non-negative amounts, with 1% of the denominator added to both.

    Bounded below where the numerator is zero; zero where the denominator is.
    """
    ratio = _over(numerator, denominator)
    return np.where(denominator > 0.0, np.log((ratio + 0.01) * (1.0 / 1.01)), 0.0)


def returns(*, horizons: Sequence[int], unit: int) -> Iterator[Feature]:
    """Yield price changes over several horizons, in volatilities of that horizon."""
    for bars in horizons:
        yield sigmas(f"returns.last_{bars}", lambda v, h=bars: v.sum("ret", h) / v.scale(unit, h))


def volume(*, ratios: Sequence[Sequence[int]], flows: Sequence[int], illiquidity: Sequence[int]) -> Iterator[Feature]:
    """Yield traded value against its own past, signed flow, and price moved per value traded (Amihud 2002)."""
    for short, long in ratios:
        yield logs(
            f"volume.mean_{short}_to_{long}",
            lambda v, a=short, b=long: _log_ratio(v.mean("dollars", a), v.mean("dollars", b)),
        )
    for bars in flows:
        yield share(f"volume.flow_{bars}", lambda v, w=bars: _over(v.sum("flow", w), v.sum("dollars", w)))
    short, long = illiquidity

    def amihud(v: MarketView) -> Float:
        moved = np.log((v.mean("abs_ret", short) + FLOOR) / (v.mean("abs_ret", long) + FLOOR))
        return moved - _log_ratio(v.mean("dollars", short), v.mean("dollars", long))

    yield logs(f"volume.illiquidity_{short}_to_{long}", amihud)


def volatility(*, levels: Sequence[int], ranges: Sequence[int], downside: int, tails: int) -> Iterator[Feature]:
    """Yield the size of volatility, and what its shape says."""
    for bars in levels:
        yield logs(f"volatility.level_{bars}", lambda v, w=bars: np.log(v.sigma(w) * (1.0 / TYPICAL_SIGMA)))
    for bars in ranges:
        # range-based against close-based: high where bars swing and return
        yield logs(
            f"volatility.range_to_close_{bars}",
            lambda v, w=bars: 0.5 * np.log((v.mean("parkinson", w) + FLOOR**2) / (v.mean("ret2", w) + FLOOR**2)),
        )
    yield share(
        f"volatility.downside_{downside}",
        lambda v: 2.0 * v.sum("down2", downside) / (v.sum("ret2", downside) + FLOOR**2) - 1.0,
    )
    # 0.226 for normal returns; larger with fat tails
    yield logs(f"volatility.tails_{tails}", lambda v: np.log(v.sigma(tails) / (v.mean("abs_ret", tails) + FLOOR)))


def trend(
    *, means: Sequence[int], slopes: Sequence[int], averages: Sequence[Sequence[int]], unit: int
) -> Iterator[Feature]:
    """Yield distances from means, slopes of means, and differences of exponential averages."""
    for bars in means:
        # the distance from the mean of W random-walk steps has variance sigma^2 W / 3
        yield sigmas(f"trend.above_mean_{bars}", lambda v, w=bars: v.above_mean(w) / v.scale(unit, w / 3.0))
    for bars in slopes:
        # mean of the last W closes minus that of the W before: variance sigma^2 2W / 3
        yield sigmas(
            f"trend.slope_{bars}",
            lambda v, w=bars: (
                (v.sum("ret", w) - v.above_mean(w) + v.above_mean(w, lag=w)) / v.scale(unit, 2.0 * w / 3.0)
            ),
        )
    for fast, slow, window in averages:
        yield sigmas(f"trend.averages_{fast}_{slow}", _averages(fast, slow, window, unit))


def crossing(*, pairs: Sequence[Sequence[int]], unit: int) -> Iterator[Feature]:
    """Yield fast minus slow simple mean of the log price, in its own volatility.

    The slow mean looks back (slow - fast) / 2 bars further: on a random walk the difference has about the variance
    sigma^2 (slow - fast) / 3 where fast is much the smaller.
    """
    for fast, slow in pairs:
        yield sigmas(
            f"crossing.means_{fast}_{slow}",
            lambda v, a=fast, b=slow: (v.above_mean(b) - v.above_mean(a)) / v.scale(unit, (b - a) / 3.0),
        )


def _averages(fast: int, slow: int, window: int, unit: int) -> Callable[[MarketView], Float]:
    """Difference of two exponential means of the log price, fast minus slow, in its own volatility.

    log p minus its exponential mean is sum_j r_j rate^(j + 1); the difference of two such sums has weights
    c_j = slow^(j + 1) - fast^(j + 1) and, on a random walk, variance sigma^2 sum c_j^2.
    """
    fast_rate, slow_rate = 0.5 ** (1.0 / fast), 0.5 ** (1.0 / slow)
    spread = math.sqrt(math.fsum((slow_rate ** (j + 1) - fast_rate ** (j + 1)) ** 2 for j in range(window)))

    def formula(v: MarketView) -> Float:
        above_slow = v.decayed("ret", slow, window) * slow_rate
        above_fast = v.decayed("ret", fast, window) * fast_rate
        distance: Float = above_slow - above_fast
        return distance / (v.sigma(unit) * spread)

    return formula


def range_(*, positions: Sequence[int], widths: Sequence[int], unit: int) -> Iterator[Feature]:
    """Yield the bar's own shape and where the close stands in the range of a window."""
    yield sigmas("range.bar", lambda v: v.now("range") / v.sigma(unit))
    yield sigmas("range.gap", lambda v: v.now("gap") / v.sigma(unit))
    for bars in positions:
        # -1 at the lowest low, 1 at the highest high
        yield share(
            f"range.position_{bars}",
            lambda v, w=bars: -(v.high(w) + v.low(w)) / (v.high(w) - v.low(w) + FLOOR),
        )
    for bars in widths:
        yield logs(
            f"range.width_{bars}",
            lambda v, w=bars: np.log((v.high(w) - v.low(w) + FLOOR) / v.scale(unit, w)),
        )


def overnight(*, window: int, unit: int) -> Iterator[Feature]:
    """Yield what happened while the venue was shut, and since it opened."""
    # against the volatility of one short bar a night is huge: the inverse hyperbolic sine keeps it in range
    yield sigmas("overnight.gap", lambda v: np.arcsinh(v.since_session("overnight") / v.sigma(unit)))
    yield sigmas(
        "overnight.session",
        lambda v: v.since_session("session_ret") / (v.sigma(unit) * np.sqrt(v.since_session("one"))),
    )
    yield sigmas(f"overnight.sum_{window}", lambda v: v.sum("overnight", window) / v.scale(unit, window))


def calendar(*, intraday: bool) -> Iterator[Feature]:
    """Yield the time of the day, of the week and of the session."""
    names = ("time_sin", "time_cos", "progress") if intraday else ()
    for name in ("week_sin", "week_cos", *names):
        low = 0.0 if name == "progress" else -1.0
        yield share(f"calendar.{name}", lambda v, n=name: v.clock(n), low)


def regime(
    *,
    ratios: Sequence[Sequence[int]],
    efficiency: Sequence[int],
    autocorrelation: Sequence[int],
    drawdowns: Sequence[int],
) -> Iterator[Feature]:
    """Yield which market this is: calm or wild, trending or choppy, persistent or reverting, near its high or below."""
    for short, long in ratios:
        yield logs(
            f"regime.volatility_{short}_to_{long}",
            lambda v, a=short, b=long: np.log(v.sigma(a) / v.sigma(b)),
        )
    for bars in efficiency:
        # Kaufman's ratio, signed: net move over the path walked
        yield share(
            f"regime.efficiency_{bars}",
            lambda v, w=bars: v.sum("ret", w) / (v.sum("abs_ret", w) + FLOOR),
        )
    for bars in autocorrelation:
        yield share(
            f"regime.autocorrelation_{bars}",
            lambda v, w=bars: v.sum("lagged", w) / (v.sum("ret2", w) + w * FLOOR**2),
        )
    for bars in drawdowns:
        yield Feature(
            f"regime.drawdown_{bars}",
            0.0,
            SIGMAS,
            lambda v, w=bars: v.high(w) / v.scale(w, w),
        )


def signals(*, names: Sequence[str], window: int) -> Iterator[Feature]:
    """Yield the user's own columns, each through a robust rolling z-score."""
    for name in names:
        yield sigmas(f"signals.{name}", lambda v, n=name: v.score(n, window))


def levels(*, names: Sequence[str]) -> Iterator[Feature]:
    """Yield the user's own columns at their own level: asinh of the value, linear below 1 and a logarithm above.

    What a column is worth may hang on where it stands, which no score against its own recent past can tell. Models
    normalise their inputs by the training bars, so a small unit costs nothing; a column that changes its sign is best
    given in a unit in which it is mostly within 10 of zero. A value that is not finite leaves the row unusable.
    """
    for name in names:
        yield Feature(f"levels.{name}", -LEVELS, LEVELS, lambda v, n=name: _level(v.signal(n, 1)[:, -1]))


def _level(value_n: Float) -> Float:
    return np.arcsinh(np.where(np.isfinite(value_n), value_n, np.nan))


def window_changes(*, window: int) -> Iterator[Feature]:
    """Yield the last price changes as log returns, oldest first."""
    for age in reversed(range(window)):
        yield Feature(f"changes.age_{age}", -0.5, 0.5, lambda v, k=age: v.now("ret", k))


def window_volume(*, window: int) -> Iterator[Feature]:
    """Yield the last traded values over the largest among them, oldest first."""

    def largest(v: MarketView) -> Float:
        return np.asarray(np.maximum.reduce([v.now("dollars", age) for age in range(window)]))

    for age in reversed(range(window)):
        yield share(
            f"volume.age_{age}",
            lambda v, k=age: _over(v.now("dollars", k), largest(v)),
            low=0.0,
        )


def window_volatility(*, window: int) -> Iterator[Feature]:
    """Yield the last volatilities, each over `window` bars, over the largest among them, oldest first."""

    def largest(v: MarketView) -> Float:
        return np.asarray(np.maximum.reduce([v.sigma(window, age) for age in range(window)]))

    for age in reversed(range(window)):
        yield share(
            f"volatility.age_{age}",
            lambda v, k=age: v.sigma(window, k) / largest(v),
            low=0.0,
        )


GROUPS: Mapping[str, Callable[..., Iterator[Feature]]] = {
    "returns": returns,
    "volume": volume,
    "volatility": volatility,
    "trend": trend,
    "crossing": crossing,
    "range": range_,
    "overnight": overnight,
    "calendar": calendar,
    "regime": regime,
    "signals": signals,
    "levels": levels,
    "window_changes": window_changes,
    "window_volume": window_volume,
    "window_volatility": window_volatility,
}
"""Group kinds by name, as they stand in a spec's JSON. A changed formula needs a new `spec.DEFINITIONS`."""
