from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from brokers.bar_faults import find_faults
from brokers.bar_import import import_bars, resample
from brokers.bar_report import check_bars
from brokers.bars import BarsError, infer_period, load_bars, period_text
from brokers.calendar import calendar
from brokers.domain import parse_period
from brokers.series import BarSeries, to_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate

ALWAYS = calendar("24/7")
FIVE = timedelta(minutes=5)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
HEADER = "timestamp,open,high,low,close,volume\n"
GOOD = "2024-01-01T00:00:00Z,10,12,9,11,5\n2024-01-01T00:05:00Z,11,12,10,11,0\n2024-01-01T00:10:00Z,11,13,11,12,7\n"


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: str, name: str = "ETHUSDT.csv", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_text(header + rows)
        return path

    return write


Csv = Callable[..., Path]


def load(path: Path, **options: object) -> dict[str, BarSeries]:
    return load_bars(path, **{"period": None, "calendar": ALWAYS, **options})  # type: ignore[arg-type]  # by name


def fault_of(path: Path, **options: object) -> str:
    with pytest.raises(BarsError) as raised:
        load(path, **options)
    return str(raised.value)


def test_a_file_without_symbols_is_named_after_itself(csv: Csv) -> None:
    assert list(load(csv(GOOD))) == ["ETHUSDT"]


def test_a_file_without_symbols_may_be_named_by_the_caller(csv: Csv) -> None:
    assert list(load(csv(GOOD), symbol="ETH/USD")) == ["ETH/USD"]


def test_starts_and_closes_are_those_of_the_file_and_the_calendar(csv: Csv) -> None:
    bar = load(csv(GOOD))["ETHUSDT"].bar(1)
    assert bar.start == datetime(2024, 1, 1, 0, 5, tzinfo=UTC)
    assert bar.close_time == datetime(2024, 1, 1, 0, 10, tzinfo=UTC)


def test_every_spelling_of_an_aware_time_is_the_same_instant(csv: Csv) -> None:
    rows = GOOD.replace("00:05:00Z", "00:05:00+00:00").replace("2024-01-01T00:10:00Z", "2024-01-01 01:10:00+01:00")
    assert np.array_equal(load(csv(rows))["ETHUSDT"].start_ns, load(csv(GOOD, "B.csv"))["B"].start_ns)


def test_dates_are_session_dates(csv: Csv) -> None:
    bars = load(csv("2024-01-02,10,12,9,11,5\n2024-01-03,11,12,10,11,4\n"), calendar=calendar("XNYS"))["ETHUSDT"]
    assert bars.close_ns[0] == to_ns(datetime(2024, 1, 2, 21, tzinfo=UTC))


def test_naive_times_are_an_error_that_names_the_remedy(csv: Csv) -> None:
    text = fault_of(csv(GOOD.replace("Z", "")))
    assert "timestamps have no time zone (3 rows, first ETHUSDT at 2024-01-01T00:00:00: naive)" in text
    assert "2024-01-31T14:30:00Z" in text
    assert "--timezone" in text


def test_naive_times_in_parquet_are_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "A.parquet"
    columns = {name: [1.0] for name in ("open", "high", "low", "close", "volume")}
    pl.DataFrame({"timestamp": [datetime(2024, 1, 1)], **columns}).write_parquet(path)  # noqa: DTZ001  the fault
    assert "timestamps have no time zone (1 row, first A at 2024-01-01" in fault_of(path)


def test_a_bare_number_is_no_time(csv: Csv) -> None:
    assert "timestamps are not times: Int64" in fault_of(csv("1704067200,1,2,0.5,1,1\n"))


def test_missing_columns_are_named_beside_those_the_file_has(csv: Csv) -> None:
    text = fault_of(csv("1,2\n", header="date,open\n"))
    assert (
        "columns are missing: timestamp, high, low, close, volume; rename or add them; the file has date, open" in text
    )


