"""World 5: a decaying predictor with quadratic costs and any size of position, solved in closed form.

    maximise E[ x_t f_t - g sigma^2 x_t^2 / 2 - L (x_t - x_(t-1))^2 / 2 ],   f_(t+1) = (1 - decay) f_t + noise

Gârleanu & Pedersen 2013, "Dynamic Trading with Predictable Returns and Transaction Costs", Journal of Finance 68(6):
trade a constant share a/L of the way to an aim, the Markowitz position shrunk because the predictor decays,

    a = (sqrt(m^2 + 4 g sigma^2 L d^2) - m) / (2 d),   m = g sigma^2 d + L (1 - d),   d the discount
    aim = f / (g sigma^2) / (1 + decay a / (g sigma^2))

Strategies of unit positions are scored here too: a position of one is the standard deviation of the best position.
The objective is risk-adjusted, so it stands beside no other world's basis points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from brokers.configuration import Section
from strategies.strategy import Strategy
from training.errors import TrainingError
from training.markets.bench import LEAD_BARS, Knows, Row, WorldReport, estimate
from training.markets.deciders import Driver
from training.markets.predictor import Predictor
from training.markets.solver import Float
from training.markets.world import Path, Purpose


@dataclass(frozen=True, slots=True)
class LinearRule:
    """x_t = keep x_(t-1) + load f_t."""

    keep: float
    load: float

    def follow(self, predictor_T: Float) -> Float:
        """Return the positions along a path, from a flat start."""
        x, xs = 0.0, []
        for value in predictor_T.tolist():
            x = self.keep * x + self.load * value
            xs.append(x)
        return np.array(xs)


class GarleanuPedersen(Section):
    """How far to go at once, and how much to trust a predictor that fades."""

    name: ClassVar[str] = "garleanu_pedersen"
    summary: ClassVar[str] = "a fading predictor, quadratic costs, positions of any size"

    sigma: float = Field(0.01, gt=0, le=0.05)
    """Standard deviation of a bar's return around its conditional mean."""
    ic: float = Field(0.05, gt=0, le=1)
    """Standard deviation of the predictor over `sigma`."""
    decay: float = Field(0.2, gt=0, le=1)
    """Share of the predictor that is gone after one bar."""
    risk_aversion: float = Field(5.0, gt=0)
    """g of the objective; at ic / sigma the Markowitz position has unit variance."""
    cost_ratio: float = Field(5.0, gt=0)
    """L over g sigma^2."""
    columns: int = Field(30, ge=1, le=500)
    """Columns `signals`; one of them is the predictor."""
    place: int = Field(7, ge=0)
    """Which of them (modulo `columns`)."""

    @property
    def predictor(self) -> Predictor:
        """The world whose bars these are."""
        return Predictor(
            sigma=self.sigma, ic=self.ic, rho=1.0 - self.decay, columns=self.columns, place=self.place, cost_bps=0.0
        )

    @property
    def risk(self) -> float:
        """Twice what a squared position costs: g sigma^2."""
        return self.risk_aversion * self.sigma**2

    @property
    def friction(self) -> float:
        """Twice what a squared trade costs: L."""
        return self.cost_ratio * self.risk

    def path(self, bars: int, seed: int, purpose: Purpose = "evaluation") -> Path:
        """Return a path of the predictor's world."""
        return self.predictor.path(bars, seed, purpose)

    def trading_rate(self, discount: float = 1.0) -> float:
        """Return a/L, the share of the way to the aim that is traded at once.

        With a discount below 1 what a position earns and risks comes one step after what the trade cost.
        """
        middle = self.risk * discount + self.friction * (1.0 - discount)
        root = math.sqrt(middle**2 + 4.0 * self.risk * self.friction * discount**2)
        return (root - middle) / (2.0 * discount * self.friction)

    def aim_weight(self) -> float:
        """Return the aim over the Markowitz position."""
        return 1.0 / (1.0 + self.decay * self.trading_rate() * self.friction / self.risk)

    @property
    def rules(self) -> Mapping[str, LinearRule]:
        """The best rule, the one without costs, and the best of one bar alone."""
        rate = self.trading_rate()
        both = self.risk + self.friction
        return {
            "optimal": LinearRule(1.0 - rate, rate * self.aim_weight() / self.risk),
            "markowitz": LinearRule(0.0, 1.0 / self.risk),
            "one_step": LinearRule(self.friction / both, 1.0 / both),
        }

    def gain(self, rule: LinearRule) -> float:
        """Return the exact average objective of a linear rule, from the stationary moments of (x, f).

        Raises:
            TrainingError: A rule whose position grows without bound.
        """
        if not abs(rule.keep) < 1.0:
            raise TrainingError(f"a rule that keeps {rule.keep} of its position has no average: keep less than 1")
        with_f, square, lagged = self._moments(rule)
        return with_f - self.risk / 2.0 * square - self.friction * (square - lagged)

    def _moments(self, rule: LinearRule) -> tuple[float, float, float]:
        """Return the stationary means of x_t f_t, x_t^2 and x_t x_(t-1)."""
        rho, variance = 1.0 - self.decay, (self.ic * self.sigma) ** 2
        with_f = rule.load * variance / (1.0 - rule.keep * rho)
        square = (2.0 * rule.keep * rule.load * rho * with_f + rule.load**2 * variance) / (1.0 - rule.keep**2)
        return with_f, square, rule.keep * square + rule.load * rho * with_f

    @property
    def unit(self) -> float:
        """Standard deviation of the best position."""
        return math.sqrt(self._moments(self.rules["optimal"])[1])

    def objective(self, return_T: Float, position_T: Float) -> Float:
        """Return the objective of each bar, positions from a flat start."""
        trade_T = np.diff(position_T, prepend=0.0)
        return position_T * return_T - self.risk / 2.0 * position_T**2 - self.friction / 2.0 * trade_T**2


