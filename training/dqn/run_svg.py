"""Line charts as SVG text: no script, no colour that a dash or a label does not say too.

Sizes are in the picture's own units, about a pixel each on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 460.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 92.0, 12.0, 30.0
TICKS = 5
LARGEST = 1e100
"""Values beyond it are drawn as little as infinite ones: nothing else would be left to see."""
LOG_RATIO = 50.0
"""Largest over smallest positive value from which on an axis is logarithmic."""
MINUS = "\N{MINUS SIGN}"
LABEL_GAP = 14.0
"""Least distance of the labels at the lines' ends."""

Axis = Callable[[float], float]
"""From a value to a place in the picture."""

STYLES = ("one", "two", "three")
"""Classes of the first, second and third line: solid, dashed, dotted."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Args:
        name: Its label.
        values: (K,), NaN where there is nothing.
        low: Lower edge of a band around it; empty for none.
        high: Upper edge.
        reference: A bound or limit, drawn thin.
    """

    name: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    reference: bool = False


def line_chart(title: str, description: str, at: Sequence[float], lines: Sequence[Line], *, name: str) -> str:
    """Return an SVG element.

    Args:
        title: What it shows.
        description: The same in a sentence, for those who do not see it.
        at: (K,) places on the horizontal axis.
        lines: What is drawn.
        name: Unique on the page.
    """
    lines = [
        replace(one, values=_drawable(one.values), low=_drawable(one.low), high=_drawable(one.high)) for one in lines
    ]
    shown = [v for line in lines for part in (line.values, line.low, line.high) for v in part if math.isfinite(v)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    logarithmic = low > 1.0 / LARGEST and high / low > LOG_RATIO
    if high - low < 1e-12 * max(abs(high), 1.0):
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
        logarithmic = False
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = at[0], at[-1] if at[-1] > at[0] else at[0] + 1.0

    def x(place: float) -> float:
        return LEFT + (place - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        if logarithmic:
            share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        else:
            share = (value - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        kind = "zero" if tick == 0.0 else "grid"
        level = f"{y(tick):.1f}"
        parts.append(f'<line class="{kind}" x1="{LEFT:.0f}" x2="{WIDTH - RIGHT:.0f}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6:.0f}" y="{y(tick) + 4:.1f}">{number(tick)}</text>')
    for place, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text class="tick {anchor}" x="{x(place):.1f}" y="{HEIGHT - 10:.0f}">{place:,.0f}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick middle" x="{middle:.1f}" y="{HEIGHT - 10:.0f}">updates</text>')
    ends = []
    for index, line in enumerate(lines):
        style = "reference" if line.reference else STYLES[index % len(STYLES)]
        parts += [f'<path class="band" d="{one}"/>' for one in _bands(line, at, x, y)]
        for run in _runs(line.values):
            points = " ".join(f"{x(at[k]):.1f},{y(line.values[k]):.1f}" for k in run)
            if len(run) == 1:
                k = run[0]
                parts.append(f'<circle class="dot" cx="{x(at[k]):.1f}" cy="{y(line.values[k]):.1f}" r="2.5"/>')
            else:
                parts.append(f'<polyline class="line {style}" points="{points}"/>')
        finite = [v for v in line.values if math.isfinite(v)]
        if finite:
            ends.append((y(finite[-1]), line.name))
    for place, text in _apart(sorted(ends)):
        parts.append(f'<text class="label" x="{WIDTH - RIGHT + 6:.0f}" y="{place + 4:.1f}">{escape(text)}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def number(value: float) -> str:
    """Return a number as people write it: four digits at most."""
    if not math.isfinite(value):
        return {"nan": "not a number", "inf": "infinite", "-inf": f"{MINUS}infinite"}[repr(float(value))]
    if value == 0.0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS) if abs(value) < 1e4 else f"{value:,.0f}".replace("-", MINUS)


def _ticks(low: float, high: float) -> list[float]:
    """Return round values that enclose both."""
    rough = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1.0, 2.0, 2.5, 5.0, 10.0) if size * power >= rough * 0.999)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(begin, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that enclose both, some left out where they are many."""
    begin, end = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, math.ceil((end - begin) / (TICKS - 1)))
    last = begin + step * math.ceil((end - begin) / step)
    return [10.0**k for k in range(begin, last + 1, step)]


def _drawable(values: Sequence[float]) -> list[float]:
    return [value if abs(value) <= LARGEST else math.nan for value in values]


def _runs(values: Sequence[float]) -> list[list[int]]:
    """Return the unbroken stretches of finite values."""
    found: list[list[int]] = [[]]
    for k, value in enumerate(values):
        if math.isfinite(value):
            found[-1].append(k)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _bands(line: Line, at: Sequence[float], x: Axis, y: Axis) -> list[str]:
    if not line.low:
        return []
    found = []
    for run in _runs([below + above for below, above in zip(line.low, line.high, strict=True)]):
        upper = " L".join(f"{x(at[k]):.1f} {y(line.high[k]):.1f}" for k in run)
        lower = " L".join(f"{x(at[k]):.1f} {y(line.low[k]):.1f}" for k in reversed(run))
        found.append(f"M{upper} L{lower}Z")
    return found


def _apart(ends: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Move labels that would lie on one another."""
    found: list[tuple[float, str]] = []
    for place, text in ends:
        least = found[-1][0] + LABEL_GAP if found else TOP
        found.append((max(place, least), text))
    over = found[-1][0] - (HEIGHT - BOTTOM) if found else 0.0
    return [(place - over, text) for place, text in found] if over > 0.0 else found
