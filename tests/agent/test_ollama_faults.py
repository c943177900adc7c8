"""Each fault of the stand-in, as Ollama's own Python client and bare HTTP meet it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import ollama
import pytest

from agent.ollama.server import Standin, serve_in_thread

pytestmark = pytest.mark.skipif(
    "OLLAMA_LIVE_URL" in os.environ, reason="a real server does not fail on demand: unset OLLAMA_LIVE_URL"
)

ACTIONS = ("SELL", "HOLD", "BUY")
RIGHT = [[("action", word)] for word in ACTIONS]
SCHEMA = {"type": "object", "properties": {"action": {"enum": list(ACTIONS)}}, "required": ["action"]}
QUESTION: dict[str, Any] = {
    "model": "tandem",
    "messages": [{"role": "user", "content": "momentum +0.9%"}],
    "format": SCHEMA,
    "options": {"temperature": 0},
}


@dataclass(frozen=True)
class Served:
    standin: Standin
    url: str
    http: httpx.Client

    def client(self, timeout_s: float = 0.3) -> ollama.Client:
        return ollama.Client(self.url, timeout=timeout_s, trust_env=False)

    def ask(self, *, stream: bool = False, timeout_s: float = 0.3, **more: Any) -> list[ollama.ChatResponse]:
        """The parts of an answer, through Ollama's client."""
        with self.client(timeout_s) as client:
            if stream:
                return list(client.chat(**QUESTION, stream=True, **more))
            return [client.chat(**QUESTION, **more)]

    def outcome(self) -> str:
        """What became of the last request, once that is settled."""
        deadline = time.monotonic() + 5
        while self.standin.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.standin.seen[-1].outcome


@pytest.fixture
def served() -> Iterator[Served]:
    standin = Standin()
    with serve_in_thread(standin) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        yield Served(standin, url, http)


def content(parts: list[ollama.ChatResponse]) -> str:
    return "".join(part.message.content or "" for part in parts)


def word_token(answer: ollama.ChatResponse) -> dict[str, float]:
    """Probabilities of the alternatives at the action."""
    (token,) = (each for each in answer.logprobs or () if each.token in ACTIONS)
    return {each.token: math.exp(each.logprob) for each in token.top_logprobs or ()}


# the client's exceptions: which failure raises what


@pytest.mark.parametrize("stream", [False, True])
def test_a_missing_model_is_a_response_error_404(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("missing_model")
    with pytest.raises(ollama.ResponseError) as met:
        served.ask(stream=stream)
    assert met.value.status_code == 404


def test_thinking_asked_of_a_model_that_cannot_is_a_response_error_400(served: Served) -> None:
    with pytest.raises(ollama.ResponseError) as met:
        served.ask(think=True)
    assert met.value.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_response_error_503(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("503")
    with pytest.raises(ollama.ResponseError, match="server busy, please try again") as met:
        served.ask(stream=stream)
    assert met.value.status_code == 503


def test_an_error_inside_a_stream_is_a_response_error_without_a_status(served: Served) -> None:
    served.standin.set_faults("mid_stream_error")
    parts = []
    with served.client() as client, pytest.raises(ollama.ResponseError, match="unexpectedly stopped") as met:
        parts += client.chat(**QUESTION, stream=True)
    assert met.value.status_code == -1


def test_an_error_inside_a_stream_comes_after_tokens_and_status_200(served: Served) -> None:
    served.standin.set_faults("mid_stream_error")
    answer = served.http.post("/api/chat", json=QUESTION)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.status_code == 200
    assert lines[0]["message"]["content"]
    assert list(lines[-1]) == ["error"]


def test_the_same_error_without_a_stream_is_a_response_error_500(served: Served) -> None:
    served.standin.set_faults("mid_stream_error")
    with pytest.raises(ollama.ResponseError) as met:
        served.ask()
    assert met.value.status_code == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_dropped_connection_is_a_protocol_error_of_httpx(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("drop")
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
        served.ask(stream=stream)
    assert served.outcome() == "broken"


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_in_time_is_a_timeout_of_httpx_and_the_server_sees_the_client_leave(
    served: Served, *, stream: bool
) -> None:
    served.standin.set_faults("hang")
    with pytest.raises(httpx.ReadTimeout):
        served.ask(stream=stream, timeout_s=0.1)
    assert served.outcome() == "left"


def test_nobody_listening_is_a_connection_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        ollama.Client(f"http://127.0.0.1:{port}", timeout=1, trust_env=False) as client,
        pytest.raises(ConnectionError, match="Failed to connect to Ollama"),
    ):
        client.list()


@pytest.mark.parametrize("stream", [False, True])
def test_a_body_that_is_not_json_is_a_value_error(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("rubbish")
    with pytest.raises(json.JSONDecodeError):
        served.ask(stream=stream)


def test_the_client_waits_for_ever_unless_it_is_told_how_long() -> None:
    with ollama.Client("http://127.0.0.1:9", trust_env=False) as client:
        assert client._client.timeout == httpx.Timeout(None)


# a slow answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_dribbled_answer_outlives_the_clients_timeout(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("dribble=0.15" if stream else "dribble=0.003")
    begun = time.monotonic()
    parts = served.ask(stream=stream, timeout_s=0.4)
    assert json.loads(content(parts)) == {"action": "BUY"}
    assert time.monotonic() - begun > 0.4


def test_a_deadline_around_the_whole_call_ends_a_dribbled_answer(served: Served) -> None:
    served.standin.set_faults("dribble=0.05")

    async def ask() -> float:
        begun = time.monotonic()
        async with ollama.AsyncClient(served.url, timeout=0.4, trust_env=False) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.chat(**QUESTION), 0.5)
        return time.monotonic() - begun

    assert asyncio.run(ask()) < 2
    assert served.outcome() == "left"


def test_an_answer_takes_between_the_two_delays() -> None:
    standin = Standin(delay_s=(0.1, 0.2))
    with serve_in_thread(standin) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        answer = http.post("/api/chat", json=QUESTION | {"stream": False})
    assert answer.json()["total_duration"] > 0.1e9
    assert standin.seen[-1].took_s >= 0.1


# wrong answers


def test_rubbish_content_is_a_proper_answer_that_is_not_json(served: Served) -> None:
    served.standin.set_faults("rubbish_content")
    (answer,) = served.ask()
    assert answer.done_reason == "stop"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.message.content or "")


def test_content_of_the_wrong_schema_is_json_and_each_time_wrong_in_another_way(served: Served) -> None:
    served.standin.set_faults("wrong_schema")
    contents = {content(served.ask()) for _ in range(6)}
    assert len(contents) == 6
    assert all(json.loads(each, object_pairs_hook=list) not in RIGHT for each in contents)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("key", '{"the_action": "BUY"}'),
        ("value", '{"action": "MAYBE"}'),
        ("extra", '{"action": "BUY", "size": 1000000}'),
        ("type", '{"action": 1}'),
        ("list", '[{"action": "BUY"}]'),
        ("twice", '{"action": "BUY", "action": "BUY"}'),
    ],
)
def test_one_kind_of_wrong_schema_differs_in_one_way(served: Served, kind: str, wrong: str) -> None:
    served.standin.set_faults(f"wrong_schema={kind}")
    assert content(served.ask()) == wrong


