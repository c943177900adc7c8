"""The exchange's own face: its clock, advances, and its whole books for comparison."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brokers.bars import period_text
from brokers.simulated import wire
from brokers.simulated.http import UNPROCESSABLE, Face, HttpError, json_object, parse_time, route
from brokers.simulated.rules import plain


def routes(face: Face) -> list[Route]:
    """Return the routes of `/exchange/v1`; keys are asked for only where some are configured."""
    return [
        route(face, "/exchange/v1/clock", _clock, needs_keys=False),
        route(face, "/exchange/v1/advance", _advance, "POST", needs_keys=False),
        route(face, "/exchange/v1/books", _books, needs_keys=False),
    ]


def _clock(face: Face, _request: Request, _body: bytes) -> Response:
    engine = face.engine
    return JSONResponse(
        {
            "now": wire.stamp(engine.now),
            "stepped": face.options.acceleration is None,
            "event": str(engine.last_event),
            "feed_ended": engine.feed_ended,
            "feed_start": wire.stamp(engine.feed.start),
            "feed_end": wire.stamp(engine.feed.end),
            "period": period_text(engine.feed.period),
            "calendar": engine.feed.calendar.id,
            "symbols": list(engine.feed.symbols),
            "seed": engine.settings.seed,
            "rule_set": engine.settings.rule_set,
        }
    )


def _advance(face: Face, _request: Request, body: bytes) -> Response:
    if face.options.acceleration is not None:
        raise HttpError(422, UNPROCESSABLE, "this exchange runs by itself: start it without --free-running to step it")
    content = json_object(body)
    times = []
    for key in ("from", "idle_until"):
        value = content.get(key)
        if not isinstance(value, str):
            raise HttpError(422, UNPROCESSABLE, f"{key} is required, an RFC 3339 time")
        times.append(parse_time(value, key))
    answer = face.engine.advance(*times)
    return JSONResponse(
        {
            "now": wire.stamp(answer.now),
            "event": str(answer.event),
            "repeated": answer.repeated,
            "feed_ended": answer.feed_ended,
            "orders_changed": list(answer.orders_changed),
        }
    )


def _books(face: Face, _request: Request, _body: bytes) -> Response:
    engine = face.engine
    book, cumulative = engine.book(), engine.cumulative_qty
    account = engine.account_book()
    return JSONResponse(
        {
            "now": wire.stamp(engine.now),
            "cash": plain(account.cash),
            "fees_paid": plain(account.fees_paid),
            "realised_pnl": plain(account.realised_pnl),
            "equity": plain(engine.account().equity),
            "positions": {symbol: plain(held.qty) for symbol, held in sorted(account.holdings.items())},
            "orders": [wire.order(row, engine.instruments[row.symbol], book, nested=False) for row in book.values()],
            "fills": [
                wire.fill_activity(fill, book[fill.client_id], cumulative(fill.exec_id)) for fill in engine.fills()
            ],
            "actions": [wire.action(row) for row in engine.corporate_actions()],
        }
    )
