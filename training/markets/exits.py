"""World 6: a position is entered, and only its exits are left to choose; the worth of every bracket is exact.

A long position is entered at a close and left at its stop, at its take-profit, or after `HOLD_BARS` bars. Four worlds
need four different brackets: in the first exits are worth nothing, in the second the take-profit earns and the stop
harms, in the third the stop earns and the take-profit harms, in the fourth both are needed.

Bars are those of `training.markets.world.candles` and fills those of `brokers.costs`: within a bar the price is a
Brownian bridge from open to close, the extremes drawn apart; a level that is touched fills at the level, the stop
first.
With y the log price since entry and L a level, a bar from y to y' touches it with probability

    exp(-2 (y - L) (y' - L) / sigma^2)        (one where y' is beyond it)

and the worth of holding follows backwards from the last bar (Broadie, Glasserman & Kou 1997 on why the touch within
the bar must not be left out).

Axes: N displacements, M modes of the law, E episodes, B bars.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from brokers.configuration import Section
from training.errors import TrainingError
from training.markets.solver import Float
from training.markets.world import Streams

HOLD_BARS = 60
"""Bars after which a position is left at the close."""
LEVELS: tuple[float | None, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, None)
"""Stops and take-profits that are compared, in `sigma`; None for no such exit."""
WORTHLESS = 1e-4
"""Brackets that add less, in log return of a trade, are all the same."""
STEPS_PER_SIGMA = 6
REACH_SIGMAS = 60.0
"""Displacements without a level reach so far: more than seven deviations of sixty bars."""
REACH_BEYOND = 8.0
"""A bar may end so many `sigma` beyond a level."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Exits as log distances from the entry, in `sigma`, both > 0; None for no such exit."""

    stop: float | None
    take_profit: float | None


@dataclass(frozen=True, slots=True)
class Worth:
    """What a bracket is expected to earn, log return of a whole trade after costs."""

    bracket: Bracket
    net: float


