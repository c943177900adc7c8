import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import structlog
from small_markets import walk
from typer.testing import CliRunner

from brokers.series import from_ns
from strategies.bundle import Bundle
from strategies.policy import BundlePolicy
from training.cli import app
from training.data import load_market
from training.settings import load_training

SMALL = ["--set", "exchange.synthetic.bars=6000", "--updates", "40", "--set", "training.dqn.members=2"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["dqn", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("train") / "bundle"
    code, stdout, stderr = run("--out", str(out), *SMALL, "--json")
    assert code == 0, stderr
    return out, json.loads(stdout)


def test_a_small_training_leaves_a_bundle_that_serves(trained: tuple[Path, dict[str, object]]) -> None:
    policy = BundlePolicy(Bundle.load(trained[0], data_feed="recorded"))
    assert policy.targets == (0, 1)


def test_the_result_names_the_bundle_and_what_it_cost(trained: tuple[Path, dict[str, object]]) -> None:
    out, result = trained
    assert result["bundle"] == str(out)
    assert result["id"] == Bundle.load(out).id
    assert result["updates"] == 40


def test_the_manifest_says_what_was_trained_on_and_how_it_did(trained: tuple[Path, dict[str, object]]) -> None:
    manifest = Bundle.load(trained[0]).manifest
    assert manifest["seeds"] == [1]
    assert manifest["data"]["train"]["last_close"] < manifest["data"]["validation"]["first_close"]
    assert set(manifest["metrics"]["validation"]) == {"policy", "flat", "buy_and_hold", "random"}
    assert manifest["metrics"]["onnx_difference"] <= 1e-5
    assert manifest["metrics"]["planted_edge"]["known_net_bps"] > 0
    assert manifest["training"]["costs"]["fee_bps"] == 10.0


def test_the_same_command_gives_the_same_bundle(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    code, stdout, _ = run("--out", str(tmp_path / "again"), *SMALL, "--json")
    assert code == 0
    assert json.loads(stdout)["id"] == trained[1]["id"]


def test_a_directory_that_holds_something_is_refused_before_training(trained: tuple[Path, dict[str, object]]) -> None:
    code, _, stderr = run("--out", str(trained[0]), *SMALL)
    assert code == 1
    assert "holds something already" in stderr


def test_recorded_bars_are_trained_on_with_their_symbols_and_span(tmp_path: Path) -> None:
    bars = walk("AAA", 3000)
    frame = pl.DataFrame(
        {
            "timestamp": [from_ns(ns) for ns in bars.start_ns.tolist()],
            **{name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")},
            "symbol": ["AAA"] * len(bars),
        }
    )
    path = tmp_path / "bars.parquet"
    frame.write_parquet(path)
    end = from_ns(int(bars.start_ns[2900])).isoformat()
    code, stdout, stderr = run(
        "--out", str(tmp_path / "bundle"), "--bars", str(path), "--symbols", "AAA", "--end", end, "--updates", "4",
        "--set", "period=1h", "--preset", "tutorial", "--set", "training.learning_starts=32", "--json",
    )  # fmt: skip
    assert code == 0, stderr
    manifest = Bundle.load(Path(json.loads(stdout)["bundle"])).manifest
    assert manifest["data"]["symbols"] == ["AAA"]
    assert manifest["data"]["validation"]["last_close"] <= end
    assert len(manifest["feature_spec"]["names"]) == 30


def test_what_the_exchange_will_play_is_not_trained_on(tmp_path: Path) -> None:
    code, stdout, stderr = run(
        "--out", str(tmp_path / "bundle"), *SMALL, "--set", "exchange.start=2024-01-20T00:00:00Z", "--json"
    )
    assert code == 0, stderr
    manifest = Bundle.load(Path(json.loads(stdout)["bundle"])).manifest
    assert manifest["data"]["validation"]["last_close"] <= "2024-01-20T00:00:00+00:00"


def test_a_policy_with_shorts_values_three_targets(tmp_path: Path) -> None:
    code, stdout, stderr = run("--out", str(tmp_path / "bundle"), *SMALL, "--set", "training.shorts=true", "--json")
    assert code == 0, stderr
    assert BundlePolicy(Bundle.load(Path(json.loads(stdout)["bundle"]))).targets == (-1, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "training.gama=0.9"], 2, "did you mean 'gamma'"),
        (["--preset", "tutorail"], 2, "did you mean 'tutorial'"),
        (["--config", "absent.yaml"], 2, "absent.yaml"),
        (["--start", "yesterday"], 2, "--start 'yesterday'"),
        (["--set", "calendar=XXXX"], 2, "XXXX"),
        (["--bars", "absent.parquet"], 1, "absent.parquet"),
        (["--set", "exchange.synthetic.bars=900"], 1, "give more bars"),
        (["--end", "2020-01-01"], 1, "no bars of SYNTH"),
    ],
)
def test_what_cannot_work_ends_with_a_message_and_its_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    found, stdout, stderr = run("--out", str(tmp_path / "bundle"), *arguments)
    assert (found, stdout) == (code, "")
    assert message in stderr


def test_the_command_module_imports_nothing_heavy() -> None:
    script = (
        "import sys, training.cli; "
        "print([m for m in ('torch', 'numpy', 'polars', 'pydantic', 'gymnasium', 'rich.table') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def _nobody_has_configured_logs() -> Iterator[None]:
    structlog.reset_defaults()  # a command of the daemon that ran earlier in this process has
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_nobody_has_configured_logs")
def test_what_was_dropped_from_a_file_is_logged_beside_the_result_and_not_in_it(tmp_path: Path) -> None:
    bars = walk("AAA", 300)
    frame = pl.DataFrame(
        {
            "timestamp": [from_ns(ns) for ns in bars.start_ns.tolist()],
            **{name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")},
        }
    )
    frame.write_csv(tmp_path / "AAA.csv")
    code, stdout, stderr = run(
        "--out", str(tmp_path / "bundle"), "--bars", str(tmp_path / "AAA.csv"), "--set", "period=1h",
        "--set", "calendar=XNYS", "--preset", "tutorial", "--timesteps", "64", "--json",
    )  # fmt: skip
    assert (code, stdout) == (1, "")
    assert "outside_sessions_dropped" in stderr


def test_the_synthetic_market_without_its_edge_has_none() -> None:
    configuration = load_training(None, ["exchange.synthetic.edge=false", "exchange.synthetic.bars=20"], environ={})
    assert load_market(configuration).edge(configuration) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_default_preset_learns_the_planted_edge(tmp_path: Path, seed: int) -> None:
    metrics = learn(tmp_path, seed, "exchange.synthetic.bars=60000", "training.validation_fraction=0.6")
    policy, edge = metrics["validation"]["policy"], metrics["planted_edge"]
    assert policy["mean_bps"] > 4 * policy["error_bps"]
    assert policy["mean_bps"] > metrics["validation"]["random"]["mean_bps"] + 1.0
    assert policy["mean_bps"] > 0.8 * edge["visible_net_bps"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_without_an_edge_the_default_preset_loses_next_to_nothing(tmp_path: Path, seed: int) -> None:
    metrics = learn(tmp_path, seed, "exchange.synthetic.bars=60000", "exchange.synthetic.edge=false")
    policy, hold = metrics["validation"]["policy"], metrics["validation"]["buy_and_hold"]
    assert policy["turnover"] < 0.005
    assert policy["mean_bps"] > min(0.0, hold["mean_bps"]) - 0.05


def learn(tmp_path: Path, seed: int, *overrides: str) -> dict[str, dict[str, dict[str, float]]]:
    # a market that no value of the preset was chosen on
    fresh = (*overrides, "exchange.synthetic.seed=4711")
    arguments = [part for override in fresh for part in ("--set", override)]
    code, stdout, stderr = run("--out", str(tmp_path / "bundle"), "--seed", str(seed), *arguments, "--json")
    assert code == 0, stderr
    metrics: dict[str, dict[str, dict[str, float]]] = json.loads(stdout)["metrics"]
    return metrics
