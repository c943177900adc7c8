"""The batched core in machine code: the same episodes as `training.environment`, bit for bit, many times faster.

Everything a step can pay stands in the market table, so a step is one look-up and no arithmetic of costs is
repeated here. The kernels are compiled by Numba when first called (never at import) and kept on disk beside this
file, or in `NUMBA_CACHE_DIR`. They do not hold the interpreter's lock.

What a step costs is waiting for memory: N episodes stand at N places of a table that is larger than the caches.
So a slot's next reward is asked for (`prefetch`) when the slot has moved, a whole round before it is read. With
observations a round fills the caches by itself, and a slot's row is asked for `SLOTS_AHEAD` slots before its turn.

Axes: K steps, N episodes; T, F, P as in `training.market`, G = F + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.strategy import Action
from training.environment import RUIN_REWARD, MarketBatch, StartPosition
from training.errors import TrainingError
from training.instructions import LINE_BYTES, prefetch
from training.machine_code import machine_code
from training.market import Float, Float32, Int, MarketTable

GOING, TERMINATED, TRUNCATED = np.uint8(0), np.uint8(1), np.uint8(2)
"""How an episode stands after a step."""

RESTARTS_MIN = 4_096
"""Starts of episodes are drawn at least this many at a time."""

SLOTS_AHEAD = 24
"""Chosen on 100,000 rows of 50 features, N = 64 to 4,096: 8 is too late, and more gains nothing."""

_HOLD, _BUY = int(Action.HOLD), int(Action.BUY)
_ACTIONS = len(Action)
_SOUND = -1


@dataclass(frozen=True, slots=True)
class Played:
    """What K steps of N episodes were: enough to recompute every transition.

    A step leads from (row, position) to (row + 1, the action's target), also at the end of an episode: the
    observation to bootstrap from after a truncation is that of `row_KN + 1`.

    Args:
        row_KN: int32, the row each action was taken at.
        position_KN: int8, the position before it.
        reward_KN: float64, change of log equity.
        ended_KN: uint8, `GOING`, `TERMINATED` or `TRUNCATED` by this step.
    """

    row_KN: NDArray[np.int32]
    position_KN: NDArray[np.int8]
    reward_KN: Float
    ended_KN: NDArray[np.uint8]


class CompiledBatch(MarketBatch):
    """`MarketBatch` with compiled steps, and episodes that start anew within the kernel (`play`).

    `step`, `observe` and `reset` give what `MarketBatch` gives, so either can stand behind `MarketVecEnv`.
    `play` and `advance` draw their starts in blocks, in another order than `reset` does: the same seed gives the
    same episodes again, however the steps are cut into calls, but not those of `step` and `reset`.

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
        super().__init__(table, n, episode_bars=episode_bars, shorts=shorts, start_position=start_position)
        # One array of three rows passes into the kernel faster than three arrays.
        self._state_3N: Int = np.zeros((3, n), dtype=np.int64)
        self.row_N, self.end_N, self.position_N = self._state_3N
        self._sell = -1 if shorts else 0
        self._restart_2R: Int = np.zeros((2, 0), dtype=np.int64)
        self._used = 0
        self._no_observations = np.empty((0, table.n_features + 1), dtype=np.float32)

    def reset(self, rng: np.random.Generator, mask_N: NDArray[np.bool_] | None = None) -> None:
        """Start a new episode in every slot, or in those of `mask_N`; forget the starts drawn ahead for `play`."""
        super().reset(rng, mask_N)
        self._restart_2R = self._restart_2R[:, :0]
        self._used = 0

    def step(self, action_N: NDArray[np.integer]) -> tuple[Float, NDArray[np.bool_], NDArray[np.bool_]]:
        """Take one action per slot; returns rewards, terminated, truncated, each (N,).

        Raises:
            TrainingError: An action that does not exist, or a slot whose episode is over.
        """
        action_N = self._actions(action_N, (self.n,))
        reward_N = np.empty(self.n)
        ended_2N = np.empty((2, self.n), dtype=np.bool_)
        fault = _step(action_N, self._state_3N, self.table.reward_TPN, self._sell, RUIN_REWARD, reward_N, ended_2N)
        if fault != _SOUND:
            raise self._fault(fault, int(action_N[fault]))
        return reward_N, ended_2N[0], ended_2N[1]

    def observe(self, out: Float32 | None = None) -> Float32:
        """Return (N, F + 1) observations of the current rows, in `out` where it is given."""
        out = self._observations(out)
        _observe(self._state_3N, self.table.observations_TG, out)
        return out

    def play(self, action_KN: NDArray[np.integer], rng: np.random.Generator) -> Played:
        """Take K given actions in each slot; an episode that ends starts anew before the next action.

        Args:
            action_KN: Actions.
            rng: What the starts are drawn from, in blocks.

        Raises:
            TrainingError: An action that does not exist, or a slot whose episode is over; `reset` afterwards.
        """
        return self._play(action_KN, rng, self._no_observations)

    def advance(
        self, action_N: NDArray[np.integer], rng: np.random.Generator, out: Float32 | None = None
    ) -> tuple[Float32, Played]:
        """Take one action in each slot as `play` does; returns what is observed then, and the step (K = 1).

        Where an episode ended, the observation is the first of the next one.

        Raises:
            TrainingError: As `play`.
        """
        out = self._observations(out)
        return out, self._play(action_N[np.newaxis], rng, out)

    def _play(self, action_KN: NDArray[np.integer], rng: np.random.Generator, out: Float32) -> Played:
        action_KN = self._actions(action_KN, (len(action_KN), self.n))
        played = Played(
            row_KN=np.empty(action_KN.shape, dtype=np.int32),
            position_KN=np.empty(action_KN.shape, dtype=np.int8),
            reward_KN=np.empty(action_KN.shape),
            ended_KN=np.empty(action_KN.shape, dtype=np.uint8),
        )
        done = 0
        while done < len(action_KN):
            if self._restart_2R.shape[1] - self._used < self.n:
                self._draw_restarts(rng)
            done, self._used, fault = _play(
                action_KN, done, self._state_3N, self.table.reward_TPN, self.table.observations_TG,
                self.table.run_end_T, self._sell, RUIN_REWARD, self.episode_bars, self._restart_2R, self._used,
                played.row_KN, played.position_KN, played.reward_KN, played.ended_KN, out,
            )  # fmt: skip
            if fault != _SOUND:
                raise self._fault(fault, int(action_KN[done, fault]))
        return played

    def _draw_restarts(self, rng: np.random.Generator) -> None:
        size = max(RESTARTS_MIN, 2 * self.n)
        self._restart_2R = np.zeros((2, size), dtype=np.int64)
        self._restart_2R[0] = self._starts[rng.integers(len(self._starts), size=size)]
        if self.start_position == "random":
            self._restart_2R[1] = rng.integers(-1 if self.shorts else 0, 2, size=size)
        self._used = 0

    def _observations(self, out: Float32 | None) -> Float32:
        """Return where observations are written; refuse what they do not fit into."""
        shape = (self.n, self.table.n_features + 1)
        if out is None:
            return np.empty(shape, dtype=np.float32)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise TrainingError(
                f"observations do not fit into {out.dtype} {out.shape}: give contiguous float32 {shape}"
            )
        return out

    def _actions(self, actions: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.integer]:
        """Return the actions as the kernels read them; refuse another shape or kind."""
        actions = np.ascontiguousarray(actions)
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise TrainingError(f"actions are {actions.dtype} {actions.shape}: give integers of shape {shape}")
        return actions

    def _fault(self, slot: int, action: int) -> TrainingError:
        if not 0 <= action < _ACTIONS:
            return TrainingError(f"action {action} of slot {slot} does not exist: give 0 HOLD, 1 BUY or 2 SELL")
        return TrainingError(
            f"slot {slot} stands at row {self.row_N[slot]} with position {self.position_N[slot]}, "
            f"its episode ends at row {self.end_N[slot]}: reset it before the next step"
        )


def warm_up(table: MarketTable) -> None:
    """Compile or load every kernel for int64 actions, so that the first step of a training pays for none of it."""
    batch = CompiledBatch(table, 2)
    rng = np.random.default_rng(0)
    batch.reset(rng)
    batch.step(np.zeros(2, dtype=np.int64))
    batch.observe()
    batch.reset(rng)
    batch.advance(np.zeros(2, dtype=np.int64), rng)


@machine_code
def _first_fault(action_N: Any, state_3N: Any) -> int:
    """Return the first slot that must not be stepped, or `_SOUND`: nothing outside of the arrays is ever read."""
    faults = 0
    for n in range(action_N.shape[0]):
        faults += (
            (action_N[n] < 0)
            | (action_N[n] >= _ACTIONS)
            | (state_3N[0, n] < 0)
            | (state_3N[0, n] >= state_3N[1, n])
            | (state_3N[2, n] < -1)
            | (state_3N[2, n] > 1)
        )
    if faults == 0:
        return _SOUND
    for n in range(action_N.shape[0]):
        if (
            action_N[n] < 0
            or action_N[n] >= _ACTIONS
            or state_3N[0, n] < 0
            or state_3N[0, n] >= state_3N[1, n]
            or state_3N[2, n] < -1
            or state_3N[2, n] > 1
        ):
            return n
    return _SOUND


@machine_code
def _step(action_N: Any, state_3N: Any, reward_TPN: Any, sell: int, ruin: float, reward_N: Any, ended_2N: Any) -> int:
    """Step every slot, or none and return the slot at fault."""
    fault = _first_fault(action_N, state_3N)
    if fault != _SOUND:
        return fault
    for n in range(action_N.shape[0]):
        row = state_3N[0, n]
        position = state_3N[2, n]
        action = action_N[n]
        target = position if action == _HOLD else (1 if action == _BUY else sell)
        reward = reward_TPN[row, position + 1, target + 1]
        row += 1
        state_3N[0, n] = row
        state_3N[2, n] = target
        reward_N[n] = reward
        ended_2N[0, n] = reward <= ruin
        ended_2N[1, n] = (row >= state_3N[1, n]) & (reward > ruin)
        prefetch(reward_TPN, row, 0)
        prefetch(reward_TPN, row, LINE_BYTES)
    return _SOUND


@machine_code
def _observe(state_3N: Any, observations_TG: Any, out_NG: Any) -> None:
    """Write every slot's features, then its position."""
    last = observations_TG.shape[1] - 1
    for n in range(state_3N.shape[1]):
        row = state_3N[0, n]
        for g in range(last):
            out_NG[n, g] = observations_TG[row, g]
        out_NG[n, last] = state_3N[2, n]


@machine_code
def _play(
    action_KN: Any, first: int, state_3N: Any, reward_TPN: Any, observations_TG: Any,
    run_end_T: Any, sell: int, ruin: float, episode_bars: int, restart_2R: Any, used: int,
    row_KN: Any, position_KN: Any, reward_KN: Any, ended_KN: Any, out_NG: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Step until the actions or the restarts are used up; returns steps done, restarts used, slot at fault.

    `out_NG` takes the observations after every step, unless it has no rows.
    """
    count = action_KN.shape[1]
    observed = out_NG.shape[0] > 0
    last = observations_TG.shape[1] - 1
    row_bytes = observations_TG.strides[0]
    for k in range(first, action_KN.shape[0]):
        if restart_2R.shape[1] - used < count:
            return k, used, _SOUND
        fault = _first_fault(action_KN[k], state_3N)
        if fault != _SOUND:
            return k, used, fault
        for n in range(count):
            if observed and n + SLOTS_AHEAD < count:
                ahead = state_3N[0, n + SLOTS_AHEAD]
                prefetch(reward_TPN, ahead, 0)
                prefetch(reward_TPN, ahead, LINE_BYTES)
                for byte in range(0, row_bytes, LINE_BYTES):
                    prefetch(observations_TG, ahead + 1, byte)
            row = state_3N[0, n]
            position = state_3N[2, n]
            action = action_KN[k, n]
            target = position if action == _HOLD else (1 if action == _BUY else sell)
            reward = reward_TPN[row, position + 1, target + 1]
            row_KN[k, n] = row
            position_KN[k, n] = position
            reward_KN[k, n] = reward
            row += 1
            ended = GOING
            if reward <= ruin:
                ended = TERMINATED
            elif row >= state_3N[1, n]:
                ended = TRUNCATED
            ended_KN[k, n] = ended
            if ended != GOING:
                row = restart_2R[0, used]
                target = restart_2R[1, used]
                state_3N[1, n] = min(row + episode_bars, run_end_T[row])
                used += 1
            state_3N[0, n] = row
            state_3N[2, n] = target
            if observed:
                for g in range(last):
                    out_NG[n, g] = observations_TG[row, g]
                out_NG[n, last] = target
            else:
                prefetch(reward_TPN, row, 0)
                prefetch(reward_TPN, row, LINE_BYTES)
    return action_KN.shape[0], used, _SOUND
