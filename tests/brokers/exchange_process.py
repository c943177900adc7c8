"""The exchange behind real HTTP: in a thread of the test, or as a process of its own.

Run as a script, `python exchange_process.py BOOKS DELAY_S`, it serves a small market on durable books and holds
back the answers to advances.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from exchange_kit import Floor, walk

from brokers.simulated.engine import MatchingEngine
from brokers.simulated.server import ServerOptions, application, serve
from brokers.simulated.sqlite_books import SqliteBooks

KEYS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}


@dataclass
class Client:
    """Plain HTTP to one exchange."""

    url: str

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = KEYS,
        timeout_s: float = 10.0,
    ) -> tuple[int, Any]:
        """Return (status, parsed body or None)."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=timeout_s)
        try:
            text = body if isinstance(body, str) or body is None else json.dumps(body)
            connection.request(method, path, text, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if content else None

    def get(self, path: str, **options: Any) -> Any:
        """Return the body of a GET that succeeds."""
        status, body = self.ask("GET", path, **options)
        assert status == 200, (path, status, body)
        return body

    def order(self, **fields: Any) -> tuple[int, Any]:
        """Send an order of one X, at market, unless told otherwise."""
        body = {"symbol": "X", "qty": "1", "side": "buy", "type": "market", "time_in_force": "gtc"} | fields
        return self.ask("POST", "/v2/orders", body)

    def advance(self, begin: str, idle_until: str = "2040-01-01T00:00:00Z", **options: Any) -> Any:
        """Return the answer to an advance that succeeds."""
        status, body = self.ask("POST", "/exchange/v1/advance", {"from": begin, "idle_until": idle_until}, **options)
        assert status == 200, body
        return body

    def step(self, count: int = 1) -> str:
        """Advance `count` events and return venue time."""
        now = str(self.get("/exchange/v1/clock")["now"])
        for _ in range(count):
            now = self.advance(now)["now"]
        return now


@contextmanager
def served(engine: MatchingEngine, options: ServerOptions | None = None) -> Iterator[Client]:
    """Serve an engine from a thread of this process."""
    config = uvicorn.Config(
        application(engine, options), port=0, loop="asyncio", http="h11", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline, "the exchange did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


@contextmanager
def process(*command: str) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """Start a process that prints its URL (as JSON) once it listens; it is gone when the block ends."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(root)])}
    started = subprocess.Popen([sys.executable, *command], env=environment, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, f"{command} ended with {started.wait()} before it listened"
        yield Client(json.loads(line)["url"]), started
    finally:
        started.kill()
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


def main(books: str, delay_s: str) -> None:
    """Serve 30 bars of X on durable books."""
    engine = Floor({"X": walk("X", 30, seed=1)}, books=SqliteBooks(Path(books))).engine
    options = ServerOptions(answer_delay_s={"/exchange/v1/advance": float(delay_s)})

    def ready(url: str) -> None:
        sys.stdout.write(json.dumps({"url": url}) + "\n")
        sys.stdout.flush()

    serve(engine, options, on_ready=ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
