from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bars_for_features import random_series
from tiny_models import SPEC, first_feature, linear_model, make_bundle, momentum_model

from strategies.bundle import Bundle, BundleError, Registry, data_fingerprint
from strategies.features import default_spec, tutorial_spec

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def test_a_written_bundle_loads_with_all_that_was_said_about_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", weights=b"tensors", metrics={"sharpe": [0.1, 0.2, 0.3]}, seeds=[3, 4])
    again = Bundle.load(tmp_path / "b", data_feed="recorded", feature_spec=SPEC)
    assert again.manifest == bundle.manifest
    assert (again.feature_spec, again.targets, again.data_feed) == (SPEC, (0, 1), "recorded")
    assert again.manifest["metrics"] == {"sharpe": [0.1, 0.2, 0.3]}
    assert again.weights_path is not None
    assert again.weights_path.read_bytes() == b"tensors"


def test_the_same_content_has_the_same_id_and_other_content_another(tmp_path: Path) -> None:
    ids = [make_bundle(tmp_path / name, seeds=[seed]).id for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert ids[0] == ids[1] != ids[2]


def test_writing_the_same_bundle_twice_changes_nothing(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "b")
    stamp = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
    assert make_bundle(tmp_path / "b").id == first.id
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == stamp


def test_a_directory_that_holds_another_bundle_is_not_overwritten(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="choose another directory"):
        make_bundle(tmp_path / "b", seeds=[9])


@pytest.mark.parametrize("name", ["policy.onnx", "weights.safetensors", "manifest.json"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_byte_anywhere_refuses_to_load(tmp_path: Path, name: str, share: float) -> None:
    make_bundle(tmp_path / "b", weights=b"some weights")
    file = tmp_path / "b" / name
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"restore|train again"):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize("name", ["policy.onnx", "weights.safetensors", "manifest.json"])
def test_a_missing_file_refuses_to_load(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "b", weights=b"some weights")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(BundleError, match=r"restore the bundle|give its directory"):
        Bundle.load(tmp_path / "b")


def test_other_features_refuse_to_load(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="train a policy on these"):
        Bundle.load(tmp_path / "b", feature_spec=tutorial_spec())


def test_another_feed_refuses_to_load(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="trained on feed 'recorded', bars come from 'iex'"):
        Bundle.load(tmp_path / "b", data_feed="iex")


def test_a_file_name_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    manifest = json.loads(json.dumps(bundle.manifest))
    manifest["files"]["../policy.onnx"] = manifest["files"]["policy.onnx"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        Bundle.load(tmp_path / "b")


def test_data_without_a_feed_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lacks feed"):
        make_bundle(tmp_path / "b", data={"fingerprint": "0"})


def test_a_model_for_other_features_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="export it for the bundle's features"):
        make_bundle(tmp_path / "b", feature_spec=default_spec(timedelta(minutes=5)))


def test_a_model_without_a_value_for_every_target_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lacks the outputs q_short"):
        make_bundle(tmp_path / "b", targets=(-1, 0, 1))


def test_bytes_that_are_no_model_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="export it again"):
        make_bundle(tmp_path / "b", policy=b"not a model")


def test_a_refused_bundle_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        make_bundle(tmp_path / "b", policy=b"not a model")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="finite values"):
        make_bundle(tmp_path / "b", metrics={"sharpe": float("nan")})


def test_the_fingerprint_of_data_changes_with_any_value() -> None:
    series = random_series(1, 50)
    close = series.close.copy()
    close[30] = np.nextafter(close[30], 0)
    prints = [data_fingerprint({"X": one}) for one in (series, random_series(1, 50), replace(series, close=close))]
    assert prints[0] == prints[1] != prints[2]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


@pytest.fixture
def policies(tmp_path: Path, registry: Registry) -> list[str]:
    return [registry.add(make_bundle(tmp_path / f"b{seed}", seeds=[seed])).id for seed in (1, 2)]


def test_an_added_bundle_can_be_listed_and_shown(registry: Registry, policies: list[str]) -> None:
    assert registry.policies() == tuple(policies)
    assert registry.show(policies[0]).id == policies[0]


