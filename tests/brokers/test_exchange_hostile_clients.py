"""What no client may do to the exchange, whatever it sends: crash it, poison its books, stop its time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_kit import FAR, FREE, Floor, at, flat, series
from exchange_process import Client, served

from brokers.domain import OrderRequest, OrderType, Side
from brokers.simulated.books import BooksError
from brokers.simulated.orders import RefusedError
from brokers.simulated.server import ServerOptions
from brokers.simulated.sqlite_books import SqliteBooks

HUGE = ("1e25", "1e999", "1e999999", "1e999999999999999999")
TINY = ("1e-200", "1e-999999", "1e-999999999999999999")


@pytest.fixture
def client() -> Iterator[Client]:
    with served(Floor(flat(40)).to(at(1)).engine) as found:
        yield found


def refused(client: Client, status: int, body: Any) -> None:
    assert (status, len(json.dumps(body)) < 1_000) == (422, True), (status, str(body)[:300])
    assert client.get("/exchange/v1/books")["orders"] == []


@pytest.mark.parametrize("value", [*HUGE, *TINY, "-1", "NaN", "Infinity"])
@pytest.mark.parametrize("field", ["qty", "stop_price", "limit_price"])
def test_a_number_that_no_market_has_is_refused_in_few_words(client: Client, field: str, value: str) -> None:
    fields = {"type": "stop_limit", "stop_price": "100", "limit_price": "100"} | {field: value}
    refused(client, *client.order(**fields))


@pytest.mark.parametrize("value", [*HUGE, *TINY])
def test_a_bracket_leg_at_a_price_that_no_market_has_is_refused(client: Client, value: str) -> None:
    refused(client, *client.order(order_class="oto", take_profit={"limit_price": value}))


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000b", "a\\nb"])
def test_a_client_id_that_cannot_be_printed_is_refused(client: Client, name: str) -> None:
    body = '{"symbol":"X","qty":"1","side":"buy","type":"market","time_in_force":"gtc","client_order_id":"%s"}'
    refused(client, *client.ask("POST", "/v2/orders", body % name))


def test_an_id_taken_from_the_exchanges_own_row_does_not_block_orders_without_one(client: Client) -> None:
    assert client.order(client_order_id="exchange-000000000002")[0] == 200
    assert client.order()[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [("[" * 50_000, 400), ('{"a":' * 9_000, 400), ("x" * 70_000, 413)],
    ids=["deep list", "deep object", "too long"],
)
def test_a_body_that_cannot_be_read_is_refused(client: Client, body: str, status: int) -> None:
    assert client.ask("POST", "/v2/orders", body)[0] == status


@pytest.mark.parametrize(
    "path",
    [
        f"/v2/orders?limit={'9' * 5_000}",
        "/v2/orders?after=9999-12-31T23:59:59.999999-23:59",
        "/v2/orders?until=0001-01-01T00:00:00%2B23:59",
        "/v2/calendar?start=0001-01-01",
        "/v2/calendar?start=9999-12-31&end=9999-12-31",
        "/v2/stocks/bars?symbols=X&timeframe=5Min&end=9999-12-31T23:59:59.999999",
    ],
)
def test_a_parameter_beyond_all_bounds_is_refused(client: Client, path: str) -> None:
    assert client.ask("GET", path)[0] == 422


@pytest.mark.parametrize("token", ["WHw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "aaaa", "%C3%A9"])
def test_a_made_up_page_token_is_refused(client: Client, token: str) -> None:
    assert client.ask("GET", f"/v2/stocks/bars?symbols=X&timeframe=5Min&page_token={token}")[0] == 400


def test_keys_outside_of_ascii_are_wrong_keys_not_a_crash() -> None:
    options = ServerOptions(key_id="key", secret_key="secret")  # noqa: S106  a test's own
    with served(Floor(flat(10)).engine, options) as client:
        headers = {"APCA-API-KEY-ID": "\u00e9", "APCA-API-SECRET-KEY": "\u00e9"}
        assert client.ask("GET", "/v2/account", headers=headers)[0] == 401


def test_venue_time_cannot_be_sent_beyond_what_the_books_can_hold(client: Client) -> None:
    now = client.get("/exchange/v1/clock")["now"]
    body = {"from": now, "idle_until": "9999-12-31T00:00:00Z"}
    assert client.ask("POST", "/exchange/v1/advance", body)[0] == 422
    assert client.step() > now


def test_the_largest_order_of_all_survives_a_split() -> None:
    floor = Floor({"X": series("X", flat(3) + flat(3, 5_000.0), adj=[1, 1, 1, 0.02, 0.02, 0.02])}).to(at(1))
    floor.buy("position", "10")
    floor.to(at(2)).sell("far", "10", type=OrderType.LIMIT, limit_price="1000000000000")
    floor.to(at(5))
    assert floor.order("far").limit_price == Decimal(50_000_000_000_000)


def test_an_engine_refuses_in_process_what_the_wire_refuses() -> None:
    floor = Floor(flat(10)).to(at(1))
    with pytest.raises(RefusedError, match="positive price"):
        floor.engine.submit(
            OrderRequest("a", "X", Side.SELL, Decimal(1), type=OrderType.STOP, stop_price=Decimal("1e999999999"))
        )


def broken_market() -> dict[str, Any]:
    """Return bars of which the fourth opens at a price that cannot be written as money."""
    return {"X": series("X", [*flat(3), (1e30, 1e30, 1e30, 1e30), *flat(3)])}


def test_a_step_that_fails_did_not_happen(tmp_path: Path) -> None:
    floor = Floor(broken_market(), books=SqliteBooks(tmp_path / "books.db"), costs=FREE).to(at(1))
    floor.buy("first", "1")
    floor.to(at(3)).buy("second", "1")
    before = floor.engine.now
    for _ in range(2):
        with pytest.raises(BooksError, match="cannot pass it"):
            floor.engine.advance(before, FAR)
        assert (floor.engine.now, floor.held()) == (before, Decimal(1))


def test_without_books_to_go_back_to_nothing_continues_after_a_step_that_failed() -> None:
    floor = Floor(broken_market()).to(at(3))
    floor.buy("a", "1")
    with pytest.raises(BooksError):
        floor.engine.advance(floor.engine.now, FAR)
    with pytest.raises(BooksError):
        floor.engine.account()
