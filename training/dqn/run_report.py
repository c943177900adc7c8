"""A training as one HTML file that loads nothing and runs nothing: findings, curves with their numbers, settings.

The content security policy allows exactly this page's style, by hash, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from brokers.files import atomic_write
from training.dqn.course import Course, Float
from training.dqn.doctor import Finding, judge
from training.dqn.history import read_history
from training.dqn.run_facts import read_run_facts
from training.dqn.run_svg import Line, line_chart, number
from training.errors import TrainingError

FILE = "report.html"
ROWS_MAX = 200
"""Rows of a chart's table; of longer histories evenly chosen ones."""
TARGET_NAMES = {"-1": "short", "0": "flat", "1": "long"}


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run, whole or not at all; returns its file, `RUN/report.html` where none is named.

    Raises:
        TrainingError: The run has no history, or the file cannot be written.
    """
    path = run_dir / FILE if out is None else out
    page = render(run_dir.resolve().name, Course(_records(run_dir), read_run_facts(run_dir)))
    try:
        with atomic_write(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written ({error.strerror or error}): check folder and disk") from error
    return path


def _records(run_dir: Path) -> list[dict[str, Any]]:
    records = read_history(run_dir)
    if not records:
        raise TrainingError(f"{run_dir} holds no evaluation yet: let the training run until its first one")
    return records


def render(title: str, course: Course) -> str:
    """Return the page."""
    style = files("training.dqn").joinpath("run_report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    charts = "".join(_figure(number_, chart, course) for number_, chart in enumerate(_charts(course), start=1))
    curves = f'<p class="note">{_legend(course)}</p><div class="charts">{charts}</div>'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>Training {escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>Training {escape(title)}</h1>{_lead(course)}</header>\n<main>\n"
        f"{_findings(judge(list(course.records), course.facts))}\n"
        f"{_section('curves', 'Curves', curves)}\n"
        f"{_settings(course.facts)}\n</main>\n"
        "<footer><p>Made by Tandem. This file loads nothing from anywhere. Validation on past bars is no forecast.</p>"
        "</footer>\n</body>\n</html>\n"
    )


def _lead(course: Course) -> str:
    last = course.records[-1]
    value, error = course.mean("validation_bps")[-1], course.mean("validation_error_bps")[-1]
    members = len(last["loss"])
    return (
        f'<p class="lead">Validation earned <strong>{number(float(value))} ± {number(float(error))} bp per bar'
        f"</strong> after costs at update {last['update']:,} (one standard error), training rows "
        f"{number(float(course.mean('train_bps')[-1]))}. {members} member{'s' if members > 1 else ''}, "
        f"{len(course)} evaluations, {number(last['cpu_s'])} CPU-seconds.</p>"
    )


def _legend(course: Course) -> str:
    members = len(course.records[0]["loss"])
    band = "Bands reach from the lowest to the highest member. " if members > 1 else ""
    return f"Lines are the mean of the members. {band}Below each chart are its numbers."


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        body = '<p class="healthy">Nothing found.</p><p class="note">No symptom passes its threshold.</p>'
    else:
        body = "".join(map(_finding, found))
    return _section("findings", "The doctor", body)


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'


def _finding(one: Finding) -> str:
    causes = "".join(
        f"<li>{escape(cause.title)}{_list(cause.evidence)}<p>Try: <code>{escape(cause.change)}</code></p></li>"
        for cause in one.causes
    )
    seen = one.symptom
    return (
        f'<article class="finding {seen.severity}"><p class="kind">{seen.severity}</p><h3>{escape(seen.title)}</h3>'
        f'<p class="note"><code>{escape(seen.name)}</code>, since update {seen.since_update:,}</p>'
        f"{_list(seen.evidence)}<p>Likely causes, the likeliest first:</p><ol>{causes}</ol></article>"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


@dataclass(frozen=True, slots=True)
class _Chart:
    """One figure: its lines, and what they say in words."""

    title: str
    caption: str
    lines: tuple[Line, ...]


def _charts(course: Course) -> Iterator[_Chart]:
    yield _Chart("What it earns", "After costs, basis points per bar; the band is a standard error around validation.",
                 (_with_error(course), _mean_of(course, "train_bps", "training")))  # fmt: skip
    yield _Chart("Loss", "Mean of the updates since the evaluation before.", (_members(course, "loss", "loss"),))
    quantiles = (("td_p50", "median"), ("td_p90", "90 %"), ("td_p99", "99 %"))
    yield _Chart("TD errors", "Quantiles of their absolute size, in deviations of a bar's reward.",
                 tuple(_mean_of(course, name, label) for name, label in quantiles))  # fmt: skip
    bound = [float(record["q_bound"]) for record in course.records]
    yield _Chart("Values", "The largest absolute value, and what discounted rewards cannot exceed.",
                 (_members(course, "q_abs_max", "largest"), Line("bound", bound, reference=True)))  # fmt: skip
    yield _Chart("Gradient", "Norm before clipping, and the limit it is clipped to.",
                 (_members(course, "grad_norm", "norm"), *_limit(course)))  # fmt: skip
    yield _Chart("Clipped", "Share of the updates whose gradient was clipped.",
                 (_members(course, "grad_clipped", "clipped"),))  # fmt: skip
    yield _Chart("Target network", "Root mean square of online minus target values.",
                 (_members(course, "target_gap", "gap"),))  # fmt: skip
    targets = list(course.records[0]["action_share"][0])
    yield _Chart("Best target", "Share of the training rows at which each target is the best.",
                 tuple(Line(TARGET_NAMES[one], course.shares_KEN[:, :, n].mean(axis=1).tolist())
                       for n, one in enumerate(targets)))  # fmt: skip
    yield _Chart("Entropy", "Of those shares, nats; zero where one target is always the best.",
                 (Line("entropy", course.action_entropy_K.tolist()),))  # fmt: skip
    yield _Chart("Turnover", "Sides traded per bar in validation.", (_members(course, "turnover", "sides"),))
    yield _Chart("Dead units", "Share of hidden units that no training row activates.",
                 (_members(course, "dead_units", "dead"),))  # fmt: skip
    yield _Chart("Learning rate", "As the schedule set it.", (_members(course, "lr", "rate"),))
    if course.records[-1]["attention_entropy"] is not None:
        yield _Chart("Attention", "Its entropy, nats; the line is that of even attention.",
                     (_members(course, "attention_entropy", "entropy"), *_even(course)))  # fmt: skip
    for name, title, caption in (
        ("exit_spread", "Exits", "Deviation of the proposed stop distances over their mean."),
        ("epsilon", "Exploration", "Share of random actions."),
        ("beta", "Importance weights", "Their exponent."),
    ):
        values = [record[name] for record in course.records]
        if any(value is not None for value in values):
            yield _Chart(title, caption, (Line(name, [math.nan if v is None else float(v) for v in values]),))


def _mean_of(course: Course, name: str, label: str) -> Line:
    return Line(label, course.mean(name).tolist())


def _members(course: Course, name: str, label: str) -> Line:
    values_KE = course.members(name)
    if values_KE.shape[1] == 1:
        return Line(label, values_KE[:, 0].tolist())
    return Line(label, course.mean(name).tolist(), values_KE.min(axis=1).tolist(), values_KE.max(axis=1).tolist())


def _with_error(course: Course) -> Line:
    value_K, error_K = course.mean("validation_bps"), course.mean("validation_error_bps")
    return Line("validation", value_K.tolist(), (value_K - error_K).tolist(), (value_K + error_K).tolist())


def _limit(course: Course) -> tuple[Line, ...]:
    limit = course.number("max_grad_norm")
    largest = float(np.nanmax(np.where(np.isfinite(norms := course.members("grad_norm")), norms, np.nan), initial=0.0))
    # a limit far above everything would press the curve flat; it stands among the settings
    if limit is None or limit > 100.0 * max(largest, 1e-12):
        return ()
    return (Line("limit", [limit] * len(course), reference=True),)


def _even(course: Course) -> tuple[Line, ...]:
    groups = course.fact("data", "groups")
    return () if not groups or groups < 2 else (Line("even", [math.log(groups)] * len(course), reference=True),)


def _figure(index: int, chart: _Chart, course: Course) -> str:
    at = course.updates_K.astype(np.float64)
    parts = [f"{line.name} {number(line.values[-1])}" for line in chart.lines]
    said = f"{chart.caption} At the end: {', '.join(parts)}."
    picture = line_chart(chart.title, said, at.tolist(), chart.lines, name=f"chart{index}")
    return (
        f"<figure>{picture}<figcaption><b>{escape(chart.title)}</b>{escape(said)}</figcaption>"
        f"{_numbers(chart, course.updates_K.astype(np.float64))}</figure>"
    )


def _numbers(chart: _Chart, updates_K: Float) -> str:
    columns: list[tuple[str, Sequence[float]]] = []
    for line in chart.lines:
        columns.append((line.name, line.values))
        if line.low:
            columns += [(f"{line.name}, lower edge", line.low), (f"{line.name}, upper edge", line.high)]
    kept = np.unique(np.linspace(0, len(updates_K) - 1, min(len(updates_K), ROWS_MAX)).astype(int)).tolist()
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in columns)
    rows = "".join(
        f'<tr><th scope="row">{updates_K[k]:,.0f}</th>'
        + "".join(f"<td>{number(values[k])}</td>" for _, values in columns)
        + "</tr>"
        for k in kept
    )
    caption = f"{chart.title}: {len(kept)} of {len(updates_K)} evaluations"
    return (
        f'<details><summary>Numbers: {escape(chart.title.lower())}</summary><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption><thead><tr>'
        f'<th scope="col">update</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _settings(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td class="text">{escape(_told(value))}</td></tr>'
        for name, value in _flat(facts, "")
    )
    body = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings and data"><table>'
        f"<caption>Settings and data of this training</caption><tbody>{rows}</tbody></table></div>"
        if rows
        else '<p class="note">The folder has no run.json: nothing is known but the history.</p>'
    )
    return (
        f'<section id="settings" aria-labelledby="settings-title"><h2 id="settings-title">Settings</h2>{body}</section>'
    )


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from _flat(value[key], f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value


def _told(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(_told, value)) or "none" if isinstance(value, list) else str(value)
