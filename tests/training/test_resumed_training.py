"""A training process killed at random instants and started again ends with the weights of one that never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from resuming_training import KINDS

from training.dqn.history import read_history

DRIVER = Path(__file__).with_name("resuming_training.py")
WAIT_S_MAX = 300.0
KILLS = 10 if os.environ.get("TANDEM_FULL") else 4


def start(run: Path, kind: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(DRIVER.parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(run), kind],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run: Path, kind: str) -> float:
    """Run to the end; returns the seconds from the first stop to the last."""
    with start(run, kind) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        _, errors = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 0, errors
    return time.monotonic() - begin


def comparable(run: Path) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{name: value for name, value in record.items() if name != "cpu_s"} for record in read_history(run)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_instants_change_no_bit_of_the_final_weights(kind: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    learning_s = finish(whole, kind)
    rng = random.Random(f"resume|{kind}")
    kills = 0
    for _ in range(KILLS):
        with start(killed, kind) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.0, learning_s / 2))
            except subprocess.TimeoutExpired:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                kills += 1
    finish(killed, kind)
    assert kills > 0
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert repr(comparable(killed)) == repr(comparable(whole))


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_says_where_and_how_it_goes_on(tmp_path: Path) -> None:
    with start(tmp_path, "compiled") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 1
    assert "StoppedBySignalError: stopped at update" in errors
    assert "the same command goes on" in errors
    assert (tmp_path / "report.html").exists() or not read_history(tmp_path)


@pytest.mark.slow
def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    finish(tmp_path, "compiled")
    before = (tmp_path / "weights.safetensors").read_bytes(), (tmp_path / "history.jsonl").read_bytes()
    with start(tmp_path, "compiled") as process:
        said, errors = process.communicate(timeout=WAIT_S_MAX)
    assert (process.returncode, errors, "update=1000" in said) == (0, "", True)
    assert ((tmp_path / "weights.safetensors").read_bytes(), (tmp_path / "history.jsonl").read_bytes()) == before
