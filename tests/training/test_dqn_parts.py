from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_markets import ALL_COSTS, NO_COSTS, table_of, walk
from stable_baselines3.common.buffers import ReplayBuffer

from strategies.features import tutorial_spec
from strategies.policy import Model
from strategies.strategy import Action
from training.dqn.export import CHECKED_ROWS, check_equal, export_onnx
from training.dqn.reference import reward_scale, train_dqn
from training.dqn.reference_network import UNREACHED, NormalisedInputs, TargetValues
from training.dqn.replay import MarketReplay
from training.dqn.vec_env import MarketVecEnv
from training.environment import MarketBatch, action_targets, observation_space
from training.errors import TrainingError
from training.market import MarketTable
from training.settings import TrainingSettings

QUICK: dict[str, Any] = {
    "timesteps": 64,
    "n_envs": 4,
    "gradient_steps": 2,
    "target_update_interval": 4,
    "episode_bars": 20,
}


class Answers(torch.nn.Module):
    """Fixed action values that depend on the observation through its last column alone."""

    def __init__(self, q_PA: list[list[float]]) -> None:
        super().__init__()
        self.q_PA = torch.tensor(q_PA)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.q_PA[observation[:, -1].to(torch.int64) + 1]


def replay_of(table: MarketTable, *, shorts: bool, scale: float = 10.0, seed: int = 0) -> MarketReplay:
    env = MarketVecEnv(MarketBatch(table, 2, shorts=shorts))
    return MarketReplay(
        100,
        env.observation_space,
        env.action_space,
        n_envs=2,
        table=table,
        shorts=shorts,
        reward_scale=scale,
        seed=seed,
    )


def test_parallel_episodes_pay_scaled_rewards_and_start_anew_when_they_end() -> None:
    table = table_of(walk(n=60))
    env = MarketVecEnv(MarketBatch(table, 3, episode_bars=5), reward_scale=100.0)
    env.seed(4)
    env.reset()
    total = np.zeros(3)
    for _ in range(5):
        observation, rewards, dones, infos = env.step(np.array([1, 1, 1]))
        total += rewards
        if dones.any():
            break
    assert dones.any()
    ended = int(np.flatnonzero(dones)[0])
    assert infos[ended]["TimeLimit.truncated"]
    assert infos[ended]["terminal_observation"][-1] == 1.0
    assert observation[ended, -1] == 0.0
    assert infos[ended]["episode"]["r"] == pytest.approx(total[ended] / 100.0, rel=1e-5)


def test_parallel_episodes_are_repeated_by_their_seed() -> None:
    table = table_of(walk(n=60))
    first, second = (MarketVecEnv(MarketBatch(table, 3)) for _ in range(2))
    for env in (first, second):
        env.seed(4)
    np.testing.assert_array_equal(first.reset(), second.reset())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), shorts=st.booleans())
def test_every_sampled_transition_is_one_that_the_environment_would_make(*, seed: int, shorts: bool) -> None:
    table = table_of(walk(n=60), walk("BBB", 40, seed=3), holes=(0, 1, 20))
    sample = replay_of(table, shorts=shorts, seed=seed).sample(60)
    rows_by_features = {table.features_TF[row].tobytes(): row for row in range(len(table))}
    for observation, action, following, done, reward in zip(
        sample.observations.numpy(),
        sample.actions.numpy()[:, 0],
        sample.next_observations.numpy(),
        sample.dones.numpy()[:, 0],
        sample.rewards.numpy()[:, 0],
        strict=True,
    ):
        row, position = rows_by_features[observation[:-1].tobytes()], int(observation[-1])
        target = action_targets(shorts=shorts)[position + 1, action]
        assert row < table.run_end_T[row]
        assert rows_by_features[following[:-1].tobytes()] == row + 1
        assert (following[-1], done) == (target, 0.0)
        assert reward == np.float32(table.reward_TPN[row, position + 1, target + 1] * 10.0)


def test_a_sampled_bar_comes_with_every_position_and_action() -> None:
    sample = replay_of(table_of(walk(n=60)), shorts=True).sample(9)
    pairs = {(int(o[-1]), int(a)) for o, a in zip(sample.observations, sample.actions, strict=True)}
    assert pairs == {(position, int(action)) for position in (-1, 0, 1) for action in Action}
    assert len({o[:-1].numpy().tobytes() for o in sample.observations}) == 1


def test_the_replay_stores_nothing_but_is_one() -> None:
    replay = replay_of(table_of(walk(n=60)), shorts=False)
    assert isinstance(replay, ReplayBuffer)
    replay.add(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), [])
    assert replay.size() == 1
    assert not hasattr(replay, "observations")


def test_a_ruinous_transition_does_not_bootstrap() -> None:
    bars = walk(n=10)
    bars.close[5] = bars.open[5] * 2.5
    sample = replay_of(table_of(bars, costs=NO_COSTS), shorts=True).sample(900)
    ruined = sample.dones[:, 0] == 1.0
    assert ruined.any()
    assert (sample.next_observations[ruined, -1] == -1.0).all()


