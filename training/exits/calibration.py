"""How the head is held to the last bars of its training, from which it learned nothing.

Axes: as in `network`; R rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from training.exits.network import QuantileExits
from training.market import Float, Float32


def calibrate(face: QuantileExits, raw_R2Q: Float32, reach_R2: Float32) -> dict[str, Any]:
    """Multiply each quantile by what makes it hold on the held-out rows.

    What a recalibration is worth is told by the first half of these rows, applied to the second.
    """
    half = len(reach_R2) // 2
    before_2Q = (reach_R2[:, :, None] <= raw_R2Q).mean(axis=0)
    first_2Q = conformal_factors(reach_R2[:half], raw_R2Q[:half], face.quantiles)
    later_2Q = (reach_R2[half:, :, None] <= raw_R2Q[half:] * first_2Q).mean(axis=0)
    factor_2Q = conformal_factors(reach_R2, raw_R2Q, face.quantiles)
    face.conformal_2Q.copy_(torch.from_numpy(factor_2Q))
    ways = ("above", "below")
    return {
        "shares": list(face.quantiles),
        "covered_before": dict(zip(ways, before_2Q.tolist(), strict=True)),
        "covered_later_half": dict(zip(ways, later_2Q.tolist(), strict=True)),
        "factors": dict(zip(ways, factor_2Q.tolist(), strict=True)),
    }


def conformal_factors(reach_R2: Float32, quantile_R2Q: Float32, shares: tuple[float, ...]) -> Float:
    """Return (2, Q): the smallest factors with which quantiles cover their shares of R rows and one more."""
    ratio_R2Q = np.sort(reach_R2[:, :, None] / np.maximum(quantile_R2Q, 1e-6), axis=0)
    count = len(ratio_R2Q)
    rank_Q = [min(math.ceil((count + 1) * share), count) for share in shares]
    return np.stack([ratio_R2Q[rank - 1, :, q] for q, rank in enumerate(rank_Q)], axis=1)


def spread(told_R2: Float32, reach_R2: Float32) -> dict[str, Any]:
    """Return how far what the head tells of the excursions, their mean or middle, is apart: the alarm of a collapse."""
    shares, ways = (0.05, 0.5, 0.95), ("above", "below")
    below_R = told_R2[:, 1]
    return {
        "exit_spread": float(below_R.std() / below_R.mean()),
        "told_5_50_95": dict(zip(ways, np.quantile(told_R2, shares, axis=0).T.tolist(), strict=True)),
        "true_5_50_95": dict(zip(ways, np.quantile(reach_R2, shares, axis=0).T.tolist(), strict=True)),
    }
