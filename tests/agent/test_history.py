from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from agent import history as history_module
from agent.app import check_bar_store, claim_bar_store
from agent.history import KEEP_IN_LEDGER, History, bar_of
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.minds import StartError
from agent.settings import load
from agent.store_lock import held_bar_store
from brokers.bar_store import BarStore
from brokers.calendar import calendar
from brokers.domain import Bar, Quote
from strategies.features import FeatureSpec, Group, IncrementalFeatures

PERIOD = timedelta(hours=1)
BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
ALWAYS = calendar("24/7")
SPEC = FeatureSpec((Group("returns", "returns", {"horizons": [1, 4, 16], "unit": 16}),), PERIOD.total_seconds())
SYMBOLS = ("AAA", "BBB", "CCC")


def bar(symbol: str, number: int, *, close: float | None = None, revision: int = 0) -> Bar:
    price = 100.0 + len(symbol) + number % 7 if close is None else close
    start = BEGIN + number * PERIOD
    return Bar(
        symbol=symbol,
        start=start,
        close_time=start + PERIOD,
        open=price,
        high=price + 1.0,
        low=price - 1.0,
        close=price,
        volume=10.0 + number,
        revision=revision,
    )


class Recorded:
    """Market data that answers from a table of bars and remembers what was asked."""

    def __init__(self, bars: Mapping[str, Sequence[Bar]]) -> None:
        self.table = bars
        self.asked: list[tuple[tuple[str, ...], datetime]] = []

    async def bars(
        self, symbols: Sequence[str], period: timedelta, start: datetime, end: datetime
    ) -> Mapping[str, Sequence[Bar]]:
        assert period == PERIOD
        self.asked.append((tuple(symbols), start))
        return {s: [b for b in self.table.get(s, ()) if start <= b.start < end] for s in symbols}

    async def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        raise AssertionError(f"nobody asks for quotes of {symbols}")


class StoppedClock:
    stepped = True

    def now(self) -> datetime:
        return BEGIN

    async def advance(self, idle_until: datetime) -> datetime:
        return idle_until


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    opened = open_ledger("sqlite://")
    yield opened
    opened.close()


def make(ledger: Ledger, data: Recorded, store: Path | None) -> History:
    return History(
        store_root=store,
        ledger=ledger,
        data=data,
        clock=StoppedClock(),
        calendar=ALWAYS,
        symbols=SYMBOLS,
        period=PERIOD,
        features=IncrementalFeatures(SPEC, SYMBOLS, ALWAYS, PERIOD),
    )


def write(ledger: Ledger, bars: Sequence[Bar]) -> None:
    names = ("symbol", "start", "close_time", "open", "high", "low", "close", "volume", "adj_factor", "revision")
    rows = [{name: getattr(each, name) for name in names} | {"signals": None} for each in bars]
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.bars_seen, rows)


def play(history: History, ledger: Ledger, numbers: range) -> None:
    """Close after close: the bars into the ledger, then the look whether a session has ended."""
    for number in numbers:
        write(ledger, [bar(symbol, number) for symbol in SYMBOLS])
        history.compact(BEGIN + (number + 1) * PERIOD)


def latest_of_everything(data: Recorded, until: datetime) -> np.ndarray:
    """What features say that were given every bar, one after the other."""
    features = IncrementalFeatures(SPEC, SYMBOLS, ALWAYS, PERIOD)
    features.append_many(b for s in SYMBOLS for b in data.table[s] if b.close_time <= until)
    return features.latest(SYMBOLS)


def test_a_cold_start_fills_the_features_from_the_venue_alone(ledger: Ledger) -> None:
    data = Recorded({s: [bar(s, n) for n in range(60)] for s in SYMBOLS})
    history = make(ledger, data, None)
    until = BEGIN + 50 * PERIOD
    newest = asyncio.run(history.warm_all(until))
    assert {s: b.close_time for s, b in newest.items()} == dict.fromkeys(SYMBOLS, until)
    np.testing.assert_allclose(history.features.latest(SYMBOLS), latest_of_everything(data, until), rtol=0, atol=1e-12)


def test_symbols_are_asked_for_a_few_at_a_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "BARS_AT_ONCE", round(2 * 1.1 * (SPEC.memory_bars + 2)))
    data = Recorded({s: [bar(s, n) for n in range(60)] for s in SYMBOLS})
    asyncio.run(make(ledger, data, None).warm_all(BEGIN + 50 * PERIOD))
    assert [symbols for symbols, _ in data.asked] == [("AAA", "BBB"), ("CCC",)]


def test_a_warm_start_asks_only_for_what_came_since_and_knows_the_same(ledger: Ledger, tmp_path: Path) -> None:
    data = Recorded({s: [bar(s, n) for n in range(90)] for s in SYMBOLS})
    play(make(ledger, data, tmp_path), ledger, range(80))
    history = make(ledger, data, tmp_path)
    until = BEGIN + 85 * PERIOD
    newest = asyncio.run(history.warm_all(until))
    assert [start for _, start in data.asked] == [BEGIN + 80 * PERIOD]
    assert newest["CCC"] == bar("CCC", 84)
    np.testing.assert_allclose(history.features.latest(SYMBOLS), latest_of_everything(data, until), rtol=0, atol=1e-12)


