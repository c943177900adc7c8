"""What is served: the models, which of them is loaded, the queue, the faults in force, and the requests seen."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from agent.ollama.answers import Answer, Answerer, AnswersError, Question, by_numbers, compose, spoken
from agent.ollama.draws import draw
from agent.ollama.faults import WRONG_KINDS, Fault, FaultName, FaultPlan, spoil
from agent.ollama.tokens import Split, Token, tokenise
from agent.ollama.wire import ApiError, Asked, canonical, expiry

__all__ = ["QUEUE_FULL", "Generated", "Seen", "Standin"]

VERSION = "0.33.0"
_VERSION_WITHOUT_LOGPROBS = "0.12.10"
"""The last server that knew no log probabilities."""
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
_RUBBISH_CONTENT = "As a language model I would rather look at the chart first."
_PROMPT_CHARS_MAX = 16_384
"""Characters of a prompt that are remembered."""
_BODY_BYTES_MAX = 65_536
"""Bytes of a request that is remembered whole."""
_SECONDS_MAX = 86_400.0
_SEEN_MAX = 512
"""Requests that are remembered."""
_RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread")
"""A request that changes one of them has the model loaded anew."""
_FAMILY = {"format": "gguf", "family": "qwen3", "families": ["qwen3"], "parent_model": ""}
_SIZE_BYTES = 500_000_000
_CONTEXT = 4_096


@dataclass(slots=True)
class Seen:
    """A request as it arrived, and what became of it.

    `outcome` is `open`, `answered`, `error`, `broken` (a fault cut the answer), `left` (the client did not wait) or
    `stopped` (the stand-in ended).
    """

    number: int
    method: str
    path: str
    body: Mapping[str, Any] | None = None
    prompt: str = ""
    prompt_sha256: str = ""
    faults: tuple[str, ...] = ()
    status: int = 0
    outcome: str = "open"
    took_s: float = 0.0

    def json(self) -> dict[str, Any]:
        """Return what the control face shows."""
        return {
            "number": self.number,
            "method": self.method,
            "path": self.path,
            "prompt": self.prompt,
            "prompt_sha256": self.prompt_sha256,
            "faults": list(self.faults),
            "status": self.status,
            "outcome": self.outcome,
            "took_s": round(self.took_s, 6),
        }


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens, thinking before them, and why they end."""

    tokens: tuple[Token, ...]
    thinking: str
    done_reason: str

    @property
    def content(self) -> str:
        """The text."""
        return "".join(token.text for token in self.tokens)


@dataclass(slots=True)
class _Loaded:
    expires: datetime
    runner: tuple[Any, ...]


