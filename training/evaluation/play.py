"""Train for every fold and seed, and let everybody trade the test rows.

Axes: R scored rows of all folds, ascending; S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.folds import Fold, cut
from training.evaluation.ground import Ground, positions_of
from training.evaluation.ridge import Ridge, fit_ridge
from training.evaluation.rules import (
    drawn_positions,
    matched_positions,
    momentum_positions,
    momentum_targets,
    targeted_positions,
)
from training.evaluation.settings import EvaluationSettings
from training.evaluation.tracks import Mask, Positions, begins, held_before
from training.evaluation.trainers import Trainer
from training.market import Float, Int
from training.settings import TrainingSettings
from training.validation import TargetOf

BASELINES = ("flat", "buy_and_hold", "volatility_targeted", "matched_random", "momentum", "ridge_band", "random")
"""Rivals, in the order of the tables."""
POLICY = "policy"
REFITTED = ("ridge_band",)
"""Rules that decide anew at every multiple of the costs; all others keep the decisions of the configured costs."""

OnTrained = Callable[[int, int], None]
"""(trainings done, trainings planned)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The scored rows.

    Args:
        row_R: Rows of the whole table, ascending: symbol by symbol.
        fold_R: Number of each row's fold.
        symbol_R: Index of its symbol.
        begins_R: Where a run begins: rules are flat in front of it.
        tick_R: Place of its close among all closes scored.
    """

    row_R: Int
    fold_R: Int
    symbol_R: Int
    begins_R: Mask
    tick_R: Int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.row_R)

    @property
    def n_ticks(self) -> int:
        """Return the number of closes."""
        return int(self.tick_R.max()) + 1


@dataclass(frozen=True, slots=True)
class Account:
    """What one rule did; where it was drawn or seeded several times, their mean.

    Args:
        growth: (R,) log-equity changes by multiple of the costs.
        turnover_R: Sides traded.
        exposure_R: Absolute position.
        averaged: Of how many draws or seeds.
    """

    growth: Mapping[int, Float]
    turnover_R: Float
    exposure_R: Float
    averaged: int


@dataclass(frozen=True, slots=True)
class Played:
    """What everybody did on the test rows.

    Args:
        rows: The scored rows.
        seeds: Of the policies.
        held_SR: What each seed's policies held.
        lagged_R: What those of the first seed held when they saw the features of the bar before.
        by_seed: Each seed's account.
        accounts: By rule, the policy's over all seeds first.
        ridges: By fold.
    """

    rows: Rows
    seeds: Sequence[int]
    held_SR: NDArray[np.int8]
    lagged_R: Positions
    by_seed: Sequence[Account]
    accounts: Mapping[str, Account]
    ridges: Mapping[int, Ridge]


def scored_rows(ground: Ground, folds: Sequence[Fold]) -> Rows:
    """Return the test rows of all folds."""
    rows = np.concatenate([fold.test_rows for fold in folds])
    number = np.concatenate([np.full(len(fold.test_rows), fold.number) for fold in folds])
    order = np.argsort(rows, kind="stable")
    row_R, fold_R = rows[order], number[order]
    begins_R = begins(row_R)
    begins_R[1:] |= fold_R[1:] != fold_R[:-1]
    tick_R = np.unique(ground.table.close_ns_T[row_R], return_inverse=True)[1]
    return Rows(row_R, fold_R, ground.table.symbol_T[row_R], begins_R, np.asarray(tick_R, dtype=np.int64))


def play(
    ground: Ground,
    folds: Sequence[Fold],
    trainer: Trainer,
    training: TrainingSettings,
    settings: EvaluationSettings,
    *,
    seeds: Sequence[int],
    on_trained: OnTrained | None = None,
) -> Played:
    """Train, decide and book."""
    rows = scored_rows(ground, folds)
    held_SR = np.zeros((len(seeds), len(rows)), dtype=np.int8)
    lagged_R = np.zeros(len(rows), dtype=np.int8)
    features_RF = ground.table.features_TF[rows.row_R]
    for done, (fold, (place, seed)) in enumerate((f, s) for f in folds for s in enumerate(seeds)):
        policy = trainer(cut(ground.table, fold.train_rows), training, seed)
        own = np.flatnonzero(rows.fold_R == fold.number)
        held_SR[place, own] = positions_of(policy, features_RF[own], rows.begins_R[own], shorts=ground.shorts)
        if place == 0:
            lagged_R[own] = _delayed(ground, policy, rows.row_R[own], rows.begins_R[own])
        if on_trained is not None:
            on_trained(done + 1, len(folds) * len(seeds))
    by_seed = [book(ground, rows, [held_R]) for held_R in held_SR]
    ridges = {
        fold.number: fit_ridge(ground.table, ground.books, ground.volatility_T, fold.train_rows, shorts=ground.shorts)
        for fold in folds
    }
    accounts = {POLICY: _mean(by_seed), **_rivals(ground, rows, folds, ridges, held_SR, settings, seeds[0])}
    return Played(rows, seeds, held_SR, lagged_R, by_seed, accounts, ridges)


def book(ground: Ground, rows: Rows, held: Sequence[NDArray[np.number]]) -> Account:
    """Return the mean account of one or more tracks of positions, with the same decisions at every cost."""
    growth = {multiple: np.zeros(len(rows)) for multiple in ground.books.rewards}
    turnover_R, exposure_R = np.zeros(len(rows)), np.zeros(len(rows))
    for held_R in held:
        before_R = held_before(held_R, rows.begins_R)
        for multiple in growth:
            growth[multiple] += ground.books.growth(multiple, rows.row_R, before_R, held_R) / len(held)
        turnover_R += np.abs(held_R - before_R) / len(held)
        exposure_R += np.abs(held_R) / len(held)
    return Account(growth, turnover_R, exposure_R, len(held))


def _delayed(ground: Ground, policy: TargetOf, rows_R: Int, begins_R: Mask) -> Positions:
    """Return what a policy holds that sees the features of the bar before; its own where there are none."""
    before_R = np.maximum(rows_R - 1, 0)
    table = ground.table
    known_R = (table.symbol_T[before_R] == table.symbol_T[rows_R]) & np.isfinite(table.features_TF[before_R]).all(
        axis=1
    )
    seen_RF = table.features_TF[np.where(known_R, before_R, rows_R)]
    return positions_of(policy, seen_RF, begins_R, shorts=ground.shorts)


def _mean(accounts: Sequence[Account]) -> Account:
    return Account(
        {multiple: np.mean([one.growth[multiple] for one in accounts], axis=0) for multiple in accounts[0].growth},
        np.mean([one.turnover_R for one in accounts], axis=0),
        np.mean([one.exposure_R for one in accounts], axis=0),
        len(accounts),
    )


def _rivals(
    ground: Ground,
    rows: Rows,
    folds: Sequence[Fold],
    ridges: Mapping[int, Ridge],
    held_SR: NDArray[np.int8],
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, Account]:
    """Let every rival trade the rows."""
    rng = np.random.default_rng(seed)
    count = len(rows)
    momentum_PT = momentum_targets(ground.market, shorts=ground.shorts)
    drawn = [drawn_positions(count, shorts=ground.shorts, rng=rng) for _ in range(settings.draws)]
    matched = [matched_positions(held_R, rows.begins_R, rng) for held_R in held_SR for _ in range(settings.draws)]
    level_R = _levels(ground, rows, folds)
    return {
        "flat": book(ground, rows, [np.zeros(count, dtype=np.int8)]),
        "buy_and_hold": book(ground, rows, [np.ones(count, dtype=np.int8)]),
        "volatility_targeted": book(
            ground, rows, [targeted_positions(ground.volatility_T[rows.row_R], level_R, rows.begins_R)]
        ),
        "matched_random": book(ground, rows, matched),
        "momentum": book(ground, rows, [momentum_positions(momentum_PT, rows.row_R, rows.begins_R)]),
        "ridge_band": _ridge_account(ground, rows, ridges),
        "random": book(ground, rows, drawn),
    }


def _levels(ground: Ground, rows: Rows, folds: Sequence[Fold]) -> Float:
    """Return the volatility to target at each row: the median over its symbol's training rows, or over all of them."""
    level_R = np.empty(len(rows))
    for fold in folds:
        volatility = ground.volatility_T[fold.train_rows]
        symbol = ground.table.symbol_T[fold.train_rows]
        everybody = float(np.nanmedian(volatility))
        for index in range(len(ground.table.symbols)):
            own = volatility[symbol == index]
            here = (rows.fold_R == fold.number) & (rows.symbol_R == index)
            level_R[here] = float(np.nanmedian(own)) if np.isfinite(own).any() else everybody
    return level_R


def _ridge_account(ground: Ground, rows: Rows, ridges: Mapping[int, Ridge]) -> Account:
    """Book the ridge rule, whose band was fitted to each multiple of the costs."""
    features_RF, volatility_R = ground.table.features_TF[rows.row_R], ground.volatility_T[rows.row_R]
    booked = {}
    for multiple in ground.books.rewards:
        held_R = np.zeros(len(rows), dtype=np.int8)
        for number, ridge in ridges.items():
            own = np.flatnonzero(rows.fold_R == number)
            held_R[own] = ridge.positions(
                features_RF[own], volatility_R[own], rows.begins_R[own], multiple=multiple, shorts=ground.shorts
            )
        booked[multiple] = book(ground, rows, [held_R])
    at_cost = booked[1]
    growth = {multiple: account.growth[multiple] for multiple, account in booked.items()}
    return Account(growth, at_cost.turnover_R, at_cost.exposure_R, 1)
