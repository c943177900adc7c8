import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import structlog
from typer.testing import CliRunner

from training.cli import app
from training.data import load_market
from training.evaluation.command import evaluate, learner
from training.evaluation.manifest import content_hash
from training.evaluation.settings import EvaluationSettings, load_evaluation
from training.settings import load_training
from training.validation import TargetOf

SYNTHETIC = [
    "--set",
    "exchange.synthetic.bars=4000",
    "--set",
    "training.dqn.updates=20",
    "--set",
    "training.dqn.members=1",
]
PLAIN = ["--set", "training.features=tutorial", "--set", 'training.exits.head="off"']
SMALL = [
    *SYNTHETIC, "--set", "training.features=tutorial", "--set", "evaluation.resamples=200",
    "--set", "evaluation.draws=3", "--set", "evaluation.cuts=1", "--folds", "2", "--seeds", "2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_has_configured_logs() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def test_a_learner_is_judged_in_every_fold_with_every_seed(tmp_path: Path) -> None:
    out = tmp_path / "judged"
    code, stdout, stderr = run("evaluate", "--out", str(out), *SMALL, "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert json.loads((out / "report.json").read_text()) == found
    assert [(one["fold"], one["seed"]) for one in found["by_fold_and_seed"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert list(found["rules"]) == [
        "policy", "flat", "buy_and_hold", "volatility_targeted", "matched_random", "momentum", "ridge_band", "random",
    ]  # fmt: skip
    assert [control["name"] for control in found["controls"]] == [
        "truncated features",
        "one-bar lag",
        "shuffled returns",
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["hash"] == content_hash(manifest) == found["manifest"]
    assert [fold["fold"] for fold in manifest["folds"]] == [1, 2]
    decisions = pl.read_parquet(out / "decisions.parquet")
    assert len(decisions) == 2 * found["rows"]
    assert set(decisions["action"].unique()) <= {"BUY", "SELL", "HOLD"}
    by_seed = decisions.group_by("seed").agg(pl.col("growth_bps").mean()).sort("seed")
    assert by_seed["growth_bps"].to_list() == pytest.approx([one["mean_bps"] for one in found["by_seed"].values()])


def test_the_table_for_people_has_rivals_costs_controls_and_a_verdict(tmp_path: Path) -> None:
    code, stdout, stderr = run("evaluate", "--out", str(tmp_path / "judged"), *SMALL, "--seeds", "1")
    assert code == 0, stderr
    for expected in ("ridge band", "matched random", "3x", "pass  shuffled returns", "timing p", "evidence of skill"):
        assert expected in stdout


def test_the_same_command_finds_the_same_and_another_counts_as_a_trial(tmp_path: Path) -> None:
    once = [*SMALL, "--folds", "1", "--seeds", "1", "--json"]
    first = json.loads(run("evaluate", "--out", str(tmp_path / "one"), *once)[1])
    again = json.loads(run("evaluate", "--out", str(tmp_path / "two"), *once)[1])
    other = json.loads(run("evaluate", "--out", str(tmp_path / "three"), *once, "--set", "training.seed=7")[1])
    assert {**first, "out": ""} == {**again, "out": ""}
    assert (first["skill"]["trials"], other["skill"]["trials"]) == (1, 2)
    assert first["manifest"] != other["manifest"]


def test_the_manifest_stands_before_anything_is_scored(tmp_path: Path) -> None:
    given = ["exchange.synthetic.bars=4000", "training.features=tutorial", "evaluation.folds=2", "evaluation.seeds=1"]
    configuration, settings = load_training(None, given, environ={}), load_evaluation(None, given, environ={})
    market = load_market(configuration)
    seen: list[list[str]] = []

    def broken(*_: object) -> TargetOf:
        seen.append(sorted(one.name for one in tmp_path.rglob("*")))
        raise KeyboardInterrupt

    candidate = replace(learner(configuration, settings, market), trainer=broken)
    with pytest.raises(KeyboardInterrupt):
        evaluate(configuration, settings, market, candidate, tmp_path / "judged")
    assert seen == [["judged", "manifest.json", "trials.jsonl"]]
    (line,) = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "planned"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "bundle"
    code, _, stderr = run("dqn", "--out", str(folder), *SYNTHETIC, *PLAIN, "--end", "2024-01-08")
    assert code == 0, stderr
    return folder


def test_a_bundle_is_judged_on_later_bars(tmp_path: Path, policy: Path) -> None:
    code, stdout, stderr = run(
        "evaluate",
        "--out",
        str(tmp_path / "judged"),
        "--bundle",
        str(policy),
        *SMALL,
        "--start",
        "2024-01-08",
        "--json",
    )
    assert code == 0, stderr
    found = json.loads(stdout)
    assert len(found["by_seed"]) == 1
    manifest = json.loads((tmp_path / "judged" / "manifest.json").read_text())
    content = (policy / "manifest.json").read_bytes()
    assert manifest["policy"]["bundle"] == json.loads(content)["id"]
    assert hashlib.sha256((policy / "manifest.json").read_bytes()).digest() == hashlib.sha256(content).digest()


def test_bars_that_a_bundle_was_trained_on_are_refused_with_both_spans(tmp_path: Path, policy: Path) -> None:
    trained = json.loads((policy / "manifest.json").read_text())["data"]
    code, stdout, stderr = run("evaluate", "--out", str(tmp_path / "judged"), "--bundle", str(policy), *SMALL)
    assert (code, stdout) == (1, "")
    for named in (trained["train"]["first_close"], trained["train"]["last_close"], "2024-01-01T00:05:00+00:00"):
        assert named in stderr
    assert f"--start {trained['split_at']}" in stderr
    assert not (tmp_path / "judged").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "evaluation.fold=3"], 2, "did you mean 'folds'"),
        (["--window", "roling"], 2, "evaluation.window"),
        (["--folds", "0"], 2, "evaluation.folds"),
        (["--bundle", "absent"], 1, "absent"),
        (["--set", "exchange.synthetic.bars=300"], 1, "give more bars"),
        (["--set", "period=1h", "--start", "tomorrow"], 2, "--start 'tomorrow'"),
    ],
)
def test_what_cannot_work_is_said_in_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    found, stdout, stderr = run("evaluate", "--out", str(tmp_path / "judged"), *SMALL, *arguments)
    assert (found, stdout) == (code, "")
    assert message in stderr


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    code, _, stderr = run("evaluate", "--out", str(tmp_path), *SMALL)
    assert (code, "holds something already" in stderr) == (1, True)
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_the_manual_tells_of_every_setting() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in EvaluationSettings.model_fields if f"| `evaluation.{name}` |" not in page] == []


@pytest.mark.slow
def test_the_planted_edge_of_the_synthetic_market_is_found_and_its_absence_as_well(tmp_path: Path) -> None:
    skilled = {}
    for edge in ("true", "false"):
        code, stdout, stderr = run(
            "evaluate", "--out", str(tmp_path / edge), "--folds", "2", "--seeds", "2", "--json",
            "--set", "exchange.synthetic.bars=60000", "--set", f"exchange.synthetic.edge={edge}",
            "--set", "exchange.synthetic.seed=4711", "--set", "training.preset=reference",
        )  # fmt: skip
        assert code == 0, stderr
        skilled[edge] = json.loads(stdout)["verdict"]["skill"]
    assert skilled == {"true": True, "false": False}
