"""The exchange's rules, one sentence each."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from exchange_kit import FAR, FREE, PERIOD, Floor, at, flat, series

from brokers.calendar import calendar
from brokers.costs import CostModel, ReferenceBar, split_ratio
from brokers.domain import (
    AssetClass,
    DuplicateClientIdError,
    Instrument,
    Leg,
    OrderState,
    OrderType,
    RejectedError,
    Side,
    TimeInForce,
)
from brokers.simulated.broker import default_instruments
from brokers.simulated.engine import ClockConflictError, EngineSettings, MatchingEngine
from brokers.simulated.feed import Feed, FeedError
from brokers.simulated.state import Event

D = Decimal
LIMIT, STOP, STOP_LIMIT = OrderType.LIMIT, OrderType.STOP, OrderType.STOP_LIMIT


def code_of(refused: pytest.ExceptionInfo[RejectedError]) -> str:
    return refused.value.code


# --- time ---------------------------------------------------------------------------------------------------------


def test_the_clock_starts_at_the_first_open_and_meets_the_first_close_next() -> None:
    floor = Floor(flat(3))
    assert floor.engine.now == at(0)
    answer = floor.engine.advance(at(0), FAR)
    assert (answer.now, answer.event) == (at(1), Event.CLOSE)


def test_the_open_of_a_bar_happens_one_deadline_after_the_close_before_it() -> None:
    floor = Floor(flat(3)).to(at(1))
    answer = floor.engine.advance(at(1), FAR)
    assert (answer.now, answer.event) == (at(1, 10), Event.OPEN)


def test_a_clock_that_begins_at_a_close_still_meets_the_open_that_follows() -> None:
    floor = Floor(flat(5), begin=at(2))
    assert len(floor.engine.bars("X", at(0), FAR)) == 2
    assert floor.engine.advance(at(2), FAR).now == at(2, 10)


def test_without_an_event_before_idle_until_time_moves_there() -> None:
    floor = Floor(flat(3))
    answer = floor.engine.advance(at(0), at(0, 60))
    assert (answer.now, answer.event, answer.repeated) == (at(0, 60), Event.IDLE, False)


def test_a_repeated_advance_moves_nothing_and_gives_the_same_answer() -> None:
    floor = Floor(flat(3)).to(at(1))
    floor.buy("a")
    first = floor.engine.advance(at(1), FAR)
    assert first.orders_changed == ("a",)
    again = floor.engine.advance(at(1), FAR)
    assert again == replace(first, repeated=True)


def test_a_client_ahead_of_the_exchange_is_told_both_times() -> None:
    floor = Floor(flat(3))
    with pytest.raises(ClockConflictError, match=r"12:00:00.*12:05:00"):
        floor.engine.advance(at(1), FAR)


def test_at_the_end_of_the_feed_time_moves_to_idle_until() -> None:
    floor = Floor(flat(2)).to(at(2))
    assert floor.engine.feed_ended
    answer = floor.engine.advance(at(2), FAR)
    assert (answer.now, answer.feed_ended) == (FAR, True)


def test_only_completed_bars_are_visible() -> None:
    floor = Floor(flat(4)).to(at(2, 10))
    assert [bar.start for bar in floor.engine.bars("X", at(0), FAR)] == [at(0), at(1)]


def test_a_bar_that_needs_a_longer_deadline_than_it_lasts_is_refused() -> None:
    with pytest.raises(FeedError, match="deadline"):
        Floor(flat(3), decision_deadline_s=300.0)


def test_running_far_at_once_equals_stepping_event_by_event() -> None:
    rows = [(100.0, 103.0, 97.0, 100.0)] * 40
    stepped, jumped = Floor(rows), Floor(rows)
    for floor in (stepped, jumped):
        floor.to(at(1))
        floor.buy("a", stop_loss="95", take_profit="102")
    stepped.to(at(40))
    jumped.engine.run_until(at(40))
    assert jumped.engine.book() == stepped.engine.book()
    assert jumped.engine.fills() == stepped.engine.fills()
    assert jumped.engine.now == stepped.engine.now


# --- market orders ------------------------------------------------------------------------------------------------


def test_a_market_order_fills_at_the_next_open() -> None:
    floor = Floor([*flat(1), (101, 105, 99, 104), *flat(1)]).to(at(1))
    floor.buy("a")
    floor.to(at(1, 10))
    fill = floor.fill_of("a")
    assert (fill.price, fill.qty, fill.at) == (D(101), D(10), at(1, 10))
    assert floor.order("a").state is OrderState.FILLED


def test_a_fill_at_the_open_is_stamped_with_the_time_of_the_open_event() -> None:
    floor = Floor(flat(3)).to(at(1))
    floor.engine.advance(at(1), at(1, 4))
    floor.buy("a")
    floor.to(at(1, 10))
    assert floor.fill_of("a").at == at(1, 10)


def test_an_order_that_arrives_after_the_deadline_waits_for_the_following_open() -> None:
    floor = Floor([*flat(2), *flat(2, 110.0)]).to(at(1, 10))
    floor.buy("a")
    floor.to(at(2))
    assert floor.order("a").state is OrderState.ACCEPTED
    floor.to(at(2, 10))
    assert floor.fill_of("a").price == D(110)


def test_after_a_missing_bar_the_order_fills_at_the_next_open_there_is() -> None:
    floor = Floor({"X": series("X", [*flat(1), *flat(1, 50.0), *flat(2, 120.0)], skip=[1])}).to(at(1))
    floor.buy("a")
    floor.to(at(2))
    fill = floor.fill_of("a")
    assert (fill.price, fill.at) == (D(120), at(2))


def test_two_bars_of_latency_fill_one_open_later() -> None:
    floor = Floor([*flat(2), *flat(2, 107.0)], costs=replace(FREE, latency_bars=2)).to(at(1))
    floor.buy("a")
    floor.to(at(1, 10))
    assert floor.order("a").state is OrderState.ACCEPTED
    floor.to(at(2, 10))
    assert floor.fill_of("a").price == D(107)


def test_a_taking_fill_pays_spread_impact_and_fee_of_the_shared_cost_model() -> None:
    costs = CostModel()
    floor = Floor([(100, 102, 99, 100), (101, 101, 101, 101), *flat(1)], costs=costs).to(at(1))
    floor.buy("a", "20")
    floor.to(at(1, 10))
    fill = floor.fill_of("a")
    price = costs.taking_price(101.0, Side.BUY, 20.0, ReferenceBar.of(102.0, 99.0, 1_000.0))
    assert (fill.price, fill.fee, fill.mark_price) == (price, costs.fee(D(20), price), D(101))


def test_the_account_moves_by_exactly_the_fill() -> None:
    floor = Floor(flat(4), costs=CostModel()).to(at(1))
    floor.buy("a", "20")
    floor.to(at(1, 10))
    fill = floor.fill_of("a")
    account = floor.engine.account()
    assert account.cash == D(100_000) - fill.qty * fill.price - fill.fee
    assert account.equity == account.cash + fill.qty * 100


# --- partial fills ------------------------------------------------------------------------------------------------


def test_partial_fills_complete_at_following_opens() -> None:
    floor = Floor(flat(60), partial_fill_probability=0.9).to(at(1))
    floor.buy("a")
    floor.to(at(1, 10))
    assert floor.order("a").state is OrderState.PARTIAL
    floor.to(at(59, 10))
    order = floor.order("a")
    assert order.state is OrderState.FILLED
    assert sum(fill.qty for fill in floor.fills_of("a")) == order.filled_qty == D(10)


def test_partial_fills_stay_on_the_step_of_the_instrument() -> None:
    step = D("0.25")
    instruments = {"X": Instrument("X", AssetClass.CRYPTO, qty_step=step)}
    floor = Floor(flat(60), instruments=instruments, partial_fill_probability=1.0).to(at(1))
    floor.buy("a", "10")
    floor.to(at(50, 10))
    fills = floor.fills_of("a")
    assert len(fills) > 1
    assert all(fill.qty % step == 0 and fill.qty >= step for fill in fills)


def test_the_draw_of_a_partial_fill_does_not_know_order_ids_or_other_orders() -> None:
    alone = Floor(flat(10), partial_fill_probability=0.5).to(at(3))
    alone.buy("one-name")
    crowded = Floor(flat(10), partial_fill_probability=0.5).to(at(2, 10))
    crowded.buy("resting", "1", type=LIMIT, limit_price="50")
    crowded.to(at(3))
    crowded.buy("another-name")
    alone.to(at(9))
    crowded.to(at(9))
    assert [(f.qty, f.at) for f in alone.fills_of("one-name")] == [
        (f.qty, f.at) for f in crowded.fills_of("another-name")
    ]


def test_another_seed_draws_other_partial_fills() -> None:
    def quantities(seed: int) -> list[Decimal]:
        floor = Floor(flat(30), partial_fill_probability=0.9, seed=seed).to(at(1))
        floor.buy("a")
        return [fill.qty for fill in floor.to(at(29)).fills_of("a")]

    assert quantities(1) == quantities(1)
    assert quantities(1) != quantities(2)


# --- stops and limits ---------------------------------------------------------------------------------------------


def long_position(rows: list[tuple[float, float, float, float]], **settings: object) -> Floor:
    """Return a floor that holds 10 X bought at bar 1's open, at time 1:10."""
    floor = Floor([*flat(2), *rows, *flat(2)], **settings).to(at(1))
    floor.buy("entry")
    return floor.to(at(1, 10))


