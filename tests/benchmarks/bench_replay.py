"""Exact replay: CPU milliseconds per close, and a fingerprint of what was decided and traded.

    python tests/benchmarks/bench_replay.py [--bars 2000] [--repeats 3] [--profile]

A change that only makes the replay faster leaves every fingerprint as it is.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import logging
import pstats
import tempfile
import time
from pathlib import Path

import structlog
from bench_kit import Figure, names, spread, tell, untrained_bundle

from agent.exchange import load_series
from agent.replay import ReplayResult, replay
from agent.settings import Settings
from brokers.series import from_ns

HISTORY_BARS = 1_100


def settings_for(strategy: str, symbols: int, bars: int, bundle: Path) -> Settings:
    """Return settings of one replay on the synthetic market."""
    chosen = {"name": "random", "params": {"flip_probability": 0.1}} if strategy == "random" else {"name": strategy}
    return Settings.model_validate(
        {
            "symbols": names(symbols),
            "strategy": chosen | {"data_feed": "synthetic", "bundle": str(bundle) if strategy == "dqn" else None},
            "exchange": {"synthetic": {"bars": HISTORY_BARS + bars, "edge": True}},
            "sizing": {"max_fraction": 0.9 / symbols},
            "risk": {"drawdown_fraction": 1.0, "daily_loss_fraction": 1.0},  # no halt: it trades to the end
        }
    )


def fingerprint(result: ReplayResult) -> str:
    """Return a short hash over every value of decisions, trades and equity."""
    digest = hashlib.sha256()
    for frame in (result.decisions, result.trades, result.equity):
        digest.update(repr(frame.columns).encode())
        for row in frame.iter_rows():
            digest.update(repr(row).encode())
    return digest.hexdigest()[:12]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=2_000)
    parser.add_argument(
        "--cases", nargs="+", default=["random:2", "random:4", "dqn:2", "dqn:4"], help="STRATEGY:SYMBOLS"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = untrained_bundle(Path(folder) / "bundle", Settings().bar_period)
        for case in options.cases:
            strategy, symbols = case.partition(":")[0], int(case.partition(":")[2])
            settings = settings_for(strategy, symbols, options.bars, bundle)
            series = load_series(settings, period=settings.bar_period)
            start = from_ns(int(next(iter(series.values())).start_ns[HISTORY_BARS]))
            exchange = settings.exchange.model_copy(update={"start": start})
            settings = settings.model_copy(update={"exchange": exchange})
            profile = cProfile.Profile() if options.profile else None
            spent = []
            for _ in range(options.repeats):
                began = time.process_time()
                if profile is not None:
                    profile.enable()
                result = replay(settings, series)
                if profile is not None:
                    profile.disable()
                spent.append((time.process_time() - began) / result.equity.height)
            name = f"{strategy}, {symbols} symbols, {result.equity.height} closes, {result.trades.height} trades"
            aim = "1 ms" if symbols == 2 else ""
            figures.append(Figure(name, f"{spread(spent, scale=1e3, unit='ms')}  {fingerprint(result)}", aim))
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(40)
                pstats.Stats(profile).sort_stats("cumtime").print_stats(60)
    tell("Exact replay, CPU per close", figures)


if __name__ == "__main__":
    main()
