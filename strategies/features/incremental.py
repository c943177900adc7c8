"""Features of the newest bar, kept up bar by bar for many symbols. Axes: S symbols, F features, K summary rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from brokers.calendar import TradingCalendar
from brokers.domain import Bar
from brokers.series import BarSeries, from_ns, to_ns
from strategies.features.clock import CLOCK_COLUMNS, clock_columns
from strategies.features.columns import BarArrays, Float, base_columns, usable
from strategies.features.frame import REMEDY, check_prices, series_columns
from strategies.features.ladder import SeriesLadder, SymbolLadder
from strategies.features.spec import VOLATILITY_WINDOW, FeatureError, FeatureSpec
from strategies.features.view import MarketView

Index = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).min


class SymbolsView(MarketView):
    """The newest bar of some symbols."""

    def __init__(self, features: IncrementalFeatures, index_S: Index) -> None:
        """Look at the symbols of `index_S`."""
        super().__init__(features.spec.plan.rows)
        self._features = features
        self._index_S = index_S

    def _block(self, size: int, lag: int) -> Float:
        return self._features.ladder.block(size, lag, self._index_S)

    def clock(self, name: str) -> Float:
        """Return a clock column."""
        value_S: Float = self._features.clock_CS[CLOCK_COLUMNS.index(name), self._index_S]
        return value_S

    def signal(self, name: str, window: int) -> Float:
        """Return a user column's last values, (S, window)."""
        return self._features.recent_signals(name, window, self._index_S)


