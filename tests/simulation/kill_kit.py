"""The daemon and the exchange as processes of their own, killed with SIGKILL at seeded instants.

Time is the exchange's and stands while either process is dead, so a run with kills can be compared, order by
order, with one that nobody interrupted.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from crash_kit import ledger_rows, no_pause, normal_id, plain

from agent.app import make_calendar, make_strategy, wire
from agent.ledger.store import open_ledger
from agent.settings import load
from agent.venue import open_venue
from brokers.domain import OrderState
from brokers.simulated.wire import STATUS

ROOT = Path(__file__).resolve().parents[2]
SUBMIT_DELAY_S = 0.06
"""How long the exchange holds back its answers about orders, once they are in its books."""
START_WAIT_S_MAX = 60.0
PLAY_WAIT_S_MAX = 300.0

SUBMITTING = "committed, not acknowledged, order at the venue"
NOT_SENT = "committed as about to be sent, order not at the venue"
PLANNED = "intent committed, nothing sent"
FREED = "legs cancelled, close not sent"
UNCOMMITTED = "outcome committed, cycle not closed"
FILL = "filled, fill not recorded"
ELSEWHERE = "elsewhere"
SUBMIT_WINDOW = (SUBMITTING, NOT_SENT)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Market:
    """What is played: real bars, and for how many closes."""

    bars: Path
    start: datetime
    closes: int
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT")

    @property
    def end(self) -> datetime:
        return self.start + self.closes * timedelta(minutes=5)


@dataclass
class Stage:
    """One exchange with its books and one ledger, in a folder, and the processes that work on them."""

    folder: Path
    market: Market
    answer_delay_s: float = 0.0
    port: int = field(default_factory=free_port)
    exchange: subprocess.Popen[str] | None = None
    daemon: subprocess.Popen[bytes] | None = None
    lives: int = 0
    _log: IO[bytes] | None = None

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.sqlite"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def overrides(self) -> list[str]:
        return [
            f"venue.url={self.url}",
            f"ledger.url=sqlite:///{self.ledger}",
            f"daemon.bar_store={self.folder / 'bars'}",
            "strategy.name=random",
            "strategy.params={flip_probability: 0.2, seed: 5}",
            "strategy.shorts=true",
            "exits.stop_volatility=0.5",
            "exits.take_profit_volatility=0.7",
            "exits.horizon_bars=4",
            "risk.drawdown_fraction=0.9",
            "risk.daily_loss_fraction=0.9",
            "log.format=json",
        ]

    # ---- processes ----------------------------------------------------------------------------------

    def start_exchange(self) -> None:
        """Start it on its books and its port, and wait until it listens."""
        market = self.market
        command = [sys.executable, "-m", "agent.cli", "exchange", "--bars", str(market.bars), "--json"]
        command += ["--port", str(self.port), "--books", str(self.folder / "books.sqlite"), "--period", "5m"]
        command += ["--symbols", ",".join(market.symbols), "--start", market.start.isoformat()]
        command += ["--end", market.end.isoformat(), "--seed", "11"]
        command += ["--set", "exchange.partial_fill_probability=0.4", "--set", "strategy.shorts=true"]
        if self.answer_delay_s:
            command += ["--answer-delay", f"/v2/orders={self.answer_delay_s}"]
        with (self.folder / "exchange.log").open("ab") as log:
            self.exchange = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.exchange.stdout is not None
        line = self.exchange.stdout.readline()
        assert line, f"the exchange did not start: {(self.folder / 'exchange.log').read_text()[-2000:]}"

    def start_daemon(self) -> None:
        """Start one more life of the daemon."""
        command = [sys.executable, "-m", "agent.cli", "run"]
        for override in self.overrides:
            command += ["--set", override]
        self.lives += 1
        self._log = (self.folder / f"daemon{self.lives}.log").open("wb")
        self.daemon = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log)

    def kill_daemon(self) -> None:
        """End it as a power cut does."""
        self._end(self.daemon, signal.SIGKILL)
        self.daemon = None
        self._close_log()

    def kill_exchange(self) -> None:
        """End it as a power cut does."""
        self._end(self.exchange, signal.SIGKILL)
        if self.exchange is not None and self.exchange.stdout is not None:
            self.exchange.stdout.close()
        self.exchange = None

    def finish_daemon(self) -> None:
        """Wait until the feed is played out."""
        assert self.daemon is not None
        code = self.daemon.wait(PLAY_WAIT_S_MAX)
        self._close_log()
        self.daemon = None
        assert code == 0, f"the daemon ended with {code}: {self.daemon_log()[-3000:]}"

    def close(self) -> None:
        """Leave no process behind."""
        self.kill_daemon()
        self.kill_exchange()

    def daemon_log(self) -> str:
        """Return what the newest life wrote."""
        return (self.folder / f"daemon{self.lives}.log").read_text()

    def is_ready(self) -> bool:
        """Tell whether the newest life has recovered."""
        return '"event": "ready"' in self.daemon_log() or '"event":"ready"' in self.daemon_log()

    @staticmethod
    def _end(process: subprocess.Popen[Any] | None, number: int) -> None:
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    # ---- looking from outside -----------------------------------------------------------------------

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the ledger as another process does; an empty answer before there is one."""
        if not self.ledger.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=5)) as connection:
                return connection.execute(question, values).fetchall()
        except sqlite3.OperationalError:
            return []

    def closes_decided(self) -> int:
        """Return how many closes are in the ledger."""
        found = self.ask("select count(*) from cycles")
        return int(found[0][0]) if found else 0

    def books(self) -> dict[str, Any]:
        """Return the exchange's own books."""
        with urllib.request.urlopen(f"{self.url}/exchange/v1/books", timeout=10) as answer:  # noqa: S310 - loopback
            return dict(json.load(answer))

    def where(self) -> str:
        """Name the window in which the daemon just died (the exchange must run)."""
        books = self.books()
        at_venue = {order["client_order_id"]: order for order in books["orders"]}
        in_flight = self.ask("select client_id from orders where state in ('submitting', 'unknown')")
        if in_flight:
            return SUBMITTING if any(client_id in at_venue for (client_id,) in in_flight) else NOT_SENT
        planned = self.ask("select leg, symbol from intents where state = 'planned'")
        if planned:
            working = self.ask("select client_id, symbol from orders where state in ('accepted', 'partial', 'held')")
            ended = {symbol for client_id, symbol in working if at_venue[client_id]["status"] == "canceled"}
            closing_ = {symbol for leg, symbol in planned if leg != "entry"}
            legless = {symbol for symbol in closing_ if symbol not in {symbol for _, symbol in working}}
            return FREED if closing_ & (ended | legless) else PLANNED
        if len(books["fills"]) > int(self.ask("select count(*) from fills")[0][0]):
            return FILL
        if self.ask("select 1 from cycles where status = 'decided'"):
            return UNCOMMITTED
        return ELSEWHERE

    def recovery_problems(self) -> list[str]:
        """Reconcile a copy of the dead daemon's ledger with the venue, twice: exits for all, and nothing new."""
        copy = self.folder / "copy"
        copy.mkdir()
        try:
            for path in self.folder.glob("ledger.sqlite*"):
                if "lock" not in path.name:
                    shutil.copy(path, copy / path.name)
            return asyncio.run(self._recover(f"sqlite:///{copy / 'ledger.sqlite'}"))
        finally:
            shutil.rmtree(copy)

    async def _recover(self, url: str) -> list[str]:
        settings = load(None, [*self.overrides, f"symbols=[{','.join(self.market.symbols)}]", "daemon.bar_store=null"])
        ledger = open_ledger(url)
        try:
            async with open_venue(settings) as venue:
                strategy, strategy_id = make_strategy(settings)
                calendar = make_calendar(settings)
                parts = await wire(
                    settings, venue, ledger, strategy, strategy_id, trading_calendar=calendar, pause=no_pause
                )
                first = await parts.reconciler.reconcile()
                before = ledger_rows(ledger)
                await parts.reconciler.reconcile()
                problems = [] if ledger_rows(ledger) == before else ["a second reconciliation changed the ledger"]
                problems += [f"{symbol} had no exits" for symbol in first.naked]
                problems += [f"{symbol} had drifted" for symbol in first.corrected]
                for symbol, position in (await venue.broker.positions()).items():
                    armed = parts.state.exits.get(symbol)
                    if armed is None or (armed.side.sign > 0) == (position.qty > 0):
                        problems.append(f"{symbol}: {position.qty} held, exits {armed}")
                return problems
        finally:
            ledger.close()

    def wait_until(self, closes: int) -> bool:
        """Wait until so many closes are decided; False where the daemon ended first."""
        deadline = time.monotonic() + PLAY_WAIT_S_MAX
        while self.closes_decided() < closes:
            assert self.daemon is not None
            if self.daemon.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"no progress: {self.daemon_log()[-2000:]}"
            time.sleep(0.01)
        return True

    def wait_for_row(self, question: str, patience_s: float) -> bool:
        """Wait for the ledger to hold a row, looking as often as it can be looked; False where none came."""
        deadline = time.monotonic() + patience_s
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=5)) as connection:
            while time.monotonic() < deadline:
                if connection.execute(question).fetchone() is not None:
                    return True
                if self.daemon is not None and self.daemon.poll() is not None:
                    return False
                time.sleep(0.0005)
        return False


