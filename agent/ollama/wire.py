"""Requests and answers as Ollama's native API writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.ollama.answers import Question
from agent.ollama.schema import SchemaError, choices
from agent.ollama.tokens import Token

__all__ = ["ApiError", "Asked", "body_object", "canonical", "logprobs_json", "parse_asked", "stamp"]

TOP_LOGPROBS_MAX = 20
_KEEP_ALIVE_S = 300.0
_FOR_EVER_S = 290 * 365 * 86_400.0
"""What a negative keep_alive becomes: as long as the server's own durations reach."""
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_INTEGERS = ("num_predict", "num_ctx", "num_keep", "seed", "top_k", "num_batch", "num_gpu", "num_thread")
_FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "typical_p")
_THINK_LEVELS = ("low", "medium", "high")


class ApiError(Exception):
    """An answer that is an error: HTTP status and what stands under `error`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request for an answer.

    Args:
        model: Name, as spelled.
        messages: (role, content) of each; of `/api/generate`, system and prompt.
        chat: From `/api/chat`.
        stream: Token by token.
        think: None where not said.
        logprobs: Wanted.
        top_logprobs: Alternatives per token.
        format: JSON schema, "json", or None.
        options: As given.
        keep_alive_s: Seconds that the model stays loaded; None leaves the default.
        raw: The prompt is not put into a template.
        render_only: Return the rendered prompt instead of an answer.
    """

    model: str
    messages: tuple[tuple[str, str], ...]
    chat: bool
    stream: bool
    think: bool | None
    logprobs: bool
    top_logprobs: int
    format: Mapping[str, Any] | str | None
    options: Mapping[str, Any]
    keep_alive_s: float | None
    raw: bool
    render_only: bool

    @property
    def empty(self) -> bool:
        """Nothing is asked: the model is only to be loaded, or unloaded."""
        return not self.messages

    @property
    def kept_s(self) -> float:
        """Seconds that the model stays loaded after the answer."""
        return _KEEP_ALIVE_S if self.keep_alive_s is None else self.keep_alive_s

    def question(self, number: int, seed: int) -> Question:
        """Return what the model is asked."""
        return Question(
            model=self.model,
            prompt="\n".join(content for _, content in self.messages),
            last=self.messages[-1][1] if self.messages else "",
            format=self.format,
            options=self.options,
            number=number,
            seed=seed,
        )

    def rendered(self) -> str:
        """Return the prompt in the model's template, ChatML."""
        if self.raw:
            return self.messages[-1][1]
        turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in self.messages)
        return turns + "<|im_start|>assistant\n"


def canonical(model: str) -> str:
    """Return a model's full name, in the case that comparisons use."""
    name = model.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def stamp(at: datetime) -> str:
    """Write a time as Go does."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def expiry(now: datetime, kept_s: float) -> datetime:
    """Return when a model is unloaded."""
    return now + timedelta(seconds=min(kept_s, _FOR_EVER_S))


def body_object(raw: bytes) -> dict[str, Any]:
    """Parse a request's body.

    Raises:
        ApiError: 400.
    """
    if not raw.strip():
        raise ApiError(400, "missing request body")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"invalid request body: {error}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "json: cannot unmarshal into Go value of an object type")
    return content


def parse_asked(body: Mapping[str, Any], *, chat: bool, knows_logprobs: bool = True) -> Asked:
    """Read a chat or generate request.

    Args:
        body: The request.
        chat: From `/api/chat`.
        knows_logprobs: Whether the server does; an older one ignores what it does not know.

    Raises:
        ApiError: 400.
    """
    top = _typed(body, "top_logprobs", int, 0) if knows_logprobs else 0
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise ApiError(400, f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")
    raw = _typed(body, "raw", bool, False)  # noqa: FBT003 - the key's default
    if raw and any(body.get(key) for key in ("template", "system", "context")):
        raise ApiError(400, "raw mode does not support template, system, or context")
    return Asked(
        model=_typed(body, "model", str, ""),
        messages=_chat_messages(body) if chat else _generate_messages(body),
        chat=chat,
        stream=_typed(body, "stream", bool, True),  # noqa: FBT003 - the key's default
        think=_think(body.get("think")),
        logprobs=knows_logprobs and _typed(body, "logprobs", bool, False),  # noqa: FBT003 - the key's default
        top_logprobs=top,
        format=_format(body.get("format")),
        options=_options(body.get("options")),
        keep_alive_s=_keep_alive(body.get("keep_alive")),
        raw=raw,
        render_only=_typed(body, "_debug_render_only", bool, False),  # noqa: FBT003 - the key's default
    )


def logprobs_json(token: Token, top: int, *, with_bytes: bool) -> dict[str, Any]:
    """Write a token's log probability and its likeliest alternatives."""
    written = _logprob(token.text, token.logprob, with_bytes=with_bytes)
    if top and token.top:
        written["top_logprobs"] = [_logprob(*each, with_bytes=with_bytes) for each in token.top[:top]]
    return written


def _logprob(text: str, logprob: float, *, with_bytes: bool) -> dict[str, Any]:
    written: dict[str, Any] = {"token": text, "logprob": logprob}
    if with_bytes:
        written["bytes"] = list(text.encode())
    return written


def _typed(body: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ApiError(
            400, f"json: cannot unmarshal {_kind(value)} into Go struct field .{key} of type {kind.__name__}"
        )
    return value


def _kind(value: object) -> str:
    kinds: tuple[tuple[type, str], ...] = ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def _chat_messages(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    messages = _typed(body, "messages", list, [])
    read = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ApiError(400, f"json: cannot unmarshal {_kind(message)} into Go struct field .messages")
        read.append((_typed(message, "role", str, ""), _typed(message, "content", str, "")))
    return tuple(read)


def _generate_messages(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    prompt, system = _typed(body, "prompt", str, ""), _typed(body, "system", str, "")
    if not prompt:
        return ()
    return (("system", system), ("user", prompt)) if system else (("user", prompt),)


def _think(given: object) -> bool | None:
    if given is None or isinstance(given, bool):
        return given
    if given in _THINK_LEVELS:
        return True
    raise ApiError(400, f'invalid think value: {json.dumps(given)} (must be "high", "medium", "low", true, or false)')


def _format(given: object) -> Mapping[str, Any] | str | None:
    if given is None or given == "":
        return None
    if given == "json":
        return "json"
    if not isinstance(given, Mapping):
        raise ApiError(400, f'invalid format: {json.dumps(given)}; expected "json" or a valid JSON Schema object')
    try:
        choices(given)
    except (SchemaError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise ApiError(400, f"invalid JSON schema in format: {error}") from error
    return given


def _options(given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ApiError(400, f"json: cannot unmarshal {_kind(given)} into Go struct field .options")
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _INTEGERS and not (number and float(value).is_integer()):
            raise ApiError(400, f'option "{key}" must be of type integer')
        if key in _FLOATS and not number:
            raise ApiError(400, f'option "{key}" must be of type float32')
        if key == "stop" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise ApiError(400, 'option "stop" must be of type array')
    return given


def _keep_alive(given: object) -> float | None:
    if given is None:
        return None
    if isinstance(given, int | float) and not isinstance(given, bool):
        return _FOR_EVER_S if not 0 <= given < _FOR_EVER_S else float(given)
    if isinstance(given, str):
        text = given.removeprefix("-")
        parts = _DURATION.findall(text)
        if text == "0" or (parts and "".join(map("".join, parts)) == text):
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
            return _FOR_EVER_S if given.startswith("-") else seconds
    raise ApiError(400, f"time: invalid duration {json.dumps(given)}")
