"""Where batches come from: bars drawn from the table, or transitions that epsilon-greedy episodes went through.

Either is an index: a drawn bar is its row, a transition its row, the position held and the one gone to; everything
else is looked up when it is learned from. One object serves all members of a group, each with generators of its own,
so that a member's draws do not depend on its neighbours.

Axes: E members, B rows of a batch, N positions that may be held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.dqn.prioritised import PrioritisedSlots
from training.dqn.settings import DqnSettings
from training.errors import TrainingError
from training.market import Int, MarketTable

Greedy = Callable[[Tensor, Tensor], Tensor]
"""(rows (E, K), places of the positions held (E, K)) to places of the best targets (E, K)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One batch of every member.

    Args:
        row_EB: Rows of the table.
        pair_EB: For transitions, position held * N + position gone to; None where all are learned.
        weight_EB: Importance weights; None for even ones.
        slots: Where each member's entries are kept, for `update`.
    """

    row_EB: Tensor
    pair_EB: Tensor | None = None
    weight_EB: Tensor | None = None
    slots: Sequence[Int] = ()


class Experience(Protocol):
    """What a learner draws from."""

    def advance(self, greedy: Greedy, progress: float) -> None:
        """Gather what comes before an update; `progress` in [0, 1]."""
        ...

    def draw(self, progress: float) -> Draw:
        """Return the batch of every member."""
        ...

    def update(self, draw: Draw, td_EB: NDArray[np.float32]) -> None:
        """Take note of the TD errors of a batch."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that later draws depend on."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...

    @property
    def epsilon(self) -> float | None:
        """Share of random targets; None where nobody acts."""
        ...


def make_experience(
    settings: DqnSettings, table: MarketTable, rows: Sequence[Int], seeds: Sequence[int], *, n_targets: int
) -> Experience:
    """Return what the settings ask for.

    Args:
        settings: Of the learner.
        table: The market.
        rows: Rows of each member.
        seeds: Of each member.
        n_targets: Positions that may be held, N.
    """
    if settings.replay == "market":
        return MarketDraws(settings, rows, seeds)
    return Episodes(settings, table, rows, seeds, n_targets=n_targets)