class ExitWorld(Section):
    """A law of M modes after an entry: each bar first moves in its mode, then the mode may change."""

    name: ClassVar[str]

    sigma: float = Field(0.01, gt=0, le=0.05)
    """Standard deviation of a bar's log return around its mean."""
    cost_bps: float = Field(5.0, ge=0, lt=1_000)
    """Cost of one side, basis points; a trade pays two."""

    @abstractmethod
    def start(self) -> Float:
        """Return the probability of each mode at the entry, (M,)."""

    @abstractmethod
    def turns(self) -> Float:
        """Return the probability of each next mode, (M, M)."""

    @abstractmethod
    def drift(self, y: Float, mode: int) -> Float:
        """Return the mean log return of the next bar at displacements `y`, in the shape of `y`."""

    def worth(self, bracket: Bracket) -> float:
        """Return the expected log return of a trade after costs.

        Exact up to the grid, which is worth less than half a basis point.

        Raises:
            TrainingError: A distance that is not positive, or beyond `REACH_SIGMAS`.
        """
        low = -(REACH_SIGMAS if bracket.stop is None else bracket.stop)
        high = REACH_SIGMAS if bracket.take_profit is None else bracket.take_profit
        if not -REACH_SIGMAS <= low < 0.0 < high <= REACH_SIGMAS:
            raise TrainingError(f"{bracket}: distances are above 0 and at most {REACH_SIGMAS:g} sigma")
        count = max(round((high - low) * STEPS_PER_SIGMA), 4 * STEPS_PER_SIGMA)
        h = (high - low) / count
        beyond = math.ceil(REACH_BEYOND / h)
        # midpoints: every level lies between two nodes
        all_C = np.asarray((low + h * (np.arange(-beyond, count + beyond) + 0.5)) * self.sigma, dtype=np.float64)
        inside = slice(beyond, beyond + count)
        y_N = all_C[inside]
        stopped_NC = _touched(y_N, all_C, bracket.stop, -self.sigma)
        taken_NC = (1.0 - stopped_NC) * _touched(y_N, all_C, bracket.take_profit, self.sigma)
        held_NN = ((1.0 - stopped_NC) - taken_NC)[:, inside]
        left_NC = stopped_NC * -((bracket.stop or 0.0) * self.sigma)
        left_NC += taken_NC * ((bracket.take_profit or 0.0) * self.sigma)
        stay_M, left_M = [], []
        for mode in range(len(self.start())):
            density_NC = np.exp(-0.5 * ((all_C - (y_N + self.drift(y_N, mode))[:, None]) / self.sigma) ** 2)
            density_NC /= density_NC.sum(axis=1, keepdims=True)
            stay_M.append(density_NC[:, inside] * held_NN)
            left_M.append((density_NC * left_NC).sum(axis=1))
        value_MN = np.tile(y_N, (len(stay_M), 1))
        for _ in range(HOLD_BARS):
            after_MN = self.turns() @ value_MN
            value_MN = np.stack(
                [left + stay @ after for left, stay, after in zip(left_M, stay_M, after_MN, strict=True)]
            )
        at_entry_M = [np.interp(0.0, y_N, value_N) for value_N in value_MN]
        return float(self.start() @ at_entry_M) + 2.0 * math.log1p(-self.cost_bps * 1e-4)

    def table(self, levels: Sequence[float | None] = LEVELS) -> tuple[Worth, ...]:
        """Return the worth of every pair of levels, the best first."""
        brackets = (Bracket(stop, take) for stop in levels for take in levels)
        return tuple(sorted((Worth(one, self.worth(one)) for one in brackets), key=lambda worth: -worth.net))

    def captured(self, chosen: Sequence[Bracket]) -> float | None:
        """Return the fraction of what the best pair of `LEVELS` adds to having no exits, of brackets on average.

        None where no bracket adds a basis point.
        """
        none, best = self.worth(Bracket(None, None)), self.table()[0].net
        if not worth_choosing(best, none):
            return None
        return (float(np.mean([self.worth(one) for one in chosen])) - none) / (best - none)

    def episodes(self, count: int, seed: int) -> Episodes:
        """Return simulated bars after as many entries; the same seed gives the same ones.

        Raises:
            TrainingError: No episode.
        """
        if count < 1:
            raise TrainingError(f"{self.name}: {count} episodes are none, give at least 1")
        streams = Streams(f"{self.name}|{seed}")
        price, turn, wick = streams("price"), streams("mode"), streams("range")
        mode_E = turn.choice(len(self.start()), size=count, p=self.start())
        y_E: Float = np.zeros(count)
        open_EB, close_EB, high_EB, low_EB = (np.empty((count, HOLD_BARS)) for _ in range(4))
        cumulative_MM = self.turns().cumsum(axis=1)
        for bar in range(HOLD_BARS):
            drift_ME = np.stack([self.drift(y_E, mode) for mode in range(len(self.start()))])
            after_E = y_E + drift_ME[mode_E, np.arange(count)] + self.sigma * price.standard_normal(count)
            uniform_2E = 1.0 - wick.random((2, count))
            reach_2E = np.sqrt((after_E - y_E) ** 2 - 2.0 * self.sigma**2 * np.log(uniform_2E))
            open_EB[:, bar], close_EB[:, bar] = y_E, after_E
            high_EB[:, bar], low_EB[:, bar] = (y_E + after_E + reach_2E[0]) / 2.0, (y_E + after_E - reach_2E[1]) / 2.0
            mode_E = (turn.random(count)[:, None] > cumulative_MM[mode_E]).sum(axis=1)
            y_E = after_E
        return Episodes(open_EB, high_EB, low_EB, close_EB)


def worth_choosing(best: float, none: float) -> bool:
    """Tell whether the best bracket adds anything to having no exits."""
    return best - none >= WORTHLESS


def _touched(y_N: Float, all_C: Float, level: float | None, unit: float) -> Float:
    """Return the probability that a bar from y to y' touches `level` times `unit`, (N, C); of no level, zero."""
    if level is None:
        return np.zeros((len(y_N), len(all_C)))
    away_N, away_C = (level - y_N / unit), (level - all_C / unit)
    touched_NC: Float = np.exp(-2.0 * np.maximum(away_N, 0.0)[:, None] * np.maximum(away_C, 0.0)[None, :])
    return touched_NC


