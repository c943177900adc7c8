"""What the data side may show at a venue time: completed bars, last closes, quotes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from brokers.costs import CostModel, quantise
from brokers.domain import Bar, Quote
from brokers.series import BarSeries, from_ns
from brokers.simulated.feed import Feed

_BPS = 1e-4
_WALK_MAX = 16
"""Bars that are stepped over one by one before a binary search takes over."""


class Market:
    """Bars of a feed, cut off at a time that mostly moves forward by one bar."""

    def __init__(self, feed: Feed) -> None:
        self._series = dict(feed.series)
        self._visible: dict[str, int] = {}
        self._prices: dict[str, tuple[int, Decimal]] = {}

    def forget(self) -> None:
        """Forget how far each symbol had come: time may have gone back."""
        self._visible.clear()

    def visible(self, symbol: str, now_ns: int) -> int:
        """Return how many bars of a symbol have completed at or before `now_ns`."""
        closes = self._series[symbol].close_ns
        count = self._visible.get(symbol, 0)
        for _ in range(_WALK_MAX):
            if count == len(closes) or closes[count] > now_ns:
                break
            count += 1
        else:
            count = int(np.searchsorted(closes, now_ns, side="right"))
        self._visible[symbol] = count
        return count

    def last_price(self, symbol: str, now_ns: int) -> Decimal | None:
        """Return the last completed close as money; None before the first."""
        count = self.visible(symbol, now_ns)
        if not count:
            return None
        priced = self._prices.get(symbol)
        if priced is None or priced[0] != count:
            priced = self._prices[symbol] = (count, quantise(float(self._series[symbol].close[count - 1])))
        return priced[1]

    def previous_close(self, symbol: str, now_ns: int) -> Decimal | None:
        """Return the close before the last completed one; None where there is none."""
        count = self.visible(symbol, now_ns)
        return quantise(float(self._series[symbol].close[count - 2])) if count > 1 else None

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
        count = self.visible(symbol, now_ns)
        if not count:
            return None
        series = self._series[symbol]
        price, half = float(series.close[count - 1]), costs.half_spread_bps * _BPS
        return Quote(
            symbol=symbol,
            bid=quantise(price * (1.0 - half)),
            ask=quantise(price * (1.0 + half)),
            at=from_ns(series.close_ns[count - 1]),
        )
