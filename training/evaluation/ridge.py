"""The honest rival: a linear forecast of the next bar, traded only where it leaves a band around zero.

Everything is fitted on training rows. The forecast is a ridge regression of the bar's return, in units of its
volatility, on the policy's own features; its penalty is chosen by forecasting blocks of time from the blocks before
them. Those forecasts, of rows that the regression had not seen, choose the band: a multiple of the optimum for a
forecast that decays as an AR(1) (`strategies.baselines.no_trade_threshold`, with the decay and the size measured), or
none at all, whichever earned most after costs. Where nothing earned anything, the rule stays flat.

Axes: N training rows, F features, B blocks of time, L penalties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.baselines import no_trade_threshold
from training.evaluation.books import Books
from training.evaluation.tracks import Mask, Positions, band_positions, begins, held_before
from training.market import Float, Float32, Int, MarketTable

BLOCKS = 6
"""Blocks of time; each but the first is forecast from those before it."""
PENALTIES = tuple(np.logspace(-3.0, 3.0, 13).tolist())
"""Per row; features have unit variance, so 1 halves a coefficient that stands alone."""
INPUT_CLIP = 5.0
"""Features, normalised by the training rows, and returns in volatilities are cut off here."""
BAND_MULTIPLES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of the AR(1) optimum."""
DECAY_MAX = 0.999


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted forecast and its bands.

    Args:
        mean_F: Of the training rows.
        deviation_F: Of the training rows.
        weight_F: Volatilities of return per deviation of a feature.
        intercept: Volatilities of return.
        penalty: Chosen, per row.
        correlation: Of forecast and return on blocks not fitted.
        decay: Autocorrelation of the forecast from bar to bar.
        bands: By cost multiple, in log return; infinite where the rule stays flat.
    """

    mean_F: Float
    deviation_F: Float
    weight_F: Float
    intercept: float
    penalty: float
    correlation: float
    decay: float
    bands: dict[int, float]

    def forecast(self, features_RF: Float32, volatility_R: Float) -> Float:
        """Return the expected log return of the bar after each row's fill, (R,)."""
        return volatility_R * (_inputs(features_RF, self.mean_F, self.deviation_F) @ self.weight_F + self.intercept)

    def positions(
        self, features_RF: Float32, volatility_R: Float, begins_R: Mask, *, multiple: int, shorts: bool
    ) -> Positions:
        """Return what the rule holds over rows when it pays `multiple` times the costs, (R,)."""
        score_R = self.forecast(features_RF, volatility_R)
        return band_positions(score_R, self.bands[multiple], begins_R, shorts=shorts)


def fit_ridge(table: MarketTable, books: Books, volatility_T: Float, rows: Int, *, shorts: bool) -> Ridge:
    """Fit forecast, penalty and bands.

    Args:
        table: The whole table, of which only `rows` are read.
        books: What rows pay.
        volatility_T: Volatility of one bar, known at each row.
        rows: Training rows; one is used where the row after it is one too, for its overnight return.
        shorts: Whether the band goes short.
    """
    followed = np.append(np.diff(rows) == 1, [False])
    rows = rows[followed & np.isfinite(volatility_T[rows])]
    features_NF = table.features_TF[rows]
    mean_F = features_NF.mean(axis=0, dtype=np.float64)
    deviation_F = np.maximum(features_NF.std(axis=0, dtype=np.float64), 1e-6)
    input_NF = _inputs(features_NF, mean_F, deviation_F)
    volatility_N = np.maximum(volatility_T[rows], 1e-12)
    return_N = np.clip(books.position_gain(rows, 1) / volatility_N, -INPUT_CLIP, INPUT_CLIP)
    block_N = _blocks(table.close_ns_T[rows])
    penalty, unseen_N = _choose_penalty(input_NF, return_N, block_N)
    weight_F, intercept = _solve(input_NF, return_N, (penalty,))
    seen_before = ~np.isnan(unseen_N)
    out, unseen = rows[seen_before], unseen_N[seen_before]
    score = unseen * volatility_N[seen_before]
    decay = _decay(score, out)
    spread = float(score.std())
    bands = {
        multiple: _choose_band(
            score, out, books, multiple, _bands(books.side_cost(out, multiple), spread, decay), shorts=shorts
        )
        for multiple in books.rewards
    }
    return Ridge(
        mean_F=mean_F,
        deviation_F=deviation_F,
        weight_F=weight_F[:, 0],
        intercept=intercept,
        penalty=penalty,
        correlation=_correlation(unseen, return_N[seen_before]),
        decay=decay,
        bands=bands,
    )


