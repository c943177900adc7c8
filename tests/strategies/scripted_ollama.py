"""A small HTTP server on loopback that speaks as Ollama does, and fails as a test wants it to."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

DIGEST = "0123456789abcdef" * 4
MODEL = "tandem-test"


@dataclass(frozen=True)
class Reply:
    """One response. `body` is JSON unless it is bytes. The faults act in the order of their fields."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False
    """Never answer."""
    drop_after: int | None = None
    """Send so many bytes of the body, then close."""
    drip_s: float = 0.0
    """Seconds between two bytes of the body."""


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    path: str
    body: Any
    headers: dict[str, str]


def tokens_of(content: str, probabilities: dict[str, float], action: str) -> list[dict[str, Any]]:
    """Log probabilities of an answer whose action is one token: 1 everywhere else."""
    before, after = content[: content.index(action)], content[content.index(action) + len(action) :]
    alternatives = [{"token": word, "logprob": math.log(p)} for word, p in probabilities.items() if p > 0.0]
    chosen = {"token": action, "logprob": math.log(max(probabilities[action], 1e-9)), "top_logprobs": alternatives}
    return [{"token": before, "logprob": 0.0}, chosen, {"token": after, "logprob": 0.0}]


def chat_body(
    action: str = "BUY", probabilities: dict[str, float] | None = None, *, logprobs: bool = True, **changes: Any
) -> dict[str, Any]:
    """A response to /api/chat."""
    content = json.dumps({"action": action, "reason": "because"})
    odds = probabilities or {"SELL": 0.1, "HOLD": 0.2, "BUY": 0.1} | {action: 0.6}
    body = {
        "model": f"{MODEL}:latest",
        "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": content},
        "done": True,
        "done_reason": "stop",
        "eval_count": 9,
    }
    if logprobs:
        body["logprobs"] = tokens_of(content, odds, action)
    return body | changes


@dataclass
class ScriptedOllama:
    """What a test sets and sees. `chat` is asked for every answer, with the request's number."""

    chat: Callable[[int, Any], Reply] = lambda _number, _body: Reply(chat_body())
    tags: Callable[[], Reply] = lambda: Reply({"models": [{"model": f"{MODEL}:latest", "digest": DIGEST}]})
    ps: Callable[[], Reply] = lambda: Reply({"models": [{"model": f"{MODEL}:latest", "digest": DIGEST}]})
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    left: int = 0
    """Clients that went away before their answer."""
    in_flight: int = 0
    in_flight_max: int = 0

    def asked(self, path: str = "/api/chat") -> Sequence[Seen]:
        return [one for one in self.seen if one.path == path]

    def _reply(self, path: str, body: Any) -> Reply:
        if path == "/api/chat":
            return self.chat(len(self.asked()) - 1, body)
        known = {"/api/tags": self.tags, "/api/ps": self.ps}
        return known[path]() if path in known else Reply({"error": "no such page"}, 404)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                raw = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = Seen(head[0].split(" ")[1], json.loads(raw) if raw else None, headers)
                self.seen.append(seen)
                self.in_flight += 1
                self.in_flight_max = max(self.in_flight, self.in_flight_max)
                try:
                    reply = self._reply(seen.path, seen.body)
                    if not await self._still_there(reader, None if reply.hang else reply.delay_s):
                        self.left += 1
                        break
                    if not await _send(writer, reply):
                        break
                finally:
                    self.in_flight -= 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _still_there(self, reader: asyncio.StreamReader, wait_s: float | None) -> bool:
        """Wait; False where the client has gone meanwhile."""
        if wait_s == 0.0:
            return True
        try:
            async with asyncio.timeout(wait_s):
                return bool(await reader.read(1))
        except TimeoutError:
            return True


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Send a response; False where the connection is not to be used again."""
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply.headers
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    for byte in body if reply.drip_s else ():
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(reply.drip_s)
    if not reply.drip_s:
        writer.write(body[: reply.drop_after])
    await writer.drain()
    return reply.drop_after is None


@asynccontextmanager
async def scripted(**script: Any) -> AsyncIterator[ScriptedOllama]:
    """Serve on an ephemeral port of 127.0.0.1; when it ends, every connection is closed."""
    state = ScriptedOllama(**script)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await state.serve(reader, writer)
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
