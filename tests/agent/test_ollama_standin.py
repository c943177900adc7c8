"""What the stand-in says and how it is started: rules, scripts, tokens, schemas, the command."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_cli import tandem

from agent.ollama.answers import (
    ACTIONS,
    Answer,
    AnswersError,
    Question,
    Script,
    by_hash,
    by_numbers,
    compose,
    load_answers,
)
from agent.ollama.faults import FaultName, parse_fault
from agent.ollama.schema import SchemaError, fill
from agent.ollama.server import Standin, serve_in_thread
from agent.ollama.tokens import Choice, Split, tokenise

GREEDY = {"temperature": 0}
SCHEMA = {"type": "object", "properties": {"action": {"enum": list(ACTIONS)}}, "required": ["action"]}

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
splits = st.sampled_from(["word", "pieces", "mixed"])


def question(prompt: str = "momentum +1", **more: Any) -> Question:
    return Question("tandem", prompt, prompt, **{"format": SCHEMA, "options": GREEDY} | more)


def said(answer: Any, **more: Any) -> Any:
    """What a stand-in with one answerer says to a question over HTTP."""
    body = {"model": "tandem", "messages": [{"role": "user", "content": "momentum +1"}], "stream": False} | more
    with serve_in_thread(Standin(answer)) as url:
        return httpx.post(f"{url}/api/chat", json=body, trust_env=False).json()


# rules


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("momentum +0.8%, trend +1.4%", "BUY"),
        ("momentum -0.8%, trend -1.4%", "SELL"),
        ("momentum +0.8%, trend -0.8%", "HOLD"),
        ("momentum \u22122.0 at 14:30, window 20-30", "SELL"),
    ],
)
def test_the_rule_follows_the_mean_of_the_signed_numbers(prompt: str, word: str) -> None:
    chances = by_numbers(question(prompt))
    assert max(chances, key=lambda each: chances[each]) == word


@given(st.text())
def test_every_prompt_has_the_same_probabilities_each_time(prompt: str) -> None:
    for rule in (by_numbers, by_hash):
        chances = rule(question(prompt))
        assert chances == rule(question(prompt))
        assert sum(chances.values()) == pytest.approx(1)
        assert set(chances) == set(ACTIONS)


def test_the_hash_gives_every_word_to_some_prompts() -> None:
    picked = [
        max(chances, key=lambda each: chances[each]) for n in range(60) for chances in [by_hash(question(str(n)))]
    ]
    assert min(picked.count(word) for word in ACTIONS) > 10


def test_without_a_temperature_of_zero_words_are_drawn_by_their_probabilities() -> None:
    chances = {"SELL": 0.1, "HOLD": 0.2, "BUY": 0.7}
    drawn = [
        json.loads(compose(question(options={"temperature": 1.0, "seed": seed}), chances).content)["action"]
        for seed in range(400)
    ]
    assert {word: drawn.count(word) / 400 for word in ACTIONS} == pytest.approx(chances, abs=0.08)


def test_a_function_of_the_question_may_be_the_model() -> None:
    def patient(asked: Question) -> Mapping[str, float]:
        return {"HOLD": 0.8, "BUY": 0.15, "SELL": 0.05} if "+1" in asked.last else {"BUY": 1.0}

    assert said(patient, format=SCHEMA, options=GREEDY)["message"]["content"] == '{"action": "HOLD"}'


def test_a_function_may_say_any_text_with_any_probabilities() -> None:
    def terse(asked: Question) -> Answer:
        return Answer("SELL", Choice(0, "SELL", {"SELL": 0.6, "BUY": 0.4}, mass=0.5))

    (token,) = said(terse, logprobs=True, top_logprobs=1)["logprobs"]
    assert token["token"] in ACTIONS
    assert math.exp(token["logprob"]) == pytest.approx(0.3)


def test_a_function_that_fails_is_an_error_that_says_so() -> None:
    def broken(asked: Question) -> str:
        return {}[asked.model]

    assert said(broken) == {"error": "the answerer failed: KeyError('tandem')"}


# tokens


@given(before=st.text(max_size=20), after=st.text(max_size=20), word=words, split=splits)
def test_tokens_joined_are_the_content(before: str, after: str, word: str, split: Split) -> None:
    tokens = tokenise(before + word + after, Choice(len(before), word, {word: 1.0}), split)
    assert "".join(token.text for token in tokens) == before + word + after


@given(
    chances=st.dictionaries(st.sampled_from([*ACTIONS, "WAIT"]), st.floats(0.01, 1), min_size=2),
    mass=st.floats(0.001, 0.999),
    split=splits,
)
def test_the_alternatives_of_a_choice_carry_its_mass_and_no_more_than_one(
    chances: dict[str, float], mass: float, split: Split
) -> None:
    total = sum(chances.values())
    shares = {word: value / total for word, value in chances.items()}
    word = max(shares, key=lambda each: shares[each])
    token = tokenise(word, Choice(0, word, shares, mass), split)[0]
    likely = {text: math.exp(logprob) for text, logprob in token.top}
    assert math.exp(token.logprob) == pytest.approx(likely[token.text])
    assert sum(likely.values()) <= 1 + 1e-6
    for each, share in shares.items():
        alone = likely.get(each, 0) + likely.get(each[:1], 0)
        assert alone == pytest.approx(mass * share)
    assert [logprob for _, logprob in token.top] == sorted((each for _, each in token.top), reverse=True)


def test_a_split_word_is_its_first_letter_and_the_rest() -> None:
    tokens = tokenise("BUY", Choice(0, "BUY", {"BUY": 1.0}), "pieces")
    assert [token.text for token in tokens] == ["B", "UY"]


# schemas


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        {"enum": ["x", "y"]},
        {"$defs": {"A": {"enum": list(ACTIONS)}}, "properties": {"action": {"$ref": "#/$defs/A"}}, "type": "object"},
        {
            "type": "object",
            "properties": {
                "reason": {"type": "string", "maxLength": 5},
                "steps": {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 2},
                "sure": {"type": ["boolean", "null"]},
                "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "kind": {"const": "decision"},
                "action": {"enum": list(ACTIONS)},
            },
            "required": ["reason", "action"],
            "additionalProperties": False,
        },
    ],
)
def test_the_content_follows_the_schema_and_holds_the_word(schema: dict[str, Any]) -> None:
    word = "BUY" if "BUY" in str(schema) else "y"
    text, start = fill(schema, word)
    jsonschema.validate(json.loads(text), schema)
    assert start is not None
    assert text[start : start + len(word)] == word


def test_a_schema_that_holds_itself_is_refused() -> None:
    endless = {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"type": "object", "properties": {c: {"$ref": "#/$defs/A"} for c in "abc"}}},
    }
    with pytest.raises(SchemaError):
        fill(endless, "BUY")


def test_words_of_another_schema_are_chosen_among_too() -> None:
    answer = compose(question(format={"enum": ["UP", "DOWN"]}), by_numbers(question(format={"enum": ["UP", "DOWN"]})))
    assert json.loads(answer.content) in {"UP", "DOWN"}


# scripts


def test_a_script_answers_in_order_and_then_refuses() -> None:
    script = Script([{"action": "BUY"}, {"content": "no"}])
    assert script(question()).content == '{"action": "BUY"}'
    assert script(question()).content == "no"
    with pytest.raises(AnswersError, match=question().sha256):
        script(question())


def test_an_answer_for_a_prompt_is_given_whenever_it_comes() -> None:
    script = Script(
        [{"prompt": "AAA", "action": "SELL"}, {"prompt_sha256": question("BBB").sha256, "action": "BUY"}],
        otherwise=lambda _question: "else",
    )
    for _ in range(2):
        assert "SELL" in script(question("see AAA")).content
        assert "BUY" in script(question("BBB")).content
    assert script(question("CCC")) == "else"


def test_a_looping_script_begins_again() -> None:
    script = Script([{"content": "a"}, {"content": "b"}], loop=True)
    assert [script(question()).content for _ in range(5)] == list("ababa")


def test_a_script_may_give_every_token() -> None:
    token = {"token": "BUY", "logprob": -0.5, "top_logprobs": [{"token": "BUY", "logprob": -0.5}]}
    assert said(Script([{"logprobs": [token]}]), logprobs=True, top_logprobs=3)["logprobs"] == [token]


def test_a_script_may_give_the_probabilities_of_its_own_content() -> None:
    script = Script([{"content": '{ "action" : "SELL"}', "probabilities": {"SELL": 0.5, "BUY": 0.5}, "mass": 0.8}])
    tokens = said(script, logprobs=True, top_logprobs=2)["logprobs"]
    (top,) = (each["top_logprobs"] for each in tokens if each["token"] in ACTIONS)
    assert {each["token"]: math.exp(each["logprob"]) for each in top} == pytest.approx({"SELL": 0.4, "BUY": 0.4})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"action": "BUY"}\n\n{"action": "SELL"}\n'),
        ("a.json", '[{"action": "BUY"}, {"action": "SELL"}]'),
        ("a.json", '{"answers": [{"action": "BUY"}, {"action": "SELL"}], "otherwise": "rule", "loop": false}'),
    ],
)
def test_a_script_is_read_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    script = load_answers(str(tmp_path / name))
    contents = [answer.content for answer in (script(question()), script(question())) if isinstance(answer, Answer)]
    assert contents == ['{"action": "BUY"}', '{"action": "SELL"}']


@pytest.mark.parametrize(
    "text", ["", "{", "3", "{}", '[{"actoin": "BUY"}]', "[{}]", "[1]", '{"answers": [], "otherwise": "guess"}']
)
def test_a_file_that_is_no_script_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnswersError):
        load_answers(str(path))


# what is drawn


@given(st.integers(0, 2**40), st.integers(1, 10**6))
def test_a_delay_lies_between_its_bounds_and_depends_on_seed_and_number_alone(seed: int, number: int) -> None:
    drawn = []
    for _ in range(2):
        standin = Standin(delay_s=(0.5, 2.0), seed=seed)
        standin.counters["POST /api/chat"] = number - 1
        drawn.append(standin.delay_s(standin.arrive("POST", "/api/chat")))
    assert drawn[0] == drawn[1]
    assert 0.5 <= drawn[0] <= 2.0


@given(
    st.sampled_from(list(FaultName)),
    st.none() | st.integers(1, 9),
    st.sampled_from([1.0, 0.5, 0.25]),
)
def test_a_fault_reads_back_as_it_is_shown(name: FaultName, times: int | None, probability: float) -> None:
    spelled = name.value + (f"*{times}" if times else "") + (f"@{probability}" if probability < 1 else "")
    fault = parse_fault(spelled)
    again = parse_fault(fault.json())
    assert (again.name, again.number, again.times, again.probability) == (name, fault.number, times, probability)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay_s": (2.0, 1.0)},
        {"delay_s": (-1.0, 1.0)},
        {"parallel": 0},
        {"models": []},
        {"faults": ["no"]},
        {"digest": "abc"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|name|known"):
        Standin(**wrong)


# hostile requests


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tandem", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tandem", "messages": [1]}',
        b'{"model": "tandem", "messages": [{"content": "x"}], "keep_alive": NaN}',
        b'{"model": "tandem", "messages": [{"content": "x"}], "keep_alive": 1e999}',
        b'{"model": "tandem", "messages": [{"content": "x"}], "options": {"temperature": NaN, "seed": 1e300}}',
        b'{"model": "tandem", "messages": [{"content": "x"}], "format": {"enum": {"a": 1}}}',
        b'{"model": "tandem", "messages": [{"content": "x"}], "format": {"type": "object", "properties": 7}}',
        b"[" * 100_000,
        b'"' + b"x" * 5_000_000,
    ],
)
def test_a_hostile_request_gets_an_answer_or_an_error_and_the_next_one_is_served(body: bytes) -> None:
    with serve_in_thread(Standin()) as url, httpx.Client(base_url=url, timeout=5, trust_env=False) as http:
        answer = http.post("/api/chat", content=body)
        assert answer.status_code in {200, 400}, answer.text[:200]
        assert http.post("/api/chat", json={"model": "tandem", "messages": []}).status_code == 200


# the command


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"content": "as written"}\n', encoding="utf-8")
    arguments = ["--port", "0", "--json", "--model", "mine", "--fault", "503*1", "--answers", "answers.jsonl"]
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "ollama", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        body = {"model": "mine", "prompt": "x", "stream": False}
        answers = [httpx.post(f"{ready['url']}/api/generate", json=body, trust_env=False) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [answer.status_code for answer in answers] == [503, 200]
    assert answers[1].json()["response"] == "as written"
    assert ready["models"][0]["name"] == "mine:latest"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fault", "hangg"], 2, "fault 'hangg' is not known"),
        (["--split", "half"], 2, "word, pieces or mixed"),
        (["--delay-s", "2", "1"], 2, "the lower one first"),
        (["--answers", "no-such-file.json"], 1, "no-such-file.json"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments: list[str], code: int, message: str) -> None:
    done = tandem("ollama", "--port", "0", *arguments)
    assert done.code == code
    assert message in done.err


# the manual


def manual(language: str) -> str:
    """The manual's one example of a language about the stand-in."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "language-model.md").read_text(encoding="utf-8")
    section = page.partition("## Without a model")[2].partition("\n## ")[0]
    (example,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(example)


def test_the_manuals_program_prints_what_it_says() -> None:
    program = manual("python")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", program), done.stderr


def test_the_manuals_script_is_one(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(manual("json"), encoding="utf-8")
    script = load_answers(str(tmp_path / "answers.json"))
    contents = [script(question(prompt)).content for prompt in ("momentum +2.0%", "x", "y")]
    assert contents == ['{"action": "BUY"}', '{"action": "HOLD"}', "I would rather look at the chart."]


def test_the_manual_tells_of_every_fault() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "language-model.md").read_text(encoding="utf-8")
    told = {
        name for cell in re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert set(FaultName) <= told
