"""Decimal arithmetic on whole columns: sums, products and quotients of money as the same arithmetic in Decimal.

A column of exact numbers is a pair of float64 columns, (high, low), whose sum is the number and where |low| is at
most half a unit in the last place of high ("double-double": Dekker 1971; Hida, Li & Bailey 2001). 106 bits hold
money of up to 31 digits. Results that cannot be told from a tie between two floats are reported, so that their
owner computes them in Decimal.

Axes: T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from brokers.series import Float

Bool = NDArray[np.bool_]

_SPLITTER = 134_217_729.0  # 2^27 + 1
WHOLE_MAX = 2.0**53
"""Integers below it are floats."""
_BITS_MAX = 104
_BLOCK = 8_192
"""Rows that are computed at a time, where there are many columns on the way."""
_TIE = 1e-6
"""Distance from a tie, in units of the last place, below which a rounding is reported as doubtful."""


class ExactError(ValueError):
    """A number that does not fit into two floats."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A column of exact numbers, high + low; see the module."""

    high: Float
    low: Float

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.high)

    def __add__(self, other: Pair) -> Pair:
        """Add; exact but for the last of 106 bits."""
        total, error = _two_sum(self.high, other.high)
        return _normalised(total, error + (self.low + other.low))

    def over(self, other: Pair) -> tuple[Float, Bool]:
        """Return the quotient rounded to float, and the rows in which the rounding is doubtful."""
        total, doubtful = np.empty(len(self)), np.empty(len(self), dtype=np.bool_)
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            total[rows], doubtful[rows] = _quotient(self.high[rows], self.low[rows], other.high[rows], other.low[rows])
        return total, doubtful


def _quotient(high: Float, low: Float, by_high: Float, by_low: Float) -> tuple[Float, Bool]:
    """Return (high + low) / (by_high + by_low), and where its rounding is doubtful."""
    first = high / by_high
    product, error = _two_product(first, by_high)
    rest = (high - product) - error + (low - first * by_low)
    second = rest / by_high
    total = first + second
    lost = np.abs(second - (total - first)) / np.spacing(np.abs(total))
    # at a power of two the floats below lie half as far apart
    doubtful = (np.abs(lost - 0.5) < _TIE) | (np.abs(lost - 0.25) < _TIE)
    return total, doubtful | ~np.isfinite(total)


def constants(numbers: list[int]) -> Pair:
    """Return integers as a column.

    Raises:
        ExactError: One of them has more bits than two floats hold.
    """
    for number in numbers:
        if abs(number).bit_length() > _BITS_MAX:
            raise ExactError(f"{number} has more than {_BITS_MAX} bits")
    high = [float(number) for number in numbers]
    low = [float(number - int(value)) for number, value in zip(numbers, high, strict=True)]
    return Pair(np.array(high, dtype=np.float64), np.array(low, dtype=np.float64))


def product(left: Float, right: Float) -> Pair:
    """Return the exact products of whole numbers below `WHOLE_MAX`."""
    return Pair(*_two_product(left, right))


def units(number: Decimal, decimals: int) -> int:
    """Return a number in units of its last decimal.

    Raises:
        ExactError: It has further decimals.
    """
    numerator, denominator = number.as_integer_ratio()
    scale: int = 10**decimals
    whole, rest = divmod(numerator * scale, denominator)
    if rest:
        raise ExactError(f"{number} has more than {decimals} decimals")
    return whole


def quantised_units(price_T: Float) -> Float:
    """Return prices in units of 1e-9 as `costs.quantise` rounds them, half to even: whole numbers.

    Raises:
        ExactError: A price too large, or none.
    """
    whole = np.empty(len(price_T))
    for begin in range(0, len(price_T), _BLOCK):
        whole[begin : begin + _BLOCK] = _whole_units(price_T[begin : begin + _BLOCK])
    return whole


def _whole_units(price_T: Float) -> Float:
    scaled, error = _two_product(price_T, np.full_like(price_T, 1e9))
    if not float(np.abs(scaled).max()) < WHOLE_MAX / 2:
        raise ExactError(f"a price of {float(price_T.max())} has no units of 1e-9 that a float holds")
    whole = np.rint(scaled)
    # only at half a unit, from which rint went to an even number, does the product's error decide
    fraction = scaled - whole
    whole = np.where((fraction == 0.5) & (error > 0.0), whole + 1.0, whole)
    return np.where((fraction == -0.5) & (error < 0.0), whole - 1.0, whole)


def running_maximum(column: Pair) -> Pair:
    """Return the largest number of every row and those before it."""
    highest = np.maximum.accumulate(column.high)
    at_top = np.flatnonzero(column.high == highest)
    low = column.low.copy()
    tops_high, tops_low = highest[at_top], low[at_top]
    same = tops_high[1:] == tops_high[:-1]
    differ = same & (tops_low[1:] != tops_low[:-1])
    if differ.any():  # rows that are told apart by the second float alone
        group = np.concatenate(([0], np.cumsum(~same)))
        for one in np.unique(group[1:][differ]).tolist():
            begin, end = np.searchsorted(group, [one, one + 1]).tolist()
            tops_low[begin:end] = np.maximum.accumulate(tops_low[begin:end])
    low[at_top] = tops_low
    last_top = np.zeros(len(column), dtype=np.int64)
    last_top[at_top] = at_top
    return Pair(highest, low[np.maximum.accumulate(last_top)])


def _two_sum(left: Float, right: Float) -> tuple[Float, Float]:
    total = left + right
    shadow = total - left
    return total, (left - (total - shadow)) + (right - shadow)


def _two_product(left: Float, right: Float) -> tuple[Float, Float]:
    result = left * right
    left_high, left_low = _halves(left)
    right_high, right_low = _halves(right)
    error = ((left_high * right_high - result) + left_high * right_low + left_low * right_high) + left_low * right_low
    return result, error


def _halves(value: Float) -> tuple[Float, Float]:
    shifted = _SPLITTER * value
    high = shifted - (shifted - value)
    return high, value - high


def _normalised(high: Float, low: Float) -> Pair:
    total = high + low
    return Pair(total, low - (total - high))
