"""What a feature sees: window statistics at "now", for n bars of a series or for n symbols alike.

A feature is one function of a `MarketView`. Three runners give it different views: `frame` (n bars of one
symbol), `incremental` (the last bar of n symbols), and `tracing`, which only records what a feature asks for,
so that memory is derived from the definition and cannot be declared wrongly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from strategies.features.columns import FLOOR, Float
from strategies.features.ladder import Rows, blocks

Scores = Callable[[Float, int], Float]
"""(n + window - 1 values of a column, window) to the n scores of its windows, as `robust_score` gives them."""

SESSION_WINDOW = 512
"""Bars within which the beginning of the session is looked for; a longer session counts from there."""


class MarketView(ABC):
    """Window statistics; every returned array has length n unless said otherwise."""

    def __init__(self, rows: Rows) -> None:
        """Keep the rows that the windows' summaries have."""
        self._rows = rows
        self._windows: dict[tuple[int, int], Float] = {}
        self._kept: dict[tuple[str, int, int], Float] = {}

    @abstractmethod
    def _block(self, size: int, lag: int) -> Float:
        """Return summaries (K, n) of the blocks of `size` bars that end `lag` bars ago."""

    @abstractmethod
    def clock(self, name: str) -> Float:
        """Return a clock column of the newest bar (see `features.clock`)."""

    @abstractmethod
    def signal(self, name: str, window: int) -> Float:
        """Return a user column's last `window` values, oldest first, (n, window)."""

    def score(self, name: str, window: int) -> Float:
        """Return how a user column stands against its last `window` values; see `robust_score`."""
        return robust_score(self.signal(name, window))

    def _read(self, kind: str, column: str, half_life: float, window: int, lag: int) -> Float:
        summary_Kn = self._windows.get((window, lag))
        if summary_Kn is None:
            bars = 0
            for size, block_lag in blocks(window, lag):
                block_Kn = self._block(size, block_lag)
                summary_Kn = block_Kn if summary_Kn is None else self._rows.merge(block_Kn, summary_Kn, bars)
                bars += size
            if summary_Kn is None:
                msg = f"a window of {window} bars holds nothing: give at least 1"
                raise ValueError(msg)
            self._windows[window, lag] = summary_Kn
        value_n: Float = summary_Kn[self._rows.index[kind, column, half_life]]
        return value_n

    def _keep(self, name: str, window: int, lag: int, compute: Callable[[], Float]) -> Float:
        key = (name, window, lag)
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = compute()
        return value

    def now(self, column: str, lag: int = 0) -> Float:
        """Return a base column `lag` bars ago."""
        return self._read("sum", column, 0.0, 1, lag)

    def sum(self, column: str, window: int, lag: int = 0) -> Float:
        """Return the sum over the last `window` bars."""
        return self._read("sum", column, 0.0, window, lag)

    def mean(self, column: str, window: int, lag: int = 0) -> Float:
        """Return the mean over the last `window` bars."""
        return self.sum(column, window, lag) * (1.0 / window)

    def decayed(self, column: str, half_life: float, window: int) -> Float:
        """Return the sum weighted by 2^(-age / half_life), truncated at `window` bars."""
        return self._read("decay", column, half_life, window, 0)

    def since_session(self, column: str) -> Float:
        """Return the sum since the session's first bar, at most over `SESSION_WINDOW` bars."""
        return self._read("segment", column, 0.0, SESSION_WINDOW, 0)

    def high(self, window: int) -> Float:
        """Return log(highest high / close) over the last `window` bars, >= 0."""
        return self._read("high", "", 0.0, window, 0)

    def low(self, window: int) -> Float:
        """Return log(lowest low / close) over the last `window` bars, <= 0."""
        return self._read("low", "", 0.0, window, 0)

    def above_mean(self, window: int, lag: int = 0) -> Float:
        """Return log close minus its mean over the last `window` bars, from returns alone.

        With r_j the return of age j, it is sum_j r_j (W - 1 - j) / W.
        """
        ramp = self._read("ramp", "ret", 0.0, window, lag)
        return (self.sum("ret", window, lag) * (window - 1.0) - ramp) * (1.0 / window)

    def sigma(self, window: int, lag: int = 0) -> Float:
        """Return the volatility of one bar: root mean square log return, never below `FLOOR`."""
        return self._keep("sigma", window, lag, lambda: np.sqrt(self.mean("ret2", window, lag) + FLOOR * FLOOR))

    def scale(self, window: int, bars: int) -> Float:
        """Return the volatility of `bars` bars together, from the last `window`."""
        return self.sigma(window) * math.sqrt(bars)


class TracingView(MarketView):
    """Records what features ask for; answers ones."""

    def __init__(self) -> None:
        """Start with nothing asked for."""
        super().__init__(Rows(sums=()))
        self._asked: dict[tuple[str, str, float], None] = {}
        self.windows: set[tuple[int, int]] = set()
        self.signals: dict[str, int] = {}

    def _block(self, size: int, lag: int) -> Float:
        raise AssertionError(f"a tracing view holds no rows: {size} at lag {lag} were read past `_read`")

    def _read(self, kind: str, column: str, half_life: float, window: int, lag: int) -> Float:
        self._asked[kind, column, half_life] = None
        self.windows.add((window, lag))
        return np.ones(1)

    def clock(self, name: str) -> Float:
        """Return a one."""
        del name
        return np.ones(1)

    def signal(self, name: str, window: int) -> Float:
        """Record the window; return ones."""
        self.signals[name] = max(window, self.signals.get(name, 0))
        return np.ones((1, window))

    def rows(self) -> Rows:
        """Return the rows that hold everything asked for."""
        kinds: dict[str, list[tuple[str, float]]] = {}
        for kind, column, half_life in self._asked:
            kinds.setdefault(kind, []).append((column, half_life))
        sums = {column for column, _ in kinds.get("sum", [])}
        ramps = [column for column, _ in kinds.get("ramp", [])]
        extremes = "high" in kinds or "low" in kinds
        sums.update(ramps)
        if extremes:
            sums.add("ret")
        return Rows(
            sums=tuple(sorted(sums)),
            decays=tuple(sorted(kinds.get("decay", []))),
            segments=tuple(sorted(column for column, _ in kinds.get("segment", []))),
            ramps=tuple(sorted(ramps)),
            extremes=extremes,
        )


def robust_score(values_nW: Float) -> Float:
    """Return (newest value - median) / scale of each row.

    The scale is 1.4826 times the median absolute deviation; where more than half of the values are equal,
    1.2533 times the mean absolute deviation; where all are, the score is zero.
    """
    median_n = np.median(values_nW, axis=-1)
    deviation_nW = np.abs(values_nW - median_n[:, None])
    mad_n = np.median(deviation_nW, axis=-1) * 1.4826
    scale_n = np.where(mad_n > 0.0, mad_n, np.add.reduce(deviation_nW, axis=-1) * (1.2533 / values_nW.shape[-1]))
    positive_n = scale_n > 0.0
    score_n = np.where(positive_n, (values_nW[:, -1] - median_n) / np.where(positive_n, scale_n, 1.0), 0.0)
    # a missing value must not become a score of zero
    return np.where(np.isnan(median_n), np.nan, score_n)
