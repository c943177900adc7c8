from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from strategies.baselines import (
    BASELINES,
    BaselineError,
    banded_target,
    make_baseline,
    no_trade_threshold,
)
from strategies.strategy import Abstention, Observations, Opinion, Reason, Strategy

HOUR = timedelta(hours=1)
CLOSE = datetime(2024, 3, 1, 12, tzinfo=UTC)


def ask(
    strategy: Strategy, rows: Sequence[Sequence[float]], positions: Sequence[int], close: datetime = CLOSE
) -> list[Opinion | Abstention]:
    observations = Observations(
        symbols=[f"S{place}" for place in range(len(rows))],
        close_time=close,
        features_SF=np.array(rows, dtype=np.float64),
        positions_S=np.array(positions, dtype=np.int8),
    )
    return list(asyncio.run(strategy.opinions(observations)))


def targets(answers: Sequence[Opinion | Abstention]) -> list[int]:
    return [answer.target for answer in answers if isinstance(answer, Opinion)]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shorts", [False, True])
def test_every_baseline_answers_each_symbol_with_an_allowed_target(name: str, shorts: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    strategy = make_baseline(name, {"shorts": shorts}, HOUR)
    width = len(strategy.feature_spec.names)
    rng = np.random.default_rng(0)
    answers = ask(strategy, rng.normal(0, 2, (50, width)).tolist(), rng.integers(-shorts, 2, 50).tolist())
    assert len(answers) == 50
    assert set(targets(answers)) <= set(strategy.targets)


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_with_nan_is_answered_by_an_abstention(name: str) -> None:
    strategy = make_baseline(name, {}, HOUR)
    width = len(strategy.feature_spec.names)
    cold, broken = [np.nan] * width, [np.inf] + [0.0] * (width - 1)
    reasons = [answer.reason for answer in ask(strategy, [cold, broken], [1, 1])]
    assert reasons == [Reason.WARMING_UP, Reason.BAD_FEATURES]


def test_random_repeats_itself_after_a_restart() -> None:
    closes = [CLOSE + HOUR * k for k in range(200)]
    runs = [[ask(make_baseline("random", {"seed": 5}, HOUR), [[0.0]], [0], close) for close in closes] for _ in "ab"]
    assert runs[0] == runs[1]


def test_random_flips_as_often_as_asked_and_not_at_each_bar() -> None:
    strategy = make_baseline("random", {"flip_probability": 0.2}, HOUR)
    position, flips = 0, 0
    for k in range(3_000):
        (target,) = targets(ask(strategy, [[0.0]], [position], CLOSE + HOUR * k))
        flips += target != position
        position = target
    assert 500 < flips < 700


def test_momentum_goes_with_the_move_and_mean_reversion_against_it() -> None:
    follow = make_baseline("momentum", {"enter": 1.0, "shorts": True}, HOUR)
    fade = make_baseline("mean_reversion", {"enter": 1.0, "shorts": True}, HOUR)
    assert targets(ask(follow, [[1.2], [-1.2], [0.3]], [0, 0, 0])) == [1, -1, 0]
    assert targets(ask(fade, [[1.2], [-1.2], [0.3]], [0, 0, 0])) == [-1, 1, 0]


def test_hysteresis_keeps_a_position_until_the_score_leaves_the_band() -> None:
    kept = [banded_target(score, 1, enter=1.0, leave=-0.5, shorts=True) for score in (0.9, -0.4, -0.6, -1.1)]
    assert kept == [1, 1, 0, -1]


def test_the_no_trade_threshold_matches_the_known_optima() -> None:
    # (rho, information coefficient, cost) -> threshold in sd of the forecast, sigma 1% a bar
    known = {(0.90, 0.05, 2e-4): 0.23, (0.90, 0.05, 1e-3): 0.58, (0.98, 0.05, 1e-3): 0.38, (0.98, 0.05, 3e-3): 0.59}
    for (rho, ic, cost), threshold in known.items():
        assert no_trade_threshold(cost, ic * 0.01, rho) == pytest.approx(threshold, abs=0.015)


def test_the_band_widens_with_costs() -> None:
    cheap = make_baseline("no_trade_band", {"cost_bps": 1.0}, HOUR)
    dear = make_baseline("no_trade_band", {"cost_bps": 50.0}, HOUR)
    row = [[-1.0, 1.0, 0.0, 0.0]]
    assert targets(ask(cheap, row, [0])) == [1]
    assert targets(ask(dear, row, [0])) == [0]


def test_an_unknown_baseline_suggests_the_right_name() -> None:
    with pytest.raises(BaselineError, match="did you mean 'momentum'"):
        make_baseline("momentun", {}, HOUR)


def test_an_unknown_parameter_suggests_the_right_name() -> None:
    with pytest.raises(BaselineError, match="did you mean 'lookback'"):
        make_baseline("momentum", {"look_back": 3}, HOUR)
