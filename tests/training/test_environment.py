import math
from dataclasses import replace
from typing import Any

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker
from hypothesis import given, settings
from hypothesis import strategies as st
from small_markets import ALL_COSTS, FEE_ONLY, NO_COSTS, reward_by_hand, table_of, walk

from brokers.series import BarSeries
from training.environment import MarketBatch, TradingEnv, action_targets
from training.errors import TrainingError

HOLD, BUY, SELL = 0, 1, 2


def env_of(*series: BarSeries, **options: Any) -> TradingEnv:
    costs = options.pop("costs", ALL_COSTS)
    return TradingEnv(table_of(*(series or (walk(),)), costs=costs), **options)


@pytest.mark.parametrize("shorts", [False, True])
def test_gymnasiums_own_checker_accepts_it(*, shorts: bool) -> None:
    gymnasium.utils.env_checker.check_env(env_of(shorts=shorts), skip_render_check=True)


def test_stable_baselines_checker_accepts_it() -> None:
    stable_baselines3.common.env_checker.check_env(env_of())


def test_the_observation_is_the_features_and_then_the_position() -> None:
    env = env_of()
    observation, _ = env.reset(options={"row": 10, "position": 1})
    np.testing.assert_array_equal(observation[:-1], env.table.features_TF[10])
    assert observation[-1] == 1.0


def test_actions_mean_targets_seen_from_the_position() -> None:
    assert action_targets(shorts=False)[1:].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert action_targets(shorts=True).tolist() == [[-1, 1, -1], [0, 1, -1], [1, 1, -1]]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shorts=st.booleans(),
    latency=st.integers(1, 3),
    actions=st.lists(st.sampled_from([HOLD, BUY, SELL]), min_size=1, max_size=40),
)
def test_the_sum_of_rewards_is_the_log_of_an_equity_path_computed_apart(
    *, seed: int, shorts: bool, latency: int, actions: list[int]
) -> None:
    bars = walk(seed=seed, events={20: 3.0, 35: 1.015})
    costs = replace(ALL_COSTS, latency_bars=latency)
    env = TradingEnv(table_of(bars, costs=costs), shorts=shorts)
    env.reset(options={"row": 5, "position": 0})
    total = sum(env.step(action)[1] for action in actions)

    equity, held = 1.0, 0
    for decided_at, action in enumerate(actions, start=5):
        wanted = {HOLD: held, BUY: 1, SELL: -1 if shorts else 0}[action]
        equity *= math.exp(reward_by_hand(bars, decided_at, held, wanted, costs, 10_000.0))
        held = wanted
    assert math.isclose(total, math.log(equity), rel_tol=1e-9, abs_tol=1e-12)


def test_hold_while_long_earns_the_market_move() -> None:
    bars = walk()
    env = env_of(bars)
    env.reset(options={"row": 10, "position": 1})
    rewards = [env.step(HOLD)[1] for _ in range(20)]
    np.testing.assert_allclose(rewards, np.diff(np.log(bars.close[10:31])), atol=1e-12)


def test_a_round_trip_pays_the_fee_exactly_twice() -> None:
    free, paid = env_of(costs=NO_COSTS), env_of(costs=FEE_ONLY)
    totals = []
    for env in (free, paid):
        env.reset(options={"row": 10, "position": 0})
        totals.append(sum(env.step(action)[1] for action in (BUY, BUY, HOLD, SELL, SELL, HOLD)))
    assert math.isclose(totals[1] - totals[0], 2 * math.log(1 - 0.003), rel_tol=1e-9)


def test_the_end_of_an_episode_truncates_and_does_not_terminate() -> None:
    env = env_of(episode_bars=4)
    env.reset(seed=3)
    ends = [env.step(HOLD)[2:4] for _ in range(4)]
    assert ends[-1] == (False, True) or True in [truncated for _, truncated in ends]
    assert not any(terminated for terminated, _ in ends)


def test_ruin_terminates_and_does_not_truncate() -> None:
    bars = walk(n=20)
    bars.close[11] = bars.open[11] * 2.5
    env = env_of(bars, shorts=True, costs=NO_COSTS, episode_bars=1)
    env.reset(options={"row": 10, "position": -1})
    _, reward, terminated, truncated, _ = env.step(HOLD)
    assert (reward, terminated, truncated) == (math.log(0.01), True, False)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), hole=st.integers(3, 16))
def test_an_episode_never_leaves_its_run_of_usable_rows(seed: int, hole: int) -> None:
    table = table_of(walk("AAA", 20), walk("BBB", 20), holes=(0, 1, hole))
    env = TradingEnv(table, episode_bars=100)
    _, info = env.reset(seed=seed)
    first, truncated = info["row"], False
    while not truncated:
        observation, reward, _, truncated, info = env.step(BUY)
        assert np.isfinite(observation).all()
        assert np.isfinite(reward)
    assert table.symbol_T[first] == table.symbol_T[info["row"]]
    assert info["row"] == table.run_end_T[first]


def test_the_same_seed_starts_the_same_episodes() -> None:
    starts = []
    for _ in range(2):
        env = env_of(start_position="random")
        env.reset(seed=11)
        starts.append([(i["row"], i["position"]) for _, i in (env.reset() for _ in range(20))])
    assert starts[0] == starts[1]
    assert len(set(starts[0])) > 5


def test_a_start_row_without_a_following_row_is_refused() -> None:
    env = env_of()
    with pytest.raises(TrainingError, match="row 59"):
        env.reset(options={"row": 59})


def test_a_market_without_a_usable_step_is_refused() -> None:
    with pytest.raises(TrainingError, match="give more bars"):
        env_of(walk(n=3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), shorts=st.booleans())
def test_the_batched_core_and_the_gymnasium_face_are_the_same_bit_for_bit(*, seed: int, shorts: bool) -> None:
    table = table_of(walk(seed=seed), walk("BBB", 40, seed=seed + 1))
    batch = MarketBatch(table, 8, episode_bars=12, shorts=shorts, start_position="random")
    batch.reset(np.random.default_rng(seed))
    singles = [TradingEnv(table, episode_bars=12, shorts=shorts) for _ in range(8)]
    for env, row, position in zip(singles, batch.row_N, batch.position_N, strict=True):
        env.reset(options={"row": row, "position": position})
    live = np.ones(8, dtype=bool)
    rng = np.random.default_rng(seed + 2)
    while live.any():
        actions = rng.integers(3, size=8)
        batch.row_N[~live] = table.start_rows[0]
        rewards, terminated, truncated = batch.step(actions)
        observations = batch.observe()
        for i in np.flatnonzero(live):
            observation, *outcome, _ = singles[i].step(actions[i])
            np.testing.assert_array_equal(observation, observations[i])
            assert outcome == [rewards[i], terminated[i], truncated[i]]
        live &= ~(terminated | truncated)


def test_only_the_masked_episodes_start_anew() -> None:
    batch = MarketBatch(table_of(walk()), 4)
    batch.reset(np.random.default_rng(0))
    before = batch.row_N.copy()
    batch.reset(np.random.default_rng(1), np.array([True, False, True, False]))
    assert (batch.row_N == before).tolist()[1::2] == [True, True]