@pytest.mark.parametrize(
    ("rows", "kind", "where"),
    [
        ("2024-01-01T00:15:00Z,11,13,11,,7\n", "a price is not a finite number", "00:15:00Z: close=nan"),
        ("2024-01-01T00:15:00Z,inf,inf,11,12,7\n", "a price is not a finite number", "00:15:00Z: open=inf"),
        ("2024-01-01T00:15:00Z,11,13,11,abc,7\n", "a price is not a finite number", "00:15:00Z: close=nan"),
        ("2024-01-01T00:15:00Z,11,13,0,12,7\n", "a price is zero or negative", "00:15:00Z: low=0"),
        ("2024-01-01T00:15:00Z,11,13,11,12,-7\n", "volume is negative", "00:15:00Z: volume=-7"),
        ("2024-01-01T00:15:00Z,11,13,11,12,\n", "volume is not a finite number", "00:15:00Z: volume=nan"),
        ("2024-01-01T00:15:00Z,11,10,12,11,7\n", "contradict each other", "00:15:00Z: open=11 high=10 low=12"),
        ("2024-01-01T00:15:00Z,14,13,11,12,7\n", "contradict each other", "00:15:00Z: open=14 high=13"),
        ("2024-01-01T00:10:00Z,11,13,11,12,7\n", "have the same start", "00:10:00Z"),
        ("2023-12-31T23:55:00Z,11,13,11,12,7\n", "not sorted", "2023-12-31T23:55:00Z"),
        ("noon,11,13,11,12,7\n", "a timestamp cannot be read", "noon"),
    ],
)
def test_each_kind_of_fault_names_symbol_time_and_value(csv: Csv, rows: str, kind: str, where: str) -> None:
    text = fault_of(csv(GOOD + rows))
    assert kind in text
    assert "(1 row, first ETHUSDT at " in text
    assert where in text


def test_all_kinds_of_faults_come_in_one_error_with_their_counts(csv: Csv) -> None:
    with pytest.raises(BarsError) as raised:
        load(csv(GOOD + "2024-01-01T00:15:00Z,-1,13,-1,12,-7\n2024-01-01T00:15:00Z,-1,13,-1,12,-7\n"))
    counts = {fault.kind: fault.count for fault in raised.value.faults}
    assert counts == {
        "two bars of one symbol have the same start": 1,
        "a price is zero or negative": 2,
        "volume is negative": 2,
    }
    assert all(fault.remedy for fault in raised.value.faults)


def test_rounding_of_adjusted_prices_is_taken_in_by_high_and_low(csv: Csv) -> None:
    bars = load(csv("2024-01-01T00:00:00Z,10,11,9,11.0000000001,5\n" + GOOD.split("\n", 1)[1]))["ETHUSDT"]
    assert bars.high[0] == bars.close[0]


def test_numeric_columns_are_signals_and_reserved_ones_never(csv: Csv) -> None:
    header = HEADER.strip() + ",adj_factor,adj_close,vwap,bid_close,ask_size,liquidity,sentiment,is_news,note\n"
    rows = "".join(f"2024-01-01T00:0{5 * i}:00Z,10,12,9,11,5,0.5,1,2,3,4,5,0.25,true,x\n" for i in range(2))
    bars = load(csv(rows, header=header))["ETHUSDT"]
    assert {name: column.tolist() for name, column in bars.signals.items()} == {
        "sentiment": [0.25, 0.25],
        "is_news": [1.0, 1.0],
    }
    assert bars.adj_factor.tolist() == [0.5, 0.5]


def test_a_signal_with_a_hole_is_an_error_that_names_it(csv: Csv) -> None:
    rows = "2024-01-01T00:00:00Z,10,12,9,11,5,1\n2024-01-01T00:05:00Z,10,12,9,11,5,\n"
    text = fault_of(csv(rows, header=HEADER.strip() + ",sentiment\n"))
    assert "a signal is not a finite number (1 row, first ETHUSDT at 2024-01-01T00:05:00Z: sentiment=nan)" in text


def test_an_inferred_period_is_the_most_frequent_step_and_is_logged(csv: Csv) -> None:
    with capture_logs() as logs:
        load(csv(GOOD + "2024-01-01T03:00:00Z,11,13,11,12,7\n"))
    assert [(line["event"], line["period_s"]) for line in logs] == [("bars.period_inferred", 300.0)]


def test_one_bar_tells_no_period(csv: Csv) -> None:
    assert "too few bars to infer the period" in fault_of(csv(GOOD.split("\n", 1)[0] + "\n"))


