"""Ollama's native API over a stand-in, and a face to set its faults and to ask what it has seen.

One event loop; a request is watched for its client's leaving from the first byte to the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent.ollama.faults import Fault, FaultError, FaultName
from agent.ollama.standin import QUEUE_FULL, Generated, Seen, Standin
from agent.ollama.wire import ApiError, Asked, body_object, canonical, logprobs_json, parse_asked, stamp

__all__ = ["application"]

BODY_BYTES_MAX = 4 * 2**20
_JSON = "application/json; charset=utf-8"
_NDJSON = "application/x-ndjson"
_RUBBISH = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_RUNNER_DIED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
_DELIVERY = (FaultName.HANG, FaultName.DRIBBLE, FaultName.RUBBISH, FaultName.DROP, FaultName.QUEUE_FULL)
"""Faults of any answer; the others need content."""
_CONTENT = (
    FaultName.RUBBISH_CONTENT,
    FaultName.WRONG_SCHEMA,
    FaultName.MID_STREAM_ERROR,
    FaultName.TRUNCATED,
    FaultName.LOW_MASS,
    FaultName.NO_LOGPROBS,
)


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that is being answered.

    Args:
        standin: Who answers.
        seen: What is remembered of the request.
        body: Its bytes.
        met: The faults of delivery that it meets.
        held: What is given back once the answer is sent: its turn.
    """

    standin: Standin
    seen: Seen
    body: bytes
    met: Mapping[FaultName, Fault]
    held: contextlib.AsyncExitStack


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer, whole: its parts are sent one by one, without a stated length where there are several."""

    parts: Sequence[bytes]
    status: int = 200
    media_type: str = _JSON


_Handler = Callable[[_Call], Awaitable[_Reply]]


def application(standin: Standin, closing: asyncio.Event | None = None) -> Starlette:
    """Return the ASGI application over a stand-in; setting `closing` ends the answers that hang."""
    end = closing or asyncio.Event()
    standin.restart()

    def api(path: str, handler: _Handler, *methods: str) -> Route:
        return Route(path, _Endpoint(standin, path, handler, end), methods=list(methods))

    def faults(request: Request) -> Response:
        del request
        return _json_response({"faults": [fault.json() for fault in standin.plan.faults]})

    async def set_faults(request: Request) -> Response:
        try:
            given = body_object(await request.body()).get("faults")
            standin.set_faults(*(given if isinstance(given, list) else [given]))
        except ApiError as error:
            return _json_response({"error": error.message}, error.status)
        except FaultError as error:
            return _json_response({"error": str(error)}, 422)
        return faults(request)

    def requests(request: Request) -> Response:
        last = request.query_params.get("last", "20")
        count = int(last) if last.isascii() and last.isdigit() and len(last) < 6 else 20
        return _json_response(
            {
                "counters": dict(standin.counters),
                "in_flight": standin.in_flight,
                "in_flight_max": standin.in_flight_max,
                "waiting": standin.waiting,
                "requests": [seen.json() for seen in list(standin.seen)[-count:]] if count else [],
            }
        )

    return Starlette(
        routes=[
            api("/api/chat", _chat, "POST"),
            api("/api/generate", _generate, "POST"),
            api("/api/show", _show, "POST"),
            api("/api/tags", _tags, "GET"),
            api("/api/ps", _ps, "GET"),
            api("/api/version", _version, "GET"),
            Route("/stand-in/v1/faults", faults, methods=["GET"]),
            Route("/stand-in/v1/faults", set_faults, methods=["POST"]),
            Route("/stand-in/v1/requests", requests, methods=["GET"]),
            Route("/", lambda _request: PlainTextResponse("Ollama is running"), methods=["GET"]),
        ],
        exception_handlers={
            404: lambda _request, _error: PlainTextResponse("404 page not found", 404),
            405: lambda _request, _error: PlainTextResponse("405 method not allowed", 405),
        },
    )


class _Endpoint:
    """One path of the API: reads the body, meets faults, sends the answer, and stops when the client leaves."""

    def __init__(self, standin: Standin, path: str, handler: _Handler, closing: asyncio.Event) -> None:
        self._standin = standin
        self._path = path
        self._handler = handler
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        seen = self._standin.arrive(request.method, self._path)
        outcome, begun = "left", time.monotonic()
        try:
            body = await _body(request)
            work = asyncio.create_task(self._work(seen, body, send))
            outcome = await self._watched(work, receive)
        except ClientDisconnect:
            pass
        finally:
            self._standin.depart(seen, outcome, time.monotonic() - begun)

    async def _watched(self, work: asyncio.Task[str], receive: Receive) -> str:
        """Return the outcome of the work, ended early when the client leaves or the server stops."""
        left = asyncio.create_task(_until_left(receive))
        stopped = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({work, left, stopped}, return_when=asyncio.FIRST_COMPLETED)
            # the connection also says "left" once the last part is sent: let work that is at its end end
            await asyncio.sleep(0)
            if work.done():
                return work.result()
            return "left" if left.done() else "stopped"
        finally:
            for task in (work, left, stopped):
                task.cancel()
            await asyncio.gather(work, left, stopped, return_exceptions=True)

    async def _work(self, seen: Seen, body: bytes, send: Send) -> str:
        met = self._standin.meeting(seen, _DELIVERY)
        if FaultName.HANG in met:
            await asyncio.Event().wait()
        async with contextlib.AsyncExitStack() as held:
            try:
                reply = await self._handler(_Call(self._standin, seen, body, met, held))
            except ApiError as error:
                reply = _Reply([_dump({"error": error.message})], error.status)
            if FaultName.RUBBISH in met and reply.status == 200:
                reply = _Reply([_RUBBISH], media_type="text/html")
            seen.status = reply.status
            dropped = FaultName.DROP in met
            pause_s = met[FaultName.DRIBBLE].number if FaultName.DRIBBLE in met else None
            await _deliver(send, reply, pause_s=pause_s, dropped=dropped)
        if dropped:
            return "broken"
        return "answered" if reply.status == 200 else "error"


async def _deliver(send: Send, reply: _Reply, *, pause_s: float | None, dropped: bool) -> None:
    """Send an answer: whole, or a part every so often, or only its first half."""
    headers = [(b"content-type", reply.media_type.encode())]
    parts = list(reply.parts)
    if len(parts) == 1:
        headers.append((b"content-length", str(len(parts[0])).encode()))
        if pause_s is not None:
            parts = [bytes([byte]) for byte in parts[0]]
        elif dropped:
            parts = [parts[0][: len(parts[0]) // 2], parts[0][len(parts[0]) // 2 :]]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if dropped:
        parts = parts[: max(len(parts) // 2, 1)]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1 and not dropped
        await send({"type": "http.response.body", "body": part, "more_body": not last})
        if pause_s is not None and not last:
            await asyncio.sleep(pause_s)


async def _body(request: Request) -> bytes:
    """Return the body, or as much of it as is kept: what is cut off there is no JSON any more, and refused."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk[: BODY_BYTES_MAX - len(body)]
    return bytes(body)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# the API's answers


