"""Alpaca's JSON to domain types and back: numbers, times, states, spellings, and the published schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from loopback import order_json

from brokers.alpaca import convert
from brokers.domain import (
    AssetClass,
    Leg,
    OrderRequest,
    OrderState,
    OrderType,
    RejectedError,
    Side,
    TimeInForce,
)

AMOUNTS = st.decimals(min_value="1e-9", max_value="1e9", places=9).filter(lambda value: value > 0)


@st.composite
def requests(draw: st.DrawFn) -> OrderRequest:
    kind = draw(st.sampled_from(OrderType))
    return OrderRequest(
        client_id=draw(st.text("abcdef0123456789-", min_size=1, max_size=48)),
        symbol=draw(st.sampled_from(["SPY", "BRK.B", "BTC/USD"])),
        side=draw(st.sampled_from(Side)),
        qty=draw(AMOUNTS),
        type=kind,
        tif=draw(st.sampled_from(TimeInForce)),
        limit_price=draw(AMOUNTS) if kind in {OrderType.LIMIT, OrderType.STOP_LIMIT} else None,
        stop_price=draw(AMOUNTS) if kind in {OrderType.STOP, OrderType.STOP_LIMIT} else None,
        take_profit=draw(st.none() | AMOUNTS),
        stop_loss=draw(st.none() | AMOUNTS),
        leg=draw(st.sampled_from(Leg)),
    )


def numbers_in(body: Any) -> list[str]:
    names = {"qty", "limit_price", "stop_price"}
    found = [value for key, value in body.items() if key in names]
    return found + [value for nested in body.values() if isinstance(nested, dict) for value in nested.values()]


@given(request=requests())
def test_numbers_leave_as_plain_strings_of_exactly_the_same_value(request: OrderRequest) -> None:
    body = convert.order_body(request, native=False)

    sent = numbers_in(body)
    wanted = [request.qty, request.limit_price, request.stop_price, request.take_profit, request.stop_loss]
    assert sorted(Decimal(text) for text in sent) == sorted(value for value in wanted if value is not None)
    assert all(isinstance(text, str) and set(text) <= set("0123456789.") for text in sent)


@given(request=requests())
def test_an_order_that_the_venue_echoes_is_the_order_that_was_asked_for(request: OrderRequest) -> None:
    answer = order_json(json.loads(json.dumps(convert.order_body(request, native=True))), leg=request.leg.value)

    order = convert.mark_missing_legs(convert.order(answer, convert.Symbols()), request)

    assert (order.client_id, order.symbol, order.side, order.qty) == (
        request.client_id,
        request.symbol,
        request.side,
        request.qty,
    )
    assert (order.type, order.tif, order.limit_price, order.stop_price, order.leg) == (
        request.type,
        request.tif,
        request.limit_price,
        request.stop_price,
        request.leg,
    )
    assert order.reason == ""
    legs = {leg.leg: leg for leg in order.legs}
    assert (Leg.TAKE_PROFIT in legs, Leg.STOP in legs) == (
        request.take_profit is not None,
        request.stop_loss is not None,
    )
    if request.stop_loss is not None:
        assert legs[Leg.STOP].stop_price == request.stop_loss


@given(request=requests())
def test_the_body_of_an_order_is_what_the_published_schema_describes(
    request: OrderRequest, order_schema: Draft7Validator
) -> None:
    order_schema.validate(convert.order_body(request, native=False))


@pytest.fixture(scope="session")
def order_schema(api_specs: Path) -> Draft7Validator:
    document = json.loads((api_specs / "trading-api.json").read_text())
    content = document["paths"]["/v2/orders"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return Draft7Validator(content | {"components": document["components"]})


def test_the_published_schema_refuses_the_numbers_of_the_sdk(order_schema: Draft7Validator) -> None:
    body = convert.order_body(OrderRequest("c", "SPY", Side.BUY, Decimal(1)), native=False)

    assert not order_schema.is_valid(body | {"qty": 1.0})


@pytest.mark.parametrize("qty", ["0", "-1", "NaN", "Infinity"])
def test_a_quantity_that_no_venue_takes_is_refused_before_the_wire(qty: str) -> None:
    with pytest.raises(RejectedError, match="nothing was sent"):
        convert.order_body(OrderRequest("c", "SPY", Side.BUY, Decimal(qty)), native=False)


def test_tiny_and_huge_amounts_are_written_without_an_exponent() -> None:
    assert [convert.plain(Decimal(text)) for text in ("8.3754E-6", "1E+3", "0.100", "2")] == [
        "0.0000083754",
        "1000",
        "0.1",
        "2",
    ]


def test_every_published_status_is_known(api_specs: Path) -> None:
    document = json.loads((api_specs / "trading-api.json").read_text())
    statuses = document["components"]["schemas"]["OrderStatus"]["enum"]

    states = {name: convert.order(order_json(status=name), convert.Symbols()).state for name in statuses}

    assert [name for name, state in states.items() if state is OrderState.UNKNOWN] == []


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"status": "new"}, OrderState.ACCEPTED),
        ({"status": "new", "filled_qty": "1"}, OrderState.PARTIAL),
        ({"status": "partially_filled", "filled_qty": "1"}, OrderState.PARTIAL),
        ({"status": "canceled", "filled_qty": "1"}, OrderState.CANCELED),
        ({"status": "pending_cancel"}, OrderState.CANCELING),
        ({"status": "held"}, OrderState.HELD),
        ({"status": None}, OrderState.UNKNOWN),
        ({"side": "sideways"}, OrderState.UNKNOWN),
        ({"type": "telepathic"}, OrderState.UNKNOWN),
    ],
)
def test_a_state_says_what_may_still_happen(changes: dict[str, Any], state: OrderState) -> None:
    assert convert.order(order_json(**changes), convert.Symbols()).state is state


def test_nanoseconds_are_cut_to_microseconds_in_utc() -> None:
    assert convert.time("2026-03-16T14:38:01.942282999-04:00") == datetime(2026, 3, 16, 18, 38, 1, 942282, tzinfo=UTC)


@given(at=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_survive_the_wire(at: datetime) -> None:
    assert convert.time(convert.stamp(at)) == at


@pytest.mark.parametrize("value", ["2026-03-16T14:38:01", "yesterday", None, 5])
def test_a_time_without_a_zone_is_no_time(value: Any) -> None:
    with pytest.raises(convert.WireError):
        convert.time(value)


@pytest.mark.parametrize("value", ["", None])
def test_a_missing_number_is_not_zero(value: Any) -> None:
    with pytest.raises(convert.WireError, match="equity"):
        convert.account({"equity": value, "cash": "1", "buying_power": "1"}, datetime.now(UTC), crypto=False)


@pytest.mark.parametrize("value", ["NaN", "inf", "1,000", True, [1]])
def test_what_is_not_a_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(convert.WireError, match="qty"):
        convert.decimal({"qty": value}, "qty")


def test_numbers_that_come_as_numbers_keep_their_shortest_decimal() -> None:
    assert convert.decimal({"p": 0.1}, "p") == Decimal("0.1")


def test_a_short_position_is_negative_in_both_quantities() -> None:
    row = {"symbol": "SPY", "qty": "-5", "side": "short", "qty_available": "-3", "avg_entry_price": "10"}

    position = convert.position(row | {"current_price": None, "market_value": "-55"}, convert.Symbols())

    assert (position.qty, position.qty_available, position.mark) == (Decimal(-5), Decimal(-3), Decimal(11))


def test_crypto_positions_are_known_by_the_name_that_orders_use() -> None:
    symbols = convert.Symbols()
    symbols.learn(["BTC/USD"])

    assert (symbols.canonical("BTCUSD"), symbols.canonical("BTC/USD"), symbols.canonical("SPY")) == (
        "BTC/USD",
        "BTC/USD",
        "SPY",
    )


def test_the_exchanges_own_keys_are_used_where_they_are_there() -> None:
    leg = order_json(leg="stop", parent_client_order_id="t1-abc", type="stop", client_order_id="t1-abc.stop")
    row = {"id": "0000012", "symbol": "SPY", "side": "sell_short", "qty": "2", "price": "10", "fee": "0.02"}

    order = convert.order(leg, convert.Symbols())
    fill = convert.fill(
        row | {"transaction_time": "2026-03-16T18:38:01Z", "mark_price": "10.01"}, "c", convert.Symbols(), Decimal(1)
    )

    assert (order.leg, order.parent_client_id) == (Leg.STOP, "t1-abc")
    assert (fill.fee, fill.mark_price, fill.side) == (Decimal("0.02"), Decimal("10.01"), Side.SELL)


@pytest.mark.parametrize(
    ("asset", "step", "calendar"),
    [
        ({"symbol": "SPY", "class": "us_equity", "fractionable": True}, "1e-9", "XNYS"),
        ({"symbol": "BRK.A", "class": "us_equity", "fractionable": False}, "1", "XNYS"),
        ({"symbol": "BTC/USD", "class": "crypto", "min_trade_increment": "0.000000001"}, "1e-9", "24/7"),
        ({"symbol": "X", "class": "us_equity", "min_trade_increment": "0.5", "calendar": "XLON"}, "0.5", "XLON"),
    ],
)
def test_an_asset_becomes_an_instrument_with_the_venues_steps(asset: dict[str, Any], step: str, calendar: str) -> None:
    instrument = convert.instrument(asset)

    assert (instrument.qty_step, instrument.calendar) == (Decimal(step), calendar)
    assert instrument.asset_class is AssetClass(asset["class"])


@pytest.mark.parametrize(
    ("minutes", "name"),
    [(1, "1Min"), (5, "5Min"), (60, "1Hour"), (240, "4Hour"), (1440, "1Day"), (90, None), (0, None)],
)
def test_bar_periods_have_alpacas_names(minutes: int, name: str | None) -> None:
    period = timedelta(minutes=minutes)

    if name is None:
        with pytest.raises(ValueError, match="no bars of"):
            convert.timeframe(period)
    else:
        assert convert.timeframe(period) == name
