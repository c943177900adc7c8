"""Whether the quantiles hold, and what the brackets are worth, on bars that the head has not seen.

Axes: R rows, Q quantiles, S sides, C cells: the volatility deciles of each symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import TrainingError
from training.exits.fit import CHUNK_ROWS, TrainedExits
from training.exits.network import DIRECTIONS, QuantileExits
from training.exits.rows import ExitRows
from training.market import Float

DECILES = 10
BLOCKS = 50
"""Blocks of time whose means give the standard error of a gain."""


@dataclass(frozen=True, slots=True)
class QuantileCheck:
    """One quantile of the long side's favourable or adverse excursion.

    Args:
        way: favourable or adverse.
        share: What it should cover.
        covered: What it does.
        by_symbol: What it does in each symbol.
        slope: Of the mean predicted quantile on the empirical one, over the cells, log distances.
        reverse_slope: Of the empirical quantile on the mean predicted one.
    """

    way: str
    share: float
    covered: float
    by_symbol: Mapping[str, float]
    slope: float
    reverse_slope: float


@dataclass(frozen=True, slots=True)
class GainCheck:
    """What the chosen brackets added to having none: log return of a trade after costs, over all rows."""

    side: str
    gain: float
    error: float
    share_with_exits: float


def check_quantiles(trained: TrainedExits, rows: ExitRows, symbol_R: Sequence[str]) -> list[QuantileCheck]:
    """Compare every quantile with what came.

    Args:
        trained: A quantile head.
        rows: Rows that it has not learned from.
        symbol_R: Symbol of each.

    Raises:
        TrainingError: A head without quantiles.
    """
    face = trained.module
    if not isinstance(face, QuantileExits):
        raise TrainingError(f"the exit head {trained.metrics['head']} tells no quantiles")
    told = outputs(trained, rows, 1)
    symbols = np.array(symbol_R)
    cell_R = cells(rows.sigma_R, symbols)
    checks = []
    for way, reach_R in zip(DIRECTIONS, (rows.labels.above_R, rows.labels.below_R), strict=True):
        for share in face.quantiles:
            told_R = told[f"{way}_q{100 * share:g}"]
            is_covered_R = reach_R <= told_R
            ids = np.unique(cell_R)
            predicted_C = np.array([told_R[cell_R == cell].mean() for cell in ids])
            empirical_C = np.array([np.quantile(reach_R[cell_R == cell], share) for cell in ids])
            checks.append(
                QuantileCheck(
                    way=way,
                    share=share,
                    covered=float(is_covered_R.mean()),
                    by_symbol={str(one): float(is_covered_R[symbols == one].mean()) for one in np.unique(symbols)},
                    slope=_slope(empirical_C, predicted_C),
                    reverse_slope=_slope(predicted_C, empirical_C),
                )
            )
    return checks


def check_gains(trained: TrainedExits, rows: ExitRows, levels: Sequence[float]) -> list[GainCheck]:
    """Play the chosen bracket on every row, on both sides."""
    grid = np.array([np.inf, *levels])
    checks = []
    for side, (name, target) in enumerate((("long", 1), ("short", -1))):
        told = outputs(trained, rows, target)
        stop_R, take_R = (told[key] / rows.sigma_R for key in ("exit_stop", "exit_take_profit"))
        place_R = _place(stop_R, grid) * len(grid) + _place(take_R, grid)
        value_RK = rows.labels.value_RSK[:, side]
        gain_R = (np.take_along_axis(value_RK, place_R[:, None], axis=1)[:, 0] - value_RK[:, 0]).astype(np.float64)
        parts = [part.mean() for part in np.array_split(gain_R, BLOCKS)]
        error = float(np.std(parts, ddof=1) / np.sqrt(BLOCKS))
        checks.append(GainCheck(name, float(gain_R.mean()), error, float((place_R > 0).mean())))
    return checks


def outputs(trained: TrainedExits, rows: ExitRows, target: int) -> dict[str, NDArray[np.float32]]:
    """Return every output at one target, (R,) each."""
    features = torch.from_numpy(rows.features_RF)
    target_B = torch.full((len(rows),), target)
    with torch.no_grad():
        parts = [
            trained.module(features[at : at + CHUNK_ROWS], target_B[at : at + CHUNK_ROWS])
            for at in range(0, len(rows), CHUNK_ROWS)
        ]
    names = trained.module.output_names
    return {name: torch.cat([part[k] for part in parts]).numpy() for k, name in enumerate(names)}


def cells(sigma_R: Float, symbols_R: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the cell of each row: the decile of volatility within its symbol."""
    cell_R = np.empty(len(sigma_R), dtype=np.int64)
    for number, symbol in enumerate(np.unique(symbols_R)):
        is_it_R = symbols_R == symbol
        edges = np.quantile(sigma_R[is_it_R], np.arange(1, DECILES) / DECILES)
        cell_R[is_it_R] = number * DECILES + np.searchsorted(edges, sigma_R[is_it_R])
    return cell_R


def _place(level_R: Float, grid: Float) -> NDArray[np.int64]:
    """Return the place of each level in the grid, whose first is infinite."""
    place_R = np.searchsorted(grid[1:] * (1.0 - 1e-3), level_R, side="right")
    return np.where(np.isinf(level_R), 0, place_R)


def _slope(x_C: Float, y_C: Float) -> float:
    away_C = x_C - x_C.mean()
    return float((away_C * y_C).sum() / (away_C**2).sum())
