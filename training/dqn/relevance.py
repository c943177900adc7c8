"""Which columns tell something of the next bar: one number in [0, 1] for each, from a regression that prunes itself.

With d columns that tell nothing, the noise of their weights costs sqrt(d / N) of a signal, whoever learns from them. A
Bayesian linear regression of the next bar's growth with one prior precision for each column (automatic relevance
determination: MacKay 1992; Tipping 2001, "Sparse Bayesian Learning", equations 12 to 18) drives the weights of
columns without evidence to zero. What is returned is how well each weight is determined by the data, 1 - alpha_i
Sigma_ii. It is linear and looks one bar ahead: a column that matters in another way keeps a share (`relevance_floor`).

Axes: F columns, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.market import Float

ITERATIONS = 200
PRECISION_MAX = 1e12
"""A column of a larger prior precision is out; on normalised columns its weight is a millionth of the noise."""

DETERMINED_MIN = 1e-9
"""What rounding leaves of a weight that is not determined at all."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows, which add up over pieces of a table.

    Args:
        moment_FF: Of products of columns.
        cross_F: Of columns with the growth.
        sum_F: Of columns.
        total: Of the growth.
        square: Of its square.
        count: Rows.
    """

    moment_FF: Float
    cross_F: Float
    sum_F: Float
    total: float
    square: float
    count: int

    @classmethod
    def none(cls, columns: int) -> Moments:
        """Return the moments of no rows."""
        return cls(np.zeros((columns, columns)), np.zeros(columns), np.zeros(columns), 0.0, 0.0, 0)

    @classmethod
    def of(cls, x_RF: Float, growth_R: Float) -> Moments:
        """Return the moments of rows."""
        return cls(
            x_RF.T @ x_RF,
            x_RF.T @ growth_R,
            x_RF.sum(axis=0),
            float(growth_R.sum()),
            float(growth_R @ growth_R),
            len(growth_R),
        )

    def __sub__(self, other: Moments) -> Moments:
        """Return the moments of these rows without others that are among them."""
        return self + Moments(-other.moment_FF, -other.cross_F, -other.sum_F, -other.total, -other.square, -other.count)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both."""
        return Moments(
            self.moment_FF + other.moment_FF,
            self.cross_F + other.cross_F,
            self.sum_F + other.sum_F,
            self.total + other.total,
            self.square + other.square,
            self.count + other.count,
        )


def relevance(moments: Moments) -> Float:
    """Return how well each column's weight is determined, (F,)."""
    if moments.count == 0:
        return np.zeros(len(moments.cross_F))
    mean_F, mean = moments.sum_F / moments.count, moments.total / moments.count
    moment_FF = moments.moment_FF - moments.count * np.outer(mean_F, mean_F)
    cross_F = moments.cross_F - moments.count * mean_F * mean
    variance = max(moments.square / moments.count - mean * mean, float(np.finfo(np.float64).tiny))
    return _determined(moment_FF / variance, cross_F / variance)


def _determined(moment_FF: Float, cross_F: Float) -> Float:
    """Iterate MacKay's fixed point; the noise is the growth's own variance, for nothing here explains much of it."""
    alpha_F = np.full(len(cross_F), np.maximum(np.trace(moment_FF) / len(cross_F), 1.0) * 1e-3)
    gamma_F = np.ones(len(cross_F))
    for _ in range(ITERATIONS):
        kept = np.flatnonzero(alpha_F < PRECISION_MAX)
        gamma_F = np.zeros(len(cross_F))
        if not len(kept):
            return gamma_F
        sigma_KK = np.linalg.inv(moment_FF[np.ix_(kept, kept)] + np.diag(alpha_F[kept]))
        weight_K = sigma_KK @ cross_F[kept]
        gamma_F[kept] = np.clip(1.0 - alpha_F[kept] * np.diag(sigma_KK), DETERMINED_MIN, 1.0)
        alpha_F[kept] = np.minimum(
            gamma_F[kept] / np.maximum(weight_K**2, DETERMINED_MIN / PRECISION_MAX), PRECISION_MAX
        )
    return gamma_F
