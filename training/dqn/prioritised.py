"""Prioritised replay over slots alone: which transitions to learn from, in proportion to their surprise.

Schaul, Quan, Antonoglou & Silver 2016, "Prioritized Experience Replay" (arXiv 1511.05952), the proportional variant:

    p = (min(|td|, clip) + epsilon)^alpha,   P(slot) = p / sum of p,   weight = (C P(slot))^-beta / batch's largest

There is no tree. Clipped errors bound the priorities, so a slot drawn evenly and kept with probability p / bound is
drawn in exact proportion, at a cost that does not grow with the store (rejection sampling). Priorities are kept as
integers, in units of 2^-31 of the largest possible one: their running sum is exact for ever, and nothing drifts.

A slot holds whatever its owner keeps at that index: a row of the market table, or a transition of a ring buffer.

Axes: C slots of the store, B slots of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.machine_code import generator, machine_code, next_bits
from training.market import Float, Int

CAPACITY_MAX = 2**30
"""Slots that the integers have room for."""
LOOK_AGAIN = 16
"""The bound is looked up anew whenever a sixteenth of the slots was written: cheap, and then it is tight."""

_FULL = 1 << 31
_SIZE, _NEXT, _SUM, _BOUND, _WRITES = range(5)
_SOUND = -1

_HIGH, _HIGH_BITS = np.uint64(31), np.uint64(33)
_LOW_MASK, _HIGH_MASK = np.uint64((1 << 31) - 1), np.uint64((1 << 33) - 1)
_HIGH_RANGE = np.uint64(1 << 33)


def annealed(beta: float, step: int, steps: int) -> float:
    """Return the exponent of the importance weights: `beta` at the first of `steps`, 1 at the last and after it."""
    return beta + (1.0 - beta) * min(1.0, max(0.0, step / max(1, steps - 1)))


class PrioritisedSlots:
    """A ring of slots with priorities; a slot never updated has the largest priority there is.

    Args:
        capacity: Most slots; the oldest is overwritten by what comes after them.
        alpha: How much surprise counts: 0 draws evenly.
        clip: Errors beyond it are no more surprising (the learner's reward unit).
        epsilon: Added to every error, so that nothing is forgotten. No draw takes more than
            ((clip + epsilon) / epsilon)^alpha tries on average.
        seed: Of the draws.

    Raises:
        TrainingError: Arguments out of bounds.
    """

    def __init__(
        self, capacity: int, *, alpha: float = 0.6, clip: float = 1.0, epsilon: float = 0.01, seed: int = 0
    ) -> None:
        if not 1 <= capacity <= CAPACITY_MAX:
            raise TrainingError(f"a prioritised replay of {capacity} slots: give 1 to {CAPACITY_MAX}")
        if not 0.0 <= alpha <= 1.0:
            raise TrainingError(f"alpha is {alpha}: give 0 (draw evenly) to 1 (in proportion to the error)")
        for name, value in (("clip", clip), ("epsilon", epsilon)):
            if not (math.isfinite(value) and value > 0.0):
                raise TrainingError(
                    f"{name} is {value}: give a positive number, errors are clipped and never forgotten"
                )
        self.capacity = capacity
        self.alpha, self.clip, self.epsilon = alpha, clip, epsilon
        self._share_C: NDArray[np.uint32] = np.zeros(capacity, dtype=np.uint32)
        self._books_5: Int = np.zeros(5, dtype=np.int64)
        self._generator_1 = generator("prioritised", seed)

    def __len__(self) -> int:
        """Return the number of slots in use."""
        return int(self._books_5[_SIZE])

    def append(self, count: int) -> Int:
        """Take the next `count` slots into use, the oldest again where all are; returns them.

        Raises:
            TrainingError: Fewer than one, or more than the capacity.
        """
        if not 1 <= count <= self.capacity:
            raise TrainingError(
                f"{count} new slots for a store of {self.capacity}: append 1 to {self.capacity} at once"
            )
        slot_B: Int = (int(self._books_5[_NEXT]) + np.arange(count)) % self.capacity
        _append(self._share_C, self._books_5, slot_B)
        return slot_B

    def sample(self, size: int, beta: float) -> tuple[Int, Float]:
        """Draw slots, with replacement; returns (B,) slots and (B,) importance weights of at most 1.

        Args:
            size: B.
            beta: 0 for no correction, 1 for a full one.

        Raises:
            TrainingError: An empty store, no slots asked for, or a beta out of bounds.
        """
        if not len(self):
            raise TrainingError("a prioritised replay without slots in use: append some before drawing")
        if size < 1 or not 0.0 <= beta <= 1.0:
            raise TrainingError(f"{size} slots with beta {beta}: give at least one, and a beta from 0 to 1")
        slot_B = np.empty(size, dtype=np.int64)
        weight_B = np.empty(size)
        _sample(self._share_C, self._books_5, self._generator_1, float(beta), slot_B, weight_B)
        return slot_B, weight_B

    def update(self, slot_B: Int, td_B: NDArray[np.floating]) -> None:
        """Set priorities from TD errors (the learner's reward unit), all or, where one is at fault, none of them.

        Raises:
            TrainingError: Arrays of different lengths, a slot that is not in use, or an error that is not a number.
        """
        if slot_B.shape != td_B.shape or slot_B.ndim != 1:
            raise TrainingError(f"{td_B.shape} errors for {slot_B.shape} slots: give one error for each slot")
        fault = _update(self._share_C, self._books_5, slot_B, td_B, self.alpha, self.clip, self.epsilon)
        if fault != _SOUND:
            raise TrainingError(
                f"slot {slot_B[fault]} of {len(self)} in use cannot take the error {td_B[fault]}: "
                "update slots that were drawn, and look for where the learner diverged if it is not a number"
            )

    def probabilities(self) -> Float:
        """Return the probability of each slot in use, exactly as `sample` draws them."""
        share_C = self._share_C[: len(self)].astype(np.float64)
        return share_C / float(self._books_5[_SUM])

    def state(self) -> dict[str, Any]:
        """Return everything that later draws depend on, as arrays of its own."""
        return {
            "law": np.array([self.alpha, self.clip, self.epsilon]),
            "share": self._share_C[: len(self)].copy(),
            "books": self._books_5.copy(),
            "generator": self._generator_1.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, to the last bit.

        Raises:
            TrainingError: Another law of priorities, more slots than the capacity, or books that do not agree with
                the priorities.
        """
        law, share_C, books_5 = state["law"], state["share"], state["books"]
        ours = [self.alpha, self.clip, self.epsilon]
        if law.tolist() != ours:
            raise TrainingError(
                f"the replay was kept with (alpha, clip, epsilon) {law.tolist()}, not {ours}: use those"
            )
        if len(share_C) > self.capacity or not 0 <= books_5[_NEXT] < self.capacity:
            raise TrainingError(f"{len(share_C)} slots do not fit into a replay of {self.capacity}: use its capacity")
        least, most = (share_C.min(initial=_FULL), share_C.max(initial=0))
        total = int(share_C.sum(dtype=np.int64))
        if books_5[_SIZE] != len(share_C) or books_5[_SUM] != total or books_5[_BOUND] < most or least < 1:
            raise TrainingError("the replay's sum does not agree with its priorities: take an older checkpoint")
        self._share_C[:] = 0
        self._share_C[: len(share_C)] = share_C
        self._books_5[:] = books_5
        self._generator_1[:] = state["generator"]


@machine_code
def _append(share_C: Any, books_5: Any, slot_B: Any) -> None:
    """Give the slots the largest share."""
    capacity = share_C.shape[0]
    for slot in slot_B:
        books_5[_SUM] += _FULL - np.int64(share_C[slot])
        share_C[slot] = _FULL
    books_5[_SIZE] = min(capacity, books_5[_SIZE] + slot_B.shape[0])
    books_5[_NEXT] = (slot_B[-1] + 1) % capacity
    books_5[_BOUND] = _FULL


@machine_code
def _sample(share_C: Any, books_5: Any, generator_1: Any, beta: float, slot_B: Any, weight_B: Any) -> None:
    """Draw by rejection, without a branch on what was drawn: the tries overlap, and none waits for another's memory.

    The upper 33 bits of a draw choose the slot (evenly, after Lemire 2019, "Fast Random Integer Generation in an
    Interval"), the lower 31 whether it is kept.
    """
    size, bound = np.uint64(books_5[_SIZE]), np.uint64(books_5[_BOUND])
    uneven = _HIGH_RANGE % size
    count = slot_B.shape[0]
    kept = 0
    while kept < count:
        bits = next_bits(generator_1)
        scaled = (bits >> _HIGH) * size
        slot = scaled >> _HIGH_BITS
        even = (scaled & _HIGH_MASK) >= uneven
        keep = (bits & _LOW_MASK) * bound < np.uint64(share_C[slot]) << _HIGH
        slot_B[kept] = slot
        kept += int(even & keep)
    mean = books_5[_SUM] / books_5[_SIZE]
    largest = np.float64(0.0)
    for n in range(count):
        weight_B[n] = (mean / np.float64(share_C[slot_B[n]])) ** beta
        largest = max(largest, weight_B[n])
    for n in range(count):
        weight_B[n] /= largest


@machine_code
def _update(
    share_C: Any, books_5: Any, slot_B: Any, td_B: Any, alpha: float, clip: float, epsilon: float
) -> int:  # fmt: skip
    """Write shares and keep the sum; returns the first place at fault, or `_SOUND`."""
    size = books_5[_SIZE]
    for n in range(slot_B.shape[0]):
        if slot_B[n] < 0 or slot_B[n] >= size or td_B[n] != td_B[n]:
            return n
    bound: Any = books_5[_BOUND]
    for n in range(slot_B.shape[0]):
        surprise = (min(abs(np.float64(td_B[n])), clip) + epsilon) / (clip + epsilon)
        share = max(np.int64(1), np.int64(_FULL * surprise**alpha))
        slot = slot_B[n]
        books_5[_SUM] += share - np.int64(share_C[slot])
        share_C[slot] = share
        bound = max(bound, share)
    books_5[_WRITES] += slot_B.shape[0]
    if books_5[_WRITES] * LOOK_AGAIN >= size:
        highest = np.uint32(0)
        for slot in range(size):
            highest = max(highest, share_C[slot])
        bound = np.int64(highest)
        books_5[_WRITES] = 0
    books_5[_BOUND] = bound
    return _SOUND
