"""Paths, conditional means against what training's accounts pay, and the score with its controls."""

from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from math import log

import numpy as np
import pytest

from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.domain import Side
from strategies.baselines import Baseline, make_baseline
from strategies.features import FeatureSpec, Group, compute_frame
from strategies.strategy import Abstention, Observations, Opinion
from training.accounting import Execution, FillKind, account_equity
from training.errors import TrainingError
from training.market import reward_table
from training.markets.bench import LEAD_BARS, Estimate, WorldReport, bench_world, score
from training.markets.deciders import STATE_RULES, Decisions, Driver, follow, sign
from training.markets.hidden_trend import HiddenTrend
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.solver import occupation
from training.markets.world import PERIOD, World

WORLDS = [MeanReverting(), Predictor(), HiddenTrend(), Martingale()]
WITH_OPTIMUM = WORLDS[:3]
by_name = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
by_name_with_optimum = pytest.mark.parametrize("world", WITH_OPTIMUM, ids=lambda world: world.name)


@by_name
def test_a_longer_path_begins_with_the_shorter_one(world: World) -> None:
    short, long = world.path(300, seed=5), world.path(900, seed=5)
    for name in ("open", "high", "low", "close", "volume", "start_ns"):
        np.testing.assert_array_equal(getattr(short.series, name), getattr(long.series, name)[:300])
    np.testing.assert_array_equal(short.state_T, long.state_T[:300])
    np.testing.assert_array_equal(short.growth_TP, long.growth_TP[:300])
    for name, column in short.series.signals.items():
        np.testing.assert_array_equal(column, long.series.signals[name][:300])


@by_name
def test_seeds_and_purposes_have_paths_of_their_own(world: World) -> None:
    paths = [world.path(50, 1), world.path(50, 2), world.path(50, 1, "training")]
    assert len({path.series.close[-1] for path in paths}) == 3


@by_name
def test_every_bar_opens_at_the_close_before_it_and_holds_its_prices(world: World) -> None:
    series = world.path(2_000, seed=1).series
    np.testing.assert_array_equal(series.open[1:], series.close[:-1])
    assert (series.high >= np.maximum(series.open, series.close)).all()
    assert (series.low <= np.minimum(series.open, series.close)).all()


def test_one_of_at_least_thirty_like_columns_is_the_predictor() -> None:
    world = Predictor(rho=0.5)
    path = world.path(4_000, seed=3)
    columns = np.stack(list(path.series.signals.values()))
    assert len(columns) >= 30
    known = [np.allclose(column * world.predictor_sd, path.hidden["predictor"]) for column in columns]
    assert np.flatnonzero(known).tolist() == [world.place]
    assert columns.std(axis=1) == pytest.approx(1.0, abs=0.1)
    others = np.corrcoef(columns)[world.place, np.arange(len(columns)) != world.place]
    assert np.abs(others).max() < 0.12


def test_the_filter_is_the_forward_algorithm() -> None:
    world = HiddenTrend(trend=0.4, regime_bars=10.0)
    path = world.path(200, seed=2)
    stay = 1.0 - 1.0 / world.regime_bars
    weight = np.array([0.5, 0.5])
    for value, belief in zip(np.log(path.series.close / path.series.open), path.hidden["belief"], strict=True):
        weight = weight @ np.array([[stay, 1.0 - stay], [1.0 - stay, stay]])
        weight *= np.exp(-0.5 * ((value - np.array([-world.mu, world.mu])) / world.sigma) ** 2)
        weight /= weight.sum()
        assert belief == pytest.approx(weight[1] * stay + weight[0] * (1.0 - stay), abs=1e-9)


def test_a_belief_comes_true_as_often_as_it_says() -> None:
    path = HiddenTrend(trend=0.3, regime_bars=30.0).path(60_000, seed=1)
    sure_T = path.hidden["belief"] > 0.8
    share = (path.hidden["next_trend"][sure_T] > 0).mean()
    assert share == pytest.approx(path.hidden["belief"][sure_T].mean(), abs=0.02)


