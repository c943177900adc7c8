"""A fused daemon killed at random instants and at chosen points: it goes on as if nothing had been, and every vote that
its ledger holds can be replayed from the answers beside it.

The stand-in answers by rule, at a weight with which its votes change orders.
"""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from crash_kit import T0, Tap, TappedBroker, TappedLedger, World, differences, ledger_rows, no_pause, plain, walk
from hostile_kit import linear_bundle
from kill_kit import ROOT, SUBMIT_DELAY_S, Market, Stage, killed_run, venue_part, venue_rows
from sqlalchemy import select
from voice_kit import bars_of, two_minds

from agent.app import Venue, make_calendar, wire
from agent.exchange import make_engine
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.minds import make_minds
from agent.ollama.server import Standin, serve_in_thread
from agent.parts import Parts
from brokers.series import from_ns
from strategies.bundle import Registry

SEED = 20240101
HISTORY = 80
PERIOD = timedelta(minutes=5)
LOUD = ("fusion.llm_weight=5", "fusion.temperature=100")
"""At this weight and temperature the language model has the word."""
EXCHANGE = ("exchange.seed=11", "exchange.partial_fill_probability=0.4")
"""As `Stage.start_exchange` says it."""


# ---- what a ledger holds, but for how long answers took ------------------------------------------------------------


def rows_of(ledger: Ledger) -> dict[str, Any]:
    """Return everything that must not depend on kills, answers of the language model among them."""
    found = ledger_rows(ledger)
    decisions, answers = schema.decisions, schema.llm_answers
    rows = [dict(row._mapping) for row in ledger.rows(select(decisions))]
    for row in rows:
        row |= {name: plain(row[name]) for name in ("held_qty", "stop", "take_profit")}
        row["votes"] = {name: timeless(vote) for name, vote in row["votes"].items()}
    found["decisions"] = sorted(str(row) for row in rows)
    said = [dict(row._mapping) for row in ledger.rows(select(answers))]
    found["answers"] = sorted(str({key: row[key] for key in row if key != "latency_s"}) for row in said)
    return found


def timeless(vote: Mapping[str, Any]) -> dict[str, Any]:
    detail = vote.get("detail")
    if not isinstance(detail, Mapping):
        return dict(vote)
    return {**vote, "detail": {key: value for key, value in detail.items() if key != "latency_s"}}


def rows_at(path: Path) -> dict[str, Any]:
    ledger = open_ledger(f"sqlite:///{path}", create=False)
    try:
        return rows_of(ledger)
    finally:
        ledger.close()


def votes_at(path: Path) -> list[tuple[Any, ...]]:
    """Return close, symbol, target, what the language model said and whether it changed the target."""
    ledger = open_ledger(f"sqlite:///{path}", create=False)
    decisions = schema.decisions
    try:
        return [
            (
                row.close_time,
                row.symbol,
                row.target,
                row.votes["llm"].get("abstained", row.votes["llm"].get("target")),
                row.votes["fused"]["detail"]["llm_effect"],
            )
            for row in ledger.rows(select(decisions).order_by(decisions.c.close_time, decisions.c.symbol))
        ]
    finally:
        ledger.close()


# ---- processes -----------------------------------------------------------------------------------------------------


@dataclass
class VoicedStage(Stage):
    """A stage whose daemon has two minds."""

    llm_url: str = ""

    @property
    def overrides(self) -> list[str]:
        common = ("venue.", "ledger.", "risk.", "log.", "daemon.", "exits.")
        return [*(one for one in super().overrides if one.startswith(common)), *self.minds]

    @property
    def minds(self) -> list[str]:
        """Settings of both minds."""
        return [
            "strategy.mode=fused",
            f"strategy.models={self.folder.parent / 'models'}",
            f"llm.host={self.llm_url}",
            "llm.model=tandem",
            f'llm.digest="{Standin().digest("tandem")}"',
            "exits.stop_volatility=1.5",
            "exits.take_profit_volatility=2.5",
            *LOUD,
        ]


