"""Exact worth of brackets, against simulation, closed forms and the fills of the shared cost functions."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from brokers.costs import limit_fill_price, stop_trigger_price
from brokers.domain import Side
from training.cli import app
from training.errors import TrainingError
from training.markets.exits import (
    HOLD_BARS,
    Bracket,
    ExitBreakdown,
    ExitMartingale,
    ExitReversion,
    ExitTrend,
    ExitWorld,
    ExitWorlds,
)

BPS = 1e-4
NONE = Bracket(None, None)
BRACKETS = [NONE, Bracket(1.0, 1.0), Bracket(2.0, 4.0), Bracket(4.0, None), Bracket(None, 6.0), Bracket(12.0, 6.0)]
WORLDS = ExitWorlds().all()
by_name = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@by_name
def test_the_exact_worth_of_a_bracket_is_what_simulated_trades_earn(world: ExitWorld) -> None:
    episodes = world.episodes(40_000, seed=3)
    for bracket in BRACKETS:
        earned_E = episodes.earned(world, bracket)
        error = earned_E.std() / math.sqrt(len(earned_E))
        assert world.worth(bracket) == pytest.approx(earned_E.mean(), abs=4.0 * error), bracket


def test_on_a_martingale_a_bracket_only_costs_its_two_sides() -> None:
    world = ExitMartingale()
    sides = 2.0 * math.log1p(-5.0 * BPS)
    for bracket in (NONE, Bracket(4.0, None), Bracket(None, 3.0), Bracket(4.0, 8.0)):
        assert world.worth(bracket) == pytest.approx(sides, abs=0.05 * BPS)
    assert world.captured([Bracket(2.0, 4.0)]) is None


def test_where_one_bar_may_touch_both_levels_the_stop_comes_first() -> None:
    world = ExitMartingale()
    assert world.worth(Bracket(1.0, 1.0)) < world.worth(NONE) - 1.0 * BPS


def test_without_exits_a_reversion_earns_the_closed_form() -> None:
    world = ExitReversion()
    phi = 2.0 ** (-1.0 / world.half_life)
    entry = world.entry_sd * world.sigma / math.sqrt(1.0 - phi**2)
    expected = -entry * (1.0 - phi**HOLD_BARS) + 2.0 * math.log1p(-world.cost_bps * BPS)
    assert world.worth(NONE) == pytest.approx(expected, abs=0.01 * BPS)


def test_without_exits_a_trend_earns_the_closed_form() -> None:
    world = ExitTrend()
    keep = 1.0 - 2.0 / world.regime_bars
    tilt = (2.0 * world.up - 1.0) * world.trend * world.sigma
    expected = tilt * (1.0 - keep**HOLD_BARS) / (1.0 - keep) + 2.0 * math.log1p(-world.cost_bps * BPS)
    assert world.worth(NONE) == pytest.approx(expected, abs=0.01 * BPS)


def test_four_worlds_need_four_different_brackets() -> None:
    reversion, trend, breakdown = (world.table()[0].bracket for world in WORLDS[1:])
    assert (reversion.stop is None or reversion.stop >= 8.0, reversion.take_profit) == (True, 8.0)
    assert (trend.stop in {4.0, 6.0}, trend.take_profit) == (True, None)
    assert breakdown == Bracket(4.0, 4.0)


@pytest.mark.parametrize(
    ("world", "bracket", "published_bps", "within_bps"),
    [
        (ExitReversion(), NONE, 401.0, 4.0),
        (ExitTrend(), Bracket(4.0, None), 78.0, 8.0),
        (ExitTrend(), NONE, 48.0, 8.0),
        (ExitBreakdown(), Bracket(4.0, 4.0), 190.0, 12.0),
    ],
)
def test_tabulated_simulations_of_these_worlds_agree(
    *, world: ExitWorld, bracket: Bracket, published_bps: float, within_bps: float
) -> None:
    assert world.worth(bracket) / BPS == pytest.approx(published_bps, abs=within_bps)


@by_name
def test_a_finer_grid_moves_no_bracket_by_half_a_basis_point(world: ExitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    brackets = [Bracket(2.0, 4.0), Bracket(4.0, 4.0), Bracket(6.0, 8.0)]
    coarse = [world.worth(bracket) for bracket in brackets]
    monkeypatch.setattr("training.markets.exits.STEPS_PER_SIGMA", 25)
    assert [world.worth(bracket) for bracket in brackets] == pytest.approx(coarse, abs=0.5 * BPS)


@pytest.mark.parametrize("bracket", [Bracket(1.0, 1.0), Bracket(2.0, 4.0), Bracket(3.0, None)])
def test_simulated_trades_leave_where_the_shared_fill_rules_say(bracket: Bracket) -> None:
    world = ExitTrend()
    episodes = world.episodes(60, seed=5)
    bars = [np.exp(column) for column in (episodes.open_EB, episodes.high_EB, episodes.low_EB)]
    stop = math.exp(-(bracket.stop or math.inf) * world.sigma)
    take = math.exp((bracket.take_profit or math.inf) * world.sigma)
    for episode, earned in enumerate(episodes.earned(world, bracket)):
        price = math.exp(episodes.close_EB[episode, -1])
        for bar in range(HOLD_BARS):
            bar_open, high, low = (float(column[episode, bar]) for column in bars)
            fill = stop_trigger_price(Side.SELL, stop, bar_open, high, low)
            fill = limit_fill_price(Side.SELL, take, bar_open, high, low) if fill is None else fill
            if fill is not None:
                price = fill
                break
        assert earned == pytest.approx(math.log(price) + 2.0 * math.log1p(-world.cost_bps * BPS), abs=1e-12)


@by_name
def test_the_same_seed_gives_the_same_episodes(world: ExitWorld) -> None:
    one, same, other = (world.episodes(50, seed).close_EB for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_fraction_captured_is_one_for_the_best_and_none_for_no_exits() -> None:
    world = ExitBreakdown()
    assert world.captured([world.table()[0].bracket]) == pytest.approx(1.0)
    assert world.captured([NONE]) == 0.0
    one_for_all = world.captured([Bracket(2.0, 4.0)])
    assert one_for_all is not None
    assert 0.5 < one_for_all < 1.0


@pytest.mark.parametrize("bracket", [Bracket(0.0, 4.0), Bracket(4.0, -1.0), Bracket(90.0, None)])
def test_a_bracket_that_is_none_is_refused(bracket: Bracket) -> None:
    with pytest.raises(TrainingError, match="above 0 and at most 60"):
        ExitMartingale().worth(bracket)


def test_the_command_prints_every_bracket_of_every_world() -> None:
    result = CliRunner().invoke(app, ["exits", "--set", "exit_trend.trend=0.2", "--json"])
    assert result.exit_code == 0, result.stderr
    tables = json.loads(result.stdout)
    assert [one["world"] for one in tables] == [world.name for world in WORLDS]
    assert {len(one["brackets"]) for one in tables} == {64}
    assert tables[2]["parameters"]["trend"] == 0.2


def test_the_command_says_the_verdict_and_the_levels() -> None:
    result = CliRunner().invoke(app, ["exits"], env={"COLUMNS": "100"})
    assert "exit_martingale: no exit adds anything" in result.stdout
    assert "exit_breakdown: best stop 4, take-profit 4: +198.2 bp a trade" in result.stdout


def test_an_unknown_parameter_of_an_exit_world_is_refused_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["exits", "--set", "exit_trend.tred=1"])
    assert (result.exit_code, "did you mean 'trend'" in result.stderr) == (2, True)
