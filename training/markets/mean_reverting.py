"""World 1: a log price that reverts to its mean, and a cost for every trade.

x_(t+1) = phi x_t + sigma eps,   phi = 2^(-1 / half_life),   r = x_(t+1) - x_t
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from training.markets.solver import Float
from training.markets.world import (
    PRICE,
    REACH_SD,
    Path,
    Streams,
    World,
    autoregression,
    candles,
    even_nodes,
    normal_kernel,
)


class MeanReverting(World):
    """The price is its own signal: buy low, sell high, and not too often."""

    name: ClassVar[str] = "mean_reverting"
    summary: ClassVar[str] = "log price reverts to a constant mean"

    cost_bps: float = Field(20.0, ge=0, lt=1_000)
    """Cost of one side, basis points of the notional."""
    half_life: float = Field(20.0, gt=0, le=500)
    """Bars in which a deviation halves."""

    @property
    def phi(self) -> float:
        """What remains of the deviation after one bar."""
        return float(2.0 ** (-1.0 / self.half_life))

    @property
    def deviation_sd(self) -> float:
        """Stationary standard deviation of the log price."""
        return self.sigma / math.sqrt(1.0 - self.phi**2)

    def _simulate(self, bars: int, streams: Streams) -> Path:
        start = self.deviation_sd * streams("start").standard_normal(1)
        kick_T1 = self.sigma * streams("price").standard_normal((bars, 1))
        x_T = autoregression(start, self.phi, kick_T1)[:, 0]
        origin = math.log(PRICE)
        series = candles(self.name, origin + x_T, origin + float(start[0]), self.sigma, streams, {})
        return Path(series, x_T, self.growth(self.mean(x_T)), {"deviation": x_T})

    def _kernel(self) -> tuple[Float, Float]:
        node_N = even_nodes(REACH_SD * self.deviation_sd, self.sigma)
        return node_N, normal_kernel(node_N, [(np.ones_like(node_N), lambda x: self.phi * x, self.sigma)])

    def expected_growth(self, node_N: Float, *, linear: bool = False) -> Float:
        """Return (N, P) expected growth at information states; see `World.expected_growth`."""
        return self.growth((self.phi - 1.0) * node_N, linear=linear)