def test_promotion_is_remembered_and_can_be_rolled_back(registry: Registry, policies: list[str]) -> None:
    registry.promote("equities", policies[0], at=NOW, reason="first")
    registry.promote("equities", policies[1], at=NOW + timedelta(days=1), reason="better", fusion={"llm_weight": 0.1})
    back = registry.rollback("equities", at=NOW + timedelta(days=2))
    assert registry.slot("equities") == back
    assert registry.load_slot("equities", data_feed="recorded").id == policies[0]
    assert (back.policy, back.fusion, back.reason) == (policies[0], None, "rollback")
    assert [entry["reason"] for entry in back.history] == ["first", "better"]


def test_a_slot_that_never_changed_cannot_be_rolled_back(registry: Registry, policies: list[str]) -> None:
    registry.promote("equities", policies[0], at=NOW, reason="first")
    with pytest.raises(BundleError, match="promote another policy"):
        registry.rollback("equities", at=NOW)


def test_a_damaged_policy_is_not_promoted(registry: Registry, policies: list[str]) -> None:
    registry.promote("equities", policies[0], at=NOW, reason="first")
    (registry.root / "policy" / policies[1] / "policy.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="restore"):
        registry.promote("equities", policies[1], at=NOW, reason="better")
    assert registry.slot("equities").policy == policies[0]


def test_a_language_model_tuned_on_another_policy_does_not_fit(registry: Registry, policies: list[str]) -> None:
    llm = {"tag": "trader", "tuned_on": policies[0]}
    assert registry.promote("s", policies[0], at=NOW, reason="-", llm=llm).llm_fits
    assert not registry.promote("s", policies[1], at=NOW, reason="-", llm=llm).llm_fits


@pytest.mark.parametrize("damage", [{"llm": ["tandem"]}, {"fusion": 0.5}, {"fusion": {"llm_weight": "much"}}])
def test_a_slot_whose_language_model_cannot_be_read_is_damaged(
    damage: dict[str, Any], registry: Registry, policies: list[str]
) -> None:
    registry.promote("s", policies[0], at=NOW, reason="-")
    path = registry.root / "slots" / "s.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(BundleError, match="damaged"):
        registry.slot("s")


@pytest.mark.parametrize("tuned_here", [True, False])
def test_a_language_model_weighs_only_what_it_has_earned_on_this_policy(
    tuned_here: bool,  # noqa: FBT001 - a parameter of the test
    registry: Registry,
    policies: list[str],
) -> None:
    llm = {"model": "tandem", "tuned_on": policies[0 if tuned_here else 1]}
    slot = registry.promote("s", policies[0], at=NOW, reason="-", llm=llm, fusion={"llm_weight": 0.5})
    assert slot.llm_weight == (0.5 if tuned_here else 0.0)


@pytest.mark.parametrize("ask", [lambda r: r.slot("none"), lambda r: r.show("0" * 16), lambda r: r.slot("../x")])
def test_what_is_not_there_is_an_error_with_a_remedy(registry: Registry, ask: Callable[[Registry], object]) -> None:
    with pytest.raises(BundleError):
        ask(registry)


def test_an_empty_registry_lists_nothing(registry: Registry) -> None:
    assert (registry.policies(), registry.slots()) == ((), ())


def test_a_reader_never_sees_half_a_slot(registry: Registry, policies: list[str]) -> None:
    registry.promote("s", policies[0], at=NOW, reason="-")
    before = (registry.root / "slots" / "s.json").stat().st_ino
    registry.promote("s", policies[1], at=NOW, reason="-")
    assert (registry.root / "slots" / "s.json").stat().st_ino != before
    assert [path.name for path in (registry.root / "slots").iterdir() if path.suffix != ".lock"].count("s.json") == 1


def test_extra_outputs_are_allowed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", momentum_model(spread=first_feature(), attention=np.ones((4, 1))))
    assert bundle.id


def test_targets_with_shorts_are_kept(tmp_path: Path) -> None:
    model = linear_model({"q_flat": np.zeros(4), "q_long": first_feature(), "q_short": first_feature(-1)})
    assert make_bundle(tmp_path / "b", model, targets=(-1, 0, 1)).targets == (-1, 0, 1)
