"""What watching the daemon costs: start-up, one log line, one scrape. Numbers stand in docs/experiments.md."""

from __future__ import annotations

import io
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import pytest
import structlog

from agent import logs
from agent.metrics import Metrics

pytestmark = pytest.mark.slow


def cpu_seconds(*arguments: str) -> float:
    """Return the CPU time of one process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def report(what: str, value: float, unit: str) -> None:
    sys.stdout.write(f"\n{what}: {value:.3g} {unit}\n")


def test_importing_health_and_logs_is_cheap(scale: Callable[[int, int], int]) -> None:
    imports = "import agent.health, agent.logs, agent.systemd"
    runs = scale(15, 3)
    bare = median(cpu_seconds("-c", "") for _ in range(runs))
    loaded = median(cpu_seconds("-c", imports) for _ in range(runs))
    report("import of health, metrics, logs, systemd", (loaded - bare) * 1e3, "ms CPU")
    assert loaded - bare < 1.0


def test_a_log_line_costs_microseconds(scale: Callable[[int, int], int]) -> None:
    lines = scale(20_000, 2_000)
    stream = io.StringIO()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    logs.configure(style="json", secrets=["AK0123456789ABCDEF", "sk-0123456789abcdef0123456789abcdef"], stream=stream)
    log = structlog.stdlib.get_logger("bench")
    began = time.process_time()
    for number in range(lines):
        log.info("decided", symbol="ETHUSDT", action="hold", reason="target_held", q_flat=0.1, q_long=0.2, cycle=number)
    spent = time.process_time() - began
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    report("one JSON log line with two secrets to redact", spent / lines * 1e6, "us CPU")
    assert spent / lines < 0.005


def test_a_scrape_costs_milliseconds(scale: Callable[[int, int], int]) -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.data_age(f"SYMBOL{number}", 1.0)
        metrics.decided("hold", f"reason_{number % 20}")
    scrapes = scale(500, 50)
    began = time.process_time()
    for _ in range(scrapes):
        metrics.exposition()
    spent = (time.process_time() - began) / scrapes
    report("one scrape of 100 symbols", spent * 1e3, "ms CPU")
    assert spent < 0.25
