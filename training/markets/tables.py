"""What a bench found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from training.markets.bench import Estimate, WorldReport

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


def _mean(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.3f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"