@dataclass(frozen=True, slots=True)
class Episodes:
    """Log prices since the entry of E episodes of B bars."""

    open_EB: Float
    high_EB: Float
    low_EB: Float
    close_EB: Float

    def earned(self, world: ExitWorld, bracket: Bracket) -> Float:
        """Return (E,) what each trade pays after costs."""
        bars = np.arange(HOLD_BARS)
        never = np.full(len(self.close_EB), HOLD_BARS)
        stop_E = take_E = never
        if bracket.stop is not None:
            stop_E = np.where(self.low_EB <= -bracket.stop * world.sigma, bars, HOLD_BARS).min(axis=1)
        if bracket.take_profit is not None:
            take_E = np.where(self.high_EB > bracket.take_profit * world.sigma, bars, HOLD_BARS).min(axis=1)
        paid_E = self.close_EB[:, -1].copy()
        taken_E, stopped_E = take_E < stop_E, (stop_E <= take_E) & (stop_E < HOLD_BARS)
        paid_E[taken_E] = (bracket.take_profit or 0.0) * world.sigma
        paid_E[stopped_E] = -(bracket.stop or 0.0) * world.sigma
        return paid_E + 2.0 * math.log1p(-world.cost_bps * 1e-4)


class _OneMode(ExitWorld):
    def start(self) -> Float:
        """Return the probability of each mode at the entry, (M,)."""
        return np.ones(1)

    def turns(self) -> Float:
        """Return the probability of each next mode, (M, M)."""
        return np.ones((1, 1))


class ExitMartingale(_OneMode):
    """No bracket is worth anything: each costs the trade's two sides."""

    name: ClassVar[str] = "exit_martingale"

    def drift(self, y: Float, mode: int) -> Float:
        """Return the mean log return of the next bar."""
        del mode
        return np.zeros_like(y)


class ExitReversion(_OneMode):
    """Entered below the mean of a price that returns to it: take profit beyond the mean, and never stop."""

    name: ClassVar[str] = "exit_reversion"

    half_life: float = Field(10.0, gt=0, le=500)
    """Bars in which a deviation halves."""
    entry_sd: float = Field(-1.5, ge=-4, le=0)
    """Deviation at the entry, in its stationary standard deviations."""

    def drift(self, y: Float, mode: int) -> Float:
        """Return the mean log return of the next bar."""
        del mode
        phi = 2.0 ** (-1.0 / self.half_life)
        entry = self.entry_sd * self.sigma / math.sqrt(1.0 - phi * phi)
        drift: Float = (phi - 1.0) * (entry + y)
        return drift


class ExitTrend(ExitWorld):
    """Entered in a trend that is more often up, and turns: cut what falls, let run what rises."""

    name: ClassVar[str] = "exit_trend"

    trend: float = Field(0.1, ge=0, le=0.5)
    """Drift of a bar over `sigma`, in either direction."""
    up: float = Field(0.6, ge=0, le=1)
    """Probability of the upward trend at the entry."""
    regime_bars: float = Field(60.0, ge=2)
    """Mean bars between two turns."""

    def start(self) -> Float:
        """Return the probability of each mode at the entry, (M,)."""
        return np.array([self.up, 1.0 - self.up])

    def turns(self) -> Float:
        """Return the probability of each next mode, (M, M)."""
        turn = 1.0 / self.regime_bars
        return np.array([[1.0 - turn, turn], [turn, 1.0 - turn]])

    def drift(self, y: Float, mode: int) -> Float:
        """Return the mean log return of the next bar."""
        return np.full_like(y, (self.trend if mode == 0 else -self.trend) * self.sigma)


class ExitBreakdown(ExitReversion):
    """As the reversion, until it breaks down for good: both exits are needed."""

    name: ClassVar[str] = "exit_breakdown"

    break_probability: float = Field(0.02, gt=0, le=1)
    """Probability per bar that the price stops returning and begins to slide."""
    slide: float = Field(0.3, ge=0, le=0.5)
    """Downward drift of a bar over `sigma` from then on."""

    def start(self) -> Float:
        """Return the probability of each mode at the entry, (M,)."""
        return np.array([1.0, 0.0])

    def turns(self) -> Float:
        """Return the probability of each next mode, (M, M)."""
        return np.array([[1.0 - self.break_probability, self.break_probability], [0.0, 1.0]])

    def drift(self, y: Float, mode: int) -> Float:
        """Return the mean log return of the next bar."""
        return super().drift(y, 0) if mode == 0 else np.full_like(y, -self.slide * self.sigma)


class ExitWorlds(Section):
    """Every exit world with its parameters."""

    exit_martingale: ExitMartingale = ExitMartingale()
    exit_reversion: ExitReversion = ExitReversion()
    exit_trend: ExitTrend = ExitTrend()
    exit_breakdown: ExitBreakdown = ExitBreakdown()

    def all(self) -> tuple[ExitWorld, ...]:
        """Return the worlds."""
        return (self.exit_martingale, self.exit_reversion, self.exit_trend, self.exit_breakdown)