@pytest.mark.parametrize("stream", [False, True])
def test_a_truncated_answer_ends_in_the_middle_and_says_length(served: Served, *, stream: bool) -> None:
    served.standin.set_faults("truncated")
    parts = served.ask(stream=stream)
    assert parts[-1].done_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(content(parts))


def test_low_mass_leaves_a_valid_answer_whose_words_are_unlikely(served: Served) -> None:
    served.standin.set_faults("low_mass=0.006")
    (answer,) = served.ask(logprobs=True, top_logprobs=20)
    assert json.loads(answer.message.content or "") == {"action": "BUY"}
    likely = word_token(answer)
    assert sum(likely[word] for word in ACTIONS) == pytest.approx(0.006)
    assert max(likely, key=lambda token: likely[token]) not in ACTIONS


def test_an_old_server_gives_no_log_probabilities_and_refuses_none(served: Served) -> None:
    served.standin.set_faults("no_logprobs")
    (answer,) = served.ask(logprobs=True, top_logprobs=50)
    assert answer.logprobs is None
    assert served.http.get("/api/version").json() == {"version": "0.12.10"}


# the wrong model, the cold model, the full queue


def test_a_wrong_digest_shows_wherever_the_model_is_named(served: Served) -> None:
    served.ask()

    def digests() -> set[str]:
        shown = served.http.post("/api/show", json={"model": "tandem"}).json()["modelfile"]
        listed = [served.http.get(path).json()["models"][0]["digest"] for path in ("/api/tags", "/api/ps")]
        return {*listed, shown.partition("sha256-")[2][:64]}

    (before,) = digests()
    served.standin.set_faults("wrong_digest")
    (after,) = digests()
    assert before != after


def test_a_missing_model_is_in_no_list(served: Served) -> None:
    served.standin.set_faults("missing_model")
    assert served.http.get("/api/tags").json() == {"models": []}
    assert served.http.post("/api/show", json={"model": "tandem"}).status_code == 404


def test_a_cold_model_answers_only_when_it_is_loaded(served: Served) -> None:
    served.ask()
    served.standin.set_faults("slow_load=0.3")
    assert served.http.get("/api/ps").json() == {"models": []}
    (answer,) = served.ask(timeout_s=5)
    assert (answer.load_duration or 0) >= 0.3e9
    (again,) = served.ask(timeout_s=5)
    assert again.load_duration == 0


def test_a_client_that_leaves_during_a_load_ends_the_load(served: Served) -> None:
    served.standin.set_faults("slow_load=0.4")
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            served.ask(timeout_s=0.2)
    assert served.outcome() == "left"
    assert served.http.get("/api/ps").json() == {"models": []}


