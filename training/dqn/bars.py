"""The market table as tensors: normalised features, and what every position earns and every change costs.

Away from ruin a reward is a sum: R[t, p, n] = A[t, p] + C[t, |n - p|] + B[t, n], the growth of the old position
overnight, the log cost of the change, the growth of the new position after the open. Only C ties the old position to
the new one, and it is known when a decision is made: so a network has to learn one value per target.

Axes: T rows, F features, N positions that may be held ((0, 1), with shorts (-1, 0, 1)), S sides traded (0, 1, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.dqn.relevance import Moments
from training.errors import TrainingError
from training.market import Float, Int, MarketTable

DEVIATION_MIN = 1e-6
"""A feature that does not move is divided by this, and stays near zero."""
STATISTICS_ROWS = 200_000
"""Rows from which means and deviations are taken; of longer tables, evenly spread ones."""

MOMENT_ROWS = 50_000
"""Rows whose moments are taken at once."""

FLAT, LONG, SHORT = 1, 2, 0


@dataclass(frozen=True, slots=True)
class Parts:
    """A reward table taken apart, in log equity.

    Args:
        overnight_TN: A, float64.
        intrabar_TN: B.
        cost_TS: C by sides traded; zero, then negative.
    """

    overnight_TN: Float
    intrabar_TN: Float
    cost_TS: Float


def positions(*, shorts: bool) -> tuple[int, ...]:
    """Return the positions that may be held, in the order of every axis N."""
    return (-1, 0, 1) if shorts else (0, 1)


def parts(reward_TPN: Float, *, shorts: bool) -> Parts:
    """Take rewards apart; rows without a step stay NaN."""
    flat_long, long_flat, long = (reward_TPN[:, i, k] for i, k in ((FLAT, LONG), (LONG, FLAT), (LONG, LONG)))
    nothing = np.where(np.isnan(long), np.nan, 0.0)
    overnight, intrabar = [nothing, (long + long_flat - flat_long) / 2], [nothing, (long + flat_long - long_flat) / 2]
    costs = [nothing, (flat_long + long_flat - long) / 2]
    if shorts:
        flat_short, short_flat, short = (reward_TPN[:, i, k] for i, k in ((FLAT, SHORT), (SHORT, FLAT), (SHORT, SHORT)))
        overnight.insert(0, (short + short_flat - flat_short) / 2)
        intrabar.insert(0, (short + flat_short - short_flat) / 2)
        costs.append(reward_TPN[:, SHORT, LONG] - overnight[0] - intrabar[2])
    return Parts(np.stack(overnight, axis=1), np.stack(intrabar, axis=1), np.stack(costs, axis=1))


def learnable_rows(table: MarketTable, steps: int = 1) -> Int:
    """Return the rows t that decide, with `steps` more deciding rows right behind them."""
    rows = table.start_rows
    return rows[rows + steps < table.run_end_T[rows]]


class Bars:
    """What networks learn from, on one device; in the learner's unit.

    Args:
        table: The market.
        train_rows: Rows that anything may be learned from: they give means, deviations and the unit.
        shorts: Whether -1 may be held.
        reward_scale: Learner's reward per log equity; None: 1 over the deviation of a long position's bar.
        input_clip: Largest absolute normalised value; None: inputs as they are.
        device: Where the tensors live.

    Raises:
        TrainingError: No rows, or prices that never move.
    """

    def __init__(
        self,
        table: MarketTable,
        train_rows: Int,
        *,
        shorts: bool,
        reward_scale: float | None,
        input_clip: float | None,
        device: str = "cpu",
    ) -> None:
        if len(train_rows) == 0:
            raise TrainingError("no bar with complete features is followed by two more: give more bars")
        self.table = table
        self.positions = positions(shorts=shorts)
        self.device = device
        taken = parts(table.reward_TPN, shorts=shorts)
        long = taken.intrabar_TN[train_rows, -1] + taken.overnight_TN[train_rows, -1]
        deviation = float(long.std())
        if reward_scale is None and not deviation > 0.0:
            raise TrainingError("the training bars' prices never move: there is nothing to learn from")
        self.reward_scale = reward_scale if reward_scale is not None else 1.0 / deviation
        some = train_rows[np.linspace(0, len(train_rows) - 1, min(len(train_rows), STATISTICS_ROWS)).astype(np.int64)]
        sample = table.features_TF[some]
        clipped = input_clip is not None
        mean_F = sample.mean(axis=0, dtype=np.float64) if clipped else np.zeros(table.n_features)
        deviation_F = sample.std(axis=0, dtype=np.float64) if clipped else np.ones(table.n_features)
        self.input_clip = np.float32(input_clip if input_clip is not None else np.finfo(np.float32).max).item()
        self.mean_F = torch.from_numpy(mean_F.astype(np.float32)).to(device)
        self.deviation_F = torch.from_numpy(np.maximum(deviation_F, DEVIATION_MIN).astype(np.float32)).to(device)
        self._features_TG = torch.from_numpy(table.observations_TG).to(device)
        self.overnight_TN = self._rewards(taken.overnight_TN)
        self.intrabar_TN = self._rewards(taken.intrabar_TN)
        self.cost_TS = self._rewards(taken.cost_TS)
        count = len(self.positions)
        self.sides_NN = torch.tensor(np.abs(np.subtract.outer(range(count), range(count))), device=device)
        # what every decision reckons with: the mean log cost of so many sides
        self.expected_cost_S = self._rewards(taken.cost_TS[train_rows].mean(axis=0))
        self.expected_cost_NN = self.expected_cost_S[self.sides_NN]

    def moments(self, rows: Int) -> Moments:
        """Return the moments of the columns with the growth of the next bar, long."""
        found = Moments.none(self.table.n_features)
        for begin in range(0, len(rows), MOMENT_ROWS):
            row_R = torch.from_numpy(rows[begin : begin + MOMENT_ROWS]).to(self.device)
            growth_R = self.intrabar_TN[row_R, -1] + self.overnight_TN[row_R + 1, -1]
            found = found + Moments.of(self.observe(row_R).double().cpu().numpy(), growth_R.double().cpu().numpy())
        return found

    def _rewards(self, value: Float) -> Tensor:
        # rows without a step stay NaN: whoever learned from one would see it at once
        return torch.from_numpy((value * self.reward_scale).astype(np.float32)).to(self.device)

    def observe(self, row_EB: Tensor) -> Tensor:
        """Return (E, B, F) normalised features."""
        return self.normalised(self._features_TG[row_EB][..., :-1])

    def normalised(self, features: Tensor) -> Tensor:
        """Return features in deviations from their mean, clipped."""
        return ((features - self.mean_F) / self.deviation_F).clamp(-self.input_clip, self.input_clip)

    def cost(self, row_EB: Tensor) -> Tensor:
        """Return (E, B, N, N): what going from each position to each really cost at the fill of each row."""
        return self.cost_TS[row_EB][..., self.sides_NN]


def blocks_in_time(table: MarketTable, rows: Int, count: int) -> Sequence[Int]:
    """Cut rows into blocks of time, all symbols at once, about equally many rows each."""
    closes = table.close_ns_T[rows]
    bounds = np.quantile(closes, np.linspace(0.0, 1.0, count + 1)[1:-1], method="lower")
    block = np.searchsorted(bounds, closes, side="left")
    return [rows[block == place] for place in range(count)]


def earliest(table: MarketTable, rows: Int, count: int) -> Int:
    """Return the rows of the earliest closes, of all symbols alike: at least `count`, where there are so many."""
    return rows[_first_closes(table.close_ns_T[rows], count)]


def latest(table: MarketTable, rows: Int, count: int) -> Int:
    """Return the rows of the latest closes, of all symbols alike: at least `count`, where there are so many."""
    return rows[_first_closes(-table.close_ns_T[rows], count)]


def _first_closes(close_R: Int, count: int) -> NDArray[np.bool_]:
    if len(close_R) <= count:
        return np.ones(len(close_R), dtype=np.bool_)
    within_R: NDArray[np.bool_] = close_R <= np.partition(close_R, count - 1)[count - 1]
    return within_R


def left_out(table: MarketTable, rows: Int, block: Int, embargo_bars: int) -> Int:
    """Return `rows` without a block of time, and without those within `embargo_bars` rows of it."""
    near_T = np.zeros(len(table), dtype=bool)
    for symbol in np.unique(table.symbol_T[block]):
        own = block[table.symbol_T[block] == symbol]
        of_symbol = np.flatnonzero(table.symbol_T == symbol)
        first = max(int(own.min()) - embargo_bars, int(of_symbol[0]))
        near_T[first : min(int(own.max()) + embargo_bars, int(of_symbol[-1])) + 1] = True
    return rows[~near_T[rows]]
