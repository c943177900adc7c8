"""What a bench found, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from training.markets.bench import Estimate, WorldReport
from training.markets.exits import ExitWorld, Worth, worth_choosing

STATE_MARK = "*"


def result(report: WorldReport) -> dict[str, Any]:
    """Return one world's table as JSON values."""
    return {
        "world": report.world,
        "parameters": dict(report.parameters),
        "optimum_bps": report.optimum_bps,
        "rows": [asdict(row) for row in report.rows],
    }


def print_report(report: WorldReport, *, bars: int, seeds: Sequence[int]) -> None:
    """Print one world's table."""
    from rich import box  # noqa: PLC0415 -- heavy: paid where a table is printed
    from rich.console import Console  # noqa: PLC0415 -- as above
    from rich.table import Table  # noqa: PLC0415 -- as above

    table = Table(
        title=f"{report.world}: optimum {report.optimum_bps:.3f} bp per bar after costs; "
        f"{len(seeds)} paths of {bars} bars",
        caption=f"{STATE_MARK} knows the hidden state; "
        + _how_trained(report)
        + ", ".join(f"{name} {value}" for name, value in report.parameters.items()),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("rule", overflow="fold")
    for name in ("FoO", "95 %", "by regret", "bp/bar", "sides/bar", "held"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.name + (f" {STATE_MARK}" if row.knows == "state" else ""),
            _mean(row.fraction),
            _interval(row.fraction),
            _mean(row.fraction_by_regret),
            f"{row.mean_bps.mean:+.3f}",
            f"{row.turnover:.4f}",
            f"{row.exposure:.2f}",
        )
    Console().print(table)


def _how_trained(report: WorldReport) -> str:
    """Return how many trainings stand behind each trained row."""
    counts = {len(row.trained["seeds"]) for row in report.rows if row.trained}
    many = max(counts, default=0)
    return f"{many} training{'s' if many > 1 else ''} a row, each on bars of its own; " if many else ""


def _mean(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.3f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def exit_result(world: ExitWorld, table: Sequence[Worth]) -> dict[str, Any]:
    """Return one exit world's table as JSON values."""
    return {
        "world": world.name,
        "parameters": world.model_dump(mode="json"),
        "brackets": [{**asdict(worth.bracket), "net_bps": worth.net * 1e4} for worth in table],
    }


def print_exits(world: ExitWorld, table: Sequence[Worth]) -> None:
    """Print what a trade is worth, stops down and take-profits across, basis points after costs."""
    from rich import box  # noqa: PLC0415 -- heavy: paid where a table is printed
    from rich.console import Console  # noqa: PLC0415 -- as above
    from rich.table import Table  # noqa: PLC0415 -- as above

    net = {(worth.bracket.stop, worth.bracket.take_profit): worth.net * 1e4 for worth in table}
    levels = tuple(dict.fromkeys(stop for stop, _ in sorted(net, key=lambda pair: pair[0] or math.inf)))
    best = table[0]
    verdict = f"best stop {_level(best.bracket.stop)}, take-profit {_level(best.bracket.take_profit)}"
    if not worth_choosing(best.net, net[None, None] * 1e-4):
        verdict = "no exit adds anything"
    printed = Table(
        title=f"{world.name}: {verdict}: {best.net * 1e4:+.1f} bp a trade after costs",
        caption="levels in sigma; " + ", ".join(f"{k} {v}" for k, v in world.model_dump(mode="json").items()),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    printed.add_column("stop \\ take")
    for take in levels:
        printed.add_column(_level(take), justify="right", no_wrap=True)
    for stop in levels:
        printed.add_row(_level(stop), *(f"{net[stop, take]:+.1f}" for take in levels))
    Console().print(printed)


def _level(level: float | None) -> str:
    return "none" if level is None else f"{level:g}"
