"""The daemon as a process: seconds from its start to ready, resident memory, and one cycle over HTTP.

    python tests/benchmarks/bench_daemon.py [--symbols 100] [--closes 40] [--calendars 24/7 XNYS] [--runs 3]

The exchange plays the synthetic market in a process of its own and is up before the daemon starts. `cold` has
neither ledger nor bar store; `warm` starts again on those of a run that was stopped. Memory is the daemon's
resident set alone, after its last close.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml
from bench_kit import ROOT, Figure, names, spread, tell, untrained_bundle

from agent.exchange import synthetic_settings
from agent.settings import Settings
from brokers.calendar import calendar

HISTORY_BARS = 1_300
PERIOD = timedelta(minutes=5)


@dataclass(slots=True)
class Life:
    """One run of the daemon.

    Args:
        ready_wall_s: From the start of the process to its word that it is ready.
        ready_cpu_s: CPU seconds, user and system, until then.
        resident_mb: Resident set after the last close (1 MB = 1,000,000 bytes).
        peak_mb: Largest resident set seen.
        report: What the daemon says of itself.
    """

    ready_wall_s: float
    ready_cpu_s: float
    resident_mb: float
    peak_mb: float
    report: dict[str, Any]


def configuration(folder: Path, bundle: Path, symbols: int, calendar_id: str, bars: int) -> dict[str, Any]:
    """Return the settings of daemon and exchange; the play begins after `HISTORY_BARS` bars."""
    content: dict[str, Any] = {
        "symbols": names(symbols),
        "period": "5m",
        "calendar": calendar_id,
        "asset_class": "crypto" if calendar_id == "24/7" else "us_equity",
        "exchange": {
            "synthetic": {"bars": HISTORY_BARS + bars},
            "books": str(folder / "books.sqlite"),
            "initial_cash_usd": "10000000",
        },
        "strategy": {"bundle": str(bundle), "data_feed": "synthetic"},
        "sizing": {"max_fraction": 0.9 / symbols},
        "risk": {"drawdown_fraction": 1.0, "daily_loss_fraction": 1.0},
        "ledger": {"url": f"sqlite:///{folder / 'ledger.sqlite'}"},
        "daemon": {"bar_store": str(folder / "bars")},
        "health": {"port": 0},
        "log": {"format": "json"},
    }
    start = synthetic_settings(Settings.model_validate(content)).start
    closes = calendar(calendar_id).closes_between(start, start + 40 * HISTORY_BARS * PERIOD, PERIOD)
    content["exchange"]["start"] = closes[HISTORY_BARS].isoformat()
    return content


@contextmanager
def exchange(config: Path) -> Iterator[str]:
    """Run the exchange of a configuration; gives its URL."""
    command = [sys.executable, "-m", "agent.cli", "exchange", "--config", str(config), "--json", "--until-stdin-closes"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the exchange ended with code {process.wait()}")
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(10)


def live(config: Path, url: str, closes: int) -> Life:
    """Run the daemon for some closes."""
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(config), "--json"]
    command += ["--set", f"venue.url={url}", "--set", f"daemon.max_bars={closes}"]
    began = time.monotonic()
    with config.with_suffix(".log").open("w+", encoding="utf-8") as log:
        process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        ready_wall_s = ready_cpu_s = resident = peak = 0.0
        while process.poll() is None:
            try:
                spent, resident = process.cpu_times(), process.memory_info().rss or resident
            except psutil.Error:
                break
            peak = max(peak, resident)
            if not ready_wall_s and '"ready"' in config.with_suffix(".log").read_text(encoding="utf-8"):
                ready_wall_s, ready_cpu_s = time.monotonic() - began, spent.user + spent.system
            time.sleep(0.02 if not ready_wall_s else 0.1)
        output, _ = process.communicate()
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"the daemon ended with code {process.returncode}: {log.read()[-2000:]}")
    return Life(ready_wall_s, ready_cpu_s, resident / 1e6, peak / 1e6, json.loads(output))


def fill_store(config: Path) -> None:
    """Write the history into the bar store, as former runs would have left it."""
    from agent.exchange import load_series  # noqa: PLC0415 - Polars is not for the other measurements
    from agent.settings import load  # noqa: PLC0415 - same
    from brokers.bar_store import BarStore  # noqa: PLC0415 - same

    settings = load(config)
    series = load_series(settings, period=settings.bar_period)
    assert settings.daemon.bar_store is not None
    history = {symbol: each.slice(0, HISTORY_BARS) for symbol, each in series.items()}
    BarStore(settings.daemon.bar_store).write_series(history, period=settings.bar_period)


def measure(calendar_id: str, symbols: int, closes: int, runs: int) -> list[Figure]:
    """Start cold and warm `runs` times, then play `closes` closes once."""
    cold, warm = [], []
    long: Life | None = None
    for number in range(runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = folder / "config.yaml"
            bundle = untrained_bundle(folder / "bundle", PERIOD)
            content = configuration(folder, bundle, symbols, calendar_id, closes + 100)
            config.write_text(yaml.safe_dump(content), encoding="utf-8")
            with exchange(config) as url:
                cold.append(live(config, url, 2))
                fill_store(config)
                warm.append(live(config, url, 2))
                if number == runs - 1:
                    long = live(config, url, closes)
    assert long is not None
    name, limit = f"{calendar_id}, {symbols} symbols", "240 MB" if calendar_id == "24/7" else "270 MB"
    return [
        Figure(f"{name}: cold start to ready, wall", spread([x.ready_wall_s for x in cold], unit="s"), "2 s"),
        Figure(f"{name}: cold start to ready, CPU", spread([x.ready_cpu_s for x in cold], unit="s")),
        Figure(f"{name}: warm start to ready, wall", spread([x.ready_wall_s for x in warm], unit="s"), "2 s"),
        Figure(f"{name}: warm start to ready, CPU", spread([x.ready_cpu_s for x in warm], unit="s")),
        Figure(f"{name}: resident after {closes} closes", f"{long.resident_mb:.0f} MB", limit),
        Figure(f"{name}: largest resident set", f"{long.peak_mb:.0f} MB"),
        Figure(f"{name}: cycle over HTTP, median", f"{1e3 * long.report['cycle_s_median']:.0f} ms"),
        Figure(f"{name}: orders in {closes} closes", str(long.report["intents"])),
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--closes", type=int, default=320, help="of the long run; a day of bars is 288")
    parser.add_argument("--runs", type=int, default=3, help="starts of each kind")
    parser.add_argument("--calendars", nargs="+", default=["24/7", "XNYS"])
    options = parser.parse_args()
    figures = []
    for calendar_id in options.calendars:
        figures += measure(calendar_id, options.symbols, options.closes, options.runs)
    tell("The daemon as a process", figures)


if __name__ == "__main__":
    main()
