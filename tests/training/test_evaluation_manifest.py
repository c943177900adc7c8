import json
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.evaluation.manifest import Trials, content_hash, sealed


def manifest(fingerprint: str, seeds: tuple[int, ...] = (1, 2), note: str = "") -> dict:
    return sealed({"data": {"fingerprint": fingerprint}, "seeds": seeds, "note": note})


def test_a_seal_is_the_hash_of_everything_else() -> None:
    one = manifest("aa")
    assert one["hash"] == content_hash(one)
    assert content_hash({**one, "note": "changed"}) != one["hash"]


def test_every_seed_of_every_manifest_on_the_same_bars_is_a_trial(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.jsonl")
    for one in (manifest("aa"), manifest("aa", note="another"), manifest("bb", seeds=(1,))):
        trials.plan(one)
    assert trials.luck("aa").trials == 4
    assert trials.luck("bb").trials == 1


def test_a_run_repeated_exactly_counts_once(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.jsonl")
    for _ in range(3):
        trials.plan(manifest("aa"))
        trials.score(manifest("aa"), [0.1, 0.3])
    luck = trials.luck("aa")
    assert luck.trials == 2
    assert luck.deviation == pytest.approx(0.1414, abs=1e-3)


def test_a_run_that_was_broken_off_counts(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.jsonl")
    trials.plan(manifest("aa"))
    luck = trials.luck("aa")
    assert (luck.trials, luck.deviation) == (2, None)


def test_nothing_tried_is_one_trial(tmp_path: Path) -> None:
    assert Trials(tmp_path / "absent.jsonl").luck("aa").trials == 1


def test_a_line_that_is_no_trial_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps({"fingerprint": "aa"}) + "\n")
    with pytest.raises(TrainingError, match=r"line 1 of .*trials.jsonl is no trial"):
        Trials(path).luck("aa")
