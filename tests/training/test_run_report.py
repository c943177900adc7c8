"""The report of a training: what stands in it, and how a browser shows it.

Pictures go to the folder that TANDEM_SCREENSHOTS names, else to the test's own.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from histories import steady
from hypothesis import given, settings
from hypothesis import strategies as st

from training.dqn.history import History
from training.dqn.run_facts import write_run_facts
from training.dqn.run_report import write_report
from training.dqn.run_svg import Line, line_chart, number
from training.errors import TrainingError

sys.path.append(str(Path(__file__).resolve().parents[1] / "agent"))  # the browser stands beside its first user
from browser import Page, browser, find_browser

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}
FACTS: dict[str, Any] = {
    "configuration": {"training": {"learning_rate": 2.0, "max_grad_norm": 1.0, "name": "<script>alert(1)</script>"}},
    "data": {"symbols": ["AAA"], "groups": 6, "train_bars": 1000, "features": 5},
}


def a_run(folder: Path) -> Path:
    """A training that goes well at first and dies of its learning rate; every metric is there."""
    history = History(folder)
    for n in range(1, 21):
        late = n > 12
        history.append(
            steady(
                100 * n,
                loss=[0.4 + 0.01 * (n % 3), math.nan if n == 20 else 30.0 if n == 13 else 0.4],
                q_abs_max=[4.0, 3.0 + n],
                dead_units=[0.9 if late else 0.1] * 2,
                validation_bps=[-1.0 if late else 0.2 * n] * 2,
                action_share=[{"-1": 0.1, "0": 0.6 - 0.01 * n, "1": 0.3 + 0.01 * n}] * 2,
                attention_entropy=[1.7, 1.6],
                exit_spread=0.4,
                epsilon=1.0 / n,
            )
        )
    write_run_facts(folder, FACTS)
    return write_report(folder)


class Outline(HTMLParser):
    """Every opened element is closed in order; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_sound_and_has_no_script_and_no_address(tmp_path: Path) -> None:
    text = a_run(tmp_path).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert not {"script", "link", "img", "iframe"} & set(outline.seen)
    assert re.findall(r"(?:https?:)?//[\w.]", text) == []
    assert outline.seen.count("svg") == outline.seen.count("figcaption") == 15


def test_what_the_doctor_finds_and_every_setting_stand_in_it(tmp_path: Path) -> None:
    text = a_run(tmp_path).read_text(encoding="utf-8")
    assert "hidden units are dead" in text
    assert "--set training.learning_rate=0.001" in text
    assert "configuration.training.max_grad_norm" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_training_that_goes_well_has_nothing_found(tmp_path: Path) -> None:
    history = History(tmp_path)
    for n in range(1, 12):
        history.append(steady(100 * n, members=1))
    text = write_report(tmp_path, tmp_path / "else" / "page.html").read_text(encoding="utf-8")
    assert "Nothing found." in text
    assert "nothing is known but the history" in text


def test_one_evaluation_is_a_report_and_none_is_an_error(tmp_path: Path) -> None:
    History(tmp_path).append(steady(100))
    write_report(tmp_path)
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(TrainingError, match="no evaluation yet"):
        write_report(tmp_path)


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    History(tmp_path).append(steady(100))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        write_report(tmp_path, tmp_path / "file" / "report.html")


VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=8)


@settings(deadline=None)
@given(values=VALUES, other=VALUES)
def test_any_numbers_make_a_sound_picture_within_its_frame(values: list[float], other: list[float]) -> None:
    length = min(len(values), len(other))
    lines = [Line("<a>", values[:length], values[:length], values[:length]), Line("b", other[:length], reference=True)]
    picture = line_chart("t", "d", [float(k) for k in range(length)], lines, name="n")
    outline = Outline()
    outline.feed(picture)
    assert outline.open == []
    places = [float(v) for v in re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy)="([^"]+)"', picture)]
    places += [float(v) for pair in re.findall(r'points="([^"]+)"', picture) for v in re.split(r"[ ,]", pair)]
    assert all(-1.0 <= place <= 461.0 for place in places)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1234"), (-0.5, "\N{MINUS SIGN}0.5"), (2e-7, "2e\N{MINUS SIGN}7"), (3.1e9, "3.1e9"),
     (123456.0, "123,456"), (math.nan, "not a number")],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium: install it, or name one in TANDEM_CHROMIUM")
    with browser(program) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("training"))


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("view", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_browser_draws_every_chart_without_a_complaint_or_a_request(
    tab: Page, report: Path, view: dict[str, int], colours: str, tmp_path: Path
) -> None:
    tab.open(report.as_uri(), dark=colours == "dark", **view)
    pictures = Path(os.environ.get("TANDEM_SCREENSHOTS") or tmp_path)
    tab.screenshot(pictures / f"training-{view['width']}-{colours}.png")
    assert tab.complaints() == []
    assert tab.requests() == [report.as_uri()]
    drawn = tab.value("[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('polyline').length)")
    assert len(drawn) == 15
    assert min(drawn) >= 1
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.value("document.documentElement.scrollWidth") == view["width"]


COLOURS = """
[...document.querySelectorAll('p, li, h2, h3, figcaption, th, td, code, summary, svg text')].map(element => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number)
      .map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element);
  const inside = element.closest('section') || document.body;
  const ink = element.closest('svg') ? style.fill : style.color;
  const pair = [light(ink), light(getComputedStyle(inside).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
})
"""


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_all_text_has_a_contrast_of_at_least_four_and_a_half(tab: Page, report: Path, colours: str) -> None:
    tab.open(report.as_uri(), dark=colours == "dark", **DESKTOP)
    ratios = tab.value(COLOURS)
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
