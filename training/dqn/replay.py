"""A replay that is the market table itself: every sampled bar yields all its positions and actions.

The price is exogenous, so reward and next state of every (bar, position, action) are known without having
acted (Huang 2018, arXiv 1807.02787, "action augmentation"; Sinclair et al. 2023, "Hindsight Learning for MDPs
with Exogenous Inputs"). Targets still bootstrap from the target network, never from the realised future.
Pairs that differ only in the action share the bar's noise, so their difference is learned almost without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from strategies.strategy import Action
from training.environment import RUIN_REWARD, action_targets
from training.market import MarketTable


class MarketReplay(ReplayBuffer):
    """Stands where stable-baselines3 keeps transitions; stores none of them.

    Args:
        buffer_size: Ignored but for the base class's bookkeeping.
        observation_space: Of the environment.
        action_space: Of the environment.
        device: Where batches go.
        n_envs: Number of parallel episodes.
        optimize_memory_usage: Refused by the base class's other users; here there is nothing to save.
        table: The market; batches are drawn evenly from its `start_rows`.
        shorts: Positions include -1 and SELL means short.
        reward_scale: Factor from log equity to the learner's reward.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,  # noqa: FBT001, FBT002 - the base class's signature
        *,
        table: MarketTable,
        shorts: bool,
        reward_scale: float,
        seed: int,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.optimize_memory_usage = optimize_memory_usage
        self._rng = np.random.default_rng(seed)
        self._rows = table.start_rows
        self._features_TF = torch.from_numpy(table.features_TF)
        positions = np.arange(-1 if shorts else 0, 2)
        pairs = [(position, action) for position in positions for action in Action]
        self._position_K = np.array([position for position, _ in pairs])
        self._action_K = torch.tensor([int(action) for _, action in pairs])
        target_K = action_targets(shorts=shorts)[self._position_K + 1, self._action_K.numpy()]
        # (T, K): everything a bar can pay, in the learner's unit
        paid_TK = table.reward_TPN[:, self._position_K + 1, target_K + 1]
        self._done_TK = torch.from_numpy((paid_TK <= RUIN_REWARD).astype(np.float32))
        self._reward_TK = torch.from_numpy((paid_TK * reward_scale).astype(np.float32))
        self._position_column = torch.from_numpy(self._position_K.astype(np.float32))[:, None]
        self._target_column = torch.from_numpy(target_K.astype(np.float32))[:, None]

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Count the step; what it saw is in the table already."""
        del obs, next_obs, action, reward, done, infos
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw batch_size / K bars with all their K = positions * actions pairs."""
        del env
        kinds = len(self._position_K)
        bars = max(1, batch_size // kinds)
        row_B = torch.from_numpy(self._rows[self._rng.integers(len(self._rows), size=bars)])
        return ReplayBufferSamples(
            observations=self._observe(row_B, self._position_column),
            actions=self._action_K.repeat(bars)[:, None],
            next_observations=self._observe(row_B + 1, self._target_column),
            dones=self._done_TK[row_B].reshape(-1, 1),
            rewards=self._reward_TK[row_B].reshape(-1, 1),
        )

    def _observe(self, row_B: torch.Tensor, column_K1: torch.Tensor) -> torch.Tensor:
        """Return (B * K, F + 1): each row's features once for each of K position values."""
        bars, kinds = len(row_B), len(column_K1)
        features = self._features_TF[row_B].repeat_interleave(kinds, dim=0)
        return torch.cat([features, column_K1.repeat(bars, 1)], dim=1)