@by_name
def test_conditional_means_are_unbiased_against_the_rewards_of_training(world: World) -> None:
    path = world.path(60_000, seed=4)
    rewards_TPN = reward_table(path.series, world.costs(), capital_usd=10_000.0)[:-1]
    target_T = np.random.default_rng(9).choice(world.allowed, size=len(rewards_TPN))
    decided = follow(np.tile(target_T, (3, 1)))
    rows = np.arange(len(rewards_TPN))
    paid_T = rewards_TPN[rows, decided.before_T + 1, decided.held_T + 1]
    expected_T = path.growth_TP[rows, decided.held_T + 1] + world.cost_table()[decided.before_T + 1, decided.held_T + 1]
    error_T = paid_T - expected_T
    assert abs(error_T.mean()) < 4.0 * error_T.std() / np.sqrt(len(error_T))


def test_the_filters_mean_is_the_mean_of_the_trend_that_comes() -> None:
    world = HiddenTrend()
    path = world.path(200_000, seed=4)
    given_trend_TP = world.growth(world.mu * path.hidden["next_trend"])
    held_T = follow(world.solve().targets(path.state_T)).held_T + 1
    rows = np.arange(len(held_T))
    difference = given_trend_TP[rows, held_T].mean() - path.growth_TP[rows, held_T].mean()
    assert abs(difference) < 0.1 * world.mu * np.sqrt(200 / 1_000) / 2


@by_name
def test_what_a_score_calls_realised_is_the_reward_of_training(world: World) -> None:
    path = world.path(600, seed=4)
    optimum = world.solve()
    rewards_TPN = reward_table(path.series, world.costs(), capital_usd=10_000.0)[:-1]
    decided = follow(np.tile(np.random.default_rng(9).choice(world.allowed, size=599), (3, 1)))
    paid_T = rewards_TPN[np.arange(599), decided.before_T + 1, decided.held_T + 1]
    assert score(world, optimum, path, decided).realised == pytest.approx(paid_T.mean(), abs=1e-14)


def test_the_realised_sum_is_the_log_equity_of_trainings_accounts() -> None:
    world = MeanReverting(shorts=False, half_life=5.0)
    path, optimum = world.path(400, seed=6), world.solve()
    decided = follow(optimum.targets(path.state_T[:-1]))
    bars, cash, cost = path.series, 1e6, world.cost_bps * 1e-4
    equity, held, trades = cash, Decimal(0), []
    for row in np.flatnonzero(decided.before_T != decided.held_T).tolist():
        price = float(bars.open[row + 1])
        if decided.held_T[row] == 1:
            held = Decimal(repr(round(equity * (1.0 - cost) / price, 9)))
            side, idle = Side.BUY, equity - float(held) * price * (1.0 + cost)
        else:
            side, equity = Side.SELL, idle + float(held) * price * (1.0 - cost)
        trades.append(Execution(bars.symbol, side, held, int(bars.start_ns[row + 1]), FillKind.OPEN))
    account = account_equity({bars.symbol: bars}, trades, Decimal(repr(cash)), world.costs())
    earned = score(world, optimum, path, decided).realised * len(decided.held_T)
    # the account leaves the fee on the fee's own share idle: a squared cost a side
    assert len(trades) > 20
    assert log(float(account.equity[-1]) / cash) == pytest.approx(earned, abs=2.0 * len(trades) * cost**2)


@by_name_with_optimum
@pytest.mark.parametrize("rule", list(STATE_RULES))
def test_a_long_path_pays_what_the_grid_says(world: World, rule: str) -> None:
    optimum = world.solve()
    path = world.path(100_000, seed=8)
    nodes = optimum.chain.node_N
    exact = occupation(optimum.chain, STATE_RULES[rule](world, optimum, nodes))
    seen = score(world, optimum, path, follow(STATE_RULES[rule](world, optimum, path.state_T[:-1])))
    # the state's own path: an average of a hundred thousand bars that remember fifty to a hundred of themselves
    assert seen.mean == pytest.approx(exact.gain, abs=0.1 * optimum.gain)
    assert seen.turnover == pytest.approx(exact.turnover, rel=0.1, abs=0.001)
    assert 1.0 - seen.regret / optimum.gain == pytest.approx(exact.gain / optimum.gain, abs=0.07)


def rules(world: World, *names: str) -> dict[str, Baseline]:
    return {name: make_baseline(name, {"shorts": world.shorts}, PERIOD) for name in names}


