"""Numbers and times as people read them; what is undefined says so."""

from __future__ import annotations

from datetime import datetime

UNDEFINED = "not defined"
"""For a metric that the data do not define: a ratio over nothing."""
MINUS = "\u2212"
DASH = "\u2013"
"""Where a table has nothing to say."""


def percent(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return a fraction in percent, with a true minus sign."""
    if value is None:
        return UNDEFINED
    return _signed(value * 100.0, f"{{:{'+' if sign else ''},.{digits}f}}") + "\u00a0%"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number."""
    return UNDEFINED if value is None else _signed(value, f"{{:,.{digits}f}}")


def money(value: float | None) -> str:
    """Return an amount with two decimals."""
    return number(value, 2)


def amount(value: float) -> str:
    """Return a price or quantity with up to eight digits."""
    whole = f"{value:,.8g}" if abs(value) < 1e8 else f"{value:,.0f}"
    return whole.replace("-", MINUS)


def count(value: int) -> str:
    """Return a count with separators."""
    return f"{value:,}"


def when(at: datetime) -> str:
    """Return a time in UTC without saying so; tables name the zone in their head."""
    return at.strftime("%Y-%m-%d %H:%M" if not at.second else "%Y-%m-%d %H:%M:%S")


def days(value: float | None) -> str:
    """Return a duration in days, hours or minutes."""
    if value is None:
        return UNDEFINED
    if value >= 2.0:
        return f"{value:,.1f} days"
    return f"{value * 24.0:.1f} hours" if value * 24.0 >= 2.0 else f"{value * 1440.0:.0f} min"


def tone(value: float | None) -> str | None:
    """Return the class of a gain or loss; the sign stands in the text as well."""
    if value is None or value == 0.0:
        return None
    return "gain" if value > 0.0 else "loss"


def _signed(value: float, pattern: str) -> str:
    text = pattern.format(value)
    if set(text) <= set("-+0.,"):  # a rounded zero has no sign
        text = text.lstrip("-+")
    return text.replace("-", MINUS)
