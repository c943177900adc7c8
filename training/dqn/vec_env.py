"""The N > 1 face of the batched core, as stable-baselines3 wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from strategies.strategy import Action
from training.environment import MarketBatch, observation_space


class MarketVecEnv(VecEnv):
    """N episodes of one table, stepped together; a finished one starts anew at once.

    Rewards are multiplied by `reward_scale`; `info["episode"]["r"]` of a finished episode stays in log equity.

    Args:
        batch: The episodes.
        reward_scale: Factor from log equity to the reward that the learner sees.
    """

    def __init__(self, batch: MarketBatch, *, reward_scale: float = 1.0) -> None:
        self.render_mode = None
        self._batch = batch
        self._scale = reward_scale
        self._rng = np.random.default_rng()
        self._log_equity_N = np.zeros(batch.n)
        self._length_N = np.zeros(batch.n, dtype=np.int64)
        self._action_N: NDArray[np.integer] = np.zeros(batch.n, dtype=np.int64)
        super().__init__(batch.n, observation_space(batch.table.n_features), spaces.Discrete(len(Action)))

    def reset(self) -> NDArray[np.float32]:
        """Start N new episodes; after `seed` they are drawn from that seed."""
        if self._seeds[0] is not None:
            self._rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._batch.reset(self._rng)
        self._log_equity_N[:] = 0.0
        self._length_N[:] = 0
        return self._batch.observe()

    def step_async(self, actions: NDArray[np.integer]) -> None:
        """Keep the actions for `step_wait`."""
        self._action_N = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step; the observation of a finished episode is in its info, as `terminal_observation`."""
        reward_N, terminated_N, truncated_N = self._batch.step(self._action_N)
        self._log_equity_N += reward_N
        self._length_N += 1
        done_N = terminated_N | truncated_N
        observation = self._batch.observe()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done_N.any():
            for i in np.flatnonzero(done_N):
                infos[i] = {
                    "terminal_observation": observation[i].copy(),
                    "TimeLimit.truncated": bool(truncated_N[i]),
                    "episode": {"r": float(self._log_equity_N[i]), "l": int(self._length_N[i]), "t": 0.0},
                }
            self._batch.reset(self._rng, done_N)
            self._log_equity_N[done_N] = 0.0
            self._length_N[done_N] = 0
            observation = self._batch.observe()
        return observation, (reward_N * self._scale).astype(np.float32), done_N, infos

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return one of this environment's attributes, once for each index."""
        return [getattr(self, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refuse: the episodes share everything but their state.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{attr_name} cannot be set to {value!r} for episodes {self._indices(indices)}")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: there is no single environment behind an index.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            f"{method_name}{method_args}{method_kwargs or ''} has no environment behind {self._indices(indices)}"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Return False for every index: nothing is wrapped."""
        del wrapper_class
        return [False] * len(self._indices(indices))

    def _indices(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        return list(self._get_indices(indices))
