"""What every bracket would have earned from every bar, on both sides, by the exchange's own rules.

A position is decided at the close of a row and entered at the open of a later bar. Its exits stand at log distances
from the close decided on, as the daemon places them. Then, bar by bar:

- a bar that opens beyond a level fills there (a gap goes through the stop, and gives a limit more than it asked for),
- else the stop comes first where both levels lie within the bar's range: the order is not known,
- a take-profit is a limit and pays no spread, a stop takes and pays it,
- what is not left after H bars is valued at the last close, less the cost of leaving.

Levels are met in order, so one pass over H bars gives the first passage of every level, and a bracket is a comparison
of two of them: O(T (H + K)). A level is never hit to the last digit, so a touch and a trade through are not told apart.

Axes: T bars, R rows, S sides (long, short), L levels, K brackets (the stop slowest; none first on both axes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
import structlog
from numpy.typing import NDArray

from training.errors import TrainingError
from training.market import RUIN_FRACTION, Float, Float32, Int

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prices:
    """Bars one behind the other, prices in units of the first bar (splits taken out).

    Args:
        open_T: Quote currency; `high_T`, `low_T`, `close_T` likewise.
        dividend_T: Cash paid so far for each unit held since the first bar, ex at the bar's open.
        taking_T: Cost of a side that takes liquidity at the next open, fraction of notional.
        making: Cost of a side that does not, fraction of notional.
    """

    open_T: Float
    high_T: Float
    low_T: Float
    close_T: Float
    dividend_T: Float
    taking_T: Float
    making: float


@dataclass(frozen=True, slots=True)
class Labels:
    """What came of each row.

    Args:
        value_RSK: float32, log return of equity after costs of a position of one unit of equity, by bracket.
        above_R: Furthest log distance of a high above the close decided on within the horizon, at least zero.
        below_R: Of a low below it.
    """

    value_RSK: Float32
    above_R: Float32
    below_R: Float32


def label(prices: Prices, row_R: Int, entry_R: Int, end_R: Int, sigma_R: Float, levels: Sequence[float]) -> Labels:
    """Return what came of positions decided at the close of each row.

    Args:
        prices: The bars.
        row_R: Bars at whose close the position is decided.
        entry_R: Bars at whose open it is entered.
        end_R: Last bars of the horizon.
        sigma_R: Volatility of one bar, log return.
        levels: Distances in volatilities, increasing.

    Raises:
        TrainingError: A horizon beyond the bars, or before its row.
    """
    if len(row_R) and not ((row_R < entry_R).all() and (entry_R <= end_R).all() and end_R.max() < len(prices.open_T)):
        raise TrainingError("labels of exits: a horizon lies outside of the bars that are there")
    brackets = (len(levels) + 1) ** 2
    value_RSK = np.empty((len(row_R), 2, brackets), dtype=np.float32)
    reach_2R = np.empty((2, len(row_R)), dtype=np.float32)
    _label(
        (prices.open_T, prices.high_T, prices.low_T, prices.close_T, prices.dividend_T, prices.taking_T),
        float(prices.making),
        row_R,
        entry_R,
        end_R,
        sigma_R,
        np.asarray(levels, dtype=np.float64),
        value_RSK,
        reach_2R,
    )
    return Labels(value_RSK, reach_2R[0], reach_2R[1])


def _machine_code(kernel: Kernel) -> Kernel:
    """Compile `kernel` at its first call; keep the result where a folder can be written."""
    try:
        return cast("Kernel", numba.njit(cache=True, nogil=True)(kernel))
    except RuntimeError as error:
        log.warning("compiled_code_not_kept", kernel=kernel.__name__, error=str(error), remedy="set NUMBA_CACHE_DIR")
        return cast("Kernel", numba.njit(nogil=True)(kernel))


@_machine_code
def _pass_levels(
    open_T: Float,
    high_T: Float,
    low_T: Float,
    entry: int,
    end: int,
    price_2L: Float,
    bar_2L: Int,
    at_open_2L: NDArray[np.bool_],
) -> tuple[float, float]:
    """Find the bar in which each level is first met, and the price it fills at; returns highest and lowest price.

    Levels above the price are in row 0, below it in row 1, the nearest first; a bar of `end` + 1 says never.
    """
    levels = price_2L.shape[1]
    above, below = 0, 0
    top, bottom = -np.inf, np.inf
    bar_2L[:] = end + 1
    for bar in range(entry, end + 1):
        top, bottom = max(top, high_T[bar]), min(bottom, low_T[bar])
        while above < levels and high_T[bar] >= price_2L[0, above]:
            bar_2L[0, above] = bar
            at_open_2L[0, above] = open_T[bar] >= price_2L[0, above]
            price_2L[0, above] = max(price_2L[0, above], open_T[bar])
            above += 1
        while below < levels and low_T[bar] <= price_2L[1, below]:
            bar_2L[1, below] = bar
            at_open_2L[1, below] = open_T[bar] <= price_2L[1, below]
            price_2L[1, below] = min(price_2L[1, below], open_T[bar])
            below += 1
    return top, bottom


@_machine_code
def _fill_brackets(
    value_K: Float32,
    kept: float,
    stopped_L: Float,
    taken_L: Float,
    stop_bar_L: Int,
    take_bar_L: Int,
    take_at_open_L: NDArray[np.bool_],
    entry: int,
    end: int,
) -> None:
    """Write the value of every bracket: that of the level that is met first, or what was kept."""
    levels = len(stopped_L)
    bracket = 0
    for stop in range(-1, levels):
        stop_bar = stop_bar_L[stop] if stop >= 0 else end + 1
        for take in range(-1, levels):
            take_bar = take_bar_L[take] if take >= 0 else end + 1
            # the exits of an entry are armed after its bar has opened
            opens_beyond = take_bar == stop_bar and take_bar > entry and take_at_open_L[take]
            if take_bar < stop_bar or (stop_bar <= end and opens_beyond):
                value_K[bracket] = taken_L[take]
            elif stop_bar <= end:
                value_K[bracket] = stopped_L[stop]
            else:
                value_K[bracket] = kept
            bracket += 1


@_machine_code
def _equity(price: float, paid: float, sign: float) -> float:
    """Return the log growth of a unit of equity that was long (1.0) or short (-1.0) from `paid` to `price`."""
    return math.log(max(1.0 + sign * (price / paid - 1.0), RUIN_FRACTION))


@_machine_code
def _label(
    bars: tuple[Float, Float, Float, Float, Float, Float],
    making: float,
    row_R: Int,
    entry_R: Int,
    end_R: Int,
    sigma_R: Float,
    level_L: Float,
    value_RSK: Float32,
    reach_2R: Float32,
) -> None:
    """Write the labels of every row."""
    open_T, high_T, low_T, close_T, dividend_T, taking_T = bars
    levels = len(level_L)
    price_2L = np.empty((2, levels))
    bar_2L = np.empty((2, levels), dtype=np.int64)
    at_open_2L = np.zeros((2, levels), dtype=np.bool_)
    stopped_L, taken_L = np.zeros(levels), np.zeros(levels)
    for r in range(len(row_R)):
        entry, end = entry_R[r], end_R[r]
        base = close_T[row_R[r]]
        for place in range(levels):
            factor = math.exp(level_L[place] * sigma_R[r])
            price_2L[0, place], price_2L[1, place] = base * factor, base / factor
        top, bottom = _pass_levels(open_T, high_T, low_T, entry, end, price_2L, bar_2L, at_open_2L)
        reach_2R[0, r] = math.log(max(top, base) / base)
        reach_2R[1, r] = math.log(base / min(bottom, base))
        paid, before = open_T[entry], dividend_T[entry]
        takes = 2.0 * math.log1p(-taking_T[entry - 1])
        makes = 0.5 * takes + math.log1p(-making)
        for side in range(2):
            sign = 1.0 - 2.0 * side
            # a long position is stopped below and takes its profit above, a short one the other way round
            stop_at, take_at = 1 - side, side
            for place in range(levels):
                # a level that is never met has a price too: what is worked out for it is not used
                at = min(bar_2L[stop_at, place], end)
                stopped_L[place] = takes + _equity(price_2L[stop_at, place] + dividend_T[at] - before, paid, sign)
                at = min(bar_2L[take_at, place], end)
                taken_L[place] = makes + _equity(price_2L[take_at, place] + dividend_T[at] - before, paid, sign)
            _fill_brackets(
                value_RSK[r, side],
                takes + _equity(close_T[end] + dividend_T[end] - before, paid, sign),
                stopped_L,
                taken_L,
                bar_2L[stop_at],
                bar_2L[take_at],
                at_open_2L[take_at],
                entry,
                end,
            )
