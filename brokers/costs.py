"""The one cost model: fee, half-spread, square-root size impact, one bar of latency, gaps through stops.

Used by the environment, replay, the built-in exchange and every prediction of costs in the ledger.
Fractions are per side and per unit of position change; prices are in quote currency.

Size impact follows the square-root law (Almgren, Thum, Hauptmann & Li 2005, "Direct Estimation of Equity
Market Impact"; Toth et al. 2011): impact = Y * sigma * sqrt(quantity / volume). Sigma is Parkinson's (1980)
range estimate ln(high/low) / (2 sqrt(ln 2)) of the *reference bar*, the last bar completed before the fill,
and volume is that bar's volume, so the cost of an order is known when it is decided. It is bounded by
`IMPACT_FRACTION_MAX`, so that prices stay positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache

from brokers.domain import Side
from brokers.series import BarSeries, Float

PRICE_QUANTUM = Decimal("0.000000001")
"""Fill prices and fees are rounded half-even to 1e-9 of the quote currency, everywhere."""

IMPACT_FRACTION_MAX = 0.5
"""Largest size impact as a fraction of the price: the square-root law is no law for an order that eats a market."""
HALF_SPREAD_BPS_MAX = 4_999.0
"""Largest half-spread: with the largest impact a sale still fills at a positive price."""

_PARKINSON = 1.0 / (2.0 * math.sqrt(math.log(2.0)))
_BPS = 1e-4


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of trading, per side.

    Args:
        fee_bps: Commission on traded notional, basis points.
        half_spread_bps: Half of the bid-ask spread, basis points of the price; paid by orders that take. At most
            `HALF_SPREAD_BPS_MAX`.
        impact: Y of the square-root law, dimensionless; 0 for none.
        latency_bars: Bars between a decision and its earliest fill; 1 = fill at the next bar's open.
        participation_cap: Largest quantity / volume that enters the square root.
    """

    fee_bps: float = 10.0
    half_spread_bps: float = 2.0
    impact: float = 0.5
    latency_bars: int = 1
    participation_cap: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative or non-finite costs."""
        for name in ("fee_bps", "half_spread_bps", "impact", "participation_cap"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                msg = f"costs.{name} is {value}: give a finite number of at least 0"
                raise ValueError(msg)
        if self.half_spread_bps > HALF_SPREAD_BPS_MAX:
            msg = (
                f"costs.half_spread_bps is {self.half_spread_bps}: give at most {HALF_SPREAD_BPS_MAX:g}, half the price"
            )
            raise ValueError(msg)
        if self.latency_bars < 1:
            msg = f"costs.latency_bars is {self.latency_bars}: a fill comes at the next open at best, give at least 1"
            raise ValueError(msg)

    def impact_fraction(self, qty: float, reference: ReferenceBar) -> float:
        """Return the price move that an order of `qty` units causes, a fraction of at most `IMPACT_FRACTION_MAX`."""
        if self.impact == 0.0 or qty == 0.0:
            return 0.0
        participation = self.participation_cap
        if reference.volume > 0.0:
            participation = min(abs(qty) / reference.volume, self.participation_cap)
        return min(self.impact * reference.sigma * math.sqrt(participation), IMPACT_FRACTION_MAX)

    def side_fraction(self, qty: float, reference: ReferenceBar) -> float:
        """Return the whole cost of one taking side as a fraction of notional: fee + half-spread + impact."""
        return (self.fee_bps + self.half_spread_bps) * _BPS + self.impact_fraction(qty, reference)

    def taking_price(self, price: float, side: Side, qty: float, reference: ReferenceBar) -> Decimal:
        """Return the fill price of an order that takes liquidity at the reference `price`."""
        fraction = self.half_spread_bps * _BPS + self.impact_fraction(qty, reference)
        return quantise(price * (1.0 + side.sign * fraction))

    def fee(self, qty: Decimal, price: Decimal) -> Decimal:
        """Return the commission of one fill, quote currency."""
        return (abs(qty) * price * _per_unit(self.fee_bps)).quantize(PRICE_QUANTUM, ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class ReferenceBar:
    """The two numbers of the last completed bar that the size impact needs: its volume and its sigma."""

    volume: float
    sigma: float

    @classmethod
    def of(cls, high: float, low: float, volume: float) -> ReferenceBar:
        """Build from a bar's range and volume."""
        return cls(volume=volume, sigma=math.log(high / low) * _PARKINSON)


