"""Does the daemon grow? Tens of thousands of traded closes over HTTP, its resident memory along the way.

    python tests/benchmarks/bench_soak.py [--closes 20000] [--symbols 2]

The daemon is the process that `tandem run` starts, the exchange another one, the strategy random flips. Growth
is the slope of resident memory over closes in the second half, by least squares on what psutil saw every second:
by then every bounded memory (families of orders, pages of SQLite, statements) is full. Every day of venue time
(288 closes) the daemon writes its bars to the bar store.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from bench_daemon import configuration, exchange
from bench_kit import ROOT, Figure, tell


def scrape(url: str) -> dict[str, float]:
    """Return the daemon's own metrics by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - our own health server
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def free_port() -> int:
    """Return a port that nobody listens on."""
    import socket  # noqa: PLC0415 - only here

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def soak(folder: Path, symbols: int, closes: int) -> tuple[list[tuple[float, float]], dict[str, float], float]:
    """Run; returns (closes, bytes) once a second, the last metrics, and wall seconds."""
    config = folder / "config.yaml"
    content: dict[str, Any] = configuration(folder, folder / "none", symbols, "24/7", closes + 100)
    content["strategy"] = {"name": "random", "params": {"flip_probability": 0.1}, "data_feed": "synthetic"}
    port = free_port()
    content["health"] = {"port": port}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    seen: list[tuple[float, float]] = []
    metrics: dict[str, float] = {}
    began = time.monotonic()
    with exchange(config) as url, (folder / "daemon.log").open("w+", encoding="utf-8") as log:
        command = [sys.executable, "-m", "agent.cli", "run", "--config", str(config), "--set", f"venue.url={url}"]
        command += ["--set", f"daemon.max_bars={closes}"]
        process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
        while process.poll() is None:
            time.sleep(1.0)
            try:
                metrics = scrape(f"http://127.0.0.1:{port}")
                seen.append((metrics["tandem_cycles_total"], process.memory_info().rss))
            except (OSError, psutil.Error):
                continue  # not listening yet, or gone
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"the daemon ended with code {process.returncode}: {log.read()[-2000:]}")
    return seen, metrics, time.monotonic() - began


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--closes", type=int, default=20_000)
    parser.add_argument("--symbols", type=int, default=2)
    parser.add_argument("--trace", type=Path, help="write closes and megabytes to this CSV file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen, metrics, wall_s = soak(folder, options.symbols, options.closes)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    closes, resident = np.array(seen).T
    warm = closes > options.closes / 2
    slope = float(np.polyfit(closes[warm], resident[warm], 1)[0])
    if options.trace is not None:
        np.savetxt(options.trace, np.column_stack([closes, resident / 1e6]), delimiter=",", header="closes,mb")
    orders = sum(value for key, value in metrics.items() if key.startswith("tandem_orders_total"))
    tell(
        f"Soak: {options.closes} closes of {options.symbols} symbols over HTTP",
        [
            Figure("growth in the second half", f"{slope * 1e4 / 1e6:.2f} MB in 10,000 closes", "0.5 MB"),
            Figure("resident at half, at the end", f"{resident[warm][0] / 1e6:.1f}, {resident[-1] / 1e6:.1f} MB"),
            Figure(
                "largest and least in the second half",
                f"{resident[warm].max() / 1e6:.1f}, {resident[warm].min() / 1e6:.1f} MB",
            ),
            Figure("orders", f"{orders:.0f}"),
            Figure("wall", f"{wall_s:.0f} s, {1e3 * wall_s / options.closes:.1f} ms a close"),
            Figure(
                "ledger, its write-ahead log",
                " and ".join(f"{sizes.get(n, 0) / 1e6:.1f} MB" for n in ("ledger.sqlite", "ledger.sqlite-wal")),
            ),
        ],
    )


if __name__ == "__main__":
    main()
