"""Intervals of means of dependent series: the stationary bootstrap with the automatic block length.

Politis & Romano 1994, "The Stationary Bootstrap": blocks of geometric length from random places of the series bent
into a circle. Block length by Politis & White 2004, "Automatic Block-Length Selection for the Dependent Bootstrap",
as corrected by Patton, Politis & White 2009. Several series are drawn together, so that their differences keep what
they owe each other.

Axes: K series, C closes, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from training.market import Float

_SIGNIFICANT = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Tell whether zero is not excluded."""
        return self.low <= 0.0 <= self.high

    def times(self, factor: float) -> Interval:
        """Return the interval in another unit; `factor` > 0."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor)


def block_length(value_C: Float) -> float:
    """Return the block length, in closes, that minimises the error of the stationary bootstrap's variance of the mean.

    One where the series is constant or too short to tell.
    """
    count = len(value_C)
    about_C = value_C - value_C.mean()
    variance = float(about_C @ about_C) / count
    if count < 10 or variance <= 1e-30:
        return 1.0
    quiet_lags = max(5, math.ceil(math.sqrt(math.log10(count))))
    lags = min(math.ceil(math.sqrt(count)) + quiet_lags, count - 1)
    # padded to twice its length, so that the circle of the transform does not close
    power = np.abs(np.fft.rfft(about_C, n=2 * count)) ** 2
    covariance_L = np.fft.irfft(power, n=2 * count)[: lags + 1] / count
    last = _last_correlated_lag(
        covariance_L / variance, quiet_lags, _SIGNIFICANT * math.sqrt(math.log10(count) / count)
    )
    reach = min(2 * max(last, 1), lags)
    lag_R = np.arange(1, reach + 1)
    # the flat-top kernel: one up to half of its reach, then falling to zero
    weighted_R = np.minimum(1.0, 2.0 * (1.0 - lag_R / reach)) * covariance_L[1 : reach + 1]
    long_run = variance + 2.0 * float(weighted_R.sum())
    slope = 2.0 * float((lag_R * weighted_R).sum())
    if long_run <= 1e-30:
        return 1.0
    longest = math.ceil(min(3.0 * math.sqrt(count), count / 3.0))
    best = math.cbrt((slope / long_run) ** 2 * count)
    return max(1.0, min(best, float(longest)))


def _last_correlated_lag(correlation_L: Float, quiet_lags: int, bound: float) -> int:
    """Return the lag behind which `quiet_lags` autocorrelations in a row are insignificant, or the last significant."""
    significant = np.flatnonzero(np.abs(correlation_L[1:]) >= bound) + 1
    if not len(significant):
        return 0
    ends = np.append(significant, len(correlation_L) + quiet_lags)
    gaps = np.diff(np.concatenate([[0], ends]))
    return int(np.concatenate([[0], significant])[int(np.argmax(gaps > quiet_lags))])


def resampled_means(value_KC: Float, block: float, resamples: int, rng: np.random.Generator) -> Float:
    """Return the means of each resample, (K, B); `block` is the mean length of a block, at least 1."""
    series, count = value_KC.shape
    # sums of blocks are differences of one running sum over the circle, gone round twice
    running_CK = np.zeros((2 * count + 1, series))
    np.cumsum(np.concatenate([value_KC.T, value_KC.T]), axis=0, out=running_CK[1:])
    expected = count / block
    blocks = min(count, math.ceil(expected + 8.0 * math.sqrt(expected) + 16.0))
    means_KB = np.empty((series, resamples))
    for resample in range(resamples):
        ends = np.minimum(np.cumsum(rng.geometric(1.0 / block, size=blocks)), count)
        ends[-1] = count
        used = int(np.searchsorted(ends, count)) + 1
        start = rng.integers(count, size=used)
        length = np.diff(ends[:used], prepend=0)
        means_KB[:, resample] = (running_CK[start + length] - running_CK[start]).sum(axis=0) / count
    return means_KB


def intervals(
    value_KC: Float, *, resamples: int, confidence: float, seed: int, block: float | None = None
) -> tuple[list[Interval], float]:
    """Return each series' mean with its percentile interval, and the block length that all were drawn with.

    Args:
        value_KC: Series over the same closes.
        resamples: Number of them.
        confidence: Share of resampled means within.
        seed: Of the draws.
        block: Mean block length; None: the longest that any of the series asks for, and at least the cube root of
            the number of closes, the order of the best length for any dependence.
    """
    count = value_KC.shape[1]
    if block is None:
        block = max(count ** (1.0 / 3.0), *(block_length(value_C) for value_C in value_KC))
    block = min(max(block, 1.0), float(count))
    means_KB = resampled_means(value_KC, block, resamples, np.random.default_rng(seed))
    tail = (1.0 - confidence) / 2.0
    low_K, high_K = np.quantile(means_KB, (tail, 1.0 - tail), axis=1)
    mean_K = value_KC.mean(axis=1)
    found = [Interval(float(m), float(low), float(high)) for m, low, high in zip(mean_K, low_K, high_K, strict=True)]
    return found, float(block)
