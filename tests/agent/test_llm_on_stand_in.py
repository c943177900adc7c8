"""The language model on the stand-in server: every fault is an abstention with its reason, within the deadline."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psutil
import pytest

from agent.ollama.server import Standin, serve_in_thread
from agent.ollama.tokens import Split
from strategies.answers import AnswerMemory
from strategies.features import FeatureSpec, Group
from strategies.llm import LanguageModel, LanguageModelConfig
from strategies.llm.ollama_chat import OllamaChat
from strategies.strategy import Abstention, Observations, Opinion, Reason

SPEC = FeatureSpec((Group("returns", "returns", {"horizons": [1, 4, 16], "unit": 16}),), 3600.0)
CLOSE = datetime(2024, 3, 1, 12, tzinfo=UTC)
DEADLINE_S = 0.4
SLACK_S = 0.2
"""How much later than its deadline an answer may come: sockets are closed and the loop gets its turn."""

Answers = Sequence[Opinion | Abstention]


def observe(count: int, *, hour: int = 0, position: int = 0) -> Observations:
    return Observations(
        symbols=[f"S{place}" for place in range(count)],
        close_time=CLOSE + timedelta(hours=hour),
        features_SF=np.linspace(-6.0, 6.0, count * 3).reshape(count, 3),
        positions_S=np.full(count, position, dtype=np.int8),
    )


def on_stand_in(
    work: Callable[[LanguageModel, Standin], Awaitable[Any]],
    standin: Standin | None = None,
    *,
    faults: Sequence[str] = (),
    warm: bool = True,
    book: AnswerMemory | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Any:
    """Run `work` with a loaded model and the faults that are set after that; look that nothing is left on the wire."""
    standin = standin or Standin(parallel=4)
    given = {"model": "tandem", "digest": standin.digest("tandem"), "deadline_s": DEADLINE_S, "breaker_pause_s": 30.0}

    async def main(url: str) -> Any:
        config = LanguageModelConfig(**given | {"host": url} | settings)
        model = LanguageModel(SPEC, config, server=OllamaChat(config), book=book, clock=clock)
        try:
            if warm:
                assert await model.warm_up()
            standin.set_faults(*faults)
            return await work(model, standin)
        finally:
            await model.aclose()
            assert model.status().in_flight == 0

    with serve_in_thread(standin) as url:
        return asyncio.run(main(url))


def reasons(answers: Answers) -> list[Reason]:
    return [answer.reason for answer in answers]


async def timed(answers: Awaitable[Answers]) -> tuple[Answers, float]:
    began = time.monotonic()
    return await answers, time.monotonic() - began


FAULTS = {
    "hang": Reason.LLM_TIMEOUT,
    "dribble=0.05": Reason.LLM_TIMEOUT,
    "rubbish": Reason.LLM_BAD_ANSWER,
    "rubbish_content": Reason.LLM_BAD_ANSWER,
    "wrong_schema=key": Reason.LLM_BAD_ANSWER,
    "wrong_schema=value": Reason.LLM_BAD_ANSWER,
    "wrong_schema=extra": Reason.LLM_BAD_ANSWER,
    "wrong_schema=type": Reason.LLM_BAD_ANSWER,
    "wrong_schema=list": Reason.LLM_BAD_ANSWER,
    "wrong_schema=twice": Reason.LLM_BAD_ANSWER,
    "missing_model": Reason.LLM_WRONG_MODEL,
    "drop": Reason.LLM_UNREACHABLE,
    "queue_full": Reason.LLM_BUSY,
    "mid_stream_error": Reason.LLM_UNREACHABLE,
    "truncated": Reason.LLM_BAD_ANSWER,
    "low_mass": Reason.LLM_LOW_MASS,
    "wrong_digest": Reason.LLM_WRONG_MODEL,
    "slow_load=60": Reason.LLM_WARMING,
    "hang:/api/tags": Reason.LLM_TIMEOUT,
    "rubbish:/api/tags": Reason.LLM_BAD_ANSWER,
    "drop:/api/tags": Reason.LLM_UNREACHABLE,
    "hang:/api/ps": Reason.LLM_TIMEOUT,
    "rubbish:/api/ps": Reason.LLM_BAD_ANSWER,
    "drop:/api/ps": Reason.LLM_UNREACHABLE,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_abstention_with_its_reason_within_the_deadline(fault: str) -> None:
    async def work(model: LanguageModel, _standin: Standin) -> None:
        answers, took_s = await timed(model.opinions(observe(2)))
        assert reasons(answers) == [FAULTS[fault]] * 2, answers
        assert all(isinstance(answer, Abstention) for answer in answers)
        assert took_s < DEADLINE_S + SLACK_S
        assert model.counters[FAULTS[fault].value] == 2

    on_stand_in(work, faults=[fault], book=AnswerMemory())


def test_a_server_without_log_probabilities_gives_a_target_and_no_probabilities() -> None:
    async def work(model: LanguageModel, _standin: Standin) -> None:
        answers = await model.opinions(observe(2))
        assert [isinstance(answer, Opinion) and not answer.probabilities for answer in answers] == [True, True]
        assert model.counters["without_logprobs"] == 2

    on_stand_in(work, faults=["no_logprobs"])


@pytest.mark.parametrize("split", ["word", "pieces", "mixed"])
def test_probabilities_are_those_of_the_server_however_it_splits_words(split: Split) -> None:
    said = {"SELL": 0.15, "HOLD": 0.25, "BUY": 0.6}

    async def work(model: LanguageModel, _standin: Standin) -> None:
        [opinion] = await model.opinions(observe(1, position=1))
        assert isinstance(opinion, Opinion)
        assert opinion.probabilities == pytest.approx({0: 0.15, 1: 0.85}, abs=1e-6)
        assert opinion.detail["mass"] == pytest.approx(0.995, abs=1e-3)

    on_stand_in(work, Standin(lambda _question: said, split=split))


def test_a_model_is_loaded_once_and_kept_and_asked_with_the_same_options() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        for hour in range(3):
            answers = await model.opinions(observe(3, hour=hour))
            assert all(isinstance(answer, Opinion) for answer in answers)
        assert standin.counters["load"] == 1

    on_stand_in(work)


def test_a_load_that_takes_longer_than_the_deadline_is_waited_for_beside_the_closes() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        for hour in range(2):
            answers, took_s = await timed(model.opinions(observe(2, hour=hour)))
            assert reasons(answers) == [Reason.LLM_WARMING] * 2
            assert took_s < SLACK_S
        assert await model.warm_up()
        assert standin.counters["load"] == 1
        assert all(isinstance(answer, Opinion) for answer in await model.opinions(observe(2, hour=2)))

    on_stand_in(work, Standin(load_s=1.0, parallel=4), warm=False)


def test_a_server_that_was_restarted_is_warmed_up_again() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        standin.restart()
        assert reasons(await model.opinions(observe(2))) == [Reason.LLM_WARMING] * 2
        assert await model.warm_up()
        assert all(isinstance(answer, Opinion) for answer in await model.opinions(observe(2)))

    on_stand_in(work)


def test_the_breaker_opens_and_recovers() -> None:
    now = [0.0]

    async def work(model: LanguageModel, standin: Standin) -> None:
        standin.set_faults("hang")
        assert reasons(await model.opinions(observe(4))) == [Reason.LLM_TIMEOUT] * 4
        asked = len(standin.asked())
        answers, took_s = await timed(model.opinions(observe(4, hour=1)))
        assert reasons(answers) == [Reason.LLM_BREAKER_OPEN] * 4
        assert took_s < SLACK_S
        assert len(standin.asked()) == asked
        now[0] += 31.0
        answers, took_s = await timed(model.opinions(observe(4, hour=2)))
        assert reasons(answers) == [Reason.LLM_BREAKER_OPEN] * 4
        assert took_s < SLACK_S
        assert not await model.warm_up()
        assert len(standin.asked()) == asked + 1  # one probe, for which the close did not wait
        now[0] += 31.0
        standin.set_faults()
        assert reasons(await model.opinions(observe(4, hour=2))) == [Reason.LLM_BREAKER_OPEN] * 4
        assert await model.warm_up()
        assert all(isinstance(answer, Opinion) for answer in await model.opinions(observe(4, hour=3)))
        assert (model.status().state, model.status().failures) == ("ready", 0)

    on_stand_in(work, clock=lambda: now[0])


def test_late_answers_are_counted_and_their_clients_have_left() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        answers, took_s = await timed(model.opinions(observe(3)))
        assert reasons(answers) == [Reason.LLM_TIMEOUT] * 3
        assert took_s < DEADLINE_S + SLACK_S
        assert (model.counters["late"], model.counters["answered"]) == (3, 0)
        await _until(lambda: standin.in_flight == 0)
        assert [seen.outcome for seen in standin.asked()[-3:]] == ["left"] * 3

    on_stand_in(work, faults=["dribble=0.1"])


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 -- the stand-in lives in another thread
            await asyncio.sleep(0.01)


def test_a_newer_close_ends_the_questions_of_an_older_one() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        older = asyncio.create_task(_list(model.opinions(observe(3))))
        await _until(lambda: standin.in_flight == 3)
        standin.set_faults()
        newer = await model.opinions(observe(3, hour=1))
        assert all(isinstance(answer, Opinion) for answer in newer)
        assert reasons(await older) == [Reason.LLM_SUPERSEDED] * 3
        assert model.counters["late"] == 3

    on_stand_in(work, faults=["hang"], deadline_s=5.0)


async def _list(answers: Awaitable[Answers]) -> Answers:
    return await answers


def test_symbols_wanted_first_have_answers_when_the_deadline_cuts_the_rest() -> None:
    async def work(model: LanguageModel, _standin: Standin) -> None:
        answers, took_s = await timed(model.opinions_in_order(observe(30), [29, 15]))
        assert isinstance(answers[29], Opinion)
        assert isinstance(answers[15], Opinion)
        assert Reason.LLM_BUSY in reasons(answers)
        assert took_s < DEADLINE_S + SLACK_S
        assert model.status().failures == 0

    on_stand_in(work, Standin(parallel=1, delay_s=(0.1, 0.1)), concurrency=2)


def test_questions_on_the_wire_and_memory_stay_bounded_over_many_closes() -> None:
    async def work(model: LanguageModel, standin: Standin) -> None:
        process = psutil.Process()
        sizes = []
        for hour in range(8):
            answers = await model.opinions(observe(40, hour=hour))
            assert len(answers) == 40
            assert len([task for task in asyncio.all_tasks() if task.get_name().startswith("llm")]) == 0
            sizes.append(process.memory_info().rss)
        # the stand-in may notice only during the next close that the clients of the one before have left
        assert standin.in_flight_max <= 2 * model.config.concurrency
        assert sizes[-1] - sizes[2] < 16 * 2**20

    on_stand_in(work, faults=["hang@0.01", "queue_full@0.1", "drop@0.05"], breaker_failures=1_000)


def test_answers_recorded_on_the_stand_in_replay_to_the_same_opinions() -> None:
    book = AnswerMemory()

    async def work(model: LanguageModel, _standin: Standin) -> tuple[LanguageModelConfig, Answers]:
        return model.config, await model.opinions(observe(9, position=1))

    config, live = on_stand_in(work, book=book)
    assert any(isinstance(answer, Opinion) and answer.target == 0 for answer in live)
    assert asyncio.run(_list(LanguageModel(SPEC, config, book=book).opinions(observe(9, position=1)))) == live


@pytest.mark.skipif(
    "OLLAMA_LIVE_URL" not in os.environ, reason="no real server: set OLLAMA_LIVE_URL, and OLLAMA_LIVE_MODEL"
)
def test_a_real_server_is_understood() -> None:
    """An untuned model may know nothing of its task; what it says must be read or refused, and its numbers be there."""
    model_name = os.environ.get("OLLAMA_LIVE_MODEL", "qwen3:0.6b")
    given: dict[str, Any] = {"model": model_name, "host": os.environ["OLLAMA_LIVE_URL"], "deadline_s": 60.0}

    async def main() -> None:
        unpinned = OllamaChat(LanguageModelConfig(digest="0" * 12, **given))
        config = LanguageModelConfig(digest=await unpinned.digest(), mass_min=0.0, **given)
        await unpinned.aclose()
        model = LanguageModel.on_ollama(SPEC, config)
        try:
            assert await model.warm_up(), model.status()
            answers = await model.opinions(observe(4))
        finally:
            await model.aclose()
        assert set(reasons(answers)) <= {Reason.LLM_VOTE, Reason.LLM_BAD_ANSWER}, answers
        assert [answer for answer in answers if isinstance(answer, Opinion) and answer.probabilities], answers

    asyncio.run(main())
