"""Walk-forward folds: train on the past, test on what follows, and let no bar be in both.

A test window is a span of closes, the same for all symbols. Between the last bar that pays a training decision and
the first bar that a test feature looks at lie exactly `embargo_bars` bars of the symbol:

    training rows            purged rows                              test rows
    ... t | t+1 .. t+latency | embargo | memory - 1 bars of features  i ...

(López de Prado 2018, "Advances in Financial Machine Learning", section 7.4, with the training side cut back instead
of the test side, so that test windows follow one another without holes.)

Axes: T rows of the whole table, N rows of a cut one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from brokers.series import from_ns
from training.errors import TrainingError
from training.evaluation.settings import EvaluationSettings
from training.market import Int, MarketTable
from training.validation import ROWS_MIN


@dataclass(frozen=True, slots=True)
class Fold:
    """One training window and the test window after it.

    Args:
        number: From 1.
        train_rows: Rows of the whole table from which training steps start.
        test_rows: Rows of the whole table that are scored, all symbols, oldest first within each.
        train_begin_ns: Training decisions are at this close or later.
        test_begin_ns: First close of the test window.
        test_end_ns: Close after the last of the test window.
    """

    number: int
    train_rows: Int
    test_rows: Int
    train_begin_ns: int
    test_begin_ns: int
    test_end_ns: int

    def describe(self, table: MarketTable) -> dict[str, Any]:
        """Return both spans, for a manifest."""
        found: dict[str, Any] = {"fold": self.number}
        for name, rows in (("train", self.train_rows), ("test", self.test_rows)):
            closes = table.close_ns_T[rows]
            steps = np.bincount(table.symbol_T[rows], minlength=len(table.symbols))
            found[name] = {
                "first_close": from_ns(int(closes.min())).isoformat(),
                "last_close": from_ns(int(closes.max())).isoformat(),
                "steps": len(rows),
                "by_symbol": dict(zip(table.symbols, steps.tolist(), strict=True)),
            }
        return found


def walk_forward(table: MarketTable, settings: EvaluationSettings, *, memory_bars: int) -> tuple[Fold, ...]:
    """Return the folds, oldest first.

    Args:
        table: All rows.
        settings: Number and kind of windows.
        memory_bars: Bars that one row of features looks at, its own included.

    Raises:
        TrainingError: A window with too few rows.
    """
    closes = np.unique(table.close_ns_T[table.start_rows])
    if len(closes) == 0:
        raise TrainingError(f"no bar has complete features: they need {memory_bars} bars, give more")
    first = int(len(closes) * settings.train_share)
    edges = np.linspace(first, len(closes), settings.folds + 1).astype(int)
    past_the_end = int(closes[-1]) + 1
    folds = []
    for number, (begin, end) in enumerate(pairwise(edges.tolist()), start=1):
        train_begin = begin - first if settings.window == "rolling" else 0
        train_begin_ns, test_begin_ns = int(closes[train_begin]), int(closes[min(begin, len(closes) - 1)])
        test_end_ns = int(closes[end]) if end < len(closes) else past_the_end
        starts = table.start_rows
        close_S = table.close_ns_T[starts]
        fold = Fold(
            number=number,
            train_rows=_before_purge(table, starts, train_begin_ns, test_begin_ns, memory_bars + settings.embargo_bars),
            test_rows=starts[(close_S >= test_begin_ns) & (close_S < test_end_ns)],
            train_begin_ns=train_begin_ns,
            test_begin_ns=test_begin_ns,
            test_end_ns=test_end_ns,
        )
        _check(fold, memory_bars, settings)
        folds.append(fold)
    return tuple(folds)


def _before_purge(table: MarketTable, starts: Int, begin_ns: int, test_begin_ns: int, distance_bars: int) -> Int:
    """Return the start rows from `begin_ns` on that lie far enough before each symbol's first bar of the test."""
    kept = []
    for symbol in range(len(table.symbols)):
        rows = np.flatnonzero(table.symbol_T == symbol)
        if not len(rows):
            continue
        first_test = int(rows[0] + np.searchsorted(table.close_ns_T[rows], test_begin_ns))
        own = starts[(starts >= rows[0]) & (starts <= rows[-1])]
        last_train = first_test - distance_bars - table.latency_bars
        kept.append(own[(own <= last_train) & (table.close_ns_T[own] >= begin_ns)])
    return np.concatenate(kept)


def _check(fold: Fold, memory_bars: int, settings: EvaluationSettings) -> None:
    for name, rows in (("training", fold.train_rows), ("test", fold.test_rows)):
        if len(rows) < ROWS_MIN:
            raise TrainingError(
                f"fold {fold.number} has {len(rows)} bars for {name} around {from_ns(fold.test_begin_ns)}, with "
                f"{memory_bars} bars of features' memory and {settings.embargo_bars} of embargo left out; at least "
                f"{ROWS_MIN} are needed: give more bars, fewer evaluation.folds, or another evaluation.train_share"
            )


def cut(table: MarketTable, starts: Int) -> MarketTable:
    """Return a table that holds nothing but the steps from `starts`: their rows and the rows that they end in.

    What a learner is given cannot be looked beyond: rows outside are not in memory, and the reward of a row that
    starts no step, which later bars pay, is NaN.
    """
    steps_T = np.zeros(len(table), dtype=np.bool_)
    steps_T[starts] = True
    keep_T = steps_T.copy()
    keep_T[starts + 1] = True
    rows = np.flatnonzero(keep_T)
    steps_N = steps_T[rows]
    last_N = np.where(steps_N, len(rows), np.arange(len(rows)))
    reward_NPN = table.reward_TPN[rows]
    reward_NPN[~steps_N] = np.nan
    return replace(
        table,
        observations_TG=table.observations_TG[rows],
        reward_TPN=reward_NPN,
        run_end_T=np.minimum.accumulate(last_N[::-1])[::-1],
        symbol_T=table.symbol_T[rows],
        close_ns_T=table.close_ns_T[rows],
    )