@dataclass(slots=True)
class _Queue:
    parallel: int
    queued_max: int
    waiting: int = 0
    free: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.free = asyncio.Semaphore(self.parallel)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a turn.

        Raises:
            ApiError: 503, too many wait already.
        """
        if self.free.locked() and self.waiting >= self.queued_max:
            raise ApiError(503, QUEUE_FULL)
        self.waiting += 1
        try:
            await self.free.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.free.release()


class Standin:
    """An Ollama server's state, without a model.

    Args:
        answerer: What the model says.
        models: Names of the models there are.
        digest: Their digest, 64 hexadecimal digits; None makes one from each name.
        faults: Faults in force from the start (`agent.ollama.faults.parse_fault`).
        delay_s: Lower and upper bound of the seconds before each answer, drawn by seed and request number.
        seed: Of delays, faults with a probability, and rules that draw.
        load_s: Seconds that loading a model takes.
        parallel: Requests answered at the same time.
        queued_max: Requests that may wait beyond them; more get 503.
        split: How the tokenizer splits the chosen word.
        thinking: Whether the models can think.
        with_bytes: Whether log probabilities carry the tokens' bytes.
        version: The server's.

    Raises:
        ValueError: A number that means nothing.
        FaultError: A fault that does not exist.
    """

    def __init__(
        self,
        answerer: Answerer = by_numbers,
        *,
        models: Sequence[str] = ("tandem",),
        digest: str | None = None,
        faults: Iterable[object] = (),
        delay_s: tuple[float, float] = (0.0, 0.0),
        seed: int = 1,
        load_s: float = 0.0,
        parallel: int = 1,
        queued_max: int = 512,
        split: Split = "word",
        thinking: bool = False,
        with_bytes: bool = False,
        version: str = VERSION,
    ) -> None:
        low, high = delay_s
        if not 0 <= low <= high <= _SECONDS_MAX:
            raise ValueError(f"delay_s is {low} to {high}: give seconds from 0 to a day, the lower one first")
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"digest {digest[:80]!r} is not one: give 64 hexadecimal digits, as `/api/tags` does")
        if parallel < 1 or queued_max < 0 or not 0 <= load_s <= _SECONDS_MAX:
            raise ValueError(
                f"parallel {parallel}, queued_max {queued_max}, load_s {load_s}: give at least 1, 0 and 0 s"
            )
        if not models:
            raise ValueError("no models: name at least one")
        self.answerer = answerer
        self.models = tuple(models)
        self.seed = seed
        self.split = split
        self.thinking = thinking
        self.with_bytes = with_bytes
        self.plan = FaultPlan(faults, seed)
        self.counters: Counter[str] = Counter()
        self.seen: deque[Seen] = deque(maxlen=_SEEN_MAX)
        self.in_flight = 0
        self.in_flight_max = 0
        self._digest = digest
        self._delay_s = delay_s
        self._load_s = load_s
        self._version = version
        self._born = datetime.now(UTC)
        self._places = (parallel, queued_max)
        self.restart()

    def restart(self) -> None:
        """Begin as a server does that was just started: nothing loaded, nobody waiting; faults and memory stay."""
        self._loaded: dict[str, _Loaded] = {}
        self._queue = _Queue(*self._places)

    def set_faults(self, *faults: object) -> tuple[Fault, ...]:
        """Replace the faults in force; a slow load makes every model cold again.

        Raises:
            FaultError: One is not a fault; nothing is changed.
        """
        chosen = self.plan.set(faults)
        if any(fault.name is FaultName.SLOW_LOAD for fault in chosen):
            self._loaded.clear()
        return chosen

    def asked(self, path: str = "/api/chat") -> list[Seen]:
        """Return the remembered requests of a path, oldest first."""
        return [each for each in list(self.seen) if each.path == path]

    @property
    def version(self) -> str:
        """The server's version; an old one where it knows no log probabilities."""
        return self._version if self.plan.standing(FaultName.NO_LOGPROBS) is None else _VERSION_WITHOUT_LOGPROBS

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.waiting

    def arrive(self, method: str, path: str) -> Seen:
        """Count and remember a request."""
        key = f"{method} {path}"
        self.counters[key] += 1
        seen = Seen(self.counters[key], method, path)
        self.seen.append(seen)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        return seen

    def depart(self, seen: Seen, outcome: str, took_s: float) -> None:
        """Note what became of a request."""
        seen.outcome, seen.took_s = outcome, took_s
        self.counters[outcome] += 1
        self.counters.update(f"fault {name}" for name in seen.faults)
        self.in_flight -= 1

    def remember(self, seen: Seen, body: Mapping[str, Any], question: Question, *, size: int) -> None:
        """Note what was asked; of a large body, only the prompt's beginning."""
        seen.body = body if size <= _BODY_BYTES_MAX else None
        seen.prompt = question.prompt[:_PROMPT_CHARS_MAX]
        seen.prompt_sha256 = question.sha256

    def meeting(self, seen: Seen, among: Iterable[FaultName]) -> dict[FaultName, Fault]:
        """Return those of some faults that a request meets."""
        met = self.plan.meeting(seen.path, seen.number, frozenset(among))
        seen.faults += tuple(name.value for name in met)
        return met

    # models

    def has(self, model: str) -> bool:
        """Whether there is such a model."""
        return canonical(model) in map(canonical, self.models)

    def digest(self, model: str) -> str:
        """Return a model's digest."""
        honest = self._digest or sha256(f"tandem stand-in {canonical(model)}".encode()).hexdigest()
        if self.plan.standing(FaultName.WRONG_DIGEST) is None:
            return honest
        return sha256(f"another {honest}".encode()).hexdigest()

    def listed(self) -> list[dict[str, Any]]:
        """Return the models as `/api/tags` lists them."""
        if self.plan.standing(FaultName.MISSING_MODEL) is not None:
            return []
        return [self._entry(name) | {"modified_at": self._born} for name in map(canonical, self.models)]

    def running(self) -> list[dict[str, Any]]:
        """Return the loaded models as `/api/ps` lists them."""
        self._unload_expired()
        return [
            self._entry(name)
            | {"expires_at": loaded.expires, "size_vram": 0, "context_length": loaded.runner[0] or _CONTEXT}
            for name, loaded in self._loaded.items()
        ]

    def _entry(self, name: str) -> dict[str, Any]:
        details = _FAMILY | {"parameter_size": "0.6B", "quantization_level": "Q4_K_M"}
        return {"name": name, "model": name, "size": _SIZE_BYTES, "digest": self.digest(name), "details": details}

    def unload(self, model: str) -> None:
        """Forget that a model is loaded."""
        self._loaded.pop(canonical(model), None)

    def _unload_expired(self) -> None:
        now = datetime.now(UTC)
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if loaded.expires > now}

    # answers

    @contextlib.asynccontextmanager
    async def turn(self, asked: Asked, seen: Seen) -> AsyncIterator[float]:
        """Wait for a turn and for the model to be loaded; yield the seconds that loading took.

        A client that leaves meanwhile ends the load: whoever comes next begins it anew.

        Raises:
            ApiError: 503.
        """
        async with self._queue.place():
            name = canonical(asked.model)
            self._unload_expired()
            load_s = 0.0
            runner = tuple(asked.options.get(key) for key in _RUNNER_OPTIONS)
            if name not in self._loaded or self._loaded[name].runner != runner:
                self.unload(name)
                self.counters["load"] += 1
                slow = self.meeting(seen, {FaultName.SLOW_LOAD})
                load_s = slow[FaultName.SLOW_LOAD].number if slow else self._load_s
                await asyncio.sleep(load_s)
            self._loaded[name] = _Loaded(expiry(datetime.now(UTC), max(asked.kept_s, 86_400.0)), runner)
            try:
                yield load_s
            finally:
                if name in self._loaded:
                    self._loaded[name].expires = expiry(datetime.now(UTC), asked.kept_s)

    def delay_s(self, seen: Seen) -> float:
        """Return how long the model computes."""
        low, high = self._delay_s
        return low + (high - low) * draw(self.seed, "delay", seen.path, seen.number)

    def generate(self, asked: Asked, seen: Seen, met: Mapping[FaultName, Fault]) -> Generated:
        """Return what the model says, or what a fault makes of it.

        Raises:
            ApiError: 500, nobody knows an answer.
        """
        question = asked.question(seen.number, self.seed)
        answer = self._answer(question, met)
        if FaultName.LOW_MASS in met and answer.choice is not None:
            low = replace(answer.choice, mass=met[FaultName.LOW_MASS].number)
            answer = replace(answer, choice=low, tokens=None)
        tokens = answer.tokens if answer.tokens is not None else tokenise(answer.content, answer.choice, self.split)
        tokens, done_reason = _bounded(tokens, asked.options)
        if FaultName.TRUNCATED in met:
            tokens, done_reason = tokens[: max(len(tokens) // 2, 1)], "length"
        thinks = self.thinking and asked.think is not False
        return Generated(tokens, (answer.thinking or "It is all in the numbers.") if thinks else "", done_reason)

    def _answer(self, question: Question, met: Mapping[FaultName, Fault]) -> Answer:
        if FaultName.RUBBISH_CONTENT in met:
            return Answer(_RUBBISH_CONTENT)
        if FaultName.WRONG_SCHEMA not in met:
            return self._honest(question)
        kind = met[FaultName.WRONG_SCHEMA].value or WRONG_KINDS[(question.number - 1) % len(WRONG_KINDS)]
        return spoken(spoil(compose(question, by_numbers(question)).content, str(kind)), question)

    def _honest(self, question: Question) -> Answer:
        try:
            said = self.answerer(question)
            if isinstance(said, Answer):
                return said
            return spoken(said, question) if isinstance(said, str) else compose(question, said)
        except AnswersError as error:
            raise ApiError(500, str(error)) from error
        except Exception as error:
            raise ApiError(500, f"the answerer failed: {error!r}") from error


def _bounded(tokens: tuple[Token, ...], options: Mapping[str, Any]) -> tuple[tuple[Token, ...], str]:
    """Cut tokens at a stop text or at `num_predict`; return them and why they end."""
    text = ""
    kept: list[Token] = []
    limit = int(options.get("num_predict", -1))
    for token in tokens:
        if 0 < limit <= len(kept):
            return tuple(kept), "length"
        text += token.text
        if any(stop and stop in text for stop in options.get("stop", ())):
            break
        kept.append(token)
    return tuple(kept), "stop"