@pytest.fixture(scope="module")
def reports() -> dict[str, WorldReport]:
    named = ("flat", "random", "momentum", "mean_reversion")
    return {w.name: bench_world(w, rules(w, *named), bars=8_000, seeds=range(6)) for w in WORLDS}


@by_name_with_optimum
def test_the_best_policy_scores_one_and_flat_scores_nothing(world: World, reports: dict[str, WorldReport]) -> None:
    rows = {row.name: row for row in reports[world.name].rows}
    best, flat = rows["optimal"].fraction, rows["flat"].fraction
    assert best is not None
    assert best.low is not None
    assert best.high is not None
    assert best.low - 0.03 <= 1.0 <= best.high + 0.03
    assert flat is not None
    assert (flat.mean, rows["flat"].turnover) == (0.0, 0.0)


@by_name_with_optimum
def test_the_best_policy_beats_every_other_on_the_same_paths(world: World, reports: dict[str, WorldReport]) -> None:
    best, *others = reports[world.name].rows
    assert best.fraction_by_regret is not None
    assert best.fraction_by_regret.mean == 1.0
    for row in others:
        assert row.mean_bps.mean < best.mean_bps.mean
        assert row.fraction_by_regret is not None
        assert row.fraction_by_regret.mean < 0.999


@by_name
def test_trading_at_random_loses(world: World, reports: dict[str, WorldReport]) -> None:
    (row,) = (row for row in reports[world.name].rows if row.name == "random")
    assert row.mean_bps.high is not None
    assert row.mean_bps.high < 0.0


def test_nothing_gains_on_a_martingale_and_there_is_no_fraction_of_nothing(reports: dict[str, WorldReport]) -> None:
    report = reports["martingale"]
    assert report.optimum_bps == 0.0
    assert all(row.fraction is None for row in report.rows)
    assert max(row.mean_bps.mean for row in report.rows) == 0.0


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_the_fraction_by_regret_is_the_fraction_with_less_noise(reports: dict[str, WorldReport]) -> None:
    rows = {row.name: row for row in reports["mean_reverting"].rows}
    direct, paired = rows["sign"].fraction, rows["sign"].fraction_by_regret
    assert direct is not None
    assert paired is not None
    assert paired.mean == pytest.approx(direct.mean, abs=0.06)
    assert (
        paired.high - paired.low < direct.high - direct.low
        if direct.high and direct.low and paired.high and paired.low
        else False
    )


def test_the_same_seeds_give_the_same_table() -> None:
    world = Martingale()
    tables = [bench_world(world, rules(world, "random", "momentum"), bars=500, seeds=(3, 4)) for _ in "ab"]
    assert asdict(tables[0]) == asdict(tables[1])


class OneByOne:
    """A baseline that answers bar by bar only."""

    def __init__(self, baseline: Baseline, silent_every: int = 10**9) -> None:
        self._baseline = baseline
        self._silent_every = silent_every
        self._asked = 0

    @property
    def name(self) -> str:
        return self._baseline.name

    @property
    def feature_spec(self) -> FeatureSpec:
        return self._baseline.feature_spec

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        self._asked += 1
        if self._asked % self._silent_every == 0:
            return [Abstention(symbol, "no_answer") for symbol in observations.symbols]
        return await self._baseline.opinions(observations)


@pytest.mark.parametrize("name", ["random", "mean_reversion"])
def test_a_strategy_without_a_batch_face_decides_the_same(name: str) -> None:
    world = MeanReverting()
    driver = Driver(world.path(LEAD_BARS + 400, 1), LEAD_BARS - 1, world.allowed)
    baseline = rules(world, name)[name]
    batched, single = driver.drive(baseline), driver.drive(OneByOne(baseline))
    np.testing.assert_array_equal(batched.held_T, single.held_T)
    assert len(batched.held_T) == 400


def test_an_abstention_keeps_the_position_and_is_counted() -> None:
    world = MeanReverting()
    driver = Driver(world.path(LEAD_BARS + 100, 1), LEAD_BARS - 1, world.allowed)
    decisions = driver.drive(OneByOne(rules(world, "random")["random"], silent_every=4))
    silent = np.arange(3, 100, 4)
    assert decisions.abstained == 25
    np.testing.assert_array_equal(decisions.held_T[silent], decisions.before_T[silent])