def test_bars_off_the_clock_are_an_error_that_names_the_right_start(csv: Csv) -> None:
    text = fault_of(csv(GOOD.replace(":05:00Z", ":06:00Z")), period=FIVE)
    assert "bars are off the clock grid of 5m (1 row" in text
    assert "that bar starts at 2024-01-01T00:05:00Z" in text


def test_bars_of_a_longer_period_than_was_named_are_an_error_that_names_theirs(csv: Csv) -> None:
    path = csv("".join(f"2024-01-01T{hour:02}:00:00Z,10,12,9,11,5\n" for hour in range(12)))
    text = fault_of(path, period=FIVE)
    assert "no two bars are 5m apart" in text
    assert "name their own period: 1h" in text
    assert [str(fault) in text for fault in check_bars(path, calendar=ALWAYS, period=FIVE).faults] == [True]


def test_bars_outside_sessions_are_dropped_with_a_logged_count(csv: Csv) -> None:
    rows = "2024-01-02T14:00:00Z,10,12,9,11,5\n2024-01-02T15:00:00Z,10,12,9,11,5\n2024-01-02T21:00:00Z,10,12,9,11,5\n"
    with capture_logs() as logs:
        bars = load(csv(rows), period=HOUR, calendar=calendar("XNYS"))["ETHUSDT"]
    assert len(bars) == 2
    assert bars.open_ns[0] == to_ns(datetime(2024, 1, 2, 14, 30, tzinfo=UTC))
    assert [(line["event"], line["count"]) for line in logs] == [("bars.outside_sessions_dropped", 1)]


def test_a_file_with_no_bar_in_any_session_is_an_error(csv: Csv) -> None:
    assert "no bar lies inside a session (3 rows: XNYS)" in fault_of(csv(GOOD), calendar=calendar("XNYS"))


def test_start_is_included_and_end_is_not(csv: Csv) -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    bars = load(csv(GOOD), start=at + FIVE, end=at + 2 * FIVE, period=FIVE)["ETHUSDT"]
    assert bars.start_ns.tolist() == [to_ns(at + FIVE)]


def test_an_absent_symbol_is_an_error_that_lists_the_present_ones(csv: Csv) -> None:
    assert "no bars of a symbol" in fault_of(csv(GOOD), symbols=["BTCUSDT"])
    assert "the file has ETHUSDT" in fault_of(csv(GOOD), symbols=["BTCUSDT"])


@pytest.mark.parametrize("name", ["gone.parquet", "gone.csv", "gone.xlsx"])
def test_a_file_that_is_not_there_is_said_so(tmp_path: Path, name: str) -> None:
    assert "no such file" in fault_of(tmp_path / name)


def test_a_torn_file_is_said_so(tmp_path: Path) -> None:
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and no more")
    assert "the file cannot be read" in fault_of(torn)


@pytest.mark.parametrize("text", ["30s", "5m", "15m", "1h", "4h", "1d"])
def test_a_periods_text_reads_back(text: str) -> None:
    assert period_text(parse_period(text)) == text


@given(st.permutations(list(range(12))), st.sampled_from([60, 300, 3600]))
def test_the_inferred_period_does_not_depend_on_the_order_of_rows(order: list[int], step_s: int) -> None:
    start_ns = np.array(order, dtype=np.int64) * step_s * 1_000_000_000
    assert infer_period([start_ns], "here") == timedelta(seconds=step_s)


def test_hourly_bars_of_new_york_open_with_the_session(market_data: Path) -> None:
    path = market_data / "us_equity_1h.parquet"
    with capture_logs() as logs:
        series = load_bars(path, period=None, calendar=calendar("XNYS"), symbols=["SPY"])["SPY"]
    first_bars = np.flatnonzero(series.open_ns != series.start_ns)
    assert np.all((series.open_ns - series.start_ns)[first_bars] == to_ns(datetime(1970, 1, 1, 0, 30, tzinfo=UTC)))
    sessions = len(np.unique(calendar("XNYS").session_ids(series.start_ns)))
    assert sessions - len(first_bars) == 1  # 2002-09-11, when trading began two hours late
    assert logs[-1]["count"] == 47  # after the early closes of half days


def test_five_minute_crypto_bars_load_whole(market_data: Path) -> None:
    series = load_bars(market_data / "binance_eth_btc_usdt_5m.parquet", period=FIVE, calendar=ALWAYS)
    assert {symbol: len(bars) for symbol, bars in series.items()} == {"BTCUSDT": 131_023, "ETHUSDT": 131_023}


