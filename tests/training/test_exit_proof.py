"""What the exit head is held to: worlds whose best bracket is known, real bars it has not seen, the exported model."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from brokers.bars import load_bars
from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.series import to_ns
from strategies.features import compute_frame, default_spec
from training.cli import app
from training.errors import TrainingError
from training.exits.agreement import check_exits
from training.exits.bench import Choice, bench_heads, bench_settings, simulated_rows
from training.exits.coverage import check_gains, check_quantiles
from training.exits.fit import fit_exits, train_exits
from training.exits.rows import exit_rows
from training.exits.settings import ExitSettings
from training.market import build_table
from training.markets.exits import ExitWorlds

HOUR = timedelta(hours=1)
BPS = 1e-4
WORLDS = ExitWorlds().all()

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(scale: Callable[[float, float], float]) -> dict[str, list[Choice]]:
    heads = bench_heads(WORLDS, episodes=60_000, seed=2, error_bps=scale(0.5, 2.0))
    return {trained.metrics["head"]: choices for trained, choices in heads}


def test_every_world_gets_a_bracket_within_a_tenth_of_the_best(found: dict[str, list[Choice]]) -> None:
    martingale, *others = found["quantile"]
    for one in others:
        print(one)  # noqa: T201 -- the numbers of docs/experiments.md
        assert one.fraction is not None
        assert one.fraction >= 0.9, one.world
        assert one.fresh >= 0.9 * one.best.net - 3.0 * one.fresh_error, one.world
    assert abs(martingale.exact - martingale.best.net) < 2.0 * BPS


def test_the_three_brackets_are_visibly_different(found: dict[str, list[Choice]]) -> None:
    _, reversion, trend, breakdown = (one.bracket for one in found["quantile"])
    assert reversion.take_profit is not None
    assert reversion.stop is None or reversion.stop >= 8.0
    assert trend.stop is not None
    assert trend.take_profit is None
    assert breakdown.stop is not None
    assert breakdown.take_profit is not None


def test_the_sigmoid_head_leaves_more_than_a_third_of_the_worth_where_exits_matter(
    found: dict[str, list[Choice]],
) -> None:
    for one in found["sigmoid_mse"][1:]:
        print(one)  # noqa: T201 -- as above
        assert one.fraction is not None
        assert one.fraction < 0.67, one.world


def test_quantiles_hold_on_hourly_shares_after_2012(market_data: Path) -> None:
    nyse = calendar("XNYS")
    series = load_bars(market_data / "us_equity_1h.parquet", period=HOUR, calendar=nyse)
    spec, costs, settings = default_spec(HOUR), CostModel(), ExitSettings()
    features = {name: compute_frame(spec, bars, nyse) for name, bars in series.items()}
    table = build_table(series, features, costs, capital_usd=45_000.0)
    before_T = table.close_ns_T < to_ns(datetime(2013, 1, 1, tzinfo=UTC))
    trained = train_exits(table.where(before_T), series, spec, settings, costs, capital_usd=45_000.0, seed=1)
    rows = exit_rows(table.where(~before_T), series, spec, settings, costs, capital_usd=45_000.0)
    symbol_R = [table.symbols[k] for k in table.symbol_T[rows.table_row_R]]
    checks = [one for one in check_quantiles(trained, rows, symbol_R) if one.share in {0.25, 0.5, 0.75, 0.9}]
    print(trained.cpu_s, *checks, *check_gains(trained, rows, settings.levels), sep="\n")  # noqa: T201 -- as above
    assert len(checks) == 8
    for one in checks:
        assert abs(one.covered - one.share) <= 0.03, one
        assert max(abs(covered - one.share) for covered in one.by_symbol.values()) <= 0.06, one
        assert 0.8 <= one.slope <= 1.2, one


def test_the_exported_head_says_what_the_trained_one_says(tmp_path: Path) -> None:
    import onnxruntime as ort  # noqa: PLC0415 -- slow to load, and for this test alone

    from training.dqn.export import _quiet_exporter  # noqa: PLC0415 -- as above

    settings = bench_settings("quantile")
    rows = simulated_rows(WORLDS, settings, episodes=2_000, seed=1)
    trained = fit_exits(rows, settings, volatility_column=0, level_F=np.zeros(16, dtype=bool), seed=1)
    face, free = trained.module, {0: torch.export.Dim.DYNAMIC}
    with _quiet_exporter():
        program = torch.onnx.export(
            face,
            (torch.zeros(2, 16), torch.zeros(2)),
            input_names=("features", "target"),
            output_names=face.output_names,
            dynamic_shapes=(free, free),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(tmp_path / "exits.onnx"))
    session = ort.InferenceSession(str(tmp_path / "exits.onnx"), providers=["CPUExecutionProvider"])
    target_B = np.random.default_rng(0).integers(-1, 2, len(rows))
    answer = session.run(None, {"features": rows.features_RF, "target": target_B.astype(np.float32)})
    served = dict(zip(face.output_names, answer, strict=True))
    assert check_exits(face, served, rows.features_RF, target_B) < 1e-5
    with pytest.raises(TrainingError, match="others on"):
        check_exits(face, served, rows.features_RF, -target_B)


def test_the_command_prints_both_heads_choices_beside_the_best() -> None:
    runner = CliRunner()
    small = ["exits", "--head", "--trades", "1000", "--error-bps", "20"]
    heads = json.loads(runner.invoke(app, [*small, "--json"]).stdout)
    assert [one["head"] for one in heads] == ["quantile", "sigmoid_mse"]
    assert [one["world"] for one in heads[0]["worlds"]] == [world.name for world in WORLDS]
    printed = runner.invoke(app, small, env={"COLUMNS": "100"}).stdout
    assert "exit head sigmoid_mse" in printed
    assert "breakdown" in printed
