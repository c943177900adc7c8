import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from brokers.bars import load_bars
from brokers.calendar import calendar
from training.cli import app

MARKET = ["--set", "exchange.synthetic.bars=20000", "--set", "exchange.synthetic.seed=3"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["scenario", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("kind", ["bootstrap", "regimes", "volatility"])
def test_a_scenario_is_a_bars_file_and_its_measures_are_told(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "scenario.parquet"
    code, stdout, stderr = run(kind, "--out", str(out), "--regime-bars", "200,200", *MARKET, "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert (result["bars"], result["kind"]) == (str(out), kind)
    assert all(abs(one["scenario"] - one["source"]) <= one["allowed"] for one in result["measures"])
    (bars,) = load_bars(out, period=timedelta(minutes=5), calendar=calendar("24/7")).values()
    assert len(bars) == 20_000
    assert (bars.low <= bars.close).all()
    assert (bars.close <= bars.high).all()


def test_a_scenario_of_a_scenario_of_sessions_can_be_made(tmp_path: Path) -> None:
    sessions = ["--set", "calendar=XNYS", "--set", "period=1h", *MARKET]
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    assert run("bootstrap", "--out", str(first), *sessions)[0] == 0
    code, stdout, stderr = run("volatility", "--bars", str(first), "--out", str(second), *sessions)
    assert code == 0, stderr
    assert "20000 bars of SYNTH" in stdout
    made = [load_bars(one, period=timedelta(hours=1), calendar=calendar("XNYS"))["SYNTH"] for one in (first, second)]
    np.testing.assert_array_equal(made[0].start_ns, made[1].start_ns)


def test_a_scenario_that_the_gate_refuses_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "scenario.parquet"
    code, _, stderr = run("bootstrap", "--block-bars", "1", "--out", str(out), *MARKET)
    assert code == 1
    assert "autocorrelation of absolute returns" in stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bootstrp", "--out", "a.parquet"], 2, "did you mean 'bootstrap'"),
        (["regimes", "--out", "a.parquet", "--regime-bars", "many"], 2, "--regime-bars 'many'"),
        (["regimes", "--out", "a.parquet", "--regime-shares", "1.0"], 1, "one share for each"),
        (["volatility", "--out", "a.csv"], 1, "let it end in .parquet"),
        (["volatility", "--out", "a.parquet", "--set", "exchange.synthetic.bars=500"], 1, "499 returns"),
    ],
)
def test_what_cannot_be_made_says_what_to_do(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exit_code, _, stderr = run(*arguments)
    assert exit_code == code
    assert message in stderr


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "scenario.parquet"
    out.write_bytes(b"mine")
    code, _, stderr = run("volatility", "--out", str(out), *MARKET)
    assert code == 1
    assert "exists already" in stderr
    assert out.read_bytes() == b"mine"
