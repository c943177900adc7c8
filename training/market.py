"""One market table in memory: features, and the reward of every (bar, old position, new position).

The price is exogenous for a price taker, so everything a step can pay is known before the first step: the
environments and the replay are indices into this table (Huang 2018, "Financial Trading as a Game",
arXiv 1807.02787).

Axes: T rows (all series one behind the other), F features, P old position, N new position; positions -1, 0, 1
are at index 0, 1, 2.

Reward of row t, old position p, new position n, in units of log equity:

    log[(1 + p * overnight) * (1 - |n - p| * side_fraction) * (1 + n * intrabar)]

`overnight` is the total return from the close of the bar before the fill to the fill's open, splits and
dividends included; `intrabar` the return from that open to that bar's close. Exposure is one unit of equity,
rebased at both; with `latency_bars` = k the fill is at the open of row t + k, and the reward of a decision is
the one of its own fill's bar, so one row still determines the transition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from brokers.calendar import TradingCalendar, period_to_ns
from brokers.costs import IMPACT_FRACTION_MAX, SPLIT_RATIO, CostModel, ReferenceBar
from brokers.series import BarSeries
from training.errors import TrainingError

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.int64]

RUIN_FRACTION = 0.01
"""A bar that leaves less than this share of the equity is ruin: it ends the episode and pays log(RUIN_FRACTION)."""

UNUSABLE = -1
"""`run_end_T` of a row on which nothing may be decided or observed."""

_PARKINSON = ReferenceBar.of(math.e, 1.0, 0.0).sigma
"""Sigma of a bar whose range is one in log price: the cost model's own."""


@dataclass(frozen=True, slots=True)
class MarketTable:
    """What environments and replay index into. Build it with `build_table`.

    Args:
        symbols: Names, in the order of their rows.
        observations_TG: float32 (T, F + 1): the features (rows with NaN are unusable), then a column of zeros
            where an observation carries its position, so that one copied row is almost an observation.
        reward_TPN: float64 log-equity change; NaN where no step can start.
        run_end_T: Last row of the run of usable rows that row t is in; `UNUSABLE` outside of runs. A step
            from t to t + 1 exists where t < run_end_T[t].
        symbol_T: Index into `symbols`.
        close_ns_T: Bar closes, ns since the epoch: the decision times.
        latency_bars: Bars between a decision and its fill's open.
    """

    symbols: tuple[str, ...]
    observations_TG: Float32
    reward_TPN: Float
    run_end_T: Int
    symbol_T: Int
    close_ns_T: Int
    latency_bars: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.run_end_T)

    @property
    def features_TF(self) -> Float32:
        """Return (T, F) features, a view."""
        return self.observations_TG[:, :-1]

    @property
    def n_features(self) -> int:
        """Return F."""
        return int(self.observations_TG.shape[1]) - 1

    @property
    def start_rows(self) -> Int:
        """Return the rows from which a step exists."""
        return np.flatnonzero(np.arange(len(self)) < self.run_end_T)

    def where(self, keep_T: NDArray[np.bool_]) -> MarketTable:
        """Return the table with every row outside `keep_T` made unusable; runs are cut accordingly."""
        usable_T = keep_T & (self.run_end_T != UNUSABLE)
        joined_T = np.append(self.run_end_T[:-1] > np.arange(len(self) - 1), values=False)
        return replace(self, run_end_T=_run_ends(usable_T, joined_T))

    def without_gaps(self, joined_T: NDArray[np.bool_]) -> MarketTable:
        """Return the table in which no run and no step crosses a gap.

        A step is decided at a row and paid in the bars up to its fill, `latency_bars` rows later: where any two
        neighbours of these are not joined, the step does not exist.

        Args:
            joined_T: False at the last row before each gap (`joined_bars` tells them).
        """
        steps_T = np.arange(len(self)) < self.run_end_T
        for later in range(self.latency_bars):
            steps_T[: len(self) - later] &= joined_T[later:]
        observable_T = steps_T.copy()
        observable_T[1:] |= steps_T[:-1]
        return replace(self, run_end_T=_run_ends(observable_T, steps_T))


def build_table(
    series: Mapping[str, BarSeries],
    features: Mapping[str, NDArray[np.floating]],
    costs: CostModel,
    *,
    capital_usd: float,
) -> MarketTable:
    """Build the table of all series.

    Args:
        series: Bars of each symbol.
        features: (T, F) of each symbol, aligned with its bars, NaN before warm-up.
        costs: The shared cost model; its `latency_bars` delays fills.
        capital_usd: Notional of one unit of position, for the size impact.

    Raises:
        TrainingError: No series, features that do not fit their bars, or a non-positive capital.
    """
    if not series:
        raise TrainingError("no bars to train on: the market has no symbol")
    if not capital_usd > 0:
        raise TrainingError(f"training.capital_usd is {capital_usd}: the size impact needs a positive notional")
    for symbol, bars in series.items():
        if features[symbol].shape[0] != len(bars):
            raise TrainingError(f"{symbol} has {len(bars)} bars but {features[symbol].shape[0]} rows of features")
    symbols = tuple(series)
    symbol_T = np.repeat(np.arange(len(symbols)), [len(series[s]) for s in symbols])
    observations_TG = np.zeros((len(symbol_T), features[symbols[0]].shape[1] + 1), dtype=np.float32)
    np.concatenate([features[s] for s in symbols], out=observations_TG[:, :-1], casting="same_kind")
    reward_TPN = np.concatenate([reward_table(series[s], costs, capital_usd=capital_usd) for s in symbols])
    # The last k rows of a series have no fill; the first of them can still be observed, as the end of a step.
    has_fill_T = ~np.isnan(reward_TPN[:, 1, 1])
    observable_T = has_fill_T.copy()
    observable_T[1:] |= has_fill_T[:-1] & (symbol_T[1:] == symbol_T[:-1])
    usable_T = observable_T & np.isfinite(observations_TG).all(axis=1)
    return MarketTable(
        symbols=symbols,
        observations_TG=observations_TG,
        reward_TPN=reward_TPN,
        run_end_T=_run_ends(usable_T, np.append(symbol_T[1:] == symbol_T[:-1], values=False)),
        symbol_T=symbol_T,
        close_ns_T=np.concatenate([series[s].close_ns for s in symbols]),
        latency_bars=costs.latency_bars,
    )


