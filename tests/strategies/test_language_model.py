"""The language model against a scripted server on loopback, with the real client on a real wire."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_ollama import DIGEST, MODEL, Reply, ScriptedOllama, chat_body, scripted
from tiny_models import SPEC, WIDTH

from strategies.answers import AnswerMemory
from strategies.llm import LanguageModel, LanguageModelConfig, LanguageModelError
from strategies.llm.server import Reply as ServedReply
from strategies.prompt import ANSWER_SCHEMA, PROMPT_VERSION, Template, read_back
from strategies.strategy import Abstention, Observations, Opinion, Reason

CLOSE = datetime(2024, 3, 1, 12, tzinfo=UTC)

Answers = Sequence[Opinion | Abstention]


def observe(
    count: int = 1, position: int = 0, *, close: datetime = CLOSE, within_s: float | None = None
) -> Observations:
    features = np.zeros((count, WIDTH))
    features[:, 0] = np.linspace(-2.0, 2.0, count)
    return Observations(
        symbols=[f"S{place}" for place in range(count)],
        close_time=close,
        features_SF=features,
        positions_S=np.full(count, position, dtype=np.int8),
        deadline_monotonic_s=None if within_s is None else time.monotonic() + within_s,
    )


def config(host: str = "http://127.0.0.1:9", **changes: Any) -> LanguageModelConfig:
    settings = {"model": MODEL, "digest": DIGEST, "host": host, "deadline_s": 0.6, "breaker_pause_s": 30.0}
    return LanguageModelConfig(**settings | changes)


def on_server(
    work: Callable[[LanguageModel, ScriptedOllama], Awaitable[Any]],
    *,
    book: AnswerMemory | None = None,
    warm: bool = True,
    clock: Callable[[], float] = time.monotonic,
    script: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Run `work` with a model that has been loaded, then with the script; everything is closed after it."""
    from strategies.llm.ollama_chat import OllamaChat  # noqa: PLC0415 -- as late as the program imports it

    async def main() -> Any:
        async with scripted() as server:
            chosen = config(server.url, **settings)
            model = LanguageModel(SPEC, chosen, server=OllamaChat(chosen), book=book, clock=clock)
            try:
                if warm:
                    assert await model.warm_up()
                    server.seen.clear()
                for name, value in (script or {}).items():
                    setattr(server, name, value)
                return await work(model, server)
            finally:
                await model.aclose()
                assert model.status().in_flight == 0

    return asyncio.run(main())


def ask_once(reply: Reply | None = None, *, count: int = 1, position: int = 0, **arguments: Any) -> Answers:
    """Return what the model says where every question gets one reply."""
    script = {} if reply is None else {"chat": lambda _number, _body: reply}

    async def work(model: LanguageModel, _server: ScriptedOllama) -> Answers:
        return await model.opinions(observe(count, position))

    return list(on_server(work, script=script, **arguments))


def reasons(answers: Answers) -> list[Reason]:
    return [answer.reason for answer in answers]


def test_an_answer_becomes_probabilities_of_targets_a_note_and_numbers() -> None:
    [opinion] = ask_once(Reply(chat_body("BUY", {"SELL": 0.08, "HOLD": 0.08, "BUY": 0.64})))
    assert isinstance(opinion, Opinion)
    assert (opinion.target, opinion.reason, opinion.note) == (1, Reason.LLM_VOTE, "because")
    assert opinion.probabilities == pytest.approx({0: 0.2, 1: 0.8})
    assert opinion.detail["mass"] == pytest.approx(0.8)
    assert {"p_sell": 0.1, "p_hold": 0.1, "p_buy": 0.8}.items() <= {
        name: round(value, 9) for name, value in opinion.detail.items()
    }.items()
    assert math.isfinite(opinion.detail["latency_s"])