def _inputs(features_RF: Float32, mean_F: Float, deviation_F: Float) -> Float:
    return np.clip((features_RF - mean_F) / deviation_F, -INPUT_CLIP, INPUT_CLIP)


def _blocks(close_ns_N: Int) -> Int:
    """Return each row's block of time, all symbols cut at the same closes, (N,)."""
    closes, place_N = np.unique(close_ns_N, return_inverse=True)
    return place_N * BLOCKS // len(closes)


def _solve(input_NF: Float, return_N: Float, penalties: tuple[float, ...]) -> tuple[Float, float]:
    """Return the weights for each penalty, (F, L), and the intercept, which is not penalised."""
    centre_F, intercept = input_NF.mean(axis=0), float(return_N.mean())
    centred_NF = input_NF - centre_F
    values_F, vectors_FF = np.linalg.eigh(centred_NF.T @ centred_NF / len(return_N))
    towards_F = vectors_FF.T @ (centred_NF.T @ (return_N - intercept) / len(return_N))
    weights = [vectors_FF @ (towards_F / (np.maximum(values_F, 0.0) + penalty)) for penalty in penalties]
    weight_FL = np.stack(weights, axis=1)
    return weight_FL, intercept - float(centre_F @ weight_FL[:, 0])


def _choose_penalty(input_NF: Float, return_N: Float, block_N: Int) -> tuple[float, Float]:
    """Return the penalty with the smallest squared error on later blocks, and the forecasts made of those, (N,).

    The last row of each symbol before a block is left out: the bar that pays it belongs to the block.
    """
    last_N = np.append(block_N[1:] != block_N[:-1], [True])
    forecast_NL = np.full((len(return_N), len(PENALTIES)), np.nan)
    for block in range(1, BLOCKS):
        before_N = (block_N < block) & ~last_N
        weight_FL, _ = _solve(input_NF[before_N], return_N[before_N], PENALTIES)
        now_N = block_N == block
        level = float(return_N[before_N].mean())
        centre_F = input_NF[before_N].mean(axis=0)
        forecast_NL[now_N] = (input_NF[now_N] - centre_F) @ weight_FL + level
    seen_N = block_N > 0
    error_L = ((forecast_NL[seen_N] - return_N[seen_N, None]) ** 2).mean(axis=0)
    best = len(PENALTIES) - 1 - int(np.argmin(error_L[::-1]))
    return PENALTIES[best], forecast_NL[:, best]


def _decay(score_N: Float, rows_N: Int) -> float:
    """Return the autocorrelation of the forecast between neighbouring rows, within [0, `DECAY_MAX`]."""
    pairs = np.flatnonzero(np.diff(rows_N) == 1)
    return min(max(_correlation(score_N[pairs], score_N[pairs + 1]), 0.0), DECAY_MAX)


def _correlation(one_N: Float, other_N: Float) -> float:
    if len(one_N) < 3 or one_N.std() < 1e-15 or other_N.std() < 1e-15:
        return 0.0
    return float(np.corrcoef(one_N, other_N)[0, 1])


def _bands(cost: float, spread: float, decay: float) -> tuple[float, ...]:
    """Return the bands to try, widest first; infinite is to stay flat."""
    if spread < 1e-15:
        return (math.inf, 0.0)
    best = no_trade_threshold(cost, spread, decay) * spread
    return (math.inf, *sorted({multiple * best for multiple in BAND_MULTIPLES}, reverse=True))


def _choose_band(
    score_N: NDArray[np.float64], rows_N: Int, books: Books, multiple: int, bands: tuple[float, ...], *, shorts: bool
) -> float:
    """Return the band that earned most after costs, the widest of equals."""
    begins_N = begins(rows_N)
    earned = []
    for band in bands:
        held_N = band_positions(score_N, band, begins_N, shorts=shorts)
        earned.append(float(books.growth(multiple, rows_N, held_before(held_N, begins_N), held_N).sum()))
    return bands[int(np.argmax(earned))]