def test_a_stop_that_gaps_through_fills_at_the_open() -> None:
    floor = long_position([(90, 92, 88, 91)])
    floor.sell("s", type=STOP, stop_price="95")
    floor.to(at(2, 10))
    fill = floor.fill_of("s")
    assert (fill.price, fill.at) == (D(90), at(2, 10))


def test_a_stop_reached_within_a_bar_fills_at_its_price_at_the_close() -> None:
    floor = long_position([(100, 101, 94, 96)])
    floor.sell("s", type=STOP, stop_price="95")
    floor.to(at(3))
    fill = floor.fill_of("s")
    assert (fill.price, fill.at) == (D(95), at(3))


def test_a_stop_that_arrives_after_a_bars_open_does_not_see_that_bar() -> None:
    floor = Floor([*flat(1), (100, 100, 90, 100), *flat(2)]).to(at(1))
    floor.buy("entry")
    floor.to(at(1, 10))
    floor.sell("s", type=STOP, stop_price="95")
    floor.to(at(2))
    assert floor.order("s").state is OrderState.ACCEPTED


def test_a_triggered_stop_pays_spread_and_impact_but_a_limit_does_not() -> None:
    costs = CostModel(fee_bps=0.0, half_spread_bps=10.0, impact=0.0)
    floor = long_position([(100, 106, 100, 104), (104, 104, 94, 95)], costs=costs)
    floor.sell("tp", "4", type=LIMIT, limit_price="105")
    floor.sell("s", "6", type=STOP, stop_price="95")
    floor.to(at(4))
    assert floor.fill_of("tp").price == D(105)
    assert floor.fill_of("s").price == D("94.905")


