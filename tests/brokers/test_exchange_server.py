"""The exchange over real HTTP: Alpaca's surface, its errors, stepping, and life as a process."""

from __future__ import annotations

import copy
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.requests import CryptoBarsRequest, CryptoLatestQuoteRequest, StockBarsRequest, StockLatestQuoteRequest
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderClass, OrderSide, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import (
    GetCalendarRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    StopLossRequest,
    TakeProfitRequest,
)
from exchange_kit import Floor, at, flat, series, walk
from exchange_process import Client, process, served
from jsonschema import Draft7Validator

from brokers.domain import AssetClass, Instrument
from brokers.simulated.server import ServerOptions
from brokers.simulated.wire import stamp

FIVE_MINUTES = TimeFrame(5, TimeFrameUnit.Minute)


def equities(count: int = 40) -> Floor:
    instruments = {"X": Instrument("X", AssetClass.EQUITY, shortable=True)}
    return Floor(flat(count), instruments=instruments, shorting=True).to(at(1))


@pytest.fixture
def equity() -> Iterator[Client]:
    with served(equities().engine) as client:
        yield client


@pytest.fixture
def crypto() -> Iterator[Client]:
    floor = Floor({"BTC/USD": series("BTC/USD", flat(40)), "X": walk("X", 40, seed=3)}).to(at(3))
    with served(floor.engine) as client:
        yield client


# --- a real client ------------------------------------------------------------------------------------------------


def trading(client: Client) -> TradingClient:
    return TradingClient("key", "secret", paper=True, url_override=client.url)


def test_alpacas_own_client_trades_a_bracket_end_to_end(equity: Client) -> None:
    sdk = trading(equity)
    assert sdk.get_account().buying_power == "100000"
    assert sdk.get_clock().is_open
    assert sdk.get_asset("X").symbol == "X"
    assert [asset.symbol for asset in sdk.get_all_assets()] == ["X"]
    sent = sdk.submit_order(
        MarketOrderRequest(
            symbol="X",
            qty=10,
            side=OrderSide.BUY,
            time_in_force=TimeInForce.GTC,
            order_class=OrderClass.BRACKET,
            client_order_id="mine",
            stop_loss=StopLossRequest(stop_price=95),
            take_profit=TakeProfitRequest(limit_price=105),
        )
    )
    assert {leg.status.value for leg in sent.legs} == {"held"}
    equity.step()
    assert sdk.get_order_by_client_id("mine").status.value == "filled"
    nested = sdk.get_order_by_id(sent.id, GetOrderByIdRequest(nested=True))
    assert [leg.status.value for leg in nested.legs] == ["new", "new"]
    position = sdk.get_open_position("X")
    assert (position.qty, position.qty_available) == ("10", "0")
    assert len(sdk.get_all_positions()) == 1
    (family,) = sdk.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN, nested=True))
    assert family.id == sent.id
    assert len(sdk.cancel_orders()) == 2
    assert sdk.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN)) == []


def test_alpacas_own_client_reads_calendar_and_stock_data(equity: Client) -> None:
    equity.step(4)
    days = trading(equity).get_calendar(GetCalendarRequest(start=at(0).date(), end=at(0).date()))
    assert [day.date for day in days] == [at(0).date()]
    data = StockHistoricalDataClient("key", "secret", url_override=equity.url)
    bars = data.get_stock_bars(StockBarsRequest(symbol_or_symbols="X", timeframe=FIVE_MINUTES, start=at(0)))
    assert [bar.timestamp for bar in bars["X"]] == [at(0), at(1), at(2)]
    quote = data.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols="X"))["X"]
    assert quote.bid_price <= 100 <= quote.ask_price


def test_alpacas_own_client_reads_crypto_without_keys(crypto: Client) -> None:
    data = CryptoHistoricalDataClient(url_override=crypto.url)
    request = CryptoBarsRequest(symbol_or_symbols=["BTC/USD", "X"], timeframe=FIVE_MINUTES, start=at(0))
    bars = data.get_crypto_bars(request)
    assert (len(bars["BTC/USD"]), len(bars["X"])) == (3, 3)
    quotes = data.get_crypto_latest_quote(CryptoLatestQuoteRequest(symbol_or_symbols="BTC/USD"))
    assert quotes["BTC/USD"].bid_price == pytest.approx(100.0)


# --- the published schema -----------------------------------------------------------------------------------------


