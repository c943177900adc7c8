"""A daemon of two minds over an engine in this process: a policy of known weights, and a language model at a URL."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from crash_kit import T0, Tap, TappedBroker, no_pause, settings, walk
from hostile_kit import linear_bundle

from agent.app import Venue, end_run, make_calendar, wire
from agent.daemon import Daemon
from agent.exchange import make_engine
from agent.ledger.store import open_ledger
from agent.minds import make_minds
from agent.settings import Settings
from brokers.domain import parse_period
from brokers.series import BarSeries, to_ns
from brokers.simulated.broker import SimulatedClock
from brokers.simulated.engine import MatchingEngine
from strategies.bundle import Registry

WARM_BARS = 80
"""Bars before the first decision; the policy's features need fewer."""


class WallClock:
    """Venue time that runs with the wall clock, bars and all: whoever thinks for long decides late."""

    stepped = False
    feed_ended = False

    def __init__(self, engine: MatchingEngine) -> None:
        self._engine = engine
        self._begin, self._began = engine.now, time.monotonic()

    def now(self) -> datetime:
        """Return the time; everything that is due at the venue by then has happened."""
        at = self._begin + timedelta(seconds=time.monotonic() - self._began)
        if at > self._engine.now:
            self._engine.run_until(at)
        return at

    async def advance(self, idle_until: datetime) -> datetime:
        await asyncio.sleep(max((idle_until - self.now()).total_seconds(), 0.0))
        return self.now()


@dataclass
class OrderTimes(Tap):
    """Lets venue time pass before each question, and notes when orders were sent."""

    clock: WallClock | None = None
    sent: list[datetime] = field(default_factory=list)

    def point(self, label: str) -> None:
        if self.clock is not None:
            now = self.clock.now()
            if label == "before submit":
                self.sent.append(now)


@dataclass(frozen=True)
class Played:
    """What a run left: its ledger, metrics as scraped at the end, orders sent, counters of the model, and sizes."""

    url: str
    metrics: str
    sent: list[datetime]
    counters: dict[str, int]
    resident_kb: list[int]


def two_minds(
    folder: Path, url: str, *more: str, digest: str = "ab" * 32, symbols: int = 3, period: str = "5m"
) -> Settings:
    """Return settings of a fused strategy whose policy trades often."""
    if not (folder / "models").exists():
        registry = Registry(folder / "models")
        bundle = linear_bundle(folder / "bundle", parse_period(period).total_seconds(), "recorded")
        registry.promote("default", registry.add(bundle).id, at=T0, reason="first")
    names = ", ".join(f"S{number:02d}" for number in range(symbols))
    begin = T0 + WARM_BARS * parse_period(period)
    return settings(
        f"symbols=[{names}]",
        f"period={period}",
        f"exchange.start={begin.isoformat()}",
        "strategy.name=fused",
        "strategy.params={}",
        "strategy.shorts=false",
        f"strategy.models={folder / 'models'}",
        "exits.stop_volatility=4.0",
        "exits.take_profit_volatility=8.0",
        f"llm.host={url}",
        "llm.model=tandem",
        f"llm.digest={digest}",
        "llm.deadline_s=2",
        "llm.reserve_s=0.05",
        "llm.connect_s=0.2",
        "llm.breaker_failures=1000",
        *more,
    )


def bars_of(chosen: Settings, count: int) -> dict[str, BarSeries]:
    """Return random walks whose bars have the settings' period."""
    period_ns = round(chosen.bar_period.total_seconds() * 1e9)
    found = {}
    for symbol in chosen.symbols:
        series = walk(symbol, WARM_BARS + count, 5)
        start_ns = to_ns(T0) + period_ns * ((series.start_ns - to_ns(T0)) // 300_000_000_000)
        found[symbol] = replace(series, start_ns=start_ns, open_ns=start_ns, close_ns=start_ns + period_ns)
    return found


def play(
    chosen: Settings,
    path: Path,
    closes: int,
    *,
    on_the_wall: bool = False,
    once_warm: Callable[[], object] = lambda: None,
) -> Played:
    """Live once until the feed is played out.

    Args:
        chosen: From `two_minds`, perhaps with another strategy.
        path: The ledger's file.
        closes: Closes to decide; the first one is where play begins.
        on_the_wall: True where venue time runs with the wall clock; else it waits for every decision.
        once_warm: Called when the language model is loaded, or cannot be.
    """
    return asyncio.run(_play(chosen, f"sqlite:///{path}", closes, on_the_wall=on_the_wall, once_warm=once_warm))


async def _play(
    chosen: Settings, url: str, closes: int, *, on_the_wall: bool, once_warm: Callable[[], object]
) -> Played:
    chosen = chosen.model_copy(update={"daemon": chosen.daemon.model_copy(update={"max_bars": closes})})
    engine = make_engine(chosen, bars_of(chosen, closes + 1))
    tap = OrderTimes()
    broker: Any = TappedBroker(engine, tap)
    ledger = open_ledger(url, durable=False)
    minds = make_minds(chosen)
    sizes: list[int] = []
    daemon = Daemon(chosen, progress=lambda _parts, _report: sizes.append(resident_kb()))
    try:
        await minds.warm_up()
        once_warm()
        clock = WallClock(engine) if on_the_wall else SimulatedClock(engine)
        tap.clock = clock if isinstance(clock, WallClock) else None
        parts = await wire(
            chosen,
            Venue(broker=broker, data=broker, clock=clock),
            ledger,
            minds.strategy,
            minds.pinned,
            trading_calendar=make_calendar(chosen),
            pause=asyncio.sleep if on_the_wall else no_pause,
            metrics=daemon.metrics,
            record_settings=True,
            answers=minds.answers,
        )
        if minds.counters is not None:
            daemon.metrics.watch_llm(minds.counters)
        trader, first = await daemon._recover(parts)
        await daemon._live(parts, trader, first)
        end_run(ledger, parts.run_id, daemon.report.reason)
        return Played(
            url=url,
            metrics=daemon.metrics.exposition().decode(),
            sent=tap.sent,
            counters={} if minds.counters is None else dict(minds.counters()),
            resident_kb=sizes,
        )
    finally:
        await minds.aclose()
        ledger.close()


def resident_kb() -> int:
    """Return this process's resident set now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024
