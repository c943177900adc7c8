"""A small HTTP server on loopback whose every answer a test decides: also late, broken or never."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    port: int


@dataclass(frozen=True)
class Reply:
    """One answer. `body` is JSON unless it is bytes. The faults act in the order of their fields."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    """Never answer, until the server closes."""
    reset_after: int | None = None
    """Send so many bytes of the body, then reset the connection."""
    drip_s: float = 0.0
    """Seconds between two bytes of the body."""


class Loopback:
    """Requests seen, and the function that answers them."""

    def __init__(self, answer: Callable[[Seen], Reply]) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self.url = ""

    def count(self, method: str, path: str | None = None) -> int:
        return sum(each.method == method and path in {None, each.path} for each in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_args: Any) -> None:
        pass

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        seen = Seen(
            method=self.command,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            body=json.loads(raw) if raw else None,
            headers=dict(self.headers.items()),
            port=self.client_address[1],
        )
        self.server.state.seen.append(seen)
        reply = self.server.state.answer(seen)
        if reply.hang:
            self.server.state.closing.wait(30)
            self.close_connection = True
        else:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        if reply.status == 204:
            body = b""
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.flush()
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send_body(reply, body)

    def _send_body(self, reply: Reply, body: bytes) -> None:
        if reply.reset_after is not None:
            self.wfile.write(body[: reply.reset_after])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif reply.drip_s:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.server.state.closing.wait(reply.drip_s):
                    break
        else:
            self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _serve  # names that http.server asks for


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    state: Loopback


@contextmanager
def serving(answer: Callable[[Seen], Reply]) -> Iterator[Loopback]:
    """Serve on an ephemeral port of 127.0.0.1."""
    state = Loopback(answer)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = state
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def order_json(body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An order as Alpaca answers, for a request body."""
    body = body or {}
    legs = None
    if body.get("order_class"):
        legs = []
        for name, kind in (("take_profit", "limit"), ("stop_loss", "stop")):
            if name in body:
                leg = {
                    "client_order_id": f"server-{kind}",
                    "symbol": body["symbol"],
                    "qty": body["qty"],
                    "side": "sell" if body["side"] == "buy" else "buy",
                    "type": kind,
                    "time_in_force": "gtc",
                }
                legs.append(
                    order_json(leg, status="held", id=f"id-{kind}", order_class=body["order_class"], **body[name])
                )
    return {
        "id": "61e69015-8549-4bfd-b9c3-01e75843f47d",
        "client_order_id": body.get("client_order_id", "c1"),
        "created_at": "2026-03-16T18:38:01.942282123Z",
        "updated_at": "2026-03-16T18:38:01.942282123Z",
        "submitted_at": "2026-03-16T18:38:01.937734Z",
        "filled_at": None,
        "symbol": body.get("symbol", "SPY"),
        "qty": body.get("qty", "2"),
        "filled_qty": "0",
        "filled_avg_price": None,
        "order_class": body.get("order_class", ""),
        "type": body.get("type", "market"),
        "side": body.get("side", "buy"),
        "time_in_force": body.get("time_in_force", "gtc"),
        "limit_price": body.get("limit_price"),
        "stop_price": body.get("stop_price"),
        "status": "accepted",
        "extended_hours": False,
        "legs": legs,
    } | changes
