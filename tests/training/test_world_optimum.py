"""The solver against published numbers, against every policy of small chains, and against closed forms."""

import itertools
import math

import numpy as np
import pytest

from strategies.baselines import no_trade_threshold
from training.markets.hidden_trend import HiddenTrend
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.solver import Chain, occupation, solve, stationary
from training.markets.world import World

BPS = 1e-4
COST_PP = -np.abs(np.subtract.outer(np.arange(3), np.arange(3))) * 1.0


def threshold_sd(world: World, sd: float) -> float:
    optimum = world.solve(linear=True)
    (state,) = optimum.thresholds(-1, 1)
    return abs(float(state)) / sd


@pytest.mark.parametrize(
    ("rho", "ic", "cost_bps", "optimum_bps", "turnover", "sd"),
    [
        (0.90, 0.05, 2, 3.587, 0.152, 0.25),
        (0.90, 0.05, 10, 2.736, 0.080, 0.64),
        (0.98, 0.05, 10, 3.539, 0.030, 0.39),
        (0.98, 0.05, 30, 3.059, 0.020, 0.63),
        (0.98, 0.10, 10, 7.422, 0.038, 0.28),
        (0.98, 0.02, 10, 1.265, 0.021, 0.58),
    ],
)
def test_an_ar1_predictor_with_linear_costs_has_the_known_optimum(
    *, rho: float, ic: float, cost_bps: float, optimum_bps: float, turnover: float, sd: float
) -> None:
    world = Predictor(rho=rho, ic=ic, cost_bps=cost_bps)
    optimum = world.solve(linear=True)
    found = occupation(optimum.chain, optimum.targets(optimum.chain.node_N))
    # the tabulated values come from a grid of bins, which widens the signal by two parts in a thousand
    assert found.gain / BPS == pytest.approx(optimum_bps, rel=0.0025)
    assert found.turnover == pytest.approx(turnover, abs=0.001)
    assert threshold_sd(world, world.predictor_sd) == pytest.approx(sd, abs=0.01)


@pytest.mark.parametrize(("rho", "cost_bps"), [(0.9, 2.0), (0.98, 10.0), (0.98, 2.0), (0.99, 5.0)])
def test_its_threshold_is_the_closed_form_for_small_costs(*, rho: float, cost_bps: float) -> None:
    world = Predictor(rho=rho, cost_bps=cost_bps)
    formula = no_trade_threshold(cost_bps * BPS, world.predictor_sd, rho)
    assert threshold_sd(world, world.predictor_sd) == pytest.approx(formula, abs=0.03)


@pytest.mark.parametrize(
    ("half_life", "cost_bps", "optimum_bps", "sd"),
    [(5, 20, 16.98, 0.40), (20, 20, 9.106, 0.40), (20, 50, 7.940, 0.61), (100, 20, 4.324, 0.35), (100, 50, 4.005, 0.5)],
)
def test_a_mean_reverting_price_with_linear_costs_has_the_known_optimum(
    *, half_life: float, cost_bps: float, optimum_bps: float, sd: float
) -> None:
    world = MeanReverting(half_life=half_life, cost_bps=cost_bps)
    assert world.solve(linear=True).gain / BPS == pytest.approx(optimum_bps, rel=0.0035)
    assert threshold_sd(world, world.deviation_sd) == pytest.approx(sd, abs=0.02)


@pytest.mark.parametrize(
    ("regime_bars", "trend", "shorts", "optimum_bps", "buy_above"),
    [
        (50, 0.10, True, 1.991, 0.597),
        (100, 0.10, True, 3.131, 0.595),
        (100, 0.10, False, 1.565, 0.595),
        (100, 0.05, True, 0.681, 0.588),
    ],
)
def test_a_hidden_trend_with_linear_costs_has_the_known_optimum(
    *, regime_bars: float, trend: float, shorts: bool, optimum_bps: float, buy_above: float
) -> None:
    world = HiddenTrend(regime_bars=regime_bars, trend=trend, shorts=shorts)
    optimum = world.solve(linear=True)
    assert optimum.gain / BPS == pytest.approx(optimum_bps, abs=0.0015)
    assert world.belief(optimum.thresholds(min(world.allowed), 1)) == pytest.approx(buy_above, abs=0.003)
    assert world.belief(optimum.thresholds(1, min(world.allowed))) == pytest.approx(1.0 - buy_above, abs=0.01)