@pytest.mark.parametrize(
    ("action", "position", "shorts", "target"),
    [
        ("BUY", 0, False, 1),
        ("BUY", 1, False, 1),
        ("SELL", 1, False, 0),
        ("SELL", 0, False, 0),
        ("HOLD", 1, False, 1),
        ("HOLD", 0, False, 0),
        ("SELL", 1, True, -1),
        ("SELL", 0, True, -1),
        ("HOLD", -1, True, -1),
        ("BUY", -1, True, 1),
        ("HOLD", -1, False, -1),
    ],
)
@pytest.mark.parametrize("logprobs", [True, False])
def test_words_mean_targets_seen_from_the_position(
    action: str, position: int, target: int, *, shorts: bool, logprobs: bool
) -> None:
    [opinion] = ask_once(Reply(chat_body(action, logprobs=logprobs)), position=position, shorts=shorts)
    assert isinstance(opinion, Opinion)
    assert opinion.target == target


def test_two_words_for_one_target_add_up() -> None:
    body = chat_body("SELL", {"SELL": 0.4, "HOLD": 0.3, "BUY": 0.3})
    [opinion] = ask_once(Reply(body), position=1)
    assert isinstance(opinion, Opinion)
    assert opinion.target == 1  # keeping and buying are the same thing for who is long
    assert opinion.probabilities == pytest.approx({0: 0.4, 1: 0.6})


def test_targets_that_are_as_likely_keep_the_position() -> None:
    body = chat_body("SELL", {"SELL": 0.4, "HOLD": 0.2, "BUY": 0.4})
    [opinion] = ask_once(Reply(body), position=0, shorts=True)
    assert isinstance(opinion, Opinion)
    assert opinion.target == 0


def test_the_calibration_temperature_flattens_probabilities() -> None:
    body = chat_body("BUY", {"SELL": 0.1, "HOLD": 0.1, "BUY": 0.8})
    [opinion] = ask_once(Reply(body), temperature=2.0)
    assert isinstance(opinion, Opinion)
    weights = [math.sqrt(p) for p in (0.1, 0.1, 0.8)]
    assert opinion.probabilities[1] == pytest.approx(weights[2] / sum(weights))


def test_without_log_probabilities_there_are_no_probabilities() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        [opinion] = await model.opinions(observe())
        assert isinstance(opinion, Opinion)
        assert (opinion.target, dict(opinion.probabilities)) == (1, {})
        assert "mass" not in opinion.detail
        assert model.counters["without_logprobs"] == 1

    on_server(work, script={"chat": lambda *_: Reply(chat_body(logprobs=False))})


def test_the_request_is_the_documented_one_and_carries_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret-key")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        await model.opinions(observe())
        assert not any("secret-key" in str(one) for one in server.seen)
        [seen] = server.asked()
        body = seen.body
        messages = body.pop("messages")
        assert read_back(messages) == Template(SPEC).told(observe().features_SF[0], 0)
        assert body == {
            "model": MODEL,
            "stream": False,
            "think": False,
            "format": ANSWER_SCHEMA,
            "options": {"temperature": 0.0, "seed": 0, "num_ctx": 2048, "num_predict": 96, "repeat_penalty": 1.0},
            "keep_alive": -1,
            "logprobs": True,
            "top_logprobs": 20,
            "tools": [],
        }

    on_server(work)


def content(text: str, **changes: Any) -> Reply:
    return Reply(chat_body(message={"role": "assistant", "content": text}, **changes))