def test_a_limit_that_is_only_touched_rests() -> None:
    floor = long_position([(100, 105, 100, 104)])
    floor.sell("tp", type=LIMIT, limit_price="105")
    assert floor.to(at(3)).order("tp").state is OrderState.ACCEPTED


def test_a_bid_that_is_only_touched_rests() -> None:
    floor = long_position([(100, 105, 95, 104)])
    floor.buy("dip", "1", type=LIMIT, limit_price="95")
    assert floor.to(at(3)).order("dip").state is OrderState.ACCEPTED


def test_the_impact_of_a_stop_within_a_bar_knows_only_the_bar_before() -> None:
    costs = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=1.0)
    floor = Floor([*flat(2), (100.0, 102.0, 99.0, 100.0), (100.0, 140.0, 60.0, 100.0)], costs=costs).to(at(1))
    floor.buy("a")
    floor.to(at(3)).sell("s", type=OrderType.STOP, stop_price="90")
    before = ReferenceBar.of(102.0, 99.0, 1_000.0)
    assert floor.to(at(4)).fill_of("s").price == costs.taking_price(90.0, Side.SELL, 10.0, before)


def test_a_limit_better_than_the_open_fills_at_the_open() -> None:
    floor = Floor([*flat(1), (98, 99, 97, 98), *flat(1)]).to(at(1))
    floor.buy("a", type=LIMIT, limit_price="99")
    floor.to(at(1, 10))
    assert (floor.fill_of("a").price, floor.fill_of("a").at) == (D(98), at(1, 10))


def test_a_stop_limit_whose_gap_passes_the_limit_rests_until_the_limit_trades() -> None:
    floor = long_position([(90, 92, 89, 91), (91, 95, 90, 94.5)])
    floor.sell("sl", type=STOP_LIMIT, stop_price="95", limit_price="94")
    assert floor.to(at(3)).order("sl").state is OrderState.ACCEPTED
    assert floor.to(at(4)).fill_of("sl").price == D(94)


