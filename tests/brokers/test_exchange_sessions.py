"""The exchange on a calendar with sessions, and on recorded bars with a real split."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from exchange_kit import FAR, FREE

from brokers.bars import load_bars
from brokers.calendar import calendar, period_to_ns
from brokers.domain import OrderRequest, OrderState, OrderType, Side, TimeInForce
from brokers.series import BarSeries, to_ns
from brokers.simulated.books import MemoryBooks
from brokers.simulated.broker import default_instruments
from brokers.simulated.engine import EngineSettings, MatchingEngine
from brokers.simulated.feed import Feed

HOUR = timedelta(hours=1)
FRIDAY_OPEN = datetime(2024, 7, 5, 13, 30, tzinfo=UTC)
FRIDAY_CLOSE = datetime(2024, 7, 5, 20, 0, tzinfo=UTC)
MONDAY_OPEN = datetime(2024, 7, 8, 13, 30, tzinfo=UTC)


@pytest.fixture
def engine() -> MatchingEngine:
    """Return hourly bars of a Friday and a Monday in New York; Friday trades at 100, Monday at 90."""
    trading = calendar("XNYS")
    begin, end = to_ns(FRIDAY_OPEN), to_ns(MONDAY_OPEN + timedelta(hours=7))
    start, opens, closes = trading.grid_ns(begin, end, period_to_ns(HOUR))
    price = np.where(start < to_ns(MONDAY_OPEN - HOUR), 100.0, 90.0)
    ones = np.ones(len(start))
    bars = BarSeries("SPY", start, closes, opens, price, price, price, price, 1_000 * ones, ones)
    return over(Feed({"SPY": bars}, HOUR, trading))


def over(feed: Feed) -> MatchingEngine:
    settings = EngineSettings(partial_fill_probability=0.0)
    return MatchingEngine(feed, FREE, settings, MemoryBooks(), default_instruments(feed.symbols, feed.calendar))


def test_the_first_bar_opens_with_the_session_and_closes_on_the_clock(engine: MatchingEngine) -> None:
    assert engine.now == FRIDAY_OPEN
    assert engine.advance(FRIDAY_OPEN, FAR).now == datetime(2024, 7, 5, 14, 0, tzinfo=UTC)


def test_an_order_of_the_last_close_fills_at_the_next_sessions_open(engine: MatchingEngine) -> None:
    engine.run_until(FRIDAY_CLOSE)
    engine.submit(OrderRequest("a", "SPY", Side.BUY, Decimal(1)))
    answer = engine.advance(FRIDAY_CLOSE, FAR)
    (fill,) = engine.fills()
    assert (answer.now, fill.at, fill.price) == (MONDAY_OPEN, MONDAY_OPEN, Decimal(90))


def test_a_day_order_ends_with_its_session(engine: MatchingEngine) -> None:
    engine.run_until(datetime(2024, 7, 5, 15, 0, tzinfo=UTC))
    engine.submit(
        OrderRequest(
            "a", "SPY", Side.BUY, Decimal(1), type=OrderType.LIMIT, tif=TimeInForce.DAY, limit_price=Decimal(95)
        )
    )
    engine.run_until(FRIDAY_CLOSE)
    order = engine.order("a")
    assert order is not None
    assert (order.state, order.updated_at) == (OrderState.EXPIRED, FRIDAY_CLOSE)


def test_a_day_order_of_the_last_close_works_in_the_next_session(engine: MatchingEngine) -> None:
    engine.run_until(FRIDAY_CLOSE)
    engine.submit(OrderRequest("a", "SPY", Side.BUY, Decimal(1), tif=TimeInForce.DAY))
    engine.run_until(MONDAY_OPEN)
    order = engine.order("a")
    assert order is not None
    assert order.state is OrderState.FILLED


def test_a_good_till_cancelled_stop_gaps_over_the_weekend(engine: MatchingEngine) -> None:
    engine.run_until(datetime(2024, 7, 5, 15, 0, tzinfo=UTC))
    engine.submit(OrderRequest("a", "SPY", Side.BUY, Decimal(1), stop_loss=Decimal(97)))
    engine.run_until(MONDAY_OPEN)
    assert engine.fills()[-1].price == Decimal(90)


def test_a_real_split_leaves_equity_where_the_market_left_it(market_data: Path) -> None:
    """Apple split seven for one on 2014-06-09."""
    trading = calendar("XNYS")
    bars = load_bars(
        market_data / "us_equity_1h.parquet",
        period=HOUR,
        calendar=trading,
        symbols=["AAPL"],
        start=datetime(2014, 6, 2, tzinfo=UTC),
        end=datetime(2014, 6, 14, tzinfo=UTC),
    )
    engine = over(Feed(bars, HOUR, trading))
    engine.run_until(datetime(2014, 6, 6, 19, 0, tzinfo=UTC))
    engine.submit(OrderRequest("a", "AAPL", Side.BUY, Decimal(100), stop_loss=Decimal(600), take_profit=Decimal(700)))
    engine.run_until(datetime(2014, 6, 6, 20, 0, tzinfo=UTC))
    before = engine.account().equity
    engine.run_until(datetime(2014, 6, 9, 20, 0, tzinfo=UTC))
    position = engine.positions()["AAPL"]
    order = engine.order("a")
    assert order is not None
    assert abs(position.qty - 700) < Decimal("0.001")
    assert [leg.qty for leg in order.legs] == [position.qty, position.qty]
    assert abs(engine.account().equity / before - 1) < Decimal("0.03")