def test_pool_statistics_are_signals_and_liquidity_is_not(market_data: Path) -> None:
    path = market_data / "uniswap_v3_polygon_weth_usdc_1m.parquet"
    (pool,) = load_bars(path, period=None, calendar=ALWAYS).values()
    assert sorted(pool.signals) == ["close_tick", "in_usdc", "in_weth", "net_usdc", "net_weth"]


def test_the_missing_day_is_found_as_one_gap(market_data: Path) -> None:
    report = check_bars(market_data / "binance_eth_btc_usdt_5m.parquet", calendar=ALWAYS)
    gap = report.symbols[1].gaps[0]
    assert (gap.first_close, gap.last_close) == ("2023-12-31T00:00:00Z", "2024-01-01T00:00:00Z")
    assert report.usable


def test_known_and_unknown_splits_are_told_apart(market_data: Path, tmp_path: Path) -> None:
    source = market_data / "us_equity_1h.parquet"
    apple = pl.read_parquet(source).filter(pl.col("symbol") == "AAPL")
    bare = tmp_path / "bare.parquet"
    apple.drop("adj_factor").write_parquet(bare)
    known = check_bars(source, calendar=calendar("XNYS")).symbols[0]
    unknown = check_bars(bare, calendar=calendar("XNYS")).symbols[0]
    assert [(s.start[:10], round(s.ratio)) for s in known.splits] == [
        ("2000-06-21", 2),
        ("2005-02-28", 2),
        ("2014-06-09", 7),
    ]
    assert {s.start for s in known.splits} <= {s.start for s in unknown.suspected_splits}


def test_check_reports_a_faulty_file_and_what_is_in_it(csv: Csv) -> None:
    report = check_bars(csv(GOOD + "2024-01-01T00:10:00Z,11,13,11,12,7\n"), calendar=ALWAYS)
    assert not report.usable
    assert [fault.count for fault in report.faults] == [1]
    assert (report.symbols[0].rows, report.symbols[0].zero_volume) == (3, 1)


def test_an_import_sorts_and_drops_equal_rows(csv: Csv, tmp_path: Path) -> None:
    rows = "".join(reversed(GOOD.splitlines(keepends=True))) + GOOD.splitlines(keepends=True)[0]
    report = import_bars(csv(rows), tmp_path / "out.parquet", calendar=ALWAYS, symbol="ETH")
    assert (report.rows_read, report.rows_written, report.exact_duplicates) == (4, 3, 1)
    clean, good = load(tmp_path / "out.parquet")["ETH"], load(csv(GOOD))["ETHUSDT"]
    assert np.array_equal(clean.close, good.close)
    assert np.array_equal(clean.start_ns, good.start_ns)


def test_an_import_keeps_the_last_of_two_different_rows_only_when_asked(csv: Csv, tmp_path: Path) -> None:
    source, out = csv(GOOD + "2024-01-01T00:10:00Z,11,13,11,11.5,7\n"), tmp_path / "out.parquet"
    with pytest.raises(BarsError, match=r"two different rows for one bar \(1 row.*close=12 and close=11.5"):
        import_bars(source, out, calendar=ALWAYS)
    assert not out.exists()
    report = import_bars(source, out, calendar=ALWAYS, keep_last=True)
    assert report.conflicts_replaced == 1
    assert load(out)["ETHUSDT"].close[-1] == 11.5


def test_an_import_never_invents_a_price(csv: Csv, tmp_path: Path) -> None:
    with pytest.raises(BarsError, match="a price is not a finite number"):
        import_bars(csv(GOOD + "2024-01-01T00:15:00Z,11,13,11,,7\n"), tmp_path / "out.parquet", calendar=ALWAYS)