def test_a_stop_limit_within_its_limit_fills_where_the_stop_triggers() -> None:
    floor = long_position([(100, 101, 93, 96)])
    floor.sell("sl", type=STOP_LIMIT, stop_price="95", limit_price="94")
    assert floor.to(at(3)).fill_of("sl").price == D(95)


def test_a_buy_stop_covers_a_short_that_gaps_up() -> None:
    floor = Floor([*flat(2), (108, 109, 107, 108), *flat(1)], shorting=True).to(at(1))
    floor.sell("short")
    floor.to(at(1, 10))
    floor.buy("cover", type=STOP, stop_price="104")
    floor.to(at(2, 10))
    assert floor.fill_of("cover").price == D(108)
    assert floor.held() == 0


# --- brackets -----------------------------------------------------------------------------------------------------


def bracketed(rows: list[tuple[float, float, float, float]], **settings: object) -> Floor:
    """Return a floor at time 1:00 that has just sent a bracket (stop 95, take-profit 105) filling at bar 1's open."""
    floor = Floor([*flat(1), *rows, *flat(2)], **settings).to(at(1))
    floor.buy("e", stop_loss="95", take_profit="105")
    return floor


def test_legs_are_held_until_the_entry_fills() -> None:
    floor = bracketed(flat(3))
    entry = floor.order("e")
    assert [(leg.client_id, leg.state, leg.leg) for leg in entry.legs] == [
        ("e.stop", OrderState.HELD, Leg.STOP),
        ("e.tp", OrderState.HELD, Leg.TAKE_PROFIT),
    ]
    legs = floor.to(at(1, 10)).order("e").legs
    assert [(leg.state, leg.qty) for leg in legs] == [(OrderState.ACCEPTED, D(10)), (OrderState.ACCEPTED, D(10))]


def test_a_leg_may_trigger_in_the_bar_at_whose_open_its_entry_filled() -> None:
    floor = bracketed([(100, 101, 94, 100)]).to(at(2))
    assert floor.fill_of("e.stop").price == D(95)
    assert floor.held() == 0


def test_when_stop_and_take_profit_are_within_one_bar_the_stop_is_assumed_first() -> None:
    floor = bracketed([(100, 106, 94, 100)]).to(at(2))
    assert floor.order("e.stop").state is OrderState.FILLED
    assert floor.order("e.tp").state is OrderState.CANCELED


def test_the_full_fill_of_a_leg_cancels_its_sibling() -> None:
    floor = bracketed([*flat(1), (100, 106, 100, 104)]).to(at(3))
    assert floor.order("e.tp").state is OrderState.FILLED
    assert (floor.order("e.stop").state, floor.order("e.stop").reason) == (OrderState.CANCELED, "oco")


def test_legs_follow_the_filled_quantity_of_a_partly_filled_entry() -> None:
    floor = bracketed(flat(20), partial_fill_probability=0.9)
    for bar in range(1, 20):
        entry = floor.to(at(bar, 10)).order("e")
        assert [leg.qty for leg in entry.legs] == [entry.filled_qty, entry.filled_qty]
    assert entry.state is OrderState.FILLED


def test_an_exit_while_the_entry_still_fills_cancels_the_rest_of_the_entry() -> None:
    floor = bracketed([(100, 101, 94, 96), *flat(3)], partial_fill_probability=1.0).to(at(2))
    entry = floor.order("e")
    assert D(0) < entry.filled_qty < D(10)
    assert (entry.state, entry.reason) == (OrderState.CANCELED, "bracket_exited")
    assert floor.to(at(4)).held() == 0


def test_legs_armed_by_an_entry_within_a_bar_wait_for_the_next_open() -> None:
    floor = Floor([*flat(1), (100, 106, 94, 100), (100, 106, 100, 105), *flat(1)]).to(at(1))
    floor.buy("e", type=LIMIT, limit_price="98", stop_loss="95", take_profit="105")
    floor.to(at(2))
    assert floor.order("e").state is OrderState.FILLED
    assert floor.held() == 10
    assert floor.to(at(3)).order("e.tp").state is OrderState.FILLED


