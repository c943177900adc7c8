from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jquantstats import Data
from report_kit import HOSTILE, a_run, long_run, replayed_into, with_two_minds
from sqlalchemy import delete, select
from tandem_cli import replay_settings, tandem

from agent.ledger import schema
from agent.ledger.store import open_ledger
from agent.report import NotMeasured, ReportData, figures, from_folder, from_ledger, render, write_report
from agent.report.benchmark import buy_and_hold
from agent.report.charts import payload, unpack
from agent.report.data import ReportError
from agent.report.figures import ANSWERS, Agreement, CostGroup, months, votes
from agent.report.markup import Markup, data_block, tag
from agent.report.thinning import banded, buckets_of, thin
from brokers.bar_store import BarStore
from brokers.costs import CostModel
from brokers.series import BarSeries
from strategies.performance import Performance

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY_NS = 86_400 * 10**9
FREE = CostModel(fee_bps=0.0, half_spread_bps=0.0, impact=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return with_two_minds(a_run(tmp_path_factory.mktemp("run")))


class Reader(HTMLParser):
    """What a browser would make of a page: elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def page(data: ReportData) -> str:
    return render(data, figures(data), NOW)


def series(
    symbol: str, opens: list[float], closes: list[float], *, factor: list[float] | None = None, day: int = 0
) -> BarSeries:
    """Daily bars without a range, so that no impact is paid."""
    start = (np.arange(len(opens), dtype=np.int64) + day) * DAY_NS
    opened, closed = np.array(opens), np.array(closes)
    adj = np.ones(len(opens)) if factor is None else np.array(factor)
    high, low = np.maximum(opened, closed), np.minimum(opened, closed)
    return BarSeries(symbol, start, start + DAY_NS, start, opened, high, low, closed, np.full(len(opens), 1e6), adj)


def days(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64) * DAY_NS


# ---- buy and hold ---------------------------------------------------------------------------------


def test_buy_and_hold_buys_at_the_open_after_the_first_close_and_pays_every_cost() -> None:
    bars = {"A": series("A", [99.0, 100.0, 110.0], [100.0, 110.0, 120.0])}
    flat = CostModel(fee_bps=10.0, half_spread_bps=5.0, impact=0.0)
    found = buy_and_hold(bars, flat, days(1, 2, 3), 1_000.0)
    price = 100.0 * 1.0005
    qty = 1_000.0 / (price * 1.001)
    assert found.equity_T == pytest.approx([1_000.0, qty * 110.0, qty * 120.0])
    assert float(found.executions.price[0]) == pytest.approx(price)
    assert float(found.executions.fee[0]) == pytest.approx(qty * price * 0.001)


def test_buy_and_hold_spends_exactly_its_share_with_the_impact_of_its_own_size() -> None:
    bars = {"A": series("A", [90.0, 100.0, 110.0], [100.0, 110.0, 120.0])}
    costs = CostModel(impact=0.8)
    made = buy_and_hold(bars, costs, days(1, 2, 3), 50_000.0).executions
    spent = float(made.signed_qty[0] * made.price[0] + made.fee[0])
    assert spent == pytest.approx(50_000.0, rel=1e-9)
    assert float(made.price[0]) > 100.0 * (1.0 + costs.half_spread_bps * 1e-4)


def test_buy_and_hold_weighs_symbols_equally_and_never_rebalances() -> None:
    bars = {"A": series("A", [10.0] * 3, [10.0, 20.0, 40.0]), "B": series("B", [10.0] * 3, [10.0, 10.0, 5.0])}
    found = buy_and_hold(bars, FREE, days(1, 2, 3), 200.0)
    assert found.equity_T == pytest.approx([200.0, 300.0, 450.0])
    assert found.exposure_T == pytest.approx([0.0, 1.0, 1.0])


def test_buy_and_hold_passes_through_a_split_without_a_step() -> None:
    bars = {"A": series("A", [10.0, 10.0, 5.0], [10.0, 10.0, 5.0], factor=[1.0, 1.0, 2.0])}
    assert buy_and_hold(bars, FREE, days(1, 2, 3), 100.0).equity_T == pytest.approx([100.0] * 3)


def test_buy_and_hold_keeps_dividends_as_cash() -> None:
    ratio = 1.0 / 0.96  # 4 % of the close before
    bars = {"A": series("A", [10.0, 10.0, 9.6, 4.8], [10.0, 10.0, 9.6, 4.8], factor=[1.0, 1.0, ratio, ratio])}
    found = buy_and_hold(bars, FREE, days(1, 2, 3, 4), 100.0)
    assert found.equity_T == pytest.approx([100.0, 100.0, 100.0, 52.0])
    assert float(found.exposure_T[-1]) == pytest.approx(48.0 / 52.0)


def test_buy_and_hold_waits_in_cash_for_a_symbol_that_begins_later() -> None:
    bars = {"A": series("A", [10.0] * 4, [10.0] * 4), "B": series("B", [10.0, 10.0], [10.0, 20.0], day=2)}
    found = buy_and_hold(bars, FREE, days(1, 2, 3, 4), 200.0)
    assert found.equity_T == pytest.approx([200.0, 200.0, 200.0, 300.0])


def test_buy_and_hold_waits_as_many_opens_as_the_latency_says() -> None:
    bars = {"A": series("A", [1.0, 10.0, 20.0, 20.0], [10.0, 20.0, 20.0, 40.0])}
    late = replace(FREE, latency_bars=2)
    assert buy_and_hold(bars, late, days(1, 2, 3, 4), 100.0).equity_T == pytest.approx([100.0, 100.0, 100.0, 200.0])


# ---- thinning -------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.integers(1, 40),
    st.lists(st.integers(1, 50), min_size=300, max_size=300),
)
def test_thinning_keeps_every_bucket_s_lowest_and_highest_value(
    values: list[float], buckets: int, gaps: list[int]
) -> None:
    value, time = np.array(values), np.cumsum(gaps)[: len(values)].astype(np.int64)
    kept = thin(time, value, buckets)
    assert (np.diff(kept) > 0).all()
    assert {0, len(values) - 1} <= set(kept.tolist())
    assert len(kept) <= max(2 * buckets + 2, 1)
    bucket = buckets_of(time, buckets)
    for one in np.unique(bucket):
        whole, thinned = value[bucket == one], value[kept[bucket[kept] == one]]
        assert (whole.min(), whole.max()) == (thinned.min(), thinned.max())


def test_a_band_has_the_mean_and_the_edges_of_each_bucket() -> None:
    time = np.array([0, 1, 2, 10, 11, 19], dtype=np.int64)
    at, mean, low, high = banded(time, np.array([1.0, 2.0, 6.0, 5.0, 7.0, 3.0]), 2)
    assert (at.tolist(), mean.tolist()) == ([2, 19], [3.0, 5.0])
    assert (low.tolist(), high.tolist()) == ([1.0, 3.0], [6.0, 7.0])


def test_a_run_of_a_quarter_million_rows_stays_below_two_megabytes_and_keeps_its_spike(tmp_path: Path) -> None:
    data = long_run()
    assert data.decisions.height == 262_046
    found = write_report(tmp_path / "report.html", data)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    _, drawn = unpack(payload(data, found)["charts"]["equity"]["series"][0])
    returns = found.equity_T / found.equity_T[0] - 1.0
    assert max(drawn) == pytest.approx(returns.max(), rel=1e-5)
    assert min(drawn) == pytest.approx(returns.min(), rel=1e-5)


# ---- numbers --------------------------------------------------------------------------------------


def test_months_multiply_to_the_whole_and_are_those_of_an_independent_library() -> None:
    rng = np.random.default_rng(2)
    count = 200
    equity = 1_000.0 * np.cumprod(1.0 + np.concatenate(([0.0], rng.normal(0.001, 0.02, count))))
    begin = datetime(2023, 11, 14, tzinfo=UTC)
    dates = [begin + timedelta(days=day, hours=21) for day in range(count + 1)]
    close_ns = np.array([int(date.timestamp()) * 10**9 for date in dates], dtype=np.int64)
    found = months(equity, close_ns, None)
    assert math.prod(1.0 + month.value for month in found) == pytest.approx(equity[-1] / equity[0])
    frame = pl.DataFrame({"date": [d.replace(tzinfo=None) for d in dates[1:]], "run": equity[1:] / equity[:-1] - 1.0})
    library = Data.from_returns(frame).stats.monthly_returns(eoy=False)["run"]
    names = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
    by_year = {int(row["year"]): row for row in library.rename(str.lower).iter_rows(named=True)}
    for month in found:
        assert month.value == pytest.approx(by_year[month.year][names[month.month - 1].lower()])


def test_a_close_at_midnight_belongs_to_the_month_that_it_ends() -> None:
    times = [datetime(2024, 3, day, tzinfo=UTC) for day in (30, 31)] + [
        datetime(2024, 4, day, tzinfo=UTC) for day in (1, 2)
    ]
    close_ns = np.array([int(time.timestamp()) * 10**9 for time in times], dtype=np.int64)
    found = months(np.array([100.0, 100.0, 110.0, 99.0]), close_ns, None)
    assert [(month.month, month.value) for month in found] == [(3, pytest.approx(0.1)), (4, pytest.approx(-0.1))]


def test_every_reason_and_outcome_is_counted_once(run: ReportData) -> None:
    found = figures(run)
    for counted in (found.reasons, found.outcomes):
        assert sum(sum(by.values()) for by in counted.values()) == run.decisions.height
    text = Reader(page(run)).text
    assert all(code in text for code in [*found.reasons, *found.outcomes])
    assert "target_held" in found.outcomes


def test_minds_abstain_with_their_codes_and_the_gate_is_none_of_them(run: ReportData) -> None:
    found = {mind.name: mind for mind in figures(run).minds}
    assert set(found) == {"fused", "dqn", "llm"}
    count = run.decisions.height
    assert found["llm"].abstentions == {"llm_timeout": -(-count // 5)}
    assert found["llm"].spoken == count - -(-count // 5)
    assert found["dqn"].followed == count


def test_the_agreement_of_two_minds_is_cohen_s() -> None:
    rows = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    said = [json.dumps({"a": {"target": a}, "b": {"target": b}}) for a, b in rows]
    said.append(json.dumps({"a": {"target": 1}, "b": {"abstained": "llm_busy"}}))
    _, (pair,) = votes(pl.DataFrame({"votes": said, "target": [0] * len(said)}))
    assert (pair.both, pair.share) == (50, pytest.approx(0.7))
    assert pair.kappa == pytest.approx(0.4)


def test_minds_that_never_speak_together_have_no_agreement() -> None:
    table = {answer: dict.fromkeys(ANSWERS, 0) for answer in ANSWERS}
    assert (Agreement("a", "b", table).share, Agreement("a", "b", table).kappa) == (None, None)


def test_costs_by_leg_and_by_symbol_add_up_to_the_whole(run: ReportData) -> None:
    found = figures(run)
    whole = found.costs
    assert isinstance(whole, CostGroup)
    assert whole.compared > 0
    for groups in (found.costs_by_leg, found.costs_by_symbol):
        assert sum(group.executions for group in groups) == run.executions.height
        assert sum(group.realised for group in groups) == pytest.approx(whole.realised)
        assert sum(group.predicted for group in groups) == pytest.approx(whole.predicted)
    assert whole.predicted == pytest.approx(
        (whole.predicted_fee or 0) + (whole.predicted_spread or 0) + (whole.predicted_impact or 0)
    )
    assert whole.realised == pytest.approx(whole.realised_fee + whole.realised_price)


def test_the_realised_cost_of_an_entry_is_the_fill_against_the_price_at_the_open(run: ReportData) -> None:
    row = run.executions.filter(pl.col("leg") == "entry").row(0, named=True)
    one = run.executions.filter(pl.col("exec_id") == row["exec_id"])
    found = figures(replace(run, executions=one)).costs
    assert isinstance(found, CostGroup)
    sign = 1.0 if row["side"] == "buy" else -1.0
    slipped = sign * (row["price"] - row["quote_price"]) / row["quote_price"] * row["qty"] * row["price"]
    assert found.realised_price == pytest.approx(slipped, rel=1e-6)


# ---- what is not there ----------------------------------------------------------------------------


def test_a_backtest_without_its_ledger_says_what_is_not_measured_and_why(tmp_path: Path) -> None:
    folder = backtest(tmp_path)
    data = from_folder(folder)
    found = figures(data)
    assert isinstance(found.performance, Performance)
    for missing in (found.benchmark, found.relative, data.bars):
        assert isinstance(missing, NotMeasured)
        assert "--keep-ledger" in missing.reason
    assert isinstance(found.costs, CostGroup)
    assert found.costs.compared == data.executions.height > 0
    assert data.incidents == []
    assert "not measured" in Reader(page(data)).text


def test_a_kept_ledger_gives_what_the_backtest_itself_reported(tmp_path: Path) -> None:
    folder = backtest(tmp_path, "--keep-ledger")
    metrics = json.loads((folder / "metrics.json").read_text())
    found = figures(from_folder(folder))
    assert isinstance(found.performance, Performance)
    assert metrics["performance"]["sharpe"] == pytest.approx(found.performance.sharpe)
    assert metrics["trades"] == found.performance.executions
    own, remade = (folder / "report.html").read_text(), page(from_folder(folder))
    assert section_of(own, "equity") == section_of(remade, "equity")
    assert section_of(own, "costs") == section_of(remade, "costs")


def section_of(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found is not None
    return found[0]


def test_a_run_that_never_traded_has_no_invented_numbers(tmp_path: Path) -> None:
    settings = replay_settings(strategy={"name": "flat"})
    url = replayed_into(tmp_path, bars=60, settings=settings)
    data = read(url)
    found = figures(data)
    assert isinstance(found.performance, Performance)
    assert (found.performance.sharpe, found.performance.win_rate, found.performance.fees_bps) == (None, None, None)
    text = Reader(page(data)).text
    assert "not defined" in text
    assert "Nothing was executed." in text
    assert "nan" not in text.lower().replace("finance", "").replace("financial", "")


def test_a_single_close_is_no_performance(tmp_path: Path) -> None:
    url = replayed_into(tmp_path, bars=60, settings=replay_settings(daemon={"max_bars": 1, "bar_store": None}))
    data = read(url)
    assert data.equity.height == 1
    assert "fewer than two closes" in Reader(page(data)).text


def test_bars_that_left_the_ledger_leave_prices_but_no_buy_and_hold(tmp_path: Path) -> None:
    url = replayed_into(tmp_path, bars=80)
    ledger = open_ledger(url, create=False)
    try:
        with ledger.transaction() as connection:
            middle = list(connection.execute(select(schema.cycles.c.close_time)))[40][0]
            connection.execute(delete(schema.bars_seen).where(schema.bars_seen.c.close_time < middle))
    finally:
        ledger.close()
    data = read(url)
    found = figures(data)
    assert isinstance(found.benchmark, NotMeasured)
    assert "no longer kept for AAA, BBB" in found.benchmark.reason
    assert all(symbol["series"] for symbol in payload(data, found)["symbols"])


def test_a_symbol_without_a_bar_takes_buy_and_hold_with_it_and_no_other_s_price(run: ReportData) -> None:
    assert not isinstance(run.bars, NotMeasured)
    partly = replace(run, bars={"BBB": run.bars["BBB"]})
    found = figures(partly)
    assert isinstance(found.benchmark, NotMeasured)
    assert {one["name"]: bool(one["series"]) for one in payload(partly, found)["symbols"]} == {
        "BBB": True,
        HOSTILE: False,
    }
    assert "no bars of" in Reader(page(partly)).text


def test_bars_that_left_the_ledger_are_read_from_the_bar_store(tmp_path: Path) -> None:
    settings = replay_settings(daemon={"bar_store": None})
    url = replayed_into(tmp_path, bars=80, settings=settings)
    whole = read(url)
    assert not isinstance(whole.bars, NotMeasured)
    BarStore(tmp_path / "bars").write_series(whole.bars, period=timedelta(minutes=5))
    ledger = open_ledger(url, create=False)
    try:
        with ledger.transaction() as connection:
            connection.execute(delete(schema.bars_seen).where(schema.bars_seen.c.symbol == "AAA"))
        stored = from_ledger(ledger, bar_store=tmp_path / "bars")
    finally:
        ledger.close()
    assert figures(stored).summary()["buy_and_hold"] == figures(whole).summary()["buy_and_hold"]


def test_a_ledger_without_a_run_cannot_be_reported(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'new.sqlite'}")
    try:
        with pytest.raises(ReportError, match="no daemon has run"):
            from_ledger(ledger)
    finally:
        ledger.close()


def read(url: str) -> ReportData:
    ledger = open_ledger(url, create=False)
    try:
        return from_ledger(ledger)
    finally:
        ledger.close()


# ---- the page -------------------------------------------------------------------------------------


def test_a_hostile_name_stays_text(run: ReportData) -> None:
    read_back = Reader(page(run))
    scripts = [attributes for name, attributes in read_back.elements if name == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [name for name, _ in read_back.elements if name in {"img", "iframe", "object", "embed", "link"}]
    assert not [a for _, attributes in read_back.elements for a in attributes if a.startswith("on") or a == "style"]
    assert HOSTILE in read_back.text
    assert "<img src=x onerror=alert(1)>" in read_back.text


def test_the_data_block_is_json_that_names_the_symbols_as_they_are(run: ReportData) -> None:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(run), re.DOTALL)
    assert block is not None
    assert [symbol["name"] for symbol in json.loads(block[1])["symbols"]] in ([HOSTILE, "BBB"], ["BBB", HOSTILE])


@given(st.text())
def test_text_and_data_never_leave_their_place(text: str) -> None:
    element = tag("p", text, title=text)
    assert Reader(element).elements[0][0] == "p"
    assert len(Reader(element).elements) == 1
    assert json.loads(data_block({"value": text}))["value"] == text
    assert "<" not in data_block({"value": text})
    assert isinstance(element, Markup)


def test_the_policy_allows_this_style_and_this_script_and_no_address(run: ReportData) -> None:
    text = page(run)
    read_back = Reader(text)
    metas = [attributes for name, attributes in read_back.elements if name == "meta"]
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        content = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_no_path_address_or_account_is_on_the_page(tmp_path: Path) -> None:
    settings = replay_settings(
        account_scope="my-private-account",
        ledger={"url": "postgresql://someone:hunter2@db.internal/tandem"},
        venue={"kind": "exchange", "url": "http://10.1.2.3:8790"},
    )
    text = page(read(replayed_into(tmp_path, bars=80, settings=settings)))
    for secret in ("hunter2", "db.internal", "10.1.2.3", "my-private-account", str(tmp_path)):
        assert secret not in text


def test_every_chart_has_a_name_and_a_table(run: ReportData) -> None:
    text = page(run)
    read_back = Reader(text)
    charts = [a for _, a in read_back.elements if "data-chart" in a]
    assert [a["data-chart"] for a in charts] == ["equity", "drawdown", "price", "exposure"]
    assert all(a["aria-label"] for a in charts)
    for summary in ("Equity and drawdown as a table", "Executions as a table", "Exposure as a table"):
        assert summary in read_back.text


def test_numbers_are_said_with_a_true_minus_and_zero_has_no_sign() -> None:
    from agent.report.wording import money, percent  # noqa: PLC0415 - used here alone

    assert percent(-0.1234, sign=True) == "\u221212.34\u00a0%"
    assert percent(-0.000001, sign=True) == "0.00\u00a0%"
    assert money(-1234.5) == "\u22121,234.50"
    assert percent(None) == "not defined"


# ---- the command ----------------------------------------------------------------------------------


def backtest(tmp_path: Path, *more: str) -> Path:
    from brokers.simulated.synthetic import SyntheticMarketSettings, generate  # noqa: PLC0415 - used here alone

    made = generate(SyntheticMarketSettings(symbols=("AAA", "BBB"), bars=300))
    frames = [
        pl.DataFrame(
            {
                "timestamp": pl.Series(one.start_ns).cast(pl.Datetime("ns", "UTC")),
                "symbol": [symbol] * len(one),
                **{name: getattr(one, name) for name in ("open", "high", "low", "close", "volume")},
            }
        )
        for symbol, one in made.items()
    ]
    pl.concat(frames).write_parquet(tmp_path / "bars.parquet")
    out = tmp_path / "run"
    done = tandem(
        "backtest", "--bars", tmp_path / "bars.parquet", "--out", out, "--strategy", "random", "--exact", *more
    )
    assert done.code == 0, done.err
    return out


def test_the_command_writes_the_page_and_prints_its_numbers(tmp_path: Path) -> None:
    url = replayed_into(tmp_path, bars=120)
    done = tandem("report", "--ledger", url, "--out", tmp_path / "r.html", "--json")
    assert done.code == 0, done.err
    assert done.json["bytes"] == (tmp_path / "r.html").stat().st_size
    assert done.json["closes"] == 120
    assert done.json["buy_and_hold"]["executions"] == 2
    assert Decimal(str(done.json["performance"]["fees"])) > 0


def test_the_command_without_json_says_what_it_wrote(tmp_path: Path) -> None:
    url = replayed_into(tmp_path, bars=120)
    done = tandem("report", "--set", f"ledger.url={url}", "--out", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert "buy and hold" in done.out
    assert "r.html" in done.out


def test_a_folder_excludes_a_ledger(tmp_path: Path) -> None:
    assert tandem("report", "--run", tmp_path, "--ledger", "sqlite:///x.sqlite").code == 2


def test_a_folder_without_a_backtest_and_a_missing_ledger_fail_with_a_remedy(tmp_path: Path) -> None:
    nothing = tandem("report", "--run", tmp_path, "--out", tmp_path / "r.html")
    absent = tandem("report", "--ledger", f"sqlite:///{tmp_path / 'no.sqlite'}", "--out", tmp_path / "r.html")
    assert (nothing.code, absent.code) == (1, 1)
    assert "tandem backtest --out" in nothing.err
    assert "no ledger" in absent.err
    assert not (tmp_path / "r.html").exists()
