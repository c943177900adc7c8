import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.bar_store import BarStore, BarStoreError
from brokers.bars import load_bars
from brokers.calendar import calendar
from brokers.domain import Bar
from brokers.files import atomic_write
from brokers.series import BarSeries, from_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate

ALWAYS = calendar("24/7")
NYSE = calendar("XNYS")
FIVE = timedelta(minutes=5)
HOUR = timedelta(hours=1)
COLUMNS = ("start_ns", "open_ns", "close_ns", "open", "high", "low", "close", "volume", "adj_factor")


def market(bars: int = 100, name: str = "24/7", symbols: tuple[str, ...] = ("BTC/USD",)) -> dict[str, BarSeries]:
    return generate(SyntheticMarketSettings(bars=bars, calendar=name, symbols=symbols, reveal=True))


def bars_of(series: BarSeries, begin: int = 0, end: int | None = None) -> list[Bar]:
    return [series.bar(i) for i in range(begin, len(series) if end is None else end)]


def assert_same(one: BarSeries, other: BarSeries) -> None:
    for column in COLUMNS:
        assert np.array_equal(getattr(one, column), getattr(other, column)), column
    assert {k: v.tolist() for k, v in one.signals.items()} == {k: v.tolist() for k, v in other.signals.items()}


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path), market(200, "XNYS")["BTC/USD"]
    store.write_session(bars_of(series), period=FIVE, calendar=NYSE)
    assert_same(store.read("BTC/USD", FIVE), series)


def test_whole_series_and_single_bars_are_stored_alike(tmp_path: Path) -> None:
    series = market(200, "XNYS")["BTC/USD"]
    one, other = BarStore(tmp_path / "one"), BarStore(tmp_path / "other")
    one.write_session(bars_of(series), period=FIVE, calendar=NYSE)
    other.write_series({"BTC/USD": series}, period=FIVE)
    assert_same(one.read("BTC/USD", FIVE), other.read("BTC/USD", FIVE))


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 50)), min_size=1, max_size=6))
@settings(max_examples=15)
def test_sessions_written_in_any_order_and_overlap_make_one_series(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]]
) -> None:
    store, series = BarStore(tmp_path_factory.mktemp("store"), tail_bars=20), market(100)["BTC/USD"]
    written = sorted({i for begin, length in parts for i in range(begin, begin + length)})
    for begin, length in parts:
        store.write_session(bars_of(series, begin, begin + length), period=FIVE, calendar=ALWAYS)
    assert store.read("BTC/USD", FIVE).start_ns.tolist() == series.start_ns[written].tolist()
    assert store.read("BTC/USD", FIVE, last_n=7).start_ns.tolist() == series.start_ns[written][-7:].tolist()


def test_the_higher_revision_wins_in_either_order_and_is_counted(tmp_path: Path) -> None:
    series = market(3)["BTC/USD"]
    seen = series.bar(1)
    corrected = replace(seen, close=seen.close * 1.001, high=seen.high * 1.01, revision=1)
    for name, order in (("up", (seen, corrected)), ("down", (corrected, seen))):
        store = BarStore(tmp_path / name)
        reports = [store.write_session([bar], period=FIVE, calendar=ALWAYS) for bar in order]
        assert store.read("BTC/USD", FIVE).close.tolist() == [corrected.close]
        assert [r.revised for r in reports] == ([0, 1] if name == "up" else [0, 0])
        span = (series.bar(0).start, series.bar(2).close_time)
        assert store.completeness("BTC/USD", *span, ALWAYS, FIVE).revised == 1


def test_of_two_revisions_in_one_write_the_higher_is_stored(tmp_path: Path) -> None:
    store, bar = BarStore(tmp_path), market(1)["BTC/USD"].bar(0)
    report = store.write_session([replace(bar, volume=9.0, revision=2), bar], period=FIVE, calendar=ALWAYS)
    assert store.read("BTC/USD", FIVE).volume.tolist() == [9.0]
    assert report.added == 1


def test_the_same_revision_again_changes_nothing(tmp_path: Path) -> None:
    store, bars = BarStore(tmp_path), bars_of(market(5)["BTC/USD"])
    store.write_session(bars, period=FIVE, calendar=ALWAYS)
    report = store.write_session(bars, period=FIVE, calendar=ALWAYS)
    assert (report.added, report.revised, report.unchanged) == (0, 0, 5)


def test_reading_a_span_includes_its_start_and_not_its_end(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path), market(20_000)["BTC/USD"]  # over two turns of a month
    store.write_series({"BTC/USD": series}, period=FIVE)
    part = store.read("BTC/USD", FIVE, start=from_ns(series.start_ns[8_000]), end=from_ns(series.start_ns[18_000]))
    assert_same(part, series.slice(8_000, 18_000))