def test_a_bracket_may_have_one_leg() -> None:
    floor = Floor([*flat(1), (100, 101, 94, 96), *flat(1)]).to(at(1))
    floor.buy("e", stop_loss="95")
    assert floor.to(at(2)).held() == 0


def test_a_short_bracket_mirrors_a_long_one() -> None:
    floor = Floor([*flat(1), (100, 106, 99, 104), *flat(1)], shorting=True).to(at(1))
    floor.sell("e", stop_loss="105", take_profit="95")
    assert floor.to(at(2)).fill_of("e.stop").price == D(105)
    assert floor.held() == 0


@pytest.mark.parametrize(("stop", "profit"), [("100", "105"), ("101", None), ("95", "100"), ("95", "99")])
def test_legs_on_the_wrong_side_are_refused(stop: str, profit: str | None) -> None:
    floor = Floor(flat(3)).to(at(1))
    with pytest.raises(RejectedError) as refused:
        floor.buy("e", stop_loss=stop, take_profit=profit)
    assert code_of(refused) == "wrong_price"


# --- cancel -------------------------------------------------------------------------------------------------------


def test_cancelling_an_unfilled_entry_cancels_its_held_legs() -> None:
    floor = Floor(flat(4)).to(at(1))
    floor.buy("e", type=LIMIT, limit_price="90", stop_loss="85")
    floor.engine.cancel("e")
    assert floor.order("e").state is OrderState.CANCELED
    assert floor.order("e.stop").state is OrderState.CANCELED
    assert floor.engine.open_orders() == []


def test_cancelling_a_partly_filled_entry_keeps_the_legs_of_what_filled() -> None:
    floor = bracketed(flat(6), partial_fill_probability=1.0).to(at(1, 10))
    floor.engine.cancel("e")
    entry = floor.to(at(4)).order("e")
    assert entry.state is OrderState.CANCELED
    assert D(0) < entry.filled_qty < D(10)
    assert [(leg.state, leg.qty) for leg in entry.legs] == [(OrderState.ACCEPTED, entry.filled_qty)] * 2


def test_cancelling_what_is_terminal_or_unknown_changes_nothing() -> None:
    floor = long_position(flat(1))
    assert floor.engine.cancel("entry") == floor.order("entry")
    assert floor.engine.cancel("nobody") is None


def test_cancelling_one_leg_leaves_the_other_in_the_native_rule_set() -> None:
    floor = bracketed(flat(4)).to(at(1, 10))
    floor.engine.cancel("e.tp")
    assert floor.order("e.stop").state is OrderState.ACCEPTED


# --- holdings and money -------------------------------------------------------------------------------------------


def test_quantity_held_by_legs_is_not_available_to_another_order() -> None:
    floor = bracketed(flat(4)).to(at(1, 10))
    assert floor.engine.positions()["X"].qty_available == 0
    with pytest.raises(RejectedError, match=r"requested: 10, available: 0") as refused:
        floor.sell("c", leg=Leg.CLOSE)
    assert code_of(refused) == "insufficient_qty_available"


def test_once_the_legs_are_cancelled_the_position_can_be_closed() -> None:
    floor = bracketed(flat(4)).to(at(1, 10))
    floor.engine.cancel("e.stop")
    floor.engine.cancel("e.tp")
    floor.sell("c", leg=Leg.CLOSE)
    assert floor.to(at(2, 10)).held() == 0


def test_two_closes_cannot_claim_the_same_quantity() -> None:
    floor = long_position(flat(2))
    floor.sell("c1", "6")
    with pytest.raises(RejectedError) as refused:
        floor.sell("c2", "6")
    assert code_of(refused) == "insufficient_qty_available"


def test_an_order_beyond_the_buying_power_is_refused_with_the_numbers() -> None:
    floor = Floor(flat(3)).to(at(1))
    with pytest.raises(RejectedError, match=r"102000\.00.*100000\.00") as refused:
        floor.buy("a", "1000")
    assert code_of(refused) == "insufficient_buying_power"


def test_working_buys_reserve_buying_power() -> None:
    floor = Floor(flat(3)).to(at(1))
    floor.buy("a", "900", type=LIMIT, limit_price="100")
    assert floor.engine.account().buying_power == D("8200.00")
    with pytest.raises(RejectedError):
        floor.buy("b", "100")