class IncrementalFeatures:
    """The live runner: bars in, newest rows out, equal to the whole-frame runner to the last digits.

    Memory is about 8 bytes * rows of a summary * bars of memory for each symbol; an append costs
    O(log memory) and `latest` does not depend on the memory at all.
    """

    def __init__(self, spec: FeatureSpec, symbols: Sequence[str], calendar: TradingCalendar, period: timedelta) -> None:
        """Reserve the state of every symbol; none has a bar yet.

        Raises:
            FeatureError: A symbol twice, or a period other than the spec's.
        """
        if len(set(symbols)) != len(symbols):
            raise FeatureError(f"symbols {list(symbols)} are not unique: name each once")
        if spec.period_s is not None and spec.period_s != period.total_seconds():
            raise FeatureError(
                f"the feature spec is for bars of {spec.period_s:g} s, these have {period.total_seconds():g} s: "
                "use bars of that period, or make a spec for this one"
            )
        count = len(symbols)
        self.spec = spec
        self.period = period
        self._calendar = calendar
        self._symbols = {symbol: place for place, symbol in enumerate(symbols)}
        self.ladder = SymbolLadder(spec.plan, count)
        self.clock_CS = np.zeros((len(CLOCK_COLUMNS), count))
        self._signals_SR = {name: np.zeros((count, window)) for name, window in spec.signal_windows.items()}
        self._bars_S = np.zeros(count, dtype=np.int64)
        self._start_ns_S = np.full(count, _NEVER, dtype=np.int64)
        self._close_ns_S = np.full(count, _NEVER, dtype=np.int64)
        self._session_S = np.zeros(count, dtype=np.int64)
        self._close_S = np.ones(count)
        self._adj_factor_S = np.ones(count)
        self._ret_S = np.zeros(count)

    @property
    def nbytes(self) -> int:
        """Bytes of state held for all symbols together."""
        arrays = [self.clock_CS, self._bars_S, self._start_ns_S, self._close_ns_S, self._session_S]
        arrays += [self._close_S, self._adj_factor_S, self._ret_S, *self._signals_SR.values()]
        return self.ladder.nbytes + sum(array.nbytes for array in arrays)

    def warm(self, series: BarSeries) -> None:
        """Replace one symbol's state by the end of a series; bars before the last `memory_bars` are not read.

        Raises:
            FeatureError: An unknown symbol, no bars, or a missing user column.
        """
        place = self._place(series.symbol)
        if not len(series):
            raise FeatureError(f"no bars to warm {series.symbol} with: load its history first")
        missing = [name for name in self._signals_SR if name not in series.signals]
        if missing:
            raise FeatureError(f"bars of {series.symbol} lack the columns {', '.join(missing)} of the feature spec")
        bars = len(series)
        series = series.slice(max(0, bars - self.spec.memory_bars), bars)
        check_prices(series)
        kept = len(series)
        session_T = self._calendar.session_ids(series.start_ns)
        last = np.array([place])
        if kept > 1:
            columns = series_columns(series, session_T)
            columns["lagged"][0] = 0.0
            plan = self.spec.plan
            padded = max(0, plan.bars - (kept - 1))
            leaves_KL = np.pad(plan.rows.leaves(columns), ((0, 0), (padded, 0)))
            self.ladder.load(place, SeriesLadder(plan, leaves_KL))
            self._ret_S[place] = columns["ret"][-1]
        for name, ring_SR in self._signals_SR.items():
            tail = series.signals[name][-ring_SR.shape[1] :]
            # bar number i lives in slot i modulo the length; the newest is number kept - 1
            ring_SR[place, np.arange(kept - len(tail), kept) % ring_SR.shape[1]] = tail
        self._bars_S[place] = kept
        self._start_ns_S[place] = series.start_ns[-1]
        self._close_ns_S[place] = series.close_ns[-1]
        self._session_S[place] = session_T[-1]
        self._close_S[place] = series.close[-1]
        self._adj_factor_S[place] = series.adj_factor[-1]
        self._set_clock(last)

    def append(self, bar: Bar) -> None:
        """Add one bar; see `append_many`."""
        self.append_many([bar])

    def append_many(self, bars: Iterable[Bar]) -> None:
        """Add bars of any symbols; those of one symbol oldest first.

        Raises:
            FeatureError: An unknown symbol, a bar not newer than the last one (warm again after a revision),
                a price that is not positive, or a bar without a user column of the spec. The first bars of the
                symbols are added together, then the second ones, and so on; the turn that fails changes nothing.
        """
        rounds: list[dict[int, Bar]] = []
        seen: dict[int, int] = {}
        for bar in bars:
            place = self._place(bar.symbol)
            turn = seen[place] = seen.get(place, -1) + 1
            if turn == len(rounds):
                rounds.append({})
            rounds[turn][place] = bar
        for together in rounds:
            self._append_round(np.fromiter(together, dtype=np.int64), list(together.values()))

    def latest(self, symbols: Sequence[str]) -> Float:
        """Return the features of each symbol's last bar, (S, F); a symbol not warm yet has a row of NaN."""
        index_S = self._places(symbols)
        out_SF = np.full((len(index_S), len(self.spec.names)), np.nan)
        warm_S = self._bars_S[index_S] >= self.spec.memory_bars
        if warm_S.any():
            for column, values in enumerate(self.spec.row(SymbolsView(self, index_S[warm_S]))):
                out_SF[warm_S, column] = values
        return out_SF

    def volatility(self, symbols: Sequence[str]) -> Float:
        """Return the volatility of one bar (log return) per symbol, (S,): what sizing and exits use; NaN until warm."""
        index_S = self._places(symbols)
        sigma_S = SymbolsView(self, index_S).sigma(VOLATILITY_WINDOW)
        return np.where(self._bars_S[index_S] < self.spec.memory_bars, np.nan, sigma_S)

    def bars_seen(self, symbol: str) -> int:
        """Return how many bars count for a symbol, at most `memory_bars` of them from `warm`."""
        return int(self._bars_S[self._place(symbol)])

    def last_start(self, symbol: str) -> datetime | None:
        """Return the start of a symbol's last bar; None before the first."""
        ns = int(self._start_ns_S[self._place(symbol)])
        return None if ns == _NEVER else from_ns(ns)

    def last_close(self, symbol: str) -> datetime | None:
        """Return the close time of a symbol's last bar; None before the first."""
        ns = int(self._close_ns_S[self._place(symbol)])
        return None if ns == _NEVER else from_ns(ns)

    def recent_signals(self, name: str, window: int, index_S: Index) -> Float:
        """Return a user column's last values of some symbols, oldest first, (S, window)."""
        ring_SR = self._signals_SR[name]
        slots_SW = (self._bars_S[index_S, None] + np.arange(-window, 0)) % ring_SR.shape[1]
        values_SW: Float = ring_SR[index_S[:, None], slots_SW]
        return values_SW

    def _place(self, symbol: str) -> int:
        try:
            return self._symbols[symbol]
        except KeyError:
            raise _unknown(symbol) from None

    def _places(self, symbols: Sequence[str]) -> Index:
        try:
            return np.fromiter((self._symbols[symbol] for symbol in symbols), dtype=np.int64, count=len(symbols))
        except KeyError as error:
            raise _unknown(error.args[0]) from error

    def _append_round(self, index_S: Index, bars: Sequence[Bar]) -> None:
        start_ns_S = np.array([to_ns(bar.start) for bar in bars], dtype=np.int64)
        for place in np.flatnonzero(start_ns_S <= self._start_ns_S[index_S]).tolist():
            bar = bars[place]
            raise FeatureError(
                f"bar {bar.start.isoformat()} of {bar.symbol} is not newer than the last one "
                f"({from_ns(self._start_ns_S[index_S[place]]).isoformat()}): warm again after a revision"
            )
        for bar in bars:
            missing = [name for name in self._signals_SR if name not in bar.signals]
            if missing:
                raise FeatureError(
                    f"bar {bar.start.isoformat()} of {bar.symbol} lacks the columns {', '.join(missing)} of the spec"
                )
        session_S = self._sessions(start_ns_S)
        prices = np.array([(b.open, b.high, b.low, b.close, b.volume, b.adj_factor) for b in bars], dtype=np.float64)
        for place in np.flatnonzero(~usable(prices)).tolist():
            raise FeatureError(f"bar {bars[place]} has a price or volume that no market has: {REMEDY}")
        open_S, high_S, low_S, close_S, volume_S, adj_factor_S = np.ascontiguousarray(prices.T)
        columns = base_columns(
            BarArrays(
                open=open_S,
                high=high_S,
                low=low_S,
                close=close_S,
                volume=volume_S,
                adj_factor=adj_factor_S,
                previous_close=self._close_S[index_S],
                previous_adj_factor=self._adj_factor_S[index_S],
                begins_session=session_S != self._session_S[index_S],
            ),
            previous_ret=self._ret_S[index_S],
        )
        for name, ring_SR in self._signals_SR.items():
            ring_SR[index_S, self._bars_S[index_S] % ring_SR.shape[1]] = [bar.signals[name] for bar in bars]
        self.ladder.push(index_S, self.spec.plan.rows.leaves(columns))
        self._ret_S[index_S] = columns["ret"]
        self._close_S[index_S] = close_S
        self._adj_factor_S[index_S] = adj_factor_S
        self._session_S[index_S] = session_S
        self._start_ns_S[index_S] = start_ns_S
        self._close_ns_S[index_S] = [to_ns(bar.close_time) for bar in bars]
        self._bars_S[index_S] += 1
        self._set_clock(index_S)

    def _sessions(self, start_ns_S: Index) -> Index:
        if (start_ns_S == start_ns_S[0]).all():
            return np.broadcast_to(self._calendar.session_ids(start_ns_S[:1]), start_ns_S.shape)
        starts, inverse = np.unique(start_ns_S, return_inverse=True)
        return self._calendar.session_ids(starts)[inverse]

    def _set_clock(self, index_S: Index) -> None:
        columns = clock_columns(self._calendar, self._session_S[index_S], self._close_ns_S[index_S])
        for row, name in enumerate(CLOCK_COLUMNS):
            self.clock_CS[row, index_S] = columns[name]


def _unknown(symbol: str) -> FeatureError:
    return FeatureError(f"no features are kept for {symbol}: name it when they are made")
