"""The batch face of a Strategy: its answers to many bars of one symbol at once, for a position held throughout.

A replay that knows every bar beforehand asks so where nothing can happen, and asks `Strategy.opinions` wherever an
answer may matter. The two faces answer alike: what a batch says of a row is what `opinions` says of it, to the
last bit of targets and numbers, but for rows marked `near`, where the batch does not commit itself.

Axes: T bars, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from strategies.strategy import ExitLevels, Opinion, Reason

if TYPE_CHECKING:
    from strategies.features import FeatureSpec

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchAnswers:
    """Answers to T bars at one position. Rows whose features are not finite mean nothing.

    Args:
        target_T: int8: the position wanted.
        near_T: True where the target hangs on less than rounding, or the strategy may abstain: ask `opinions`.
        reason: Of every answer.
        q: Value per target, as in `Opinion.q`.
        detail: Numbers that explain it, as in `Opinion.detail`.
        exits: Log distances of stop and take-profit, as in `Opinion.exits`; infinite, or not positive, for none. None
            where the strategy leaves its exits to the configuration.
    """

    target_T: NDArray[np.int8]
    near_T: NDArray[np.bool_]
    reason: Reason
    q: Mapping[int, Float] = field(default_factory=dict)
    detail: Mapping[str, Float] = field(default_factory=dict)
    exits: tuple[Float, Float] | None = None

    def opinion(self, symbol: str, row: int) -> Opinion:
        """Return one answer as an opinion."""
        return Opinion(
            symbol=symbol,
            target=int(self.target_T[row]),
            q={target: float(values[row]) for target, values in self.q.items()},
            reason=self.reason,
            exits=None if self.exits is None else exit_levels(*(float(levels[row]) for levels in self.exits)),
            detail={name: float(values[row]) for name, values in self.detail.items()},
        )


def exit_levels(stop: float, take_profit: float) -> ExitLevels:
    """Return exits of log distances; one that is infinite, or not positive, says: no such exit."""
    return ExitLevels(*(None if math.isinf(one) or one <= 0.0 else one for one in (stop, take_profit)))


@runtime_checkable
class BatchStrategy(Protocol):
    """A Strategy that also answers in batches."""

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features it reads."""
        ...

    @property
    def targets(self) -> tuple[int, ...]:
        """Allowed targets."""
        ...

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Answer T bars of one symbol, each as if `position` were held at its close."""
        ...
