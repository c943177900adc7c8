"""The daemon's own life over an engine in this process, crashed at a chosen point, and what it left behind.

A crash is a BaseException that is raised at one of the numbered points of a life (before and after every
question to the venue, every order, every step of time, every commit). All memory is dropped; the ledger's file
and the exchange live on; the next life starts like any other.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from agent.app import Venue, end_run, make_calendar, make_strategy, wire
from agent.daemon import Daemon
from agent.exchange import make_engine
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.parts import Parts
from agent.settings import Settings, load
from brokers.domain import BrokerError, Order, OrderRequest, OutcomeUnknownError, RateLimitedError, UnavailableError
from brokers.protocol import Clock
from brokers.series import BarSeries, to_ns
from brokers.simulated.broker import SimulatedBroker, SimulatedClock
from brokers.simulated.engine import MatchingEngine

PERIOD = timedelta(minutes=5)
T0 = datetime(2024, 1, 1, tzinfo=UTC)
HISTORY_BARS = 130
LIVES_MAX = 500


class Crash(BaseException):
    """The process died here."""


@dataclass
class Tap:
    """Counts the points of all lives, and crashes at some of them.

    `crash_at` holds numbers of points; `every` crashes at each so many-th point of a life.
    """

    crash_at: frozenset[int] = frozenset()
    every: int | None = None
    faults: Mapping[str, Callable[[int], str | None]] = field(default_factory=dict)
    count: int = 0
    in_life: int = 0
    crashes: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    def point(self, label: str) -> None:
        """Pass one point, or die at it."""
        self.count += 1
        self.in_life += 1
        self.labels.append(label)
        if self.count in self.crash_at or (self.every is not None and self.in_life >= self.every):
            self.crashes.append(label)
            raise Crash(label)

    def fault(self, call: str) -> str | None:
        """Return what goes wrong with this call of a kind; None for nothing."""
        number = self.calls[call] = self.calls.get(call, 0) + 1
        chosen = self.faults.get(call)
        return None if chosen is None else chosen(number)


class TappedBroker:
    """The in-process exchange behind a wire that can be cut, and that can lie about what happened."""

    def __init__(self, engine: MatchingEngine, tap: Tap) -> None:
        self._venue = SimulatedBroker(engine)
        self._tap = tap
        self.capabilities = self._venue.capabilities

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._venue, name)

        async def question(*args: Any) -> Any:
            self._tap.point(f"before {name}")
            if self._tap.fault(name) is not None:
                raise UnavailableError(f"{name}: no answer")
            answer = await asked(*args)
            self._tap.point(f"after {name}")
            return answer

        return question

    async def submit(self, request: OrderRequest) -> Order:
        """Send an order; faults: `lost`, `unanswered` (placed all the same), `limited`."""
        self._tap.point("before submit")
        fault = self._tap.fault("submit")
        if fault == "lost":
            raise OutcomeUnknownError(request.client_id, "the request was lost")
        if fault == "limited":
            raise RateLimitedError("too many requests", 0.0)
        order = await self._venue.submit(request)
        self._tap.point("after submit")
        if fault == "unanswered":
            raise OutcomeUnknownError(request.client_id, "the answer was lost")
        return order

    async def cancel(self, client_id: str) -> None:
        """Cancel an order; faults: `lost`, `unanswered` (canceled all the same)."""
        self._tap.point("before cancel")
        fault = self._tap.fault("cancel")
        if fault == "lost":
            raise UnavailableError("the cancellation was lost")
        await self._venue.cancel(client_id)
        self._tap.point("after cancel")
        if fault == "unanswered":
            raise UnavailableError("the answer to the cancellation was lost")


class TappedClock:
    """The in-process exchange's time behind the same wire."""

    stepped = True

    def __init__(self, engine: MatchingEngine, tap: Tap) -> None:
        self._clock = SimulatedClock(engine)
        self._tap = tap

    @property
    def feed_ended(self) -> bool:
        return self._clock.feed_ended

    @property
    def last(self) -> Any:
        return self._clock.last

    def now(self) -> datetime:
        return self._clock.now()

    async def advance(self, idle_until: datetime) -> datetime:
        self._tap.point("before advance")
        now = await self._clock.advance(idle_until)
        self._tap.point("after advance")
        return now


class TappedLedger(Ledger):
    """The ledger with a point on either side of each commit."""

    tap: Tap

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with super().transaction() as connection:
            yield connection
            self.tap.point("before commit")
        self.tap.point("after commit")