def test_inputs_are_normalised_and_clipped_and_the_position_is_not() -> None:
    inputs = NormalisedInputs(observation_space(2), mean=np.array([1.0, 0.0]), deviation=np.array([2.0, 0.5]), clip=3.0)
    out = inputs(torch.tensor([[5.0, -9.0, -1.0]]))
    assert out.tolist() == [[2.0, -3.0, -1.0]]


def test_the_value_of_a_target_is_the_best_action_that_leads_to_it() -> None:
    values = TargetValues(Answers([[0, 0, 0], [5.0, 3.0, 7.0], [5.0, 8.0, 2.0]]), reward_scale=2.0, shorts=False)
    flat, long = values(torch.zeros(2, 4), torch.tensor([[0.0], [1.0]]))
    # flat: HOLD 5 and SELL 7 stay flat, BUY 3; long: HOLD 5 and BUY 8 stay long, SELL 2
    assert flat[:, 0].tolist() == [3.5, 1.0]
    assert long[:, 0].tolist() == [1.5, 4.0]


def test_a_target_that_no_action_reaches_is_never_the_best() -> None:
    values = TargetValues(Answers([[4.0, 6.0, 5.0], [1.0, 2.0, 3.0], [4.0, 6.0, 5.0]]), reward_scale=1.0, shorts=True)
    flat, long, short = (q[:, 0].tolist() for q in values(torch.zeros(3, 4), torch.tensor([[-1.0], [0.0], [1.0]])))
    assert (flat[0], flat[2]) == (4.0 - UNREACHED, 4.0 - UNREACHED)
    assert (flat[1], long[1], short[1]) == (1.0, 2.0, 3.0)
    assert (long[0], short[0]) == (6.0, 5.0)
    assert (long[2], short[2]) == (6.0, 5.0)


@pytest.mark.parametrize("shorts", [False, True])
def test_the_exported_model_says_what_the_network_says(*, shorts: bool) -> None:
    spec = tutorial_spec(3)
    torch.manual_seed(1)
    n = len(spec.names)
    normalised = NormalisedInputs(observation_space(n), mean=np.full(n, 0.1), deviation=np.full(n, 0.3), clip=5.0)
    net = torch.nn.Sequential(normalised, torch.nn.Linear(n + 1, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    values = TargetValues(net, reward_scale=50.0, shorts=shorts)
    policy = export_onnx(values, n)
    real = np.random.default_rng(0).normal(size=(CHECKED_ROWS, n)).astype(np.float32)
    assert check_equal(values, policy, spec, real, seed=0) <= 1e-5
    assert set(Model(policy, spec, values.targets).outputs) == set(values.output_names)
    assert str(Path.cwd()).encode() not in policy


def test_a_model_that_differs_from_the_network_is_refused() -> None:
    spec = tutorial_spec(3)
    n = len(spec.names)
    one, other = (TargetValues(torch.nn.Linear(n + 1, 3), reward_scale=1.0, shorts=False) for _ in range(2))
    policy = export_onnx(one, n)
    with pytest.raises(TrainingError, match="differs from torch"):
        check_equal(other, policy, spec, np.zeros((5, n), np.float32), seed=0)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    table = table_of(walk(n=200))
    runs = [train_dqn(table, TrainingSettings(seed=seed, **QUICK)) for seed in (3, 3, 4)]
    same, again, other = (run.weights for run in runs)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not all(torch.equal(same[name], other[name]) for name in same)


def test_a_transition_replay_is_repeated_by_its_seed_too() -> None:
    table = table_of(walk(n=200))
    quick = {**QUICK, "replay": "transitions", "learning_starts": 8, "n_envs": 1, "train_freq": 4}
    one, two = (train_dqn(table, TrainingSettings(seed=3, **quick)).weights for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_time_budget_ends_the_run() -> None:
    settings = TrainingSettings(**{**QUICK, "timesteps": 1_000_000})
    trained = train_dqn(table_of(walk(n=200)), settings, budget_s=0.2)
    assert trained.stopped_by_budget
    assert 0 < trained.steps < 1_000_000


def test_progress_is_told_and_logs_are_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = TrainingSettings(**{**QUICK, "timesteps": 400})
    train_dqn(
        table_of(walk(n=200)),
        settings,
        on_progress=lambda done, planned: told.append((done, planned)),
        log_dir=tmp_path / "logs",
    )
    assert told[-1] == (400, 400)
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_rewards_are_scaled_to_one_deviation_of_a_long_positions_bar() -> None:
    table = table_of(walk(n=200), costs=ALL_COSTS)
    long = table.reward_TPN[table.start_rows, 2, 2] * reward_scale(table)
    assert long.std() == pytest.approx(1.0)


def test_inputs_are_normalised_by_the_training_rows_alone() -> None:
    table = table_of(walk(n=200), holes=())
    before = np.arange(200) < 120
    table.features_TF[~before] = 1e6  # what comes later must not be heard of
    trained = train_dqn(table.where(before), TrainingSettings(seed=3, **QUICK))
    inputs = trained.network.q_net.features_extractor
    assert isinstance(inputs, NormalisedInputs)
    np.testing.assert_allclose(inputs.mean, table.features_TF[:119].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inputs.deviation, table.features_TF[:119].std(axis=0), rtol=1e-4)
