"""What `tandem doctor` finds of a language model, on the stand-in server and on servers that are none."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from tandem_cli import tandem

from agent.ollama.server import Standin, serve_in_thread

Found = dict[str, dict[str, Any]]


def _tiny_models() -> ModuleType:
    """The tiny ONNX policies of the strategies' tests, by path: test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_of_doctor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A fused daemon in a folder of its own, with the stand-in's model."""
    bundle = _tiny_models().make_bundle(tmp_path / "bundle")
    given = {
        "ledger.url": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "daemon.bar_store": "null",
        "strategy.mode": "fused",
        "strategy.bundle": bundle.path,
        "llm.model": "tandem",
        "llm.digest": f'"{Standin().digest("tandem")}"',
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def findings(options: Sequence[str], url: str, *more: str) -> tuple[int, Found]:
    done = tandem("doctor", "--json", *options, "--set", f"llm.host={url}", *more)
    return done.code, {check["name"]: check for check in done.json["checks"]}


def load(url: str) -> None:
    httpx.post(f"{url}/api/generate", json={"model": "tandem", "keep_alive": -1}, timeout=5).raise_for_status()


@pytest.fixture
def standin() -> Standin:
    return Standin(parallel=2)


@pytest.fixture
def url(standin: Standin) -> Iterator[str]:
    with serve_in_thread(standin) as served:
        yield served


def test_a_model_that_is_served_and_loaded_is_ok_in_every_respect(options: list[str], url: str) -> None:
    load(url)
    code, found = findings(options, url)
    assert code == 0
    names = [name for name in found if "language" in name or "log prob" in name]
    told = {name: found[name]["status"] for name in names}
    assert told == dict.fromkeys(
        [
            "language model host",
            "language model server",
            "language model",
            "language model loaded",
            "log probabilities",
        ],
        "ok",
    )
    assert "in memory" in found["language model loaded"]["detail"]


def test_a_cold_model_is_told_and_left_cold(options: list[str], url: str) -> None:
    code, found = findings(options, url)
    assert code == 0
    assert "cold" in found["language model loaded"]["detail"]
    assert "not tried" in found["log probabilities"]["detail"]
    assert httpx.get(f"{url}/api/ps", timeout=5).json()["models"] == []


def test_without_a_language_model_nothing_is_asked(options: list[str]) -> None:
    done = tandem("doctor", "--json", *options, "--set", "strategy.mode=dqn", "--set", "llm.host=http://127.0.0.1:9")
    found = {check["name"]: check for check in done.json["checks"]}
    assert found["language model"]["detail"] == "none: dqn decides alone"


@pytest.mark.parametrize("host", ["http://10.1.2.3:11434", "ftp://127.0.0.1", "http://user:word@127.0.0.1:11434"])
def test_a_host_that_must_not_be_asked_is_refused_without_asking(host: str, options: list[str]) -> None:
    code, found = findings(options, host)
    assert code == 1
    assert found["language model host"]["status"] == "fail"
    assert "llm.host" in found["language model host"]["detail"]


def test_a_server_that_is_not_there_is_named_with_the_remedy(options: list[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, found = findings(options, f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert code == 1
    assert found["language model server"]["status"] == "fail"
    assert "ollama serve" in found["language model server"]["remedy"]


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("missing_model", "language model", "pull or create tandem"),
        ("wrong_digest", "language model", "serve the model that was tuned"),
        ("no_logprobs", "log probabilities", "0.12.11 or newer"),
        ("rubbish:/api/tags", "language model", "the server's log"),
        ("503:/api/chat", "language model answers", "queue is full"),
    ],
)
def test_each_fault_is_found_with_its_remedy(
    fault: str, name: str, words: str, options: list[str], url: str, standin: Standin
) -> None:
    load(url)
    standin.set_faults(fault)
    _, found = findings(options, url)
    assert found[name]["status"] in {"warn", "fail"}
    assert words in found[name]["remedy"]


def test_an_old_server_is_told_by_its_version_while_the_model_is_cold(
    options: list[str], url: str, standin: Standin
) -> None:
    standin.set_faults("no_logprobs")
    _, found = findings(options, url)
    assert found["log probabilities"]["status"] == "warn"
    assert "0.12.10" in found["log probabilities"]["detail"]


def test_a_model_that_was_tuned_on_other_prompts_is_found_before_anybody_is_asked(
    options: list[str], tmp_path: Path
) -> None:
    from strategies.bundle import Registry  # noqa: PLC0415 - used here alone

    models = ["--set", f"strategy.models={tmp_path / 'models'}"]
    named = ["--llm-model", "tandem", "--llm-digest", "ab" * 32]
    done = tandem("models", "promote", tmp_path / "bundle", *named, *models, "--json")
    assert done.code == 0, done.err
    path = Registry(tmp_path / "models").root / "slots" / "default.json"
    path.write_text(path.read_text().replace(done.json["llm"]["template_hash"], "00" * 32))
    slot = [*models, "--set", "strategy.bundle=null", "--set", "llm.digest=null"]
    code, found = findings(options, "http://127.0.0.1:9", *slot)
    assert code == 1
    assert "tuned on other prompts" in found["language model"]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "hang:/api/chat", "dribble=1:/api/chat", "hang:/api/ps"])
def test_a_server_that_does_not_answer_is_left_within_ten_seconds(
    fault: str, options: list[str], url: str, standin: Standin
) -> None:
    load(url)
    standin.set_faults(fault)
    began = time.monotonic()
    _, found = findings(options, url)
    assert time.monotonic() - began < 10.0
    assert {"warn", "fail"} & {check["status"] for name, check in found.items() if "language" in name}


def test_a_name_that_nobody_knows_is_told(options: list[str]) -> None:
    code, found = findings(options, "https://no-such-machine.invalid")
    assert code == 1
    assert "cannot be looked up" in found["language model server"]["detail"]
