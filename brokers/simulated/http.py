"""The plumbing of the REST face: keys, parameters, errors as Alpaca writes them, answers only after commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from secrets import compare_digest
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brokers.calendar import CalendarError
from brokers.domain import DuplicateClientIdError, utc
from brokers.simulated.books import BooksError
from brokers.simulated.engine import ClockConflictError, MatchingEngine
from brokers.simulated.orders import RefusedError, RejectCode
from brokers.simulated.wire import stamp

Handler = Callable[["Face", Request, bytes], Response]

UNPROCESSABLE = 42210000
FORBIDDEN = 40310000
NOT_FOUND = 40410000
VALIDATION = 40010001

_REFUSAL = {
    RejectCode.DUPLICATE_CLIENT_ID: (422, VALIDATION),
    RejectCode.INSUFFICIENT_BUYING_POWER: (403, FORBIDDEN),
    RejectCode.INSUFFICIENT_QTY: (403, FORBIDDEN),
    RejectCode.SHORT_NOT_ALLOWED: (403, FORBIDDEN),
    RejectCode.WASH_TRADE: (403, FORBIDDEN),
    RejectCode.BELOW_MINIMUM: (403, FORBIDDEN),
}
"""Status and code of each refusal; all others are 422 and `UNPROCESSABLE`."""

BODY_BYTES_MAX = 65_536
_DIGITS_MAX = 9
_SHOWN_MAX = 60
"""Characters of a client's own text that an error repeats."""
_FIRST_YEAR, _LAST_YEAR = 1900, 2200
"""Times beyond them do not fit 64 bits of nanoseconds together with a calendar's margins."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the exchange listens.

    Args:
        host: Interface; loopback unless the machine is trusted with it.
        port: TCP port; 0 lets the system choose.
        key_id: The only key that is let in; None lets in any.
        secret_key: Its secret.
        acceleration: Venue seconds per wall second of a free-running exchange; None steps only on `advance`.
        answer_delay_s: Wall seconds to hold back answers of a path after the commit; for tests of lost answers.
    """

    host: str = "127.0.0.1"
    port: int = 0
    key_id: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    acceleration: float | None = None
    answer_delay_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse half a credential and time that stands or runs backwards."""
        if (self.key_id is None) != (self.secret_key is None):
            raise ValueError("key_id and secret_key belong together: give both or neither")
        if self.acceleration is not None and not self.acceleration > 0:
            msg = f"acceleration is {self.acceleration}: give venue seconds per wall second, above 0"
            raise ValueError(msg)


class HttpError(Exception):
    """An answer that is an error: HTTP status, Alpaca's code, message, further keys."""

    def __init__(self, status: int, code: int, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message} | extra