def test_leverage_raises_buying_power() -> None:
    floor = Floor(flat(3), leverage=D(2)).to(at(1))
    floor.buy("a", "1900")
    assert floor.to(at(1, 10)).held() == 1900


def test_a_short_needs_shorting() -> None:
    floor = Floor(flat(3)).to(at(1))
    with pytest.raises(RejectedError) as refused:
        floor.sell("a")
    assert code_of(refused) == "short_not_allowed"


def test_a_position_can_be_turned_at_one_open() -> None:
    floor = Floor([*flat(2), *flat(2, 110.0)], shorting=True).to(at(1))
    floor.buy("in", "900")
    floor.to(at(2))
    floor.sell("out", "900", leg=Leg.CLOSE)
    floor.sell("short", "900", stop_loss="120")
    floor.to(at(2, 10))
    assert floor.held() == -900
    assert {fill.at for fill in floor.engine.fills()[1:]} == {at(2, 10)}


def test_a_short_position_reports_its_available_quantity_with_its_sign() -> None:
    floor = Floor(flat(4), shorting=True).to(at(1))
    floor.sell("s")
    floor.to(at(1, 10))
    position = floor.engine.positions()["X"]
    assert (position.qty, position.qty_available) == (D(-10), D(-10))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"qty": "0.0000001"}, "wrong_qty"),
        ({"qty": "0.001"}, "below_minimum"),
        ({"qty": "-1"}, "wrong_qty"),
        ({"type": LIMIT}, "wrong_fields"),
        ({"limit_price": "5"}, "wrong_fields"),
        ({"type": STOP, "limit_price": "5", "stop_price": "4"}, "wrong_fields"),
        ({"type": LIMIT, "limit_price": "-5"}, "wrong_price"),
        ({"symbol": "NOPE"}, "unknown_symbol"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_a_code(fields: dict[str, str], code: str) -> None:
    floor = Floor(flat(3)).to(at(1))
    with pytest.raises(RejectedError) as refused:
        floor.buy("a", **{"qty": "1"} | fields)
    assert code_of(refused) == code
    assert floor.engine.order("a") is None


def test_before_its_first_close_a_symbol_has_no_price_to_trade_at() -> None:
    floor = Floor(flat(3))
    with pytest.raises(RejectedError) as refused:
        floor.buy("a")
    assert code_of(refused) == "no_price"


def test_a_client_id_is_taken_once_even_after_cancellation() -> None:
    floor = Floor(flat(3)).to(at(1))
    floor.buy("a")
    floor.engine.cancel("a")
    with pytest.raises(DuplicateClientIdError):
        floor.buy("a")


def test_a_whole_holding_off_the_step_can_be_closed() -> None:
    bars = series("X", flat(5), adj=[1.0, 1.0, 1.0, 1.5, 1.5])
    floor = Floor({"X": bars}).to(at(1))
    floor.buy("a", "0.333333")
    floor.to(at(4))
    held = floor.held()
    assert held != round(held, 6)
    floor.send("c", Side.SELL, str(held))
    assert floor.to(at(4, 10)).held() == 0


# --- corporate actions --------------------------------------------------------------------------------------------


def test_a_split_changes_the_position_and_its_open_bracket() -> None:
    rows = [*flat(3), *flat(3, 50.0)]
    floor = Floor({"X": series("X", rows, adj=[1, 1, 1, 2, 2, 2])}).to(at(1))
    floor.buy("e", stop_loss="90", take_profit="110")
    floor.to(at(3, 10))
    assert floor.held() == 20
    legs = floor.order("e").legs
    assert [(leg.qty, leg.stop_price or leg.limit_price) for leg in legs] == [(D(20), D(45)), (D(20), D(55))]
    assert floor.engine.account().cash == D(99_000)
    (action,) = floor.engine.corporate_actions()
    assert (action.kind, action.amount) == ("split", split_ratio(2.0))


def test_equity_does_not_move_between_a_splits_open_and_the_first_close_after_it() -> None:
    floor = split_floor().to(at(1))
    floor.buy("a")
    seen = set()
    while floor.engine.now < at(5):
        floor.engine.advance(floor.engine.now, FAR)
        seen.add(floor.engine.account().equity)
    assert seen == {Decimal(100_000)}


def test_prices_are_in_the_new_units_from_a_splits_open_on() -> None:
    floor = split_floor().to(at(1))
    floor.buy("a")
    floor.to(at(3))
    assert floor.engine.positions()["X"].mark == 100
    floor.to(at(3, 10))
    assert floor.engine.positions()["X"].mark == 50
    assert floor.engine.previous_close("X") == 50
    quote = floor.engine.quote("X")
    assert quote is not None
    assert quote.mid == 50


def test_a_bracket_sent_between_a_splits_open_and_close_is_measured_in_the_new_units() -> None:
    floor = split_floor().to(at(3, 10))
    assert floor.buy("a", "1", stop_loss="45", take_profit="55").legs


def test_the_size_impact_of_an_order_that_waits_through_a_split_stays_the_same() -> None:
    impact = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=1.0)
    moves = []
    for ratio in (1.0, 2.0):
        rows = [(100.0, 101.0, 99.0, 100.0)] * 3 + [(100.0 / ratio, 101.0 / ratio, 99.0 / ratio, 100.0 / ratio)] * 3
        floor = Floor({"X": series("X", rows, adj=[1.0] * 3 + [ratio] * 3)}, costs=impact).to(at(3))
        floor.buy("a")
        fill = floor.to(at(4)).fill_of("a")
        assert fill.mark_price is not None
        moves.append(fill.price / fill.mark_price)
    assert abs(moves[0] - moves[1]) < Decimal("1e-9")