@contextmanager
def voiced_stage(folder: Path, market: Market, llm_url: str, answer_delay_s: float = 0.0) -> Iterator[VoicedStage]:
    folder.mkdir()
    made = VoicedStage(folder, market, answer_delay_s, llm_url=llm_url)
    try:
        made.start_exchange()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def llm_url() -> Iterator[str]:
    with serve_in_thread(Standin(parallel=8)) as url:
        yield url


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a registry in it."""
    folder = tmp_path_factory.mktemp("house")
    registry = Registry(folder / "models")
    bundle = linear_bundle(folder / "bundle", PERIOD.total_seconds(), "recorded")
    registry.promote("default", registry.add(bundle).id, at=T0, reason="first")
    return folder


@pytest.fixture(scope="module")
def market(house: Path, scale: Any) -> Market:
    closes = scale(240, 48)
    path = house / "bars.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "open", "high", "low", "close", "volume", "symbol"])
        for symbol in ("BTCUSDT", "ETHUSDT"):
            one = walk(symbol, HISTORY + closes, 9)
            columns = (one.open, one.high, one.low, one.close, one.volume)
            for row, start in enumerate(one.start_ns):
                writer.writerow([from_ns(start).isoformat(), *(float(column[row]) for column in columns), symbol])
    return Market(path, T0 + HISTORY * PERIOD, closes)


@dataclass(frozen=True)
class Run:
    """A run that is over."""

    stage: VoicedStage
    rows: Mapping[str, Any]
    books: Mapping[str, Any]


@pytest.fixture(scope="module")
def uninterrupted(house: Path, market: Market, llm_url: str) -> Run:
    with voiced_stage(house / "base", market, llm_url) as played:
        played.start_daemon()
        played.finish_daemon()
        return Run(played, rows_at(played.ledger), venue_rows(played.books()))


def backtest(run: Run, recorded: Path, out: Path) -> Path:
    """Replay the run's bars as a user does; return the replay's ledger."""
    market = run.stage.market
    begin = market.start - PERIOD  # a daemon decides the close at which it starts, a replay the one after
    command = [sys.executable, "-m", "agent.cli", "backtest", "--exact", "--keep-ledger", "--json", "--out", str(out)]
    command += ["--bars", str(market.bars), "--start", begin.isoformat(), "--end", market.end.isoformat()]
    command += ["--symbols", ",".join(market.symbols)]
    ours = [one for one in run.stage.overrides if not one.startswith(("venue.", "ledger.", "llm.host", "log."))]
    for override in (*ours, *EXCHANGE, f"llm.recorded={recorded}", "llm.host=http://127.0.0.1:9"):
        command += ["--set", override]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replay"] == "exact"
    return out / "ledger.sqlite"


@pytest.mark.slow
def test_the_votes_of_the_run_change_orders_and_every_answer_is_on_record(uninterrupted: Run) -> None:
    votes = votes_at(uninterrupted.stage.ledger)
    said = Counter(vote for _, _, _, vote, _ in votes)
    assert set(said) == {0, 1}, said
    assert sum(effect for *_, effect in votes) > 5
    assert len(uninterrupted.rows["fills"]) > 5
    assert 0 < len(uninterrupted.rows["answers"]) <= len(votes)
    assert uninterrupted.rows["incidents"] == []


@pytest.mark.slow
def test_an_exact_backtest_with_the_recorded_answers_repeats_decisions_votes_and_trades(
    uninterrupted: Run, tmp_path: Path
) -> None:
    replayed = rows_at(backtest(uninterrupted, uninterrupted.stage.ledger, tmp_path / "out"))
    same = ("decisions", "orders", "order decisions", "fills", "intents", "positions", "cycles", "equity", "costs")
    assert differences({key: uninterrupted.rows[key] for key in same}, {key: replayed[key] for key in same}) == []
    assert replayed["answers"] == []


@pytest.mark.slow
def test_an_answer_that_was_not_recorded_is_an_abstention_and_the_policy_decides(
    uninterrupted: Run, tmp_path: Path
) -> None:
    recorded = tmp_path / "recorded.sqlite"
    with closing(sqlite3.connect(uninterrupted.stage.ledger)) as live, closing(sqlite3.connect(recorded)) as copy:
        live.backup(copy)
        copy.execute("delete from llm_answers where symbol = 'ETHUSDT'")
        copy.commit()
    votes = votes_at(backtest(uninterrupted, recorded, tmp_path / "out"))
    live_votes = votes_at(uninterrupted.stage.ledger)
    first = {symbol: next(vote for vote in votes if vote[1] == symbol) for symbol in ("BTCUSDT", "ETHUSDT")}
    assert first["BTCUSDT"] == live_votes[0]
    assert first["ETHUSDT"][3:] == ("llm_not_recorded", 0.0)
    assert {vote for _, symbol, _, vote, _ in votes if symbol == "ETHUSDT"} <= {"llm_not_recorded", 0, 1}


@pytest.mark.slow
def test_a_killed_daemon_goes_on_as_one_that_was_not(
    house: Path, market: Market, uninterrupted: Run, llm_url: str, scale: Any, tmp_path: Path
) -> None:
    kills = scale(25, 5)
    with voiced_stage(house / "killed", market, llm_url, SUBMIT_DELAY_S) as played:
        report = killed_run(played, SEED, kills, who="daemon")
        rows, books = rows_at(played.ledger), venue_rows(played.books())
        run = Run(played, rows, books)
    told = f"seed {SEED}: {report}"
    sys.stdout.write(f"\n{told}\n")
    assert report.windows.total() == kills
    assert report.problems == [], told
    assert differences(uninterrupted.rows, rows) == [], told
    assert differences(uninterrupted.books, books) == [], told
    assert differences(venue_part(rows), books) == [], told
    replayed = rows_at(backtest(run, played.ledger, tmp_path / "out"))
    assert differences({"decisions": rows["decisions"]}, {"decisions": replayed["decisions"]}) == [], told


def logged(played: VoicedStage, words: str) -> bool:
    """Wait for the daemon to say so; False where it ended before."""
    deadline = time.monotonic() + 30.0
    while words not in played.daemon_log():
        assert time.monotonic() < deadline, played.daemon_log()[-2000:]
        if played.daemon is None or played.daemon.poll() is not None:
            return words in played.daemon_log()
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_the_exchanges_time_stands_until_a_cold_model_is_loaded(house: Path, market: Market) -> None:
    with serve_in_thread(Standin(parallel=8, load_s=1.5)) as url:
        short = replace(market, closes=6)
        with voiced_stage(house / "cold", short, url) as played:
            played.start_daemon()
            played.finish_daemon()
            assert "waiting for the language model to be loaded" in played.daemon_log()
        assert {vote for *_, vote, _ in votes_at(played.ledger)} <= {0, 1}


@pytest.mark.slow
def test_a_daemon_that_waits_for_a_model_ends_in_time_when_it_is_told_to(house: Path, market: Market) -> None:
    with serve_in_thread(Standin(faults=["hang"])) as url, voiced_stage(house / "hung", market, url) as played:
        played.start_daemon()
        assert logged(played, "waiting for the language model to be loaded")
        assert played.daemon is not None
        began = time.monotonic()
        played.daemon.terminate()
        played.finish_daemon()
        assert time.monotonic() - began < 6.0


@pytest.mark.slow
def test_without_a_server_the_policy_decides_at_once(house: Path, market: Market) -> None:
    with voiced_stage(house / "alone", replace(market, closes=6), "http://127.0.0.1:9") as played:
        played.start_daemon()
        played.finish_daemon()
    assert {vote for *_, vote, _ in votes_at(played.ledger)} <= {"llm_unreachable", "llm_breaker_open"}


# ---- every point ---------------------------------------------------------------------------------------------------


class VoicedWorld(World):
    """A world whose daemon has two minds, and writes the answers with the decisions."""

    @asynccontextmanager
    async def parts(self, tap: Tap) -> AsyncIterator[Parts]:
        opened = open_ledger(self.url, durable=False)
        ledger = TappedLedger(opened.engine, opened.url)
        ledger.tap = tap
        minds = make_minds(self.settings)
        try:
            await minds.warm_up()
            broker: Any = TappedBroker(self.engine, tap)
            yield await wire(
                self.settings,
                Venue(broker=broker, data=broker, clock=self.make_clock(self.engine, tap)),
                ledger,
                minds.strategy,
                minds.pinned,
                trading_calendar=make_calendar(self.settings),
                pause=no_pause,
                record_settings=False,
                answers=minds.answers,
            )
        finally:
            await minds.aclose()
            ledger.close()

    def ledger(self) -> dict[str, Any]:
        return rows_at(self.path)


class VoicedWorlds:
    """Makes worlds of one scenario."""

    def __init__(self, folder: Path, llm_url: str, closes: int) -> None:
        self.folder = folder
        self.settings = two_minds(
            folder,
            llm_url,
            *LOUD,
            "exits.stop_volatility=0.6",
            "exits.take_profit_volatility=0.9",
            digest=Standin().digest("tandem"),
            symbols=2,
        )
        self.series = bars_of(self.settings, closes)
        self.empty = folder / "empty.sqlite"
        open_ledger(f"sqlite:///{self.empty}").close()
        self.made = 0

    def new(self) -> VoicedWorld:
        self.made += 1
        path = self.folder / f"ledger{self.made}.sqlite"
        shutil.copy(self.empty, path)
        return VoicedWorld(self.settings, make_engine(self.settings, self.series), path)


@pytest.mark.slow
def test_a_crash_of_two_minds_at_any_point_changes_nothing(llm_url: str, scale: Any, tmp_path: Path) -> None:
    worlds = VoicedWorlds(tmp_path, llm_url, closes=16)
    undisturbed = worlds.new()
    tap = undisturbed.play()
    expected, books = undisturbed.ledger(), undisturbed.books()
    assert expected["answers"]
    assert expected["fills"]
    points = range(1, tap.count + 1, scale(3, max(tap.count // 10, 1)))
    for number in points:
        world = worlds.new()
        world.play(Tap(crash_at=frozenset([number])))
        assert world.lives == 2
        found = differences(expected, world.ledger()) + differences(books, world.books()) + world.problems
        assert found == [], f"crashed at point {number}: {tap.labels[number - 1]}"


@pytest.mark.slow
def test_storms_of_crashes_leave_one_answer_to_a_prompt_and_the_same_votes(
    llm_url: str, scale: Any, tmp_path: Path
) -> None:
    worlds = VoicedWorlds(tmp_path, llm_url, closes=16)
    undisturbed = worlds.new()
    undisturbed.play()
    expected = undisturbed.ledger()
    for every in range(60, 140, scale(4, 40)):
        world = worlds.new()
        world.play(Tap(every=every))
        assert world.lives > 2
        assert differences(expected, world.ledger()) == [], f"crashed at every {every}th point of a life"
