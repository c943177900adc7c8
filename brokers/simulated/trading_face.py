"""Alpaca's trading API over the engine: account, clock, calendar, assets, orders, positions, fills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brokers.domain import Fill, Leg, OrderRequest, OrderType, Side, TimeInForce
from brokers.series import from_ns
from brokers.simulated import wire
from brokers.simulated.http import (
    NOT_FOUND,
    UNPROCESSABLE,
    Face,
    HttpError,
    choice,
    flag,
    int_param,
    json_object,
    names_param,
    number,
    route,
    time_param,
)
from brokers.simulated.orders import BookOrder

Word = TypeVar("Word", bound=StrEnum)

_NEW_YORK = ZoneInfo("America/New_York")
_CALENDAR_DAYS = 31
_CALENDAR_DAYS_MAX = 3_660
_ORDERS_MAX = 500
_FILLS_MAX = 100
_UNSUPPORTED = ("notional", "trail_price", "trail_percent")


def routes(face: Face) -> list[Route]:
    """Return the routes of `/v2` that trade."""
    return [
        route(face, "/v2/account", _account),
        route(face, "/v2/account/activities/FILL", _fills),
        route(face, "/v2/account/activities", _fills),
        route(face, "/v2/clock", _clock),
        route(face, "/v2/calendar", _calendar),
        route(face, "/v2/assets", _assets),
        route(face, "/v2/assets/{symbol:path}", _asset),
        route(face, "/v2/orders:by_client_order_id", _order_by_client_id),
        route(face, "/v2/orders", _orders),
        route(face, "/v2/orders", _submit, "POST"),
        route(face, "/v2/orders", _cancel_all, "DELETE"),
        route(face, "/v2/orders/{order_id}", _order),
        route(face, "/v2/orders/{order_id}", _cancel, "DELETE"),
        route(face, "/v2/positions", _positions),
        route(face, "/v2/positions/{symbol:path}", _position),
    ]


# --- account, time, assets ----------------------------------------------------------------------------------------


def _account(face: Face, _request: Request, _body: bytes) -> Response:
    engine = face.engine
    return JSONResponse(
        wire.account(
            engine.account(),
            engine.account_book(),
            {symbol: position.mark for symbol, position in engine.positions().items()},
            engine.feed.start,
            leverage=engine.settings.leverage,
            shorting=engine.settings.shorting,
        )
    )


def _clock(face: Face, _request: Request, _body: bytes) -> Response:
    now, trading = face.engine.now, face.engine.feed.calendar
    return JSONResponse(
        {
            "timestamp": wire.stamp(now),
            "is_open": trading.is_open(now),
            "next_open": wire.stamp(trading.next_session_open(now)),
            "next_close": wire.stamp(trading.session_close_after(now)),
        }
    )


def _calendar(face: Face, request: Request, _body: bytes) -> Response:
    now, trading = face.engine.now, face.engine.feed.calendar
    start = time_param(request, "start") or now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = time_param(request, "end") or start + timedelta(days=_CALENDAR_DAYS)
    if end - start > timedelta(days=_CALENDAR_DAYS_MAX):
        raise HttpError(422, UNPROCESSABLE, f"the range spans more than {_CALENDAR_DAYS_MAX} days: ask for less")
    days: list[wire.Json] = []
    opens = trading.next_session_open(start - timedelta(microseconds=1))
    while opens.date() <= end.date():
        days.append(_calendar_day(opens, trading.session_close_after(opens), continuous=trading.id == "24/7"))
        opens = trading.next_session_open(opens)
    return JSONResponse(days)


def _calendar_day(opens: datetime, closes: datetime, *, continuous: bool) -> wire.Json:
    """Write one session; times are New York's wall time, as Alpaca's are, or a whole UTC day."""
    if continuous:
        day, first, last = opens.date(), "00:00", "23:59"
    else:
        local_open, local_close = opens.astimezone(_NEW_YORK), closes.astimezone(_NEW_YORK)
        day, first, last = local_open.date(), f"{local_open:%H:%M}", f"{local_close:%H:%M}"
    return {
        "date": day.isoformat(),
        "open": first,
        "close": last,
        "session_open": first.replace(":", ""),
        "session_close": last.replace(":", ""),
        "settlement_date": (day + timedelta(days=1)).isoformat(),
    }


def _assets(face: Face, request: Request, _body: bytes) -> Response:
    wanted = request.query_params.get("asset_class")
    shorting = face.engine.settings.shorting
    rows = [row for row in face.engine.instruments.values() if not wanted or row.asset_class == wanted]
    return JSONResponse([wire.asset(row, shorting=shorting) for row in rows])


def _asset(face: Face, request: Request, _body: bytes) -> Response:
    symbol = _symbol(face, request.path_params["symbol"])
    if symbol is None:
        raise HttpError(404, NOT_FOUND, f"asset not found for {request.path_params['symbol']}")
    return JSONResponse(wire.asset(face.engine.instruments[symbol], shorting=face.engine.settings.shorting))


def _symbol(face: Face, spelling: str) -> str | None:
    """Return the canonical symbol of a spelling or of an asset id."""
    found = face.symbol(spelling)
    if found is None:
        found = next((symbol for symbol in face.engine.instruments if wire.asset_id(symbol) == spelling), None)
    return found


# --- orders -------------------------------------------------------------------------------------------------------


def _submit(face: Face, _request: Request, body: bytes) -> Response:
    request = _order_request(face, json_object(body))
    face.engine.submit(request)
    return JSONResponse(_write(face, [face.engine.book()[request.client_id]], nested=True)[0])


def _order_request(face: Face, content: dict[str, Any]) -> OrderRequest:
    """Read an order.

    Raises:
        HttpError: A field that is missing, of the wrong kind, or not supported here.
    """
    for key in _UNSUPPORTED:
        if content.get(key) is not None:
            raise HttpError(422, UNPROCESSABLE, f"{key} is not supported by this exchange: give qty and plain prices")
    if content.get("extended_hours") is True:
        raise HttpError(422, UNPROCESSABLE, "extended_hours is not supported: this exchange plays sessions only")
    spelling = content.get("symbol")
    qty = number(content, "qty")
    if not isinstance(spelling, str) or qty is None:
        raise HttpError(422, UNPROCESSABLE, f"{'symbol' if not isinstance(spelling, str) else 'qty'} is required")
    client_id = content.get("client_order_id") or face.engine.free_client_id()
    if not isinstance(client_id, str):
        raise HttpError(422, UNPROCESSABLE, "client_order_id is not a text")
    take_profit, stop_loss = _exits(content)
    return OrderRequest(
        client_id=client_id,
        symbol=face.symbol(spelling) or spelling,
        side=_word(content, "side", Side, None),
        qty=qty,
        type=_word(content, "type", OrderType, None),
        tif=_word(content, "time_in_force", TimeInForce, None),
        limit_price=number(content, "limit_price"),
        stop_price=number(content, "stop_price"),
        take_profit=take_profit,
        stop_loss=stop_loss,
        leg=_word(content, "leg", Leg, Leg.ENTRY),
    )


def _exits(content: dict[str, Any]) -> tuple[Decimal | None, Decimal | None]:
    """Read (take-profit, stop-loss) prices and check them against the order class."""
    profit, loss = content.get("take_profit"), content.get("stop_loss")
    for key, value in (("take_profit", profit), ("stop_loss", loss)):
        if value is not None and not isinstance(value, dict):
            raise HttpError(422, UNPROCESSABLE, f"{key} is not a JSON object")
    if isinstance(loss, dict) and loss.get("limit_price") is not None:
        raise HttpError(422, UNPROCESSABLE, "stop_loss.limit_price is not supported: the stop leg is a stop order")
    prices = (
        None if profit is None else number(profit, "limit_price"),
        None if loss is None else number(loss, "stop_price"),
    )
    order_class = content.get("order_class") or "simple"
    legs = sum(price is not None for price in prices)
    wanted = {"simple": 0, "oto": 1, "bracket": 2}.get(str(order_class))
    if wanted is None:
        raise HttpError(422, UNPROCESSABLE, f"order_class {order_class!r} is not supported: simple, oto or bracket")
    if legs != wanted:
        msg = f"{order_class} orders take {wanted} of take_profit.limit_price and stop_loss.stop_price, not {legs}"
        raise HttpError(422, UNPROCESSABLE, msg)
    return prices


def _word(content: dict[str, Any], key: str, kind: type[Word], default: Word | None) -> Word:
    value = content.get(key)
    if value is None and default is not None:
        return default
    try:
        return kind(str(value))
    except ValueError:
        known = ", ".join(kind)
        raise HttpError(422, UNPROCESSABLE, f"invalid {key} {value!r}: this exchange takes {known}") from None


def _write(face: Face, rows: Iterable[BookOrder], *, nested: bool) -> list[wire.Json]:
    book, instruments = face.engine.book(), face.engine.instruments
    return [wire.order(row, instruments[row.symbol], book, nested=nested) for row in rows]


def _orders(face: Face, request: Request, _body: bytes) -> Response:
    rows = _select(face, request)
    if choice(request, "direction", ("desc", "asc")) == "desc":
        rows = rows[::-1]
    limit = int_param(request, "limit", 50, 1, _ORDERS_MAX)
    return JSONResponse(_write(face, rows[:limit], nested=flag(request, "nested")))


def _select(face: Face, request: Request) -> list[BookOrder]:
    """Return the orders that the query asks for, oldest first."""
    status = choice(request, "status", ("open", "closed", "all"))
    nested = flag(request, "nested")
    book = face.engine.book()
    updated_since = time_param(request, "updated_since")
    rows: Iterable[BookOrder] = book.values()
    if updated_since is not None:
        rows = face.engine.book_orders_since(updated_since)
    elif status == "open":
        rows = face.engine.live_orders()
    if nested:
        rows = {parent.client_id: parent for parent in (_root(book, row) for row in rows)}.values()
        rows = sorted(rows, key=lambda row: row.sequence)
    if status == "closed":
        rows = [row for row in rows if not _is_open(book, row, nested=nested)]
    return _filter(face, request, rows)


def _filter(face: Face, request: Request, rows: Iterable[BookOrder]) -> list[BookOrder]:
    """Apply symbols, side, time of submission and neighbours by id."""
    symbols = {face.symbol(name) or name for name in names_param(request, "symbols")}
    side = request.query_params.get("side")
    after, until = time_param(request, "after"), time_param(request, "until")
    found = [
        row
        for row in rows
        if (not symbols or row.symbol in symbols)
        and (not side or row.side == side)
        and (after is None or from_ns(row.submitted_ns) > after)
        and (until is None or from_ns(row.submitted_ns) < until)
    ]
    for key, sign in (("after_order_id", 1), ("before_order_id", -1)):
        neighbour = request.query_params.get(key)
        if neighbour:
            sequence = _known(face, neighbour).sequence
            found = [row for row in found if sign * (row.sequence - sequence) > 0]
    return found


def _root(book: Mapping[str, BookOrder], row: BookOrder) -> BookOrder:
    return row if row.parent_client_id is None else book[row.parent_client_id]


def _is_open(book: Mapping[str, BookOrder], row: BookOrder, *, nested: bool) -> bool:
    family = (row.client_id, *row.leg_ids) if nested else (row.client_id,)
    return any(not book[client_id].state.is_terminal for client_id in family)


def _known(face: Face, venue_id: str) -> BookOrder:
    found = face.engine.book_order_by_venue_id(venue_id)
    if found is None:
        raise HttpError(404, NOT_FOUND, f"order not found for {venue_id}")
    return found


def _order(face: Face, request: Request, _body: bytes) -> Response:
    row = _known(face, request.path_params["order_id"])
    return JSONResponse(_write(face, [row], nested=flag(request, "nested"))[0])


def _order_by_client_id(face: Face, request: Request, _body: bytes) -> Response:
    client_id = request.query_params.get("client_order_id", "")
    row = face.engine.book().get(client_id)
    if row is None:
        raise HttpError(404, NOT_FOUND, f"order not found for {client_id}")
    return JSONResponse(_write(face, [row], nested=flag(request, "nested"))[0])


def _cancel(face: Face, request: Request, _body: bytes) -> Response:
    row = _known(face, request.path_params["order_id"])
    if row.state.is_terminal:
        raise HttpError(422, UNPROCESSABLE, f'order is already in "{wire.STATUS[row.state]}" state')
    face.engine.cancel(row.client_id)
    return Response(status_code=204)


def _cancel_all(face: Face, _request: Request, _body: bytes) -> Response:
    live = face.engine.live_orders()
    for row in live:
        face.engine.cancel(row.client_id)
    return JSONResponse([{"id": row.venue_id, "status": 200} for row in live], 207)


# --- positions and fills ------------------------------------------------------------------------------------------


def _positions(face: Face, _request: Request, _body: bytes) -> Response:
    return JSONResponse([_write_position(face, symbol) for symbol in face.engine.positions()])


def _position(face: Face, request: Request, _body: bytes) -> Response:
    symbol = _symbol(face, request.path_params["symbol"])
    if symbol is None or symbol not in face.engine.account_book().holdings:
        raise HttpError(404, NOT_FOUND, "position does not exist")
    return JSONResponse(_write_position(face, symbol))


def _write_position(face: Face, symbol: str) -> wire.Json:
    engine = face.engine
    return wire.position(
        engine.positions()[symbol],
        engine.instruments[symbol],
        face.position_symbol(symbol),
        engine.previous_close(symbol),
    )


def _fills(face: Face, request: Request, _body: bytes) -> Response:
    """List executions; `page_token` is the id of the last one seen, and names none that exists to begin with."""
    ascending = choice(request, "direction", ("desc", "asc")) == "asc"
    size = int_param(request, "page_size", _FILLS_MAX, 1, _FILLS_MAX)
    token = request.query_params.get("page_token") or None
    fills: Sequence[Fill] = face.engine.fills(token if ascending else None)
    if not ascending:
        fills = [fill for fill in reversed(fills) if token is None or fill.exec_id < token]
    after, until = time_param(request, "after"), time_param(request, "until")
    if after is not None or until is not None:
        fills = [f for f in fills if (after is None or f.at > after) and (until is None or f.at < until)]
    book, cumulative = face.engine.book(), face.engine.cumulative_qty
    return JSONResponse(
        [wire.fill_activity(fill, book[fill.client_id], cumulative(fill.exec_id)) for fill in fills[:size]]
    )
