"""The rivals that need no training: flat, held, held at constant risk, momentum, and chance in two forms.

All are scored on the rows of the policy, begin flat in every window as it does, and pay the same costs.

Axes: R scored rows, T rows of the whole table, P positions (-1, 0, 1 at index 0, 1, 2).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from strategies.baselines import make_baseline
from strategies.features import compute_frame
from training.data import Market
from training.evaluation.tracks import Mask, Positions, follow, spells
from training.market import Float, Int

REBALANCE_BAND = 0.1
"""A volatility-targeted position is left alone while it is this near to its target: rebalancing costs."""


def drawn_positions(count: int, *, shorts: bool, rng: np.random.Generator) -> Positions:
    """Return an allowed position drawn evenly at every row: chance that trades nearly every bar, (R,)."""
    return rng.integers(-1 if shorts else 0, 2, size=count).astype(np.int8)


def matched_positions(held_R: Positions, begins_R: Mask, rng: np.random.Generator) -> Positions:
    """Return the policy's own spells in another order: chance with its exposure, holding times and turnover, (R,).

    Within each run of rows the sequence of positions stays, rotated by a random number of spells, and lengths are
    permuted among the spells of the same position. Turnover can differ by the trades of one seam a run.
    """
    start, length = spells(held_R, begins_R)
    made_R = np.empty_like(held_R)
    run_ends = np.append(np.flatnonzero(begins_R), len(held_R))
    for begin, end in pairwise(run_ends.tolist()):
        inside = np.s_[np.searchsorted(start, begin) : np.searchsorted(start, end)]
        position_S, length_S = held_R[start[inside]], length[inside].copy()
        for position in (-1, 0, 1):
            own = np.flatnonzero(position_S == position)
            length_S[own] = length_S[rng.permutation(own)]
        turn = int(rng.integers(len(position_S)))
        made_R[begin:end] = np.repeat(np.roll(position_S, turn), np.roll(length_S, turn))
    return made_R


def targeted_positions(volatility_R: Float, level_R: Float, begins_R: Mask) -> Float:
    """Return long positions of constant risk: level over volatility of equity, at most all of it, (R,).

    Args:
        volatility_R: Volatility of one bar, known at each decision; flat where it is not warm.
        level_R: Volatility that the whole equity is exposed to; the training rows' median.
        begins_R: First rows of runs.
    """
    known_R = np.isfinite(volatility_R)
    wanted_R = np.where(known_R, np.minimum(1.0, level_R / np.maximum(volatility_R, 1e-12)), 0.0)
    held_R = np.empty(len(wanted_R))
    held = 0.0
    for row, (wanted, starts) in enumerate(zip(wanted_R.tolist(), begins_R.tolist(), strict=True)):
        if starts:
            held = 0.0
        if abs(wanted - held) > REBALANCE_BAND or starts:
            held = wanted
        held_R[row] = held
    return held_R


def momentum_targets(market: Market, *, shorts: bool) -> NDArray[np.int8]:
    """Return the targets of the baseline `momentum` at its defaults, (P, T); flat where its features are not warm."""
    rule = make_baseline("momentum", {"shorts": shorts}, market.period)
    targets = []
    for symbol, bars in market.series.items():
        features_TF = compute_frame(rule.feature_spec, bars, market.calendar)
        warm_T = np.isfinite(features_TF).all(axis=1)
        target_PT = np.zeros((3, len(bars)), dtype=np.int8)
        for position in (-1, 0, 1) if shorts else (0, 1):
            answers = rule.batch(symbol, bars.close_ns, features_TF, position)
            target_PT[position + 1, warm_T] = answers.target_T[warm_T]
        targets.append(target_PT)
    return np.concatenate(targets, axis=1)


def momentum_positions(target_PT: NDArray[np.int8], rows: Int, begins_R: Mask) -> Positions:
    """Follow `momentum_targets` over rows, (R,)."""
    return follow(target_PT[:, rows], begins_R)
