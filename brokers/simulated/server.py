"""The exchange process: the engine behind HTTP on loopback.

One event loop, one thread, handlers that never suspend: requests touch the engine one after the other, and
an answer leaves only after the books are committed. Stepped by default; with an acceleration, venue time
follows the wall clock instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brokers.serving import QuietServer, ServerError, listen, url_of
from brokers.simulated import data_face, stepping_face, trading_face
from brokers.simulated.books import BooksError
from brokers.simulated.engine import MatchingEngine
from brokers.simulated.http import NOT_FOUND, Face, ServerOptions

__all__ = ["ServerError", "ServerOptions", "application", "serve"]

log = structlog.get_logger(__name__)

_TICK_S = 0.05
"""Wall seconds between two moves of a free-running clock."""
_STANDSTILL_S = 1.0
"""Wall seconds between two tries of a free-running exchange whose books cannot be written."""
_KEEP_ALIVE_S = 300
"""Wall seconds an idle connection stays open: closing it as a client sends would make an outcome unknown."""
_STOP_S = 2
"""Wall seconds that open connections get to finish on SIGTERM."""
_OTHER_ADDRESS = "give another address or port (--port, exchange.port), or port 0 for any"


def application(engine: MatchingEngine, options: ServerOptions | None = None) -> Starlette:
    """Return the ASGI application over an engine."""
    face = Face(engine, options or ServerOptions())

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        acceleration = face.options.acceleration
        runner = None if acceleration is None else asyncio.create_task(_run_freely(engine, acceleration))
        yield
        if runner is not None:
            runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await runner

    return Starlette(
        routes=[*trading_face.routes(face), *data_face.routes(face), *stepping_face.routes(face)],
        exception_handlers={404: _not_found, 405: _not_found},
        lifespan=lifespan,
    )


def serve(
    engine: MatchingEngine, options: ServerOptions | None = None, *, on_ready: Callable[[str], None] = lambda _url: None
) -> None:
    """Listen until SIGTERM or SIGINT, then finish open requests and release the books.

    Args:
        engine: The exchange; closed on return.
        options: Address, keys, free-running.
        on_ready: Called with the URL once connections are accepted.

    Raises:
        ServerError: The address is taken or not this machine's.
    """
    chosen = options or ServerOptions()
    try:
        with listen(chosen.host, chosen.port, who="the exchange", remedy=_OTHER_ADDRESS) as listener:
            config = uvicorn.Config(
                application(engine, chosen),
                loop="asyncio",
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_STOP_S,
            )
            QuietServer(config, lambda: on_ready(url_of(listener))).run_on(listener)
    finally:
        engine.close()


async def _run_freely(engine: MatchingEngine, acceleration: float) -> None:
    """Let venue time follow the wall clock until the feed ends."""
    venue_start, wall_start = engine.now, time.monotonic()
    while not engine.feed_ended:
        await asyncio.sleep(_TICK_S)
        try:
            engine.run_until(venue_start + timedelta(seconds=acceleration * (time.monotonic() - wall_start)))
        except BooksError as error:
            log.warning("exchange.time_stands", error=str(error))
            await asyncio.sleep(_STANDSTILL_S)


async def _not_found(request: Request, _error: Exception) -> Response:
    message = f"endpoint not found: {request.method} {request.url.path}"
    return JSONResponse({"code": NOT_FOUND, "message": message}, 404)
