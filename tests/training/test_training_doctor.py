"""What the doctor says of made-up histories, and how it is asked on the command line."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import steady
from small_markets import table_of, walk
from typer.testing import CliRunner

from training.cli import app
from training.dqn.causes import CAUSES, PRIORS
from training.dqn.doctor import Doctor, diagnose, judge
from training.dqn.history import History, Record, validated
from training.dqn.run_facts import read_run_facts, run_facts, write_run_facts
from training.dqn.symptoms import SYMPTOMS
from training.errors import TrainingError

FACTS: dict[str, Any] = {"data": {"groups": 6}}


def course(evaluations: int = 12, **changed: Any) -> list[Record]:
    """A steady run in which some metrics take another course: values, or functions of the evaluation."""
    return [
        validated(steady(100 * n, **{name: one(n) if callable(one) else one for name, one in changed.items()}))
        for n in range(1, evaluations + 1)
    ]


def symptoms(records: list[Record], facts: dict[str, Any] = FACTS) -> list[str]:
    return [finding.symptom.name for finding in judge(records, facts)]


def test_a_steady_history_has_nothing_found() -> None:
    assert symptoms(course()) == []


@pytest.mark.parametrize("entropy", [0.05, math.log(6)])
def test_attention_on_one_group_or_evenly_on_all_is_found(entropy: float) -> None:
    assert symptoms(course(attention_entropy=[entropy] * 2)) == ["attention"]
    assert symptoms(course(attention_entropy=[0.8 * math.log(6)] * 2)) == []


def test_exits_that_are_all_alike_are_found() -> None:
    assert symptoms(course(exit_spread=0.11)) == ["exit_spread"]
    assert symptoms(course(exit_spread=0.6)) == []


def test_a_sigmoid_exit_head_is_the_first_suspect_of_alike_exits() -> None:
    facts = {"configuration": {"training": {"dqn": {"exit_head": "sigmoid"}}}}
    (finding,) = judge(course(exit_spread=0.11), facts)
    assert finding.causes[0].name == "exits_in_trunk"


def test_flipping_at_every_evaluation_is_found() -> None:
    swinging = course(action_share=lambda n: [{"0": 0.9 if n % 2 else 0.1, "1": 0.1 if n % 2 else 0.9}] * 2)
    assert symptoms(swinging) == ["flips"]


def test_one_member_that_strays_is_no_symptom_of_the_training_but_a_broken_one_is() -> None:
    assert symptoms(course(dead_units=[0.05, 0.05, 0.99], members=3)) == []
    found = judge(course(loss=lambda n: [0.4, 0.4, math.nan if n > 10 else 0.4], members=3), FACTS)
    assert [(one.symptom.name, one.symptom.since_update) for one in found] == [("not_finite", 1100)]


def test_before_half_of_the_planned_updates_no_end_is_judged() -> None:
    poor = course(validation_bps=[0.0] * 2, train_bps=[0.0] * 2, turnover=[0.0] * 2)
    assert symptoms(poor, {"planned_updates": 10_000}) == []
    assert symptoms(poor, {"planned_updates": 2_000}) == ["nothing_learned"]


def test_a_training_is_told_of_each_symptom_once_and_at_once() -> None:
    doctor = Doctor(FACTS)
    told = [
        (record["update"], finding.symptom.name)
        for record in course(20, loss=lambda n: [50.0 if n == 7 else 0.4] * 2)
        for finding in doctor.observe(record)
    ]
    assert told == [(700, "loss_spike")]
    assert [finding.symptom.name for finding in doctor.findings()] == ["loss_spike"]


def test_a_resumed_training_is_not_told_again() -> None:
    records = course(20, loss=lambda n: [50.0 if n == 7 else 0.4] * 2)
    doctor = Doctor(FACTS, records[:10])
    assert [finding for record in records[10:] for finding in doctor.observe(record)] == []


def test_watching_costs_next_to_nothing() -> None:
    doctor = Doctor(FACTS)
    records = course(200, members=5)
    begin = time.process_time()
    for record in records:
        doctor.observe(record)
    assert (time.process_time() - begin) / len(records) < 0.02


def test_every_symptom_has_causes_and_every_cause_a_symptom() -> None:
    assert set(PRIORS) == set(SYMPTOMS)
    assert {name for priors in PRIORS.values() for name in priors} == set(CAUSES)


def test_the_manual_has_every_symptom_and_every_cause() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "training-doctor.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert told == [*SYMPTOMS, *CAUSES]


def test_a_change_names_the_setting_where_it_stands() -> None:
    records = course(dead_units=lambda n: [0.1 if n < 3 else 0.9] * 2, lr=[3.0] * 2)
    for training, change in (
        ({"dqn": {"learning_rate": 3.0}}, "--set training.dqn.learning_rate=0.001"),
        (
            {"learner": "dqn", "learning_rate": 1e-9, "dqn": {"learning_rate": 3.0}},
            "--set training.dqn.learning_rate=0.001",
        ),
        ({"learning_rate": 3.0}, "--set training.learning_rate=0.001"),
        ({}, "set learning rate to 0.001"),
    ):
        (finding,) = judge(records, {"configuration": {"training": training}})
        assert finding.causes[0].change == change


def test_findings_are_json() -> None:
    found = judge(course(loss=lambda n: [50.0 if n == 7 else 0.4] * 2), FACTS)
    told = json.loads(json.dumps([finding.to_json() for finding in found]))
    assert told[0]["name"] == "loss_spike"
    assert sum(cause["odds"] for cause in told[0]["causes"]) <= 1.0 + 1e-9


def test_what_is_known_of_a_training_is_what_its_table_holds(tmp_path: Path) -> None:
    table = table_of(walk(n=400), costs=table_costs())
    table.observations_TG[:, 0] = 7.0
    facts = run_facts(
        {"training": {"gamma": 0.9}},
        table,
        ["still", "b", "c"],
        reward_scale=2.0,
        planned_updates=5,
        validation_bars=9,
        parameters=3,
    )
    write_run_facts(tmp_path, facts)
    assert read_run_facts(tmp_path) == facts
    assert facts["inputs"] == {"constant": ["still"], "saturated": []}
    assert facts["rewards"]["side_cost_bps"] == pytest.approx(30.0, rel=0.01)
    deviation = facts["rewards"]["deviation_bps"] * 1e-4
    assert facts["rewards"]["scaled_deviation"] == pytest.approx(2.0 * deviation)
    assert facts["rewards"]["side_cost_deviations"] == pytest.approx(0.003 / deviation, rel=0.01)


def table_costs() -> Any:
    from small_markets import FEE_ONLY  # noqa: PLC0415  # beside its only use

    return FEE_ONLY


def test_a_saturated_feature_is_one_that_stays_at_an_end() -> None:
    table = table_of(walk(n=400))
    rng = np.random.default_rng(0)
    table.observations_TG[:, 0] = np.clip(rng.normal(2.0, 1.0, len(table)), -1.0, 1.0)
    table.observations_TG[:, 1] = rng.integers(0, 2, len(table))
    facts = run_facts(
        {}, table, ["clipped", "flag", "c"], reward_scale=1.0, planned_updates=None, validation_bars=1, parameters=1
    )
    assert facts["inputs"] == {"constant": [], "saturated": ["clipped"]}


def written(folder: Path, records: list[Record]) -> Path:
    history = History(folder)
    for record in records:
        history.append(record)
    return folder


def test_the_command_tells_what_it_finds(tmp_path: Path) -> None:
    run = written(tmp_path, course(loss=lambda n: [50.0 if n == 7 else 0.4] * 2))
    write_run_facts(run, {"configuration": {"training": {"learning_rate": 0.5}}})
    done = CliRunner().invoke(app, ["doctor", str(run)])
    assert done.exit_code == 0
    assert "warning: the loss jumps (loss_spike, since update 700)" in done.stdout
    assert "1. the learning rate is too high (learning_rate_high)" in done.stdout
    assert "try: --set training.learning_rate=0.001" in done.stdout


def test_the_command_fails_where_the_result_is_worthless(tmp_path: Path) -> None:
    run = written(tmp_path, course(loss=[math.nan] * 2))
    done = CliRunner().invoke(app, ["doctor", str(run), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["bad"]
    assert [one["name"] for one in told["findings"]] == ["not_finite"]


def test_the_command_says_when_there_is_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(written(tmp_path, course()))])
    assert (done.exit_code, "nothing found" in done.stdout) == (0, True)


def test_a_folder_that_is_no_training_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert done.exit_code == 1
    assert "name the folder of a training" in re.sub(r"\s+", " ", done.stderr)
    with pytest.raises(TrainingError):
        diagnose(tmp_path)


def test_the_report_command_writes_the_page(tmp_path: Path) -> None:
    run = written(tmp_path / "run", course())
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "page.html"), "--json"])
    assert json.loads(done.stdout) == {"report": str(tmp_path / "page.html")}
    assert "Nothing found." in (tmp_path / "page.html").read_text(encoding="utf-8")