def schema(file: Path, name: str) -> Draft7Validator:
    """Return a validator of one schema of an OpenAPI 3.0 file, with its `nullable` made JSON Schema."""
    schemas = _nullable(json.loads(file.read_text()))["components"]["schemas"]
    for enum in ("Exchange", "ExchangeForPosition"):
        if enum in schemas:
            schemas[enum]["enum"].append("CRYPTO")  # what the venue answers; its own file forgets it
    return Draft7Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


def _nullable(node: Any) -> Any:
    if isinstance(node, list):
        return [_nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _nullable(value) for key, value in node.items()}
    if made.get("nullable") is True:
        plain = copy.deepcopy(made)
        del plain["nullable"]
        return {"anyOf": [plain, {"type": "null"}]}
    return made


def assert_valid(validator: Draft7Validator, rows: list[Any]) -> None:
    assert rows
    for row in rows:
        faults = [f"{list(fault.absolute_path)}: {fault.message[:200]}" for fault in validator.iter_errors(row)]
        assert not faults


@pytest.mark.parametrize("kind", ["equity", "crypto"])
def test_trading_answers_match_the_published_schema(kind: str, api_specs: Path, request: pytest.FixtureRequest) -> None:
    client: Client = request.getfixturevalue(kind)
    exits = {"order_class": "bracket", "stop_loss": {"stop_price": "80"}, "take_profit": {"limit_price": "120"}}
    client.order(**exits)
    client.step(2)
    trading_api = api_specs / "trading-api.json"
    assert_valid(schema(trading_api, "Order"), client.get("/v2/orders?status=all&nested=true"))
    assert_valid(schema(trading_api, "Order"), client.get("/v2/orders?status=all"))
    assert_valid(schema(trading_api, "Position"), client.get("/v2/positions"))
    assert_valid(schema(trading_api, "Account"), [client.get("/v2/account")])
    assert_valid(schema(trading_api, "Assets"), client.get("/v2/assets"))
    assert_valid(schema(trading_api, "legacy_clock"), [client.get("/v2/clock")])
    assert_valid(schema(trading_api, "legacy_public_calendar_resp"), [client.get("/v2/calendar")])
    assert_valid(schema(trading_api, "TradingActivities"), client.get("/v2/account/activities/FILL"))


def test_stock_data_answers_match_the_published_schema(equity: Client, api_specs: Path) -> None:
    file = api_specs / "market-data-api.json"
    bars = equity.get("/v2/stocks/bars?symbols=X&timeframe=5Min&start=2024-01-01")
    assert_valid(schema(file, "stock_bars_resp"), [bars])
    assert_valid(schema(file, "stock_latest_quotes_resp"), [equity.get("/v2/stocks/quotes/latest?symbols=X")])


def test_crypto_data_answers_match_the_published_schema(crypto: Client, api_specs: Path) -> None:
    file = api_specs / "market-data-api.json"
    bars = crypto.get("/v1beta3/crypto/us/bars?symbols=BTC/USD,X&timeframe=5Min&start=2024-01-01")
    assert_valid(schema(file, "crypto_bars_resp"), [bars])
    quotes = crypto.get("/v1beta3/crypto/us/latest/quotes?symbols=BTC%2FUSD")
    assert_valid(schema(file, "crypto_latest_quotes_resp"), [quotes])


# --- errors -------------------------------------------------------------------------------------------------------


def test_trading_needs_keys_but_takes_any(equity: Client) -> None:
    status, body = equity.ask("GET", "/v2/account", headers={})
    assert (status, body["code"]) == (401, 40110000)
    assert equity.ask("GET", "/v2/account", headers={"APCA-API-KEY-ID": "a", "APCA-API-SECRET-KEY": "b"})[0] == 200


