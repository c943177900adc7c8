import math

import numpy as np
import pytest
from judged_markets import QUICK, configuration_of, ground_of, told, with_the_column
from small_markets import FEE_ONLY, NO_COSTS

from brokers.costs import CostModel
from training.evaluation.folds import walk_forward
from training.evaluation.manifest import Luck
from training.evaluation.play import BASELINES, Played, play
from training.evaluation.report import report
from training.evaluation.ridge import fit_ridge
from training.evaluation.tracks import begins
from training.validation import follow, performance

CHEAP = CostModel(fee_bps=2.0, half_spread_bps=0.0, impact=0.0)
ONCE = Luck(1, None)


def judged(worth: float, costs: CostModel, n: int = 4_000, *, shorts: bool = False) -> tuple[Played, dict]:
    ground = ground_of(
        {name: told(name, n, seed, worth) for seed, name in enumerate(("AAA", "BBB"))}, costs, shorts=shorts
    )
    folds = walk_forward(ground.table, QUICK, memory_bars=ground.memory_bars)
    played = play(ground, folds, with_the_column, configuration_of(costs).training, QUICK, seeds=(1, 2))
    return played, report(ground, played, QUICK, ONCE, seed=1)


def test_planted_skill_is_found_against_every_rival_that_does_not_know_it() -> None:
    _, found = judged(0.3, CHEAP)
    differences = found["pooled"]["1"]["differences"]
    for name in set(BASELINES) - {"ridge_band"}:
        assert differences[name]["low_bps"] > 0.0, name
    assert found["skill"]["timing_p_value"] < 0.01
    assert found["skill"]["deflated_sharpe"] > 0.99


def test_the_honest_rival_knows_it_too_so_nothing_beyond_it_is_claimed() -> None:
    _, found = judged(0.3, CHEAP)
    rival = found["pooled"]["1"]["means"]["ridge_band"]
    assert rival["low_bps"] > 0.0
    assert found["verdict"]["lines"][0] == "evidence of skill, but not beyond ridge band"
    assert not found["verdict"]["beyond_every_rival"]


@pytest.mark.parametrize("costs", [NO_COSTS, FEE_ONLY])
def test_without_skill_nothing_is_claimed(costs: CostModel) -> None:
    _, found = judged(0.0, costs)
    assert found["verdict"]["lines"][0] == "no evidence of skill"
    assert found["skill"]["timing_p_value"] > 0.01


def test_every_cost_is_paid_on_the_same_decisions() -> None:
    played, found = judged(0.3, CHEAP)
    account = played.accounts["policy"]
    fee = -np.log1p(-2e-4) * 1e4
    means = [found["pooled"][str(multiple)]["means"]["policy"]["mean_bps"] for multiple in (0, 1, 2, 3)]
    steps = np.diff(means)
    assert steps == pytest.approx(-fee * account.turnover_R.mean(), rel=1e-3)


def test_the_policy_is_booked_as_the_validation_books_it() -> None:
    ground = ground_of({"AAA": told(worth=0.3)}, CHEAP)
    (fold,) = walk_forward(ground.table, QUICK.model_copy(update={"folds": 1}), memory_bars=ground.memory_bars)
    played = play(ground, (fold,), with_the_column, configuration_of(CHEAP).training, QUICK, seeds=(1,))
    keep = np.zeros(len(ground.table), dtype=bool)
    keep[fold.test_rows] = keep[fold.test_rows + 1] = True
    table = ground.table.where(keep)
    targets = np.zeros((3, len(table)), dtype=np.int64)
    targets[:, fold.test_rows] = played.held_SR[0]
    rewards, held = follow(table, targets)
    np.testing.assert_array_equal(held, played.held_SR[0])
    np.testing.assert_array_equal(rewards, played.by_seed[0].growth[1])
    assert performance(table, targets).turnover == pytest.approx(played.by_seed[0].turnover_R.mean())


def test_pooled_is_the_mean_of_the_symbols_and_the_folds_make_the_whole() -> None:
    _, found = judged(0.3, CHEAP)
    whole = found["pooled"]["1"]["means"]["policy"]["mean_bps"]
    symbols = [one["mean_bps"] for one in found["by_symbol"].values()]
    folds = [(one["mean_bps"], one["closes"]) for one in found["by_fold"].values()]
    seeds = [one["mean_bps"] for one in found["by_seed"].values()]
    assert np.mean(symbols) == pytest.approx(whole)
    assert np.mean(seeds) == pytest.approx(whole)
    assert sum(m * n for m, n in folds) / sum(n for _, n in folds) == pytest.approx(whole)


def test_matched_chance_trades_as_much_as_the_policy() -> None:
    played, _ = judged(0.3, CHEAP)
    policy, matched = played.accounts["policy"], played.accounts["matched_random"]
    assert matched.exposure_R.mean() == pytest.approx(policy.exposure_R.mean())
    assert matched.turnover_R.mean() == pytest.approx(policy.turnover_R.mean(), rel=0.01)


def test_the_ridge_forecast_finds_what_the_column_is_worth() -> None:
    ground = ground_of({"AAA": told(n=8_000, worth=0.2)}, CHEAP)
    rows = ground.table.start_rows
    rows = rows[np.isfinite(ground.volatility_T[rows])]
    ridge = fit_ridge(ground.table, ground.books, ground.volatility_T, rows, shorts=True)
    assert ridge.correlation == pytest.approx(0.2, abs=0.04)
    assert ridge.decay < 0.1
    forecast = ridge.forecast(ground.table.features_TF[rows], ground.volatility_T[rows])
    expected = 0.2 * 0.01 * ground.table.features_TF[rows, 0]
    assert np.corrcoef(forecast, expected)[0, 1] > 0.95
    assert np.polyfit(expected, forecast, 1)[0] == pytest.approx(1.0, abs=0.25)


def test_a_forecast_that_does_not_pay_its_costs_is_not_traded() -> None:
    ground = ground_of({"AAA": told(n=3_000, worth=0.2)}, CostModel(fee_bps=500.0, half_spread_bps=0.0, impact=0.0))
    rows = ground.table.start_rows
    ridge = fit_ridge(ground.table, ground.books, ground.volatility_T, rows, shorts=True)
    assert math.isinf(ridge.bands[1])
    held = ridge.positions(
        ground.table.features_TF[rows], ground.volatility_T[rows], begins(rows), multiple=1, shorts=True
    )
    assert not held.any()


def test_dearer_trades_make_a_wider_band() -> None:
    ground = ground_of({"AAA": told(n=8_000, worth=0.3)}, CHEAP)
    ridge = fit_ridge(ground.table, ground.books, ground.volatility_T, ground.table.start_rows, shorts=True)
    assert ridge.bands[0] <= ridge.bands[1] <= ridge.bands[3]
    assert ridge.bands[0] == 0.0


def test_the_report_of_the_same_play_is_the_same() -> None:
    first, again = judged(0.1, CHEAP, n=1_000)[1], judged(0.1, CHEAP, n=1_000)[1]
    assert first == again
