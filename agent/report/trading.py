"""What was executed and what it cost: trades on the price, predicted beside realised costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.report import wording as say
from agent.report.charts import MARKS, SYMBOLS_MAX, shown_symbols
from agent.report.data import NotMeasured, ReportData
from agent.report.elements import chart, folded, missing, note, section, table
from agent.report.figures import CostGroup, Figures
from agent.report.markup import Content, Markup, joined, tag

EXECUTIONS_SHOWN = 400
COST_SYMBOLS_SHOWN = 40


def trades(data: ReportData) -> Markup:
    """Return executions on the price, symbol by symbol, and their table."""
    symbols = shown_symbols(data)
    options = [tag("option", symbol, value=index) for index, symbol in enumerate(symbols)]
    buttons = [
        ("zoom-in", "+", "Zoom in"),
        ("zoom-out", say.MINUS, "Zoom out"),
        ("earlier", "\u2190", "Earlier"),
        ("later", "\u2192", "Later"),
        ("all", "All", "Show the whole run"),
    ]
    hint = "Closing prices and executions; the strip below the price tells when a position was held."
    parts: list[Content] = []
    if isinstance(data.bars, NotMeasured):
        words = ". Executions stand at their own prices."
        parts.append(tag("p", tag("b", "Prices not measured: "), data.bars.reason, words, class_="missing"))
    if len(data.symbols) > SYMBOLS_MAX:
        parts.append(note(f"Charts of the {SYMBOLS_MAX} symbols with the most executions, of {len(data.symbols)}."))
    parts += [
        tag(
            "div",
            tag("label", "Symbol", for_="symbol"),
            tag("select", *options, id="symbol"),
            *(tag("button", face, type="button", id=name, aria_label=label) for name, face, label in buttons),
            class_="tools",
        ),
        tag("ul", *(_mark_legend(key, words) for key, _, words in MARKS), *_held_legend(), class_="legend"),
        chart("price", 320, "Trades on the price", hint, group=None),
        _executions_table(data),
    ]
    return section("trades", "Trades on the price", *parts)


_SHAPES: Mapping[str, str] = {
    "buy": "M7 1L13 12L1 12Z",
    "short": "M7 13L13 2L1 2Z",
    "close": "M3 7a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "stop": "M2 2L12 12M12 2L2 12",
    "take_profit": "M7 1L13 7L7 13L1 7Z",
}


def _mark_legend(key: str, words: str) -> Markup:
    shape = tag("path", class_=f"mark {key}", d=_SHAPES[key])
    return tag("li", tag("svg", shape, class_="shape", viewBox="0 0 14 14", aria_hidden="true"), words)


def _held_legend() -> list[Markup]:
    drawn = [("long", "M0 2H26V8H0Z", "held long (filled)"), ("held-short", "M1 2H25V8H1Z", "held short (outline)")]
    return [
        tag("li", tag("svg", tag("path", class_=style, d=shape), aria_hidden="true"), words)
        for style, shape, words in drawn
    ]


def _executions_table(data: ReportData) -> Markup:
    total = data.executions.height
    if not total:
        return note("Nothing was executed.")
    legs = {"entry": "entry", "close": "close", "stop": "stop", "take_profit": "take-profit"}
    rows = [
        [
            say.when(row["filled_at"]),
            row["symbol"],
            row["side"],
            legs.get(row["leg"], row["leg"]),
            say.amount(row["qty"]),
            say.amount(row["price"]),
            say.money(row["fee"]),
            "not measured" if row["realised_fraction"] is None else say.number(row["realised_fraction"] * 1e4, 1),
        ]
        for row in data.executions.tail(EXECUTIONS_SHOWN).iter_rows(named=True)
    ]
    which = "All" if total <= EXECUTIONS_SHOWN else f"The last {EXECUTIONS_SHOWN} of"
    head = ["filled, UTC", "symbol", "side", "leg", "quantity", "price", "fee, USD", "cost, bps"]
    made = table(f"{which} {say.count(total)} executions", head, rows, text_columns=(0, 1, 2, 3))
    return folded("Executions as a table", made)


def costs(found: Figures) -> Markup:
    """Return predicted beside realised costs, by component, leg and symbol."""
    title = "Costs, predicted and realised"
    whole = found.costs
    if isinstance(whole, NotMeasured):
        own = found.performance
        fees = None if isinstance(own, NotMeasured) else note(f"Fees paid: {say.money(own.fees)} USD.")
        return section("costs", title, missing(whole), fees)
    if not whole.compared:
        none = NotMeasured("nothing was executed whose cost was both predicted and measured")
        return section("costs", title, missing(none))
    said = note(
        f"Over {say.count(whole.compared)} of {say.count(whole.executions)} executions, those with a predicted and a "
        "realised cost. Realised price cost is the fill against the venue's own price at the fill (where it names "
        "none, against the price decided on), so spread and impact cannot be told apart in it."
    )
    legs = [group for group in found.costs_by_leg if group.compared]
    symbols = [group for group in found.costs_by_symbol if group.compared][:COST_SYMBOLS_SHOWN]
    groups = tag(
        "div", _group_table("By leg", "leg", legs), _group_table("By symbol", "symbol", symbols), class_="columns"
    )
    return section("costs", title, said, _cost_bars(whole), _cost_table(whole), _delay(whole), groups)


def _delay(whole: CostGroup) -> Markup:
    if whole.delay is None:
        unknown = "the cost of the delay: no execution tells both the price decided on and the price at the fill"
        return missing(NotMeasured(unknown))
    return note(
        f"Beside this, between decision and fill the price moved {say.money(abs(whole.delay))} USD "
        f"{'against' if whole.delay > 0 else 'in favour of'} the run, over {say.count(whole.delayed)} executions with "
        "both prices. That is chance or adverse selection, not a cost that a model predicts."
    )


def _cost_bars(whole: CostGroup) -> Markup:
    scale = max(whole.predicted, whole.realised, 1e-12)
    foreseen = (
        [("moved", whole.predicted)]
        if whole.predicted_fee is None
        else [
            ("fee", whole.predicted_fee),
            ("spread", whole.predicted_spread or 0.0),
            ("impact", whole.predicted_impact or 0.0),
        ]
    )
    came = [("fee", whole.realised_fee), ("moved", whole.realised_price)]
    keys = [
        ("fee", "fee (solid)"),
        ("spread", "half-spread (stripes)"),
        ("impact", "size impact (dots)"),
        ("moved", "spread and impact together (weave)"),
    ]
    return joined(
        [
            tag(
                "ul",
                *(
                    tag(
                        "li",
                        tag("svg", tag("rect", class_=k, width=26, height=12), class_="key", aria_hidden="true"),
                        w,
                    )
                    for k, w in keys
                ),
                class_="legend",
            ),
            tag(
                "div",
                tag("span", "predicted"),
                _stack(foreseen, scale, "Predicted costs"),
                tag("b", say.money(whole.predicted)),
                tag("span", "realised"),
                _stack(came, scale, "Realised costs"),
                tag("b", say.money(whole.realised)),
                class_="bars",
            ),
        ]
    )


def _stack(parts: Sequence[tuple[str, float]], scale: float, label: str) -> Markup:
    """Return a stacked bar; a negative part (a fill better than the reference) has no length, the table shows it."""
    made, left = [], 0.0
    for style, value in parts:
        width = max(0.0, value) / scale * 100.0
        made.append(tag("rect", class_=style, x=f"{left:.3f}%", y=1, width=f"{width:.3f}%", height=24))
        left += width
    words = ", ".join(f"{style} {value:,.2f}" for style, value in parts)
    return tag("svg", *made, class_="cost", role="img", aria_label=f"{label}: {words} USD")


def _cost_table(whole: CostGroup) -> Markup:
    def both(value: float | None) -> list[str]:
        if value is None:
            return ["not measured", "not measured"]
        return [say.money(value), say.number(whole.bps(value), 2)]

    together = ["", ""]
    price = None
    if whole.predicted_spread is not None and whole.predicted_impact is not None:
        price = whole.predicted_spread + whole.predicted_impact
    rows = [
        ["fee", *both(whole.predicted_fee), *both(whole.realised_fee)],
        ["half-spread", *both(whole.predicted_spread), *together],
        ["size impact", *both(whole.predicted_impact), *together],
        ["spread and impact", *both(price), *both(whole.realised_price)],
    ]
    head = ["", "predicted, USD", "bps", "realised, USD", "bps"]
    foot = ["all", *both(whole.predicted), *both(whole.realised)]
    caption = f"Costs of {say.money(whole.traded_compared)} USD traded"
    return table(caption, head, rows, foot=foot)


def _group_table(caption: str, first: str, groups: Sequence[CostGroup]) -> Markup:
    rows = [
        [
            group.name.replace("_", "-"),
            say.count(group.executions),
            say.money(group.traded),
            say.number(group.bps(group.predicted), 2),
            say.number(group.bps(group.realised), 2),
        ]
        for group in groups
    ]
    return table(caption, [first, "executions", "traded, USD", "predicted, bps", "realised, bps"], rows)
