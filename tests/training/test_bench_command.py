import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from training.cli import app
from training.markets.mean_reverting import MeanReverting
from training.markets.suite import load_worlds
from training.markets.world import PERIOD
from training.settings import load_training

SMALL = ["--bars", "500", "--seeds", "2"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


def test_the_table_has_the_controls_and_every_baseline() -> None:
    code, stdout, stderr = run("bench", "--world", "mean_reverting", *SMALL, "--json")
    assert code == 0, stderr
    (world,) = json.loads(stdout)["worlds"]
    names = [row["name"] for row in world["rows"]]
    assert names[:4] == ["optimal", "sign", "one_step", "flat"]
    assert {"random", "momentum", "mean_reversion", "no_trade_band", "buy_and_hold"} <= set(names)
    assert world["optimum_bps"] == pytest.approx(8.608, abs=0.01)


def test_worlds_strategies_and_parameters_are_those_named() -> None:
    code, stdout, stderr = run(
        "bench", "--world", "martingale", "--world", "garleanu_pedersen",
        "--strategy", "momentum:lookback=16,enter=1.5", "--set", "martingale.cost_bps=3", *SMALL, "--json",
    )  # fmt: skip
    assert code == 0, stderr
    martingale, other = json.loads(stdout)["worlds"]
    assert martingale["parameters"]["cost_bps"] == 3.0
    assert [row["name"] for row in martingale["rows"]][3:] == ["momentum:lookback=16,enter=1.5"]
    assert other["world"] == "garleanu_pedersen"


def test_the_same_command_prints_the_same_and_another_first_seed_does_not() -> None:
    command = ["bench", "--world", "martingale", "--strategy", "random", *SMALL, "--json"]
    first, again, other = run(*command), run(*command), run(*command, "--first-seed", "7")
    assert first == again
    assert first[1] != other[1]


def test_the_table_for_people_names_the_optimum_and_who_knows_the_state() -> None:
    code, stdout, _ = run("bench", "--world", "mean_reverting", "--strategy", "flat", *SMALL)
    assert code == 0
    assert "optimum 8.608 bp per bar" in stdout
    assert "optimal *" in stdout
    assert "flat *" not in stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--world", "mean_revering"], 2, "did you mean 'mean_reverting'"),
        (["--set", "predictor.rh=0.9"], 2, "did you mean 'rho'"),
        (["--set", "predictor.rho=1"], 2, "predictor.rho = 1 (from --set predictor.rho)"),
        (["--strategy", "momentun"], 2, "did you mean 'momentum'"),
        (["--strategy", "momentum:look=3"], 2, "did you mean 'lookback'"),
        (["--strategy", "flat", "--strategy", "flat"], 2, "named twice"),
        (["--bundle", "absent"], 1, "absent"),
        (["--train", "defalt"], 2, "did you mean 'default'"),
        (["--train", "default", "--train", "default"], 2, "named twice at 500000 bars"),
        (["--train", "default", "--train-bars", "100"], 2, "--train-bars"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments: list[str], code: int, message: str) -> None:
    found, _, stderr = run("bench", *arguments, *SMALL)
    assert (found, message in stderr) == (code, True), stderr


def test_bars_to_train_on_are_written_with_their_columns(tmp_path: Path) -> None:
    out = tmp_path / "predictor.parquet"
    code, _, stderr = run("world", "predictor", "--out", str(out), "--bars", "300", "--seed", "4")
    assert code == 0, stderr
    frame = pl.read_parquet(out)
    path = load_worlds(()).predictor.path(300, 4, "training")
    assert frame["close"].to_list() == path.series.close.tolist()
    assert sum(name.startswith("column_") for name in frame.columns) == 30


def test_the_configuration_beside_them_has_the_worlds_costs_and_shorts(tmp_path: Path) -> None:
    code, _, stderr = run(
        "world", "mean_reverting", "--out", str(tmp_path / "world.parquet"), "--bars", "300",
        "--set", "mean_reverting.cost_bps=7", "--set", "mean_reverting.shorts=false",
    )  # fmt: skip
    assert code == 0, stderr
    configuration = load_training(tmp_path / "world.yaml", environ={})
    assert configuration.costs.model() == MeanReverting(cost_bps=7).costs()
    assert (configuration.training.shorts, configuration.bar_period) == (False, PERIOD)


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "bars.parquet"
    out.write_text("mine")
    code, _, stderr = run("world", "martingale", "--out", str(out), "--bars", "300")
    assert (code, "exists already" in stderr, out.read_text()) == (1, True, "mine")


def test_bars_are_written_as_parquet_alone(tmp_path: Path) -> None:
    code, _, stderr = run("world", "martingale", "--out", str(tmp_path / "bars.csv"), "--bars", "300")
    assert (code, ".parquet" in stderr) == (1, True)
