"""What a world is: a law of bars whose hidden state is known to us, so that the best policy is known too.

A decision belongs to a close, and fills at the next open, which in these worlds is that close. What a bar pays is the
reward of `training.market`: the change of after-cost log equity at unit exposure, rebased every bar.

    reward = log(1 - |new - old| cost) + log(1 + new (exp(r) - 1)),   r the log return of the bar

Its *conditional mean* given the hidden state takes the place of the reward itself in every score: nothing that decides
by what is past can be paid more on average, and the noise of the returns, a hundred times the signal, is gone. For a
long position the mean is the mean of r; a short one loses a further variance of r, because equity is rebased.

Axes: T bars, P positions (-1, 0, 1 at index 0, 1, 2), N nodes.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from brokers.configuration import Section
from brokers.costs import CostModel
from brokers.series import BarSeries, to_ns
from training.errors import TrainingError
from training.market import RUIN_FRACTION
from training.markets.solver import Chain, Float, Optimum, solve

Purpose = Literal["training", "evaluation"]
"""What a path is for: the two never share a draw."""

PERIOD = timedelta(minutes=5)
START = datetime(2000, 1, 1, tzinfo=UTC)
PRICE = 100.0
VOLUME = 100_000.0
_VOLUME_LOG_SD = 0.35
_HERMITE = np.polynomial.hermite_e.hermegauss(24)

CHUNK_BARS = 65_536
"""Bars of a path worked on together where each bar takes many numbers: memory stays bounded."""

NODES = 401
REACH_SD = 7.0
"""Grids reach so many standard deviations to either side."""


@dataclass(frozen=True, slots=True)
class Path:
    """One seed's bars and what is behind them.

    Args:
        series: The bars, all that a strategy may see.
        state_T: What the best policy decides by at each close (the nodes' unit).
        growth_TP: Conditional mean of the log growth over the bar after each close, given at least all that bars tell.
        hidden: Further columns behind the bars, by name.
    """

    series: BarSeries
    state_T: Float
    growth_TP: Float
    hidden: Mapping[str, Float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.state_T)


class World(Section):
    """One world: its parameters, its paths, its chain of information states."""

    name: ClassVar[str]
    summary: ClassVar[str]

    sigma: float = Field(0.01, gt=0, le=0.05)
    """Standard deviation of a bar's log return around its conditional mean."""
    cost_bps: float = Field(10.0, ge=0, lt=1_000)
    """Cost of one side, basis points of the notional."""
    shorts: bool = True
    """-1 is an allowed position."""

    @property
    def allowed(self) -> tuple[int, ...]:
        """Positions that may be held."""
        return (-1, 0, 1) if self.shorts else (0, 1)

    def costs(self) -> CostModel:
        """Return the shared cost model that charges exactly `cost_bps` a side."""
        return CostModel(fee_bps=self.cost_bps, half_spread_bps=0.0, impact=0.0)

    def cost_table(self, *, linear: bool = False) -> Float:
        """Return (P, P) log equity paid for each change of position, <= 0; proportional to its size where linear."""
        sides_PP = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) * self.cost_bps * 1e-4
        cost_PP: Float = -sides_PP if linear else np.log1p(-sides_PP)
        return cost_PP

    def growth(self, mean_T: Float, *, linear: bool = False) -> Float:
        """Return (T, P) expected log growth at each position, where the log return is normal around `mean_T`.

        With `linear`, as the literature simplifies it: position times mean.
        """
        if linear:
            return np.multiply.outer(mean_T, (-1.0, 0.0, 1.0))
        draw_H, weight_H = _HERMITE
        short_T = np.empty_like(mean_T)
        for begin in range(0, len(mean_T), CHUNK_BARS):
            chunk = np.s_[begin : begin + CHUNK_BARS]
            worth_TH = 2.0 - np.exp(mean_T[chunk, None] + self.sigma * draw_H)
            short_T[chunk] = np.log(np.maximum(worth_TH, RUIN_FRACTION)) @ (weight_H / weight_H.sum())
        return np.stack([short_T, np.zeros_like(mean_T), mean_T], axis=1)

    def path(self, bars: int, seed: int, purpose: Purpose = "evaluation") -> Path:
        """Return a path; a longer one begins with the shorter one bit for bit.

        Raises:
            TrainingError: Fewer than one bar.
        """
        if bars < 1:
            raise TrainingError(f"{self.name}: {bars} bars are no path, give at least 1")
        return self._simulate(bars, Streams(f"{self.name}|{purpose}|{seed}"))

    def chain(self, *, linear: bool = False) -> Chain:
        """Return the chain of information states."""
        node_N, kernel_NN = self._kernel()
        return Chain(
            node_N=node_N,
            kernel_NN=kernel_NN,
            growth_NP=self.expected_growth(node_N, linear=linear),
            cost_PP=self.cost_table(linear=linear),
            allowed=self.allowed,
        )

    def solve(self, *, linear: bool = False) -> Optimum:
        """Return the best policy; with `linear`, of the reward that the literature publishes numbers for."""
        return solve(self.chain(linear=linear))

    def mean(self, state_T: Float) -> Float:
        """Return the expected log return of the next bar, given what the best policy decides by."""
        return self.expected_growth(state_T, linear=True)[:, 2]

    @abstractmethod
    def _simulate(self, bars: int, streams: Streams) -> Path:
        """Return a path of so many bars."""

    @abstractmethod
    def _kernel(self) -> tuple[Float, Float]:
        """Return (node_N, kernel_NN): information states, and the probability of each next one."""

    @abstractmethod
    def expected_growth(self, node_N: Float, *, linear: bool = False) -> Float:
        """Return (N, P) expected log growth over the next bar at each position, of information states, before costs."""


