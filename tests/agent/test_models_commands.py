from __future__ import annotations

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