@lru_cache(maxsize=1_024, typed=True)
def decimal_of(number: float) -> Decimal:
    """Return the shortest decimal that is this float: a bar's price as its file writes it, a limit as it was set."""
    return Decimal(repr(number))


@lru_cache(maxsize=64)
def _per_unit(bps: float) -> Decimal:
    return Decimal(repr(bps)) / 10_000


def quantise(price: float) -> Decimal:
    """Turn a computed price into money: Decimal, half-even at `PRICE_QUANTUM`."""
    return Decimal(price).quantize(PRICE_QUANTUM, ROUND_HALF_EVEN)


def stop_trigger_price(side: Side, stop: float, bar_open: float, high: float, low: float) -> float | None:
    """Return the price at which a stop order trades within a bar, before costs; None if it does not.

    A bar that opens beyond the stop fills at its open (the gap goes through the stop).
    """
    if side is Side.SELL:
        if bar_open <= stop:
            return bar_open
        return stop if low <= stop else None
    if bar_open >= stop:
        return bar_open
    return stop if high >= stop else None


def limit_fill_price(side: Side, limit: float, bar_open: float, high: float, low: float) -> float | None:
    """Return the price at which a limit order trades within a bar; None if it does not.

    A bar that opens at or through the limit fills at its open; otherwise the bar must trade *through*
    the limit (a touch may leave a resting order unfilled in the queue).
    """
    if side is Side.BUY:
        if bar_open <= limit:
            return bar_open
        return limit if low < limit else None
    if bar_open >= limit:
        return bar_open
    return limit if high > limit else None


SPLIT_RATIO = 1.2
"""A step of `adj_factor` by at least this ratio (or its inverse) is a split; any other step is a cash dividend."""


def is_split(ratio: float) -> bool:
    """Tell whether a step of `adj_factor` (this bar's over the previous bar's) is a split."""
    return ratio >= SPLIT_RATIO or ratio <= 1.0 / SPLIT_RATIO


def split_ratio(ratio: float) -> Decimal:
    """Return the factor by which held quantity changes, as Decimal, rounded half-even to 1e-12."""
    return Decimal(ratio).quantize(Decimal("0.000000000001"), ROUND_HALF_EVEN)


def split_ratios(adj_factor: Float) -> dict[int, Decimal]:
    """Return the split ratio by bar index of every bar that opens with a split."""
    found: dict[int, Decimal] = {}
    for before in (adj_factor[1:] != adj_factor[:-1]).nonzero()[0].tolist():
        ratio = float(adj_factor[before + 1]) / float(adj_factor[before])
        if is_split(ratio):
            found[before + 1] = split_ratio(ratio)
    return found


def reference_before(bars: BarSeries, index: int) -> ReferenceBar:
    """Return what the cost of a fill in bar `index` is estimated from: the bar before it, in the fill's units.

    Where bar `index` opens with a split, orders have been scaled to the new units, and so is the volume.
    Before the first bar there is nothing to estimate an impact from.
    """
    if index < 1:
        return ReferenceBar(volume=0.0, sigma=0.0)
    before = index - 1
    volume = bars.volume.item(before)
    ratio = bars.adj_factor.item(index) / bars.adj_factor.item(before)
    if is_split(ratio):
        volume *= float(split_ratio(ratio))
    return ReferenceBar.of(bars.high.item(before), bars.low.item(before), volume)


def dividend_per_unit(previous_close: float, ratio: float) -> Decimal:
    """Return the cash dividend per held unit: previous close * (1 - 1/ratio), quote currency."""
    return quantise(previous_close * (1.0 - 1.0 / ratio))