class Streams:
    """Random numbers by kind, each from its own stream, so that no kind moves another."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, kind: str) -> np.random.Generator:
        """Return the stream of one kind, from its beginning."""
        digest = hashlib.blake2b(f"{self._key}|{kind}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


def autoregression(start: Float, phi: float, kick_TK: Float) -> Float:
    """Return x_t = phi x_(t-1) + kick_t of K columns, (T, K), with x before the first row at `start`, (K,)."""
    out_TK = np.empty_like(kick_TK)
    x_K = start
    for t, kick_K in enumerate(kick_TK):
        x_K = phi * x_K + kick_K
        out_TK[t] = x_K
    return out_TK


def candles(
    symbol: str, log_close_T: Float, before: float, sigma: float, streams: Streams, signals: Mapping[str, Float]
) -> BarSeries:
    """Return bars around given log closes: each opens at the close before it.

    High and low are the extremes of a Brownian bridge of volatility `sigma` (Glasserman 2003, section 6.4), volume is
    independent: neither tells anything of the state.
    """
    bars = len(log_close_T)
    log_open_T = np.concatenate([[before], log_close_T[:-1]])
    uniform_T2 = 1.0 - streams("range").random((bars, 2))
    reach_T2 = np.sqrt((log_close_T - log_open_T)[:, None] ** 2 - 2.0 * sigma**2 * np.log(uniform_T2))
    middle_T = log_open_T + log_close_T
    close_T = np.exp(log_close_T)
    open_T = np.concatenate([[math.exp(before)], close_T[:-1]])
    period_ns = PERIOD // timedelta(microseconds=1) * 1_000
    start_T = to_ns(START) + period_ns * np.arange(bars, dtype=np.int64)
    high_T, low_T = np.exp((middle_T + reach_T2[:, 0]) / 2.0), np.exp((middle_T - reach_T2[:, 1]) / 2.0)
    return BarSeries(
        symbol=symbol,
        start_ns=start_T,
        close_ns=start_T + period_ns,
        open_ns=start_T,
        open=open_T,
        high=np.maximum(high_T, np.maximum(open_T, close_T)),
        low=np.minimum(low_T, np.minimum(open_T, close_T)),
        close=close_T,
        volume=VOLUME * np.exp(_VOLUME_LOG_SD * streams("volume").standard_normal(bars)),
        adj_factor=np.ones(bars),
        signals=dict(signals),
    )


def normal_kernel(node_N: Float, laws: Sequence[tuple[Float, Callable[[Float], Float], float]]) -> Float:
    """Return the kernel of s' = mean(s) + sd z on evenly spaced nodes, a mixture of `laws` (weight_N, mean, sd).

    Nodes at most a third of `sd` apart integrate a normal density to the last digit (the trapezoid rule is spectrally
    accurate there), so neither mean nor variance of the step is biased by the grid.
    """
    kernel_NN = np.zeros((len(node_N), len(node_N)))
    for weight_N, mean, sd in laws:
        density_NN = np.exp(-0.5 * ((node_N[None, :] - mean(node_N)[:, None]) / sd) ** 2)
        kernel_NN += weight_N[:, None] * density_NN / density_NN.sum(axis=1, keepdims=True)
    return kernel_NN


def even_nodes(reach: float, step_sd: float) -> Float:
    """Return an odd number of nodes from -reach to reach, at most a third of a step's standard deviation apart.

    The bounds of the worlds' parameters keep them below 1,400.
    """
    count = max(NODES, 2 * math.ceil(3.0 * reach / step_sd) + 1)
    return np.linspace(-reach, reach, count)
