"""Seeded minute bars of a geometric Brownian motion: one market for two programs. Needs NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MINUTE_NS = 60_000_000_000
BEGIN_NS = 1_672_531_200_000_000_000
"""2023-01-01T00:00:00Z."""


def columns(bars: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return open, high, low, close and volume; each bar opens at the close before it."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 5e-4, bars)))
    opened = np.concatenate(([100.0], close[:-1]))
    reach = 1.0 + np.abs(rng.normal(0.0, 2e-4, bars))
    return {
        "open": opened,
        "high": np.maximum(opened, close) * reach,
        "low": np.minimum(opened, close) / reach,
        "close": close,
        "volume": np.full(bars, 1e6),
    }


def means(log_close: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the last `window` values; NaN before there are as many."""
    total = np.concatenate(([0.0], np.cumsum(log_close)))
    out = np.full(len(log_close), np.nan)
    out[window - 1 :] = (total[window:] - total[:-window]) / window
    return out
