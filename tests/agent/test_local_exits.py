from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from agent.exits import fired_exits
from agent.trading_state import ArmedExit, KnownOrder, TradingState
from brokers.account import Holding
from brokers.domain import Bar, ExitPlan, Leg, OrderState, Quote, Side

START = datetime(2024, 3, 1, 14, 30, tzinfo=UTC)
PERIOD = timedelta(minutes=5)
BRACKET = ExitPlan(stop=Decimal(95), take_profit=Decimal(110))
SHORT_BRACKET = ExitPlan(stop=Decimal(105), take_profit=Decimal(90))


def holding(
    qty: int = 10, plan: ExitPlan = BRACKET, mode: str = "local", armed_at: datetime = START - PERIOD
) -> TradingState:
    state = TradingState()
    state.book.holdings["SPY"] = Holding(qty=Decimal(qty), avg_cost=Decimal(100))
    side = Side.SELL if qty > 0 else Side.BUY
    state.exits["SPY"] = ArmedExit("SPY", "tdm-x", side, plan, mode, armed_at)
    return state


def bar(low: float = 99.0, high: float = 101.0, close: float = 100.0) -> dict[str, Bar]:
    return {"SPY": Bar("SPY", START, START + PERIOD, 100.0, high, low, close, 1_000.0)}


def quote(bid: str, ask: str) -> dict[str, Quote]:
    return {"SPY": Quote("SPY", Decimal(bid), Decimal(ask), START)}


def order(leg: Leg, state: OrderState = OrderState.ACCEPTED, parent: str | None = None) -> KnownOrder:
    return KnownOrder(
        client_id=f"tdm-x-{leg}",
        intent_id="tdm-x",
        attempt=1,
        parent_client_id=parent,
        symbol="SPY",
        side=Side.SELL,
        leg=leg,
        qty=Decimal(10),
        filled_qty=Decimal(0),
        state=state,
        stop_price=None,
        limit_price=None,
    )


def test_nothing_fires_between_the_levels() -> None:
    assert fired_exits(holding(), bar(low=95.01, high=109.99), {}) == []


def test_a_bar_through_the_stop_fires_it() -> None:
    assert fired_exits(holding(), bar(low=95.0), {}) == [("SPY", Leg.STOP)]


def test_a_bar_through_the_take_profit_fires_it() -> None:
    assert fired_exits(holding(), bar(high=110.0), {}) == [("SPY", Leg.TAKE_PROFIT)]


def test_where_one_bar_reached_both_the_stop_counts() -> None:
    assert fired_exits(holding(), bar(low=94.0, high=111.0), {}) == [("SPY", Leg.STOP)]


def test_a_short_is_stopped_above_and_takes_its_profit_below() -> None:
    assert fired_exits(holding(-10, SHORT_BRACKET), bar(high=105.0), {}) == [("SPY", Leg.STOP)]
    assert fired_exits(holding(-10, SHORT_BRACKET), bar(low=90.0), {}) == [("SPY", Leg.TAKE_PROFIT)]


def test_exits_armed_within_the_bar_do_not_read_prices_from_before() -> None:
    young = holding(armed_at=START + timedelta(minutes=1))
    assert fired_exits(young, bar(low=94.0, high=111.0, close=100.0), {}) == []
    assert fired_exits(young, bar(low=94.0, close=94.5), {}) == [("SPY", Leg.STOP)]


def test_exits_at_the_venue_leave_the_bars_extremes_to_it() -> None:
    assert fired_exits(holding(mode="venue"), bar(low=94.0, high=111.0, close=100.0), {}) == []


def test_behind_the_venue_a_close_beyond_the_stop_still_fires() -> None:
    assert fired_exits(holding(mode="venue"), bar(low=94.0, close=94.5), {}) == [("SPY", Leg.STOP)]


def test_behind_the_venue_a_take_profit_is_the_venues_alone() -> None:
    assert fired_exits(holding(mode="venue"), bar(high=111.0, close=110.5), {}) == []


@pytest.mark.parametrize(
    ("qty", "plan", "bid", "ask", "leg"),
    [
        (10, BRACKET, "95", "95.10", Leg.STOP),
        (10, BRACKET, "95.01", "95.10", None),
        (10, BRACKET, "109.90", "110", None),  # the bid is what a sale gets
        (10, BRACKET, "110", "110.1", Leg.TAKE_PROFIT),
        (-10, SHORT_BRACKET, "104.90", "105", Leg.STOP),
        (-10, SHORT_BRACKET, "89.90", "90", Leg.TAKE_PROFIT),
        (-10, SHORT_BRACKET, "90", "90.10", None),
    ],
)
def test_between_closes_the_side_of_the_quote_that_a_close_would_get_counts(
    qty: int, plan: ExitPlan, bid: str, ask: str, leg: Leg | None
) -> None:
    expected = [] if leg is None else [("SPY", leg)]
    assert fired_exits(holding(qty, plan), {}, quote(bid, ask)) == expected


def test_without_a_price_nothing_is_concluded() -> None:
    assert fired_exits(holding(), {}, {}) == []


def test_a_plan_without_a_stop_fires_at_the_loss_it_accepted() -> None:
    plan = ExitPlan(stop=None, take_profit=None, max_loss_usd=Decimal(50))
    assert fired_exits(holding(10, plan), bar(close=95.01), {}) == []
    assert fired_exits(holding(10, plan), bar(low=95.0, close=95.0), {}) == [("SPY", Leg.STOP)]
    assert fired_exits(holding(-10, plan), bar(high=105.0, close=105.0), {}) == [("SPY", Leg.STOP)]


def test_a_flat_symbol_has_nothing_to_protect() -> None:
    state = holding()
    del state.book.holdings["SPY"]
    assert fired_exits(state, bar(low=90.0), {}) == []


def test_an_exit_does_not_fire_twice_while_its_order_works() -> None:
    state = holding()
    state.orders["tdm-x-close"] = order(Leg.CLOSE)
    assert fired_exits(state, bar(low=90.0), {}) == []
    state.orders.clear()
    state.orders["tdm-x-stop"] = order(Leg.STOP)  # one that the daemon itself sent: no parent
    assert fired_exits(state, bar(low=90.0), {}) == []


def test_legs_at_the_venue_are_no_closing_order_of_the_daemon() -> None:
    state = holding()
    state.orders["tdm-x-stop"] = order(Leg.STOP, parent="tdm-x-1")
    assert fired_exits(state, bar(low=90.0), {}) == [("SPY", Leg.STOP)]


def test_symbols_come_in_their_order() -> None:
    state = holding()
    state.book.holdings["AAPL"] = Holding(qty=Decimal(1), avg_cost=Decimal(100))
    state.exits["AAPL"] = ArmedExit("AAPL", "tdm-y", Side.SELL, BRACKET, "local", START - PERIOD)
    bars = bar(low=90.0) | {"AAPL": Bar("AAPL", START, START + PERIOD, 100.0, 101.0, 90.0, 100.0, 1_000.0)}
    assert [symbol for symbol, _ in fired_exits(state, bars, {})] == ["AAPL", "SPY"]
