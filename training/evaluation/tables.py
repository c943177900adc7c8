"""The report on a screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.books import MULTIPLES
from training.evaluation.command import Result
from training.evaluation.play import POLICY

FILE_COLUMNS = 100
"""Width of the tables where nobody looks at them in a terminal."""


def print_result(result: Result) -> None:
    """Print the comparison, the costs, the grid of folds and seeds, the controls and the verdict."""
    from rich import box  # noqa: PLC0415 -- heavy: paid where a table is printed
    from rich.console import Console  # noqa: PLC0415 -- as above
    from rich.table import Table  # noqa: PLC0415 -- as above

    found, console = result.report, Console()
    if not console.is_terminal:
        console.width = FILE_COLUMNS

    def table(title: str, first: str, *columns: str) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        made.add_column(first, overflow="fold", no_wrap=console.width >= FILE_COLUMNS)
        for column in columns:
            made.add_column(column, justify="right", no_wrap=True)
        return made

    folds, seeds = result.manifest["folds"], result.manifest["seeds"]
    at_cost = found["pooled"]["1"]
    span = f"{folds[0]['test']['first_close'][:16]} to {folds[-1]['test']['last_close'][:16]}"
    rules = table(
        f"{found['rows']} bars, {found['closes']} closes, {span}, {len(folds)} folds, {len(seeds)} seeds",
        "rule", "bp/bar", "policy less it", f"{found['confidence']:.0%}", "sides/bar", "held", "Sharpe",
    )  # fmt: skip
    for name, rule in found["rules"].items():
        difference = at_cost["differences"].get(name)
        rules.add_row(
            name.replace("_", " "),
            f"{at_cost['means'][name]['mean_bps']:+.3f}",
            "" if difference is None else f"{difference['mean_bps']:+.3f}",
            _interval(at_cost["means"][name] if difference is None else difference),
            f"{rule['turnover']:.4f}",
            f"{rule['exposure']:.2f}",
            "-" if rule["sharpe_annual"] is None else f"{rule['sharpe_annual']:+.2f}",
        )
    console.print(rules)

    costs = table("bp per bar at multiples of the costs", "rule", *(f"{multiple}x" for multiple in MULTIPLES))
    for name in found["rules"]:
        means = [found["pooled"][str(multiple)]["means"][name]["mean_bps"] for multiple in MULTIPLES]
        refits = " (band of each cost)" if name in found["decisions_refitted_to_each_cost"] else ""
        costs.add_row(name.replace("_", " ") + refits, *(f"{mean:+.3f}" for mean in means))
    console.print(costs)

    grid = table("policy, bp per bar, by fold and seed", "fold", *(str(seed) for seed in seeds), "all", "less held")
    for fold, one in found["by_fold"].items():
        cells = [cell["mean_bps"] for cell in found["by_fold_and_seed"] if str(cell["fold"]) == fold]
        grid.add_row(fold, *(f"{mean:+.3f}" for mean in cells), *_with_hold(one))
    all_seeds = [f"{one['mean_bps']:+.3f}" for one in found["by_seed"].values()]
    grid.add_row("all", *all_seeds, f"{at_cost['means'][POLICY]['mean_bps']:+.3f}", _difference(at_cost))
    console.print(grid)

    symbols = table("policy by symbol", "symbol", "bp/bar", "less held", "sides/bar", "held")
    for symbol, one in found["by_symbol"].items():
        symbols.add_row(symbol, *_with_hold(one), f"{one['turnover']:.4f}", f"{one['exposure']:.2f}")
    console.print(symbols)

    for control in result.controls:
        console.print(f"{'pass' if control.passed else 'LEAK'}  {control.name}: {control.says}", soft_wrap=True)
    skill = found["skill"]
    deflated = "-" if skill["deflated_sharpe"] is None else f"{skill['deflated_sharpe']:.3f}"
    console.print(
        f"timing p {skill['timing_p_value']:.3f}; deflated Sharpe ratio {deflated} after {skill['trials']} trials on "
        f"these bars; blocks of {found['block_bars']:.0f} bars",
        soft_wrap=True,
    )
    for line in found["verdict"]["lines"]:
        console.print(f"- {line}", soft_wrap=True)
    console.print(f"manifest {result.manifest['hash'][:16]}, report and decisions in {result.folder}", soft_wrap=True)


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['low_bps']:+.3f} to {one['high_bps']:+.3f}"


def _with_hold(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['mean_bps']:+.3f}", _difference(one)


def _difference(one: Mapping[str, Any]) -> str:
    held = one["differences"]["buy_and_hold"]
    return f"{held['mean_bps']:+.3f} ({_interval(held)})"
