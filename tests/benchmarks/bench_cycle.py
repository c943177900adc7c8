"""One decision cycle for many symbols: features, policy, gate and ledger, in process over the simulated exchange.

    python tests/benchmarks/bench_cycle.py [--symbols 1000] [--closes 12] [--calendar 24/7] [--profile]
    python tests/benchmarks/bench_cycle.py --symbols 10000 --calendar XNYS --cases quiet refused share

`quiet`: nobody wants a trade. `refused`: every symbol wants one and the gate refuses it, which costs the most without
an order. `share`: one symbol in a hundred is traded, the others keep what they have. `traded`: what the untrained
policy wants, after it has entered nearly every symbol at the first close.

The ledger is a SQLite file with an fsync at every commit, as in the daemon. The exchange's own work (moving its
clock) lies outside of the times; its answers (bars, account, positions) lie inside. Stages are exclusive: what one
calls is not counted in it. The first close is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import functools
import gc
import inspect
import logging
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import structlog
from bench_kit import Figure, names, spread, tell, untrained_bundle

from agent.app import Venue, make_calendar, make_strategy, wire
from agent.cycle import Trader
from agent.exchange import load_series, make_engine
from agent.ledger.store import open_ledger
from agent.parts import Parts
from agent.settings import Settings
from brokers.domain import Bar
from brokers.series import from_ns
from brokers.simulated.broker import SimulatedBroker, SimulatedClock
from strategies.features import FeatureSpec
from strategies.strategy import Abstention, Observations, Opinion, Strategy

CASES = ("quiet", "refused", "share", "traded")
SHARE = 100
"""Of so many symbols, one is traded at a close of the case `share`."""
HELD_MAX = 2_000
"""Symbols up to which `traded` runs: the exchange in this process takes minutes for the first close of more."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """One close.

    Args:
        intents: Orders that left.
        wall_s: Of the cycle.
        cpu_s: Of the process meanwhile.
        stages: Wall and CPU seconds by stage.
    """

    intents: int
    wall_s: float
    cpu_s: float
    stages: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (1,000,000 bytes): resident before the first close, most during and after the last, and features'."""

    before: float
    after: float
    features: float


class Stages:
    """Adds up what is spent in the methods that it has wrapped, without what they call of each other."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._open: list[list[float]] = []

    def wrap(self, owner: Any, method: str, stage: str) -> None:
        """Count a method's calls, of this object alone, as a stage."""
        plain = getattr(owner, method)
        if inspect.iscoroutinefunction(plain):

            @functools.wraps(plain)
            async def counted(*args: Any, **values: Any) -> Any:
                begun = self._begin()
                try:
                    return await plain(*args, **values)
                finally:
                    self._end(stage, begun)
        else:

            @functools.wraps(plain)
            def counted(*args: Any, **values: Any) -> Any:
                begun = self._begin()
                try:
                    return plain(*args, **values)
                finally:
                    self._end(stage, begun)

        setattr(owner, method, counted)

    def _begin(self) -> tuple[float, float]:
        self._open.append([0.0, 0.0])
        return time.perf_counter(), time.process_time()

    def _end(self, stage: str, begun: tuple[float, float]) -> None:
        wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
        inner_wall, inner_cpu = self._open.pop()
        before = self.spent[stage]
        self.spent[stage] = (before[0] + wall - inner_wall, before[1] + cpu - inner_cpu)
        if self._open:
            self._open[-1][0] += wall
            self._open[-1][1] += cpu


class Drawn:
    """The bundle's policy, asked and timed as it is; then all keep their position but one symbol in `share`.

    Args:
        policy: What is asked.
        share: 0 for none.
    """

    def __init__(self, policy: Strategy, share: int) -> None:
        self._policy = policy
        self._share = share
        self._turn = 0

    @property
    def name(self) -> str:
        """Key of its vote."""
        return self._policy.name

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features it reads."""
        return self._policy.feature_spec

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Ask the policy; the symbols whose turn it is go in, or out."""
        answers = await self._policy.opinions(observations)
        self._turn += 1
        wanted: list[Opinion | Abstention] = []
        for place, (answer, position) in enumerate(zip(answers, observations.positions_S.tolist(), strict=True)):
            turns = self._share and (place + 7 * self._turn) % self._share == 0
            target = int(not position) if turns else position
            wanted.append(replace(answer, target=target) if isinstance(answer, Opinion) else answer)
        return wanted


async def _no_pause(_seconds: float) -> None:
    return


def _watch(stages: Stages, parts: Parts, trader: Trader) -> None:
    """Name the stages of a cycle."""
    dialect = parts.ledger.engine.dialect
    for owner, method, stage in (
        (parts.data, "bars", "bars, at the exchange"),
        (trader.looker, "_new_bars", "bars, looked at"),
        (parts.features, "append_many", "features, appended"),
        (parts.features, "latest", "features, of the newest bars"),
        (parts.features, "volatility", "volatility"),
        (trader.looker, "look", "account, positions, halt"),
        (parts.strategy, "opinions", "policy"),
        (trader, "_ask", "who is asked, answers checked"),
        (trader.splits, "apply", "splits"),
        (trader.decider, "decide", "decisions and gate"),
        (trader, "_commit", "rows, made"),
        (parts.ledger, "upsert", "rows, converted"),
        (dialect, "do_executemany", "rows, in SQLite"),
        (dialect, "do_commit", "commits"),
        (trader, "_carry_out", "orders"),
        (trader, "_count", "metrics"),
        (trader, "on_close", "all else"),
    ):
        stages.wrap(owner, method, stage)


