"""The run in one look and over time: headline, equity and drawdown, months, exposure. Figures in, markup out."""

from __future__ import annotations

from calendar import month_abbr
from collections.abc import Sequence

import numpy as np

from agent.report import wording as say
from agent.report.data import NotMeasured, ReportData
from agent.report.elements import chart, folded, line_legend, missing, note, section, table
from agent.report.figures import Figures, Month
from agent.report.markup import Content, Markup, tag
from brokers.series import from_ns
from strategies.performance import Performance

TABLE_ROWS = 32
"""Rows of the tables that stand for a curve."""


def lead(found: Figures) -> Markup:
    """Return the run in one sentence."""
    own = found.performance
    if isinstance(own, NotMeasured):
        return tag("p", "There is no performance to tell of: ", own.reason, ".", class_="lead")
    first, last = from_ns(int(found.close_ns_T[0])), from_ns(int(found.close_ns_T[-1]))
    begin, end = say.money(float(found.equity_T[0])), say.money(float(found.equity_T[-1]))
    closes = f"{say.count(own.closes)} closes from {say.when(first)} to {say.when(last)} UTC. "
    told: list[Content] = [
        f"{closes}The account went from {begin} to ",
        tag("strong", f"{end} USD"),
        " after costs, ",
        tag("strong", say.percent(own.total_return, sign=True)),
    ]
    if isinstance(found.benchmark_performance, Performance):
        held = found.benchmark_performance.total_return
        verdict = "ahead of" if own.total_return > held else "behind"
        told.append(f", {verdict} buy and hold with {say.percent(held, sign=True)}")
    return tag("p", *told, ". Paper trading; no promise of anything.", class_="lead")


def headline(found: Figures) -> Markup:
    """Return the cards with the numbers that are asked for first."""
    if isinstance(found.performance, NotMeasured):
        return missing(found.performance)
    own, held = found.performance, found.benchmark_performance
    hold = None if isinstance(held, NotMeasured) else held
    against = (
        "buy and hold: not measured" if hold is None else f"buy and hold {say.percent(hold.total_return, sign=True)}"
    )
    fall = "not measured" if hold is None else say.percent(hold.max_drawdown)
    error = "" if own.sharpe_se is None else f" ± {say.number(own.sharpe_se)} standard error"
    short = own.years < 1.0
    cards = [
        ("Total return", say.percent(own.total_return, sign=True), against, say.tone(own.total_return)),
        (
            "Annual growth",
            say.percent(own.cagr, sign=True),
            f"extrapolated from only {say.days(own.years * 365.25)}" if short else f"over {own.years:.1f} years",
            say.tone(own.cagr),
        ),
        ("Sharpe ratio", say.number(own.sharpe), f"annual{error}", None),
        (
            "Largest drawdown",
            say.percent(own.max_drawdown),
            f"longest {say.days(own.max_drawdown_days)}; buy and hold {fall}",
            None,
        ),
        ("Volatility", say.percent(own.volatility), "annual, of returns per close", None),
        (
            "Mean exposure",
            say.percent(own.exposure, 1),
            f"in the market {say.percent(own.time_in_market, 1)} of closes",
            None,
        ),
        (
            "Round trips",
            say.count(own.round_trips),
            f"{say.percent(own.win_rate, 1)} with a profit; profit factor {say.number(own.profit_factor)}",
            None,
        ),
        _cost_card(found),
    ]
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", label),
                tag("dd", value, class_=" ".join(["big", style or ""]).strip()),
                tag("dd", detail, class_="small"),
            )
            for label, value, detail, style in cards
        ),
        class_="cards",
        aria_label="Headline numbers",
    )


def _cost_card(found: Figures) -> tuple[str, str, str, None]:
    own = found.performance
    if isinstance(found.costs, NotMeasured):
        fees = "not measured" if isinstance(own, NotMeasured) else say.money(own.fees)
        return ("Fees", fees, "spread and impact: not measured", None)
    costs = found.costs
    if not costs.compared:
        return ("Trading costs", "none", "no execution has a measured cost", None)
    return (
        "Trading costs",
        say.money(costs.realised),
        f"USD; {say.number(costs.bps(costs.realised), 1)} bps, predicted {say.number(costs.bps(costs.predicted), 1)}",
        None,
    )


