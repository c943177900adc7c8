"""The one account function, by hand: average cost, realised profit, splits, dividends, equity."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.account import AccountBook, Holding
from brokers.domain import Side

ZERO = Decimal(0)


def book_of(*fills: tuple[Side, int, int]) -> AccountBook:
    """Return an account of 10,000 after executions (side, quantity, price) that each pay a fee of 1."""
    book = AccountBook(cash=Decimal(10_000))
    for side, qty, price in fills:
        book.fill("X", side, Decimal(qty), Decimal(price), Decimal(1))
    return book


def test_buying_more_averages_the_cost_by_quantity() -> None:
    book = book_of((Side.BUY, 10, 100), (Side.BUY, 30, 120))
    assert book.holdings["X"] == Holding(qty=Decimal(40), avg_cost=Decimal(115))


def test_selling_a_part_realises_its_gain_and_keeps_the_cost_of_the_rest() -> None:
    book = book_of((Side.BUY, 10, 100), (Side.SELL, 4, 110))
    assert (book.realised_pnl, book.holdings["X"]) == (Decimal(40), Holding(Decimal(6), Decimal(100)))


def test_a_short_gains_where_the_price_falls() -> None:
    book = book_of((Side.SELL, 10, 100), (Side.BUY, 10, 90))
    assert (book.realised_pnl, book.cash, book.holdings) == (Decimal(100), Decimal(10_098), {})


def test_turning_a_position_realises_the_old_one_and_costs_the_new_one_at_its_price() -> None:
    book = book_of((Side.BUY, 10, 100), (Side.SELL, 25, 104))
    assert (book.realised_pnl, book.holdings["X"]) == (Decimal(40), Holding(Decimal(-15), Decimal(104)))


def test_fees_leave_cash_and_are_counted_beside_the_realised_profit() -> None:
    book = book_of((Side.BUY, 10, 100), (Side.SELL, 10, 100))
    assert (book.cash, book.fees_paid, book.realised_pnl) == (Decimal(9_998), Decimal(2), ZERO)


@pytest.mark.parametrize("ratio", [Decimal(4), Decimal("0.1")])
def test_a_split_keeps_the_value_at_cost(ratio: Decimal) -> None:
    book = book_of((Side.BUY, 10, 100))
    book.split("X", ratio)
    assert book.holdings["X"] == Holding(qty=10 * ratio, avg_cost=100 / ratio)


@pytest.mark.parametrize(("side", "cash"), [(Side.BUY, 5), (Side.SELL, -5)])
def test_a_dividend_is_paid_to_a_long_and_by_a_short(side: Side, cash: int) -> None:
    book = book_of((side, 10, 100))
    before = book.cash
    assert book.dividend("X", Decimal("0.5")) == cash
    assert book.cash - before == cash


def test_what_is_not_held_neither_splits_nor_pays() -> None:
    book = book_of()
    book.split("X", Decimal(2))
    assert (book.dividend("X", Decimal(1)), book.cash, book.qty("X")) == (ZERO, Decimal(10_000), ZERO)


def test_a_holding_without_a_mark_has_no_equity_rather_than_less() -> None:
    with pytest.raises(KeyError):
        book_of((Side.BUY, 10, 100)).equity({})


@given(
    fills=st.lists(
        st.tuples(st.sampled_from(list(Side)), st.integers(1, 50), st.integers(1, 500)), min_size=1, max_size=30
    ),
    mark=st.integers(1, 500),
)
def test_equity_is_what_came_in_plus_realised_plus_unrealised_minus_fees(
    fills: list[tuple[Side, int, int]], mark: int
) -> None:
    book = book_of(*fills)
    held = book.holdings.get("X", Holding())
    unrealised = held.qty * (mark - held.avg_cost)
    expected = 10_000 + book.realised_pnl + unrealised - book.fees_paid
    assert abs(book.equity({"X": Decimal(mark)}) - expected) < Decimal("1e-15")


def test_a_split_rounds_toward_zero_at_a_billionth_and_a_holding_without_units_ends() -> None:
    book = AccountBook(cash=Decimal(0))
    book.fill("X", Side.BUY, Decimal("0.100001"), Decimal(10), Decimal(0))
    book.split("X", Decimal("0.333333333333"))
    assert book.qty("X") == Decimal("0.033333666")
    book.split("X", Decimal("0.00000001"))
    assert "X" not in book.holdings
