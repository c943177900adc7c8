"""Ollama's native API for one model: chat with log probabilities, which model is served, whether it is loaded.

Every failure leaves as an `AnswerFault` with a reason code. The host is the only one ever spoken to: redirects
are not followed, proxies and keys of the environment are not used, and a body has a largest size.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx
import ollama

from strategies.answers import CONTENT_CHARACTERS_MAX
from strategies.llm.config import TOP_LOGPROBS, LanguageModelConfig
from strategies.llm.odds import Token
from strategies.llm.server import AnswerFault, Reply
from strategies.prompt import ANSWER_SCHEMA, Message, one_line
from strategies.strategy import Reason

BODY_BYTES_MAX: Final = 4 * 2**20
"""Largest body of a response. 512 tokens with 20 alternatives each take about 1 MiB."""

_STATUS_REASONS: Final = {404: Reason.LLM_WRONG_MODEL, 400: Reason.LLM_WRONG_MODEL, 429: Reason.LLM_BUSY} | {
    503: Reason.LLM_BUSY
}


class OllamaChat:
    """A client for one model. Use it within one event loop; close it with `aclose`."""

    def __init__(self, config: LanguageModelConfig) -> None:
        """Prepare the client; nothing is sent."""
        self._model = config.model
        self._options = config.options
        self._client = ollama.AsyncClient(
            host=config.host,
            timeout=httpx.Timeout(config.warm_up_s, connect=config.connect_s),
            follow_redirects=False,
            trust_env=False,
            auth=_without_credentials,
            headers={"Accept-Encoding": "identity"},
            transport=_BoundedTransport(
                trust_env=False, limits=httpx.Limits(max_connections=config.concurrency + 4, keepalive_expiry=30.0)
            ),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]  # the client leaves it without types

    async def chat(self, messages: Sequence[Message]) -> Reply:
        """Ask once, without a deadline of its own.

        Raises:
            AnswerFault: No answer.
        """
        began = time.monotonic()
        with _failures_as_faults():
            response = await self._client.chat(
                model=self._model,
                messages=list(messages),
                format=dict(ANSWER_SCHEMA),
                think=False,
                stream=False,
                options=self._options,
                keep_alive=-1,
                logprobs=True,
                top_logprobs=TOP_LOGPROBS,
            )
            if response.model is not None and _with_tag(response.model) != _with_tag(self._model):
                raise AnswerFault(Reason.LLM_WRONG_MODEL, f"{response.model} answered instead of {self._model}")
            # a surrogate that stands alone cannot be written to any file
            content = (response.message.content or "").encode("utf-8", "replace").decode()
            return Reply(
                content=content[:CONTENT_CHARACTERS_MAX],
                done_reason=one_line(response.done_reason or "")[:20],
                latency_s=time.monotonic() - began,
                tokens=[_token(one) for one in response.logprobs or ()],
            )

    async def digest(self) -> str:
        """Return the digest of the model that is served under the name, 64 hexadecimal digits.

        Raises:
            AnswerFault: No answer, or no such model.
        """
        with _failures_as_faults():
            for one in (await self._client.list()).models:
                if one.model is not None and one.digest and _with_tag(one.model) == _with_tag(self._model):
                    return one.digest.removeprefix("sha256:").lower()
        raise AnswerFault(Reason.LLM_WRONG_MODEL, f"the server has no model {self._model}")

    async def is_loaded(self) -> bool:
        """Tell whether the model is in memory.

        Raises:
            AnswerFault: No answer.
        """
        with _failures_as_faults():
            running = (await self._client.ps()).models
            return any(_with_tag(one.model or one.name or "") == _with_tag(self._model) for one in running)


def _token(one: Any) -> Token:
    return Token(one.token, one.logprob, [(other.token, other.logprob) for other in one.top_logprobs or ()])


def _with_tag(model: str) -> str:
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


@contextmanager
def _failures_as_faults() -> Iterator[None]:
    """Turn everything that client, wire and server are known to fail with into an `AnswerFault`."""
    try:
        yield
    except ollama.ResponseError as error:
        reason = _STATUS_REASONS.get(error.status_code, Reason.LLM_UNREACHABLE)
        raise AnswerFault(reason, f"status {error.status_code}: {error.error}") from error
    except _BodyError as error:
        raise AnswerFault(Reason.LLM_BAD_ANSWER, str(error)) from error
    except httpx.ConnectTimeout as error:
        raise AnswerFault(Reason.LLM_UNREACHABLE, "no connection in time") from error
    except httpx.TimeoutException as error:
        raise AnswerFault(Reason.LLM_TIMEOUT, type(error).__name__) from error
    except (httpx.HTTPError, OSError) as error:
        raise AnswerFault(Reason.LLM_UNREACHABLE, f"{type(error).__name__}: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # what json, pydantic and the client's own reading of a body raise
        raise AnswerFault(Reason.LLM_BAD_ANSWER, f"{type(error).__name__}: the body cannot be read") from error


def _without_credentials(request: httpx.Request) -> httpx.Request:
    """Take away the key that the client adds from the environment."""
    request.headers.pop("Authorization", None)
    return request


class _BodyError(Exception):
    """A body that must not be read."""


class _BoundedTransport(httpx.AsyncHTTPTransport):
    """Refuses bodies that are compressed, which nobody asked for, or larger than `BODY_BYTES_MAX`."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise _BodyError("the body is compressed, which was not asked for")
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise _BodyError("the body is no stream")
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_BoundedStream(stream),
            extensions=response.extensions,
        )


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise _BodyError(f"the body is larger than {BODY_BYTES_MAX} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
