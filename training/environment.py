"""Trading as an environment: a batched core over one market table, and the Gymnasium face for N = 1.

State is (row, position) only. Observation: the row's features, then the position held or being entered.
Actions: 0 HOLD keeps the position, 1 BUY goes long, 2 SELL goes flat (short where shorts are on). Reward: the
change of after-cost log equity over one bar (`training.market`), nothing else. `training.plain` says the same
in scalars, from bars; `training.compiled` is this core in machine code.

Episodes start at random rows and never cross the end of a series or an unusable row, nor a gap that was taken
out of the table (`MarketTable.without_gaps`). Reaching the length of an episode, or the end of its run of rows,
truncates (the value bootstraps); ruin terminates.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from strategies.strategy import Action
from training.errors import TrainingError
from training.market import RUIN_FRACTION, Float32, Int, MarketTable

RUIN_REWARD = float(np.log(RUIN_FRACTION))

POSITIONS = 3
"""Positions -1, 0, 1 are at index 0, 1, 2 of every axis of positions."""

StartPosition = Literal["flat", "random"]


def action_targets(*, shorts: bool) -> NDArray[np.int64]:
    """Return (3, 3) targets: position (-1, 0, 1 at index 0, 1, 2) by action (HOLD, BUY, SELL)."""
    targets_PA = np.empty((3, 3), dtype=np.int64)
    targets_PA[:, Action.HOLD] = (-1, 0, 1)
    targets_PA[:, Action.BUY] = 1
    targets_PA[:, Action.SELL] = -1 if shorts else 0
    return targets_PA


class MarketBatch:
    """N independent episodes over one table, stepped together without a Python loop.

    Args:
        table: The market.
        n: Number of episodes side by side.
        episode_bars: Longest episode, in steps.
        shorts: SELL means short (-1) instead of flat (0).
        start_position: Flat, or drawn evenly from the allowed positions.
    """

    def __init__(
        self,
        table: MarketTable,
        n: int,
        *,
        episode_bars: int = 1000,
        shorts: bool = False,
        start_position: StartPosition = "flat",
    ) -> None:
        if n < 1 or episode_bars < 1:
            raise TrainingError(f"n = {n}, episode_bars = {episode_bars}: both must be at least 1")
        self.table = table
        self.n = n
        self.episode_bars = episode_bars
        self.shorts = shorts
        self.start_position = start_position
        self._targets_PA = action_targets(shorts=shorts)
        self._starts = table.start_rows
        if len(self._starts) == 0:
            raise TrainingError(
                "no bar with complete features is followed by another: give more bars than the features' memory"
            )
        self.row_N: Int = np.zeros(n, dtype=np.int64)
        self.end_N: Int = np.zeros(n, dtype=np.int64)
        self.position_N: Int = np.zeros(n, dtype=np.int64)

    def reset(self, rng: np.random.Generator, mask_N: NDArray[np.bool_] | None = None) -> None:
        """Start a new episode in every slot, or in those of `mask_N`."""
        slots = np.arange(self.n) if mask_N is None else np.flatnonzero(mask_N)
        row = self._starts[rng.integers(len(self._starts), size=len(slots))]
        self.row_N[slots] = row
        self.end_N[slots] = np.minimum(row + self.episode_bars, self.table.run_end_T[row])
        if self.start_position == "flat":
            self.position_N[slots] = 0
        else:
            self.position_N[slots] = rng.integers(-1 if self.shorts else 0, 2, size=len(slots))

    def step(self, action_N: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Take one action per slot; returns rewards, terminated, truncated, each (N,).

        Finished slots stay at their last row until `reset` is called for them.
        """
        target_N = self._targets_PA[self.position_N + 1, action_N]
        reward_N = self.table.reward_TPN[self.row_N, self.position_N + 1, target_N + 1]
        self.row_N += 1
        self.position_N = target_N
        terminated_N = reward_N <= RUIN_REWARD
        return reward_N, terminated_N, (self.row_N >= self.end_N) & ~terminated_N

    def observe(self) -> Float32:
        """Return (N, F + 1) observations of the current rows."""
        obs = self.table.observations_TG[self.row_N]
        obs[:, -1] = self.position_N
        return obs


class TradingEnv(gymnasium.Env[Any, Any]):
    """The Gymnasium face of `MarketBatch` for one episode.

    `reset(options={"row": R, "position": P})` starts at a given row and position instead of drawn ones.
    `info` holds `row`, `position`, `close_ns` and `log_equity` (sum of this episode's rewards).

    Args:
        table: The market.
        episode_bars: Longest episode, in steps.
        shorts: SELL means short (-1) instead of flat (0).
        start_position: Flat, or drawn evenly from the allowed positions.
    """

    def __init__(
        self,
        table: MarketTable,
        *,
        episode_bars: int = 1000,
        shorts: bool = False,
        start_position: StartPosition = "flat",
    ) -> None:
        self._batch = MarketBatch(table, 1, episode_bars=episode_bars, shorts=shorts, start_position=start_position)
        # Memoryviews and tuples answer with Python's own numbers, several times faster than arrays do.
        self._reward = table.reward_TPN.reshape(-1).data
        self._close_ns = table.close_ns_T.data
        self._observations_TG = table.observations_TG
        self._targets = tuple(tuple(targets) for targets in action_targets(shorts=shorts).tolist())
        self._row = self._end = self._position = 0
        self._log_equity = 0.0
        self.table = table
        self.observation_space = observation_space(table.n_features)
        self.action_space = spaces.Discrete(len(Action))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32, dict[str, Any]]:
        """Start an episode.

        Raises:
            TrainingError: `options["row"]` is a row from which no step exists.
        """
        super().reset(seed=seed)
        batch = self._batch
        batch.reset(self.np_random)
        self._row, self._end = int(batch.row_N[0]), int(batch.end_N[0])
        self._position = int(batch.position_N[0])
        if options is not None and "row" in options:
            self._row = int(options["row"])
            run_end = int(self.table.run_end_T[self._row])
            if self._row >= run_end:
                raise TrainingError(f"row {self._row} has no usable following row: start at one of table.start_rows")
            self._end = min(self._row + batch.episode_bars, run_end)
        if options is not None and "position" in options:
            self._position = int(options["position"])
        self._log_equity = 0.0
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Float32, float, bool, bool, dict[str, Any]]:
        """Take one action; returns observation, reward (log equity), terminated, truncated, info."""
        row, position = self._row, self._position
        target = self._targets[position + 1][action]
        reward: float = self._reward[(row * POSITIONS + position + 1) * POSITIONS + target + 1]
        row += 1
        self._row, self._position = row, target
        self._log_equity += reward
        terminated = reward <= RUIN_REWARD
        # `_observation` and `_info`, written out: two calls less a step
        obs = self._observations_TG[row].copy()
        obs[-1] = target
        info = {"row": row, "position": target, "close_ns": self._close_ns[row], "log_equity": self._log_equity}
        return obs, reward, terminated, row >= self._end and not terminated, info

    def _observation(self) -> Float32:
        obs: Float32 = self._observations_TG[self._row].copy()
        obs[-1] = self._position
        return obs

    def _info(self) -> dict[str, Any]:
        return {
            "row": self._row,
            "position": self._position,
            "close_ns": self._close_ns[self._row],
            "log_equity": self._log_equity,
        }


def observation_space(n_features: int) -> spaces.Box:
    """Return the space of (F + 1,) observations: finite features, then the position in [-1, 1]."""
    bound = np.full(n_features + 1, np.finfo(np.float32).max, dtype=np.float32)
    bound[-1] = 1.0
    return spaces.Box(-bound, bound, dtype=np.float32)
