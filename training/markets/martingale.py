"""World 4, the negative control: the log price is a martingale, so every trade loses and the best never trades."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from training.markets.solver import Float
from training.markets.world import PRICE, Path, Streams, World, candles


class Martingale(World):
    """Nothing to learn: whatever trades here has fooled itself."""

    name: ClassVar[str] = "martingale"
    summary: ClassVar[str] = "log price is a martingale: the best never trades"

    def _simulate(self, bars: int, streams: Streams) -> Path:
        log_close_T = math.log(PRICE) + np.cumsum(self.sigma * streams("price").standard_normal(bars))
        series = candles(self.name, log_close_T, math.log(PRICE), self.sigma, streams, {})
        return Path(series, np.zeros(bars), self.growth(np.zeros(bars)))

    def _kernel(self) -> tuple[Float, Float]:
        return np.zeros(1), np.ones((1, 1))

    def expected_growth(self, node_N: Float, *, linear: bool = False) -> Float:
        """Return (N, P) expected growth at information states; see `World.expected_growth`."""
        return self.growth(np.zeros_like(node_N), linear=linear)