async def _warm(parts: Parts, series: Any, until: int) -> dict[str, Bar]:
    """Warm the features from the bars as columns: as objects, ten thousand symbols' history takes minutes."""
    newest = {}
    for symbol in parts.symbols:
        known = series[symbol].slice(0, until)
        parts.features.warm(known)
        newest[symbol] = known.bar(until - 1)
    return newest


async def _cycles(
    settings: Settings, closes: int, share: int | None, profile: cProfile.Profile | None
) -> tuple[list[Cycle], Memory]:
    strategy, strategy_id = make_strategy(settings)
    if share is not None:
        strategy = Drawn(strategy, share)
    series = load_series(settings, period=settings.bar_period)
    history = strategy.feature_spec.memory_bars + 2
    start = from_ns(int(next(iter(series.values())).start_ns[history]))
    settings = settings.model_copy(update={"exchange": settings.exchange.model_copy(update={"start": start})})
    engine = make_engine(settings, series)
    broker, clock = SimulatedBroker(engine), SimulatedClock(engine)
    trading_calendar = make_calendar(settings)
    ledger = open_ledger(settings.ledger.url)
    parts = await wire(
        settings,
        Venue(broker=broker, data=broker, clock=clock),
        ledger,
        strategy,
        strategy_id,
        trading_calendar=trading_calendar,
        pause=_no_pause,
    )
    parts.newest_bars = await _warm(parts, series, history)
    trader = Trader(parts)
    stages = Stages()
    _watch(stages, parts, trader)
    process = psutil.Process()
    before = process.memory_info().rss
    most = before
    found: list[Cycle] = []
    while len(found) < closes + 1:
        due = trading_calendar.next_close(clock.now(), settings.bar_period)
        if await clock.advance(due) != due:
            if clock.last is not None and clock.last.orders_changed:
                await parts.reconciler.sync()
            continue
        if profile is not None and found:
            profile.enable()
        stages.spent.clear()
        cpu = time.process_time()
        report = await trader.on_close(due)
        cpu = time.process_time() - cpu
        if profile is not None:
            profile.disable()
        most = max(most, process.memory_info().rss)
        found.append(Cycle(report.intents, report.seconds, cpu, dict(stages.spent)))
    ledger.close()
    return found[1:], Memory(before / 1e6, most / 1e6, parts.features.nbytes / 1e6)


def settings_for(folder: Path, symbols: int, closes: int, calendar_id: str, *, case: str) -> Settings:
    """Return settings under which the gate lets `symbols` small entries through, or none."""
    settings = Settings.model_validate(
        {
            "symbols": names(symbols),
            "calendar": calendar_id,
            "asset_class": "crypto" if calendar_id == "24/7" else "us_equity",
            "strategy": {
                "data_feed": "synthetic",
                "bundle": str(untrained_bundle(folder / f"bundle-{case}", Settings().bar_period)),
            },
            "exchange": {"synthetic": {"bars": 1_110 + closes}, "initial_cash_usd": "100000000"},
            "sizing": {"max_fraction": 0.5 / symbols},
            "ledger": {"url": f"sqlite:///{folder}/ledger-{case}.sqlite"},
        }
    )
    if case != "refused":
        return settings
    risk = settings.risk.model_copy(update={"max_gross_fraction": 1e-9})  # every entry is refused by the gate
    return settings.model_copy(update={"risk": risk})


def measure(case: str, symbols: int, closes: int, calendar_id: str, profile: cProfile.Profile | None) -> list[Figure]:
    """Run the closes of one case."""
    gc.collect()  # what the case before has left is not this one's
    share = {"quiet": 0, "share": SHARE}.get(case)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), symbols, closes, calendar_id, case=case)
        found, memory = asyncio.run(_cycles(settings, closes, share, profile))
    aim = f"{max(250, symbols // 10)} ms" if case in ("quiet", "refused") else ""
    figures = [
        Figure(f"{case}: cycle, wall", spread([each.wall_s for each in found], scale=1e3, unit="ms"), aim),
        Figure(f"{case}: cycle, CPU", spread([each.cpu_s for each in found], scale=1e3, unit="ms")),
        Figure(f"{case}: orders a cycle", spread([each.intents for each in found])),
        Figure(
            f"{case}: resident before, most after a close, of which features",
            f"{memory.before:.0f}, {memory.after:.0f}, {memory.features:.0f} MB",
        ),
    ]
    for stage in dict.fromkeys(name for each in found for name in each.stages):
        wall, cpu = ([each.stages.get(stage, (0.0, 0.0))[k] for each in found] for k in (0, 1))
        figures.append(Figure(f"  {stage}: CPU; wall", f"{spread(cpu, scale=1e3)}; {spread(wall, scale=1e3)} ms"))
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--closes", type=int, default=12)
    parser.add_argument("--calendar", default="24/7")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, help="all, but `traded` for more than two thousand symbols"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for case in options.cases or [case for case in CASES if case != "traded" or options.symbols <= HELD_MAX]:
        profile = cProfile.Profile() if options.profile else None
        figures = measure(case, options.symbols, options.closes, options.calendar, profile)
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            pstats.Stats(profile).sort_stats("cumtime").print_stats(50)
        tell(f"Decision cycle, {options.symbols} symbols, {options.calendar}", figures)


if __name__ == "__main__":
    main()
