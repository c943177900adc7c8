"""The life of a close with a live language model: the right model, loaded; who is asked first; until when.

One close is one round: the model on the server is checked, then every question is asked, at most `concurrency`
at once, in their order, until the deadline. A newer close ends the round of an older one. A model that is not
loaded is loaded beside the rounds, with a long time limit, and nothing is asked meanwhile: a client that gave up
at a deadline would make the server give up loading, every time. A server that was left alone is probed in the same
way: no close waits for one that still hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from strategies.answers import AnswersError, RecordedAnswer, short_digest
from strategies.llm.breaker import Breaker
from strategies.llm.config import LanguageModelConfig
from strategies.llm.odds import TokensError, action_odds
from strategies.llm.server import DETAIL_CHARACTERS_MAX, AnswerFault, ChatServer, Reply, Why
from strategies.prompt import PROMPT_VERSION, Message, Refusal, one_line, parse_answer
from strategies.strategy import Reason

Found = RecordedAnswer | Why

_BREAKING: Final = frozenset({Reason.LLM_TIMEOUT, Reason.LLM_UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and whom it is about."""

    symbol: str
    position: int
    messages: Sequence[Message]
    hash: str


@dataclass(slots=True, eq=False)
class _Round:
    """The questions of one close, and what became of them."""

    close_time: datetime
    deadline_s: float
    waiting: deque[Question]
    asked: set[str] = field(default_factory=set)
    found: dict[str, Found] = field(default_factory=dict)
    ended_by: Why | None = None
    is_checked: bool = False
    is_superseded: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def was_heard(self) -> bool:
        """True where the server has said anything to a question."""
        return any(isinstance(one, RecordedAnswer) or one.reason not in _BREAKING for one in self.found.values())

    @property
    def cut_off(self) -> int:
        """Questions on the wire that got no answer."""
        return len(self.asked.difference(self.found))


