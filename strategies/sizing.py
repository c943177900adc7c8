"""How much: a fraction of equity that aims at one volatility, within caps, rounded toward zero.

A quantity is asked for only when a position is opened or turned. HOLD never resizes: whoever calls this keeps
the quantity that is held while the target stays the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from brokers.calendar import TradingCalendar
from brokers.domain import Instrument

ZERO = Decimal(0)
_FRACTION = Decimal("0.000000001")


class SizingError(ValueError):
    """A size cannot be computed: an input is missing or impossible. Never stands for a size of zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingConfig:
    """How large positions are.

    Args:
        volatility_target_annual: Volatility per year that one position aims at, as a fraction (0.2 = 20%).
        volatility_target_per_bar: The same per bar; takes the place of the annual one where given.
        max_fraction: Largest position value, as a fraction of equity.
        min_fraction: Smallest, whatever the volatility.
    """

    volatility_target_annual: float = 0.2
    volatility_target_per_bar: float | None = None
    max_fraction: float = 0.25
    min_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be aimed at."""
        if not 0.0 <= self.min_fraction <= self.max_fraction or not math.isfinite(self.max_fraction):
            raise SizingError(
                f"sizing.min_fraction {self.min_fraction} and max_fraction {self.max_fraction}: "
                "give 0 <= min_fraction <= max_fraction"
            )
        for name in ("volatility_target_annual", "volatility_target_per_bar"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise SizingError(f"sizing.{name} is {value}: give a positive number")

    def per_bar(self, bars_per_year: float) -> float:
        """Return the volatility per bar that is aimed at."""
        if self.volatility_target_per_bar is not None:
            return self.volatility_target_per_bar
        return self.volatility_target_annual / math.sqrt(bars_per_year)


def bars_per_year(calendar: TradingCalendar, period: timedelta, at: datetime) -> float:
    """Return how many bars closed in the 365.25 days before `at`."""
    begin = at - timedelta(days=365.25)
    return float(len(calendar.closes_between(begin, at, period)))


def exposure_fraction(config: SizingConfig, volatility: float, bars_per_year: float) -> float:
    """Return position value over equity for a volatility of one bar (log return).

    Raises:
        SizingError: The volatility is not a positive finite number.
    """
    if not (math.isfinite(volatility) and volatility > 0.0):
        raise SizingError(f"volatility is {volatility}: wait until the features are warm")
    return min(config.max_fraction, max(config.min_fraction, config.per_bar(bars_per_year) / volatility))


def target_quantity(
    config: SizingConfig,
    *,
    target: int,
    equity: Decimal,
    price: Decimal,
    volatility: float,
    instrument: Instrument,
    bars_per_year: float,
) -> Decimal:
    """Return the signed quantity to hold for a target of -1, 0 or 1.

    Rounded toward zero at the instrument's step; zero where the value is below its smallest order.

    Raises:
        SizingError: No equity, no price, no volatility, or a short where the instrument allows none.
    """
    if target == 0:
        return ZERO
    if target < 0 and not instrument.shortable:
        raise SizingError(f"target -1 for {instrument.symbol}, which cannot be sold short: turn shorts off")
    if not (equity.is_finite() and equity > 0 and price.is_finite() and price > 0):
        raise SizingError(f"equity {equity} and price {price} of {instrument.symbol}: both must be above zero")
    fraction = Decimal(exposure_fraction(config, volatility, bars_per_year)).quantize(_FRACTION)
    qty = instrument.round_qty(equity * fraction / price)
    if qty * price < instrument.min_notional:
        return ZERO
    return qty * (1 if target > 0 else -1)