def equity(data: ReportData, found: Figures) -> Markup:
    """Return equity and drawdown beside buy and hold."""
    if isinstance(found.performance, NotMeasured):
        return section("equity", "Equity and drawdown", missing(found.performance))
    lines = [("run", f"{data.strategy}, after costs (solid)")]
    explain: list[Content] = []
    if isinstance(found.benchmark, NotMeasured):
        explain.append(tag("p", tag("b", "Buy and hold not measured: "), found.benchmark.reason, class_="missing"))
    else:
        lines.append(("hold", "buy and hold, equal weights, the same costs (dashed)"))
        explain.append(
            note(
                "Buy and hold puts an equal share of the first equity into every symbol at the first open that the "
                "run could have traded, pays the same fee, spread and impact, and is never rebalanced."
            )
        )
    hint = "Arrow keys or the pointer read values; drag, or plus and minus, to zoom; Escape shows all."
    return section(
        "equity",
        "Equity and drawdown",
        *explain,
        line_legend(lines),
        tag("h3", "Return since the first close"),
        chart("equity", 300, "Return since the first close, in percent. Arrow keys move the cursor.", hint),
        tag("h3", "Drawdown from the highest equity so far"),
        chart("drawdown", 170, "Drawdown from the highest equity so far, in percent. Arrow keys move the cursor.", ""),
        folded("Equity and drawdown as a table", _equity_table(found)),
    )


def _equity_table(found: Figures) -> Markup:
    equity_T, peak_T = found.equity_T, np.maximum.accumulate(found.equity_T)
    held = None if isinstance(found.benchmark, NotMeasured) else found.benchmark.equity_T
    head = ["close, UTC", "equity, USD", "return", "drawdown"]
    head += [] if held is None else ["buy and hold", "its drawdown"]
    rows = []
    for t in _evenly(len(equity_T)):
        row = [
            say.when(from_ns(int(found.close_ns_T[t]))),
            say.money(float(equity_T[t])),
            say.percent(float(equity_T[t] / equity_T[0] - 1.0), sign=True),
            say.percent(float(equity_T[t] / peak_T[t] - 1.0)),
        ]
        if held is not None:
            row += [
                say.percent(float(held[t] / held[0] - 1.0), sign=True),
                say.percent(float(held[t] / held[: t + 1].max() - 1.0)),
            ]
        rows.append(row)
    return table("Equity at evenly spaced closes, the first and the last included", head, rows)


def _evenly(count: int) -> list[int]:
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, TABLE_ROWS)).tolist()}) if count else []


def exposure(data: ReportData, found: Figures) -> Markup:
    """Return the gross exposure over time."""
    if len(found.close_ns_T) < 2:
        return section("exposure", "Exposure", missing(NotMeasured("fewer than two closes have been decided")))
    gross_T = data.equity["gross_exposure"].to_numpy()
    rows = [
        [say.when(from_ns(int(found.close_ns_T[t]))), say.percent(float(gross_T[t]), 1)] for t in _evenly(len(gross_T))
    ]
    made = table("Gross exposure at evenly spaced closes", ["close, UTC", "gross exposure"], rows)
    return section(
        "exposure",
        "Exposure",
        note(
            "Gross position value over equity at every close. The line is the mean of a stretch of closes, the band "
            "reaches from its lowest to its highest value."
        ),
        chart(
            "exposure",
            170,
            "Gross exposure over equity, in percent. Arrow keys move the cursor.",
            "",
        ),
        folded("Exposure as a table", made),
    )


def monthly(found: Figures) -> Markup:
    """Return the table of monthly returns."""
    if not found.months:
        return section("months", "Monthly returns", missing(NotMeasured("fewer than two closes have been decided")))
    years = sorted({month.year for month in found.months})
    by_key = {(month.year, month.month): month for month in found.months}
    largest = max(abs(month.value) for month in found.months)
    rows: list[list[Content]] = []
    for year in years:
        own = [by_key.get((year, month)) for month in range(1, 13)]
        rows.append([str(year), *(_month_cell(month, largest) for month in own), _year_cell(own)])
    parts: list[Content] = [
        note(
            "Calendar months in UTC; the first one begins at the first close. Shades follow the size, the sign says "
            "gain or loss."
        ),
        table("Returns by month, percent", ["year", *month_abbr[1:], "year"], rows, class_="months"),
    ]
    if any(month.benchmark is not None for month in found.months):
        held = [
            [f"{one.year}-{one.month:02d}", say.percent(one.value, sign=True), say.percent(one.benchmark, sign=True)]
            for one in found.months
        ]
        parts.append(folded("Beside buy and hold", table("Returns by month", ["month", "run", "buy and hold"], held)))
    return section("months", "Monthly returns", *parts)


def _month_cell(month: Month | None, largest: float) -> Markup:
    if month is None:
        return tag("td", tag("span", say.DASH, aria_label="no close"))
    level = min(3, 1 + int(3.0 * abs(month.value) / largest)) if largest > 0.0 and month.value else 0
    style = f"{'g' if month.value > 0.0 else 'l'}{level}" if level else None
    return tag("td", say.percent(month.value, sign=True).replace("\u00a0%", ""), class_=style)


def _year_cell(own: Sequence[Month | None]) -> Markup:
    grown = float(np.prod([1.0 + month.value for month in own if month is not None])) - 1.0
    return tag("td", say.percent(grown, sign=True).replace("\u00a0%", ""), class_="year")
