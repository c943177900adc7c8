"""Whether an exported exit head says what the trained one says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import TrainingError
from training.exits.network import ExitFace
from training.market import Float32

TOLERANCE = 1e-4
"""Largest difference of a number that both tell of the same bracket, per unit of one volatility and its own size."""
TIES_MAX = 0.005
"""Largest share of rows on which the brackets may differ: two that are worth the same to the last digit."""


def check_exits(
    face: ExitFace,
    served: Mapping[str, NDArray[np.float32]],
    features_BF: Float32,
    target_B: NDArray[np.integer],
) -> float:
    """Compare what is served with what was trained.

    Args:
        face: The trained head.
        served: The exported model's answer to the same rows, by output name.
        features_BF: Rows.
        target_B: The target that the answer's exits belong to.

    Returns:
        The largest difference, in volatilities, relative to 1 + |value|.

    Raises:
        TrainingError: Other numbers, or other brackets on more than `TIES_MAX` of the rows.
    """
    features = torch.from_numpy(np.ascontiguousarray(features_BF, dtype=np.float32))
    with torch.no_grad():
        told = face(features, torch.from_numpy(np.asarray(target_B, dtype=np.int64)))
        sigma_B = face.sigma(features).numpy()
    trained = dict(zip(face.output_names, (one.numpy() for one in told), strict=True))
    same_B = np.ones(len(sigma_B), dtype=bool)
    for name in face.output_names[:2]:
        same_B &= np.isclose(trained[name], served[name], rtol=TOLERANCE, atol=0.0)
    if not (~same_B).mean() <= TIES_MAX:
        raise TrainingError(f"the exported exits are others on {(~same_B).mean():.1%} of the rows: export again")
    worst = 0.0
    for name in face.output_names:
        ours_B, theirs_B = trained[name][same_B] / sigma_B[same_B], served[name][same_B] / sigma_B[same_B]
        finite_B = np.isfinite(ours_B)
        if not (finite_B == np.isfinite(theirs_B)).all():
            raise TrainingError(f"the exported {name} is not a number where the trained one is: export again")
        if finite_B.any():
            ours_B, theirs_B = ours_B[finite_B], theirs_B[finite_B]
            worst = max(worst, float((np.abs(ours_B - theirs_B) / (1.0 + np.abs(ours_B))).max()))
    if not worst <= TOLERANCE:
        raise TrainingError(f"the exported exits differ by {worst:.2e} volatilities, at most {TOLERANCE:g} is allowed")
    return worst
