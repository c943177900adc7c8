"""How much of what a network says is believed: what bars say that it never learned from.

Each member leaves out a block of time, so the members together have an opinion on bars that none of them, asked there,
has seen. Advantages over flat are multiplied by a factor: as learned, smaller, or zero, which never trades. A smaller
one is taken where it earned more by a standard error; zero, where what is left does not earn more than nothing by one.

Axes: R rows of a stretch, N positions that may be held, P positions (-1, 0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.tracks import begins, follow, held_before
from training.market import Float, Int, MarketTable

FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)
EVIDENCE_ERRORS = 1.0
"""Standard errors by which trading must beat not trading: with two, one of five trainings on 50,000 bars of a hidden
trend says nothing that had captured 0.78 of the optimum; with one, a training in twenty on noise is believed."""
BLOCKS = 20
"""Blocks of consecutive bars of each stretch, whose means give standard errors."""


@dataclass(frozen=True, slots=True)
class Paid:
    """What following values paid on a stretch of rows.

    Args:
        log_R: After-cost log growth of each row, in the order of time: blocks hold all symbols, which move together.
        turnover: Sides a bar.
        target_shares: Share of the rows at which each position was held.
    """

    log_R: Float
    turnover: float
    target_shares: dict[int, float]

    @property
    def mean_bps(self) -> float:
        """Mean, basis points a bar."""
        return float(self.log_R.mean() * 1e4)

    @property
    def error_bps(self) -> float:
        """Its standard error from the means of blocks."""
        return _error(self.log_R) * 1e4


@dataclass(frozen=True, slots=True)
class Belief:
    """The factor and its evidence, basis points a bar on bars that were left out.

    Args:
        factor: In [0, 1].
        mean_bps: What it earned there.
        error_bps: Standard error of that.
        by_factor_bps: Mean by factor.
    """

    factor: float
    mean_bps: float
    error_bps: float
    by_factor_bps: dict[float, float]


def pay(
    table: MarketTable, rows: Int, value_RN: NDArray[np.floating], cost_NN: Float, positions: Sequence[int]
) -> Paid:
    """Follow values greedily through rows, flat at the beginning of each run.

    Args:
        table: The market.
        rows: Ascending rows.
        value_RN: Post-decision values, or (R, N, N) values of every position held and target.
        cost_NN: What is added to post-decision values for the way to each target; zeros where it is in the values.
        positions: That may be held, N of them.
    """
    pair_RNN = value_RN[:, None, :] if value_RN.ndim == 2 else value_RN
    pair_RNN = pair_RNN + cost_NN
    count = len(positions)
    target_PR = np.zeros((3, len(rows)), dtype=np.int8)
    for place, held in enumerate(positions):
        q_RN = pair_RNN[:, place, :]
        best_R = q_RN.argmax(axis=1)
        stays_R = q_RN[:, place] >= q_RN[np.arange(len(rows)), best_R]
        target_PR[held + 1] = np.where(stays_R, held, np.array(positions, dtype=np.int8)[best_R])
    begins_R = begins(rows)
    held_R = follow(target_PR, begins_R)
    before_R = held_before(held_R, begins_R)
    log_R = table.reward_TPN[rows, before_R.astype(np.int64) + 1, held_R.astype(np.int64) + 1]
    log_R = log_R[np.argsort(table.close_ns_T[rows], kind="stable")]
    shares = {positions[k]: float((held_R == positions[k]).mean()) for k in range(count)}
    return Paid(log_R, float(np.abs(held_R.astype(np.int64) - before_R).mean()), shares)


def believe(paid: Sequence[Sequence[Paid]]) -> Belief:
    """Choose the factor.

    Args:
        paid: For each of `FACTORS`, what it paid on every stretch that was left out.
    """
    logs = [np.concatenate([one.log_R for one in stretches]) for stretches in paid]
    means = [float(one.mean()) for one in logs]
    best = 0
    for place in range(1, len(FACTORS) - 1):
        if means[place] - means[best] > _error(logs[place] - logs[best]):
            best = place
    if means[best] <= EVIDENCE_ERRORS * _error(logs[best]):
        best = len(FACTORS) - 1
    by_factor = {factor: mean * 1e4 for factor, mean in zip(FACTORS, means, strict=True)}
    return Belief(FACTORS[best], means[best] * 1e4, _error(logs[best]) * 1e4, by_factor)


def _error(log_R: Float) -> float:
    """Return the standard error of a mean from consecutive blocks."""
    blocks = np.array([block.mean() for block in np.array_split(log_R, min(BLOCKS, len(log_R)))])
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks))) if len(blocks) > 1 else float("inf")
