"""Rows of the bench that are trained first: recipes, intervals over trainings and paths, and work on several cores."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from brokers.configuration import ConfigurationError
from strategies.features import default_spec
from strategies.observation import model_inputs
from strategies.strategy import Observations
from training.cli import app
from training.errors import TrainingError
from training.markets.bench import LEAD_BARS, PathScore, bench_world, estimate, trained_row
from training.markets.ceiling import LinearReader, linear_ceiling
from training.markets.deciders import Driver
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.suite import Trainings, run_bench
from training.markets.trained import read_recipes, short_count, training_market
from training.markets.workers import workers
from training.markets.world import PERIOD
from training.settings import PRESETS

WORLD = MeanReverting(shorts=False, cost_bps=7.0)
SMALL = Trainings(("reference:timesteps=160,n_envs=4",), (6_000,), (1, 2))


def test_a_recipe_is_trained_with_the_worlds_costs_and_shorts_whatever_its_preset() -> None:
    for preset in PRESETS:
        (recipe,) = read_recipes([preset], [5_000], WORLD)
        configuration = recipe.configuration(WORLD, 3)
        assert configuration.costs.model() == WORLD.costs()
        assert configuration.bar_period == PERIOD
        assert (configuration.training.shorts, configuration.training.seed) == (False, 3)
        assert configuration.training.preset == preset


def test_a_recipe_changes_what_it_names_and_nothing_else() -> None:
    (recipe,) = read_recipes(["default:dqn.gamma=0.5,dqn.hidden=[8,4]"], [500_000], WORLD)
    changed = recipe.configuration(WORLD, 1).training.dqn
    (plain,) = read_recipes(["default"], [500_000], WORLD)
    untouched = plain.configuration(WORLD, 1).training.dqn
    assert (changed.gamma, changed.hidden) == (0.5, (8, 4))
    assert changed.model_copy(update={"gamma": untouched.gamma, "hidden": untouched.hidden}) == untouched
    assert recipe.label == "default:dqn.gamma=0.5,dqn.hidden=[8,4] 500k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defualt", "did you mean 'default'"),
        ("default:dqn.gama=0.5", "did you mean 'gamma'"),
        ("default:dqn.gamma=2", "gamma"),
        ("default:dqn.gamma", "not of the form"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_recipes([text], [5_000], WORLD)


def test_a_recipe_named_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="named twice at 5000 bars"):
        read_recipes(["default", "default"], [5_000], WORLD)


def test_no_policy_is_trained_where_costs_are_quadratic() -> None:
    code = CliRunner().invoke(app, ["bench", "--world", "garleanu_pedersen", "--train", "default"])
    assert code.exit_code == 2
    assert "quadratic" in code.stderr


def test_trainings_see_training_paths_and_longer_ones_begin_with_the_shorter() -> None:
    short, long = (training_market(WORLD, bars, 4).series["mean_reverting"] for bars in (500, 900))
    np.testing.assert_array_equal(short.close, long.close[:500])
    np.testing.assert_array_equal(short.close, WORLD.path(500, 4, "training").series.close)
    assert short.close[-1] != WORLD.path(500, 4).series.close[-1]


def test_counts_of_bars_are_short() -> None:
    assert [short_count(bars) for bars in (50_000, 500_000, 5_000_000, 2_500)] == ["50k", "500k", "5M", "2500"]


def brute_force(value_SK: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(99)
    seeds, paths = value_SK.shape
    means = [
        value_SK[np.ix_(rng.integers(seeds, size=seeds), rng.integers(paths, size=paths))].mean() for _ in range(20_000)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def test_the_interval_of_a_trained_row_draws_seeds_and_paths_again() -> None:
    rng = np.random.default_rng(5)
    value_SK = rng.normal(0, 1.0, (5, 1)) + rng.normal(0, 0.5, (1, 12)) + rng.normal(0, 0.2, (5, 12))
    found = estimate(value_SK)
    assert found.mean == pytest.approx(value_SK.mean())
    assert (found.low, found.high) == pytest.approx(brute_force(value_SK), abs=0.03)


def test_trainings_that_differ_widen_the_interval() -> None:
    path_K = np.random.default_rng(6).normal(0, 0.1, 16)
    alike, differing = np.tile(path_K, (5, 1)), path_K + np.array([[-1.0], [-0.5], [0.0], [0.5], [1.0]])
    narrow, wide = (estimate(value_SK) for value_SK in (alike, differing))
    assert narrow.high is not None
    assert narrow.low is not None
    assert wide.high is not None
    assert wide.low is not None
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_one_training_has_the_interval_of_its_paths() -> None:
    value_K = np.random.default_rng(6).normal(0, 0.1, 16)
    assert estimate(value_K[None]) == estimate(value_K)
    assert estimate(np.array([[0.3]])).low is None


def path_score(mean: float) -> PathScore:
    return PathScore(mean, mean, 1e-4 - mean, 0.1, 0.5, 0.0)


def test_a_trained_row_tells_each_training() -> None:
    row = trained_row("a", [[path_score(mean)] * 3 for mean in (0.5e-4, 1e-4)], 1e-4, {"seeds": [1, 2]})
    assert row.fraction is not None
    assert row.fraction.mean == pytest.approx(0.75)
    assert row.trained["by_seed"]["fraction"] == pytest.approx([0.5, 1.0])
    assert row.trained["by_seed"]["fraction_by_regret"] == pytest.approx([0.5, 1.0])
    assert row.trained["by_seed"]["mean_bps"] == pytest.approx([0.5, 1.0])


def test_on_a_martingale_a_trained_row_has_no_fraction() -> None:
    row = trained_row("a", [[path_score(-1e-5)]], 0.0, {})
    assert row.fraction is None
    assert "fraction" not in row.trained["by_seed"]


def test_results_come_in_the_order_of_their_tasks_here_and_there() -> None:
    for count in (1, 2):
        with workers(count) as crew:
            assert crew.map(abs, [-3, 2, -1]) == [3, 2, 1]


def test_what_goes_wrong_in_a_worker_is_raised_here_and_ends_the_others() -> None:
    before = set(multiprocessing.active_children())
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), workers(2) as crew:
        crew.map(fail_or_sleep, [60.0, 0.0])
    assert time.monotonic() - began < 30
    assert set(multiprocessing.active_children()) == before


def fail_or_sleep(seconds: float) -> float:
    time.sleep(seconds)
    return 1.0 / seconds


def test_a_worker_that_dies_is_a_training_that_failed() -> None:
    with pytest.raises(TrainingError, match="fewer --workers"), workers(2) as crew:
        crew.map(os._exit, [3])


def reader_of(world: Predictor) -> LinearReader:
    return linear_ceiling(world, world.solve(), bars=20_000)


def test_the_ceiling_of_features_that_hold_the_state_is_nearly_the_optimum() -> None:
    world = Predictor(columns=2, place=1, shorts=False)
    report = bench_world(world, {"ceiling": reader_of(world)}, bars=8_000, seeds=(0, 1))
    (row,) = (row for row in report.rows if row.name == "ceiling")
    assert row.fraction_by_regret is not None
    assert row.fraction_by_regret.mean > 0.97


def test_the_ceiling_of_a_martingale_stays_flat() -> None:
    world = Martingale()
    report = bench_world(world, {"ceiling": linear_ceiling(world, world.solve(), bars=5_000)}, bars=500, seeds=(0,))
    assert report.rows[-1].turnover == 0.0


def test_the_linear_reader_answers_alike_in_batches_and_one_by_one() -> None:
    world = Predictor(columns=2, place=1)
    reader = pickle.loads(pickle.dumps(reader_of(world)))  # noqa: S301 -- its own bytes, as they go to a worker
    driver = Driver(world.path(LEAD_BARS + 300, 1), LEAD_BARS - 1, world.allowed)

    class OneByOne:
        name = "one by one"
        feature_spec = reader.feature_spec

        async def opinions(self, observations: Observations) -> object:
            return await reader.opinions(observations)

    np.testing.assert_array_equal(driver.drive(reader).held_T, driver.drive(OneByOne()).held_T)  # type: ignore[arg-type]


def test_a_spec_reaches_another_process() -> None:
    spec = default_spec(PERIOD, ["a"])
    again = pickle.loads(pickle.dumps(spec))  # noqa: S301 -- its own bytes
    assert (again, again.names) == (spec, spec.names)
    assert model_inputs(np.zeros((1, len(again.names))), np.zeros(1, dtype=np.int8))["features"].shape == (
        1,
        len(spec.names),
    )


def without_times(report: object) -> object:
    return json.loads(
        json.dumps(report), object_hook=lambda d: {k: v for k, v in d.items() if k not in {"cpu_s", "wall_s"}}
    )


@pytest.mark.slow
def test_tables_do_not_depend_on_the_number_of_processes() -> None:
    found = []
    for processes in (1, 2):
        done: list[tuple[int, int]] = []
        (report,) = run_bench(
            [WORLD], ["flat"], [], bars=400, seeds=(0, 1, 2), trainings=SMALL, processes=processes,
            on_progress=lambda *step, done=done: done.append(step),
        )  # fmt: skip
        found.append(without_times(asdict(report)))
        assert done[-1] == (5, 5)
    assert found[0] == found[1]
    assert [row["name"] for row in found[0]["rows"]][3:] == ["flat", "reference:timesteps=160,n_envs=4 6k"]  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_bench_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "agent.cli", "train", "bench", "--world", "mean_reverting", "--train", "default"]
    command += ["--train-bars", "500000", "--train-seeds", "2", "--workers", "2"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    bench = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        children: list[psutil.Process] = []
        while len(children) < 2 or sum(child.cpu_times().user for child in children) < 4.0:
            assert bench.poll() is None
            time.sleep(0.2)
            children = [
                c for c in psutil.Process(bench.pid).children(recursive=True) if "spawn_main" in " ".join(c.cmdline())
            ]
        bench.send_signal(how)
        bench.wait(timeout=30)
        _, alive = psutil.wait_procs(children, timeout=15)
        assert alive == []
        assert list(tmp_path.iterdir()) == []
    finally:
        bench.kill()
        bench.wait()
