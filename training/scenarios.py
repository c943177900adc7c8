"""Other pasts that a market could have had: recorded bars drawn again, in other regimes, at another volatility.

A bar is taken apart into logarithms that do not depend on the price level: the gap from the close before it
(splits and dividends included), its high, low and close above its open, and what changed hands in quote
currency. Scenarios put such bars together in another order or scale, on the recorded times, and build prices
from them; a scenario has no splits or dividends, its prices are total-return prices.

- `stationary_bootstrap`: blocks of geometric length from random places (Politis & Romano 1994, "The Stationary
  Bootstrap"), which keeps what bars owe to the bars just before them.
- `regime_mix`: the same blocks, but calm and volatile stretches last as long as asked for.
- `rescale_volatility`: the same path with its moves stretched.

Symbols are drawn together, so that what they do together stays. `training.scenario_gate` checks each against its
source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brokers.calendar import TradingCalendar
from brokers.series import BarSeries
from training.errors import TrainingError
from training.market import Float, Int, overnight_returns

BLOCKS_MAX_BARS = 1_000_000
"""Longest series that is drawn again."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Bars that could have been, and where they came from.

    Args:
        series: By symbol, with the times of the source.
        source_row_T: Row of the source that each bar was taken from.
        regime_T: Regime of each bar, 0 the calmest; all 0 where there are no regimes.
        source_regime_T: The same of the source's rows.
    """

    series: Mapping[str, BarSeries]
    source_row_T: Int
    regime_T: Int
    source_regime_T: Int


def stationary_bootstrap(
    series: Mapping[str, BarSeries],
    *,
    expected_block_bars: float,
    seed: int,
    calendar: TradingCalendar | None = None,
) -> Scenario:
    """Draw the bars again in blocks of geometric length.

    Args:
        series: Bars of all symbols, at the same times.
        expected_block_bars: Mean length of a block: longer keeps more memory, shorter makes more variety.
        seed: Seed of the draws.
        calendar: Where it is given, a bar stands at its own place in the session (first bar for first bar): nights
            stay where nights are, and the day keeps its pattern. A block then ends where two sessions differ.

    Raises:
        TrainingError: Symbols at different times, or too few bars.
    """
    times = _common_times(series)
    place_T = _places_in_session(times, calendar)
    rows = draw_blocks(place_T, place_T, expected_block_bars, np.random.default_rng(seed))
    none = np.zeros(len(times), dtype=np.int64)
    return Scenario(_rebuilt(series, rows), rows, none, none)


def regime_mix(
    series: Mapping[str, BarSeries],
    *,
    regime_bars: Sequence[float],
    source_shares: Sequence[float],
    window_bars: int,
    expected_block_bars: float,
    seed: int,
    calendar: TradingCalendar | None = None,
) -> Scenario:
    """Draw the bars again so that regimes of volatility last as long as asked for.

    Each regime is entered as often as the others and lasts a geometric number of bars, so its share of the
    scenario is its mean length over the sum of all.

    Args:
        series: Bars of all symbols, at the same times.
        regime_bars: Mean length of each regime, calmest first; at least two.
        source_shares: Share of the source's bars that counts for each regime, calmest first.
        window_bars: Bars over which volatility is measured.
        expected_block_bars: Mean length of a block within a regime.
        seed: Seed of the draws.
        calendar: As for `stationary_bootstrap`.

    Raises:
        TrainingError: Symbols at different times, or regimes that make no sense.
    """
    if len(regime_bars) < 2 or len(regime_bars) != len(source_shares) or min(regime_bars) < 1:
        raise TrainingError(
            f"regime_bars {tuple(regime_bars)} and source_shares {tuple(source_shares)}: "
            "give two or more regimes of at least one bar, and one share for each"
        )
    times = _common_times(series)
    source_regime_T = volatility_regimes(series, shares=source_shares, window_bars=window_bars)
    rng = np.random.default_rng(seed)
    regime_T = _regime_path(len(times), regime_bars, rng)
    place_T = _places_in_session(times, calendar)
    places = int(place_T.max()) + 1
    rows = draw_blocks(source_regime_T * places + place_T, regime_T * places + place_T, expected_block_bars, rng)
    return Scenario(_rebuilt(series, rows), rows, regime_T, source_regime_T)


def rescale_volatility(series: Mapping[str, BarSeries], *, factor: float) -> Scenario:
    """Stretch every move by `factor` about the mean log return, which stays.

    Raises:
        TrainingError: A factor that is not positive.
    """
    if not 0.0 < factor < np.inf:
        raise TrainingError(f"volatility factor is {factor}: give a positive number, 1 for the source's own")
    rows = np.arange(len(next(iter(series.values()))))
    none = np.zeros(len(rows), dtype=np.int64)
    return Scenario({name: _stretched(bars, factor) for name, bars in series.items()}, rows, none, none)


def log_returns(bars: BarSeries) -> Float:
    """Return (T - 1,) total log returns from close to close."""
    return np.log1p(overnight_returns(bars)[1:]) + np.log(bars.close[1:] / bars.open[1:])


def volatility_regimes(series: Mapping[str, BarSeries], *, shares: Sequence[float], window_bars: int) -> Int:
    """Return (T,) regimes by the mean absolute return of the last `window_bars` bars, averaged over symbols.

    Each symbol's is divided by its own mean. Rows before a full window count as the first full one.

    Raises:
        TrainingError: Shares that do not add up to 1, or a window longer than the bars.
    """
    length = len(next(iter(series.values())))
    if min(shares) <= 0.0 or abs(sum(shares) - 1.0) > 1e-9:
        raise TrainingError(f"source_shares {tuple(shares)}: give positive shares that add up to 1")
    if not 1 <= window_bars < length:
        raise TrainingError(f"window_bars is {window_bars} on {length} bars: give 1 to {length - 1}")
    measured_T = np.zeros(length)
    for bars in series.values():
        moves = np.append(0.0, np.abs(log_returns(bars)))
        summed = np.cumsum(moves)
        mean_T = np.empty(length)
        mean_T[window_bars:] = (summed[window_bars:] - summed[:-window_bars]) / window_bars
        mean_T[:window_bars] = mean_T[window_bars]
        measured_T += mean_T / max(float(moves.mean()), np.finfo(np.float64).tiny)
    edges = np.quantile(measured_T, np.cumsum(shares)[:-1])
    return np.searchsorted(edges, measured_T, side="left").astype(np.int64)


def draw_blocks(source_kind_S: Int, wanted_kind_T: Int, expected_block_bars: float, rng: np.random.Generator) -> Int:
    """Return (T,) source rows: blocks of geometric length that begin at, and only hold, rows of the wanted kind.

    The source is a circle without its first row, whose gap is unknown.

    Raises:
        TrainingError: A block length below 1, or a wanted kind that the source does not have.
    """
    length = len(wanted_kind_T)
    if not expected_block_bars >= 1.0:
        raise TrainingError(f"expected_block_bars is {expected_block_bars}: a block has at least one bar")
    if len(source_kind_S) < 2 or length > BLOCKS_MAX_BARS:
        raise TrainingError(f"{len(source_kind_S)} bars: scenarios are drawn from 2 to {BLOCKS_MAX_BARS} bars")
    kinds_S = source_kind_S[1:]
    by_kind = {int(kind): np.flatnonzero(kinds_S == kind) for kind in np.unique(kinds_S)}
    if missing := sorted(set(np.unique(wanted_kind_T).tolist()) - set(by_kind)):
        raise TrainingError(f"the source has no bar of kind {missing[0]}: give more bars, or fewer kinds")
    rows = np.empty(length, dtype=np.int64)
    at = 0
    while at < length:
        candidates = by_kind[int(wanted_kind_T[at])]
        first = int(candidates[rng.integers(len(candidates))])
        bars = min(int(rng.geometric(1.0 / expected_block_bars)), length - at)
        block = (first + np.arange(bars)) % len(kinds_S)
        other = np.flatnonzero(kinds_S[block] != wanted_kind_T[at : at + bars])
        if len(other):
            block = block[: other[0]]
        rows[at : at + len(block)] = block + 1
        at += len(block)
    return rows


def _regime_path(length: int, regime_bars: Sequence[float], rng: np.random.Generator) -> Int:
    """Return (T,) regimes: each left for one of the others, after a geometric number of bars."""
    path = np.empty(length, dtype=np.int64)
    regime, at = int(rng.integers(len(regime_bars))), 0
    while at < length:
        bars = int(rng.geometric(1.0 / regime_bars[regime]))
        path[at : at + bars] = regime
        at += bars
        regime = (regime + 1 + int(rng.integers(len(regime_bars) - 1))) % len(regime_bars)
    return path


def _common_times(series: Mapping[str, BarSeries]) -> Int:
    """Return the bar starts that all symbols share."""
    if not series:
        raise TrainingError("no bars to make a scenario of: the market has no symbol")
    (first, bars), *others = series.items()
    for name, other in others:
        if not np.array_equal(other.start_ns, bars.start_ns):
            raise TrainingError(
                f"{name} and {first} do not have the same bars: make scenarios of symbols with the same times"
            )
    return bars.start_ns


def _places_in_session(start_ns: Int, calendar: TradingCalendar | None) -> Int:
    """Return (T,) how many bars of its session stand before each bar; without a calendar all places are one."""
    if calendar is None:
        return np.zeros(len(start_ns), dtype=np.int64)
    session_T = calendar.session_ids(start_ns)
    first_T = np.searchsorted(session_T, session_T, side="left")
    return np.arange(len(start_ns)) - first_T


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Bars taken apart, (T,) each: log gap before, log high, low and close over the open, turnover, signals."""

    gap_T: Float
    high_T: Float
    low_T: Float
    close_T: Float
    turnover_T: Float
    signals: Mapping[str, Float]

    @classmethod
    def of(cls, bars: BarSeries) -> _Shapes:
        """Take bars apart; the first has no gap."""
        high_T, low_T, close_T = (np.log(column / bars.open) for column in (bars.high, bars.low, bars.close))
        gap_T = np.append(0.0, np.log1p(overnight_returns(bars)[1:]))
        return cls(gap_T, high_T, low_T, close_T, bars.volume * bars.close, bars.signals)

    def bars(self, source: BarSeries) -> BarSeries:
        """Put bars together on the source's times, from its first open on."""
        log_close_T = np.cumsum(np.append(0.0, self.gap_T[1:]) + self.close_T)
        opened = source.open[0] * np.exp(log_close_T - self.close_T)
        closed = source.open[0] * np.exp(log_close_T)
        # rounding must not leave a bar's ends outside of its range
        high = np.maximum(opened * np.exp(self.high_T), np.maximum(opened, closed))
        low = np.minimum(opened * np.exp(self.low_T), np.minimum(opened, closed))
        return BarSeries(
            symbol=source.symbol,
            start_ns=source.start_ns,
            close_ns=source.close_ns,
            open_ns=source.open_ns,
            open=opened,
            high=high,
            low=low,
            close=closed,
            volume=self.turnover_T / closed,
            adj_factor=np.ones(len(closed)),
            signals=self.signals,
        )


def rearranged(bars: BarSeries, rows: Int) -> BarSeries:
    """Return a series that moves as the bars `rows` did, one after another, on the times of `bars`."""
    of = _Shapes.of(bars)
    signals = {signal: column[rows] for signal, column in of.signals.items()}
    again = _Shapes(of.gap_T[rows], of.high_T[rows], of.low_T[rows], of.close_T[rows], of.turnover_T[rows], signals)
    return again.bars(bars)


def _rebuilt(series: Mapping[str, BarSeries], rows: Int) -> dict[str, BarSeries]:
    """Return every symbol with the bars `rows` of the source."""
    return {name: rearranged(bars, rows) for name, bars in series.items()}


def _stretched(bars: BarSeries, factor: float) -> BarSeries:
    """Return the bars with every logarithm times `factor`, and the mean log return as it was."""
    of = _Shapes.of(bars)
    drift = float(log_returns(bars).mean()) if len(bars) > 1 else 0.0
    gap_T = factor * of.gap_T + (1.0 - factor) * drift
    stretched = _Shapes(
        gap_T, factor * of.high_T, factor * of.low_T, factor * of.close_T, of.turnover_T, dict(of.signals)
    )
    return stretched.bars(bars)