def test_more_bars_than_the_tail_holds_come_from_the_history(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path, tail_bars=10), market(50)["BTC/USD"]
    store.write_series({"BTC/USD": series}, period=FIVE)
    assert_same(store.read("BTC/USD", FIVE, last_n=30), series.slice(20, 50))
    assert_same(BarStore(tmp_path, tail_bars=40).read("BTC/USD", FIVE, last_n=30), series.slice(20, 50))


def test_a_symbol_without_bars_reads_as_an_empty_series(tmp_path: Path) -> None:
    assert len(BarStore(tmp_path).read("ETH", FIVE, last_n=5)) == 0


def test_symbols_of_one_tail_keep_their_own_signals(tmp_path: Path) -> None:
    store = BarStore(tmp_path)
    plain, rich = market(5, symbols=("A",))["A"], market(5, symbols=("B",))["B"]
    store.write_series({"A": replace(plain, signals={}), "B": rich}, period=FIVE)
    read = store.read_many(["A", "B"], FIVE, 5)
    assert list(read["A"].signals) == []
    assert list(read["B"].signals) == ["deviation"]


def test_a_crash_between_history_and_tail_loses_nothing(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path), market(10)["BTC/USD"]
    store.write_session(bars_of(series, 0, 5), period=FIVE, calendar=ALWAYS)
    stale = (tmp_path / "5m" / "tail.parquet").read_bytes()
    store.write_session(bars_of(series, 5), period=FIVE, calendar=ALWAYS)
    (tmp_path / "5m" / "tail.parquet").write_bytes(stale)
    (tmp_path / "5m" / "tail.dirty").touch()
    assert_same(store.read("BTC/USD", FIVE, last_n=10), series)
    store.write_session(bars_of(series, 9), period=FIVE, calendar=ALWAYS)
    assert not (tmp_path / "5m" / "tail.dirty").exists()
    assert_same(store.read("BTC/USD", FIVE, last_n=10), series)


def test_bars_that_come_in_pieces_are_stored_as_if_they_came_at_once(tmp_path: Path) -> None:
    series = market(300, symbols=("A", "B", "C"))
    at_once, in_pieces = BarStore(tmp_path / "one"), BarStore(tmp_path / "other")
    whole = at_once.write_session([bar for s in series for bar in bars_of(series[s])], period=FIVE, calendar=ALWAYS)
    pieces = (bars_of(series[s], begin, begin + 100) for begin in (0, 100, 200) for s in series)
    assert in_pieces.write_pieces(pieces, period=FIVE, calendar=ALWAYS) == whole
    for symbol in series:
        for last_n in (None, 250):
            assert_same(in_pieces.read(symbol, FIVE, last_n=last_n), at_once.read(symbol, FIVE, last_n=last_n))


def test_pieces_that_break_off_leave_what_was_stored_and_the_next_write_makes_the_tail_whole(tmp_path: Path) -> None:
    series = market(20, symbols=("A", "B"))
    store = BarStore(tmp_path)
    store.write_series({s: part.slice(0, 10) for s, part in series.items()}, period=FIVE)

    def pieces() -> Iterator[list[Bar]]:
        yield bars_of(series["A"], 10)
        raise OSError(errno.EIO, "the ledger's disk is gone")

    with pytest.raises(OSError, match="gone"):
        store.write_pieces(pieces(), period=FIVE, calendar=ALWAYS)
    assert_same(store.read("A", FIVE, last_n=20), series["A"])
    store.write_session(bars_of(series["B"], 10), period=FIVE, calendar=ALWAYS)
    assert not (tmp_path / "5m" / "tail.dirty").exists()
    for symbol, part in store.read_many(["A", "B"], FIVE, 20).items():
        assert_same(part, series[symbol])


def test_a_disk_that_fails_in_a_write_leaves_every_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "bars.parquet"
    target.write_bytes(b"old")

    def fill_the_disk() -> None:
        with atomic_write(target) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with pytest.raises(OSError, match="No space left"):
        fill_the_disk()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["bars.parquet"]  # noqa: PTH208  hidden files count too