def split_floor() -> Floor:
    """Return an engine whose fourth bar opens with a split of two for one."""
    return Floor({"X": series("X", flat(3) + flat(3, 50.0), adj=[1, 1, 1, 2, 2, 2])})


def test_a_split_changes_what_remains_of_an_order_that_waits() -> None:
    floor = Floor({"X": series("X", [*flat(2), *flat(3, 50.0)], adj=[1, 1, 2, 2, 2])}).to(at(1, 10))
    floor.buy("a", "10")
    floor.to(at(2, 10))
    fill = floor.fill_of("a")
    assert (fill.qty, fill.price) == (D(20), D(50))


@pytest.mark.parametrize(("side", "cash"), [(Side.BUY, D(20)), (Side.SELL, D(-20))])
def test_a_dividend_is_paid_to_longs_and_by_shorts(side: Side, cash: Decimal) -> None:
    ratio = 100.0 / 98.0
    bars = series("X", [*flat(3), *flat(2, 98.0)], adj=[1.0, 1.0, 1.0, ratio, ratio])
    floor = Floor({"X": bars}, shorting=True).to(at(1))
    floor.send("a", side, "10")
    floor.to(at(3))
    before = floor.engine.account().cash
    floor.to(at(3, 10))
    assert floor.engine.account().cash - before == cash


def test_a_buyer_at_the_ex_open_gets_no_dividend() -> None:
    bars = series("X", [*flat(2), *flat(2, 98.0)], adj=[1.0, 1.0, 100 / 98, 100 / 98])
    floor = Floor({"X": bars}).to(at(2))
    floor.buy("a")
    floor.to(at(2, 10))
    assert floor.engine.account().cash == D(100_000) - 980
    assert floor.engine.corporate_actions() == ()


# --- time in force ------------------------------------------------------------------------------------------------


def test_a_day_order_expires_at_midnight_utc_on_a_calendar_without_sessions() -> None:
    floor = Floor(flat(200)).to(at(1))
    floor.buy("a", type=LIMIT, limit_price="90", tif=TimeInForce.DAY)
    floor.to(at(143))
    assert floor.order("a").state is OrderState.ACCEPTED
    floor.to(at(144))
    order = floor.order("a")
    assert (order.state, order.updated_at) == (OrderState.EXPIRED, datetime(2024, 1, 2, tzinfo=UTC))


def test_a_day_order_may_still_fill_at_its_sessions_last_close() -> None:
    rows = flat(200)
    rows[143] = (100, 100, 80, 100)
    floor = Floor(rows).to(at(1))
    floor.buy("a", type=LIMIT, limit_price="90", tif=TimeInForce.DAY)
    assert floor.to(at(144)).order("a").state is OrderState.FILLED


def test_a_day_order_sent_at_midnight_lives_until_the_next() -> None:
    floor = Floor(flat(300)).to(at(144))
    floor.buy("a", type=LIMIT, limit_price="90", tif=TimeInForce.DAY)
    assert floor.to(at(145)).order("a").state is OrderState.ACCEPTED