CLIENT_ERRORS: dict[str, tuple[Reply, Reason]] = {
    "model missing": (Reply({"error": "model 'x' not found"}, 404), Reason.LLM_WRONG_MODEL),
    "think unsupported": (Reply({"error": "x does not support thinking"}, 400), Reason.LLM_WRONG_MODEL),
    "queue full": (Reply({"error": "server busy, please try again"}, 503), Reason.LLM_BUSY),
    "too many requests": (Reply({"error": "slow down"}, 429), Reason.LLM_BUSY),
    "runner died": (Reply({"error": "model runner has unexpectedly stopped"}, 500), Reason.LLM_UNREACHABLE),
    "an error that is a list": (Reply(["boom"], 500), Reason.LLM_BAD_ANSWER),
    "not allowed": (Reply({"error": "no"}, 401), Reason.LLM_UNREACHABLE),
    "hang": (Reply(hang=True), Reason.LLM_TIMEOUT),
    "late": (Reply(chat_body(), delay_s=5.0), Reason.LLM_TIMEOUT),
    "dribble": (Reply(chat_body(), drip_s=0.05), Reason.LLM_TIMEOUT),
    "drop": (Reply(chat_body(), drop_after=40), Reason.LLM_UNREACHABLE),
    "rubbish": (Reply(b"<html>hello</html>"), Reason.LLM_BAD_ANSWER),
    "not UTF-8": (Reply(b'{"message": "\xff\xfe"}'), Reason.LLM_BAD_ANSWER),
    "empty body": (Reply(b""), Reason.LLM_BAD_ANSWER),
    "a list": (Reply([1, 2]), Reason.LLM_BAD_ANSWER),
    "an error with status 200": (Reply({"error": "boom"}), Reason.LLM_BAD_ANSWER),
    "a deep body": (Reply(b"[" * 200_000), Reason.LLM_BAD_ANSWER),
    "a huge body": (Reply(chat_body(x="y" * 5_000_000)), Reason.LLM_BAD_ANSWER),
    "a compressed body": (
        Reply(gzip.compress(json.dumps(chat_body()).encode()), headers={"Content-Encoding": "gzip"}),
        Reason.LLM_BAD_ANSWER,
    ),
    "another model": (Reply(chat_body(model="other:latest")), Reason.LLM_WRONG_MODEL),
    "no message": (Reply({"model": MODEL, "done": True}), Reason.LLM_BAD_ANSWER),
    "no content": (Reply(chat_body(message={"role": "assistant"})), Reason.LLM_BAD_ANSWER),
    "prose": (content("I would BUY."), Reason.LLM_BAD_ANSWER),
    "a NUL, which no database on a server keeps": (content('{"action": "BUY", "reason": "\0"}'), Reason.LLM_BAD_ANSWER),
    "extra key": (content('{"action": "BUY", "reason": "", "size": 9}'), Reason.LLM_BAD_ANSWER),
    "unknown action": (content('{"action": "SHORT", "reason": ""}'), Reason.LLM_BAD_ANSWER),
    "endless": (content("x" * 100_000), Reason.LLM_BAD_ANSWER),
    "cut off": (Reply(chat_body(done_reason="length")), Reason.LLM_BAD_ANSWER),
    "no reason to stop": (Reply(chat_body(done_reason=None)), Reason.LLM_BAD_ANSWER),
    "low mass": (Reply(chat_body("BUY", {"SELL": 0.001, "HOLD": 0.002, "BUY": 0.003})), Reason.LLM_LOW_MASS),
    "no mass": (Reply(chat_body("BUY", {"SELL": 0.0, "HOLD": 0.0, "BUY": 0.0})), Reason.LLM_LOW_MASS),
    "word against numbers": (
        Reply(chat_body("SELL", {"SELL": 0.1, "HOLD": 0.1, "BUY": 0.8})),
        Reason.LLM_BAD_ANSWER,
    ),
    "NaN for a probability": (
        Reply(json.dumps(chat_body()).replace("-0.5108256237659907", "NaN").encode()),
        Reason.LLM_BAD_ANSWER,
    ),
    "more than everything": (Reply(chat_body("BUY", {"SELL": 0.9, "HOLD": 0.9, "BUY": 0.95})), Reason.LLM_BAD_ANSWER),
}


@pytest.mark.parametrize("name", CLIENT_ERRORS)
def test_whatever_goes_wrong_is_an_abstention_with_its_reason_within_the_deadline(name: str) -> None:
    reply, reason = CLIENT_ERRORS[name]

    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        began = time.monotonic()
        answers = await model.opinions(observe())
        assert time.monotonic() - began < model.config.deadline_s + 0.2
        [abstention] = answers
        assert isinstance(abstention, Abstention), abstention
        assert abstention.reason is reason, abstention
        assert model.counters[reason.value] == 1
        assert abstention.detail.isprintable()
        assert 0 < len(abstention.detail) <= 300
        assert model.status().fault.startswith(reason.value)

    on_server(work, script={"chat": lambda *_: reply})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.chat = lambda *_: Reply({}, status, {"Location": f"{server.url}/elsewhere"})
        [abstention] = await model.opinions(observe())
        assert isinstance(abstention, Abstention)
        assert (abstention.reason, f"status {status}" in abstention.detail) == (Reason.LLM_UNREACHABLE, True)
        assert not server.asked("/elsewhere")

    on_server(work)


