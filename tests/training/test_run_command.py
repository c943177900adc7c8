"""`tandem train dqn --run`: from bars to a bundle in a folder that can be gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.cli import app

QUICK = ["--updates", "60", "--set", "training.dqn.members=2", "--set", "training.exits.head='off'"]


@pytest.fixture
def world(tmp_path: Path) -> list[str]:
    bars = tmp_path / "world.parquet"
    assert CliRunner().invoke(app, ["world", "mean_reverting", "--bars", "8000", "--out", str(bars)]).exit_code == 0
    return ["--config", str(bars.with_suffix(".yaml")), "--bars", str(bars)]


@pytest.mark.slow
def test_a_finished_run_gives_its_bundle_again_without_training(world: list[str], tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        out = ["--out", str(tmp_path / name), "--run", str(tmp_path / "run"), "--json"]
        done = CliRunner().invoke(app, ["dqn", *world, *out, *QUICK])
        assert done.exit_code == 0, done.stderr
        made.append(json.loads(done.stdout))
    assert made[0]["id"] == made[1]["id"]
    assert made[0]["learning_cpu_s"] == made[1]["learning_cpu_s"]
    assert (tmp_path / "run" / "report.html").exists()
    assert CliRunner().invoke(app, ["doctor", str(tmp_path / "run")]).exit_code == 0


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(world: list[str], tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run")]
    CliRunner().invoke(app, ["dqn", *world, *run, "--out", str(tmp_path / "one"), *QUICK])
    done = CliRunner().invoke(app, ["dqn", *world, *run, "--out", str(tmp_path / "two"), *QUICK, "--seed", "9"])
    assert done.exit_code == 1
    assert "configuration.training.seed: 1, now 9" in done.stderr


def test_the_library_s_learner_has_no_run_folder(world: list[str], tmp_path: Path) -> None:
    given = ["--preset", "tutorial", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "policy")]
    done = CliRunner().invoke(app, ["dqn", *world, *given])
    assert done.exit_code == 1
    assert "keeps no checkpoints" in done.stderr


@pytest.mark.slow
def test_the_command_killed_at_random_instants_makes_the_same_bundle(world: list[str], tmp_path: Path) -> None:
    quick = [*QUICK, "--set", "training.dqn.checkpoint_episodes=1", "--updates", "600"]
    whole = ["--out", str(tmp_path / "whole"), "--run", str(tmp_path / "run_of_whole"), "--json"]
    begin = time.monotonic()
    wanted = json.loads(command("dqn", *world, *quick, *whole).communicate()[0])["id"]
    took_s = time.monotonic() - begin
    rng = random.Random(5)
    again = ["--out", str(tmp_path / "killed"), "--run", str(tmp_path / "run"), "--json"]
    for _ in range(10 if os.environ.get("TANDEM_FULL") else 3):
        process = command("dqn", *world, *quick, *again)
        try:
            process.communicate(timeout=rng.uniform(0.3, 1.0) * took_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
    said, errors = command("dqn", *world, *quick, *again).communicate()
    assert json.loads(said or "{}").get("id") == wanted, errors


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