def test_other_runner_options_load_the_model_anew(served: Served) -> None:
    for num_ctx in (512, 512, 1024):
        served.http.post("/api/chat", json=QUESTION | {"options": {"num_ctx": num_ctx}})
    assert served.standin.counters["load"] == 2
    assert served.http.get("/api/ps").json()["models"][0]["context_length"] == 1024


def test_more_requests_than_may_wait_are_refused() -> None:
    standin = Standin(delay_s=(0.3, 0.3), parallel=1, queued_max=1)

    async def ask_at_once(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
            answers = await asyncio.gather(*(http.post("/api/chat", json=QUESTION) for _ in range(4)))
        return sorted(answer.status_code for answer in answers)

    with serve_in_thread(standin) as url:
        assert asyncio.run(ask_at_once(url)) == [200, 200, 503, 503]
    assert standin.in_flight_max == 4


# the control face


def test_faults_are_set_and_shown_over_http(served: Served) -> None:
    answer = served.http.post("/stand-in/v1/faults", json={"faults": ["hang", {"name": "low_mass", "value": 0.1}]})
    assert [fault["name"] for fault in answer.json()["faults"]] == ["hang", "low_mass"]
    assert served.http.get("/stand-in/v1/faults").json() == answer.json()
    assert served.http.post("/stand-in/v1/faults", json={"faults": []}).json() == {"faults": []}
    assert json.loads(content(served.ask())) == {"action": "BUY"}


@pytest.mark.parametrize(
    "fault", ["hangg", "dribble=-1", "dribble=soon", "hang=3", "wrong_schema=x", {"name": "hang", "time": 1}, 7, None]
)
def test_a_fault_that_is_none_is_refused_and_changes_nothing(served: Served, fault: object) -> None:
    served.standin.set_faults("no_logprobs")
    answer = served.http.post("/stand-in/v1/faults", json={"faults": [fault]})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("fault")
    assert [each.name for each in served.standin.plan.faults] == ["no_logprobs"]


def test_a_fault_with_a_count_is_over_after_it(served: Served) -> None:
    served.standin.set_faults("503*2")
    question = QUESTION | {"stream": False}
    assert [served.http.post("/api/chat", json=question).status_code for _ in range(4)] == [503, 503, 200, 200]


def test_a_fault_with_a_probability_meets_the_same_requests_on_every_run() -> None:
    def statuses() -> list[int]:
        standin = Standin(faults=["503@0.5"], seed=3)
        with serve_in_thread(standin) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
            return [http.post("/api/chat", json=QUESTION).status_code for _ in range(20)]

    first = statuses()
    assert set(first) == {200, 503}
    assert first == statuses()


def test_a_fault_can_touch_another_path(served: Served) -> None:
    served.standin.set_faults("hang:/api/tags")
    assert content(served.ask())
    with served.client(0.1) as client, pytest.raises(httpx.ReadTimeout):
        client.list()


def test_what_was_asked_and_what_became_of_it_is_told(served: Served) -> None:
    served.standin.set_faults("503*1")
    served.http.post("/api/chat", json=QUESTION)
    served.http.post("/api/chat", json=QUESTION)
    told = served.http.get("/stand-in/v1/requests").json()
    assert [(each["status"], each["outcome"], each["faults"]) for each in told["requests"]] == [
        (503, "error", ["queue_full"]),
        (200, "answered", []),
    ]
    assert told["counters"]["POST /api/chat"] == 2
    assert told["in_flight"] == 0
    assert {each["prompt"] for each in told["requests"]} == {"momentum +0.9%"}


def test_of_a_large_request_only_the_beginning_of_its_prompt_is_remembered(served: Served) -> None:
    large = QUESTION | {"messages": [{"role": "user", "content": "+1 " * 100_000}]}
    assert served.http.post("/api/chat", json=large).status_code == 200
    assert served.standin.seen[-1].body is None
    assert len(served.standin.seen[-1].prompt) == 16_384


def test_requests_are_remembered_up_to_a_limit() -> None:
    standin = Standin()
    for _ in range(2_000):
        standin.depart(standin.arrive("POST", "/api/chat"), "answered", 0.0)
    assert len(standin.seen) == 512
    assert standin.counters["POST /api/chat"] == 2_000


def test_a_server_that_starts_again_has_nothing_loaded() -> None:
    standin = Standin()
    for _ in range(2):
        with serve_in_thread(standin) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
            assert http.get("/api/ps").json() == {"models": []}
            http.post("/api/chat", json=QUESTION)
            assert len(http.get("/api/ps").json()["models"]) == 1


def test_a_stand_in_that_ends_lets_no_client_hang() -> None:
    standin = Standin(faults=["hang"])
    with ThreadPoolExecutor(1) as pool:
        with serve_in_thread(standin) as url:
            asked = pool.submit(httpx.post, f"{url}/api/chat", json=QUESTION, timeout=30, trust_env=False)
            while not standin.in_flight:
                time.sleep(0.01)
            begun = time.monotonic()
        assert asked.exception(5) is not None or asked.result().status_code == 500
    assert time.monotonic() - begun < 5
    assert standin.seen[-1].outcome == "stopped"