def test_nobody_listening_is_unreachable() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> bool:
        assert reasons(await model.opinions(observe(2))) == [Reason.LLM_WARMING] * 2
        assert not await model.warm_up()
        assert (
            reasons(await model.opinions(observe(2, close=CLOSE + timedelta(hours=1)))) == [Reason.LLM_UNREACHABLE] * 2
        )
        assert model.status().state == "cold"
        return True

    async def main() -> bool:
        model = LanguageModel.on_ollama(SPEC, config())
        try:
            return await work(model, ScriptedOllama())
        finally:
            await model.aclose()

    assert asyncio.run(main())


def test_the_deadline_of_the_daemon_counts_where_it_is_shorter() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        began = time.monotonic()
        answers = await model.opinions(observe(within_s=0.5))
        assert reasons(answers) == [Reason.LLM_TIMEOUT]
        assert 0.2 < time.monotonic() - began < 0.5
        await asyncio.sleep(0.05)
        assert server.left == 1  # the server saw the client go, and can stop generating

    on_server(work, deadline_s=5.0, reserve_s=0.2, script={"chat": lambda *_: Reply(hang=True)})


def test_with_no_time_left_nothing_is_asked() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        assert reasons(await model.opinions(observe(within_s=0.1))) == [Reason.LLM_TIMEOUT]
        assert not server.seen

    on_server(work, reserve_s=0.5)


def test_a_server_that_does_not_say_what_it_serves_times_out() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        assert reasons(await model.opinions(observe(3))) == [Reason.LLM_TIMEOUT] * 3
        assert not server.asked()
        assert model.status().failures == 1

    on_server(work, script={"tags": lambda: Reply(hang=True)})


def test_symbols_are_asked_in_the_order_wanted_and_at_most_so_many_at_once() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        observations = observe(9)
        answers = await model.opinions_in_order(observations, [5, 2])
        assert [answer.symbol for answer in answers] == list(observations.symbols)
        assert all(isinstance(answer, Opinion) for answer in answers)
        first = [read_back(one.body["messages"]).numbers["returns.last_1"] for one in server.asked()]
        rows = [5, 2, 0, 1, 3, 4, 6, 7, 8]
        assert sorted(first[:2]) == sorted(observations.features_SF[rows[:2], 0])
        assert set(first[2:4]) <= set(observations.features_SF[rows[2:5], 0])
        assert server.in_flight_max == 2

    on_server(work, concurrency=2, script={"chat": lambda *_: Reply(chat_body(), delay_s=0.02)})


def test_symbols_that_were_not_reached_before_the_deadline_say_so() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        answers = await model.opinions_in_order(observe(5), [3])
        assert isinstance(answers[3], Opinion)
        assert sorted(reasons([answers[row] for row in (0, 1, 2, 4)])) == [
            Reason.LLM_BUSY,
            Reason.LLM_BUSY,
            Reason.LLM_BUSY,
            Reason.LLM_TIMEOUT,
        ]
        assert model.counters["late"] == 1
        assert model.status().failures == 0  # it answered one of them: slow, not broken

    on_server(work, concurrency=1, script={"chat": lambda number, _: Reply(chat_body(), delay_s=5.0 * (number > 0))})


def test_rows_that_cannot_be_used_are_not_asked_about() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        observations = observe(3)
        observations.features_SF[0] = np.nan
        observations.features_SF[2, 1] = np.inf
        answers = await model.opinions(observations)
        assert reasons(answers) == [Reason.WARMING_UP, Reason.LLM_VOTE, Reason.BAD_FEATURES]
        assert len(server.asked()) == 1

    on_server(work)


def test_while_the_model_is_loaded_every_symbol_abstains_and_the_load_is_no_failure() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        assert reasons(await model.opinions(observe(2))) == [Reason.LLM_WARMING] * 2
        assert model.status().state == "warming"
        later = observe(2, close=CLOSE + timedelta(hours=1))
        assert reasons(await model.opinions(later)) == [Reason.LLM_WARMING] * 2
        assert await model.warm_up()
        assert model.status().state == "ready"
        assert len(server.asked()) == 1  # one load, whoever waits for it
        assert isinstance((await model.opinions(later))[0], Opinion)

    on_server(work, warm=False, script={"chat": lambda *_: Reply(chat_body(), delay_s=0.3)}, deadline_s=2.0)


