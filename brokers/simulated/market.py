"""What the data side may show at a venue time: completed bars, last closes, quotes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from brokers.costs import PRICE_QUANTUM, CostModel, quantise, split_ratios
from brokers.domain import Bar, Quote
from brokers.series import BarSeries, from_ns
from brokers.simulated.feed import Feed, Timeline

_BPS = 1e-4
_WALK_MAX = 16
"""Bars that are stepped over one by one before a binary search takes over."""


class Market:
    """Bars of a feed, cut off at a time that mostly moves forward by one bar.

    From the open of a split's bar to its close, held quantities are new and the last close is old: prices are then
    brought to the new units.
    """

    def __init__(self, feed: Feed, timeline: Timeline) -> None:
        self._series = dict(feed.series)
        self._opens_ns = dict(zip(feed.symbols, timeline.opens_ns, strict=True))
        self._splits = {symbol: split_ratios(feed.series[symbol].adj_factor) for symbol in feed.symbols}
        self._visible: dict[str, int] = {}
        self._prices: dict[str, tuple[int, Decimal]] = {}
        self._last: dict[str, tuple[int, Decimal]] = {}

    def forget(self) -> None:
        """Forget how far each symbol had come: time may have gone back."""
        self._visible.clear()
        self._last.clear()

    def visible(self, symbol: str, now_ns: int) -> int:
        """Return how many bars of a symbol have completed at or before `now_ns`."""
        closes = self._series[symbol].close_ns
        count, total = self._visible.get(symbol, 0), len(closes)
        if count < total and closes.item(count) <= now_ns:  # mostly by one bar, or by many
            count += 1
            if count < total and closes.item(count) <= now_ns:
                count += int(closes[count:].searchsorted(now_ns, side="right"))
            self._visible[symbol] = count
        return count

    def last_price(self, symbol: str, now_ns: int) -> Decimal | None:
        """Return the last completed close as money; None before the first."""
        last = self._last.get(symbol)
        if last is not None and last[0] == now_ns:  # asked for several times at one instant
            return last[1]
        count = self.visible(symbol, now_ns)
        if not count:
            return None
        priced = self._prices.get(symbol)
        if priced is None or priced[0] != count:
            priced = self._prices[symbol] = (count, quantise(float(self._series[symbol].close[count - 1])))
        price = self._in_units_of(symbol, count, priced[1], now_ns)
        self._last[symbol] = (now_ns, price)
        return price

    def previous_close(self, symbol: str, now_ns: int) -> Decimal | None:
        """Return the close before the last completed one; None where there is none."""
        count = self.visible(symbol, now_ns)
        if count < 2:
            return None
        price = quantise(float(self._series[symbol].close[count - 2]))
        return self._in_units_of(symbol, count, self._in_units_of(symbol, count - 1, price, now_ns), now_ns)

    def _in_units_of(self, symbol: str, bar: int, price: Decimal, now_ns: int) -> Decimal:
        """Return a price from before a bar in the units of that bar, if it has opened with a split."""
        ratio = self._splits[symbol].get(bar)
        if ratio is None or self._opens_ns[symbol][bar] > now_ns:
            return price
        return (price / ratio).quantize(PRICE_QUANTUM)

    def bars(self, symbol: str, start_ns: int, end_ns: int, now_ns: int) -> list[Bar]:
        """Return completed bars with start <= bar.start < end, oldest first."""
        series = self._series[symbol]
        first, last = self.span(series, start_ns, end_ns, self.visible(symbol, now_ns))
        return [series.bar(index) for index in range(first, last)]

    def completed(self, symbol: str, start_ns: int, end_ns: int, now_ns: int) -> BarSeries:
        """Return completed bars with start <= bar.start < end as columns."""
        series = self._series[symbol]
        return series.slice(*self.span(series, start_ns, end_ns, self.visible(symbol, now_ns)))

    @staticmethod
    def span(series: BarSeries, start_ns: int, end_ns: int, visible: int) -> tuple[int, int]:
        """Return (first, last) bar indices with start <= bar.start < end among the first `visible`, last exclusive."""
        starts = series.start_ns
        last = visible
        if last and starts[last - 1] >= end_ns:
            last = int(np.searchsorted(starts[:visible], end_ns, side="left"))
        first = last
        for _ in range(_WALK_MAX):
            if not first or starts[first - 1] < start_ns:
                return first, last
            first -= 1
        return int(np.searchsorted(starts[:last], start_ns, side="left")), last

    def quote(self, symbol: str, now_ns: int, costs: CostModel) -> Quote | None:
        """Return last close minus and plus the half-spread, as of that close; None before the first close."""
        last = self.last_price(symbol, now_ns)
        if last is None:
            return None
        price, half = float(last), costs.half_spread_bps * _BPS
        return Quote(
            symbol=symbol,
            bid=quantise(price * (1.0 - half)),
            ask=quantise(price * (1.0 + half)),
            at=from_ns(self._series[symbol].close_ns[self.visible(symbol, now_ns) - 1]),
        )
