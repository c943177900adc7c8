import math
from dataclasses import replace

import numpy as np
import pytest

from strategies.baselines import make_baseline
from training.errors import TrainingError
from training.markets.garleanu_pedersen import GarleanuPedersen, LinearRule, bench_garleanu_pedersen
from training.markets.world import PERIOD


def test_the_trading_rate_at_equal_risk_and_friction_is_the_golden_ratio() -> None:
    assert GarleanuPedersen(cost_ratio=1.0).trading_rate() == pytest.approx((math.sqrt(5.0) - 1.0) / 2.0, abs=1e-12)


@pytest.mark.parametrize(("decay", "weight"), [(0.02, 0.9878), (0.2, 0.8900)])
def test_the_aim_shrinks_as_the_predictor_decays(*, decay: float, weight: float) -> None:
    assert GarleanuPedersen(cost_ratio=1.0, decay=decay).aim_weight() == pytest.approx(weight, abs=5e-5)


@pytest.mark.parametrize(("decay", "markowitz", "one_step"), [(0.02, 0.98, 0.998), (0.2, 0.76, 0.982)])
def test_simpler_rules_capture_the_known_fractions(*, decay: float, markowitz: float, one_step: float) -> None:
    world = GarleanuPedersen(cost_ratio=1.0, decay=decay)
    best = world.gain(world.rules["optimal"])
    assert world.gain(world.rules["markowitz"]) / best == pytest.approx(markowitz, abs=0.005)
    assert world.gain(world.rules["one_step"]) / best == pytest.approx(one_step, abs=0.005)


@pytest.mark.parametrize("cost_ratio", [0.2, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("discount", [1.0, 0.97])
def test_the_closed_form_is_the_fixed_point_of_riccatis_equation(*, cost_ratio: float, discount: float) -> None:
    world = GarleanuPedersen(cost_ratio=cost_ratio)
    curvature, rate = 0.0, 0.0
    for _ in range(5_000):
        # V(x) = -curvature x^2 / 2 with no predictor: best next position keeps 1 - rate of x
        bend = world.friction + discount * (world.risk + curvature)
        rate = 1.0 - world.friction / bend
        curvature = world.friction - world.friction**2 / bend
    assert world.trading_rate(discount) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize("decay", [0.05, 0.2, 0.7])
def test_no_other_linear_rule_gains_more(decay: float) -> None:
    world = GarleanuPedersen(decay=decay)
    rule = world.rules["optimal"]
    best = world.gain(rule)
    for step in (-1e-2, 1e-2):
        assert world.gain(replace(rule, keep=rule.keep + step)) < best
        assert world.gain(replace(rule, load=rule.load * (1.0 + step))) < best


def test_the_exact_gain_is_what_a_long_path_gives() -> None:
    world = GarleanuPedersen(columns=1)
    predictor_T = world.path(200_000, seed=1).state_T
    for rule in world.rules.values():
        seen = world.objective(predictor_T, rule.follow(predictor_T)).mean()
        assert seen == pytest.approx(world.gain(rule), abs=0.03 * world.gain(world.rules["optimal"]))


def test_a_rule_that_never_lets_go_has_no_average() -> None:
    with pytest.raises(TrainingError, match="keep less than 1"):
        GarleanuPedersen().gain(LinearRule(1.0, 1.0))


def test_the_best_rule_scores_one_flat_nothing_and_others_less() -> None:
    world = GarleanuPedersen(columns=1)
    named = {name: make_baseline(name, {"shorts": True}, PERIOD) for name in ("flat", "random")}
    rows = {row.name: row for row in bench_garleanu_pedersen(world, named, bars=10_000, seeds=range(5)).rows}
    fractions = {name: row.fraction.mean for name, row in rows.items() if row.fraction is not None}
    assert fractions["optimal"] == pytest.approx(1.0, abs=0.05)
    assert fractions["flat"] == 0.0
    assert fractions["random"] < 0.0
    assert fractions["markowitz"] < fractions["one_step"] < fractions["optimal"]


def test_the_unit_of_a_strategy_is_the_spread_of_the_best_position() -> None:
    world = GarleanuPedersen(columns=1)
    positions = world.rules["optimal"].follow(world.path(100_000, seed=2).state_T)
    assert float(np.std(positions)) == pytest.approx(world.unit, rel=0.03)
