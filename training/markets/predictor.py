"""World 2: one column among many predicts the next return; costs are linear and positions capped.

    p_(t+1) = rho p_t + beta xi,   r_(t+1) = p_t + sigma eta,   sd(p) = ic sigma

de Lataillade, Deremble, Potters & Bouchaud 2012, "Optimal Trading with Linear Costs", arXiv 1203.5957: the best
policy turns where |p| passes one threshold.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from training.markets.solver import Float
from training.markets.world import (
    CHUNK_BARS,
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


def _column(k: int) -> str:
    return f"column_{k:03d}"


class Predictor(World):
    """A slow, weak predictor hidden among columns that look like it and know nothing."""

    name: ClassVar[str] = "predictor"
    summary: ClassVar[str] = "one of many columns is an AR(1) predictor of the next return"

    rho: float = Field(0.98, ge=0, lt=0.9995)
    """What remains of the predictor after one bar."""
    ic: float = Field(0.05, gt=0, le=1)
    """Standard deviation of the predictor over that of the noise: nearly its correlation with the next return."""
    columns: int = Field(30, ge=1, le=500)
    """Columns `signals` in all, every one an AR(1) of the same `rho` and of unit variance."""
    place: int = Field(7, ge=0)
    """Which of them is the predictor (modulo `columns`); the others are independent of everything."""

    @property
    def predictor_sd(self) -> float:
        """Standard deviation of the predictor, log return."""
        return self.ic * self.sigma

    @property
    def beta(self) -> float:
        """Standard deviation of the predictor's innovation."""
        return self.predictor_sd * math.sqrt(1.0 - self.rho**2)

    def _simulate(self, bars: int, streams: Streams) -> Path:
        place = self.place % self.columns
        signals, before_first = self._columns(bars, streams)
        predictor_T = self.predictor_sd * signals[_column(place)]
        before_T = np.concatenate([[self.predictor_sd * before_first[place]], predictor_T[:-1]])
        log_close_T = math.log(PRICE) + np.cumsum(before_T + self.sigma * streams("price").standard_normal(bars))
        series = candles(self.name, log_close_T, math.log(PRICE), self.sigma, streams, signals)
        return Path(series, predictor_T, self.growth(predictor_T), {"predictor": predictor_T})

    def _columns(self, bars: int, streams: Streams) -> tuple[dict[str, Float], Float]:
        """Return the columns by name, and what each was before the first bar, (K,)."""
        sources = [streams(f"column {k}") for k in range(self.columns)]
        column_KT = np.empty((self.columns, bars))
        before_K = x_K = np.array([source.standard_normal() for source in sources])
        for begin in range(0, bars, CHUNK_BARS):
            # one column at a time from its own stream, all of them forward in time together, a little at a time
            end = min(begin + CHUNK_BARS, bars)
            noise_TK = np.stack([source.standard_normal(end - begin) for source in sources], axis=1)
            block_TK = autoregression(x_K, self.rho, noise_TK * math.sqrt(1.0 - self.rho**2))
            column_KT[:, begin:end] = block_TK.T
            x_K = block_TK[-1]
        return {_column(k): column_T for k, column_T in enumerate(column_KT)}, before_K

    def _kernel(self) -> tuple[Float, Float]:
        node_N = even_nodes(REACH_SD * self.predictor_sd, self.beta)
        return node_N, normal_kernel(node_N, [(np.ones_like(node_N), lambda p: self.rho * p, self.beta)])

    def expected_growth(self, node_N: Float, *, linear: bool = False) -> Float:
        """Return (N, P) expected growth at information states; see `World.expected_growth`."""
        return self.growth(node_N, linear=linear)
