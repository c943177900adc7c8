"""Small markets and engines for tests of the built-in exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.domain import Fill, Instrument, Order, OrderRequest, Side
from brokers.series import BarSeries, to_ns
from brokers.simulated.books import Books, MemoryBooks
from brokers.simulated.broker import default_instruments
from brokers.simulated.engine import EngineSettings, MatchingEngine
from brokers.simulated.feed import Feed

T0 = datetime(2024, 1, 1, 12, 0, tzinfo=UTC)
PERIOD = timedelta(minutes=5)
FAR = datetime(2040, 1, 1, tzinfo=UTC)
FREE = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=0.0)

Row = tuple[float, float, float, float]


def at(bar: int, seconds: float = 0.0) -> datetime:
    """Return the open time of a bar of the five-minute test feeds, plus seconds."""
    return T0 + bar * PERIOD + timedelta(seconds=seconds)


def series(
    symbol: str, rows: Sequence[Row], *, skip: Sequence[int] = (), adj: Sequence[float] | None = None, **columns: Any
) -> BarSeries:
    """Build five-minute bars from (open, high, low, close) rows; bars in `skip` are missing."""
    keep = [index for index in range(len(rows)) if index not in skip]
    start = np.array([to_ns(at(index)) for index in keep], dtype=np.int64)
    values = np.array([rows[index] for index in keep], dtype=np.float64)
    count = len(keep)
    return BarSeries(
        symbol=symbol,
        start_ns=start,
        close_ns=start + 300_000_000_000,
        open_ns=start,
        open=values[:, 0].copy(),
        high=values[:, 1].copy(),
        low=values[:, 2].copy(),
        close=values[:, 3].copy(),
        volume=np.asarray(columns.get("volume", np.full(count, 1_000.0)), dtype=np.float64),
        adj_factor=np.ones(count) if adj is None else np.array(adj, dtype=np.float64)[keep],
    )


def flat(count: int, price: float = 100.0) -> list[Row]:
    """Return bars that do not move."""
    return [(price, price, price, price)] * count


def walk(symbol: str, count: int, seed: int, volatility: float = 0.004) -> BarSeries:
    """Return a seeded random walk with ranges."""
    draws = np.random.default_rng(seed)
    path = 100.0 * np.exp(np.cumsum(draws.normal(0.0, volatility, count + 1)))
    opens, closes = path[:-1], path[1:]
    high = np.maximum(opens, closes) * (1.0 + draws.uniform(0, volatility, count))
    low = np.minimum(opens, closes) * (1.0 - draws.uniform(0, volatility, count))
    rows = [tuple(map(float, row)) for row in zip(opens, high, low, closes, strict=True)]
    return series(symbol, rows, volume=draws.uniform(500, 1500, count))  # type: ignore[arg-type]


class Floor:
    """An engine with the short words that a test wants."""

    def __init__(
        self,
        bars: Mapping[str, BarSeries] | Sequence[Row],
        *,
        costs: CostModel = FREE,
        books: Books | None = None,
        begin: datetime | None = None,
        instruments: Mapping[str, Instrument] | None = None,
        shortable: bool = True,
        calendar_id: str = "24/7",
        **settings: Any,
    ) -> None:
        feed_bars = bars if isinstance(bars, Mapping) else {"X": series("X", bars)}
        cal = calendar(calendar_id)
        feed = Feed(feed_bars, PERIOD, cal, begin)
        chosen = {"partial_fill_probability": 0.0} | settings
        self.engine = MatchingEngine(
            feed,
            costs,
            EngineSettings(**chosen),
            books or MemoryBooks(),
            instruments or default_instruments(feed.symbols, cal, shortable=shortable),
        )

    def to(self, when: datetime) -> Floor:
        """Advance event by event until venue time is `when`."""
        while self.engine.now < when:
            self.engine.advance(self.engine.now, when)
        return self

    def send(self, client_id: str, side: Side, qty: str, symbol: str = "X", **fields: Any) -> Order:
        """Submit an order; prices may be given as text."""
        prices = {key: Decimal(value) if type(value) is str else value for key, value in fields.items()}
        return self.engine.submit(OrderRequest(client_id, symbol, side, Decimal(qty), **prices))

    def buy(self, client_id: str, qty: str = "10", symbol: str = "X", **fields: Any) -> Order:
        return self.send(client_id, Side.BUY, qty, symbol, **fields)

    def sell(self, client_id: str, qty: str = "10", symbol: str = "X", **fields: Any) -> Order:
        return self.send(client_id, Side.SELL, qty, symbol, **fields)

    def order(self, client_id: str) -> Order:
        found = self.engine.order(client_id)
        assert found is not None, f"{client_id} is unknown"
        return found

    def fills_of(self, client_id: str) -> list[Fill]:
        return [fill for fill in self.engine.fills() if fill.client_id == client_id]

    def fill_of(self, client_id: str) -> Fill:
        (fill,) = self.fills_of(client_id)
        return fill

    def held(self, symbol: str = "X") -> Decimal:
        return self.engine.account_book().qty(symbol)