def test_a_revision_in_the_ledger_wins_over_the_stored_and_the_fetched_bar(ledger: Ledger, tmp_path: Path) -> None:
    data = Recorded({s: [bar(s, n) for n in range(60)] for s in SYMBOLS})
    BarStore(tmp_path).write_session(
        [b for bars in data.table.values() for b in bars[:50]], period=PERIOD, calendar=ALWAYS
    )
    revised = bar("BBB", 49, close=150.0, revision=1)
    write(ledger, [revised])
    newest = asyncio.run(make(ledger, data, tmp_path).warm_all(BEGIN + 50 * PERIOD))
    assert newest["BBB"] == revised
    assert newest["AAA"] == bar("AAA", 49)


def test_each_ended_session_is_stored_whole(ledger: Ledger, tmp_path: Path) -> None:
    play(make(ledger, Recorded({}), tmp_path), ledger, range(100))
    for symbol in SYMBOLS:
        stored = BarStore(tmp_path).read(symbol, PERIOD)
        assert stored.close.tolist() == [bar(symbol, n).close for n in range(len(stored))]
        assert len(stored) >= 96


def test_a_session_is_stored_once(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    plain = BarStore.write_pieces

    def counting(store: BarStore, pieces: Iterable[Sequence[Bar]], **options: object) -> object:
        kept = list(pieces)
        written.append(sum(map(len, kept)))
        return plain(store, kept, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(BarStore, "write_pieces", counting)
    play(make(ledger, Recorded({}), tmp_path), ledger, range(100))
    assert len(SYMBOLS) * 96 <= sum(written) <= len(SYMBOLS) * (100 + len(written))  # the boundary bar comes twice


def test_a_bar_that_is_revised_after_its_session_was_stored_is_stored_again(ledger: Ledger, tmp_path: Path) -> None:
    history = make(ledger, Recorded({}), tmp_path)
    play(history, ledger, range(30))
    last = BarStore(tmp_path).read("AAA", PERIOD)
    revised = bar("AAA", len(last) - 1, close=150.0, revision=1)
    write(ledger, [revised])
    play(history, ledger, range(30, 60))
    assert BarStore(tmp_path).read("AAA", PERIOD).close[len(last) - 1] == 150.0


def test_the_ledger_keeps_two_days_of_stored_bars(ledger: Ledger, tmp_path: Path) -> None:
    play(make(ledger, Recorded({}), tmp_path), ledger, range(24 * 5))
    kept = [bar_of(dict(row._mapping)) for row in ledger.rows(select(schema.bars_seen))]
    oldest = min(each.close_time for each in kept)
    assert BEGIN + timedelta(days=4) - KEEP_IN_LEDGER - PERIOD <= oldest <= BEGIN + timedelta(days=4)


@pytest.mark.parametrize("days", [4, 8])
def test_without_a_bar_store_the_ledger_keeps_what_a_warm_start_needs_and_no_more(ledger: Ledger, days: int) -> None:
    data = Recorded({s: [bar(s, n) for n in range(24 * days)] for s in SYMBOLS})
    play(make(ledger, data, None), ledger, range(24 * days))
    per_symbol = len(ledger.rows(select(schema.bars_seen))) // len(SYMBOLS)
    assert SPEC.memory_bars <= per_symbol <= max(SPEC.memory_bars, KEEP_IN_LEDGER / PERIOD) + 26
    history = make(ledger, data, None)
    until = BEGIN + 24 * days * PERIOD
    asyncio.run(history.warm_all(until))
    assert data.asked == []
    np.testing.assert_allclose(history.features.latest(SYMBOLS), latest_of_everything(data, until), rtol=0, atol=1e-12)


def test_a_bar_store_of_another_market_is_refused(tmp_path: Path) -> None:
    first = load(None, [f"daemon.bar_store={tmp_path / 'bars'}", "exchange.synthetic.seed=1"])
    check_bar_store(first)
    claim_bar_store(first)
    check_bar_store(first)
    other = load(None, [f"daemon.bar_store={tmp_path / 'bars'}", "exchange.synthetic.seed=2"])
    with pytest.raises(StartError, match=r"holds bars of 'exchange, synthetic market of seed 1'.*of its own"):
        check_bar_store(other)


HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from agent.store_lock import held_bar_store\n"
    "with held_bar_store(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_bar_store_that_another_daemon_writes_is_refused_until_that_one_is_gone(tmp_path: Path) -> None:
    store = tmp_path / "bars"
    command = [sys.executable, "-c", HOLDER, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StartError, match=f"the daemon of process {holder.pid} writes it"), held_bar_store(store):
            pytest.fail("two daemons on one store")
        holder.kill()
    with held_bar_store(store), held_bar_store(None):
        assert BarStore(store).symbols(PERIOD) == []
