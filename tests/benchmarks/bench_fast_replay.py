"""Fast replay: bars per CPU second of crossing averages, beside backtesting.py; and the DQN on recorded bars.

    python tests/benchmarks/bench_fast_replay.py [--bars 1000000] [--windows 10:30 50:200 500:2000] [--repeats 5]
        [--backtesting-python PATH] [--recorded FILE]

backtesting.py is no dependency: name an interpreter that has it (0.6.6 was compared), or its part is left out. Both
programs trade the same rule on the same bars (no costs, no exits, the next open, 45 % of equity), and the bars at which
they trade are compared. Runs alternate; measured is everything from bars in memory to tables and figures in memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import structlog
from bench_kit import Figure, spread, tell, untrained_bundle
from gbm_bars import BEGIN_NS, MINUTE_NS, columns

from agent.exchange import load_series
from agent.fast_replay import fast_replay
from agent.replay import ReplayResult
from agent.settings import Settings, load
from brokers.series import BarSeries, to_ns
from strategies.baselines import make_baseline

SEED = 1
HERE = Path(__file__).resolve().parent
LEFT_OUT = "left out"
NO_COSTS = ("costs.fee_bps=0", "costs.half_spread_bps=0", "costs.impact=0", "exchange.partial_fill_probability=0")
NO_EXITS = ("exits.stop_volatility=null", "exits.take_profit_volatility=null", "exits.max_loss_fraction=1")
NO_LIMITS = (
    "risk.drawdown_fraction=1",
    "risk.daily_loss_fraction=1",
    "risk.orders_per_hour=1000",
    "risk.out_of_range_features_max=100",
    "sizing.volatility_target_annual=1000",
)


def cross_settings(fast: int, slow: int) -> Settings:
    """Return settings of crossing averages with nothing in their way."""
    chosen = ["symbols=[A]", "period=1m", "strategy.name=ma_cross", f"strategy.params={{fast: {fast}, slow: {slow}}}"]
    return load(None, [*chosen, *NO_COSTS, *NO_EXITS, *NO_LIMITS])


def series_of(bars: int) -> dict[str, BarSeries]:
    """Return the market as bars."""
    start_ns = BEGIN_NS + MINUTE_NS * np.arange(bars, dtype=np.int64)
    times = {"start_ns": start_ns, "open_ns": start_ns.copy(), "close_ns": start_ns + MINUTE_NS}
    return {"A": BarSeries(symbol="A", **times, **columns(bars, SEED), adj_factor=np.ones(bars))}


def traded_bars(result: ReplayResult) -> list[list[int]]:
    """Return the bars of entry and exit of every trade that was closed."""
    bars = [(to_ns(at) - BEGIN_NS) // MINUTE_NS for at in result.trades["bar_start"]]
    return [list(pair) for pair in zip(bars[::2], bars[1::2], strict=False)]


def theirs(python: str, bars: int, fast: int, slow: int) -> dict[str, Any] | None:
    """Run backtesting.py once; None where the interpreter does not have it."""
    warm = make_baseline("ma_cross", {"fast": fast, "slow": slow}, Settings(period="1m").bar_period)
    words = [str(number) for number in (bars, SEED, fast, slow, warm.feature_spec.memory_bars)]
    done = subprocess.run(
        [python, str(HERE / "backtesting_cross.py"), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(f"{python} cannot run backtesting.py: {done.stderr.strip().splitlines()[-1]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def crossing(bars: int, windows: str, repeats: int, python: str | None) -> list[Figure]:
    """Measure one pair of windows; without `python`, our side alone."""
    fast, slow = (int(text) for text in windows.split(":"))
    settings, series = cross_settings(fast, slow), series_of(bars)
    ours: list[float] = []
    other: list[float] = []
    same = LEFT_OUT
    for _ in range(repeats):
        began = time.process_time()
        result = fast_replay(settings, series)
        ours.append(bars / (time.process_time() - began))
        run = None if python is None else theirs(python, bars, fast, slow)
        if run is not None:
            other.append(bars / run["cpu_s"])
            mine = traded_bars(result)
            same = "the same" if mine == run["trades"][: len(mine)] else "NOT the same"
    name = f"{windows}, {bars} bars, {result.trades.height} executions"
    figures = [Figure(f"{name}: bars per CPU-s", spread(ours, scale=1e-3, unit="thousand"))]
    if other:
        ratio = f"{median(ours) / median(other):.2f}, trades {same}"
        figures.append(Figure(f"{name}: backtesting.py", spread(other, scale=1e-3, unit="thousand")))
        figures.append(Figure(f"{name}: ratio", ratio, "3"))
    return figures


def recorded(file: Path, repeats: int) -> list[Figure]:
    """Measure an untrained DQN, which trades far more often than a trained one, on every bar of a file."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = untrained_bundle(Path(folder) / "bundle", Settings().bar_period)
        chosen = [f"exchange.bars={file}", "strategy.name=dqn", f"strategy.bundle={bundle}"]
        for name, more in (("default limits", ()), ("no halt, low costs", ("risk.drawdown_fraction=1", *NO_COSTS[:3]))):
            settings = load(None, [*chosen, "strategy.data_feed=synthetic", *more])
            series = load_series(settings, period=settings.bar_period)
            spent = []
            for _ in range(repeats):
                began = time.process_time()
                result = fast_replay(settings, series)
                spent.append(time.process_time() - began)
            what = f"DQN, {name}: {sum(map(len, series.values()))} bars, {result.trades.height} executions"
            figures.append(Figure(what, spread(spent, unit="CPU-s"), "10"))
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=1_000_000)
    parser.add_argument("--windows", nargs="*", default=["10:30", "50:200", "500:2000"], help="FAST:SLOW")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backtesting-python", default=sys.executable, help="interpreter that has it")
    parser.add_argument("--recorded", type=Path, help="bars file of 5 minutes for the DQN")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    fast_replay(cross_settings(10, 30), series_of(3_000))  # imports are not measured
    python = options.backtesting_python
    if theirs(python, 1_000, 10, 30) is None:
        python = None
    figures = []
    for windows in options.windows:
        figures += crossing(options.bars, windows, options.repeats, python)
    if options.recorded is not None:
        figures += recorded(options.recorded, options.repeats)
    tell("Fast replay", figures)


if __name__ == "__main__":
    main()