@contextmanager
def stage(folder: Path, market: Market, answer_delay_s: float = 0.0) -> Iterator[Stage]:
    """Give a stage whose exchange runs; nothing runs after the block."""
    folder.mkdir()
    made = Stage(folder, market, answer_delay_s)
    try:
        made.start_exchange()
        yield made
    finally:
        made.close()


@dataclass
class Outcome:
    """What a run left: the ledger, and the exchange's books in the ledger's words."""

    ledger: Mapping[str, Any]
    books: Mapping[str, Any]


def outcome(played: Stage) -> Outcome:
    """Read both sides once the feed is played out."""
    ledger = open_ledger(f"sqlite:///{played.ledger}")
    try:
        rows = ledger_rows(ledger)
    finally:
        ledger.close()
    return Outcome(rows, venue_rows(played.books()))


def venue_rows(books: Mapping[str, Any]) -> dict[str, Any]:
    """Return the exchange's books in the words of `venue_part`."""

    def number(text: str | None) -> str | None:
        return None if text is None else plain(Decimal(text))

    return {
        "orders": sorted(
            (
                normal_id(row["client_order_id"]),
                row["symbol"],
                row["side"],
                row["leg"],
                number(row["qty"]),
                row["type"],
                number(row["limit_price"]),
                number(row["stop_price"]),
                row["status"],
                number(row["filled_qty"]),
            )
            for row in books["orders"]
        ),
        "fills": [
            (
                normal_id(row["client_order_id"]),
                row["symbol"],
                row["side"],
                number(row["qty"]),
                number(row["price"]),
                number(row["fee"]),
                datetime.fromisoformat(row["transaction_time"]),
            )
            for row in books["fills"]
        ],
        "positions": {symbol: number(qty) for symbol, qty in books["positions"].items()},
    }