def test_a_model_that_the_server_has_unloaded_is_loaded_again_before_it_is_asked() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.ps = lambda: Reply({"models": []})
        assert reasons(await model.opinions(observe(2))) == [Reason.LLM_WARMING] * 2
        assert await model.warm_up()
        server.ps = ScriptedOllama().ps
        assert isinstance((await model.opinions(observe()))[0], Opinion)

    on_server(work)


def test_a_load_that_fails_is_tried_again_after_the_pause() -> None:
    now = [100.0]

    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.chat = lambda *_: Reply({"error": "out of memory"}, 500)
        assert not await model.warm_up()
        seen = len(server.seen)
        assert reasons(await model.opinions(observe())) == [Reason.LLM_UNREACHABLE]
        assert len(server.seen) == seen
        now[0] += 31.0
        server.chat = lambda *_: Reply(chat_body())
        assert reasons(await model.opinions(observe())) == [Reason.LLM_WARMING]
        assert await model.warm_up()
        assert model.status().failures == 0

    on_server(work, warm=False, clock=lambda: now[0])


def test_a_load_goes_on_where_its_caller_gives_up() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await model.warm_up()
        assert model.status().state == "warming"
        assert await model.warm_up()
        assert (len(server.asked()), server.left) == (1, 0)

    on_server(work, warm=False, script={"chat": lambda *_: Reply(chat_body(), delay_s=0.3)})


class BlockingServer:
    """Holds up the whole event loop while it answers, as any other code of the process may."""

    async def chat(self, _messages: object) -> ServedReply:
        time.sleep(0.3)  # noqa: ASYNC251 -- the point
        return ServedReply(json.dumps({"action": "BUY", "reason": ""}), "stop", 0.3)

    async def digest(self) -> str:
        return DIGEST

    async def is_loaded(self) -> bool:
        return True

    async def aclose(self) -> None:
        pass


def test_an_answer_after_the_deadline_does_not_count_even_where_nothing_could_stop_it() -> None:
    async def main() -> None:
        model = LanguageModel(SPEC, config(deadline_s=0.2), server=BlockingServer())
        assert await model.warm_up()
        assert reasons(await model.opinions(observe())) == [Reason.LLM_TIMEOUT]
        assert (model.counters["late"], model.counters["answered"]) == (1, 0)
        await model.aclose()

    asyncio.run(main())


def test_a_load_has_a_time_limit_of_its_own() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        assert not await model.warm_up()
        assert reasons(await model.opinions(observe())) == [Reason.LLM_TIMEOUT]

    on_server(work, warm=False, warm_up_s=0.1, script={"chat": lambda *_: Reply(hang=True)})


def test_a_model_with_another_digest_is_neither_loaded_nor_asked() -> None:
    other = "f" * 64

    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.tags = lambda: Reply({"models": [{"model": MODEL, "digest": other}]})
        [abstention] = await model.opinions(observe())
        assert isinstance(abstention, Abstention)
        assert abstention.reason is Reason.LLM_WRONG_MODEL
        assert other[:12] in abstention.detail
        assert not server.asked()
        assert model.status().failures == 0

    on_server(work)


def test_a_wrong_model_at_the_start_is_not_loaded() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        assert not await model.warm_up()
        assert not server.asked()
        assert model.status().state == "wrong_model"
        assert reasons(await model.opinions(observe())) == [Reason.LLM_WRONG_MODEL]

    on_server(work, warm=False, script={"tags": lambda: Reply({"models": []})})


@pytest.mark.parametrize("digest", [DIGEST, f"sha256:{DIGEST}", DIGEST[:12], DIGEST[:20].upper()])
def test_a_digest_may_be_pinned_by_its_beginning(digest: str) -> None:
    assert isinstance(ask_once(digest=digest)[0], Opinion)