class Face:
    """What every handler works on: the engine, and the options it is served with."""

    def __init__(self, engine: MatchingEngine, options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self._by_spelling = {symbol.replace("/", ""): symbol for symbol in engine.instruments}
        self._by_spelling |= {symbol: symbol for symbol in engine.instruments}

    def symbol(self, spelling: str) -> str | None:
        """Return the canonical symbol of `BTC/USD`, `BTC%2FUSD` or `BTCUSD`; None where it is not played."""
        return self._by_spelling.get(spelling.replace("%2F", "/").replace("%2f", "/"))

    def position_symbol(self, symbol: str) -> str:
        """Spell a symbol as positions do: without slash in Alpaca's rule set."""
        return symbol.replace("/", "") if self.engine.settings.rule_set == "alpaca" else symbol

    def authorise(self, request: Request, *, needs_keys: bool) -> None:
        """Let a request in.

        Raises:
            HttpError: 401 without keys where some are needed, or with other keys than the configured ones.
        """
        key, secret = request.headers.get("apca-api-key-id"), request.headers.get("apca-api-secret-key")
        expected = self.options.key_id
        if expected is None:
            if needs_keys and not (key and secret):
                raise HttpError(401, 40110000, "request is not authorized: send any key and secret")
            return
        known = _same(key, expected) & _same(secret, self.options.secret_key)
        if not known:
            raise HttpError(401, 40110000, "request is not authorized")


def _same(given: str | None, expected: str | None) -> bool:
    """Compare two secrets in constant time, whatever characters a client sends."""
    return compare_digest((given or "").encode(), (expected or "").encode())


def route(face: Face, path: str, handler: Handler, method: str = "GET", *, needs_keys: bool = True) -> Route:
    """Return a route whose handler runs, start to end, without another request in between."""

    async def endpoint(request: Request) -> Response:
        try:
            body = await _body(request) if method in ("POST", "DELETE") else b""
            face.authorise(request, needs_keys=needs_keys)
            answer = handler(face, request, body)
        except HttpError as error:
            answer = JSONResponse(error.body, error.status)
        except RefusedError as error:
            answer = _refusal(error)
        except DuplicateClientIdError as error:
            answer = JSONResponse({"code": VALIDATION, "message": error.message, "reject_reason": error.code}, 422)
        except ClockConflictError as error:
            answer = JSONResponse({"code": 40910000, "message": str(error), "now": stamp(face.engine.now)}, 409)
        except CalendarError as error:
            answer = JSONResponse({"code": UNPROCESSABLE, "message": str(error)}, 422)
        except BooksError as error:
            answer = JSONResponse({"code": 50010000, "message": str(error)}, 500)
        delay_s = face.options.answer_delay_s.get(path)
        if delay_s is not None:
            await asyncio.sleep(delay_s)
        return answer

    return Route(path, endpoint, methods=[method])


async def _body(request: Request) -> bytes:
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise HttpError(413, VALIDATION, f"request body exceeds {BODY_BYTES_MAX} bytes: send one order at a time")
        chunks.append(chunk)
    return b"".join(chunks)


def _refusal(error: RefusedError) -> Response:
    status, code = _REFUSAL.get(RejectCode(error.code), (422, UNPROCESSABLE))
    facts: dict[str, Any] = dict(error.facts)
    if "related_orders" in facts:
        facts["related_orders"] = [name for name in facts["related_orders"].split(",") if name]
    return JSONResponse({"code": code, "message": error.message, "reject_reason": error.code} | facts, status)


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; its numbers become exact Decimals.

    Raises:
        HttpError: Something else.
    """
    try:
        content = json.loads(body, parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError):
        raise HttpError(400, VALIDATION, "request body is not JSON") from None
    if not isinstance(content, dict):
        raise HttpError(400, VALIDATION, "request body is not a JSON object")
    return content


def number(content: Mapping[str, Any], key: str) -> Decimal | None:
    """Read a number, written as JSON number or as text; None where absent.

    Raises:
        HttpError: Not a finite number.
    """
    value = content.get(key)
    if value is None or value == "":
        return None
    try:
        parsed = value if isinstance(value, Decimal) else Decimal(value if isinstance(value, str) else "NaN")
    except InvalidOperation:
        parsed = Decimal("NaN")
    if not parsed.is_finite():
        raise HttpError(422, UNPROCESSABLE, f"{key} {str(value)[:_SHOWN_MAX]!r} is not a number")
    return parsed


def parse_time(text: str, name: str) -> datetime:
    """Read RFC 3339 or a date (00:00 UTC); digits beyond microseconds are cut off.

    Raises:
        HttpError: Not a time, or one that no calendar knows.
    """
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise HttpError(422, UNPROCESSABLE, f"{name} {text[:_SHOWN_MAX]!r} is not an RFC 3339 time or date") from None
    if not _FIRST_YEAR <= at.year < _LAST_YEAR:
        msg = f"{name} {text[:_SHOWN_MAX]!r} is not a time from {_FIRST_YEAR} to {_LAST_YEAR}"
        raise HttpError(422, UNPROCESSABLE, msg)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else utc(at)


def time_param(request: Request, name: str) -> datetime | None:
    """Read a time from the query; None where absent."""
    text = request.query_params.get(name)
    return parse_time(text, name) if text else None


def int_param(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Read a whole number from the query.

    Raises:
        HttpError: Not a whole number within the limits.
    """
    text = request.query_params.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and least <= int(text) <= most):
        raise HttpError(
            422, UNPROCESSABLE, f"{name} {text[:_SHOWN_MAX]!r} is not a whole number from {least} to {most}"
        )
    return int(text)


def flag(request: Request, name: str) -> bool:
    """Read a boolean from the query, as JSON or as Python spells it."""
    return request.query_params.get(name, "").lower() in ("true", "1", "t")


def choice(request: Request, name: str, allowed: tuple[str, ...]) -> str:
    """Read one of some words; the first is the default.

    Raises:
        HttpError: Another word.
    """
    word = request.query_params.get(name) or allowed[0]
    if word not in allowed:
        raise HttpError(422, UNPROCESSABLE, f"{name} {word!r} is not one of {', '.join(allowed)}")
    return word


def names_param(request: Request, name: str) -> list[str]:
    """Read a comma-separated list, also where the key is repeated."""
    return [part for text in request.query_params.getlist(name) for part in text.split(",") if part]
