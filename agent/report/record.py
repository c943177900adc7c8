"""The full record: every metric with how it is computed, incidents, settings and facts of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.report import wording as say
from agent.report.data import NotMeasured, ReportData
from agent.report.elements import folded, missing, note, section, table
from agent.report.figures import Figures
from agent.report.markup import Content, Markup, tag

INCIDENTS_SHOWN = 200
INCIDENTS_OPEN = 15
"""Incidents that are shown without being asked for."""


def metrics(found: Figures) -> Markup:
    """Return every metric beside buy and hold, with how it is computed."""
    if isinstance(found.performance, NotMeasured):
        return section("metrics", "All metrics", missing(found.performance))
    own = found.performance
    held = None if isinstance(found.benchmark_performance, NotMeasured) else found.benchmark_performance
    rows: list[list[Content]] = [
        [_labelled(label, how), show(own), "not measured" if held is None else show(held)]
        for label, show, how in _METRICS
    ]
    middle = -(-len(rows) // 2)
    head = ["metric", "this run", "buy and hold"]
    caption = "Interest rate zero; annual figures use the closes that a year of the run really had"
    halves = [table(f"Metrics, part {n}", head, part) for n, part in ((1, rows[:middle]), (2, rows[middle:]))]
    parts: list[Content] = [note(caption), tag("div", *halves, class_="columns")]
    if isinstance(found.relative, NotMeasured):
        parts.append(tag("p", tag("b", "Against buy and hold not measured: "), found.relative.reason, class_="missing"))
    else:
        seen = found.relative
        told = [
            ("excess return", say.percent(seen.excess_return, sign=True), "total return less that of buy and hold"),
            ("correlation", say.number(seen.correlation), "of returns per close"),
            ("beta", say.number(seen.beta), "covariance over variance of buy and hold"),
            ("alpha, annual", say.percent(seen.alpha, sign=True), "mean return that beta does not explain"),
            ("information ratio", say.number(seen.information_ratio), "annual mean over deviation of the difference"),
        ]
        against = [[_labelled(label, how), value] for label, value, how in told]
        parts.append(table("Against buy and hold", ["metric", "value"], against))
    return section("metrics", "All metrics", *parts)


def _labelled(label: str, how: str) -> Markup:
    """Return a metric's name and, below it, how it is computed."""
    words = [label, tag("span", how, class_="sentence") if how else None]
    return tag("th", *words, scope="row", class_="text")


def _trips(show: Any) -> Any:
    """Show a metric of round trips only where there are any: buy and hold closes none."""
    return lambda p: show(p) if p.round_trips else "none"


_METRICS: Sequence[tuple[str, Any, str]] = (
    ("total return", lambda p: say.percent(p.total_return, sign=True), "last equity over first"),
    ("annual growth (CAGR)", lambda p: say.percent(p.cagr, sign=True), "compounded over 365.25 days"),
    ("volatility, annual", lambda p: say.percent(p.volatility), "standard deviation of returns per close"),
    ("Sharpe ratio", lambda p: say.number(p.sharpe), "mean over standard deviation, annual"),
    ("its standard error", lambda p: say.number(p.sharpe_se), "with skewness and kurtosis (Mertens 2002)"),
    ("Sortino ratio", lambda p: say.number(p.sortino), "mean over downside deviation, annual"),
    ("Calmar ratio", lambda p: say.number(p.calmar), "annual growth over largest drawdown"),
    ("largest drawdown", lambda p: say.percent(p.max_drawdown), "deepest fall from a peak"),
    ("longest drawdown", lambda p: say.days(p.max_drawdown_days), "from a peak to its recovery, or to the end"),
    ("skewness", lambda p: say.number(p.skewness), "of returns per close"),
    ("excess kurtosis", lambda p: say.number(p.excess_kurtosis), "0 for normal returns"),
    ("expected shortfall, 5 %", lambda p: say.percent(p.expected_shortfall, 3), "mean of the worst 5 % of closes"),
    ("best close", lambda p: say.percent(p.best_close, sign=True), "largest return of one close"),
    ("worst close", lambda p: say.percent(p.worst_close, sign=True), "smallest return of one close"),
    (
        "mean exposure",
        lambda p: "not measured" if p.exposure is None else say.percent(p.exposure, 1),
        "gross position value over equity",
    ),
    (
        "time in the market",
        lambda p: "not measured" if p.time_in_market is None else say.percent(p.time_in_market, 1),
        "share of closes with a position",
    ),
    ("turnover, annual", lambda p: f"{say.number(p.turnover, 1)} \u00d7", "traded value over mean equity, both sides"),
    ("executions", lambda p: say.count(p.executions), ""),
    ("round trips", lambda p: say.count(p.round_trips), "from flat to flat"),
    ("hit rate", _trips(lambda p: say.percent(p.win_rate, 1)), "round trips with a profit after fees"),
    ("profit factor", _trips(lambda p: say.number(p.profit_factor)), "sum of profits over sum of losses"),
    ("payoff ratio", _trips(lambda p: say.number(p.payoff_ratio)), "mean profit over mean loss"),
    ("mean round trip", _trips(lambda p: say.days(p.mean_trip_days)), "from entry to flat"),
    ("fees, USD", lambda p: say.money(p.fees), ""),
    ("fees, bps", lambda p: say.number(p.fees_bps, 2), "of traded value"),
)
"""Label, how to show it, how it is computed."""


def incidents(data: ReportData) -> Markup:
    """Return what a person may want to know."""
    if isinstance(data.incidents, NotMeasured):
        return section("incidents", "Incidents", missing(data.incidents))
    if not data.incidents:
        return section("incidents", "Incidents", note("None: nothing was written down that a person should look at."))
    counts: dict[str, int] = {}
    for one in data.incidents:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    summary = ", ".join(f"{kind} {say.count(number)}" for kind, number in sorted(counts.items(), key=lambda i: -i[1]))
    total = len(data.incidents)
    rows = [
        [say.when(one.at), one.kind, one.symbol or say.DASH, one.detail]
        for one in list(data.incidents)[-INCIDENTS_SHOWN:]
    ]
    which = "All" if total <= INCIDENTS_SHOWN else f"The last {INCIDENTS_SHOWN} of"
    made = table(
        f"{which} {say.count(total)} incidents", ["at, UTC", "kind", "symbol", "what"], rows, text_columns=(0, 1, 2, 3)
    )
    long = len(rows) > INCIDENTS_OPEN
    return section("incidents", "Incidents", note(summary), folded("Incidents as a table", made) if long else made)


def facts(rows: Sequence[tuple[str, str]]) -> Markup:
    """Return settings and facts of the run."""
    made = [[label, tag("td", text, class_="text")] for label, text in rows]
    middle = -(-len(made) // 2)
    halves = [
        table(f"Facts, part {n}", ["what", "value"], part, text_columns=(0, 1))
        for n, part in ((1, made[:middle]), (2, made[middle:]))
    ]
    said = note("As the run recorded them. Paths, addresses and secrets are left out.")
    return section("facts", "Run and settings", said, tag("div", *halves, class_="columns"))