def test_the_sign_rule_on_a_predictor_earns_its_closed_form() -> None:
    world = Predictor()
    chain = world.chain(linear=True)
    sign_N = np.where(chain.node_N > 0, 1, -1)
    earned = world.predictor_sd * math.sqrt(2.0 / math.pi) - 20 * BPS * math.acos(world.rho) / math.pi
    assert occupation(chain, np.tile(sign_N, (3, 1))).gain == pytest.approx(earned, rel=0.002)


def test_without_costs_the_optimum_is_the_mean_absolute_predictor() -> None:
    world = Predictor(cost_bps=0.0)
    assert world.solve(linear=True).gain == pytest.approx(world.predictor_sd * math.sqrt(2.0 / math.pi), rel=2e-4)


def small_chain(seed: int, nodes: int, allowed: tuple[int, ...]) -> Chain:
    rng = np.random.default_rng(seed)
    return Chain(
        node_N=np.arange(nodes, dtype=float),
        kernel_NN=rng.dirichlet(np.ones(nodes), size=nodes),
        growth_NP=rng.normal(size=(nodes, 3)) * (1.0, 0.0, 1.0),
        cost_PP=COST_PP * rng.uniform(0.05, 1.0),
        allowed=allowed,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("nodes", "allowed"), [(3, (0, 1)), (4, (0, 1)), (2, (-1, 0, 1))])
def test_no_policy_of_a_small_chain_beats_its_optimum(*, seed: int, nodes: int, allowed: tuple[int, ...]) -> None:
    chain = small_chain(seed, nodes, allowed)
    best = -np.inf
    for choice in itertools.product(allowed, repeat=len(allowed) * nodes):
        target_PN = np.zeros((3, nodes), dtype=np.int64)
        target_PN[np.array(allowed) + 1] = np.array(choice).reshape(len(allowed), nodes)
        best = max(best, occupation(chain, target_PN).gain)
    assert solve(chain).gain == pytest.approx(best, abs=1e-11)


@pytest.mark.parametrize("world", [MeanReverting(), Predictor(), HiddenTrend()], ids=lambda world: world.name)
def test_a_finer_grid_moves_the_optimum_by_less_than_one_part_in_a_thousand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = world.solve().gain
    monkeypatch.setattr("training.markets.world.NODES", 801)
    assert world.solve().gain == pytest.approx(coarse, rel=1e-3)


@pytest.mark.parametrize("world", [MeanReverting(), Predictor(), HiddenTrend()], ids=lambda world: world.name)
def test_the_optimum_of_log_equity_is_what_its_own_policy_earns_on_the_grid(world: World) -> None:
    optimum = world.solve()
    target_PN = optimum.targets(optimum.chain.node_N)
    assert occupation(optimum.chain, target_PN).gain == pytest.approx(optimum.gain, abs=1e-10)


def test_the_grid_keeps_the_states_variance() -> None:
    world = Predictor()
    chain = world.chain()
    mass_N = stationary(chain.kernel_NN)
    assert math.sqrt(mass_N @ chain.node_N**2) == pytest.approx(world.predictor_sd, rel=1e-6)


def test_the_optimum_of_a_martingale_is_never_to_trade() -> None:
    optimum = Martingale().solve()
    assert optimum.gain == 0.0
    assert optimum.targets(np.zeros(1))[1].tolist() == [0]


def test_a_short_position_loses_a_further_variance_to_rebasing() -> None:
    growth_P = Martingale(sigma=0.01).growth(np.zeros(1))[0]
    assert growth_P[0] == pytest.approx(-(0.01**2), rel=1e-3)
    assert growth_P[1:].tolist() == [0.0, 0.0]


def test_costs_beyond_any_gain_make_flat_the_optimum() -> None:
    assert Predictor(rho=0.9, cost_bps=900.0).solve().gain == pytest.approx(0.0, abs=1e-12)
