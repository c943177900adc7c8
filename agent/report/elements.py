"""Parts that every section is built of: headings, notes, tables, places for charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.report.data import NotMeasured
from agent.report.markup import Content, Markup, joined, tag


def section(name: str, title: str, *children: Content) -> Markup:
    """Return one section with its heading."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *children, id=name, aria_labelledby=f"{name}-title")


def note(text: str) -> Markup:
    """Return a line of explanation."""
    return tag("p", text, class_="note")


def missing(what: NotMeasured) -> Markup:
    """Return the words that stand where there is no number."""
    return tag("p", tag("b", "Not measured: "), what.reason, class_="missing")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    text_columns: Sequence[int] = (0,),
    class_: str | None = None,
    foot: Sequence[Content] | None = None,
) -> Markup:
    """Return a table that scrolls within itself on a narrow screen, also by keyboard."""

    def cells(kind: str, row: Sequence[Content]) -> Markup:
        made = []
        for index, cell in enumerate(row):
            if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
                made.append(cell)
                continue
            style = "text" if index in text_columns else None
            if index == 0 and kind == "td":
                made.append(tag("th", cell, scope="row", class_=style))
            else:
                made.append(tag(kind, cell, class_=style, scope="col" if kind == "th" else None))
        return tag("tr", *made)

    body = tag("tbody", *(cells("td", row) for row in rows))
    bottom = None if foot is None else tag("tfoot", cells("td", foot))
    made = tag("table", tag("caption", caption), tag("thead", cells("th", head)), body, bottom, class_=class_)
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)


def folded(summary: str, *children: Content) -> Markup:
    """Return something that opens when asked."""
    return tag("details", tag("summary", summary), *children)


def chart(name: str, height: int, label: str, hint: str, *, group: str | None = "run") -> Markup:
    """Return the place of a chart and the line that reads it out."""
    return joined(
        [
            tag(
                "div",
                class_="chart",
                data_chart=name,
                data_height=height,
                data_group=group,
                data_hint=hint,
                aria_label=label,
            ),
            tag("p", hint, class_="readout", id=f"{name}-readout", aria_live="polite"),
        ]
    )  # fmt: skip


def line_legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return a legend of lines: their class and their name."""
    return tag(
        "ul",
        *(
            tag("li", tag("svg", tag("line", class_=style, x1=0, x2=26, y1=6, y2=6), aria_hidden="true"), words)
            for style, words in entries
        ),
        class_="legend",
    )