def test_a_strategy_with_shorts_is_refused_where_there_are_none() -> None:
    world = MeanReverting(shorts=False)
    driver = Driver(world.path(LEAD_BARS + 200, 1), LEAD_BARS - 1, world.allowed)
    with pytest.raises(TrainingError, match="wants the position -1, this world allows 0, 1"):
        driver.drive(make_baseline("random", {"shorts": True}, PERIOD))


def test_a_strategy_for_other_bars_is_refused() -> None:
    world = MeanReverting()
    driver = Driver(world.path(LEAD_BARS + 200, 1), LEAD_BARS - 1, world.allowed)
    with pytest.raises(TrainingError, match="train it with period 5m"):
        driver.drive(make_baseline("momentum", {}, 2 * PERIOD))


class OnColumns(OneByOne):
    """A strategy that reads a column of the predictor's world."""

    @property
    def feature_spec(self) -> FeatureSpec:
        return FeatureSpec((Group("signals", "signals", {"names": ["column_007"], "window": 32}),))


def test_a_strategy_that_reads_columns_is_refused_where_there_are_none() -> None:
    world = MeanReverting()
    driver = Driver(world.path(LEAD_BARS + 200, 1), LEAD_BARS - 1, world.allowed)
    with pytest.raises(TrainingError, match=r"cannot decide in this world: .* lack the columns column_007"):
        driver.drive(OnColumns(rules(world, "flat")["flat"]))


def test_a_strategy_that_reads_columns_decides_where_they_are() -> None:
    world = Predictor(place=7)
    driver = Driver(world.path(LEAD_BARS + 200, 1), LEAD_BARS - 1, world.allowed)
    assert len(driver.drive(OnColumns(rules(world, "random")["random"])).held_T) == 200


def test_the_level_of_a_slow_column_is_worth_the_optimum_itself() -> None:
    """A straight line through the very column's level, decided by the optimum's thresholds."""
    world = Predictor()
    optimum, path = world.solve(), world.path(LEAD_BARS + 40_000, 1)
    spec = FeatureSpec((Group("levels", "levels", {"names": ["column_007"]}),))
    level_T = compute_frame(spec, path.series, calendar("24/7"))[LEAD_BARS - 1 : -1, 0]
    state_T = path.state_T[LEAD_BARS - 1 : -1]
    line = np.polyfit(level_T, state_T, 1)
    regret = score(world, optimum, path, follow(optimum.targets(np.polyval(line, level_T)))).regret
    assert np.corrcoef(level_T, state_T)[0, 1] > 0.99
    assert 1.0 - regret / optimum.gain > 0.99


def test_the_rolling_score_of_a_slow_column_loses_a_third_of_what_the_column_is_worth() -> None:
    """The best band on the very column, seen by its score alone, stays far below the optimum."""
    world = Predictor()
    optimum, path = world.solve(), world.path(LEAD_BARS + 40_000, 1)
    spec = FeatureSpec((Group("signals", "signals", {"names": ["column_007"], "window": 128}),))
    score_T = compute_frame(spec, path.series, calendar("24/7"))[LEAD_BARS - 1 : -1, 0]
    fractions = []
    for band in (0.5, 0.75, 1.0, 1.25):
        target_PT = np.stack([np.where(np.abs(score_T) > band, np.sign(score_T), held) for held in (-1, 0, 1)])
        regret = score(world, optimum, path, follow(target_PT.astype(np.int64))).regret
        fractions.append(1.0 - regret / optimum.gain)
    assert np.corrcoef(score_T, path.state_T[LEAD_BARS - 1 : -1])[0, 1] == pytest.approx(0.66, abs=0.05)
    assert max(fractions) == pytest.approx(0.63, abs=0.05)


def test_the_sign_rule_of_a_world_without_shorts_goes_flat_instead() -> None:
    world = MeanReverting(shorts=False)
    assert sign(world, world.solve(), np.array([-0.02, 0.02]))[1].tolist() == [1, 0]


def test_the_worlds_cost_model_charges_exactly_the_worlds_cost() -> None:
    assert Predictor(cost_bps=7.0).costs() == CostModel(fee_bps=7.0, half_spread_bps=0.0, impact=0.0)


def test_decisions_begin_flat() -> None:
    decisions = follow(np.ones((3, 4), dtype=np.int64))
    assert isinstance(decisions, Decisions)
    assert decisions.before_T.tolist() == [0, 1, 1, 1]
