"""One decision cycle for many symbols: features, policy, gate and ledger, in process over the simulated exchange.

    python tests/benchmarks/bench_cycle.py [--symbols 1000] [--closes 12] [--profile]

The ledger is a SQLite file with an fsync at every commit, as in the daemon. The exchange's own work (moving its
clock) lies outside of the times; its answers (bars, account, positions) lie inside.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import tempfile
import time
from pathlib import Path

import structlog
from bench_kit import Figure, names, spread, tell, untrained_bundle

from agent.app import Venue, make_calendar, make_strategy, wire
from agent.cycle import Trader
from agent.exchange import load_series, make_engine
from agent.ledger.store import open_ledger
from agent.settings import Settings
from brokers.series import from_ns
from brokers.simulated.broker import SimulatedBroker, SimulatedClock


async def _no_pause(_seconds: float) -> None:
    return


async def _cycles(settings: Settings, closes: int, profile: cProfile.Profile | None) -> list[tuple[int, float, float]]:
    """Return (intents, wall seconds, CPU seconds) of each close."""
    strategy, strategy_id = make_strategy(settings)
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
    parts.newest_bars = await parts.history.warm_all(clock.now())
    trader = Trader(parts)
    found: list[tuple[int, float, float]] = []
    while len(found) < closes:
        due = trading_calendar.next_close(clock.now(), settings.bar_period)
        if await clock.advance(due) != due:
            if clock.last is not None and clock.last.orders_changed:
                await parts.reconciler.sync()
            continue
        if profile is not None and found:
            profile.enable()
        cpu = time.process_time()
        report = await trader.on_close(due)
        cpu = time.process_time() - cpu
        if profile is not None:
            profile.disable()
        found.append((report.intents, report.seconds, cpu))
    ledger.close()
    return found


def settings_for(folder: Path, symbols: int, closes: int, *, trade: bool) -> Settings:
    """Return settings under which the gate lets `symbols` small entries through, or none."""
    settings = Settings.model_validate(
        {
            "symbols": names(symbols),
            "strategy": {
                "data_feed": "synthetic",
                "bundle": str(untrained_bundle(folder / f"bundle-{trade}", Settings().bar_period)),
            },
            "exchange": {"synthetic": {"bars": 1_100 + closes}, "initial_cash_usd": "100000000"},
            "sizing": {"max_fraction": 0.5 / symbols},
            "ledger": {"url": f"sqlite:///{folder}/ledger-{trade}.sqlite"},
        }
    )
    if trade:
        return settings
    risk = settings.risk.model_copy(update={"max_gross_fraction": 1e-9})  # every entry is refused by the gate
    return settings.model_copy(update={"risk": risk})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--closes", type=int, default=12)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    figures: list[Figure] = []
    for trade in (False, True):
        profile = cProfile.Profile() if options.profile else None
        with tempfile.TemporaryDirectory() as folder:
            settings = settings_for(Path(folder), options.symbols, options.closes, trade=trade)
            found = asyncio.run(_cycles(settings, options.closes, profile))
        counted = found[1:]
        intents = [each[0] for each in counted]
        name = f"{options.symbols} symbols, {'traded' if trade else 'decided, not traded'}"
        aim = "" if trade else "250 ms"
        figures += [
            Figure(f"{name}: cycle, wall", spread([each[1] for each in counted], scale=1e3, unit="ms"), aim),
            Figure(f"{name}: cycle, CPU", spread([each[2] for each in counted], scale=1e3, unit="ms"), aim),
            Figure(f"{name}: orders a cycle", spread(intents)),
        ]
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
            pstats.Stats(profile).sort_stats("cumtime").print_stats(45)
    tell("Decision cycle", figures)


if __name__ == "__main__":
    main()
