"""What watching the daemon costs: start-up, one log line, one scrape of the metrics.

python tests/benchmarks/bench_operations.py
"""

from __future__ import annotations

import io
import sys
import time
from statistics import median

import structlog
from bench_kit import Figure, command_cpu_s, tell

from agent import logs
from agent.metrics import Metrics

RUNS = 15
LINES = 20_000
SCRAPES = 500


def import_cpu_s() -> float:
    """Return CPU seconds of importing health, metrics, logs and systemd, above an empty interpreter."""
    bare, _ = command_cpu_s([sys.executable, "-c", ""], RUNS)
    loaded, _ = command_cpu_s([sys.executable, "-c", "import agent.health, agent.logs, agent.systemd"], RUNS)
    return median(loaded) - median(bare)


def log_line_cpu_s() -> float:
    """Return CPU seconds of one JSON line of seven fields with two secrets to redact."""
    secrets = ["AK0123456789ABCDEF", "sk-0123456789abcdef0123456789abcdef"]
    logs.configure(style="json", secrets=secrets, stream=io.StringIO())
    log = structlog.stdlib.get_logger("bench")
    began = time.process_time()
    for number in range(LINES):
        log.info("decided", symbol="ETHUSDT", action="hold", reason="target_held", q_flat=0.1, q_long=0.2, cycle=number)
    return (time.process_time() - began) / LINES


def scrape_cpu_s() -> float:
    """Return CPU seconds of one scrape of `/metrics` with 100 symbols."""
    metrics = Metrics()
    for number in range(100):
        metrics.data_age(f"SYMBOL{number}", 1.0)
        metrics.decided("hold", f"reason_{number % 20}")
    began = time.process_time()
    for _ in range(SCRAPES):
        metrics.exposition()
    return (time.process_time() - began) / SCRAPES


def main() -> None:
    """Run and print."""
    tell(
        "Watching the daemon, CPU",
        [
            Figure("import of health, metrics, logs, systemd", f"{1e3 * import_cpu_s():.0f} ms"),
            Figure("one JSON log line with two secrets to redact", f"{1e6 * log_line_cpu_s():.0f} us"),
            Figure("one scrape of 100 symbols", f"{1e3 * scrape_cpu_s():.2f} ms"),
        ],
    )


if __name__ == "__main__":
    main()