class MarketDraws:
    """Bars drawn evenly with replacement, or in proportion to their TD errors."""

    def __init__(self, settings: DqnSettings, rows: Sequence[Int], seeds: Sequence[int]) -> None:
        self._settings = settings
        self._rows = [np.asarray(one, dtype=np.int64) for one in rows]
        self._rngs = [np.random.Generator(np.random.PCG64((2, seed))) for seed in seeds]
        self._priorities: list[PrioritisedSlots] = []
        if settings.prioritised:
            self._priorities = [_priorities(settings, len(one), seed) for one, seed in zip(rows, seeds, strict=True)]
            for one in self._priorities:
                one.append(one.capacity)
        self.epsilon: float | None = None

    def advance(self, greedy: Greedy, progress: float) -> None:
        """Nothing has to be gathered."""

    def draw(self, progress: float) -> Draw:
        """Return the batch of every member."""
        size = self._settings.batch_bars
        if not self._priorities:
            drawn = [rows[rng.integers(len(rows), size=size)] for rows, rng in zip(self._rows, self._rngs, strict=True)]
            return Draw(torch.from_numpy(np.stack(drawn)))
        beta = self._settings.priority_beta + (1.0 - self._settings.priority_beta) * progress
        picks = [one.sample(size, beta) for one in self._priorities]
        drawn = [rows[slots] for rows, (slots, _) in zip(self._rows, picks, strict=True)]
        weights = np.stack([weight for _, weight in picks]).astype(np.float32)
        return Draw(torch.from_numpy(np.stack(drawn)), None, torch.from_numpy(weights), [slots for slots, _ in picks])

    def update(self, draw: Draw, td_EB: NDArray[np.float32]) -> None:
        """Take note of the TD errors of a batch."""
        for priorities, slots, td_B in zip(self._priorities, draw.slots, td_EB, strict=False):
            priorities.update(slots, td_B)

    def state(self) -> dict[str, Any]:
        """Return everything that later draws depend on."""
        return {
            "generators": [_generator_state(rng) for rng in self._rngs],
            "priorities": [one.state() for one in self._priorities],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for rng, kept in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = _generator_from(kept)
        for one, kept in zip(self._priorities, state["priorities"], strict=True):
            one.restore(kept)


class Episodes:
    """Epsilon-greedy episodes and a ring of the transitions that they went through.

    Any position that may be held is a possible target. An episode starts at a random row, never crosses the end of a
    run of rows, and its last transition bootstraps like any other.
    """

    def __init__(
        self, settings: DqnSettings, table: MarketTable, rows: Sequence[Int], seeds: Sequence[int], *, n_targets: int
    ) -> None:
        self._settings = settings
        self._n_targets = n_targets
        self._rows = [np.asarray(one, dtype=np.int64) for one in rows]
        self._run_end_T = table.run_end_T
        self._allowed = [np.zeros(len(table), dtype=np.bool_) for _ in rows]
        for allowed, one in zip(self._allowed, self._rows, strict=True):
            allowed[one] = True
        members, slots = len(rows), settings.n_envs
        self._rngs = [np.random.Generator(np.random.PCG64((3, seed))) for seed in seeds]
        self._at_EK = np.zeros((members, slots), dtype=np.int64)
        self._end_EK = np.zeros((members, slots), dtype=np.int64)
        self._held_EK = np.zeros((members, slots), dtype=np.int64)
        self._ring_EC = np.zeros((members, settings.buffer_size), dtype=np.int64)
        self._pair_EC = np.zeros((members, settings.buffer_size), dtype=np.uint8)
        self._priorities: list[PrioritisedSlots] = []
        if settings.prioritised:
            self._priorities = [_priorities(settings, settings.buffer_size, seed) for seed in seeds]
        self.steps = 0
        self._owed = 0.0
        self.epsilon: float | None = settings.exploration_initial
        for member in range(members):
            self._restart(member, np.arange(slots))

    def advance(self, greedy: Greedy, progress: float) -> None:
        """Step every member's episodes as often as an update is due to."""
        self._owed += self._settings.steps_per_update / self._settings.n_envs
        while self._owed >= 1.0 or self.steps == 0:
            self._owed -= 1.0
            self._step(greedy, progress)

    def _step(self, greedy: Greedy, progress: float) -> None:
        settings = self._settings
        self.epsilon = self._share_random(progress)
        best_EK = greedy(torch.from_numpy(self._at_EK), torch.from_numpy(self._held_EK)).cpu().numpy()
        for member, rng in enumerate(self._rngs):
            slots = settings.n_envs
            random = rng.random(slots) < self.epsilon
            drawn = rng.integers(self._n_targets, size=slots)
            target_K = np.where(random, drawn, best_EK[member])
            if self._priorities:
                place_K = self._priorities[member].append(slots)
            else:
                place_K = (self.steps * slots + np.arange(slots)) % settings.buffer_size
            self._ring_EC[member, place_K] = self._at_EK[member]
            self._pair_EC[member, place_K] = self._held_EK[member] * self._n_targets + target_K
            self._at_EK[member] += 1
            self._held_EK[member] = target_K
            over = self._at_EK[member] >= self._end_EK[member]
            over |= ~self._allowed[member][self._at_EK[member]]
            self._restart(member, np.flatnonzero(over))
        self.steps += 1

    def _share_random(self, progress: float) -> float:
        settings = self._settings
        start, final = settings.exploration_initial, settings.exploration_final
        if settings.exploration == "per_episode":
            episodes = self.steps * settings.n_envs // settings.episode_bars
            return float(max(final, start * settings.exploration_decay**episodes))
        return start + (final - start) * min(1.0, progress / settings.exploration_fraction)

    def _restart(self, member: int, slots: Int) -> None:
        rng, rows = self._rngs[member], self._rows[member]
        at = rows[rng.integers(len(rows), size=len(slots))]
        self._at_EK[member, slots] = at
        self._end_EK[member, slots] = np.minimum(at + self._settings.episode_bars, self._run_end_T[at] - 1)
        flat = 0 if self._n_targets == 2 else 1
        held = rng.integers(self._n_targets, size=len(slots))
        self._held_EK[member, slots] = flat if self._settings.start_position == "flat" else held

    def draw(self, progress: float) -> Draw:
        """Return the batch of every member."""
        size = self._settings.batch_bars
        known = min(self.steps * self._settings.n_envs, self._settings.buffer_size)
        weight = None
        if self._priorities:
            beta = self._settings.priority_beta + (1.0 - self._settings.priority_beta) * progress
            picks = [one.sample(size, beta) for one in self._priorities]
            slots = [one for one, _ in picks]
            weight = torch.from_numpy(np.stack([one for _, one in picks]).astype(np.float32))
        else:
            slots = [rng.integers(known, size=size) for rng in self._rngs]
        row = np.stack([ring[place] for ring, place in zip(self._ring_EC, slots, strict=True)])
        pair = np.stack([ring[place] for ring, place in zip(self._pair_EC, slots, strict=True)])
        return Draw(torch.from_numpy(row), torch.from_numpy(pair.astype(np.int64)), weight, slots)

    def update(self, draw: Draw, td_EB: NDArray[np.float32]) -> None:
        """Take note of the TD errors of a batch."""
        for priorities, slots, td_B in zip(self._priorities, draw.slots, td_EB, strict=False):
            priorities.update(slots, td_B)

    def state(self) -> dict[str, Any]:
        """Return everything that later draws depend on."""
        return {
            "generators": [_generator_state(rng) for rng in self._rngs],
            "at": self._at_EK,
            "end": self._end_EK,
            "held": self._held_EK,
            "ring": self._ring_EC,
            "pair": self._pair_EC,
            "steps": self.steps,
            "owed": self._owed,
            "epsilon": self.epsilon,
            "priorities": [one.state() for one in self._priorities],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for rng, kept in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = _generator_from(kept)
        for mine, kept in (
            (self._at_EK, "at"), (self._end_EK, "end"), (self._held_EK, "held"),
            (self._ring_EC, "ring"), (self._pair_EC, "pair"),
        ):  # fmt: skip
            mine[...] = np.asarray(state[kept])
        self.steps, self._owed, self.epsilon = int(state["steps"]), float(state["owed"]), state["epsilon"]
        for one, kept in zip(self._priorities, state["priorities"], strict=True):
            one.restore(kept)


def _priorities(settings: DqnSettings, capacity: int, seed: int) -> PrioritisedSlots:
    return PrioritisedSlots(capacity, alpha=settings.priority_alpha, clip=settings.priority_clip, seed=seed)


def _generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return a PCG64 state with its 128-bit numbers as text."""
    state: Any = rng.bit_generator.state
    inner = state["state"]
    return {
        "state": str(inner["state"]),
        "inc": str(inner["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def _generator_from(kept: Mapping[str, Any]) -> dict[str, Any]:
    try:
        inner = {"state": int(kept["state"]), "inc": int(kept["inc"])}
        rest = {"has_uint32": int(kept["has_uint32"]), "uinteger": int(kept["uinteger"])}
    except (KeyError, ValueError) as error:
        raise TrainingError(f"a checkpoint without a generator's state ({error!r}): start the training anew") from error
    return {"bit_generator": "PCG64", "state": inner, **rest}
