"""A real webhook on loopback that takes notifications, or misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """Takes JSON messages of Apprise's `json://`.

    `behaviour` may be `ok`, a status code, `hang`, `dribble`, `flood`, or `redirect URL`, and may change at any time.
    """

    def __init__(self) -> None:
        self.behaviour: str | int = "ok"
        self.taken: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.closing = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.asked.append(body)
                with suppress(OSError):  # the other side may give up at any time
                    hook.answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}/hook/T0KEN9secret"

    @property
    def titles(self) -> list[str]:
        return [message["title"].partition(": ")[2] for message in self.taken]

    def answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        behaviour = str(self.behaviour)
        if behaviour == "hang":
            self.closing.wait(60)
            return
        if behaviour == "dribble":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self.closing.wait(0.05):
                request.wfile.write(b"x")
            return
        if behaviour == "flood":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
            while not self.closing.is_set():
                request.wfile.write(b"x" * 1_000_000)
            return
        if behaviour.startswith("redirect "):
            request.send_response(307)
            request.send_header("Location", behaviour.partition(" ")[2])
            request.end_headers()
            return
        if behaviour == "ok":
            self.taken.append(body)
        request.send_response(200 if behaviour == "ok" else int(behaviour))
        request.end_headers()

    def wait_for(self, count: int, wait_s: float = 30.0) -> None:
        """Wait until so many messages were taken."""
        deadline = time.monotonic() + wait_s
        while len(self.taken) < count:
            assert time.monotonic() < deadline, f"{len(self.taken)} of {count} messages: {self.titles}"
            time.sleep(0.02)


@contextmanager
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    thread = threading.Thread(target=hook.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.closing.set()
        hook.server.shutdown()
        hook.server.server_close()
        thread.join()
