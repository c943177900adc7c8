"""The risk gate: what stands between a decision and an order.

Pure functions of numbers that the ledger and the venue gave. Entries may be refused or made smaller; a
reduction of exposure always passes. Equity is the venue's, unrealised profit and loss included.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from agent.settings import RiskSettings
from brokers.costs import decimal_of
from strategies.strategy import Reason

_ZERO = Decimal(0)
_CLEARLY = Decimal("1.001")
"""By so much more, relative to it, a value is clearly smaller than another, however both were rounded."""


@dataclass(frozen=True, slots=True)
class AccountRisk:
    """The account at one close.

    Args:
        equity: Quote currency, marked at the close.
        peak: Highest equity so far.
        day_start: Equity when the venue day began.
        gross: Sum of absolute positions at their marks, working entries included.
        halted: Reason of a standing halt; None for none.
    """

    equity: Decimal
    peak: Decimal
    day_start: Decimal
    gross: Decimal
    halted: str | None

    @property
    def drawdown(self) -> float:
        """Loss from the peak as a fraction of it, >= 0."""
        return float(1 - self.equity / self.peak) if self.peak > 0 else 0.0

    @property
    def daily_loss(self) -> float:
        """Loss since the venue day began as a fraction of that equity; negative for a gain."""
        return float(1 - self.equity / self.day_start) if self.day_start > 0 else 0.0


@dataclass(frozen=True, slots=True)
class SymbolRisk:
    """One symbol at one close.

    Args:
        price: Mark, quote currency.
        bar_age_periods: Age of the newest bar, in bar periods.
        features_out_of_range: Features at or beyond their stated range.
        entries_last_hour: Entry intents of the last hour of venue time.
        reject_streak: Venue rejections in a row.
        bars_since_stop: Bars since a stop was hit; None for never.
        paused: Why the symbol may not be entered; None for nothing.
    """

    price: Decimal
    bar_age_periods: float
    features_out_of_range: int
    entries_last_hour: int
    reject_streak: int
    bars_since_stop: int | None
    paused: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate leaves of a wanted entry: a quantity (perhaps 0) and, where it changed something, why."""

    qty: Decimal
    reason: Reason | None


def breach(account: AccountRisk, limits: RiskSettings) -> Reason | None:
    """Tell whether the account's losses call for a lasting halt (drawdown) right now."""
    return Reason.DRAWDOWN if account.drawdown > limits.drawdown_fraction else None


def breach_text(account: AccountRisk, limits: RiskSettings) -> str:
    """Return the words for a breach, as a halt gives them for its reason."""
    return f"drawdown {account.drawdown:.2%} exceeds {limits.drawdown_fraction:.2%}"


def judge_entry(qty: Decimal, account: AccountRisk, symbol: SymbolRisk, limits: RiskSettings) -> Verdict:
    """Judge a wanted entry of `qty` > 0 units; checks are made in the order of the reasons below."""
    reason = None
    if account.halted is not None:
        reason = Reason.HALTED
    elif symbol.paused is not None:
        reason = Reason.SYMBOL_PAUSED
    elif account.drawdown > limits.drawdown_fraction:
        reason = Reason.DRAWDOWN
    elif account.daily_loss > limits.daily_loss_fraction:
        reason = Reason.DAILY_LOSS
    elif symbol.bar_age_periods > limits.stale_bars_max:
        reason = Reason.STALE_DATA
    elif symbol.features_out_of_range > limits.out_of_range_features_max:
        reason = Reason.OUT_OF_RANGE
    elif symbol.entries_last_hour >= limits.orders_per_hour:
        reason = Reason.ORDER_RATE
    elif symbol.reject_streak >= limits.reject_streak_max:
        reason = Reason.REJECT_STREAK
    elif symbol.bars_since_stop is not None and symbol.bars_since_stop < limits.cooldown_bars:
        reason = Reason.COOLDOWN
    return _capped(qty, account, symbol, limits) if reason is None else Verdict(_ZERO, reason)


def _capped(qty: Decimal, account: AccountRisk, symbol: SymbolRisk, limits: RiskSettings) -> Verdict:
    position_cap = account.equity * decimal_of(limits.max_position_fraction)
    gross_cap = account.equity * decimal_of(limits.max_gross_fraction) - account.gross
    caps = (
        (position_cap, Reason.MAX_POSITION),
        (gross_cap, Reason.MAX_NOTIONAL),
        (limits.max_order_notional_usd, Reason.MAX_NOTIONAL),
    )
    allowed, reason = qty, None
    value = qty * symbol.price * _CLEARLY
    for cap, why in caps:
        if value < cap:
            continue  # far below it: only a cap that may bind is divided by the price
        most = max(cap, _ZERO) / symbol.price
        if allowed > most:
            allowed, reason = most, why
    return Verdict(allowed, reason)