@dataclass
class World:
    """One exchange that lives on, one ledger file, and the settings of the daemon between them."""

    settings: Settings
    engine: MatchingEngine
    path: Path
    lives: int = 0
    problems: list[str] = field(default_factory=list)
    make_clock: Callable[[MatchingEngine, Tap], Clock] = TappedClock
    while_dead: Callable[[], None] = lambda: None
    """What the venue does between two lives; nothing on one that waits."""

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def play(self, tap: Tap | None = None) -> Tap:
        """Live until the feed is played out, through every crash."""
        tap = tap or Tap()
        for _ in range(LIVES_MAX):
            self.lives += 1
            tap.in_life = 0
            try:
                asyncio.run(self._life(tap))
            except (Crash, BrokerError):
                self.while_dead()
                continue
            return tap
        raise AssertionError(f"not played out after {LIVES_MAX} lives; the last crashes: {tap.crashes[-5:]}")

    async def _life(self, tap: Tap) -> None:
        async with self.parts(tap) as parts:
            daemon = Daemon(self.settings)
            trader, first = await daemon._recover(parts)
            self.problems += unprotected(self.engine, parts)
            await daemon._live(parts, trader, first)
            end_run(parts.ledger, parts.run_id, daemon.report.reason)

    @asynccontextmanager
    async def parts(self, tap: Tap) -> AsyncIterator[Parts]:
        """Wire a daemon's rooms anew, as a new process does."""
        opened = open_ledger(self.url, durable=False)
        ledger = TappedLedger(opened.engine, opened.url)
        ledger.tap = tap
        try:
            broker = TappedBroker(self.engine, tap)
            strategy, strategy_id = make_strategy(self.settings)
            yield await wire(
                self.settings,
                Venue(broker=broker, data=broker, clock=self.make_clock(self.engine, tap)),
                ledger,
                strategy,
                strategy_id,
                trading_calendar=make_calendar(self.settings),
                pause=no_pause,
                bar_store=self.settings.daemon.bar_store,
                record_settings=False,
            )
        finally:
            ledger.close()

    def books(self) -> dict[str, Any]:
        """Return the exchange's own view, in the words of `ledger_rows`."""
        return {
            "orders": sorted(
                (
                    normal_id(order.client_id),
                    order.symbol,
                    str(order.side),
                    str(order.leg),
                    plain(order.qty),
                    str(order.type),
                    plain(order.limit_price),
                    plain(order.stop_price),
                    str(order.state),
                    plain(order.filled_qty),
                )
                for order in self.engine.book().values()
            ),
            "fills": [
                (
                    normal_id(fill.client_id),
                    fill.symbol,
                    str(fill.side),
                    plain(fill.qty),
                    plain(fill.price),
                    plain(fill.fee),
                    schema.iso(fill.at),
                )
                for fill in self.engine.fills()
            ],
            "positions": {symbol: plain(held.qty) for symbol, held in self.engine.account_book().holdings.items()},
        }

    def ledger(self) -> dict[str, Any]:
        """Return everything of the ledger that does not depend on how often it was begun."""
        ledger = open_ledger(self.url)
        try:
            return ledger_rows(ledger)
        finally:
            ledger.close()


async def no_pause(_seconds: float) -> None:
    """Wait no wall time."""


def unprotected(engine: MatchingEngine, parts: Parts) -> list[str]:
    """Name the positions whose exits neither work at the venue nor are armed here, just after a recovery."""
    problems = []
    for symbol, position in engine.positions().items():
        armed = parts.state.exits.get(symbol)
        if armed is None or (armed.side.sign > 0) == (position.qty > 0):
            problems.append(f"{symbol}: {position.qty} held, exits {armed}")
        elif armed.mode == "venue":
            legs = [o for o in engine.live_orders() if o.symbol == symbol and o.parent_client_id is not None]
            stops = sum((o.remaining_qty for o in legs if o.stop_price is not None), Decimal(0))
            if stops < abs(position.qty):
                problems.append(f"{symbol}: {position.qty} held, stops at the venue for {stops}")
    return problems


