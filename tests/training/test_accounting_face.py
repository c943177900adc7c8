import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_markets import ALL_COSTS, EPOCH_NS, HOUR_NS, NO_COSTS, walk

from brokers.account import AccountBook
from brokers.costs import ReferenceBar, dividend_per_unit, quantise
from brokers.domain import Side
from brokers.series import BarSeries, from_ns
from training.accounting import AccountedEquity, Execution, FillKind, account_equity
from training.errors import AccountingError
from training.market import reward_table

CASH = Decimal(100_000)


def execution(
    index: int, side: Side, qty: str, kind: FillKind = FillKind.OPEN, level: float | None = None
) -> Execution:
    return Execution("AAA", side, Decimal(qty), EPOCH_NS + index * HOUR_NS, kind, level)


def account(bars: BarSeries, *executions: Execution) -> AccountedEquity:
    return account_equity({bars.symbol: bars}, executions, CASH, ALL_COSTS)


def reference(bars: BarSeries, index: int) -> ReferenceBar:
    return ReferenceBar.of(bars.high[index], bars.low[index], bars.volume[index])


def test_an_account_that_never_trades_keeps_its_cash_at_every_close() -> None:
    bars = walk()
    result = account(bars)
    assert result.equity == (CASH,) * len(bars)
    assert result.close_ns.tolist() == bars.close_ns.tolist()


def test_a_market_order_fills_at_the_open_with_spread_impact_and_fee() -> None:
    bars = walk()
    result = account(bars, execution(10, Side.BUY, "12.5"))
    price = ALL_COSTS.taking_price(bars.open[10], Side.BUY, 12.5, reference(bars, 9))
    fee = ALL_COSTS.fee(Decimal("12.5"), price)
    assert (result.fills[0].price, result.fills[0].fee) == (price, fee)
    for index in range(10, len(bars)):
        mark = quantise(bars.close[index])
        assert result.equity[index] == CASH - Decimal("12.5") * price - fee + Decimal("12.5") * mark


def test_a_stop_that_gaps_through_fills_at_the_open() -> None:
    bars = walk()
    level = bars.open[12] * 1.001
    result = account(bars, execution(10, Side.BUY, "5"), execution(12, Side.SELL, "5", FillKind.STOP, level))
    assert result.fills[1].price == ALL_COSTS.taking_price(bars.open[12], Side.SELL, 5.0, reference(bars, 11))


def test_a_stop_inside_the_bar_fills_at_its_level_and_pays_for_taking() -> None:
    bars = walk()
    level = (min(bars.open[12], bars.close[12]) + bars.low[12]) / 2
    result = account(bars, execution(10, Side.BUY, "5"), execution(12, Side.SELL, "5", FillKind.STOP, level))
    assert result.fills[1].price == ALL_COSTS.taking_price(level, Side.SELL, 5.0, reference(bars, 11))


def test_a_limit_fills_at_its_level_and_pays_only_the_fee() -> None:
    bars = walk()
    level = (max(bars.open[12], bars.close[12]) + bars.high[12]) / 2
    result = account(bars, execution(10, Side.BUY, "5"), execution(12, Side.SELL, "5", FillKind.LIMIT, level))
    assert result.fills[1].price == quantise(level)
    assert result.fills[1].fee == ALL_COSTS.fee(Decimal(5), quantise(level))


def test_a_split_moves_the_quantity_before_the_bars_executions() -> None:
    bars = walk(events={20: 2.0})
    result = account(bars, execution(10, Side.BUY, "8"), execution(20, Side.SELL, "16"))
    assert result.equity[20] == result.equity[-1]


def test_a_dividend_pays_cash_on_what_is_held_at_the_previous_close() -> None:
    bars = walk(events={20: 1.01})
    held = account(bars, execution(10, Side.BUY, "8"))
    bought_after = account(bars, execution(20, Side.BUY, "8"))
    per_unit = dividend_per_unit(bars.close[19], bars.adj_factor[20] / bars.adj_factor[19])
    move = Decimal(8) * (quantise(bars.close[20]) - quantise(bars.close[19]))
    assert held.equity[20] - held.equity[19] == move + 8 * per_unit
    fill = bought_after.fills[0]
    assert bought_after.equity[20] == CASH - fill.fee + 8 * (quantise(bars.close[20]) - fill.price)


def test_a_short_earns_the_fall_and_pays_the_dividend() -> None:
    bars = walk(events={20: 1.01})
    result = account(bars, execution(10, Side.SELL, "8"))
    per_unit = dividend_per_unit(bars.close[19], bars.adj_factor[20] / bars.adj_factor[19])
    move = Decimal(-8) * (quantise(bars.close[20]) - quantise(bars.close[19]))
    assert result.equity[20] - result.equity[19] == move - 8 * per_unit


def test_the_rewards_of_full_exposure_without_costs_are_the_accounts_growth() -> None:
    bars = walk(events={30: 3.0})
    result = account_equity(
        {"AAA": bars},
        [execution(10, Side.BUY, repr(float(100_000 / bars.open[10])))],
        CASH,
        NO_COSTS,
    )
    rewards = reward_table(bars, NO_COSTS, capital_usd=100_000.0)
    total = rewards[9, 1, 2] + rewards[10:-1, 2, 2].sum()
    assert math.isclose(float(result.equity[-1] / CASH), math.exp(total), rel_tol=1e-9)


