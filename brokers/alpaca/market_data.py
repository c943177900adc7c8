"""Bars and quotes over REST, page by page, with the calendar's closes.

Only completed bars leave this module: a bar whose close lies after venue time is still forming, and Alpaca
returns it all the same. Bars outside the sessions of the instrument's calendar are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from brokers.alpaca import convert
from brokers.alpaca.client import AlpacaClient
from brokers.calendar import calendar, period_to_ns
from brokers.domain import NO_SIGNALS, AssetClass, Bar, Instrument, Quote, UnavailableError
from brokers.series import from_ns, to_ns

_SYMBOLS_PER_REQUEST = 100
_BARS_PER_PAGE = 10_000
_DAY = timedelta(days=1)
_NEW_YORK = ZoneInfo("America/New_York")
_PATHS = {
    AssetClass.EQUITY: ("v2", "/stocks/bars", "/stocks/quotes/latest"),
    AssetClass.CRYPTO: ("v1beta3", "/crypto/us/bars", "/crypto/us/latest/quotes"),
}

_Raw = dict[str, list[Mapping[str, Any]]]


class AlpacaMarketData:
    """The data side of one venue.

    Args:
        client: Asks.
        now: Venue time; decides which bars are complete.
    """

    def __init__(self, client: AlpacaClient, now: Callable[[], datetime]) -> None:
        self._client = client
        self._now = now
        self._native = client.settings.kind == "exchange"

    async def bars(
        self, instruments: Sequence[Instrument], period: timedelta, start: datetime, end: datetime
    ) -> dict[str, Sequence[Bar]]:
        """Return completed bars with start <= bar.start < end, oldest first, a key for every instrument.

        Raises:
            UnavailableError: Any page is missing or not understood.
        """
        found: dict[str, Sequence[Bar]] = {}
        for asset_class, group in _grouped(instruments):
            shifted = not self._native and asset_class is AssetClass.EQUITY and period >= _DAY
            params = {
                "timeframe": convert.timeframe(period),
                "start": convert.stamp(start),
                "end": convert.stamp(end + _DAY if shifted else end),
                "limit": _BARS_PER_PAGE,
                "sort": "asc",
            }
            if asset_class is AssetClass.EQUITY:
                params |= {"adjustment": "raw", "feed": self._client.settings.feed}
            raw = await self._pages(asset_class, group, params)
            factors = await self._factors(asset_class, group, params, raw)
            for each in group:
                try:
                    found[each.symbol] = self._convert(
                        each, raw.get(each.symbol, []), factors.get(each.symbol), period, start, end, shifted=shifted
                    )
                except (convert.WireError, KeyError, TypeError, ValueError) as error:
                    raise UnavailableError(f"bars of {each.symbol} are not usable: {error!r}") from error
        return found

    async def quotes(self, instruments: Sequence[Instrument]) -> dict[str, Quote]:
        """Return the latest two-sided quote of each instrument that has one.

        Raises:
            UnavailableError: The answer is missing or not understood.
        """
        found: dict[str, Quote] = {}
        for asset_class, group in _grouped(instruments):
            version, _, path = _PATHS[asset_class]
            params: dict[str, Any] = {"symbols": ",".join(each.symbol for each in group)}
            if asset_class is AssetClass.EQUITY:
                params["feed"] = self._client.settings.feed
            answer = await self._client.ask(path, params, version=version, market=True)
            try:
                content = convert.mapping(convert.mapping(answer).get("quotes"))
                for each in group:
                    if each.symbol in content:
                        quote = convert.quote(each.symbol, convert.mapping(content[each.symbol]))
                        if quote is not None:
                            found[each.symbol] = quote
            except convert.WireError as error:
                raise UnavailableError(f"GET {path} is not usable: {error}") from error
        return found

    async def _pages(self, asset_class: AssetClass, group: Sequence[Instrument], params: Mapping[str, Any]) -> _Raw:
        version, path, _ = _PATHS[asset_class]
        names = [each.symbol for each in group]
        collected: _Raw = {}
        for first in range(0, len(names), _SYMBOLS_PER_REQUEST):
            query = dict(params) | {"symbols": ",".join(names[first : first + _SYMBOLS_PER_REQUEST])}
            for _ in range(self._client.settings.pages_max):
                answer = await self._client.ask(path, query, version=version, market=True)
                try:
                    page = convert.mapping(answer)
                    for symbol, bars in convert.mapping(page.get("bars") or {}).items():
                        collected.setdefault(symbol, []).extend(convert.mapping(bar) for bar in convert.listing(bars))
                except convert.WireError as error:
                    raise UnavailableError(f"GET {path} is not usable: {error}") from error
                token = page.get("next_page_token")
                if not token:
                    break
                query["page_token"] = token
            else:
                raise UnavailableError(
                    f"GET {path} has more than {self._client.settings.pages_max} pages: ask for fewer bars at once"
                )
        return collected

    async def _factors(
        self, asset_class: AssetClass, group: Sequence[Instrument], params: Mapping[str, Any], raw: _Raw
    ) -> Mapping[str, Mapping[str, float]]:
        """Return adjusted over raw close by symbol and bar start; empty where prices need no adjustment."""
        if self._native or asset_class is not AssetClass.EQUITY or not any(raw.values()):
            return {}
        adjusted = await self._pages(asset_class, group, dict(params) | {"adjustment": "all"})
        factors: dict[str, dict[str, float]] = {}
        for symbol, bars in raw.items():
            closes = {bar.get("t"): bar.get("c") for bar in adjusted.get(symbol, [])}
            for bar in bars:
                close = closes.get(bar.get("t"))
                if not isinstance(close, int | float) or not bar.get("c"):
                    raise UnavailableError(f"{symbol} has a raw bar at {bar.get('t')!r} without its adjusted one")
                factors.setdefault(symbol, {})[str(bar["t"])] = close / bar["c"]
        return factors

    def _convert(
        self,
        instrument: Instrument,
        raw: Sequence[Mapping[str, Any]],
        factors: Mapping[str, float] | None,
        period: timedelta,
        start: datetime,
        end: datetime,
        *,
        shifted: bool,
    ) -> list[Bar]:
        if not raw:
            return []
        starts = [convert.time(bar.get("t"), "t") for bar in raw]
        if shifted:
            starts = [_session_date(at) for at in starts]
        ns = np.array([to_ns(at) for at in starts], dtype=np.int64)
        if len(ns) > 1 and not bool(np.all(np.diff(ns) > 0)):
            raise convert.WireError("times are not strictly increasing")
        _, close_ns, in_session = calendar(instrument.calendar).bounds_ns(ns, period_to_ns(period))
        now_ns = to_ns(self._now())
        return [
            _bar(instrument.symbol, bar, at, from_ns(close), None if factors is None else factors[str(bar["t"])])
            for bar, at, close, inside in zip(raw, starts, close_ns.tolist(), in_session.tolist(), strict=True)
            if inside and close <= now_ns and start <= at < end
        ]


def _grouped(instruments: Sequence[Instrument]) -> list[tuple[AssetClass, list[Instrument]]]:
    groups = [(kind, [each for each in instruments if each.asset_class is kind]) for kind in AssetClass]
    return [(kind, group) for kind, group in groups if group]


def _session_date(at: datetime) -> datetime:
    """Alpaca's daily equity bar starts at midnight in New York; ours carries 00:00 UTC of the session's date."""
    return datetime.combine(at.astimezone(_NEW_YORK).date(), time(), UTC)


def _bar(symbol: str, content: Mapping[str, Any], start: datetime, close: datetime, factor: float | None) -> Bar:
    opened, high, low = float(content["o"]), float(content["h"]), float(content["l"])
    last, volume = float(content["c"]), float(content["v"])
    if not (0 < low <= opened <= high < math.inf and low <= last <= high and 0 <= volume < math.inf):  # NaN fails too
        raise convert.WireError(f"bar at {start.isoformat()} is impossible: {opened}, {high}, {low}, {last}, {volume}")
    signals = content.get("x")
    return Bar(
        symbol=symbol,
        start=start,
        close_time=close,
        open=opened,
        high=high,
        low=low,
        close=last,
        volume=volume,
        adj_factor=float(content.get("af", 1.0)) if factor is None else factor,
        signals={str(name): float(value) for name, value in signals.items()} if signals else NO_SIGNALS,
    )
