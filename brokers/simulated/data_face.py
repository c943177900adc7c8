"""Alpaca's market data API over the engine: completed bars and latest quotes, for stocks and for crypto."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brokers.series import from_ns, to_ns
from brokers.simulated import wire
from brokers.simulated.http import Face, HttpError, choice, int_param, names_param, route, time_param

_BARS_MAX = 10_000
_UNITS_S = {"min": 60, "t": 60, "hour": 3_600, "h": 3_600, "day": 86_400, "d": 86_400}
_MICROSECOND = timedelta(microseconds=1)


def routes(face: Face) -> list[Route]:
    """Return the routes of market data; crypto needs no keys, as at Alpaca."""
    return [
        route(face, "/v2/stocks/bars", _bars),
        route(face, "/v2/stocks/quotes/latest", _quotes),
        route(face, "/v1beta3/crypto/us/bars", _bars, needs_keys=False),
        route(face, "/v1beta3/crypto/us/latest/quotes", _quotes, needs_keys=False),
    ]


def _bars(face: Face, request: Request, _body: bytes) -> Response:
    """Answer bars by symbol, then time; `limit` counts over all symbols, `end` is inclusive."""
    engine = face.engine
    _check_period(request.query_params.get("timeframe", ""), engine.feed.period)
    now = engine.now
    start = time_param(request, "start") or now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = (time_param(request, "end") or now) + _MICROSECOND
    limit = int_param(request, "limit", 1_000, 1, _BARS_MAX)
    descending = choice(request, "sort", ("asc", "desc")) == "desc"
    after_symbol, after = _read_token(request.query_params.get("page_token"))
    found: dict[str, list[wire.Json]] = {}
    left, token = limit, None
    for symbol in sorted(set(_symbols(face, request))):
        if symbol < after_symbol:
            continue
        begin, stop = start, end
        if symbol == after_symbol and after is not None:
            begin, stop = (begin, min(stop, after)) if descending else (max(begin, after + _MICROSECOND), stop)
        series = engine.completed(symbol, begin, stop)
        if not len(series):
            continue
        if not left:
            break
        part = series.slice(len(series) - min(left, len(series)), len(series)) if descending else series.slice(0, left)
        rows = wire.bars(part)
        found[symbol] = rows[::-1] if descending else rows
        left -= len(rows)
        last = from_ns(part.start_ns[0 if descending else -1])
        token = _write_token(symbol, last)
        if len(part) < len(series):
            break
    else:
        token = None
    return JSONResponse({"bars": found, "next_page_token": token})


def _quotes(face: Face, request: Request, _body: bytes) -> Response:
    quotes = {}
    for symbol in _symbols(face, request):
        quote = face.engine.quote(symbol)
        if quote is not None:
            quotes[symbol] = wire.quote(quote, face.engine.instruments[symbol])
    return JSONResponse({"quotes": quotes})


def _symbols(face: Face, request: Request) -> list[str]:
    """Return the canonical symbols asked for; unknown ones have no data, as at Alpaca.

    Raises:
        HttpError: None were asked for.
    """
    names = names_param(request, "symbols")
    if not names:
        raise HttpError(400, 40010000, "symbols is required")
    return [symbol for symbol in map(face.symbol, names) if symbol is not None]


def _check_period(timeframe: str, period: timedelta) -> None:
    matched = re.fullmatch(r"(\d{0,4})(Min|T|Hour|H|Day|D)", timeframe, re.IGNORECASE)
    if matched is None:
        raise HttpError(400, 40010000, f"invalid timeframe {timeframe!r}: write for example 5Min, 1Hour or 1Day")
    asked = timedelta(seconds=int(matched[1] or 1) * _UNITS_S[matched[2].lower()])
    if asked != period:
        msg = f"timeframe {timeframe} is not played: this exchange has bars of {period}"
        raise HttpError(400, 40010000, msg)


def _write_token(symbol: str, at: datetime) -> str:
    return base64.urlsafe_b64encode(f"{symbol}|{to_ns(at)}".encode()).decode()


def _read_token(token: str | None) -> tuple[str, datetime | None]:
    if not token:
        return "", None
    try:
        symbol, _, ns = base64.urlsafe_b64decode(token).decode().rpartition("|")
        return symbol, from_ns(int(ns))
    except (ValueError, OverflowError):
        raise HttpError(400, 40010000, f"invalid page_token {token[:60]!r}: give a next_page_token") from None
