"""The report in a real browser: what a person sees, on a screen, on a phone, in the dark, with the keyboard alone.

Pictures go to the folder that TANDEM_SCREENSHOTS names, else to the test's own.
"""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser, find_browser
from report_kit import a_run, long_run, with_two_minds
from tandem_cli import replay_settings

from agent.report import NotMeasured, write_report

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium: install it, or name one in TANDEM_CHROMIUM")
    with browser(program) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", with_two_minds(a_run(folder)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "report.html"
    write_report(path, long_run())
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("TANDEM_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


OPEN_DETAILS = "document.querySelectorAll('details').forEach(one => one.open = true)"
PRICE = "document.querySelector('[data-chart=price]')"

VIEWS: dict[str, dict[str, Any]] = {
    "desktop": DESKTOP,
    "desktop-dark": {**DESKTOP, "dark": True},
    "phone": PHONE,
    "phone-dark": {**PHONE, "dark": True},
}


@pytest.mark.parametrize("view", VIEWS)
def test_it_draws_every_chart_without_a_word_on_the_console_or_a_request(
    tab: Page, report: Path, pictures: Path, view: str
) -> None:
    tab.open(report.as_uri(), **VIEWS[view])
    tab.screenshot(pictures / f"report-{view}.png")
    assert tab.complaints() == []
    assert tab.requests() == [report.as_uri()]
    drawn = tab.value(
        "Object.fromEntries([...document.querySelectorAll('[data-chart]')].map(box => [box.dataset.chart,"
        " [...box.querySelectorAll('path')].filter(p => p.getTotalLength() > 20).length]))"
    )
    assert set(drawn) == {"equity", "drawdown", "price", "exposure"}
    assert all(paths > 0 for paths in drawn.values()), drawn
    assert tab.value("document.querySelectorAll('.mark').length") > 20


@pytest.mark.parametrize("details", ["closed", "open"])
def test_nothing_is_wider_than_the_phone(tab: Page, report: Path, details: str) -> None:
    tab.open(report.as_uri(), **PHONE)
    if details == "open":
        tab.value(OPEN_DETAILS)
    assert tab.value("document.documentElement.scrollWidth") == 360
    wide = tab.value(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, nav, svg, .skip')"
        " && e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 120))"
    )
    assert wide == []


def test_what_can_be_pressed_on_the_phone_is_large_enough_for_a_finger(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **PHONE)
    small = tab.value(
        "[...document.querySelectorAll('button, select')].map(e => [e.id, e.getBoundingClientRect()])"
        ".filter(([, box]) => box.height < 24 || box.width < 24).map(([id]) => id)"
    )
    assert small == []


CONTRAST = """
(() => {
  const parts = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style, noscript, .skip")) continue;
    const style = getComputedStyle(element);
    if (style.visibility === "hidden" || !element.getClientRects().length) continue;
    const ink = parts(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))].sort((p, q) => q - p);
    const key = `${ink} on ${ground(element)}`;
    const text = walker.currentNode.data.trim().slice(0, 40);
    found.set(key, { ratio: (a + 0.05) / (b + 0.05), text, opaque: ink[3] === 1 });
  }
  return [...found.entries()].map(([colours, rest]) => ({ colours, ...rest }));
})()
"""


@pytest.mark.parametrize("view", ["desktop", "desktop-dark", "phone", "phone-dark"])
def test_all_text_has_a_contrast_of_at_least_four_and_a_half(tab: Page, report: Path, view: str) -> None:
    tab.open(report.as_uri(), **VIEWS[view])
    tab.value(OPEN_DETAILS)
    measured = tab.value(CONTRAST)
    assert len(measured) > 5
    assert [one for one in measured if one["ratio"] < 4.5 or not one["opaque"]] == []


def test_the_theme_button_wins_over_the_system_s_colours(tab: Page, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.open(report.as_uri(), **DESKTOP)
    light = tab.value(ground)
    tab.open(report.as_uri(), **DESKTOP, dark=True)
    dark = tab.value(ground)
    assert light != dark
    seen = []
    for _ in range(3):
        tab.value("document.getElementById('theme').click()")
        seen.append((tab.value("document.getElementById('theme').textContent"), tab.value(ground)))
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: auto", dark)]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP)
    tab.value("document.body.focus()")
    path = []
    for _ in range(40):
        tab.press("Tab")
        path.append(
            tab.value(
                "(e => ({name: e.id || e.dataset.chart || e.tagName, text: (e.textContent || '').slice(0, 30),"
                " ring: e.matches(':focus-visible') ? getComputedStyle(e).outlineStyle : 'none'}))"
                "(document.activeElement)"
            )
        )
    path = path[: next((n for n, stop in enumerate(path) if stop["name"] == "BODY"), None)]  # the page's end
    names = [stop["name"] for stop in path]
    assert path[0]["text"] == "Skip to the report"
    assert [n for n in ("theme", "equity", "drawdown", "symbol", "zoom-in", "price") if n not in names] == []
    assert names.index("theme") < names.index("equity") < names.index("drawdown") < names.index("symbol")
    assert {stop["ring"] for stop in path} == {"solid"}


def test_arrow_keys_read_a_chart_out_and_escape_lets_go(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP)
    said = "document.getElementById('equity-readout').textContent"
    hint = tab.value(said)
    tab.value("document.querySelector('[data-chart=equity]').focus()")
    tab.press("Home")
    first = tab.value(said)
    assert "this run 0.00 %" in first
    assert "buy and hold 0.00 %" in first
    tab.press("ArrowRight")
    assert tab.value(said) != first
    # the charts over the whole run share the cursor
    assert "UTC" in tab.value("document.getElementById('exposure-readout').textContent")
    tab.press("Escape")
    assert tab.value(said) == hint
    tab.press("End")
    shown = tab.value("document.querySelector('.lead strong:nth-of-type(2)').textContent").replace("\u00a0", " ")
    assert f"this run {shown.lstrip('+')}" in tab.value(said)
    assert tab.complaints() == []


def test_keys_buttons_and_dragging_zoom_into_the_price(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP)
    labels = "[...document.querySelectorAll('[data-chart=price] .tick')].map(t => t.textContent).join()"
    whole = tab.value(labels)
    tab.value("document.getElementById('zoom-in').click()")
    closer = tab.value(labels)
    tab.value("document.getElementById('earlier').click()")
    earlier = tab.value(labels)
    assert len({whole, closer, earlier}) == 3
    tab.value("document.getElementById('all').click()")
    assert tab.value(labels) == whole
    tab.value(f"{PRICE}.focus()")
    tab.press("+")
    assert tab.value(labels) != whole
    tab.press("Escape")
    assert tab.value(labels) == whole
    tab.value(PRICE + ".scrollIntoView({block: 'center', behavior: 'instant'})")
    box = tab.value(f"(b => [b.x, b.y, b.width, b.height])({PRICE}.getBoundingClientRect())")
    y = box[1] + box[3] / 2
    drag = [("mousePressed", 0.4), ("mouseMoved", 0.5), ("mouseReleased", 0.6)]
    for kind, share in drag:
        tab.ask(
            "Input.dispatchMouseEvent",
            type=kind,
            x=box[0] + share * box[2],
            y=y,
            button="left",
            clickCount=1,
            buttons=1,
        )
    assert tab.value(labels) != whole


def test_ticks_of_an_axis_are_evenly_spaced_as_they_are_written(tab: Page, report: Path) -> None:
    for view in (DESKTOP, PHONE):
        tab.open(report.as_uri(), **view)
        labels = tab.value(
            "[...document.querySelectorAll('[data-chart]')].map(box => [...box.querySelectorAll('.tick')]"
            ".filter(t => t.getAttribute('text-anchor') === 'end' && t.previousSibling.classList.contains('grid'))"
            ".map(t => Number(t.textContent.replace('\u2212', '-').replace(/[ %,]/g, ''))))"
        )
        assert len(labels) == 4
        for ticks in labels:
            steps = [b - a for a, b in pairwise(ticks)]
            assert steps == pytest.approx([steps[0]] * len(steps))


def test_choosing_a_symbol_shows_its_own_trades(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP)
    state = f"[{PRICE}.querySelector('.price').getAttribute('d').slice(0, 200), {PRICE}.ariaLabel]"
    first = tab.value(state)
    tab.value("(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.getElementById('symbol'))")
    second = tab.value(state)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_run_without_bars_or_trades_has_a_page_without_an_error(tab: Page, tmp_path: Path) -> None:
    nothing = a_run(tmp_path, symbols=("AAA",), bars=20, settings=replay_settings(strategy={"name": "flat"}))
    why = NotMeasured("there are none")
    bare = replace(nothing, bars=why, predictions=why, incidents=why)
    write_report(tmp_path / "bare.html", bare)
    tab.open((tmp_path / "bare.html").as_uri(), **PHONE)
    for name in ("zoom-in", "zoom-out", "earlier", "later", "all", "theme"):
        tab.value(f"document.getElementById('{name}').click()")
    tab.value(f"{PRICE}.focus()")
    for key in ("End", "ArrowLeft", "+", "Escape"):
        tab.press(key)
    assert tab.complaints() == []
    assert tab.value("document.documentElement.scrollWidth") == 360


def test_a_hostile_name_does_nothing_and_is_shown_as_it_is(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP)
    options = tab.value("[...document.querySelectorAll('#symbol option')].map(o => o.textContent)")
    assert any(option.startswith("<script>alert(") for option in options)
    assert tab.value("document.querySelectorAll('script').length") == 2
    assert not [event for event in tab.events if event["method"] == "Page.javascriptDialogOpening"]


class _Counting(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        del arguments


def test_its_policy_refuses_every_request_even_to_where_it_came_from(tab: Page, report: Path) -> None:
    asked: list[str] = []
    handler = type("Handler", (_Counting,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(report.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tab.open(f"http://127.0.0.1:{server.server_port}/report.html", **DESKTOP)
        tried = tab.value(
            "(async () => { const refused = []; document.addEventListener('securitypolicyviolation',"
            " e => refused.push(e.effectiveDirective));"
            " await fetch('/stolen').catch(() => 0);"
            " const image = new Image(); image.src = '/picture.png'; document.body.append(image);"
            " const code = document.createElement('script'); code.src = '/code.js'; document.body.append(code);"
            " const own = document.createElement('script'); own.textContent = 'window.broken = 1';"
            " document.body.append(own);"
            " await new Promise(done => setTimeout(done, 300)); return [refused.sort(), window.broken]; })()"
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert tried[0] == ["connect-src", "img-src", "script-src-elem", "script-src-elem"]
    assert tried[1] is None
    assert [path for path in asked if path not in {"/report.html", "/favicon.ico"}] == []


def test_a_run_of_a_quarter_million_rows_is_drawn_within_seconds(tab: Page, long_report: Path, pictures: Path) -> None:
    tab.open(long_report.as_uri(), **PHONE)
    assert tab.complaints() == []
    assert tab.value("document.documentElement.scrollWidth") == 360
    spent_ms = tab.value(
        "(() => { const began = performance.now(); document.getElementById('zoom-in').click();"
        " document.getElementById('all').click(); return performance.now() - began; })()"
    )
    assert spent_ms < 10_000
    tab.open(long_report.as_uri(), **DESKTOP)
    tab.screenshot(pictures / "long-desktop.png")
    assert tab.complaints() == []


def test_print_shows_ink_on_paper_without_controls(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP, dark=True)
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    shown = tab.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " ...['nav', '.tools'].map(name => getComputedStyle(document.querySelector(name)).display)]"
    )
    tab.ask("Emulation.setEmulatedMedia", media="")
    assert shown == ["rgb(255, 255, 255)", "rgb(0, 0, 0)", "none", "none"]


def test_nothing_moves_for_whoever_wants_calm(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), **DESKTOP, features={"prefers-reduced-motion": "reduce"})
    assert tab.value("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