def test_a_day_order_expires_even_where_no_bar_marks_its_sessions_end() -> None:
    rows = flat(200)
    floor = Floor({"X": series("X", rows, skip=range(140, 160))}).to(at(1))
    floor.buy("a", type=LIMIT, limit_price="90", tif=TimeInForce.DAY)
    floor.engine.advance(floor.engine.now, FAR)
    floor.to(at(161))
    assert floor.order("a").state is OrderState.EXPIRED


def test_a_good_till_cancelled_order_outlives_the_day() -> None:
    floor = Floor(flat(200)).to(at(1))
    floor.buy("a", type=LIMIT, limit_price="90")
    assert floor.to(at(190)).order("a").state is OrderState.ACCEPTED


# --- Alpaca's rule set --------------------------------------------------------------------------------------------


def alpaca(asset_class: AssetClass, **settings: object) -> Floor:
    instruments = {"X": Instrument("X", asset_class, shortable=True)}
    return Floor(flat(8), instruments=instruments, rule_set="alpaca", **settings).to(at(1))


@pytest.mark.parametrize(
    ("asset_class", "fields"),
    [
        (AssetClass.CRYPTO, {"stop_loss": "95", "take_profit": "105"}),
        (AssetClass.CRYPTO, {"tif": TimeInForce.DAY}),
        (AssetClass.CRYPTO, {"type": STOP, "stop_price": "105"}),
        (AssetClass.EQUITY, {"qty": "1.5"}),
        (AssetClass.EQUITY, {"qty": "1.5", "tif": TimeInForce.DAY, "stop_loss": "95"}),
        (AssetClass.EQUITY, {"type": LIMIT, "limit_price": "99.999"}),
    ],
)
def test_alpacas_own_limits_are_kept_in_its_rule_set(asset_class: AssetClass, fields: dict[str, object]) -> None:
    with pytest.raises(RejectedError):
        alpaca(asset_class).buy("a", **{"qty": "1"} | fields)  # type: ignore[arg-type]


def test_opposite_orders_are_a_wash_trade_in_alpacas_rule_set() -> None:
    floor = alpaca(AssetClass.EQUITY)
    floor.buy("a", "5")
    floor.to(at(1, 10))
    floor.sell("s", "5", type=STOP, stop_price="90")
    with pytest.raises(RejectedError) as refused:
        floor.buy("b", "5")
    assert code_of(refused) == "wash_trade"


def test_alpacas_legs_wait_for_the_whole_entry() -> None:
    floor = alpaca(AssetClass.EQUITY, partial_fill_probability=1.0)
    floor.buy("e", stop_loss="95", take_profit="105")
    floor.to(at(1, 10))
    assert floor.order("e").state is OrderState.PARTIAL
    assert {leg.state for leg in floor.order("e").legs} == {OrderState.HELD}
    floor.engine.cancel("e")
    entry = floor.order("e")
    assert [(leg.state, leg.qty) for leg in entry.legs] == [(OrderState.ACCEPTED, entry.filled_qty)] * 2


# --- several symbols ----------------------------------------------------------------------------------------------


def test_events_of_one_instant_are_handled_together() -> None:
    bars = {"A": series("A", flat(3)), "B": series("B", flat(3, 50.0))}
    floor = Floor(bars).to(at(1))
    floor.buy("a", "1", "A")
    floor.buy("b", "1", "B")
    answer = floor.engine.advance(at(1), FAR)
    assert (answer.now, sorted(answer.orders_changed)) == (at(1, 10), ["a", "b"])


def test_a_symbol_without_an_instrument_is_named() -> None:
    feed = Feed({"X": series("X", flat(3))}, PERIOD, calendar("24/7"))
    with pytest.raises(ValueError, match="X"):
        MatchingEngine(feed, FREE, EngineSettings(), None, {})  # type: ignore[arg-type]


def test_default_instruments_follow_the_calendar() -> None:
    made = default_instruments(["X"], calendar("24/7"))
    assert made["X"].asset_class is AssetClass.CRYPTO


def test_orders_since_finds_each_changed_order_once() -> None:
    floor = bracketed(flat(5)).to(at(1, 10))
    found = [order.client_id for order in floor.engine.orders_since(at(1, 10))]
    assert found == ["e", "e.stop", "e.tp"]
    assert floor.engine.orders_since(at(1, 10) + timedelta(microseconds=1)) == []
