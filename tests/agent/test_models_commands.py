from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from tandem_cli import tandem

from strategies.bundle import Bundle, Registry


def _tiny_models() -> ModuleType:
    """The tiny ONNX policies of the strategies' tests, by path: test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _tiny_models()


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return ["--set", f"strategy.models={tmp_path / 'models'}"]


@pytest.fixture
def first(tmp_path: Path) -> Bundle:
    bundle: Bundle = tiny.make_bundle(tmp_path / "first")
    return bundle


@pytest.fixture
def second(tmp_path: Path) -> Bundle:
    bundle: Bundle = tiny.make_bundle(tmp_path / "second", seeds=[2])
    return bundle


def test_promoting_a_directory_adds_the_bundle_and_fills_the_slot(models: list[str], first: Bundle) -> None:
    done = tandem("models", "promote", first.path, "--reason", "best so far", *models, "--json")
    assert done.code == 0, done.err
    assert done.json["policy"] == first.id
    assert done.json["slot"] == "default"
    assert done.json["reason"] == "best so far"
    root = Path(models[1].partition("=")[2])
    assert Registry(root).load_slot("default").id == first.id


def test_list_shows_slots_and_policies(models: list[str], first: Bundle, second: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    tandem("models", "promote", second.path, "--slot", "equities", *models)
    found = tandem("models", "list", "--json", *models).json
    assert {slot["slot"]: slot["policy"] for slot in found["slots"]} == {"default": first.id, "equities": second.id}
    assert {one["policy"] for one in found["policies"]} == {first.id, second.id}
    text = tandem("models", "list", *models).out
    assert first.id in text
    assert "equities" in text


def test_an_empty_registry_is_listed_as_empty(models: list[str]) -> None:
    assert tandem("models", "list", "--json", *models).json["policies"] == []


def test_a_damaged_policy_is_listed_with_the_reason(models: list[str], first: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    root = Path(models[1].partition("=")[2])
    (root / "policy" / first.id / "policy.onnx").write_bytes(b"damaged")
    (found,) = tandem("models", "list", "--json", *models).json["policies"]
    assert "has hash" in found["refused"]
    assert "REFUSED" in tandem("models", "list", *models).out


def test_rollback_serves_what_was_served_before(models: list[str], first: Bundle, second: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    tandem("models", "promote", second.path, *models)
    assert tandem("models", "rollback", "--json", *models).json["policy"] == first.id


def test_rollback_of_a_slot_without_history_says_what_to_do(models: list[str], first: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    done = tandem("models", "rollback", *models)
    assert done.code == 1
    assert "promote another policy instead" in done.err


def test_show_finds_a_policy_by_id_slot_or_directory(models: list[str], first: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    for name in (first.id, "default", str(first.path)):
        done = tandem("models", "show", name, "--json", *models)
        assert done.json["id"] == first.id
        assert done.json["slots"] == ["default"]
    assert "every hash verified" in tandem("models", "show", "default", *models).out


def test_an_unknown_policy_fails_and_names_what_there_is(models: list[str], first: Bundle) -> None:
    tandem("models", "promote", first.path, *models)
    done = tandem("models", "show", "0" * 16, *models)
    assert done.code == 1
    assert first.id in done.err


def test_a_policy_that_answers_its_canary_differently_is_not_promoted(models: list[str], first: Bundle) -> None:
    from strategies import bundle as bundles  # noqa: PLC0415 - its hash is needed to forge a manifest that verifies

    manifest = json.loads((first.path / "manifest.json").read_text())
    manifest["canary"]["q"] = {name: [9.0 for _ in values] for name, values in manifest["canary"]["q"].items()}
    manifest["id"] = bundles._content_id(manifest)
    (first.path / "manifest.json").write_text(json.dumps(manifest))
    done = tandem("models", "promote", first.path, *models)
    assert done.code == 1
    assert "this ONNX Runtime computes differently" in done.err
    assert tandem("models", "list", "--json", *models).json["policies"] == []


# ---- the language model of a slot ---------------------------------------------------------------------------------

DIGEST = "123456789012" + "ab" * 26
VOICE = ("--llm-model", "tandem", "--llm-digest", DIGEST)


def promoted(bundle: Bundle, models: list[str], *options: str) -> dict[str, object]:
    done = tandem("models", "promote", bundle.path, "--json", *options, *models)
    assert done.code == 0, done.err
    content: dict[str, object] = done.json
    return content


def refused(bundle: Bundle, models: list[str], *options: str) -> str:
    done = tandem("models", "promote", bundle.path, *options, *models)
    assert done.code == 1, done.out
    return done.err


def earned(bundle: Bundle, *more: str) -> tuple[str, ...]:
    return (*VOICE, "--llm-tuned-on", bundle.id, "--fusion-weight", "0.5", *more)


def test_a_language_model_is_pinned_to_the_prompts_of_the_policy(models: list[str], first: Bundle) -> None:
    from strategies.prompt import PROMPT_VERSION, Template  # noqa: PLC0415 - used here alone

    content = promoted(first, models, *earned(first, "--llm-temperature", "1.5", "--fusion-temperature", "0.002"))
    assert content["llm"] == {
        "model": "tandem",
        "digest": DIGEST,
        "temperature": 1.5,
        "tuned_on": first.id,
        "prompt_version": PROMPT_VERSION,
        "template_hash": Template(first.feature_spec).hash,
    }
    assert content["fusion"] == {"llm_weight": 0.5, "temperature": 0.002}
    assert content["llm_weight"] == 0.5


def test_a_named_model_without_a_weight_weighs_nothing(models: list[str], first: Bundle) -> None:
    content = promoted(first, models, *VOICE)
    assert (content["llm_weight"], content["fusion"]) == (0.0, None)


def test_another_policy_keeps_the_language_model_and_not_its_weight(
    models: list[str], first: Bundle, second: Bundle
) -> None:
    before = promoted(first, models, *earned(first))
    content = promoted(second, models)
    assert content["llm"] == before["llm"]
    assert content["fusion"] is None
    assert content["llm_fits"] is False
    assert "another policy" in " ".join(tandem("models", "list", *models).out.split())
    again = tandem("models", "rollback", "--json", *models).json
    assert (again["policy"], again["llm_weight"]) == (first.id, 0.5)


def test_the_same_policy_and_model_keep_the_weight(models: list[str], first: Bundle) -> None:
    promoted(first, models, *earned(first))
    assert promoted(first, models, "--reason", "again")["llm_weight"] == 0.5


@pytest.mark.parametrize("change", [("--llm-digest", "ff" * 32), ("--llm-temperature", "2")])
def test_another_model_or_calibration_begins_at_zero(change: tuple[str, str], models: list[str], first: Bundle) -> None:
    promoted(first, models, *earned(first))
    assert promoted(first, models, *change)["llm_weight"] == 0.0


def test_a_weight_is_refused_for_a_model_that_was_tuned_on_another_policy(
    models: list[str], first: Bundle, second: Bundle
) -> None:
    told = refused(first, models, *VOICE, "--llm-tuned-on", second.id, "--fusion-weight", "0.5")
    assert f"tuned on policy {second.id}" in told
    assert "leave --fusion-weight out" in told
    assert "no policy that is named" in refused(first, models, *VOICE, "--fusion-weight", "0.5")
    assert "needs a language model" in refused(first, models, "--fusion-weight", "0.5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--llm-model", "tandem"), "no digest"),
        (("--llm-digest", DIGEST), "no model"),
        (("--llm-temperature", "2"), "no model"),
        (("--llm-model", "tandem", "--llm-digest", "12345"), "at least 12"),
        ((*VOICE, "--llm-tuned-on", "yesterday"), "id of the policy"),
    ],
)
def test_what_names_no_language_model_is_refused(
    options: tuple[str, ...], words: str, models: list[str], first: Bundle
) -> None:
    assert words in refused(first, models, *options)
    assert tandem("models", "list", "--json", *models).json["slots"] == []


def test_a_file_names_the_language_model_and_options_win_over_it(
    models: list[str], first: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "llm.json"
    path.write_text(json.dumps({"model": "tandem", "digest": DIGEST, "tuned_on": first.id, "temperature": 3.0}))
    content = promoted(first, models, "--llm", str(path), "--llm-temperature", "2", "--fusion-weight", "0.25")
    assert content["llm_weight"] == 0.25
    assert isinstance(content["llm"], dict)
    assert content["llm"]["temperature"] == 2.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("digest: 123456789012", "write it in quotes"),
        ("template_hash: " + "ab" * 32, "tune it on this policy's prompts"),
        ("prompt_version: '0'", "tune it on this policy's prompts"),
        ("weight: 1", "'weight' says nothing of a language model"),
    ],
)
def test_a_file_that_is_wrong_is_refused(
    line: str, words: str, models: list[str], first: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "llm.yaml"
    content = {"model": "tandem", "digest": f"'{DIGEST}'"}
    content |= dict([line.split(": ")])
    path.write_text("\n".join(f"{key}: {value}" for key, value in content.items()))
    assert words in refused(first, models, "--llm", str(path))


def test_show_tells_the_language_model_of_the_slot(models: list[str], first: Bundle) -> None:
    promoted(first, models, *earned(first))
    found = tandem("models", "show", first.id, "--json", *models).json["language_models"]["default"]
    assert (found["llm"]["digest"], found["llm_weight"], found["llm_fits"]) == (DIGEST, 0.5, True)
    text = tandem("models", "show", first.id, *models).out
    assert "Language model of slot default" in text
    assert DIGEST in text


# ---- what a daemon makes of it ------------------------------------------------------------------------------------


def weight_served(models: list[str], *more: str) -> float:
    from agent.minds import make_minds  # noqa: PLC0415 - ONNX Runtime and the client, for these tests alone
    from agent.settings import load  # noqa: PLC0415 - as above
    from strategies.fusion import Fused  # noqa: PLC0415 - as above

    given = [*models[1::2], "strategy.mode=fused", *more]
    minds = make_minds(load(None, given))
    assert isinstance(minds.strategy, Fused)
    asyncio.run(minds.aclose())
    return minds.strategy.weights.llm_weight


def test_a_daemon_gives_the_slots_model_the_weight_that_it_has_earned(models: list[str], first: Bundle) -> None:
    promoted(first, models, *earned(first))
    assert weight_served(models) == 0.5
    assert weight_served(models, f'llm.digest="{DIGEST[:12]}"') == 0.5
    assert weight_served(models, "fusion.llm_weight=0.1") == 0.1


def test_a_daemon_gives_a_model_that_is_not_the_slots_no_weight(
    models: list[str], first: Bundle, second: Bundle
) -> None:
    promoted(first, models, *earned(first))
    assert weight_served(models, f"llm.digest={'ff' * 32}") == 0.0
    promoted(second, models)
    assert weight_served(models) == 0.0
