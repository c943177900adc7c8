"""A Decision: what is wanted for one symbol at one close, why, and how the position will be protected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from brokers.costs import decimal_of
from brokers.domain import ExitPlan, Instrument
from strategies.strategy import Abstention, Action, ExitLevels, Opinion, Reason, action_of

LONGEST_LOG_DISTANCE = 2.0
"""Exits further away than this factor e^2 are placed there: a price must stay a price."""


class DecisionError(ValueError):
    """A decision or its exits cannot be made from these inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitConfig:
    """Protective exits, in volatilities of `horizon_bars` bars, where the strategy does not choose its own.

    Args:
        stop_volatility: Distance of the stop; None for no stop.
        take_profit_volatility: Distance of the take-profit; None for none.
        horizon_bars: Bars over which volatility is scaled by the square root of time.
        max_loss_fraction: Without a stop: the loss that is accepted, as a fraction of the position's value.
    """

    stop_volatility: float | None = 3.0
    take_profit_volatility: float | None = None
    horizon_bars: int = 16
    max_loss_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuse distances that are not positive."""
        for name in ("stop_volatility", "take_profit_volatility", "horizon_bars", "max_loss_fraction"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DecisionError(f"exits.{name} is {value}: give a positive number")

    def levels(self, volatility: float) -> ExitLevels:
        """Return log distances for a volatility of one bar."""
        scale = volatility * math.sqrt(self.horizon_bars)
        stop, take_profit = self.stop_volatility, self.take_profit_volatility
        return ExitLevels(
            stop=None if stop is None else stop * scale,
            take_profit=None if take_profit is None else take_profit * scale,
        )


def plan_exits(
    config: ExitConfig,
    *,
    target: int,
    price: Decimal,
    qty: Decimal,
    volatility: float,
    instrument: Instrument,
    levels: ExitLevels | None = None,
) -> ExitPlan:
    """Return the exits of a position of `qty` units that is about to be opened.

    Args:
        config: Distances where `levels` is None.
        target: 1 for long, -1 for short.
        price: Close of the bar decided on: exits are measured from it.
        qty: Units, of either sign; bounds the accepted loss of a plan without a stop.
        volatility: Of one bar, log return.
        instrument: Whose tick prices are rounded to.
        levels: The strategy's own exits (`Opinion.exits`); a stop of None in it is a choice, not an omission.

    Raises:
        DecisionError: No side, no price or no volatility.
    """
    if target not in {-1, 1} or price <= 0:
        raise DecisionError(f"exits for {instrument.symbol} at target {target}, price {price}: nothing to protect")
    if levels is None:
        if not (math.isfinite(volatility) and volatility > 0.0):
            raise DecisionError(f"volatility of {instrument.symbol} is {volatility}: wait until the features are warm")
        levels = config.levels(volatility)
    accepted = None
    if levels.stop is None:
        accepted = abs(qty) * price * decimal_of(config.max_loss_fraction)
    return ExitPlan(
        stop=_exit_price(price, -target, levels.stop, instrument),
        take_profit=_exit_price(price, target, levels.take_profit, instrument),
        max_loss_usd=accepted,
    )


def _exit_price(price: Decimal, direction: int, distance: float | None, instrument: Instrument) -> Decimal | None:
    """Return the price at a log distance, at the tick, at least one tick away and above zero."""
    if distance is None:
        return None
    if not (math.isfinite(distance) and distance > 0.0):
        raise DecisionError(f"exit distance of {instrument.symbol} is {distance}: give a positive number")
    tick = instrument.price_tick
    factor = Decimal(math.exp(direction * min(distance, LONGEST_LOG_DISTANCE)))
    exact = instrument.round_price(price * factor)
    if direction > 0:
        return max(exact, instrument.round_price(price) + tick)
    return max(min(exact, instrument.round_price(price) - tick), tick)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is wanted for one symbol at one bar close. HOLD is a decision like any other, with its reason.

    Args:
        symbol: Canonical symbol.
        close_time: The bar close decided on, aware UTC.
        position: -1, 0 or 1: held, or being entered, when it was decided.
        target: -1, 0 or 1: wanted; equal to `position` where nothing could be said.
        reasons: Why, most decisive first; never empty.
        votes: The answer of every mind, by name.
        q: Value per target, where the deciding mind has one.
        volatility: Of one bar (log return); None where features are not warm.
        reference_price: Close decided on, quote currency; None where there is no bar.
        exits: The strategy's own exit levels; None leaves them to the configuration.
    """

    symbol: str
    close_time: datetime
    position: int
    target: int
    reasons: tuple[Reason, ...]
    votes: Mapping[str, Opinion | Abstention] = field(default_factory=dict)
    q: Mapping[int, float] = field(default_factory=dict)
    volatility: float | None = None
    reference_price: Decimal | None = None
    exits: ExitLevels | None = None

    def __post_init__(self) -> None:
        """Refuse a decision without a reason, or outside {-1, 0, 1}."""
        if not self.reasons:
            raise DecisionError(f"decision on {self.symbol} without a reason: every decision says why")
        if self.target not in {-1, 0, 1} or self.position not in {-1, 0, 1}:
            raise DecisionError(f"decision on {self.symbol}: target {self.target}, position {self.position}")

    @property
    def action(self) -> Action:
        """The action word, seen from the position."""
        return action_of(self.target, self.position)


def decide(
    answer: Opinion | Abstention,
    *,
    mind: str,
    close_time: datetime,
    position: int,
    volatility: float | None,
    reference_price: Decimal | None,
) -> Decision:
    """Return the decision of one mind, or of several fused: its target, or the position kept where it abstains."""
    opinion = answer if isinstance(answer, Opinion) else None
    return Decision(
        symbol=answer.symbol,
        close_time=close_time,
        position=position,
        target=position if opinion is None else opinion.target,
        reasons=(answer.reason,),
        votes={mind: answer, **answer.votes},
        q={} if opinion is None else opinion.q,
        volatility=volatility if volatility is not None and math.isfinite(volatility) else None,
        reference_price=reference_price,
        exits=None if opinion is None else opinion.exits,
    )
