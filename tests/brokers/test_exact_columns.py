"""Columns of exact numbers against the same arithmetic in Decimal and Fraction."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.costs import quantise
from brokers.exact_columns import (
    ExactError,
    Pair,
    constants,
    product,
    quantised_units,
    running_maximum,
    units,
)

PRICES = st.floats(1e-6, 4e6, allow_nan=False)
WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
LARGE = st.integers(-(10**30), 10**30)


def exactly(pair: Pair) -> list[int]:
    return [int(high) + int(low) for high, low in zip(pair.high, pair.low, strict=True)]


@given(st.lists(PRICES | st.integers(0, 10**9).map(lambda n: (2 * n + 1) / 2**10), min_size=1, max_size=30))
def test_prices_become_units_as_money_is_rounded(prices: list[float]) -> None:
    found = [Decimal(int(value)).scaleb(-9) for value in quantised_units(np.array(prices))]
    assert found == [quantise(price) for price in prices]


def test_halves_of_a_unit_go_to_the_even_one() -> None:
    # 0.5 ** 10 has its last digit at 1e-10, halfway between two units
    prices = [count * 0.5**10 for count in range(1, 64)]
    assert [Decimal(int(v)).scaleb(-9) for v in quantised_units(np.array(prices))] == [quantise(p) for p in prices]


@given(st.lists(st.tuples(WHOLE, WHOLE, LARGE), min_size=1, max_size=20))
def test_sums_of_products_are_exact(rows: list[tuple[int, int, int]]) -> None:
    left, right, cash = (list(column) for column in zip(*rows, strict=True))
    found = constants(cash) + product(np.array(left, dtype=np.float64), np.array(right, dtype=np.float64))
    for total, (one, other, third) in zip(exactly(found), rows, strict=True):
        exact = one * other + third
        assert abs(total - exact) <= max(abs(one * other), abs(third)) * 2.0**-100


@given(st.lists(st.tuples(LARGE, st.integers(1, 10**30)), min_size=1, max_size=20))
def test_a_quotient_is_the_nearest_float_unless_it_says_that_it_is_in_doubt(rows: list[tuple[int, int]]) -> None:
    above, below = (constants(list(column)) for column in zip(*rows, strict=True))
    found, doubtful = above.over(below)
    for value, unsure, (one, other) in zip(found, doubtful, rows, strict=True):
        assert unsure or value == float(Fraction(one, other))


@given(st.lists(st.integers(-3, 3).map(lambda n: 10**24 + n) | LARGE, min_size=1, max_size=30))
def test_the_running_maximum_tells_numbers_apart_that_one_float_cannot(numbers: list[int]) -> None:
    expected = [max(numbers[: end + 1]) for end in range(len(numbers))]
    assert exactly(running_maximum(constants(numbers))) == expected


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ExactError, match="bits"):
        constants([10**40])
    with pytest.raises(ExactError, match="decimals"):
        units(Decimal("0.0000000001"), 9)
    with pytest.raises(ExactError, match="price"):
        quantised_units(np.array([1e9]))


def test_long_columns_are_divided_as_short_ones() -> None:
    rng = np.random.default_rng(0)
    whole, by = (np.rint(rng.uniform(1e9, 9e15, 20_000)) for _ in range(2))
    found, doubtful = product(whole, by).over(product(by, by))
    for begin in range(0, 20_000, 6_000):
        part = np.s_[begin : begin + 6_000]
        quotient, unsure = product(whole[part], by[part]).over(product(by[part], by[part]))
        assert np.array_equal(found[part], quotient)
        assert np.array_equal(doubtful[part], unsure)


def test_long_columns_of_prices_become_units_as_short_ones() -> None:
    prices = np.random.default_rng(0).uniform(1e-6, 4e6, 20_000)
    parts = [quantised_units(prices[begin : begin + 6_000]) for begin in range(0, 20_000, 6_000)]
    assert np.array_equal(quantised_units(prices), np.concatenate(parts))
