"""The page: sections put into one HTML file that loads nothing and runs only its own script.

The content security policy allows exactly this page's style and script, by hash, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from agent.report import deciding, over_time, record, trading
from agent.report.charts import payload
from agent.report.data import ReportData
from agent.report.figures import Figures, figures, span
from agent.report.markup import Content, Markup, data_block, joined, tag
from agent.report.wording import when
from brokers.files import atomic_write

SYMBOLS_IN_TITLE_MAX = 6
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_LINKS = (
    ("equity", "Equity"),
    ("months", "Months"),
    ("trades", "Trades"),
    ("exposure", "Exposure"),
    ("costs", "Costs"),
    ("reasons", "Reasons"),
    ("minds", "Minds"),
    ("metrics", "Metrics"),
    ("incidents", "Incidents"),
    ("facts", "Run"),
)


def write_report(path: Path, data: ReportData) -> Figures:
    """Write the report to a file, whole or not at all; returns the numbers it shows.

    Raises:
        OSError: The file cannot be written.
    """
    found = figures(data)
    text = render(data, found, datetime.now(UTC))
    with atomic_write(path) as file:
        file.write(text.encode())
    return found


def render(data: ReportData, found: Figures, made_at: datetime) -> str:
    """Return the page."""
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    closes = span(found.close_ns_T)
    facts = [
        *data.facts,
        ("symbols", ", ".join(data.symbols)),
        ("first close", "none" if closes is None else f"{when(closes[0])} UTC"),
        ("last close", "none" if closes is None else f"{when(closes[1])} UTC"),
        ("read from", data.source),
        ("report made", f"{when(made_at.replace(microsecond=0))} UTC"),
    ]
    body = joined(
        [
            over_time.headline(found),
            over_time.equity(data, found),
            over_time.monthly(found),
            trading.trades(data),
            over_time.exposure(data, found),
            trading.costs(found),
            deciding.reasons(found),
            deciding.minds(found),
            record.metrics(found),
            record.incidents(data),
            record.facts(facts),
        ]
    )
    names = list(data.symbols[:SYMBOLS_IN_TITLE_MAX])
    more = len(data.symbols) - len(names)
    shown = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return _filled(
        _part("page.html"),
        {
            "policy": joined([policy]),
            "title": joined([f"{data.strategy} on {shown}"]),
            "style": Markup(style),
            "heading": joined([data.strategy, tag("small", f" on {shown}")]),
            "lead": over_time.lead(found),
            "links": joined([tag("a", label, href=f"#{name}") for name, label in _LINKS]),
            "body": body,
            "foot": _foot(),
            "data": data_block(payload(data, found)),
            "script": Markup(script),
        },
    )


def _foot() -> Content:
    return tag(
        "p",
        "Made by Tandem. This file loads nothing from anywhere. Numbers come from the run's ledger and bars; what they "
        "do not hold is called not measured. Paper trading is no forecast, and nothing here is financial advice.",
    )


def _part(name: str) -> str:
    return files("agent.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _filled(template: str, values: Mapping[str, Content]) -> str:
    """Put values into the template in one pass: what a value holds is never looked at again."""
    return _SLOT.sub(lambda match: values[match[1]] or "", template)
