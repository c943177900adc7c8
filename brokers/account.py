"""The one account function: fills, splits, dividends and marks in; cash, positions and equity out.

The built-in exchange's books, the ledger's re-count and the environment's accounting face all use it, so
they cannot disagree about money.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal

from brokers.domain import Side

ZERO = Decimal(0)
QTY_QUANTUM = Decimal("0.000000001")
"""After a split, quantities are rounded toward zero to 1e-9 units: their digits must not grow without end."""


def split_quantity(qty: Decimal, ratio: Decimal) -> Decimal:
    """Return a quantity, held or ordered, after a split of `ratio`."""
    return (qty * ratio).quantize(QTY_QUANTUM, ROUND_DOWN)


@dataclass(slots=True)
class Holding:
    """Signed quantity and average cost (quote currency per unit) of one symbol."""

    qty: Decimal = ZERO
    avg_cost: Decimal = ZERO


@dataclass(slots=True)
class AccountBook:
    """Cash and holdings of one account, moved only by the four methods below."""

    cash: Decimal
    holdings: dict[str, Holding] = field(default_factory=dict)
    fees_paid: Decimal = ZERO
    realised_pnl: Decimal = ZERO

    def fill(self, symbol: str, side: Side, qty: Decimal, price: Decimal, fee: Decimal) -> None:
        """Book one execution: `qty` > 0 units at `price`, with `fee` in quote currency."""
        holding = self.holdings.setdefault(symbol, Holding())
        signed = qty if side is Side.BUY else -qty
        self.cash -= signed * price + fee
        self.fees_paid += fee
        closed = min(qty, abs(holding.qty)) if holding.qty * signed < 0 else ZERO
        if closed:
            direction = 1 if holding.qty > 0 else -1
            self.realised_pnl += direction * closed * (price - holding.avg_cost)
        after = holding.qty + signed
        if closed < qty:
            opened = qty - closed
            carried = abs(holding.qty) - closed
            holding.avg_cost = (holding.avg_cost * carried + price * opened) / (carried + opened)
        holding.qty = after
        if not after:
            del self.holdings[symbol]

    def split(self, symbol: str, ratio: Decimal) -> None:
        """Multiply the held quantity by `ratio` (`split_quantity`) and divide its average cost by it."""
        holding = self.holdings.get(symbol)
        if holding is None:
            return
        holding.qty = split_quantity(holding.qty, ratio)
        holding.avg_cost /= ratio
        if not holding.qty:
            del self.holdings[symbol]

    def dividend(self, symbol: str, per_unit: Decimal) -> Decimal:
        """Pay `per_unit` quote currency on each held unit (a short pays); returns the cash moved."""
        holding = self.holdings.get(symbol)
        if holding is None:
            return ZERO
        amount = holding.qty * per_unit
        self.cash += amount
        return amount

    def qty(self, symbol: str) -> Decimal:
        """Return the signed quantity held; zero where nothing is."""
        holding = self.holdings.get(symbol)
        return ZERO if holding is None else holding.qty

    def equity(self, marks: Mapping[str, Decimal]) -> Decimal:
        """Return cash plus holdings at `marks`.

        Raises:
            KeyError: A held symbol has no mark: equity is then unknown, not smaller.
        """
        value = ZERO
        for symbol, holding in self.holdings.items():
            value += holding.qty * marks[symbol]
        return self.cash + value
