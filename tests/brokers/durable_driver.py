"""A client process for kill tests: trades a fixed plan on durable books, as a function of venue time alone.

Run: `python durable_driver.py BOOKS`. Started again it decides once more on the last close, as a client does
that does not know how far it came. Writes a dot after each advance.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from exchange_kit import FAR, Floor, walk

from brokers.costs import CostModel
from brokers.domain import Leg, OrderRequest, Side
from brokers.simulated.engine import MatchingEngine
from brokers.simulated.sqlite_books import SqliteBooks
from brokers.simulated.state import Event

BARS = 150
SYMBOLS = ("A", "B")


def engine(books: Path, *, seed: int = 5, bars: int = BARS, fee_bps: float = 10.0) -> MatchingEngine:
    """Return the engine that every run of a kill test opens on its books."""
    market = {symbol: walk(symbol, bars, seed=index) for index, symbol in enumerate(SYMBOLS)}
    return Floor(
        market,
        books=SqliteBooks(books),
        costs=CostModel(fee_bps=fee_bps),
        seed=seed,
        partial_fill_probability=0.4,
        shorting=True,
    ).engine


def decide(exchange: MatchingEngine, symbol: str, now: datetime) -> None:
    """Send, cancel or close one symbol's orders: a function of the books and of venue time."""
    minute = int(now.timestamp() // 300)
    choice = (minute * 7 + SYMBOLS.index(symbol) * 3) % 5
    name = f"{symbol}-{minute}"
    if exchange.order(name) is not None:
        return  # decided before the kill
    position = exchange.positions().get(symbol)
    if choice == 0 and position is None:
        side = Side.BUY if minute % 2 else Side.SELL
        price = exchange.bars(symbol, now.min.replace(tzinfo=now.tzinfo), now)[-1].close
        stop = Decimal(round(price * (1 - side.sign * 0.006), 4))
        profit = Decimal(round(price * (1 + side.sign * 0.006), 4))
        exchange.submit(OrderRequest(name, symbol, side, Decimal("12.345"), stop_loss=stop, take_profit=profit))
    elif choice == 3:
        for order in exchange.open_orders():
            if order.symbol == symbol:
                exchange.cancel(order.client_id)
        position = exchange.positions().get(symbol)
        if position is not None and position.qty_available:
            side = Side.SELL if position.qty > 0 else Side.BUY
            exchange.submit(OrderRequest(name, symbol, side, abs(position.qty_available), leg=Leg.CLOSE))


def trade(exchange: MatchingEngine, stepped: Callable[[], object] = lambda: None) -> None:
    """Play the feed to its end from wherever the books stand; call `stepped` after each advance."""
    while True:
        now = exchange.now
        if exchange.last_event is Event.CLOSE:
            for symbol in SYMBOLS:
                decide(exchange, symbol, now)
        if exchange.feed_ended:
            return
        exchange.advance(now, FAR)
        stepped()


if __name__ == "__main__":
    running = engine(Path(sys.argv[1]))
    trade(running, lambda: os.write(sys.stdout.fileno(), b"."))
    running.close()
