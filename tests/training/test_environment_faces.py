"""The faces that libraries step: stable-baselines3's vector face on either core, and Gymnasium's on every option."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from small_markets import NO_COSTS, table_of, walk
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

from training.compiled import CompiledBatch
from training.dqn.vec_env import MarketVecEnv
from training.environment import MarketBatch, TradingEnv
from training.market import MarketTable

ROOT = Path(__file__).resolve().parents[2]
CORES = (MarketBatch, CompiledBatch)


def table() -> MarketTable:
    return table_of(walk(n=60), walk("BBB", 50, seed=3), holes=(0, 1, 30))


def face(core: type[MarketBatch], n: int = 5, **options: Any) -> MarketVecEnv:
    env = MarketVecEnv(core(table(), n, episode_bars=7, start_position="random", **options), reward_scale=10.0)
    env.seed(3)
    return env


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("start_position", ["flat", "random"])
def test_both_libraries_checkers_accept_every_option(*, shorts: bool, start_position: Any) -> None:
    for check in (
        lambda env: gymnasium.utils.env_checker.check_env(env, skip_render_check=True),
        stable_baselines3.common.env_checker.check_env,
    ):
        check(TradingEnv(table(), episode_bars=7, shorts=shorts, start_position=start_position))


@pytest.mark.parametrize("shorts", [False, True])
def test_the_vector_face_is_the_same_on_either_core(*, shorts: bool) -> None:
    plain, fast = (face(core, shorts=shorts) for core in CORES)
    np.testing.assert_array_equal(plain.reset(), fast.reset())
    actions = np.random.default_rng(0)
    for _ in range(60):
        action_N = actions.integers(3, size=5)
        expected, answer = plain.step(action_N), fast.step(action_N)
        for one, other in zip(expected[:3], answer[:3], strict=True):
            assert one.tobytes() == other.tobytes()
        assert [set(info) for info in expected[3]] == [set(info) for info in answer[3]]
        for one, other in zip(expected[3], answer[3], strict=True):
            if one:
                np.testing.assert_array_equal(one["terminal_observation"], other["terminal_observation"])
                assert one["episode"] == other["episode"]
                assert one["TimeLimit.truncated"] == other["TimeLimit.truncated"]


@pytest.mark.parametrize("core", CORES)
def test_the_vector_face_is_the_gymnasium_face_many_times(core: type[MarketBatch]) -> None:
    env = face(core)
    observation = env.reset()
    batch: Any = env._batch
    singles = [TradingEnv(batch.table, episode_bars=7) for _ in range(5)]

    def begin(i: int) -> None:
        first, _ = singles[i].reset(options={"row": batch.row_N[i], "position": batch.position_N[i]})
        np.testing.assert_array_equal(first, observation[i])

    for i in range(5):
        begin(i)
    actions = np.random.default_rng(1)
    for _ in range(40):
        action_N = actions.integers(3, size=5)
        observation, rewards, dones, infos = env.step(action_N)
        for i, single in enumerate(singles):
            seen, reward, terminated, truncated, _ = single.step(int(action_N[i]))
            assert rewards[i] == np.float32(reward * 10.0)
            assert dones[i] == (terminated or truncated)
            if dones[i]:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], seen)
                assert infos[i]["TimeLimit.truncated"] == truncated
                begin(i)
            else:
                np.testing.assert_array_equal(observation[i], seen)


@pytest.mark.parametrize("core", CORES)
def test_a_learner_bootstraps_where_an_episode_was_cut_off(core: type[MarketBatch]) -> None:
    env = face(core)
    model = DQN("MlpPolicy", env, learning_starts=1000, buffer_size=500, train_freq=1, seed=0, device="cpu")
    model.learn(100)
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    assert buffer.dones.sum() > 5
    np.testing.assert_array_equal(buffer.dones, buffer.timeouts)  # every end here is one of time
    assert (buffer.sample(200).dones == 0.0).all()  # and none of them ends the value


def test_a_learner_does_not_bootstrap_from_ruin() -> None:
    bars = walk(n=12)
    bars.close[4:] = bars.open[4:] * 2.5
    bars.high[4:] = np.maximum(bars.high[4:], bars.close[4:])
    market = table_of(bars, costs=NO_COSTS)
    env = MarketVecEnv(CompiledBatch(market, 3, shorts=True))
    env.seed(0)
    env.reset()
    for _ in range(20):
        _, rewards, dones, infos = env.step(np.full(3, 2))
        for i in np.flatnonzero(rewards <= np.float32(np.log(0.01))):
            assert dones[i]
            assert not infos[i]["TimeLimit.truncated"]
            return
    pytest.fail("no episode was ruined")


def test_a_learner_on_the_compiled_core_learns_the_same_weights() -> None:
    weights = []
    for core in CORES:
        model = DQN(
            "MlpPolicy", face(core), learning_starts=10, batch_size=16, train_freq=1, seed=0, device="cpu",
            policy_kwargs={"net_arch": [8]},
        )  # fmt: skip
        model.learn(200)
        weights.append(model.policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_librarys_wrappers_take_the_vector_face() -> None:
    env = VecMonitor(face(CompiledBatch))
    env.reset()
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros(5, dtype=np.int64))
    assert {len(info["episode"]) for info, done in zip(infos, dones, strict=True) if done} <= {3}
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False] * 5


def test_the_librarys_own_vector_of_single_faces_steps_them() -> None:
    env = make_vec_env(lambda: TradingEnv(table(), episode_bars=7), n_envs=2, seed=0)
    env.reset()
    dones = [env.step(np.array([1, 2]))[2] for _ in range(20)]
    assert np.any(dones)


PROGRAM = """
import sys
import training.environment, training.market, training.plain, training.dqn.reference, training.scenarios
assert "numba" not in sys.modules
import training.compiled
kernels = (training.compiled._step, training.compiled._observe, training.compiled._play)
assert not any(kernel.signatures for kernel in kernels)
"""


def test_nothing_is_compiled_by_an_import_and_numba_is_loaded_by_the_compiled_core_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


NOT_KEPT = """
from training.machine_code import machine_code
def twice(x): return 2 * x
print(machine_code(twice)(21))
"""


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_KEPT], cwd=ROOT, capture_output=True, text=True, check=False
    )  # code without a file has no folder to be kept in
    assert done.returncode == 0, done.stderr
    assert "compiled_code_not_kept" in done.stdout
    assert done.stdout.splitlines()[-1] == "42"


def test_the_manuals_example_runs() -> None:
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 0.0  # half a million random decisions pay their costs
