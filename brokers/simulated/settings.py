"""Settings of the matching engine; part of the identity of its books."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

RuleSet = Literal["native", "alpaca"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the exchange fills and what it allows.

    Args:
        seed: Seed of partial fills.
        initial_cash: Cash of a new account, quote currency.
        partial_fill_probability: Chance that a market order fills only in part at an open.
        leverage: Gross exposure that equity may carry; 1 is a cash account.
        shorting: True where positions may become negative (the instrument must allow it too).
        rule_set: `native` allows brackets for every asset class; `alpaca` keeps that venue's rules.
        decision_deadline_s: How long after a close an order may arrive and still meet the next open, venue seconds.
    """

    seed: int = 1
    initial_cash: Decimal = Decimal(100_000)
    partial_fill_probability: float = 0.1
    leverage: Decimal = Decimal(1)
    shorting: bool = False
    rule_set: RuleSet = "native"
    decision_deadline_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse numbers with which no account can be kept."""
        if not (self.initial_cash.is_finite() and self.initial_cash > 0):
            msg = f"initial_cash is {self.initial_cash}: give a positive amount"
            raise ValueError(msg)
        if not 0.0 <= self.partial_fill_probability <= 1.0:
            msg = f"partial_fill_probability is {self.partial_fill_probability}: give a number from 0 to 1"
            raise ValueError(msg)
        if not (self.leverage.is_finite() and self.leverage > 0):
            msg = f"leverage is {self.leverage}: give a positive number, 1 for a cash account"
            raise ValueError(msg)
        if not 0.0 <= self.decision_deadline_s < 86_400.0:
            msg = f"decision_deadline_s is {self.decision_deadline_s}: give seconds from 0 to less than a day"
            raise ValueError(msg)

    @property
    def decision_deadline_ns(self) -> int:
        """The deadline in ns of venue time."""
        return round(self.decision_deadline_s * 1e9)
