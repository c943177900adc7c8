"""Is it skill? Timing against shifted timing, and the Sharpe ratio less what many trials reach by luck.

Axes: R rows of one symbol, S shifts, C closes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from strategies.performance import shape_of
from training.market import Float

_NORMAL = NormalDist()
_EULER = 0.5772156649015329
_ROUNDING = 1e-12
"""Sums within this share of the largest are equal: Fourier sums round."""


def shifted_gains(held_R: Sequence[NDArray[np.integer]], gain_R: Mapping[int, Float]) -> Float:
    """Return what positions gain before costs when they come s rows later, for every s in a circle, (S,).

    Args:
        held_R: Positions (-1, 0, 1) of each seed over the same rows.
        gain_R: What each row pays at a position, by position (-1 and 1).
    """
    count = len(next(iter(gain_R.values())))
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex128)
    for position, gain in gain_R.items():
        held = np.sum([one == position for one in held_R], axis=0, dtype=np.float64)
        spectrum += np.conj(np.fft.rfft(held)) * np.fft.rfft(gain)
    return np.fft.irfft(spectrum, n=count) / len(held_R)


def timing_p_value(by_symbol: Sequence[Float]) -> float:
    """Return the share of circular shifts of the positions, of all symbols at once, that gain at least as much.

    A shift keeps exposure, holding times, turnover and with them costs; what it loses is only *when*. Under no timing
    skill every shift is as likely as the real one, so the p-value is uniform; drift earns no credit.

    Args:
        by_symbol: `shifted_gains` of each symbol; the shortest tells how many shifts there are.
    """
    shifts = min(len(one) for one in by_symbol)
    total_S = np.sum([one[:shifts] for one in by_symbol], axis=0)
    tolerance = _ROUNDING * max(float(np.abs(total_S).max()), 1e-30)
    return float(np.mean(total_S >= total_S[0] - tolerance))


def sharpe(value_C: Float) -> float | None:
    """Return mean over standard deviation per close; None without deviation."""
    spread = float(np.std(value_C, ddof=1)) if len(value_C) > 1 else 0.0
    return float(np.mean(value_C)) / spread if spread > 1e-15 else None


def luckiest_sharpe(trials: int, deviation: float) -> float:
    """Return the largest Sharpe ratio that so many trials without skill are expected to reach, per close.

    Bailey & López de Prado 2014, "The Deflated Sharpe Ratio", equation 6. One trial: zero.

    Args:
        trials: Number of independent trials.
        deviation: Standard deviation of their Sharpe ratios per close.
    """
    if trials < 2:
        return 0.0
    first, second = (_NORMAL.inv_cdf(1.0 - 1.0 / (trials * base)) for base in (1.0, math.e))
    return deviation * ((1.0 - _EULER) * first + _EULER * second)


def probabilistic_sharpe(ratio: float, against: float, closes: int, skewness: float, kurtosis: float) -> float:
    """Return the probability that the true Sharpe ratio exceeds `against`, all per close.

    Same paper, equation 9; `kurtosis` is the plain one, 3 for normal returns. With `against` from `luckiest_sharpe` it
    is the deflated Sharpe ratio.
    """
    variance = 1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio * ratio
    return _NORMAL.cdf((ratio - against) * math.sqrt(closes - 1) / math.sqrt(max(variance, 1e-12)))


def deflated_sharpe(value_C: Float, trials: int, deviation: float | None) -> float | None:
    """Return the deflated Sharpe ratio of a series; None where the series does not vary.

    Args:
        value_C: Log-equity changes per close.
        trials: Trials ever run on these data, this one included.
        deviation: Standard deviation of the trials' Sharpe ratios per close; None where fewer than two are known: that
            of an estimate without skill, 1 / sqrt(closes - 1).
    """
    ratio, (skewness, kurtosis) = sharpe(value_C), shape_of(value_C)
    if ratio is None or skewness is None or kurtosis is None:
        return None
    luckiest = luckiest_sharpe(trials, deviation or 1.0 / math.sqrt(len(value_C) - 1))
    return probabilistic_sharpe(ratio, luckiest, len(value_C), skewness, kurtosis)
