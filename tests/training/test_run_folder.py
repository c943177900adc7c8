"""A training in its folder: what is written there, and that stopping it in the middle changes nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_learner import small_world, tables

from training.dqn.doctor import diagnose
from training.dqn.ensemble import Ensemble
from training.dqn.history import read_history
from training.dqn.run import in_folder, note_exits, train_in
from training.dqn.settings import DqnSettings
from training.errors import TrainingError
from training.market import MarketTable

SETTINGS = DqnSettings(
    members=2, network="mlp", hidden=(8,), updates=80, evaluations=8, threads=1, batch_bars=64, checkpoint_episodes=1
)


@cache
def table() -> MarketTable:
    return tables(small_world(), 1_500, 100)[0]


def fresh(settings: DqnSettings = SETTINGS) -> Ensemble:
    groups = [slice(0, 1), slice(1, table().n_features)]
    return Ensemble(table(), settings, groups, seed=1, shorts=False, reward_scale=None, embargo_bars=0)


def go(run: Path, settings: DqnSettings = SETTINGS, **given: Any) -> Ensemble:
    ensemble = fresh(settings)
    drive = in_folder(
        run,
        configuration={"training": {"dqn": settings.model_dump(mode="json")}},
        feature_names=[f"column {i}" for i in range(table().n_features)],
        feature_hash="abc",
        groups=2,
        data="def",
        **given,
    )
    drive(ensemble)
    return ensemble


def test_a_run_leaves_history_checkpoints_facts_and_report(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    go(tmp_path / "run", on_progress=lambda *one: done.append(one), log_dir=tmp_path / "board")
    assert [record["update"] for record in read_history(tmp_path / "run")] == list(range(10, 81, 10))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["configuration"]["training"]["dqn"]["updates"] == facts["planned_updates"] == 80
    assert facts["network"]["parameters"] == 9 * 8 + 8 + 8 * 2 + 2
    assert "<h1>Training run</h1>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert done[-1] == (80, 80)
    assert list((tmp_path / "board").iterdir())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    parts = None
    for _ in range(200):
        parts = go(tmp_path / "parts", budget_s=0.005)
        if parts.done:
            break
    assert parts is not None
    assert parts.done
    for one, other in zip(whole.learners, parts.learners, strict=True):
        for name, weights in one.weights()[0].items():
            assert torch.equal(weights, other.weights()[0][name]), name
    histories = [read_history(tmp_path / name) for name in ("whole", "parts")]
    for history in histories:
        for record in history:
            record.pop("cpu_s")
    assert repr(histories[0]) == repr(histories[1])


def test_a_run_of_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(TrainingError, match=r"configuration\.training\.dqn\.gamma: 0\.99, now 0\.5"):
        go(tmp_path, SETTINGS.model_copy(update={"gamma": 0.5}))


def test_symptoms_are_told_while_it_trains(tmp_path: Path) -> None:
    told: list[str] = []
    wild = SETTINGS.model_copy(update={"learning_rate": 1e20, "value_loss": "mse", "dueling": True})
    go(tmp_path, wild, on_finding=lambda finding: told.append(finding.symptom.name))
    assert told == ["not_finite"]


class Broken(Ensemble):
    """Ends with an error in the middle."""

    def run(self, until: int, interrupted: Any = None) -> None:
        if self.updates >= 40:
            raise TrainingError("the gradient is not a number")
        super().run(until)


def test_a_training_that_ends_with_an_error_leaves_its_report(tmp_path: Path) -> None:
    groups = [slice(0, 1), slice(1, table().n_features)]
    ensemble = Broken(table(), SETTINGS, groups, seed=1, shorts=False, reward_scale=None, embargo_bars=0)
    with pytest.raises(TrainingError, match="not a number"):
        train_in(tmp_path, ensemble, identity={}, facts={}, checkpoint_updates=20)
    assert "4 evaluations" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_exits_that_are_all_alike_are_told_when_their_head_is_trained(tmp_path: Path) -> None:
    go(tmp_path)
    before = {finding.symptom.name for finding in diagnose(tmp_path)}
    note_exits(tmp_path, {"exit_spread": 0.09, "held_out_bars": 100})
    assert {finding.symptom.name for finding in diagnose(tmp_path)} - before == {"exit_spread"}
    assert "all exits are alike" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_training_may_run_beside_the_main_thread(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # beside its only use

    ensemble = fresh()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(train_in, tmp_path, ensemble, identity={}, facts={}, checkpoint_updates=50)
        assert job.result() is False
    assert ensemble.done
