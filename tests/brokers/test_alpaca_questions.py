"""Lists of orders and fills page by page, spellings, bars and quotes of an Alpaca-shaped venue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from loopback import Loopback, Reply, Seen, order_json, serving

from brokers.alpaca import AlpacaBroker, AlpacaSettings, WallClock, convert, inline
from brokers.domain import Leg, OrderRequest, OrderState, RejectedError, Side, UnavailableError

NOW = datetime(2026, 3, 17, 14, 31, tzinfo=UTC)
EQUITY = {"symbol": "SPY", "class": "us_equity", "fractionable": True, "tradable": True, "shortable": True}
CRYPTO = {"symbol": "BTC/USD", "class": "crypto", "tradable": True, "min_trade_increment": "0.000000001"}
Routes = dict[str, Callable[[Seen], Any]]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCA_API_KEY_ID", "KEY")
    monkeypatch.setenv("APCA_API_SECRET_KEY", "SECRET")


@pytest.fixture
def routes() -> Routes:
    return {"/v2/assets/SPY": lambda _: EQUITY, "/v2/assets/BTC%2FUSD": lambda _: CRYPTO}


@pytest.fixture
def venue(routes: Routes) -> Iterator[Loopback]:
    def answer(seen: Seen) -> Reply:
        route = routes.get(seen.path)
        if route is None:
            return Reply(404, {"code": 40410000, "message": f"nothing at {seen.path}"})
        content = route(seen)
        return content if isinstance(content, Reply) else Reply(200, content)

    with serving(answer) as server:
        yield server


def asked(venue: Loopback, question: Callable[[AlpacaBroker], Any], **changes: Any) -> Any:
    async def run() -> Any:
        settings = AlpacaSettings(url=venue.url, outage_s_max=0.2, **changes)
        broker = AlpacaBroker(settings, run=inline, clock=WallClock(system_now=lambda: NOW))
        try:
            return await question(broker)
        finally:
            await broker.close()

    return asyncio.run(run())


def at(second: int) -> str:
    return convert.stamp(NOW - timedelta(days=1) + timedelta(seconds=second))


def orders_route(rows: list[dict[str, Any]]) -> Callable[[Seen], Any]:
    """List orders as Alpaca does: by submission, newest first, `until` and `after` exclusive."""

    def answer(seen: Seen) -> Any:
        until, after = seen.query.get("until"), seen.query.get("after")
        found = [
            row
            for row in rows
            if (until is None or convert.time(row["submitted_at"]) < convert.time(until))
            and (after is None or convert.time(row["submitted_at"]) > convert.time(after))
        ]
        found.sort(key=lambda row: str(row["submitted_at"]), reverse=True)
        return found[: int(seen.query["limit"])]

    return answer


def test_open_orders_are_paged_and_lose_none_of_those_submitted_at_one_instant(venue: Loopback, routes: Routes) -> None:
    rows = [
        order_json(id=f"id-{n}", client_order_id=f"c-{n}", submitted_at=at(n // 7), updated_at=at(n))
        for n in range(1300)
    ]
    routes["/v2/orders"] = orders_route(rows)

    orders = asked(venue, lambda broker: broker.open_orders())

    assert {order.client_id for order in orders} == {f"c-{n}" for n in range(1300)}
    assert len(orders) == 1300
    assert venue.seen[0].query["nested"] == "true"
    assert venue.seen[0].query["status"] == "open"


def test_more_orders_at_one_instant_than_a_page_holds_are_not_silently_cut(venue: Loopback, routes: Routes) -> None:
    rows = [order_json(id=f"id-{n}", client_order_id=f"c-{n}") for n in range(501)]
    routes["/v2/orders"] = orders_route(rows)

    with pytest.raises(UnavailableError, match="more than 500 orders"):
        asked(venue, lambda broker: broker.open_orders())


def test_held_legs_of_a_filled_entry_are_open_orders(venue: Loopback, routes: Routes) -> None:
    request = OrderRequest("t1", "SPY", Side.BUY, Decimal(2), take_profit=Decimal(12), stop_loss=Decimal(9))
    routes["/v2/orders"] = lambda _: [order_json(convert.order_body(request, native=False), status="filled")]

    orders = asked(venue, lambda broker: broker.open_orders())

    assert [(each.leg, each.parent_client_id, each.state) for each in orders] == [
        (Leg.TAKE_PROFIT, "t1", OrderState.HELD),
        (Leg.STOP, "t1", OrderState.HELD),
    ]


def test_a_leg_that_comes_back_under_a_new_id_is_still_that_leg(venue: Loopback, routes: Routes) -> None:
    request = OrderRequest("t1", "SPY", Side.BUY, Decimal(2), take_profit=Decimal(12), stop_loss=Decimal(9))
    placed = order_json(convert.order_body(request, native=False))
    moved = order_json(id="new", client_order_id="server-new", replaces="id-stop", type="market", side="sell")
    routes["/v2/orders"] = lambda seen: placed if seen.method == "POST" else [moved]

    async def run(broker: AlpacaBroker) -> Any:
        await broker.submit(request)
        return await broker.open_orders()

    orders = asked(venue, run)

    assert [(each.leg, each.parent_client_id) for each in orders] == [(Leg.STOP, "t1")]


def test_orders_since_finds_an_old_order_that_changed_lately(venue: Loopback, routes: Routes) -> None:
    rows = [
        order_json(id="a", client_order_id="old", submitted_at=at(-5_000_000), updated_at=at(100), status="canceled"),
        order_json(id="b", client_order_id="untouched", submitted_at=at(0), updated_at=at(0)),
    ]
    routes["/v2/orders"] = orders_route(rows)

    orders = asked(venue, lambda broker: broker.orders_since(convert.time(at(100))))

    assert [order.client_id for order in orders] == ["old"]


def test_an_order_that_is_listed_without_its_legs_is_asked_for_again_with_them(venue: Loopback, routes: Routes) -> None:
    request = OrderRequest("t1", "SPY", Side.BUY, Decimal(2), stop_loss=Decimal(9))
    whole = order_json(convert.order_body(request, native=False))
    routes["/v2/orders:by_client_order_id"] = lambda _: whole | {"legs": None}
    routes[f"/v2/orders/{whole['id']}"] = lambda _: whole

    order = asked(venue, lambda broker: broker.order("t1"))

    assert [leg.leg for leg in order.legs] == [Leg.STOP]


def fill_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number:012d}",
        "activity_type": "FILL",
        "transaction_time": at(number),
        "type": "fill",
        "price": "100.5",
        "qty": "2",
        "side": "buy",
        "symbol": "SPY",
        "order_id": "id-1",
    } | changes


def fills_route(rows: list[dict[str, Any]]) -> Callable[[Seen], Any]:
    def answer(seen: Seen) -> Any:
        token = seen.query.get("page_token", "")
        return [row for row in rows if row["id"] > token][: int(seen.query["page_size"])]

    return answer


def test_fills_are_paged_oldest_first_and_begin_after_the_one_that_is_known(venue: Loopback, routes: Routes) -> None:
    routes["/v2/account/activities/FILL"] = fills_route([fill_row(n, client_order_id=f"c-{n}") for n in range(250)])

    everything = asked(venue, lambda broker: broker.fills(None))
    later = asked(venue, lambda broker: broker.fills(f"{199:012d}"))

    assert [fill.client_id for fill in everything] == [f"c-{n}" for n in range(250)]
    assert [fill.client_id for fill in later] == [f"c-{n}" for n in range(200, 250)]


def test_a_fill_that_names_only_the_venues_order_id_is_traced_to_the_client_id_once(
    venue: Loopback, routes: Routes
) -> None:
    routes["/v2/account/activities/FILL"] = fills_route([fill_row(n) for n in range(3)])
    routes["/v2/orders/id-1"] = lambda _: order_json(id="id-1", client_order_id="t1-abc")

    fills = asked(venue, lambda broker: broker.fills(None))

    assert {fill.client_id for fill in fills} == {"t1-abc"}
    assert venue.count("GET", "/v2/orders/id-1") == 1


def test_a_crypto_fill_without_a_fee_carries_the_venues_taker_fee(venue: Loopback, routes: Routes) -> None:
    routes["/v2/account/activities/FILL"] = fills_route([fill_row(1, symbol="BTC/USD", client_order_id="c")])

    fills = asked(venue, lambda broker: broker.fills(None))

    assert fills[0].fee == Decimal("0.5025")


def test_positions_are_keyed_by_the_canonical_symbol_also_after_a_restart(venue: Loopback, routes: Routes) -> None:
    row = {"symbol": "BTCUSD", "asset_class": "crypto", "qty": "0.5", "side": "long", "qty_available": "0.5"}
    routes["/v2/positions"] = lambda _: [row | {"avg_entry_price": "60000", "current_price": "61000"}]
    routes["/v2/assets"] = lambda _: [CRYPTO]

    positions = asked(venue, lambda broker: broker.positions())

    assert list(positions) == ["BTC/USD"]


def test_an_unknown_symbol_is_named(venue: Loopback) -> None:
    with pytest.raises(RejectedError, match="SPX"):
        asked(venue, lambda broker: broker.instruments(["SPY", "SPX"]))


def test_another_spelling_is_answered_with_the_venues_own(venue: Loopback, routes: Routes) -> None:
    routes["/v2/assets/BTCUSD"] = lambda _: CRYPTO

    with pytest.raises(RejectedError, match="write BTC/USD"):
        asked(venue, lambda broker: broker.instruments(["BTCUSD"]))


def bar(start: str, close: float = 10.0, **changes: Any) -> dict[str, Any]:
    return {"t": start, "o": close, "h": close + 1, "l": close - 1, "c": close, "v": 5, "n": 1, "vw": None} | changes


def bars_route(rows: dict[str, list[dict[str, Any]]], page: int = 2) -> Callable[[Seen], Any]:
    """Page through all symbols, sorted by symbol, as Alpaca does."""

    def answer(seen: Seen) -> Any:
        flat = [(symbol, row) for symbol in sorted(rows) for row in rows[symbol]]
        first = int(seen.query.get("page_token", 0))
        found: dict[str, list[dict[str, Any]]] = {}
        for symbol, row in flat[first : first + page]:
            found.setdefault(symbol, []).append(row)
        token = str(first + page) if first + page < len(flat) else None
        return {"bars": found, "next_page_token": token}

    return answer


def test_bars_are_complete_over_pages_sessions_and_the_forming_bar(venue: Loopback, routes: Routes) -> None:
    minutes = ["13:29", "13:30", "13:31", "14:30", "14:31"]
    rows = {"SPY": [bar(f"2026-03-17T{minute}:00Z") for minute in minutes]}
    routes["/v2/stocks/bars"] = bars_route(rows)

    bars = asked(
        venue,
        lambda broker: broker.bars(["SPY"], timedelta(minutes=1), NOW - timedelta(days=1), NOW + timedelta(hours=1)),
    )

    assert [each.start.strftime("%H:%M") for each in bars["SPY"]] == ["13:30", "13:31", "14:30"]
    assert bars["SPY"][0].close_time - bars["SPY"][0].start == timedelta(minutes=1)


def test_a_symbol_without_bars_has_an_empty_list_and_a_missing_page_is_an_error(
    venue: Loopback, routes: Routes
) -> None:
    whole = bars_route({"BTC/USD": [bar("2026-03-17T10:00:00Z"), bar("2026-03-17T11:00:00Z")]}, page=1)
    routes["/v1beta3/crypto/us/bars"] = lambda _: {"bars": {}, "next_page_token": None}
    hour = timedelta(hours=1)

    assert asked(venue, lambda broker: broker.bars(["BTC/USD"], hour, NOW - 24 * hour, NOW)) == {"BTC/USD": []}

    routes["/v1beta3/crypto/us/bars"] = lambda seen: Reply(500, b"") if "page_token" in seen.query else whole(seen)
    with pytest.raises(UnavailableError):
        asked(venue, lambda broker: broker.bars(["BTC/USD"], hour, NOW - 24 * hour, NOW))


def test_a_daily_equity_bar_starts_at_midnight_utc_of_its_session_and_closes_with_it(
    venue: Loopback, routes: Routes
) -> None:
    routes["/v2/stocks/bars"] = bars_route({"SPY": [bar("2026-03-13T04:00:00Z"), bar("2026-03-16T04:00:00Z")]})
    start, end = datetime(2026, 3, 13, tzinfo=UTC), datetime(2026, 3, 17, tzinfo=UTC)

    bars = asked(venue, lambda broker: broker.bars(["SPY"], timedelta(days=1), start, end))["SPY"]

    assert [each.start for each in bars] == [start, datetime(2026, 3, 16, tzinfo=UTC)]
    assert bars[1].close_time == datetime(2026, 3, 16, 20, tzinfo=UTC)


def test_the_adjustment_of_equity_bars_is_adjusted_over_raw_close(venue: Loopback, routes: Routes) -> None:
    raw = bars_route({"SPY": [bar("2026-03-16T14:00:00Z", 100.0), bar("2026-03-17T13:00:00Z", 50.0)]})
    adjusted = bars_route({"SPY": [bar("2026-03-16T14:00:00Z", 50.0), bar("2026-03-17T13:00:00Z", 50.0)]})
    routes["/v2/stocks/bars"] = lambda seen: (raw if seen.query["adjustment"] == "raw" else adjusted)(seen)

    bars = asked(venue, lambda broker: broker.bars(["SPY"], timedelta(hours=1), NOW - timedelta(days=2), NOW))["SPY"]

    assert [(each.close, each.adj_factor) for each in bars] == [(100.0, 0.5), (50.0, 1.0)]


@pytest.mark.parametrize(
    "broken",
    [
        [bar("2026-03-17T10:00:00Z", o=float("nan"))],
        [bar("2026-03-17T10:00:00Z", h=1.0)],
        [bar("2026-03-17T10:00:00Z", v=-1)],
        [bar("2026-03-17T10:00:00Z"), bar("2026-03-17T10:00:00Z")],
        [bar("2026-03-17T11:00:00Z"), bar("2026-03-17T10:00:00Z")],
        [{"t": "2026-03-17T10:00:00Z"}],
        [bar("2026-03-17T10:00:00")],
    ],
    ids=["nan", "high", "volume", "twice", "order", "empty", "naive"],
)
def test_an_impossible_bar_is_an_error(venue: Loopback, routes: Routes, broken: list[dict[str, Any]]) -> None:
    routes["/v1beta3/crypto/us/bars"] = bars_route({"BTC/USD": broken})

    with pytest.raises(UnavailableError, match="BTC/USD"):
        asked(venue, lambda broker: broker.bars(["BTC/USD"], timedelta(hours=1), NOW - timedelta(days=1), NOW))


def test_the_exchanges_bars_carry_adjustment_and_signals(venue: Loopback, routes: Routes) -> None:
    routes["/v1beta3/crypto/us/bars"] = bars_route(
        {"BTC/USD": [bar("2026-03-17T10:00:00Z", af=0.5, x={"sentiment": 0.25})]}
    )

    bars = asked(venue, lambda broker: broker.bars(["BTC/USD"], timedelta(hours=1), NOW - timedelta(days=1), NOW))

    assert (bars["BTC/USD"][0].adj_factor, dict(bars["BTC/USD"][0].signals)) == (0.5, {"sentiment": 0.25})


def test_a_quote_with_one_side_only_is_no_quote(venue: Loopback, routes: Routes) -> None:
    row = {"t": "2026-03-17T14:30:59.5Z", "bp": 10.1, "ap": 10.3, "bs": 1, "as": 1}
    routes["/v2/stocks/quotes/latest"] = lambda _: {"quotes": {"SPY": row | {"ap": 0}}}
    routes["/v1beta3/crypto/us/latest/quotes"] = lambda _: {"quotes": {"BTC/USD": row}}

    quotes = asked(venue, lambda broker: broker.quotes(["SPY", "BTC/USD"]))

    assert {symbol: quote.mid for symbol, quote in quotes.items()} == {"BTC/USD": Decimal("10.2")}


def test_a_blocked_account_cannot_be_connected(venue: Loopback, routes: Routes) -> None:
    routes["/v2/account"] = lambda _: {"status": "ACTIVE", "trading_blocked": True}

    with pytest.raises(Exception, match="trading_blocked"):
        asked(venue, lambda broker: broker.connect())


def test_crypto_buying_power_is_what_may_be_spent_without_margin(venue: Loopback, routes: Routes) -> None:
    routes["/v2/account"] = lambda _: {
        "equity": "100000",
        "cash": "100000",
        "buying_power": "400000",
        "non_marginable_buying_power": "100000",
    }

    async def run(broker: AlpacaBroker) -> tuple[Decimal, Decimal]:
        before = await broker.account()
        await broker.instruments(["BTC/USD"])
        return before.buying_power, (await broker.account()).buying_power

    assert asked(venue, run) == (Decimal(400_000), Decimal(100_000))
