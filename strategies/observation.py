"""Features and position state become the model's input: the one function that training and serving share.

Axes: S symbols (or a batch of environments), F features.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from strategies.features import FeatureSpec
from strategies.strategy import Reason


class ModelInputs(TypedDict):
    """Named inputs of a policy: float32 `features` (S, F) and `position` (S, 1)."""

    features: NDArray[np.float32]
    position: NDArray[np.float32]


def model_inputs(features_SF: NDArray[np.floating], positions_S: NDArray[np.integer]) -> ModelInputs:
    """Return a policy's named inputs; the position is -1, 0 or 1 as a number."""
    return ModelInputs(
        features=np.ascontiguousarray(features_SF, dtype=np.float32),
        position=np.ascontiguousarray(positions_S, dtype=np.float32).reshape(-1, 1),
    )


def usable_rows(features_SF: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tell which rows may be decided on, (S,): those without NaN or infinity."""
    return np.asarray(np.isfinite(features_SF).all(axis=1), dtype=np.bool_)


def why_unusable(features_F: NDArray[np.floating]) -> Reason:
    """Return why a row cannot be decided on: all NaN is a symbol that is not warm, anything else is bad data."""
    return Reason.WARMING_UP if bool(np.isnan(features_F).all()) else Reason.BAD_FEATURES


def saturated_share(spec: FeatureSpec, features_SF: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the share of features outside their range or at its end, (S,): what the risk gate calls out of range.

    Only features measured without a natural bound count: a share that reaches 1 is no sign of a bad tick.
    """
    low_F, high_F = spec.ranges.T
    open_ended_F = high_F > 1.0
    if not open_ended_F.any():
        return np.zeros(len(features_SF))
    values = features_SF[:, open_ended_F]
    at_low = (values <= low_F[open_ended_F]) & (low_F[open_ended_F] < 0.0)
    outside = at_low | (values >= high_F[open_ended_F])
    return np.asarray(outside.mean(axis=1), dtype=np.float64)