_WRITER = """
import sys
from datetime import timedelta
from brokers.bar_store import BarStore
from brokers.calendar import calendar
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
store, five = BarStore(sys.argv[1], tail_bars=50), timedelta(minutes=5)
series = generate(SyntheticMarketSettings(bars=20_000, symbols=("A", "B")))
for begin in range(int(sys.argv[2]), 20_000, 20):
    bars = [series[s].bar(i) for s in series for i in range(begin, begin + 20)]
    store.write_session(bars, period=five, calendar=calendar("24/7"))
    print(begin + 20, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_no_session_that_it_reported(tmp_path: Path) -> None:
    series = generate(SyntheticMarketSettings(bars=20_000, symbols=("A", "B")))
    rng, written = random.Random(5), 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path, str(written)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            written = int(writer.stdout.readline())
            time.sleep(rng.uniform(0.0, 0.1))
            writer.kill()
            written = max([written, *(int(line) for line in writer.stdout.read().split())])
        store = BarStore(tmp_path, tail_bars=50)
        for symbol in ("A", "B"):
            whole = store.read(symbol, FIVE)
            assert len(whole) in {written, written + 20}  # the write it died in is there, or is not, per symbol
            assert np.array_equal(whole.close, series[symbol].close[: len(whole)])
            assert_same(store.read(symbol, FIVE, last_n=30), whole.slice(len(whole) - 30, len(whole)))
    both = [series[symbol].bar(written) for symbol in ("A", "B")]
    store.write_session(both, period=FIVE, calendar=ALWAYS)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".parquet"}


def test_a_torn_chunk_is_named_with_its_remedy(tmp_path: Path) -> None:
    store = BarStore(tmp_path)
    store.write_series(market(5), period=FIVE)
    (chunk,) = (tmp_path / "5m" / "history").rglob("*.parquet")
    chunk.write_bytes(b"torn")
    with pytest.raises(BarStoreError, match=r"2024-01\.parquet cannot be read .* fetch its bars again"):
        store.read("BTC/USD", FIVE)


@pytest.mark.parametrize("symbol", ["..", "."])
def test_a_symbol_cannot_leave_the_store(tmp_path: Path, symbol: str) -> None:
    with pytest.raises(BarStoreError, match="cannot name a folder"):
        BarStore(tmp_path).read(symbol, FIVE)


def test_a_bar_outside_every_session_is_refused(tmp_path: Path) -> None:
    bar = replace(market(1)["BTC/USD"].bar(0), start=datetime(2024, 1, 6, 15, tzinfo=UTC))
    with pytest.raises(BarStoreError, match="outside every session of XNYS"):
        BarStore(tmp_path).write_session([bar], period=FIVE, calendar=NYSE)


def test_a_signal_with_a_reserved_name_is_refused(tmp_path: Path) -> None:
    bar = replace(market(1)["BTC/USD"].bar(0), signals={"adj_close": 1.0})
    with pytest.raises(BarStoreError, match=r"'adj_close' .* reserved"):
        BarStore(tmp_path).write_session([bar], period=FIVE, calendar=ALWAYS)


def test_each_chunk_is_a_valid_bars_file(tmp_path: Path) -> None:
    series = market(50, "XNYS")["BTC/USD"]
    BarStore(tmp_path).write_series({"BTC/USD": series}, period=FIVE)
    (chunk,) = (tmp_path / "5m" / "history").rglob("*.parquet")
    assert_same(load_bars(chunk, period=FIVE, calendar=NYSE)["BTC/USD"], series)


def test_completeness_names_the_missing_closes(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path), market(100, "XNYS")["BTC/USD"]
    bars = bars_of(series)
    store.write_session(bars[:40] + bars[42:], period=FIVE, calendar=NYSE)
    found = store.completeness("BTC/USD", bars[0].start, bars[-1].close_time, NYSE, FIVE)
    assert (found.expected, found.present) == (100, 98)
    assert found.missing == (bars[40].close_time, bars[41].close_time)


def test_staleness_counts_closes_and_not_the_night(tmp_path: Path) -> None:
    store, series = BarStore(tmp_path), market(78, "XNYS")["BTC/USD"]  # one whole session
    store.write_series({"BTC/USD": series}, period=FIVE)
    morning = NYSE.next_session_open(series.bar(77).close_time)
    assert store.staleness("BTC/USD", morning, NYSE, FIVE).missed == 0
    assert store.staleness("BTC/USD", morning + 3 * FIVE, NYSE, FIVE).missed == 3
    assert store.staleness("ETH", morning, NYSE, FIVE).missed is None


def test_a_warm_start_of_a_hundred_symbols_takes_well_under_a_second(tmp_path: Path) -> None:
    store = BarStore(tmp_path)
    world = SyntheticMarketSettings(
        bars=1_100, symbols=tuple(f"S{i:03d}" for i in range(100)), calendar="XNYS", period=HOUR
    )
    store.write_series(generate(world), period=HOUR)
    begin = time.process_time()
    series = store.read_many(world.symbols, HOUR, 1_000)
    assert time.process_time() - begin < 0.8
    assert {len(bars) for bars in series.values()} == {1_000}