def test_two_symbols_are_marked_together_at_their_common_closes() -> None:
    one, two = walk("AAA"), walk("BBB", seed=4)
    trades = [
        execution(10, Side.BUY, "3"),
        Execution("BBB", Side.SELL, Decimal(7), EPOCH_NS + 15 * HOUR_NS, FillKind.OPEN),
    ]
    both = account_equity({"AAA": one, "BBB": two}, trades, CASH, ALL_COSTS)
    apart = [account_equity({s.symbol: s}, [t], CASH, ALL_COSTS) for s, t in zip((one, two), trades, strict=True)]
    assert len(both.equity) == len(one)
    for together, first, second in zip(both.equity, apart[0].equity, apart[1].equity, strict=True):
        assert together == first + second - CASH


def test_a_symbol_that_misses_a_bar_is_marked_at_its_last_close() -> None:
    whole, other = walk("AAA"), walk("BBB", seed=4)
    keep = np.arange(len(other)) != 30
    holed = BarSeries(
        "BBB",
        **{
            name: getattr(other, name)[keep]
            for name in ("start_ns", "close_ns", "open_ns", "open", "high", "low", "close", "volume", "adj_factor")
        },
    )
    trade = Execution("BBB", Side.BUY, Decimal(7), EPOCH_NS + 15 * HOUR_NS, FillKind.OPEN)
    result = account_equity({"AAA": whole, "BBB": holed}, [trade], CASH, ALL_COSTS)
    assert result.equity[30] == result.equity[29]


def trades_table(**changes: Any) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "symbol": ["AAA", "AAA"],
        "side": ["buy", "sell"],
        "qty": [2.5, 2.5],
        "price": [0.0, 0.0],
        "fee": [0.0, 0.0],
        "bar_start": [from_ns(EPOCH_NS + 10 * HOUR_NS), from_ns(EPOCH_NS + 20 * HOUR_NS)],
        "filled_at": [datetime(2026, 1, 1, tzinfo=UTC)] * 2,
        "kind": ["open", "open"],
        "level": [None, None],
        "client_id": ["a", "b"],
        "leg": ["entry", "close"],
    }
    return pl.DataFrame({**columns, **changes})


def test_a_replays_trades_table_is_read_as_it_is() -> None:
    bars = walk()
    from_table = account_equity({"AAA": bars}, trades_table(), CASH, ALL_COSTS)
    direct = account(bars, execution(10, Side.BUY, "2.5"), execution(20, Side.SELL, "2.5"))
    assert from_table.equity == direct.equity


def test_quantities_as_decimals_or_text_mean_the_same_as_floats() -> None:
    bars = walk()
    for qty in (["2.5", "2.5"], [Decimal("2.5"), Decimal("2.5")]):
        result = account_equity({"AAA": bars}, trades_table(qty=qty), CASH, ALL_COSTS)
        assert result.equity == account_equity({"AAA": bars}, trades_table(), CASH, ALL_COSTS).equity


def test_a_row_that_is_not_an_execution_is_refused_with_its_content() -> None:
    with pytest.raises(AccountingError, match="sideways"):
        account_equity({"AAA": walk()}, trades_table(side=["buy", "sideways"]), CASH, ALL_COSTS)


def test_a_fill_in_a_bar_that_is_not_there_is_refused() -> None:
    with pytest.raises(AccountingError, match="no bar that starts at"):
        account(walk(), execution(500, Side.BUY, "1"))


def test_a_fill_without_a_completed_bar_before_it_is_refused() -> None:
    with pytest.raises(AccountingError, match="no completed bar"):
        account(walk(), execution(0, Side.BUY, "1"))


def test_a_limit_that_the_bar_never_traded_through_is_refused() -> None:
    bars = walk()
    with pytest.raises(AccountingError, match="cannot fill"):
        account(bars, execution(12, Side.SELL, "1", FillKind.LIMIT, bars.high[12] * 1.1))


def test_an_unknown_symbol_is_refused() -> None:
    with pytest.raises(AccountingError, match="no bars of ZZZ"):
        account_equity(
            {"AAA": walk()}, [Execution("ZZZ", Side.BUY, Decimal(1), EPOCH_NS, FillKind.OPEN)], CASH, ALL_COSTS
        )


def test_many_random_trades_equal_a_ledger_kept_by_hand() -> None:
    rng = np.random.default_rng(8)
    bars = walk(n=200, events={50: 0.5, 120: 1.02, 160: 1.25})
    trades = [
        execution(int(i), Side.BUY if rng.random() < 0.5 else Side.SELL, f"{rng.uniform(1, 9):.6f}")
        for i in np.sort(rng.integers(1, 200, size=80))
    ]
    result = account(bars, *trades)
    cash, qty = float(CASH), 0.0
    for index in range(200):
        if index:
            ratio = bars.adj_factor[index] / bars.adj_factor[index - 1]
            if ratio >= 1.2 or ratio <= 1 / 1.2:
                qty *= ratio
            else:
                cash += qty * bars.close[index - 1] * (1 - 1 / ratio)
        for trade in (t for t in trades if t.bar_start_ns == bars.start_ns[index]):
            size, sign = float(trade.qty), trade.side.sign
            ref = reference(bars, index - 1)
            price = bars.open[index] * (1 + sign * (2e-4 + ALL_COSTS.impact_fraction(size, ref)))
            cash -= sign * size * price + size * price * 1e-3
            qty += sign * size
        assert math.isclose(float(result.equity[index]), cash + qty * bars.close[index], rel_tol=1e-9)


def test_the_book_it_keeps_is_the_shared_account_book() -> None:
    bars = walk()
    result = account(bars, execution(10, Side.BUY, "3"), execution(20, Side.SELL, "1"))
    book = AccountBook(cash=CASH)
    for fill in result.fills:
        book.fill("AAA", fill.execution.side, fill.execution.qty, fill.price, fill.fee)
    assert result.equity[-1] == book.equity({"AAA": quantise(bars.close[-1])})