def venue_part(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a ledger what the exchange knows as well, in the exchange's words."""
    return {
        "orders": sorted((*row[:8], STATUS[OrderState(row[8])], row[9]) for row in rows["orders"]),
        "fills": [(*row[:6], datetime.fromisoformat(row[6])) for row in rows["fills"]],
        "positions": {symbol: row[0] for symbol, row in rows["positions"].items() if row[0] != "0"},
    }


@dataclass
class Kills:
    """What the kills of one run hit, and how long each recovery took (wall seconds from SIGKILL to ready)."""

    windows: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def in_submit_window(self) -> int:
        return sum(self.windows[name] for name in SUBMIT_WINDOW)

    def __str__(self) -> str:
        times = sorted(self.recovery_s)
        spread = f"recovery median {times[len(times) // 2]:.2f} s, max {times[-1]:.2f} s" if times else ""
        hit = ", ".join(f"{name}: {count}" for name, count in self.windows.most_common())
        return f"{self.windows.total()} kills ({hit}); {spread}"


TARGETS = {
    "submit": "select 1 from orders where state = 'submitting'",
    "planned": "select 1 from intents where state = 'planned'",
}
"""What to wait for before a kill; the others come at a random moment."""


def killed_run(played: Stage, seed: int, kills: int, *, who: str) -> Kills:
    """Play the feed out through so many kills of `daemon`, `exchange` or `both`, at instants that the seed draws."""
    draws = random.Random(seed)
    report = Kills()
    last_useful = played.market.closes - 8
    marks = sorted(draws.randrange(1, last_useful) for _ in range(kills))
    played.start_daemon()
    for mark in marks:
        assert played.wait_until(mark), f"the feed was played out before the kill at close {mark}"
        target = draws.choice(["submit", "submit", "planned", "random", "random"])
        if target in TARGETS:
            played.wait_for_row(TARGETS[target], patience_s=20.0)
            time.sleep(draws.uniform(0.0, 1.3 * SUBMIT_DELAY_S) if draws.random() < 0.7 else 0.0)
        else:
            time.sleep(draws.uniform(0.0, 0.3))
        _kill(played, report, draws, who)
    played.finish_daemon()
    return report


def _reached(played: Stage, in_flight: list[tuple[str]]) -> bool:
    at_venue = {order["client_order_id"] for order in played.books()["orders"]}
    return any(client_id in at_venue for (client_id,) in in_flight)


def _kill(played: Stage, report: Kills, draws: random.Random, who: str) -> None:
    if who == "exchange":
        in_flight = played.ask("select client_id from orders where state in ('submitting', 'unknown')")
        played.kill_exchange()
        time.sleep(draws.uniform(0.0, 1.0))
        played.start_exchange()
        report.windows[(SUBMITTING if _reached(played, in_flight) else NOT_SENT) if in_flight else ELSEWHERE] += 1
        return
    if who == "both" and draws.random() < 0.5:
        played.kill_exchange()
        played.kill_daemon()
    else:
        played.kill_daemon()
        if who == "both":
            played.kill_exchange()
    at = time.monotonic()
    if played.exchange is None:
        played.start_exchange()
    report.windows[played.where()] += 1
    report.problems += played.recovery_problems()
    looked_s = time.monotonic() - at
    played.start_daemon()
    deadline = time.monotonic() + START_WAIT_S_MAX
    while not played.is_ready():
        assert played.daemon is not None
        assert played.daemon.poll() is None or played.is_ready(), played.daemon_log()[-3000:]
        assert time.monotonic() < deadline, f"not ready: {played.daemon_log()[-3000:]}"
        time.sleep(0.01)
    report.recovery_s.append(time.monotonic() - at - looked_s)
