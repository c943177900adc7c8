"""The Strategy: prompts out, answers in, read as probabilities of targets. Live, or from recorded answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from strategies.answers import ACTION_ORDER, AnswerBook, RecordedAnswer, short_digest
from strategies.features import FeatureSpec
from strategies.llm.asking import Asking, Found, Question
from strategies.llm.config import LanguageModelConfig, LanguageModelError
from strategies.llm.odds import calibrated, likeliest, target_of, target_probabilities
from strategies.llm.server import ChatServer, Why
from strategies.observation import usable_rows, why_unusable
from strategies.prompt import PROMPT_VERSION, Answer, Message, Refusal, Template, parse_answer, prompt_hash
from strategies.strategy import Abstention, Observations, Opinion, Reason

NAME: Final = "llm"
COUNTED: Final = ("asked", "answered", "late", "without_logprobs")
"""Counters beside those of the reasons. `late`: asked, but the deadline or a newer close came before the answer."""
CONTRADICTION: Final = 0.05
"""The word of an answer may be less likely than another by this much; beyond it, word and numbers do not belong."""

_TOKENS_PER_CHARACTER: Final = 0.6


@dataclass(frozen=True, slots=True)
class LanguageModelStatus:
    """What health pages show.

    Args:
        state: replay, wrong_model, warming, cold, paused, probing or ready.
        model: As configured.
        digest: Pinned, short.
        prompt_version: Of this program.
        template_hash: Of this program and these features.
        in_flight: Questions on the wire.
        failures: In a row.
        latency_s: Of the newest answer; None before the first.
        mass: Of the newest answer; None where there was none or the server told none.
        fault: The newest fault, as text; empty for none yet.
    """

    state: str
    model: str
    digest: str
    prompt_version: str
    template_hash: str
    in_flight: int = 0
    failures: int = 0
    latency_s: float | None = None
    mass: float | None = None
    fault: str = ""


class LanguageModel:
    """Asks a language model about each symbol, or reads what it answered before.

    With a `server`, answers are live, and kept in `book` where there is one. Without, they come from `book` alone.
    Live, it belongs to one event loop; end it with `aclose`.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        config: LanguageModelConfig,
        *,
        server: ChatServer | None = None,
        book: AnswerBook | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            spec: Features shown to the model: those of the policy that it was tuned on.
            config: What is asked and how.
            server: Whom to ask; None to replay.
            book: Where answers are kept, or read from.
            clock: Monotonic seconds of the breaker's pauses.

        Raises:
            LanguageModelError: Neither server nor book, or prompts that do not fit into the context.
            PromptError: Features that no prompt can show.
        """
        if server is None and book is None:
            raise LanguageModelError("a language model needs a server to ask or recorded answers: give one of them")
        self.config = config
        self.template = Template(spec, shorts=config.shorts)
        needed = math.ceil(self.template.characters_max * _TOKENS_PER_CHARACTER) + config.num_predict
        if needed > config.num_ctx:
            raise LanguageModelError(
                f"llm.num_ctx is {config.num_ctx}, prompt and answer can take {needed} tokens: raise it, a prompt that "
                "is cut would be answered all the same"
            )
        self._spec = spec
        self._book = book
        self._digest = short_digest(config.digest)
        self._broken_pin = self._find_broken_pin()
        self._counts: Counter[str] = Counter(dict.fromkeys((*COUNTED, *_llm_reasons()), 0))
        self._last_fault = ""
        self._asking: Asking | None = None
        if server is not None:
            self._asking = Asking(server, config, self.example, self._counts, clock)

    @classmethod
    def on_ollama(cls, spec: FeatureSpec, config: LanguageModelConfig, book: AnswerBook | None = None) -> LanguageModel:
        """Return one that asks Ollama at `config.host`; see the constructor for what is refused."""
        from strategies.llm.ollama_chat import OllamaChat  # noqa: PLC0415 -- the client only where it is used

        return cls(spec, config, server=OllamaChat(config), book=book)

    @property
    def name(self) -> str:
        """Key of its vote."""
        return NAME

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features it is shown."""
        return self._spec

    @property
    def example(self) -> Sequence[Message]:
        """A prompt like those that will be asked, about nothing."""
        return self.template.messages(self._spec.ranges.mean(axis=1), 0)

    @property
    def counters(self) -> Mapping[str, int]:
        """How often each thing has happened: `COUNTED`, and every LLM reason by its value."""
        return dict(self._counts)

    def status(self) -> LanguageModelStatus:
        """Return what health pages show."""
        asking = self._asking
        state = "replay" if asking is None else asking.state
        status = LanguageModelStatus(
            state=state if self._broken_pin is None else "wrong_model",
            model=self.config.model,
            digest=self._digest,
            prompt_version=PROMPT_VERSION,
            template_hash=self.template.hash,
            fault=self._last_fault,
        )
        if asking is None:
            return status
        newest, load_fault = asking.newest, asking.load_fault
        return replace(
            status,
            in_flight=asking.in_flight,
            failures=asking.breaker.failures,
            latency_s=None if newest is None else newest.latency_s,
            mass=None if newest is None else newest.mass,
            fault=self._last_fault if load_fault is None else f"{load_fault.reason}: {load_fault.detail}",
        )

    def _find_broken_pin(self) -> Why | None:
        config = self.config
        if config.prompt_version != PROMPT_VERSION:
            return Why(
                Reason.LLM_WRONG_MODEL,
                f"tuned on prompt version {config.prompt_version}, this program renders {PROMPT_VERSION}",
            )
        if config.template_hash and config.template_hash != self.template.hash:
            return Why(
                Reason.LLM_WRONG_MODEL,
                f"tuned on template {config.template_hash[:12]}, these features make {self.template.hash[:12]}",
            )
        return None

    async def warm_up(self) -> bool:
        """Load the model, with the time limit `warm_up_s`; return True once it is loaded. At once in a replay.

        Until then every symbol abstains. A failure is none of the breaker's: `status` tells it, and the next close
        begins again, `breaker_pause_s` later at the earliest. Cancelling the caller leaves the load running: a server
        whose client goes away while it loads gives up loading.
        """
        if self._asking is None or self._broken_pin is not None:
            return self._broken_pin is None
        return await self._asking.warm_up()

    async def aclose(self) -> None:
        """End everything that runs, and close the connections."""
        if self._asking is not None:
            await self._asking.aclose()

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol; see `Strategy.opinions`."""
        return await self.opinions_in_order(observations, ())

    async def opinions_in_order(
        self, observations: Observations, order: Sequence[int]
    ) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol, in the order of the symbols; ask in the order given.

        Args:
            observations: What is decided on.
            order: Rows to ask about first, the most important first; the others follow in their own order.

        Raises:
            AnswersError, OSError: The book cannot be read or written.
        """
        features_SF, symbols = observations.features_SF, observations.symbols
        usable_S = usable_rows(features_SF)
        questions: dict[int, Question] = {}
        for row in dict.fromkeys((*order, *range(len(symbols)))):
            if usable_S[row]:
                position = int(observations.positions_S[row])
                messages = self.template.messages(features_SF[row], position)
                questions[row] = Question(symbols[row], position, messages, prompt_hash(messages))
        found = await self._found(list(questions.values()), observations)
        answers: list[Opinion | Abstention] = [
            self._answer(questions[row], found[symbol])
            if row in questions
            else Abstention(symbol, why_unusable(features_SF[row]))
            for row, symbol in enumerate(symbols)
        ]
        self._count(answers)
        return answers

    async def _found(self, questions: Sequence[Question], observations: Observations) -> Mapping[str, Found]:
        if self._broken_pin is not None:
            return {one.symbol: self._broken_pin for one in questions}
        if self._asking is None:
            return {one.symbol: self._recorded(one) for one in questions}
        found = await self._asking.ask(questions, observations.close_time, observations.deadline_monotonic_s)
        if self._book is not None:
            for answer in found.values():
                if isinstance(answer, RecordedAnswer):
                    self._book.keep(answer)
        return found

    def _recorded(self, question: Question) -> Found:
        found = None if self._book is None else self._book.find(question.hash, self._digest)
        if found is None:
            return Why(Reason.LLM_NOT_RECORDED, f"prompt {question.hash[:12]}, model {self._digest}")
        return found

    def _answer(self, question: Question, found: Found) -> Opinion | Abstention:
        """Return what an answer means, live or recorded alike."""
        if isinstance(found, Why):
            return Abstention(question.symbol, found.reason, found.detail)
        said = self._said(found)
        if isinstance(said, Why):
            return Abstention(question.symbol, said.reason, said.detail)
        detail = {"latency_s": found.latency_s} | ({} if found.mass is None else {"mass": found.mass})
        position, targets = question.position, self.template.targets
        if found.probabilities is None:
            return Opinion(
                question.symbol,
                target_of(said.action, position=position, targets=targets),
                reason=Reason.LLM_VOTE,
                detail=detail,
                note=said.reason,
            )
        shares = calibrated(found.probabilities, self.config.temperature)
        by_target = target_probabilities(shares, position=position, targets=targets)
        return Opinion(
            question.symbol,
            likeliest(by_target, position=position, tie=self.config.tie),
            reason=Reason.LLM_VOTE,
            detail=detail | {f"p_{one.name.lower()}": share for one, share in zip(ACTION_ORDER, shares, strict=True)},
            note=said.reason,
            probabilities=by_target,
        )

    def _said(self, found: RecordedAnswer) -> Answer | Why:
        """Return what an answer says, or why it must not count."""
        said = parse_answer(found.content)
        odds = found.probabilities
        if found.done_reason != "stop":
            return Why(Reason.LLM_BAD_ANSWER, f"the model stopped by {found.done_reason!r}")
        if isinstance(said, Refusal):
            return Why(Reason.LLM_BAD_ANSWER, f"{said.code}: {said.detail}")
        if found.mass is not None and found.mass < self.config.mass_min:
            return Why(Reason.LLM_LOW_MASS, f"mass {found.mass:.4f}, at least {self.config.mass_min} is asked for")
        if odds is not None and odds[ACTION_ORDER.index(said.action)] + CONTRADICTION < max(odds):
            return Why(Reason.LLM_BAD_ANSWER, f"{said.action.name} is not the likeliest of SELL, HOLD, BUY {odds}")
        return said

    def _count(self, answers: Sequence[Opinion | Abstention]) -> None:
        for answer in answers:
            if isinstance(answer, Opinion):
                self._counts["without_logprobs"] += not answer.probabilities
            elif answer.reason.value in self._counts:
                self._counts[answer.reason.value] += 1
                self._last_fault = f"{answer.reason}: {answer.detail}"


def _llm_reasons() -> tuple[str, ...]:
    return tuple(reason.value for reason in Reason if reason.name.startswith("LLM_") and reason is not Reason.LLM_VOTE)