def bench_garleanu_pedersen(
    world: GarleanuPedersen, strategies: Mapping[str, Strategy], *, bars: int, seeds: Sequence[int]
) -> WorldReport:
    """Score linear rules, and strategies at `unit` size; see `bench_world`."""
    best = world.gain(world.rules["optimal"])
    rows: dict[tuple[str, Knows], list[tuple[float, ...]]] = {}
    for seed in seeds:
        path = world.path(LEAD_BARS + bars, seed)
        decided = np.s_[LEAD_BARS - 1 : -1]
        mean_T, return_T = path.state_T[decided], np.diff(np.log(path.series.close))[LEAD_BARS - 1 :]
        positions: dict[tuple[str, Knows], tuple[Float, float]] = {
            (name, "state"): (rule.follow(mean_T), 0.0) for name, rule in world.rules.items()
        }
        driver = Driver(path, LEAD_BARS - 1, (-1, 0, 1))
        for name, strategy in strategies.items():
            decisions = driver.drive(strategy)
            positions[name, "bars"] = (
                np.multiply(world.unit, decisions.held_T, dtype=np.float64),
                decisions.abstained / bars,
            )
        for key, (x_T, abstained) in positions.items():
            means = [world.objective(mean_T, x_T), world.objective(return_T, x_T), np.abs(np.diff(x_T)), np.abs(x_T)]
            rows.setdefault(key, []).append((*(float(one_T.mean()) for one_T in means), abstained))
    return WorldReport(
        world.name,
        world.model_dump(mode="json"),
        best * 1e4,
        tuple(_row(name, knows, np.array(found), best) for (name, knows), found in rows.items()),
    )


def _row(name: str, knows: Knows, found_KC: Float, best: float) -> Row:
    mean_K, realised_K, turnover_K, exposure_K, abstained_K = found_KC.T
    return Row(
        name=name,
        knows=knows,
        fraction=estimate(mean_K / best),
        fraction_by_regret=None,
        mean_bps=estimate(mean_K * 1e4),
        realised_bps=estimate(realised_K * 1e4),
        turnover=float(turnover_K.mean()),
        exposure=float(exposure_K.mean()),
        abstained=float(abstained_K.mean()),
    )
