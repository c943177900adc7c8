"""How a policy does on bars it was not trained on: split, evaluation, and the baselines beside it.

Axes: T rows of the market table, P positions (-1, 0, 1 at index 0, 1, 2), R evaluated rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brokers.series import from_ns
from training.errors import TrainingError
from training.evaluation import tracks
from training.evaluation.tracks import begins
from training.market import Float, Int, MarketTable

TargetOf = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.int64]]
"""(B, F) features and (B,) positions to (B,) targets."""

BLOCKS = 20
"""Blocks of consecutive bars whose means give the standard error of a mean per bar."""

RANDOM_POLICIES = 20
"""Random policies that are averaged."""

ROWS_MIN = 50
"""Fewest usable rows of either side of a split."""


@dataclass(frozen=True, slots=True)
class Split:
    """The market before and after one instant, with the features' memory purged between them.

    Args:
        train: Steps whose fill's bar closes before the boundary.
        validation: Steps from `memory_bars` after the boundary on: no bar is in the features of both sides.
        boundary_ns: Close of the first validation candidate, ns.
    """

    train: MarketTable
    validation: MarketTable
    boundary_ns: int


def split_in_time(table: MarketTable, *, validation_fraction: float, memory_bars: int) -> Split:
    """Split every symbol at one instant.

    Raises:
        TrainingError: Too few rows on one side.
    """
    starts = table.start_rows
    if len(starts) == 0:
        raise TrainingError(f"no bar has complete features: they need {memory_bars} bars, give more")
    closes = np.unique(table.close_ns_T[starts])
    boundary_ns = int(closes[int(len(closes) * (1.0 - validation_fraction))])
    before_T = table.close_ns_T < boundary_ns
    train_T, validation_T = before_T.copy(), np.zeros(len(table), dtype=bool)
    for symbol in range(len(table.symbols)):
        rows = np.flatnonzero(table.symbol_T == symbol)
        first = int(np.searchsorted(table.close_ns_T[rows], boundary_ns))
        # the reward of a row comes from the bar that fills it, `latency_bars` further on
        train_T[rows[max(0, first - table.latency_bars + 1) : first]] = False
        validation_T[rows[first + memory_bars :]] = True
    split = Split(table.where(train_T), table.where(validation_T), boundary_ns)
    for name, part in (("training", split.train), ("validation", split.validation)):
        if len(part.start_rows) < ROWS_MIN:
            raise TrainingError(
                f"{len(part.start_rows)} bars are left for {name} after the split at {from_ns(boundary_ns)} with "
                f"{memory_bars} bars of features' memory purged; at least {ROWS_MIN} are needed: give more bars, or "
                "change training.validation_fraction"
            )
    return split


@dataclass(frozen=True, slots=True)
class Performance:
    """After-cost log return per bar of unit exposure.

    Args:
        mean_bps: Mean, basis points per bar.
        error_bps: Its standard error from the means of consecutive blocks; of `random`, over its policies.
        turnover: Sides traded per bar.
        exposure: Mean absolute position.
        bars: Steps evaluated.
    """

    mean_bps: float
    error_bps: float
    turnover: float
    exposure: float
    bars: int


def follow(table: MarketTable, target_PT: Int) -> tuple[Float, Int]:
    """Follow a rule through the table; returns (R,) log returns and (R,) positions of its start rows.

    The plain definition; `training.evaluation.tracks` does the same without a loop.

    Args:
        table: The market; each run of rows begins flat.
        target_PT: (3, T) targets, by position held (-1, 0, 1) and row.
    """
    rows = table.start_rows
    position_R = np.empty(len(rows), dtype=np.int64)
    before_R = np.empty(len(rows), dtype=np.int64)
    targets = target_PT[:, rows].T.tolist()
    held, expected = 0, -1
    for i, (row, choice) in enumerate(zip(rows.tolist(), targets, strict=True)):
        if row != expected:
            held = 0
        before_R[i] = held
        held = choice[held + 1]
        position_R[i] = held
        expected = row + 1
    return table.reward_TPN[rows, before_R + 1, position_R + 1], position_R


def performance(table: MarketTable, target_PT: Int) -> Performance:
    """Evaluate a rule given as (3, T) targets by position held and row."""
    rows = table.start_rows
    begins_R = begins(rows)
    position_R = tracks.follow(target_PT[:, rows], begins_R).astype(np.int64)
    before_R = tracks.held_before(position_R, begins_R)
    reward_R = table.reward_TPN[rows, before_R + 1, position_R + 1]
    # blocks of time, each with all symbols in it: symbols that move together are not independent evidence
    in_time_R = np.argsort(table.close_ns_T[rows], kind="stable")
    block_means = np.array([block.mean() for block in np.array_split(reward_R[in_time_R], BLOCKS)])
    return Performance(
        mean_bps=float(reward_R.mean() * 1e4),
        error_bps=float(block_means.std(ddof=1) / np.sqrt(BLOCKS) * 1e4),
        turnover=float(np.abs(position_R - before_R).mean()),
        exposure=float(np.abs(position_R).mean()),
        bars=len(reward_R),
    )


def policy_targets(table: MarketTable, policy: TargetOf, *, shorts: bool) -> Int:
    """Ask a policy for its target in every usable row and position; returns (3, T), zeros elsewhere."""
    target_PT = np.zeros((3, len(table)), dtype=np.int64)
    rows = table.start_rows
    for position in (-1, 0, 1) if shorts else (0, 1):
        target_PT[position + 1, rows] = policy(table.features_TF[rows], np.full(len(rows), position, dtype=np.int64))
    return target_PT


def baselines(table: MarketTable, *, shorts: bool, seed: int) -> dict[str, Performance]:
    """Return flat, buy-and-hold, and the mean of `RANDOM_POLICIES` that draw an allowed target each bar."""
    rng = np.random.default_rng(seed)
    shape = (RANDOM_POLICIES, len(table))
    random_RT = rng.integers(-1 if shorts else 0, 2, size=shape)
    random = [performance(table, np.tile(row, (3, 1))) for row in random_RT]
    mean_bps = np.array([p.mean_bps for p in random])
    return {
        "flat": performance(table, np.zeros((3, len(table)), dtype=np.int64)),
        "buy_and_hold": performance(table, np.ones((3, len(table)), dtype=np.int64)),
        "random": Performance(
            mean_bps=float(mean_bps.mean()),
            error_bps=float(mean_bps.std(ddof=1) / np.sqrt(RANDOM_POLICIES)),
            turnover=float(np.mean([p.turnover for p in random])),
            exposure=float(np.mean([p.exposure for p in random])),
            bars=random[0].bars,
        ),
    }


def describe_span(table: MarketTable) -> dict[str, str | int]:
    """Return first and last decision and the number of steps of a table's usable rows, for a manifest."""
    closes = table.close_ns_T[table.start_rows]
    stamp = [from_ns(ns).isoformat() for ns in (int(closes.min()), int(closes.max()))]
    return {"first_close": stamp[0], "last_close": stamp[1], "steps": len(closes)}
