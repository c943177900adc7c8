"""What a command costs before it does anything: `tandem --help` and `tandem status`, CPU seconds of the process.

    python tests/benchmarks/bench_commands.py [--runs 9]

`status` is asked of a small ledger, in text and as JSON. `python -c ""` shows what the interpreter alone takes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import structlog
import yaml
from bench_kit import Figure, command_cpu_s, spread, tell


def small_ledger(folder: Path) -> Path:
    """Replay a few hundred closes into a ledger file; returns a configuration that names it."""
    from agent.exchange import load_series  # noqa: PLC0415 - what is measured runs in processes of its own
    from agent.replay import replay  # noqa: PLC0415 - same
    from agent.settings import Settings  # noqa: PLC0415 - same

    content = {
        "symbols": ["AAA", "BBB"],
        "strategy": {"name": "random"},
        "exchange": {"synthetic": {"bars": 300}},
        "ledger": {"url": f"sqlite:///{folder / 'ledger.sqlite'}"},
    }
    settings = Settings.model_validate(content)
    replay(settings, load_series(settings, period=settings.bar_period), ledger_url=settings.ledger.url)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return config


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tandem = [str(Path(sys.executable).with_name("tandem"))]
    with tempfile.TemporaryDirectory() as name:
        config = ["--config", str(small_ledger(Path(name)))]
        commands = [
            ("python -c ''", [sys.executable, "-c", ""], ""),
            ("tandem --help", [*tandem, "--help"], "0.15 s"),
            ("tandem status", [*tandem, "status", *config], ""),
            ("tandem status --json", [*tandem, "status", *config, "--json"], ""),
        ]
        figures = []
        for what, command, aim in commands:
            cpu, wall = command_cpu_s(command, options.runs)
            figures.append(Figure(f"{what}, CPU", spread(cpu, unit="s"), aim))
            figures.append(Figure(f"{what}, wall", spread(wall, unit="s")))
    tell("Commands", figures)


if __name__ == "__main__":
    main()
