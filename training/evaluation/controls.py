"""Three controls that must find nothing: each would ring where the future leaked into a decision.

- *Shuffled returns*: the bars are put into another order, features are computed again, the last fold is trained and
  scored there. The order was drawn, so no past tells anything of the next bar: timing that gains has seen it.
- *One-bar lag*: the same policies see every feature a bar later. What was known a bar earlier cannot serve better
  than what is known now, unless features and rewards stand beside each other wrongly.
- *Truncated features*: computed on a prefix of the bars, features must equal those of the whole to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from brokers.series import BarSeries
from training.evaluation.bootstrap import intervals
from training.evaluation.folds import cut, walk_forward
from training.evaluation.ground import Ground, positions_of, prepare
from training.evaluation.play import Played, Rows, book, scored_rows
from training.evaluation.settings import EvaluationSettings
from training.evaluation.trainers import Trainer
from training.market import Float
from training.scenarios import rearranged
from training.settings import TrainingConfiguration

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Control:
    """One control and what it found.

    Args:
        name: Of the control.
        passed: False where a leak was found.
        number: What was measured.
        says: The number in words, with its bound.
    """

    name: str
    passed: bool
    number: float
    says: str


def shuffled_returns(
    ground: Ground,
    configuration: TrainingConfiguration,
    trainer: Trainer,
    settings: EvaluationSettings,
    *,
    seed: int,
) -> Control:
    """Train and score the last fold on bars in a drawn order; see the module.

    The number is the mean over its standard error of what timing gains before costs: position less its mean, times
    return less its mean, per close over all symbols. Drawn returns are independent, so it is standard normal.

    Raises:
        TrainingError: Too few bars.
    """
    market = replace(ground.market, series=shuffled(ground.market.series, settings.shuffle_block_bars, seed))
    there = prepare(
        market,
        configuration,
        memory_bars=ground.memory_bars,
        features_of=ground.features_of,
        shorts=ground.shorts,
    )
    last = walk_forward(there.table, settings, memory_bars=ground.memory_bars)[-1]
    policy = trainer(cut(there.table, last.train_rows), configuration.training, seed)
    rows = scored_rows(there, (last,))
    held_R = positions_of(policy, there.table.features_TF[rows.row_R], rows.begins_R, shorts=ground.shorts)
    gain_R = np.zeros(len(rows))
    for symbol in range(len(there.table.symbols)):
        own = rows.symbol_R == symbol
        if own.any():
            return_R = there.books.position_gain(rows.row_R[own], 1)
            gain_R[own] = (held_R[own] - held_R[own].mean()) * (return_R - return_R.mean())
    gain_C = _per_close(gain_R, rows)
    spread = float(gain_C.std(ddof=1))
    number = float(gain_C.mean()) / spread * math.sqrt(len(gain_C)) if spread > 1e-15 else 0.0
    bound = _NORMAL.inv_cdf(1.0 - settings.alarm)
    return Control(
        "shuffled returns",
        number <= bound,
        number,
        f"timing on bars in drawn order gains {number:+.2f} standard errors, at most {bound:.2f} is chance",
    )


def shuffled(series: Mapping[str, BarSeries], block_bars: int, seed: int) -> dict[str, BarSeries]:
    """Return the bars in a drawn order of blocks; symbols with as many bars are drawn alike, and stay together.

    A bar keeps its gap before, its range and its volume in quote currency; prices are built from them again. The
    first bar, whose gap is not known, stays.
    """
    found = {}
    for name, bars in series.items():
        rng = np.random.default_rng((seed, len(bars)))
        blocks = np.array_split(np.arange(1, len(bars)), max(1, (len(bars) - 1) // block_bars))
        order = np.concatenate([np.arange(1), *(blocks[place] for place in rng.permutation(len(blocks)))])
        found[name] = rearranged(bars, order)
    return found


def one_bar_lag(ground: Ground, played: Played, settings: EvaluationSettings, *, seed: int) -> Control:
    """Compare the first seed's policies with themselves on features a bar old; see the module.

    The number is the gain of the delay after costs, basis points per bar. It is a leak where the interval of the gain
    lies above zero and so does that of the delayed policies' own return: a policy that only loses less, by trading
    otherwise, has not seen the future.
    """
    delayed_R = book(ground, played.rows, [played.lagged_R]).growth[1]
    own_R = played.by_seed[0].growth[1]
    value_2C = np.stack([_per_close(delayed_R - own_R, played.rows), _per_close(delayed_R, played.rows)])
    (gain, earned), _ = intervals(
        value_2C, resamples=settings.resamples, confidence=1.0 - 2.0 * settings.alarm, seed=seed
    )
    return Control(
        "one-bar lag",
        not (gain.low > 0.0 and earned.low > 0.0),
        gain.mean * 1e4,
        f"features a bar old change the mean by {gain.mean * 1e4:+.3f} bp per bar "
        f"({gain.low * 1e4:+.3f} to {gain.high * 1e4:+.3f}), to {earned.mean * 1e4:+.3f}",
    )


def truncated_features(ground: Ground, settings: EvaluationSettings, *, seed: int) -> Control:
    """Compute the features of drawn prefixes again and compare every bit that a policy sees; see the module.

    The number is the count of values that differ.
    """
    rng = np.random.default_rng(seed)
    differing, compared, where = 0, 0, ""
    begin = 0
    for symbol, bars in ground.market.series.items():
        whole_TF = ground.table.features_TF[begin : begin + len(bars)]
        begin += len(bars)
        first = min(ground.memory_bars, len(bars) - 1)
        for end in rng.integers(first, len(bars), size=settings.cuts).tolist():
            prefix_TF = ground.features_of(bars.slice(0, end)).astype(np.float32)
            same_TF = (prefix_TF == whole_TF[:end]) | (np.isnan(prefix_TF) & np.isnan(whole_TF[:end]))
            wrong = int((~same_TF).sum())
            compared += same_TF.size
            differing += wrong
            if wrong and not where:
                where = f"; first: {symbol}, cut at bar {end}, row {int(np.flatnonzero(~same_TF.all(axis=1))[0])}"
    return Control(
        "truncated features",
        differing == 0,
        float(differing),
        f"{differing} of {compared} values differ when later bars are cut off{where}",
    )


def _per_close(value_R: Float, rows: Rows) -> Float:
    """Return the mean over the symbols at each close, (C,)."""
    count_C = np.bincount(rows.tick_R, minlength=rows.n_ticks)
    return np.bincount(rows.tick_R, weights=value_R, minlength=rows.n_ticks) / count_C