def test_configured_keys_are_the_only_ones() -> None:
    with served(equities().engine, ServerOptions(key_id="key", secret_key="right")) as client:  # noqa: S106  a test's own
        assert client.ask("GET", "/exchange/v1/clock")[0] == 401
        right = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "right"}
        assert client.ask("GET", "/exchange/v1/clock", headers=right)[0] == 200


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"symbol": "NOPE"}, 422, 42210000, "not found"),
        ({"qty": "5000"}, 403, 40310000, "insufficient buying power"),
        ({"qty": "0.0000001"}, 422, 42210000, "step"),
        ({"qty": "0.001"}, 403, 40310000, "minimal amount"),
        ({"qty": "ten"}, 422, 42210000, "not a number"),
        ({"side": "hold"}, 422, 42210000, "invalid side"),
        ({"type": "trailing_stop"}, 422, 42210000, "invalid type"),
        ({"time_in_force": "ioc"}, 422, 42210000, "invalid time_in_force"),
        ({"notional": "10", "qty": None}, 422, 42210000, "notional is not supported"),
        ({"limit_price": "5"}, 422, 42210000, "take no limit_price"),
        ({"stop_loss": {"stop_price": "95"}}, 422, 42210000, "simple orders take 0"),
        ({"order_class": "bracket", "stop_loss": {"stop_price": "95"}}, 422, 42210000, "bracket orders take 2"),
        ({"order_class": "mleg"}, 422, 42210000, "mleg"),
    ],
)
def test_a_refused_order_says_why_and_leaves_nothing(
    equity: Client, fields: dict[str, Any], status: int, code: int, words: str
) -> None:
    got, body = equity.order(client_order_id="a", **fields)
    assert (got, body["code"]) == (status, code)
    assert words in body["message"]
    assert equity.ask("GET", "/v2/orders:by_client_order_id?client_order_id=a")[0] == 404


def test_a_duplicate_client_id_is_refused_as_alpaca_does(equity: Client) -> None:
    assert equity.order(client_order_id="a")[0] == 200
    status, body = equity.order(client_order_id="a")
    assert (status, body["code"], body["message"]) == (422, 40010001, "client_order_id must be unique")


def test_a_close_of_what_legs_hold_names_the_orders_in_the_way(equity: Client) -> None:
    equity.order(order_class="oto", stop_loss={"stop_price": "95"})
    equity.step()
    status, body = equity.order(side="sell")
    stop = equity.get("/v2/orders")[0]
    assert (status, body["code"], body["reject_reason"]) == (403, 40310000, "insufficient_qty_available")
    assert (body["available"], body["existing_qty"], body["related_orders"]) == ("0", "1", [stop["id"]])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/orders/7f6ffaa6-bb0b-4614-9e4b-7a8a4a3c1d0e"),
        ("DELETE", "/v2/orders/7f6ffaa6-bb0b-4614-9e4b-7a8a4a3c1d0e"),
        ("GET", "/v2/orders:by_client_order_id?client_order_id=none"),
        ("GET", "/v2/positions/X"),
        ("GET", "/v2/assets/NOPE"),
        ("GET", "/v2/no/such/path"),
    ],
)
def test_what_does_not_exist_is_a_404_with_alpacas_code(equity: Client, method: str, path: str) -> None:
    status, body = equity.ask(method, path)
    assert (status, body["code"]) == (404, 40410000)


def test_a_filled_order_cannot_be_cancelled(equity: Client) -> None:
    _, order = equity.order()
    equity.step()
    status, body = equity.ask("DELETE", f"/v2/orders/{order['id']}")
    assert (status, body["message"]) == (422, 'order is already in "filled" state')


@pytest.mark.parametrize("body", ["", "[]", "{", "null"])
def test_a_body_that_is_no_order_is_refused(equity: Client, body: str) -> None:
    status, answer = equity.ask("POST", "/v2/orders", body)
    assert (status, answer["code"]) == (400, 40010001)


def test_unusable_query_parameters_are_named(equity: Client) -> None:
    for query in ("limit=0", "limit=many", "status=maybe", "after=yesterday", "direction=up"):
        status, body = equity.ask("GET", f"/v2/orders?{query}")
        assert status == 422
        assert query.split("=")[0] in body["message"]


# --- listings -----------------------------------------------------------------------------------------------------


def test_numbers_may_be_texts_or_numbers(equity: Client) -> None:
    status, order = equity.order(qty=0.1, type="limit", limit_price=98.1)
    assert (status, order["qty"], order["limit_price"]) == (200, "0.1", "98.1")


def test_orders_are_filtered_and_ordered(equity: Client) -> None:
    for name in ("a", "b", "c"):
        equity.order(client_order_id=name, type="limit", limit_price="90")
        equity.step()
    _, first = equity.ask("GET", "/v2/orders:by_client_order_id?client_order_id=a")
    assert equity.ask("DELETE", f"/v2/orders/{first['id']}")[0] == 204

    def names(query: str) -> list[str]:
        return [order["client_order_id"] for order in equity.get(f"/v2/orders?{query}")]

    assert names("") == ["c", "b"]
    assert names("status=closed") == ["a"]
    assert names("status=all&direction=asc") == ["a", "b", "c"]
    assert names("status=all&direction=asc&limit=2") == ["a", "b"]
    assert names(f"status=all&direction=asc&after={first['submitted_at']}") == ["b", "c"]
    assert names(f"status=all&until={first['submitted_at']}") == []
    assert names(f"status=all&direction=asc&after_order_id={first['id']}") == ["b", "c"]
    assert names("status=all&symbols=Y") == []
    assert names("status=all&side=sell") == []
    now = equity.get("/exchange/v1/clock")["now"]
    assert names(f"status=all&updated_since={now}") == ["a"]