def ledger_rows(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger's rows without attempt numbers, venue ids, wall times and attempts that never arrived."""
    orders, intents, fills, costs = schema.orders, schema.intents, schema.fills, schema.costs
    decided = {row.intent_id: row.close_time for row in ledger.rows(select(intents))}
    found: dict[str, Any] = {
        "orders": sorted(
            (
                normal_id(row.client_id),
                row.symbol,
                row.side,
                row.leg,
                plain(row.qty),
                row.type,
                plain(row.limit_price),
                plain(row.stop_price),
                row.state,
                plain(row.filled_qty),
            )
            for row in ledger.rows(select(orders).where(orders.c.state != "not_placed"))
        ),
        "order decisions": sorted(
            (normal_id(row.client_id), str(decided.get(row.intent_id)), plain(row.avg_price), str(row.submitted_at))
            for row in ledger.rows(select(orders).where(orders.c.state != "not_placed"))
        ),
        "fills": [
            (
                normal_id(row.client_id),
                row.symbol,
                row.side,
                plain(row.qty),
                plain(row.price),
                plain(row.fee),
                schema.iso(row.at),
            )
            for row in ledger.rows(select(fills).order_by(fills.c.exec_id))
        ],
        "fill legs": [row.leg for row in ledger.rows(select(fills).order_by(fills.c.exec_id))],
        "costs": [tuple(row)[2:] for row in ledger.rows(select(costs).order_by(costs.c.exec_id))],
        "intents": _rows(ledger, intents, without=("note",)),
        "state": {row.key: row.value for row in ledger.rows(select(schema.state)) if row.key != "last_execution"},
        "positions": {
            row.symbol: (plain(row.qty), plain(row.avg_cost), str(row.updated_at))
            for row in ledger.rows(select(schema.positions))
        },
        "cycles": [
            (str(row.close_time), row.status, row.symbols)
            for row in ledger.rows(select(schema.cycles).order_by(schema.cycles.c.close_time))
        ],
        "incidents": _rows(ledger, schema.incidents, without=("incident_id", "recorded_at")),
    }
    for table in (schema.decisions, schema.equity, schema.exits, schema.bars_seen):
        found[table.name] = _rows(ledger, table)
    return found


def _rows(ledger: Ledger, table: Any, without: Sequence[str] = ()) -> list[str]:
    keys = [column.name for column in table.columns if column.name not in without]
    rows = (dict(row._mapping) for row in ledger.rows(select(table)))
    return sorted(str({key: _plain_value(row[key]) for key in keys}) for row in rows)


def _plain_value(value: Any) -> Any:
    return plain(value) if isinstance(value, Decimal) else str(value) if isinstance(value, datetime) else value


def normal_id(client_id: str) -> str:
    """Return a client order id without its attempt."""
    return re.sub(r"-\d+(?=\.|$)", "", client_id)


def plain(value: Decimal | None) -> str | None:
    """Return a number whose text does not depend on how it was stored."""
    return None if value is None else format(value.normalize(), "f")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Say where two views differ, shortly."""
    found = []
    for key in one.keys() | other.keys():
        left, right = one.get(key), other.get(key)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            left, right = sorted(left.items()), sorted(right.items())
        only_left = [row for row in left or () if row not in (right or ())]
        only_right = [row for row in right or () if row not in (left or ())]
        found.append(f"{key}: expected {only_left[:3]}, got {only_right[:3]} ({len(only_left)}, {len(only_right)})")
    return found


def walk(symbol: str, count: int, seed: int, *, split_at: int | None = None, ratio: float = 4.0) -> BarSeries:
    """Return a seeded random walk of five-minute bars, perhaps with a split: prices fall, `adj_factor` rises."""
    draws = np.random.default_rng([seed, *symbol.encode()])
    path = 100.0 * np.exp(np.cumsum(draws.normal(0.0, 0.004, count + 1)))
    opens, closes = path[:-1], path[1:]
    high = np.maximum(opens, closes) * (1.0 + draws.uniform(0, 0.004, count))
    low = np.minimum(opens, closes) * (1.0 - draws.uniform(0, 0.004, count))
    adj = np.ones(count)
    scale = np.ones(count)
    if split_at is not None:
        adj[:split_at] = 1.0 / ratio
        scale[split_at:] = 1.0 / ratio
    start = np.array([to_ns(T0 + index * PERIOD) for index in range(count)], dtype=np.int64)
    return BarSeries(
        symbol=symbol,
        start_ns=start,
        close_ns=start + round(PERIOD.total_seconds() * 1e9),
        open_ns=start,
        open=np.round(opens * scale, 4),
        high=np.round(high * scale, 4) + 0.0001,
        low=np.round(low * scale, 4) - 0.0001,
        close=np.round(closes * scale, 4),
        volume=draws.uniform(500, 1500, count),
        adj_factor=adj,
    )


def settings(*more: str) -> Settings:
    """Return settings under which a lot happens: frequent flips, tight exits, partial fills."""
    begin = (T0 + HISTORY_BARS * PERIOD).isoformat()
    return load(
        None,
        [
            "symbols=[A, B]",
            f"exchange.start={begin}",
            "exchange.partial_fill_probability=0.5",
            "strategy.name=random",
            "strategy.params={flip_probability: 0.3, seed: 3}",
            "strategy.shorts=true",
            "exits.stop_volatility=0.6",
            "exits.take_profit_volatility=0.9",
            "exits.horizon_bars=4",
            "risk.drawdown_fraction=0.9",
            "risk.daily_loss_fraction=0.9",
            "daemon.bar_store=null",
            "daemon.reconcile_interval_s=1700",
            *more,
        ],
    )


class Worlds:
    """Makes worlds of one scenario; each begins with the same empty ledger and a new exchange."""

    def __init__(self, folder: Path, chosen: Settings, series: Mapping[str, BarSeries]) -> None:
        self._folder = folder
        self._settings = chosen
        self._series = series
        self._made = 0
        self._empty = folder / "empty.sqlite"
        open_ledger(f"sqlite:///{self._empty}").close()

    def new(self) -> World:
        self._made += 1
        path = self._folder / f"ledger{self._made}.sqlite"
        shutil.copy(self._empty, path)
        return World(self._settings, make_engine(self._settings, self._series), path)

    def drop(self, world: World) -> None:
        for path in self._folder.glob(world.path.name + "*"):
            path.unlink()
