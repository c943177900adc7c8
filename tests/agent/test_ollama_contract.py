"""What Ollama's native API promises, asked by its own Python client and by bare HTTP.

By default of the stand-in. With OLLAMA_LIVE_URL (and OLLAMA_LIVE_MODEL) of a real server, whose loaded model is
then unloaded: what only the stand-in can show is skipped there.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import ollama
import pytest

from agent.ollama.server import Standin, serve_in_thread

LIVE_URL = os.environ.get("OLLAMA_LIVE_URL")
LIVE_MODEL = os.environ.get("OLLAMA_LIVE_MODEL", "")
PATIENCE_S = 300.0 if LIVE_URL else 10.0

SCHEMA = {
    "type": "object",
    "properties": {"action": {"type": "string", "enum": ["SELL", "HOLD", "BUY"]}},
    "required": ["action"],
    "additionalProperties": False,
}
MESSAGES = [
    {"role": "system", "content": "You trade. Answer in JSON with the key action: SELL, HOLD or BUY."},
    {"role": "user", "content": "momentum +0.8%, trend +0.4%, volatility 1.2%"},
]
GREEDY = {"temperature": 0, "num_predict": 64, "seed": 1}


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    http: httpx.Client

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json={"model": self.model} | body)

    def chat(self, **body: Any) -> dict[str, Any]:
        """An unstreamed, constrained, greedy answer."""
        question = {"messages": MESSAGES, "format": SCHEMA, "options": GREEDY, "stream": False, "think": False}
        answer = self.post("/api/chat", **question | body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if LIVE_URL is not None:
        assert LIVE_MODEL, "OLLAMA_LIVE_URL is set: name the model to ask in OLLAMA_LIVE_MODEL"
        with httpx.Client(base_url=LIVE_URL, timeout=PATIENCE_S, trust_env=False) as http:
            yield Server(LIVE_URL, LIVE_MODEL, http)
        return
    with (
        serve_in_thread(Standin(models=["tandem-test"])) as url,
        httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as http,
    ):
        yield Server(url, "tandem-test", http)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, timeout=PATIENCE_S, trust_env=False) as made:
        yield made


def can_think(server: Server) -> bool:
    return "thinking" in server.post("/api/show").json()["capabilities"]


def test_the_root_says_that_it_runs(server: Server) -> None:
    answer = server.http.get("/")
    assert (answer.status_code, answer.text) == (200, "Ollama is running")


def test_the_version_is_a_number(server: Server) -> None:
    assert re.match(r"\d+\.\d+\.\d+", server.http.get("/api/version").json()["version"])


def test_a_path_that_does_not_exist_is_404(server: Server) -> None:
    assert server.http.get("/api/no-such-thing").status_code == 404


def test_the_model_is_listed_with_its_digest(client: ollama.Client, server: Server) -> None:
    digests = {each.model: each.digest for each in client.list().models}
    digest = digests.get(server.model) or digests[f"{server.model}:latest"]
    assert re.fullmatch(r"[0-9a-f]{64}", digest or "")


def test_a_model_shows_its_template_and_what_it_can_do(client: ollama.Client, server: Server) -> None:
    shown = client.show(server.model)
    assert shown.template
    assert shown.modelfile
    assert shown.details is not None
    assert "completion" in (shown.capabilities or ())


def test_an_unstreamed_answer_is_whole_and_says_why_and_how_long(client: ollama.Client, server: Server) -> None:
    answer = client.chat(server.model, messages=MESSAGES, format=SCHEMA, options=GREEDY, think=False)
    assert json.loads(answer.message.content or "")["action"] in {"SELL", "HOLD", "BUY"}
    assert (answer.message.role, answer.done, answer.done_reason) == ("assistant", True, "stop")
    assert (answer.eval_count or 0) > 0
    assert (answer.prompt_eval_count or 0) > 0
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 0
    assert datetime.now(UTC) - datetime.fromisoformat(answer.created_at or "") < timedelta(seconds=PATIENCE_S)


def test_an_answer_is_streamed_unless_it_is_asked_whole(server: Server) -> None:
    answer = server.post("/api/chat", messages=MESSAGES, format=SCHEMA, options=GREEDY, think=False)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {line["model"] for line in lines} == {server.model}
    assert lines[-1]["done_reason"] == "stop"
    assert json.loads("".join(line["message"]["content"] for line in lines)) == json.loads(
        server.chat()["message"]["content"]
    )


def test_the_client_reads_a_stream_to_its_end(client: ollama.Client, server: Server) -> None:
    parts = list(client.chat(server.model, messages=MESSAGES, format=SCHEMA, options=GREEDY, think=False, stream=True))
    assert "action" in json.loads("".join(part.message.content or "" for part in parts))
    assert parts[-1].done_reason == "stop"


def test_json_as_a_format_gives_an_object(server: Server) -> None:
    assert isinstance(json.loads(server.chat(format="json")["message"]["content"]), dict)


def test_log_probabilities_come_for_every_token_with_their_likeliest_alternatives(
    client: ollama.Client, server: Server
) -> None:
    answer = client.chat(
        server.model, messages=MESSAGES, format=SCHEMA, options=GREEDY, think=False, logprobs=True, top_logprobs=5
    )
    tokens = answer.logprobs or ()
    assert "".join(token.token for token in tokens).strip() == (answer.message.content or "").strip()
    for token in tokens:
        top = [each.logprob for each in token.top_logprobs or ()]
        assert len(top) == 5
        assert all(first >= second for first, second in pairwise(top))
        assert max(*top, token.logprob) <= 0


def test_log_probabilities_of_a_stream_come_with_their_tokens(server: Server) -> None:
    answer = server.post(
        "/api/chat", messages=MESSAGES, format=SCHEMA, options=GREEDY, think=False, logprobs=True, top_logprobs=2
    )
    lines = [json.loads(line) for line in answer.text.splitlines()]
    content = "".join(line["message"]["content"] for line in lines)
    tokens = [token["token"] for line in lines for token in line.get("logprobs", ())]
    assert "".join(tokens).strip() == content.strip()


def test_log_probabilities_are_given_only_when_asked_for(server: Server) -> None:
    assert "logprobs" not in server.chat()
    assert all("top_logprobs" not in token for token in server.chat(logprobs=True)["logprobs"])


@pytest.mark.parametrize("top", [-1, 21])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_alternatives_beyond_twenty_are_refused(server: Server, path: str, top: int) -> None:
    answer = server.post(path, messages=MESSAGES, prompt="+1", logprobs=True, top_logprobs=top)
    assert answer.status_code == 400
    assert answer.json() == {"error": "top_logprobs must be between 0 and 20"}


def test_thinking_is_refused_by_a_model_that_cannot(client: ollama.Client, server: Server) -> None:
    if can_think(server):
        pytest.skip(f"{server.model} can think")
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as refused:
        client.chat(server.model, messages=MESSAGES, think=True)
    assert refused.value.status_code == 400


def test_nothing_asked_loads_the_model_and_then_it_is_running(client: ollama.Client, server: Server) -> None:
    answer = client.chat(server.model, messages=[], keep_alive=-1)
    assert (answer.done, answer.done_reason, answer.message.content or "") == (True, "load", "")
    (running,) = (each for each in client.ps().models if (each.model or "").startswith(server.model))
    assert running.digest in {each.digest for each in client.list().models}
    assert running.expires_at is not None
    assert running.expires_at - datetime.now(UTC) > timedelta(days=365)


def test_nothing_asked_and_nothing_kept_unloads_the_model(client: ollama.Client, server: Server) -> None:
    client.generate(server.model, "")
    assert client.generate(server.model, "", keep_alive=0).done_reason == "unload"
    deadline = time.monotonic() + 10
    while client.ps().models and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.ps().models == []


def test_a_model_that_is_not_there_is_404_wherever_it_is_named(server: Server) -> None:
    for path in ("/api/chat", "/api/generate", "/api/show"):
        answer = server.http.post(path, json={"model": "no-such-model", "messages": MESSAGES, "prompt": "x"})
        assert answer.status_code == 404, path
        assert "no-such-model" in answer.json()["error"]


def test_a_completion_of_a_raw_prompt_returns_no_context(client: ollama.Client, server: Server) -> None:
    answer = client.generate(server.model, "trend +1.0. Answer:", raw=True, format=SCHEMA, options=GREEDY)
    assert "action" in json.loads(answer.response or "")
    assert answer.context is None


def test_a_completion_is_streamed_unless_it_is_asked_whole(server: Server) -> None:
    answer = server.post("/api/generate", prompt="trend +1.0", format=SCHEMA, options=GREEDY, think=False)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "action" in json.loads("".join(line["response"] for line in lines))
    assert lines[-1]["done"] is True


def test_a_raw_prompt_takes_no_system_message(server: Server) -> None:
    answer = server.post("/api/generate", prompt="x", raw=True, system="You trade.")
    assert answer.status_code == 400
    assert "raw mode" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]"])
def test_a_body_that_is_no_request_is_refused_with_a_message(server: Server, body: bytes) -> None:
    answer = server.http.post("/api/chat", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("wrong", [{"format": "yaml"}, {"options": {"num_predict": "many"}}, {"messages": "hello"}])
def test_a_request_of_the_wrong_types_is_an_error_with_a_message(server: Server, wrong: dict[str, Any]) -> None:
    answer = server.post("/api/chat", **{"messages": MESSAGES, "stream": False} | wrong)
    assert answer.status_code in {400, 500}
    assert answer.json()["error"]


def test_an_answer_cut_at_its_length_says_so(server: Server) -> None:
    assert server.chat(options=GREEDY | {"num_predict": 1})["done_reason"] == "length"


def test_at_temperature_zero_an_answer_repeats(server: Server) -> None:
    assert server.chat()["message"] == server.chat()["message"]


def test_the_rendered_prompt_can_be_looked_at(server: Server) -> None:
    answer = server.post("/api/chat", messages=MESSAGES, stream=False, think=False, _debug_render_only=True).json()
    assert MESSAGES[-1]["content"] in answer["_debug_info"]["rendered_template"]


def test_the_action_is_a_token_whose_alternatives_are_the_other_actions(server: Server) -> None:
    if LIVE_URL is not None:
        pytest.skip("a real tokenizer may join the word with what stands beside it")
    tokens = server.chat(logprobs=True, top_logprobs=20)["logprobs"]
    (word,) = (token for token in tokens if token["token"] in {"SELL", "HOLD", "BUY"})
    assert {"SELL", "HOLD", "BUY"} <= {each["token"] for each in word["top_logprobs"]}