def test_nested_listings_show_a_filled_entry_while_its_legs_work(equity: Client) -> None:
    equity.order(client_order_id="e", order_class="oto", stop_loss={"stop_price": "95"})
    equity.step()
    (family,) = equity.get("/v2/orders?status=open&nested=True")
    assert (family["status"], family["legs"][0]["client_order_id"]) == ("filled", "e.stop")
    (leg,) = equity.get("/v2/orders?status=open")
    assert (leg["client_order_id"], leg["parent_client_order_id"], leg["leg"]) == ("e.stop", "e", "stop")
    assert equity.get("/v2/orders?status=closed&nested=true") == []


def test_fills_are_paged_by_their_ids(equity: Client) -> None:
    for index in range(5):
        equity.order(client_order_id=f"o{index}", leg="close" if index == 4 else "entry")
    equity.step()
    path = "/v2/account/activities/FILL?direction=asc&page_size=2"
    seen: list[dict[str, Any]] = []
    while page := equity.get(path + (f"&page_token={seen[-1]['id']}" if seen else "")):
        seen += page
    assert [fill["client_order_id"] for fill in seen] == [f"o{index}" for index in range(5)]
    assert [fill["id"] for fill in seen] == sorted(fill["id"] for fill in seen)
    assert (seen[4]["leg"], seen[4]["type"], seen[4]["leaves_qty"]) == ("close", "fill", "0")
    assert {"fee", "mark_price"} <= seen[0].keys()
    newest = equity.get("/v2/account/activities/FILL?page_size=1")
    assert newest[0]["client_order_id"] == "o4"


def test_symbols_are_understood_with_and_without_slash(crypto: Client) -> None:
    assert crypto.order(symbol="BTCUSD")[1]["symbol"] == "BTC/USD"
    crypto.step(2)
    for spelling in ("BTC/USD", "BTC%2FUSD", "BTCUSD"):
        assert crypto.get(f"/v2/assets/{spelling}")["symbol"] == "BTC/USD"
        assert crypto.get(f"/v2/positions/{spelling}")["qty"] == "1"


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_bars_are_paged_by_symbol_and_time(crypto: Client, sort: str) -> None:
    path = f"/v1beta3/crypto/us/bars?symbols=X,BTC/USD&timeframe=5Min&start=2024-01-01&limit=2&sort={sort}"
    found: list[tuple[str, str]] = []
    token: str | None = ""
    pages = 0
    while token is not None:
        page = crypto.get(path + (f"&page_token={token}" if token else ""))
        found += [(symbol, bar["t"]) for symbol, bars in page["bars"].items() for bar in bars]
        token = page["next_page_token"]
        pages += 1
    times = [stamp(at(index)) for index in range(3)]
    if sort == "desc":
        times.reverse()
    assert found == [(symbol, time) for symbol in ("BTC/USD", "X") for time in times]
    assert pages == 3


def test_a_period_that_is_not_played_is_named(crypto: Client) -> None:
    status, body = crypto.ask("GET", "/v1beta3/crypto/us/bars?symbols=X&timeframe=1Hour&start=2024-01-01")
    assert status == 400
    assert "0:05:00" in body["message"]


def test_bars_carry_adjustment_and_signals() -> None:
    bars = series("X", flat(4), adj=[1.0, 1.0, 2.0, 2.0])
    bars.signals["mood"] = bars.close / 50  # type: ignore[index]
    with served(Floor({"X": bars}).to(at(3)).engine) as client:
        found = client.get("/v2/stocks/bars?symbols=X&timeframe=5Min&start=2024-01-01")["bars"]["X"]
    assert [(bar["af"], bar["x"]["mood"]) for bar in found] == [(1.0, 2.0), (1.0, 2.0), (2.0, 2.0)]


# --- stepping -----------------------------------------------------------------------------------------------------