async def _chat(call: _Call) -> _Reply:
    return await _generation(call, chat=True)


async def _generate(call: _Call) -> _Reply:
    return await _generation(call, chat=False)


async def _generation(call: _Call, *, chat: bool) -> _Reply:
    standin, seen = call.standin, call.seen
    begun_ns = time.perf_counter_ns()
    asked = _admitted(call, chat=chat)
    if asked.empty and asked.keep_alive_s == 0:
        standin.unload(asked.model)
        return _Reply([_dump(_said(asked, "") | {"done": True, "done_reason": "unload"})])
    load_s = await call.held.enter_async_context(standin.turn(asked, seen))
    if asked.empty:
        return _Reply([_dump(_said(asked, "") | {"done": True, "done_reason": "load"})])
    if asked.render_only:
        rendered = {"rendered_template": asked.rendered()}
        return _Reply([_dump(_said(asked, "") | {"done": False, "_debug_info": rendered})])
    await asyncio.sleep(standin.delay_s(seen))
    spoilt = standin.meeting(seen, _CONTENT)
    generated = standin.generate(asked, seen, spoilt)
    end = _end(asked, generated, load_s=load_s, total_ns=time.perf_counter_ns() - begun_ns)
    if not asked.stream:
        if FaultName.MID_STREAM_ERROR in spoilt:
            raise ApiError(500, _RUNNER_DIED)
        return _Reply([_dump(_whole(standin, asked, generated) | end)])
    lines = list(_lines(standin, asked, generated))
    if FaultName.MID_STREAM_ERROR in spoilt:
        lines = [*lines[: max(len(lines) // 3, 1)], {"error": _RUNNER_DIED}]
    else:
        lines.append(_said(asked, "") | end)
    return _Reply([_dump(line) + b"\n" for line in lines], media_type=_NDJSON)


def _admitted(call: _Call, *, chat: bool) -> Asked:
    """Return what is asked, once it is known to be answerable.

    Raises:
        ApiError: 400, 404 or 503, in the order in which the server looks.
    """
    standin, seen = call.standin, call.seen
    body = body_object(call.body)
    asked = parse_asked(body, chat=chat, knows_logprobs=standin.plan.standing(FaultName.NO_LOGPROBS) is None)
    standin.remember(seen, body, asked.question(seen.number, standin.seed), size=len(call.body))
    if chat and not asked.model:
        raise ApiError(400, "model is required")
    if standin.meeting(seen, {FaultName.MISSING_MODEL}) or not standin.has(asked.model):
        raise ApiError(404, f"model '{asked.model}' not found")
    if asked.think and not standin.thinking:
        raise ApiError(400, f'"{asked.model}" does not support thinking')
    if FaultName.QUEUE_FULL in call.met:
        raise ApiError(503, QUEUE_FULL)
    return asked


def _said(asked: Asked, content: str, thinking: str = "") -> dict[str, Any]:
    said: dict[str, Any] = {"model": asked.model, "created_at": stamp(datetime.now(UTC))}
    thought = {"thinking": thinking} if thinking else {}
    if asked.chat:
        return said | {"message": {"role": "assistant", "content": content} | thought}
    return said | {"response": content} | thought


def _whole(standin: Standin, asked: Asked, generated: Generated) -> dict[str, Any]:
    said = _said(asked, generated.content, generated.thinking)
    if asked.logprobs:
        said["logprobs"] = [
            logprobs_json(token, asked.top_logprobs, with_bytes=standin.with_bytes) for token in generated.tokens
        ]
    return said


def _lines(standin: Standin, asked: Asked, generated: Generated) -> Iterator[dict[str, Any]]:
    if generated.thinking:
        yield _said(asked, "", generated.thinking) | {"done": False}
    for token in generated.tokens:
        line = _said(asked, token.text) | {"done": False}
        if asked.logprobs:
            line["logprobs"] = [logprobs_json(token, asked.top_logprobs, with_bytes=standin.with_bytes)]
        yield line


def _end(asked: Asked, generated: Generated, *, load_s: float, total_ns: int) -> dict[str, Any]:
    """Return what closes an answer: why it ends, and the durations, in nanoseconds."""
    load_ns = round(load_s * 1e9)
    computing_ns = max(total_ns - load_ns, 2)
    prompt_tokens = sum(len(content.split()) for _, content in asked.messages)
    end: dict[str, Any] = {
        "done": True,
        "done_reason": generated.done_reason,
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": max(prompt_tokens, 1),
        "prompt_eval_duration": computing_ns // 2,
        "eval_count": len(generated.tokens),
        "eval_duration": computing_ns - computing_ns // 2,
    }
    if not asked.chat and not asked.raw:
        end["context"] = list(range(1, len(generated.tokens) + 1))
    return end


async def _show(call: _Call) -> _Reply:
    body = body_object(call.body)
    model = body.get("model") or body.get("name") or ""
    if not isinstance(model, str) or not model:
        raise ApiError(400, "model is required")
    entry = next((each for each in call.standin.listed() if each["name"] == canonical(model)), None)
    if entry is None:
        raise ApiError(404, f"model '{model}' not found")
    template = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    blob = f"/models/blobs/sha256-{entry['digest']}"
    shown = {
        "modelfile": f'FROM {blob}\nTEMPLATE """{template}"""\nPARAMETER temperature 0\n',
        "parameters": "temperature                    0",
        "template": template,
        "details": entry["details"],
        "model_info": {"general.architecture": "qwen3", "general.file_type": 15, "qwen3.context_length": 4096},
        "capabilities": ["completion", *(["thinking"] if call.standin.thinking else [])],
        "modified_at": stamp(entry["modified_at"]),
    }
    return _Reply([_dump(shown)])


async def _tags(call: _Call) -> _Reply:
    return _Reply([_dump({"models": [_stamped(entry) for entry in call.standin.listed()]})])


async def _ps(call: _Call) -> _Reply:
    return _Reply([_dump({"models": [_stamped(entry) for entry in call.standin.running()]})])


async def _version(call: _Call) -> _Reply:
    return _Reply([_dump({"version": call.standin.version})])


def _stamped(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: stamp(value) if isinstance(value, datetime) else value for key, value in entry.items()}


def _dump(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _json_response(content: object, status: int = 200) -> Response:
    return Response(_dump(content), status, media_type="application/json")