def reward_table(bars: BarSeries, costs: CostModel, *, capital_usd: float) -> Float:
    """Return (T, 3, 3) rewards of one series: old position by new position; NaN in rows without a fill."""
    k = costs.latency_bars
    reward_TPN = np.full((len(bars), 3, 3), np.nan)
    if len(bars) <= k:
        return reward_TPN
    overnight_t = overnight_returns(bars)[k:]
    intrabar_t = bars.close[k:] / bars.open[k:] - 1.0
    before = np.s_[k - 1 : -1]  # the bar before the fill's: size and volume in the same units, also with splits
    units_t = capital_usd / bars.close[before]
    sigma_t = np.log(bars.high[before] / bars.low[before]) * _PARKINSON
    volume_t = bars.volume[before]
    cost_tD = np.stack(
        [np.zeros_like(units_t)] + [size * side_fractions(costs, size * units_t, sigma_t, volume_t) for size in (1, 2)],
        axis=1,
    )
    for old in (-1, 0, 1):
        for new in (-1, 0, 1):
            # what is lost cannot be lost again: two losses beyond all of the equity must not multiply to a gain
            before_t = np.maximum(1.0 + old * overnight_t, 0.0)
            growth_t = before_t * np.maximum(1.0 - cost_tD[:, abs(new - old)], 0.0) * (1.0 + new * intrabar_t)
            reward_TPN[:-k, old + 1, new + 1] = np.log(np.maximum(growth_t, RUIN_FRACTION))
    return reward_TPN


def overnight_returns(bars: BarSeries) -> Float:
    """Return (T,) total returns from each previous close to the open, as the account books them.

    A split multiplies the quantity by the ratio of the factors; any other step of `adj_factor` pays
    previous close * (1 - 1 / ratio) in cash. Row 0 is NaN.
    """
    overnight_T = np.full(len(bars), np.nan)
    ratio_t = bars.adj_factor[1:] / bars.adj_factor[:-1]
    raw_t = bars.open[1:] / bars.close[:-1]
    split_t = (ratio_t >= SPLIT_RATIO) | (ratio_t <= 1.0 / SPLIT_RATIO)
    overnight_T[1:] = np.where(split_t, raw_t * ratio_t, raw_t + (1.0 - 1.0 / ratio_t)) - 1.0
    return overnight_T


def side_fractions(costs: CostModel, qty_T: Float, sigma_T: Float, volume_T: Float) -> Float:
    """Return `CostModel.side_fraction` of each row's quantity and reference bar, as one array."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share_T = np.where(volume_T > 0.0, np.abs(qty_T) / volume_T, np.inf)
    law_T = costs.impact * sigma_T * np.sqrt(np.minimum(share_T, costs.participation_cap))
    impact_T = np.minimum(law_T, IMPACT_FRACTION_MAX)
    return np.where(qty_T == 0.0, 0.0, impact_T) + costs.side_fraction(0.0, ReferenceBar(0.0, 0.0))


def joined_bars(
    bars: BarSeries, calendar: TradingCalendar, period: timedelta, *, missing_bars_max: int
) -> NDArray[np.bool_]:
    """Return (T,): True where the next bar follows with at most `missing_bars_max` bars of the calendar missing.

    A night or a holiday is no gap: the calendar expects no bars in it, and a position is held through it. Bars
    that the calendar expects and the series does not have are one. The last bar is joined to nothing.

    Raises:
        TrainingError: A negative number of bars.
    """
    if missing_bars_max < 0:
        raise TrainingError(f"missing_bars_max is {missing_bars_max}: 0 makes every missing bar a gap")
    joined_T = np.zeros(len(bars), dtype=bool)
    if len(bars) < 2:
        return joined_T
    expected = calendar.grid_ns(int(bars.close_ns[0]), int(bars.close_ns[-1]), period_to_ns(period))[2]
    missing_t = np.diff(np.searchsorted(expected, bars.close_ns, "right")) - 1
    joined_T[:-1] = missing_t <= missing_bars_max
    return joined_T


def _run_ends(usable_T: NDArray[np.bool_], joined_T: NDArray[np.bool_]) -> Int:
    """Return for each usable row the last row of its unbroken run; `joined_T` tells whether the next row follows."""
    length = len(usable_T)
    last_T = ~joined_T
    last_T[:-1] |= ~usable_T[1:]
    last_T[-1] = True
    candidate_T = np.where(last_T, np.arange(length), length)
    end_T = np.minimum.accumulate(candidate_T[::-1])[::-1]
    return np.where(usable_T, end_T, UNUSABLE)