def test_an_import_reads_naive_times_in_the_zone_it_is_told(csv: Csv, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    import_bars(csv(GOOD.replace("Z", "")), out, calendar=ALWAYS, timezone="America/New_York")
    assert load(out)["ETHUSDT"].start_ns[0] == to_ns(datetime(2024, 1, 1, 5, tzinfo=UTC))


def test_an_import_keeps_reserved_columns(csv: Csv, tmp_path: Path) -> None:
    rows = "".join(f"2024-01-01T00:0{5 * i}:00Z,10,12,9,11,{5 + i},{10 + i},{i}\n" for i in range(2))
    source = csv(rows, header=HEADER.strip() + ",vwap,bid_size\n")
    import_bars(source, tmp_path / "out.parquet", calendar=ALWAYS, period=timedelta(minutes=10))
    row = pl.read_parquet(tmp_path / "out.parquet").row(0, named=True)
    assert row["vwap"] == pytest.approx((5 * 10 + 6 * 11) / 11)
    assert row["bid_size"] == 1


def test_hourly_bars_make_daily_bars_that_close_with_the_session(market_data: Path) -> None:
    nyse = calendar("XNYS")
    hourly = load_bars(market_data / "us_equity_1h.parquet", period=HOUR, calendar=nyse, symbols=["AAPL"])["AAPL"]
    daily = resample(hourly, DAY, nyse)
    half_day = daily.bar(int(np.searchsorted(daily.start_ns, to_ns(datetime(2017, 11, 24, tzinfo=UTC)))))
    assert half_day.close_time == datetime(2017, 11, 24, 18, tzinfo=UTC)
    assert daily.volume.sum() == pytest.approx(hourly.volume.sum())
    assert len(daily) == len(np.unique(nyse.session_ids(hourly.start_ns)))


@given(st.integers(0, 1_000), st.integers(30, 400), st.sampled_from(["24/7", "XNYS"]), st.sampled_from([15, 60, 1440]))
def test_resampling_in_two_steps_is_resampling_in_one(seed: int, bars: int, name: str, minutes: int) -> None:
    trading, period = calendar(name), timedelta(minutes=minutes)
    world = SyntheticMarketSettings(seed=seed, bars=bars, calendar=name, splits=((17, 4.0),))
    fine = generate(world)["SYNTH"]
    direct = resample(fine, period, trading)
    twice = resample(resample(fine, timedelta(minutes=15), trading), period, trading)
    for column in ("start_ns", "open_ns", "close_ns", "open", "high", "low", "close", "volume", "adj_factor"):
        assert getattr(direct, column) == pytest.approx(getattr(twice, column), rel=1e-12)


@given(st.integers(0, 1_000), st.sampled_from(["24/7", "XNYS"]))
def test_resampled_bars_are_valid_and_lie_on_the_calendars_grid(seed: int, name: str) -> None:
    trading = calendar(name)
    fine = generate(SyntheticMarketSettings(seed=seed, bars=300, calendar=name, reveal=True))["SYNTH"]
    hourly = resample(fine, HOUR, trading)
    columns = {c: getattr(hourly, c) for c in ("start_ns", "open", "high", "low", "close", "volume", "adj_factor")}
    assert find_faults({"SYNTH": columns}) == []
    assert np.array_equal(trading.starts_ns(hourly.open_ns, 3_600_000_000_000), hourly.start_ns)
    last_pieces = np.searchsorted(fine.close_ns, hourly.close_ns)
    assert np.array_equal(fine.signals["deviation"][last_pieces], hourly.signals["deviation"])


def test_a_last_bar_whose_end_is_not_there_yet_is_left_out() -> None:
    fine = generate(SyntheticMarketSettings(bars=20))["SYNTH"]
    assert len(resample(fine, HOUR, ALWAYS)) == 1


def test_bars_cannot_be_made_shorter() -> None:
    fine = generate(SyntheticMarketSettings(bars=20))["SYNTH"]
    with pytest.raises(BarsError, match="do not nest in the period"):
        resample(fine, timedelta(minutes=1), ALWAYS)


@pytest.mark.parametrize("symbol", ["A\x1b[31mB", "A\nB", "\u202eABC", "A" * 65])
def test_a_symbol_that_a_terminal_would_obey_or_nobody_can_read_is_a_fault(tmp_path: Path, symbol: str) -> None:
    path = tmp_path / "bars.parquet"
    columns = {name: [1.0] for name in ("open", "high", "low", "close", "volume")}
    start = [datetime(2024, 1, 1, tzinfo=UTC)]
    pl.DataFrame({"timestamp": start, "symbol": [symbol], **columns}).write_parquet(path)
    text = fault_of(path)
    assert f"a symbol cannot be shown as it is (1 row: {symbol[:64]!a})" in text
    assert symbol not in text