def test_the_clock_tells_what_is_played(equity: Client) -> None:
    clock = equity.get("/exchange/v1/clock")
    assert (clock["now"], clock["stepped"], clock["period"], clock["symbols"]) == (stamp(at(1)), True, "5m", ["X"])
    assert (clock["feed_start"], clock["feed_end"]) == (stamp(at(0)), stamp(at(40)))


def test_an_advance_is_idempotent_in_from(equity: Client) -> None:
    equity.order(client_order_id="a")
    first = equity.advance(stamp(at(1)))
    assert (first["now"], first["event"], first["orders_changed"]) == (stamp(at(1, 10)), "open", ["a"])
    again = equity.advance(stamp(at(1)))
    assert again == first | {"repeated": True}


def test_a_client_ahead_of_the_exchange_gets_a_409_with_both_times(equity: Client) -> None:
    body = {"from": stamp(at(5)), "idle_until": stamp(at(6))}
    status, answer = equity.ask("POST", "/exchange/v1/advance", body)
    assert (status, answer["now"]) == (409, stamp(at(1)))
    assert "12:25:00" in answer["message"]


def test_the_books_list_everything_for_comparison(equity: Client) -> None:
    equity.order(client_order_id="a", order_class="oto", stop_loss={"stop_price": "95"})
    equity.step()
    books = equity.get("/exchange/v1/books")
    assert [order["client_order_id"] for order in books["orders"]] == ["a", "a.stop"]
    assert [fill["client_order_id"] for fill in books["fills"]] == ["a"]
    assert (books["positions"], Decimal(books["cash"])) == ({"X": "1"}, Decimal(99_900))


def test_a_free_running_exchange_moves_by_itself_and_refuses_steps() -> None:
    with served(equities().engine, ServerOptions(acceleration=3_000.0)) as client:
        client.order(client_order_id="a")
        deadline = time.monotonic() + 5
        while client.get("/v2/orders?status=closed") == []:
            assert time.monotonic() < deadline
        assert client.get("/exchange/v1/clock")["stepped"] is False
        status, body = client.ask("POST", "/exchange/v1/advance", {"from": stamp(at(1)), "idle_until": stamp(at(2))})
        assert (status, body["code"]) == (422, 42210000)


# --- life as a process --------------------------------------------------------------------------------------------

SCRIPT = str(Path(__file__).with_name("exchange_process.py"))
COMMAND = ("-m", "agent.cli", "exchange", "--json", "--synthetic-bars", "50", "--port")


def test_an_advance_whose_answer_died_with_the_process_is_answered_after_the_restart(tmp_path: Path) -> None:
    books = str(tmp_path / "books.sqlite")
    with process(SCRIPT, books, "30") as (client, running):
        start = client.get("/exchange/v1/clock")["now"]
        with pytest.raises(TimeoutError):
            client.advance(start, timeout_s=0.5)
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(SCRIPT, books, "0") as (client, _):
        answer = client.advance(start)
        assert (answer["repeated"], answer["event"], answer["now"]) == (True, "close", stamp(at(1)))
        assert client.advance(answer["now"])["repeated"] is False


def test_the_command_says_when_it_listens_and_ends_on_sigterm(tmp_path: Path) -> None:
    books = str(tmp_path / "books.sqlite")
    with process(*COMMAND, "0", "--books", books) as (client, running):
        client.order(symbol="SYNTH")
        now = client.step(3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=5) == 0
    with process(*COMMAND, "0", "--books", books) as (client, _):
        assert client.get("/exchange/v1/clock")["now"] == now


def test_a_taken_port_ends_with_1_and_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, *COMMAND, port], capture_output=True, text=True, timeout=30, check=False
        )
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr


def test_books_of_another_seed_end_the_command_with_the_difference(tmp_path: Path) -> None:
    books = str(tmp_path / "books.sqlite")
    with process(*COMMAND, "0", "--books", books):
        pass
    ended = subprocess.run(
        [sys.executable, *COMMAND, "0", "--books", books, "--seed", "9"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert "seed was 1, is 9" in ended.stderr


def test_a_limit_order_request_of_the_sdk_keeps_its_exact_price(equity: Client) -> None:
    sdk = trading(equity)
    order = sdk.submit_order(
        LimitOrderRequest(symbol="X", qty=0.3, side=OrderSide.BUY, time_in_force=TimeInForce.DAY, limit_price=97.35)
    )
    assert (order.qty, order.limit_price) == ("0.3", "97.35")