@pytest.mark.parametrize("pin", [{"prompt_version": "0"}, {"template_hash": "0" * 64}])
def test_a_model_that_was_tuned_on_other_prompts_is_not_asked(pin: dict[str, str]) -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        assert not await model.warm_up()
        assert reasons(await model.opinions(observe(2))) == [Reason.LLM_WRONG_MODEL] * 2
        assert not server.seen
        assert model.status().state == "wrong_model"

    on_server(work, warm=False, **pin)


def test_the_breaker_opens_pauses_probes_with_one_question_and_recovers() -> None:
    now = [0.0]

    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.chat = lambda *_: Reply({"error": "boom"}, 500)
        answers = await model.opinions(observe(5))
        assert reasons(answers) == [Reason.LLM_UNREACHABLE] * 3 + [Reason.LLM_BREAKER_OPEN] * 2
        assert model.status().state == "paused"
        server.seen.clear()
        assert set(reasons(await model.opinions(observe(5)))) == {Reason.LLM_BREAKER_OPEN}
        assert not server.seen
        now[0] += 31.0
        assert model.status().state == "probing"
        assert set(reasons(await model.opinions(observe(5)))) == {Reason.LLM_BREAKER_OPEN}
        assert not await model.warm_up()
        assert len(server.asked()) == 1
        assert model.status().state == "paused"
        now[0] += 31.0
        server.chat = lambda *_: Reply(chat_body())
        assert set(reasons(await model.opinions(observe(5)))) == {Reason.LLM_BREAKER_OPEN}
        assert await model.warm_up()
        assert all(isinstance(answer, Opinion) for answer in await model.opinions(observe(5)))
        assert (model.status().state, model.status().failures) == ("ready", 0)

    on_server(work, clock=lambda: now[0], concurrency=1)


def test_a_server_that_hangs_opens_the_breaker_at_the_deadline() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        assert reasons(await model.opinions(observe(4))) == [Reason.LLM_TIMEOUT] * 4
        assert model.counters["late"] == 4
        assert reasons(await model.opinions(observe(4))) == [Reason.LLM_BREAKER_OPEN] * 4

    on_server(work, script={"chat": lambda *_: Reply(hang=True)}, deadline_s=0.2)


def test_no_close_waits_for_the_probe_of_a_server_that_still_hangs() -> None:
    now = [0.0]

    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        await model.opinions(observe(4))
        for _ in range(3):
            now[0] += 300.0
            began = time.monotonic()
            assert set(reasons(await model.opinions(observe(4)))) == {Reason.LLM_BREAKER_OPEN}
            assert time.monotonic() - began < model.config.deadline_s / 2
            assert server.in_flight <= 1
            assert not await model.warm_up()
        assert model.status().state == "paused"

    on_server(work, script={"chat": lambda *_: Reply(hang=True)}, clock=lambda: now[0])


@pytest.mark.parametrize("reply", [Reply({"error": "busy"}, 503), content("prose")], ids=["busy", "bad answers"])
def test_a_server_that_is_busy_or_answers_badly_is_not_broken(reply: Reply) -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        await model.opinions(observe(6))
        assert (model.status().failures, model.status().state) == (0, "ready")

    on_server(work, script={"chat": lambda *_: reply})


def test_a_newer_close_ends_the_round_of_an_older_one_and_its_answers_do_not_count() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        server.chat = lambda number, _: Reply(chat_body(), hang=number >= 1)
        older = asyncio.create_task(_list(model.opinions(observe(3))))
        await asyncio.sleep(0.15)
        server.chat = lambda *_: Reply(chat_body("SELL"))
        newer = await model.opinions(observe(3, close=CLOSE + timedelta(hours=1)))
        assert reasons(newer) == [Reason.LLM_VOTE] * 3
        async with asyncio.timeout(0.5):
            assert reasons(await older) == [Reason.LLM_SUPERSEDED] * 3
        assert model.counters["late"] == 3
        assert server.left == 2
        assert reasons(await model.opinions(observe())) == [Reason.LLM_SUPERSEDED]

    on_server(work, deadline_s=5.0)


async def _list(answers: Awaitable[Answers]) -> Answers:
    return await answers


