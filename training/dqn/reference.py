"""The reference trainer: stable-baselines3's DQN on the market table.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", with a target network and Huber
loss; one thread, seeded throughout. The preset `default` draws its batches from the table (`replay`), the
preset `tutorial` from what its one episode did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from training.dqn.reference_network import NormalisedInputs, TargetValues
from training.dqn.replay import MarketReplay
from training.dqn.vec_env import MarketVecEnv
from training.environment import MarketBatch
from training.market import MarketTable
from training.settings import TrainingSettings

OnProgress = Callable[[int, int], None]
"""(steps done, steps planned)."""

LOG_EVERY_CALLS = 50
LOG_NEVER = 2**31
"""The library logs every so many episodes; `_Watch` logs by calls instead."""
DEVIATION_MIN = 1e-6
"""A feature that does not move is divided by this, and stays near zero."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out.

    Args:
        network: The exported face of the greedy policy.
        weights: Every tensor of both networks, by name.
        reward_scale: Learner's reward per log equity.
        steps: Environment steps taken.
        updates: Gradient updates made.
        cpu_s: Process time of the learning loop, seconds.
        wall_s: Its wall time, seconds.
        stopped_by_budget: True where the time budget ended it.
    """

    network: TargetValues
    weights: dict[str, torch.Tensor]
    reward_scale: float
    steps: int
    updates: int
    cpu_s: float
    wall_s: float
    stopped_by_budget: bool

    @property
    def exits(self) -> None:
        """It has no exit head."""
        return

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of the training."""
        return {"steps": self.steps, "updates": self.updates}


def train_dqn(
    table: MarketTable,
    settings: TrainingSettings,
    *,
    on_progress: OnProgress | None = None,
    budget_s: float | None = None,
    log_dir: Path | None = None,
) -> Trained:
    """Train on every usable row of `table`.

    The same table, settings and seed give the same weights, unless a budget ends the run.

    Args:
        table: Training rows only.
        settings: Hyperparameters and seed.
        on_progress: Called now and then.
        budget_s: Wall seconds after which learning stops.
        log_dir: Folder for TensorBoard event files.

    Raises:
        TrainingError: The table has no step.
    """
    torch.set_num_threads(1)
    scale = settings.reward_scale or reward_scale(table)
    batch = MarketBatch(
        table,
        settings.n_envs,
        episode_bars=settings.episode_bars,
        shorts=settings.shorts,
        start_position=settings.start_position,
    )
    model = DQN(
        "MlpPolicy",
        MarketVecEnv(batch, reward_scale=scale),
        learning_rate=partial(_linear, settings.learning_rate, settings.learning_rate_end),
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=settings.train_freq,
        gradient_steps=settings.gradient_steps,
        target_update_interval=settings.target_update_interval,
        exploration_fraction=settings.exploration_fraction,
        exploration_initial_eps=settings.exploration_initial_eps,
        exploration_final_eps=settings.exploration_final_eps,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs=_policy(table, settings),
        seed=settings.seed,
        device="cpu",
        **_replay(table, settings, scale),
    )
    writers: list[KVWriter] = []
    if log_dir is not None:
        from stable_baselines3.common.logger import TensorBoardOutputFormat  # noqa: PLC0415 -- costs start-up time

        writers.append(TensorBoardOutputFormat(str(log_dir)))
    model.set_logger(Logger(folder=None, output_formats=writers))
    watch = _Watch(settings.timesteps, on_progress, budget_s, logs=bool(writers))
    cpu_s, wall_s = time.process_time(), time.monotonic()
    model.learn(settings.timesteps, callback=watch, log_interval=LOG_NEVER)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    model.logger.close()
    return Trained(
        network=TargetValues(model.q_net, reward_scale=scale, shorts=settings.shorts).eval(),
        weights={name: tensor.detach().clone() for name, tensor in model.policy.state_dict().items()},
        reward_scale=scale,
        steps=model.num_timesteps,
        updates=model._n_updates,  # noqa: SLF001 - the library offers no public count
        cpu_s=cpu_s,
        wall_s=wall_s,
        stopped_by_budget=watch.stopped,
    )


def reward_scale(table: MarketTable) -> float:
    """Return 1 over the standard deviation of a long position's log return per bar, on the usable rows."""
    deviation = float(table.reward_TPN[table.start_rows, 2, 2].std())
    return 1.0 / deviation if deviation > 0.0 else 1.0


def _linear(begin: float, share_left: float, remaining: float) -> float:
    """Return the learning rate where `remaining` falls from 1 to 0 over the training."""
    return begin * (share_left + (1.0 - share_left) * remaining)


def _policy(table: MarketTable, settings: TrainingSettings) -> dict[str, Any]:
    """Return the network's arguments, with the training rows' statistics of the inputs."""
    kwargs: dict[str, Any] = {
        "net_arch": list(settings.hidden),
        "optimizer_class": torch.optim.AdamW,
        "optimizer_kwargs": {"weight_decay": settings.weight_decay},
    }
    if settings.input_clip is not None:
        features_RF = table.features_TF[table.start_rows].astype(np.float64)
        kwargs["features_extractor_class"] = NormalisedInputs
        kwargs["features_extractor_kwargs"] = {
            "mean": features_RF.mean(axis=0),
            "deviation": np.maximum(features_RF.std(axis=0), DEVIATION_MIN),
            "clip": settings.input_clip,
        }
    return kwargs


def _replay(table: MarketTable, settings: TrainingSettings, scale: float) -> dict[str, Any]:
    """Return the arguments that choose the replay."""
    if settings.replay == "transitions":
        return {}
    return {
        "replay_buffer_class": MarketReplay,
        "replay_buffer_kwargs": {
            "table": table,
            "shorts": settings.shorts,
            "reward_scale": scale,
            "seed": settings.seed,
        },
    }


class _Watch(BaseCallback):
    """Reports progress, writes logs, and ends the run when its time is over."""

    def __init__(self, planned: int, on_progress: OnProgress | None, budget_s: float | None, *, logs: bool) -> None:
        super().__init__()
        self._planned = planned
        self._on_progress = on_progress
        self._ends_at = None if budget_s is None else time.monotonic() + budget_s
        self._logs = logs
        self.stopped = False

    def _on_step(self) -> bool:
        if self._on_progress is not None and self.n_calls % 10 == 0:
            self._on_progress(min(self.num_timesteps, self._planned), self._planned)
        if self._logs and self.n_calls % LOG_EVERY_CALLS == 0:
            self.logger.dump(self.num_timesteps)
        self.stopped = self._ends_at is not None and time.monotonic() >= self._ends_at
        return not self.stopped
