"""World 3: the drift is up or down, nobody says which, and only a Bayes filter of the returns can tell.

    z in {-1, 1} turns with probability 1 / regime_bars a bar,   r = mu z + sigma eps,   mu = trend sigma

The best policy decides by the filter (Dai, Zhang & Zhu 2010, "Trend Following Trading under a Regime Switching
Model"). Its state is u, the log odds of "up" for the bar that has closed; the next bar turns first, and its own return
then adds 2 mu r / sigma^2.

Scores condition on that state, not on the trend itself: no bar tells more than the filter knows, so what decides by
bars has the same mean given either, with a third of the noise.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from training.markets.solver import Float
from training.markets.world import PRICE, REACH_SD, Path, Streams, World, candles, even_nodes, normal_kernel


class HiddenTrend(World):
    """Two drifts, seen through noise ten times as large."""

    name: ClassVar[str] = "hidden_trend"
    summary: ClassVar[str] = "a hidden trend turns now and then; only returns tell"

    trend: float = Field(0.1, ge=0.02, le=2)
    """Drift of a bar over `sigma`, in either direction."""
    regime_bars: float = Field(100.0, ge=2, le=2_000)
    """Mean bars between two turns."""

    @property
    def mu(self) -> float:
        """Absolute drift of a bar, log return."""
        return self.trend * self.sigma

    def belief(self, state_T: Float) -> Float:
        """Return the probability that the next bar's trend is up, of the filter's state."""
        turn = 1.0 / self.regime_bars
        up_T: Float = turn + (1.0 - 2.0 * turn) / (1.0 + np.exp(-state_T))
        return up_T

    def _prior(self, state_T: Float) -> Float:
        """Return the log odds of "up" for the next bar, before its return is seen."""
        up_T = self.belief(state_T)
        return np.asarray(np.log(up_T / (1.0 - up_T)), dtype=np.float64)

    def filter(self, return_T: Float) -> Float:
        """Return the filter's state after each return; before the first, both trends are as likely."""
        turn, gain = 1.0 / self.regime_bars, 2.0 * self.mu / self.sigma**2
        state, states = 0.0, []
        for value in return_T.tolist():
            up = turn + (1.0 - 2.0 * turn) / (1.0 + math.exp(-state))
            state = math.log(up / (1.0 - up)) + gain * value
            states.append(state)
        return np.array(states)

    def _simulate(self, bars: int, streams: Streams) -> Path:
        draw_T = streams("regime").random(bars + 1)
        turns_T = np.concatenate([[draw_T[0] < 0.5], draw_T[1:] < 1.0 / self.regime_bars])
        trend_T = np.where(np.cumsum(turns_T) % 2 == 0, 1.0, -1.0)  # of bar t; the last is of the bar after the path
        return_T = self.mu * trend_T[:-1] + self.sigma * streams("price").standard_normal(bars)
        log_close_T = math.log(PRICE) + np.cumsum(return_T)
        series = candles(self.name, log_close_T, math.log(PRICE), self.sigma, streams, {})
        state_T = self.filter(return_T)
        hidden = {"next_trend": trend_T[1:], "belief": self.belief(state_T)}
        return Path(series, state_T, self.expected_growth(state_T), hidden)

    def _kernel(self) -> tuple[Float, Float]:
        step_sd = 2.0 * self.trend
        surest = math.log(self.regime_bars - 1.0)
        node_N = even_nodes(surest + (REACH_SD + self.trend) * step_sd, step_sd)
        up_N, drift = self.belief(node_N), 2.0 * self.trend**2
        laws = [
            (up_N, lambda u: self._prior(u) + drift, step_sd),
            (1.0 - up_N, lambda u: self._prior(u) - drift, step_sd),
        ]
        return node_N, normal_kernel(node_N, laws)

    def expected_growth(self, node_N: Float, *, linear: bool = False) -> Float:
        """Return (N, P) expected growth at information states; see `World.expected_growth`."""
        up_N1 = self.belief(node_N)[:, None]
        down_P, up_P = self.growth(np.array([-self.mu, self.mu]), linear=linear)
        growth_NP: Float = up_N1 * up_P + (1.0 - up_N1) * down_P
        return growth_NP