def test_a_caller_that_gives_up_leaves_no_question_behind() -> None:
    async def work(model: LanguageModel, server: ScriptedOllama) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await model.opinions(observe(20))
        assert model.status().in_flight == 0
        await asyncio.sleep(0.05)
        assert server.in_flight == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("llm")]

    on_server(work, script={"chat": lambda *_: Reply(hang=True)}, deadline_s=5.0)


def test_a_round_holds_no_more_tasks_than_questions_on_the_wire() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        before = len(asyncio.all_tasks())
        asking = asyncio.create_task(_list(model.opinions(observe(500))))
        most = 0
        while not asking.done():
            most = max(most, model.status().in_flight)
            # each question has a task here and one of the scripted server
            assert len(asyncio.all_tasks()) - before <= 2 * model.config.concurrency + 10
            await asyncio.sleep(0.005)
        assert most == model.config.concurrency
        assert len(await asking) == 500

    on_server(work, script={"chat": lambda *_: Reply(chat_body(), delay_s=0.05)})


def test_what_was_answered_live_is_answered_alike_from_the_book() -> None:
    book = AnswerMemory()
    bodies = [
        chat_body("BUY"),
        chat_body("SELL", {"SELL": 0.5, "HOLD": 0.3, "BUY": 0.1}),
        chat_body("HOLD", logprobs=False),
        chat_body("BUY", {"SELL": 0.001, "HOLD": 0.0, "BUY": 0.01}),
        chat_body("BUY", done_reason="length"),
        chat_body(message={"role": "assistant", "content": "y" * 5_000}),
    ]

    async def work(model: LanguageModel, _server: ScriptedOllama) -> Answers:
        return await model.opinions(observe(6, 1))

    settings = {"temperature": 1.7, "shorts": True}
    live = on_server(
        work, book=book, script={"chat": lambda number, _: Reply(bodies[number])}, concurrency=1, **settings
    )
    assert len(book) == 6
    replayed = asyncio.run(_list(LanguageModel(SPEC, config(**settings), book=book).opinions(observe(6, 1))))
    assert list(replayed) == list(live)
    assert {answer.reason for answer in live} == {Reason.LLM_VOTE, Reason.LLM_LOW_MASS, Reason.LLM_BAD_ANSWER}


def test_a_prompt_that_was_never_asked_is_not_recorded() -> None:
    model = LanguageModel(SPEC, config(), book=AnswerMemory())
    assert reasons(asyncio.run(_list(model.opinions(observe(2))))) == [Reason.LLM_NOT_RECORDED] * 2
    assert (model.counters["llm_not_recorded"], model.status().state) == (2, "replay")
    assert asyncio.run(model.warm_up())


def test_answers_of_another_model_are_not_replayed() -> None:
    book = AnswerMemory()
    ask_once(book=book)
    model = LanguageModel(SPEC, config(digest="f" * 12), book=book)
    assert reasons(asyncio.run(_list(model.opinions(observe())))) == [Reason.LLM_NOT_RECORDED]


def test_a_language_model_needs_a_server_or_a_book() -> None:
    with pytest.raises(LanguageModelError, match="server to ask or recorded answers"):
        LanguageModel(SPEC, config())


def test_a_context_that_would_cut_prompts_is_refused() -> None:
    with pytest.raises(LanguageModelError, match="num_ctx"):
        LanguageModel(SPEC, config(num_ctx=256), book=AnswerMemory())


def test_status_tells_what_is_pinned_and_the_newest_answer() -> None:
    async def work(model: LanguageModel, _server: ScriptedOllama) -> None:
        await model.opinions(observe())
        status = model.status()
        assert (status.digest, status.prompt_version) == (DIGEST[:12], PROMPT_VERSION)
        assert status.template_hash == Template(SPEC).hash
        assert status.mass == pytest.approx(0.9)
        assert status.latency_s is not None

    on_server(work)


IMPORTS = "import sys, {}; print([name for name in ('ollama', 'httpx', 'strategies.llm') if name in sys.modules])"


@pytest.mark.parametrize(
    ("module", "expected"),
    [("strategies.policy", "[]"), ("strategies.prompt", "[]"), ("strategies.llm", "['strategies.llm']")],
)
def test_the_client_is_imported_where_a_server_is_asked_and_nowhere_else(module: str, expected: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(module)], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