class Asking:
    """Asks one model on one server, within one event loop."""

    def __init__(
        self,
        server: ChatServer,
        config: LanguageModelConfig,
        example: Sequence[Message],
        counts: Counter[str],
        clock: Callable[[], float],
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            server: Whom to ask.
            config: How.
            example: A prompt to load the model with.
            counts: Where asked, answered and late are counted.
            clock: Monotonic seconds of the breaker's pauses.
        """
        self._server = server
        self._config = config
        self._example = example
        self._counts = counts
        self._clock = clock
        self._digest = short_digest(config.digest)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._rounds: set[_Round] = set()
        self._newest_close: datetime | None = None
        self._is_loaded = False
        self._loading: asyncio.Task[None] | None = None
        self._load_again_at = 0.0
        self.breaker = Breaker(failures=config.breaker_failures, pause_s=config.breaker_pause_s, clock=clock)
        self.load_fault: Why | None = None
        """Why the last attempt at loading the model failed."""
        self.in_flight = 0
        """Questions on the wire."""
        self.newest: RecordedAnswer | None = None
        """The newest answer."""

    @property
    def state(self) -> str:
        """One of: wrong_model, warming, paused, probing, cold, ready."""
        states = {
            "warming": self._is_loading,
            "paused": self.breaker.is_open,
            "probing": self.breaker.is_half_open,
            "wrong_model": self.load_fault is not None and self.load_fault.reason is Reason.LLM_WRONG_MODEL,
            "cold": not self._is_loaded,
        }
        return next((state for state, holds in states.items() if holds), "ready")

    async def ask(
        self, questions: Sequence[Question], close_time: datetime, deadline_monotonic_s: float | None
    ) -> Mapping[str, Found]:
        """Ask every question before the deadline; return, by symbol, the answer or why there is none."""
        now = time.monotonic()
        deadline_s = now + self._config.deadline_s
        if deadline_monotonic_s is not None:
            deadline_s = min(deadline_s, deadline_monotonic_s - self._config.reserve_s)
        why = self._why_not_this_close(close_time)
        if why is None:
            why = Why(Reason.LLM_TIMEOUT, "no time is left") if deadline_s <= now else self._why_not_now()
        if why is not None or not questions:
            return {} if why is None else _all(questions, why)
        one = _Round(close_time, deadline_s, deque(questions))
        self._rounds.add(one)
        one.task = asyncio.create_task(self._run(one), name=f"llm {close_time.isoformat()}")
        try:
            await asyncio.wait({one.task}, timeout=deadline_s - time.monotonic())
        finally:
            self._rounds.discard(one)
            await _ended(one.task)
        if not one.task.cancelled():
            one.task.result()
        return self._outcome(one, questions)

    def _why_not_this_close(self, close_time: datetime) -> Why | None:
        """Return why a close is not asked about; end the rounds of older ones."""
        if self._newest_close is not None and close_time < self._newest_close:
            return Why(Reason.LLM_SUPERSEDED, f"{self._newest_close.isoformat()} has been asked about already")
        self._newest_close = close_time
        for one in self._rounds:
            if one.close_time < close_time and one.task is not None:
                one.is_superseded = True
                one.task.cancel()
        return None

    def _outcome(self, one: _Round, questions: Sequence[Question]) -> Mapping[str, Found]:
        """Return what a round that has ended leaves: answers, and why there is none."""
        self._counts["late"] += one.cut_off
        if one.is_superseded:
            self._counts["late"] += sum(isinstance(each, RecordedAnswer) for each in one.found.values())
            return _all(questions, Why(Reason.LLM_SUPERSEDED, "a newer close came"))
        unasked = one.ended_by or Why(Reason.LLM_BUSY, "not asked by the deadline: other symbols came first")
        if not one.is_checked and one.ended_by is None:
            self.breaker.failed()
            unasked = Why(Reason.LLM_TIMEOUT, "the server did not tell by the deadline which model it serves")
        for _ in range(0 if one.was_heard else one.cut_off):
            # only a server that answers none of its questions in time is broken; one that answers some is slow
            self.breaker.failed()
        late = Why(Reason.LLM_TIMEOUT, "asked, and not answered by the deadline")
        return {
            each.symbol: one.found.get(each.symbol, late if each.symbol in one.asked else unasked) for each in questions
        }

    async def _run(self, one: _Round) -> None:
        one.ended_by = await self._why_not_this_model()
        if one.ended_by is not None:
            return
        one.is_checked = True
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._config.concurrency, len(one.waiting))):
                group.create_task(self._work(one))
        if one.waiting:
            one.ended_by = self._paused()

    async def _work(self, one: _Round) -> None:
        while one.waiting and not self.breaker.is_open:
            async with self._slots:
                # another worker may have taken the last one while this one waited for a slot
                if one.waiting and not self.breaker.is_open:
                    await self._ask(one, one.waiting.popleft())

    async def _ask(self, one: _Round, question: Question) -> None:
        one.asked.add(question.symbol)
        self._counts["asked"] += 1
        self.in_flight += 1
        try:
            reply = await self._server.chat(question.messages)
        except AnswerFault as fault:
            one.found[question.symbol] = self._failed(fault)
            return
        finally:
            self.in_flight -= 1
        self.breaker.succeeded()
        if time.monotonic() > one.deadline_s:
            self._counts["late"] += 1
            one.found[question.symbol] = Why(Reason.LLM_TIMEOUT, "answered after the deadline")
            return
        self._counts["answered"] += 1
        one.found[question.symbol] = self._recorded(question, reply, one.close_time)

    def _failed(self, fault: AnswerFault) -> Why:
        if fault.why.reason in _BREAKING:
            self.breaker.failed()
        return fault.why

    def _recorded(self, question: Question, reply: Reply, close_time: datetime) -> Found:
        said = parse_answer(reply.content)
        try:
            odds = None if isinstance(said, Refusal) else action_odds(reply.tokens, said.action)
            self.newest = RecordedAnswer(
                prompt_hash=question.hash,
                digest=self._digest,
                prompt_version=PROMPT_VERSION,
                content=reply.content,
                probabilities=None if odds is None else odds.probabilities,
                mass=None if odds is None else odds.mass,
                latency_s=reply.latency_s,
                done_reason=reply.done_reason,
                symbol=question.symbol,
                close_time=close_time,
            )
        except (TokensError, AnswersError) as error:
            return Why(Reason.LLM_BAD_ANSWER, one_line(str(error))[:DETAIL_CHARACTERS_MAX])
        return self.newest

    def _paused(self) -> Why:
        failures, pause_s = self.breaker.failures, self._config.breaker_pause_s
        return Why(Reason.LLM_BREAKER_OPEN, f"{failures} failures in a row: left alone for {pause_s:g} s")

    def _why_not_now(self) -> Why | None:
        """Return why nothing may be asked at this moment; begin to load a cold model."""
        if self.breaker.is_open:
            return self._paused()
        if self.breaker.is_half_open:
            self._begin_loading()
            return Why(Reason.LLM_BREAKER_OPEN, f"{self.breaker.failures} failures in a row: it is being probed")
        if self._is_loaded and not self._is_loading:
            return None
        if not self._is_loading and self.load_fault is not None and self._clock() < self._load_again_at:
            return self.load_fault
        self._begin_loading()
        return Why(Reason.LLM_WARMING, "the model is being loaded")

    async def _why_not_this_model(self) -> Why | None:
        try:
            why = await self._why_not_its_digest()
            if why is None and not await self._server.is_loaded():
                self._is_loaded = False
                self._begin_loading()
                why = Why(Reason.LLM_WARMING, "the server has unloaded the model: it is being loaded")
        except AnswerFault as fault:
            return self._failed(fault)
        return why

    async def _why_not_its_digest(self) -> Why | None:
        served = await self._server.digest()
        if served.startswith(self._config.digest.removeprefix("sha256:").lower()):
            return None
        return Why(
            Reason.LLM_WRONG_MODEL,
            f"{self._config.model} is {short_digest(served)} on the server, {self._digest} was tuned and tested",
        )

    @property
    def _is_loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    def _begin_loading(self) -> asyncio.Task[None]:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load(), name="llm load")
        return self._loading

    async def warm_up(self) -> bool:
        """Load the model; return True once it is. Cancelling the caller leaves the load running."""
        await asyncio.shield(self._begin_loading())
        return self._is_loaded

    async def _load(self) -> None:
        """Load the model; the same question probes a server that was left alone, and then decides for the breaker."""
        now, config = asyncio.get_running_loop().time, self._config
        limit_s = config.deadline_s if self.breaker.is_half_open else config.warm_up_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                why = await self._why_not_its_digest()
                if why is None:
                    if self.breaker.is_half_open and not await self._server.is_loaded():
                        limit_s = config.warm_up_s  # it may have been started anew, with nothing in memory
                        limit.reschedule(now() + limit_s)
                    await self._server.chat(self._example)
        except TimeoutError:
            why = Why(Reason.LLM_TIMEOUT, f"the model was not loaded within {limit_s:g} s")
        except AnswerFault as fault:
            why = fault.why
        self._is_loaded, self.load_fault = why is None, why
        if self.breaker.is_half_open:
            self.breaker.succeeded() if why is None else self.breaker.failed()
        self._load_again_at = self._clock() + self._config.breaker_pause_s

    async def aclose(self) -> None:
        """End everything that runs, and close the connections."""
        for one in tuple(self._rounds):
            if one.task is not None:
                await _ended(one.task)
        if self._loading is not None:
            await _ended(self._loading)
        await self._server.aclose()


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task that still runs, and wait until it has ended."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _all(questions: Iterable[Question], why: Why) -> dict[str, Found]:
    return {one.symbol: why for one in questions}
