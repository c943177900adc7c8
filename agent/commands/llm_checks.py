"""The checks of the language model in `tandem doctor`: its host, its server, the very model, and what it can tell."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent.commands.checks import Check
from agent.settings import Settings

if TYPE_CHECKING:
    from strategies.llm import LanguageModel
    from strategies.llm.config import LanguageModelConfig

ASK_S_MAX = 6.0
"""Longest wait for the server, all questions together."""
LOOK_UP_S_MAX = 2.0
"""Longest wait for the name of its machine to be looked up."""
LOGPROBS_SINCE = (0, 12, 11)
"""First version of Ollama that gives log probabilities."""

_VERSION_BYTES_MAX = 4_096
_START = "start it (`ollama serve`; `tandem ollama` stands in for it), or correct llm.host"


def check_language_model(settings: Settings) -> Iterable[Check]:
    """Check the language model where one is asked; it is neither loaded nor changed, and asked once if it is loaded."""
    if settings.strategy.name not in {"llm", "fused"}:
        yield Check("language model", "ok", f"none: {settings.strategy.name} decides alone")
        return
    from strategies.llm.config import LanguageModelError, check_host  # noqa: PLC0415 - only where one is asked

    llm = settings.llm
    try:
        check_host(llm.host, llm.trusted_hosts)
    except LanguageModelError as error:
        yield Check("language model host", "fail", str(error), "correct llm.host or llm.trusted_hosts")
        return
    yield Check("language model host", "ok", f"prompts may go to {llm.host}")
    model = _model(settings)
    if model is None:
        yield Check("language model", "warn", "not asked: the strategy cannot be made", "correct strategy first")
        return
    if model.status().state == "wrong_model":
        remedy = "serve a model that was tuned on this program's prompts, or tune and promote one anew"
        yield Check("language model", "fail", f"{model.config.model} was tuned on other prompts", remedy)
        return
    name = urlsplit(llm.host).hostname or ""
    if not _is_known(name):
        yield Check("language model server", "fail", f"{name} cannot be looked up", "correct llm.host, or name service")
        return
    yield from asyncio.run(_ask(model))


def _model(settings: Settings) -> LanguageModel | None:
    from agent.minds import StartError, make_minds  # noqa: PLC0415 - loads the policy

    try:
        return make_minds(settings).model
    except StartError:
        return None  # the check of the strategy says why


def _is_known(name: str) -> bool:
    """Look a machine's name up in a thread that nobody waits for: a name service may be silent for long."""
    found = threading.Event()

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            socket.getaddrinfo(name, None)
            found.set()

    thread = threading.Thread(target=look_up, name="look up", daemon=True)
    thread.start()
    thread.join(LOOK_UP_S_MAX)
    return found.is_set()


async def _ask(model: LanguageModel) -> list[Check]:
    from strategies.llm.ollama_chat import OllamaChat  # noqa: PLC0415 - the client, only where it is asked
    from strategies.llm.server import AnswerFault  # noqa: PLC0415 - as above

    config = replace(model.config, warm_up_s=ASK_S_MAX, connect_s=min(model.config.connect_s, 2.0))
    chat = OllamaChat(config)
    found: list[Check] = []
    try:
        async with asyncio.timeout(ASK_S_MAX):
            version = await _version(config)
            found.append(Check("language model server", "ok", f"{config.host} answers, version {version or 'unknown'}"))
            served = await chat.digest()
            wrong = _other_digest(config, served)
            if wrong is not None:
                return [*found, wrong]
            found.append(Check("language model", "ok", f"{config.model}, digest {served[:12]} as pinned"))
            loaded = await chat.is_loaded()
            told = "in memory" if loaded else "cold: the daemon loads it at its start, and it has no vote until then"
            found.append(Check("language model loaded", "ok", told))
            found.append(await _probabilities(model, chat) if loaded else _by_version(version))
    except AnswerFault as fault:
        found.append(_fault(config, fault, found))
    except TimeoutError:
        found.append(
            Check("language model server", "fail", f"{config.host}: no answer within {ASK_S_MAX:g} s", _START)
            if not found
            else Check("language model answers", "warn", f"none within {ASK_S_MAX:g} s", "see the load of its machine")
        )
    except OSError as error:
        found.append(Check("language model server", "fail", f"{config.host}: {error}", _START))
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await chat.aclose()
    return found


async def _version(config: LanguageModelConfig) -> str:
    """Return what the server calls its version; empty where it says none.

    Raises:
        OSError: It cannot be reached.
    """
    import httpx  # noqa: PLC0415 - only where a server is asked

    limits = httpx.Timeout(ASK_S_MAX, connect=config.connect_s)
    try:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=limits) as client,
            client.stream("GET", f"{config.host.rstrip('/')}/api/version") as answer,
        ):
            body = b""
            async for part in answer.aiter_raw():
                body += part
                if len(body) > _VERSION_BYTES_MAX:
                    return ""
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except httpx.HTTPError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    found = re.search(rb'"version"\s*:\s*"([0-9A-Za-z.+-]{1,40})"', body)
    return "" if found is None else found[1].decode()


def _other_digest(config: LanguageModelConfig, served: str) -> Check | None:
    pinned = config.digest.removeprefix("sha256:").lower()
    if served.startswith(pinned):
        return None
    return Check(
        "language model",
        "fail",
        f"{config.model} is {served[:12]} on the server, {pinned[:12]} is pinned: it would have no vote",
        "serve the model that was tuned and tested; or test the new one and promote it (`tandem models promote "
        f"POLICY --llm-digest {served[:12]}`)",
    )


async def _probabilities(model: LanguageModel, chat: Any) -> Check:
    began = time.monotonic()
    reply = await chat.chat(model.example)
    took_s = time.monotonic() - began
    if not reply.tokens:
        return _no_probabilities("the server gave none")
    if took_s > model.config.deadline_s:
        detail = f"given, after {took_s:.1f} s: llm.deadline_s is {model.config.deadline_s:g}"
        return Check("log probabilities", "warn", detail, "a faster machine or smaller model, or a longer deadline")
    return Check("log probabilities", "ok", f"given; one answer took {took_s:.2f} s")


def _by_version(version: str) -> Check:
    """Judge by the version: a cold model is not loaded for a check."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers and numbers < LOGPROBS_SINCE:
        return _no_probabilities(f"version {version} gives none")
    if not numbers:
        return Check("log probabilities", "warn", "not known: the model is cold", "ask again once it is loaded")
    return Check("log probabilities", "ok", f"given by version {version}; not tried, the model is cold")


def _no_probabilities(detail: str) -> Check:
    since = ".".join(map(str, LOGPROBS_SINCE))
    return Check(
        "log probabilities",
        "warn",
        f"{detail}: without them the pool gives it no weight",
        f"use Ollama {since} or newer",
    )


def _fault(config: LanguageModelConfig, fault: Any, before: list[Check]) -> Check:
    """Return what a fault of the server means, by its reason."""
    detail = f"{fault.why.reason}: {fault.why.detail}"
    known = {check.name for check in before}
    if fault.why.reason == "llm_wrong_model":
        remedy = f"`ollama list` shows what is there: pull or create {config.model}, or correct llm.model"
        return Check("language model", "fail", detail, remedy)
    if not known:
        return Check("language model server", "fail", detail, _START)
    remedy = "its queue is full: see who else asks it" if fault.why.reason == "llm_busy" else "see the server's log"
    if "language model" in known:
        return Check("language model answers", "warn", detail, remedy)
    return Check("language model", "fail", detail, remedy)
