"""Why it was decided so: reasons and outcomes, doing nothing included, and how the minds agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.reasons import SENTENCES, sentence
from agent.report import wording as say
from agent.report.data import NotMeasured
from agent.report.elements import folded, missing, note, section, table
from agent.report.figures import ABSTAINED, ANSWERS, Agreement, Figures, Mind
from agent.report.markup import Content, Markup, joined, tag


def reasons(found: Figures) -> Markup:
    """Return every reason and outcome with its count, doing nothing included."""
    total = sum(found.actions.values())
    if not total:
        return section("reasons", "Decisions and their reasons", missing(NotMeasured("nothing has been decided yet")))
    held = found.actions.get("HOLD", 0)
    seen = found.reasons.keys() | found.outcomes.keys()
    never = ", ".join(sorted(str(code) for code in SENTENCES if code not in seen))
    return section(
        "reasons",
        "Decisions and their reasons",
        note(
            f"{say.count(total)} decisions, one for each bar and symbol: {say.count(held)} of them HOLD "
            f"({say.percent(held / total, 1)}). Doing nothing is a decision and has its reason like any other."
        ),
        _reason_table("What the strategy said", found.reasons, total),
        _reason_table("What became of it", found.outcomes, total),
        folded("Codes that did not occur", tag("p", never, class_="note")),
    )


def _reason_table(caption: str, counted: Mapping[str, Mapping[str, int]], total: int) -> Markup:
    actions = ("HOLD", "BUY", "SELL")
    rows: list[list[Content]] = []
    for code, by_action in counted.items():
        number = sum(by_action.values())
        bar = tag(
            "svg",
            tag("rect", class_="rest", width="100%", height=9),
            tag("rect", class_="part", width=f"{number / total * 100.0:.3f}%", height=9),
            class_="bar",
            aria_hidden="true",
        )
        words = joined([tag("code", code), tag("span", sentence(code), class_="sentence")])
        rows.append(
            [
                tag("th", words, scope="row", class_="text"),
                say.count(number),
                say.percent(number / total),
                tag("td", bar, class_="narrow-hide"),
                *(say.count(by_action.get(action, 0)) for action in actions),
            ]
        )
    head: list[Any] = ["code", "count", "share", tag("th", "", class_="narrow-hide", aria_hidden="true"), *actions]
    sums = [say.count(sum(by.get(action, 0) for by in counted.values())) for action in actions]
    foot: list[Content] = ["all", say.count(total), say.percent(1.0), tag("td", "", class_="narrow-hide"), *sums]
    return table(caption, head, rows, foot=foot)


def minds(found: Figures) -> Markup:
    """Return what each mind said, and how far every two agree."""
    title = "The minds and their agreement"
    if not found.minds:
        return section("minds", title, missing(NotMeasured("no decision carries a vote")))
    rows = [_mind_row(mind) for mind in found.minds]
    head = ["mind", *ANSWERS, "with the decision", "abstained because"]
    parts: list[Content] = [
        table("Votes: the target each mind wanted", head, rows, text_columns=(0, 7)),
    ]
    if not found.agreements:
        parts.append(note("One mind decided: there is no other vote to compare it with."))
    parts += [_pair(pair) for pair in found.agreements]
    return section("minds", title, *parts)


def _mind_row(mind: Mind) -> list[Content]:
    share = say.percent(mind.followed / mind.spoken, 1) if mind.spoken else say.UNDEFINED
    why = ", ".join(f"{code} {say.count(number)}" for code, number in mind.abstentions.items()) or say.DASH
    counts = [say.count(mind.answers[word]) for word in ANSWERS]
    return [tag("th", mind.name, scope="row", class_="text"), *counts, share, why]


def _pair(pair: Agreement) -> Markup:
    rows: list[list[Content]] = []
    for word in ANSWERS:
        cells: list[Content] = [tag("th", f"{pair.first}: {word}", scope="row", class_="text")]
        for other in ANSWERS:
            same = word == other and word != ABSTAINED
            cells.append(tag("td", say.count(pair.table[word][other]), class_="same" if same else None))
        rows.append(cells)
    said = (
        f"On {say.count(pair.both)} decisions both named a target: the same one {say.percent(pair.share, 1)} of the "
        f"time (the shaded diagonal), Cohen's kappa {say.number(pair.kappa)}."
        if pair.both
        else "There is no decision on which both named a target."
    )
    head = ["", *(f"{pair.second}: {word}" for word in ANSWERS)]
    made = table(f"Decisions by answer of {pair.first} and {pair.second}", head, rows)
    return joined([tag("h3", f"{pair.first} and {pair.second}"), note(said), made])
