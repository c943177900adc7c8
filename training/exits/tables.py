"""What heads chose in the exit worlds, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from training.exits.bench import Choice
from training.exits.fit import TrainedExits
from training.markets.exits import Bracket


def head_result(trained: TrainedExits, choices: Sequence[Choice]) -> dict[str, Any]:
    """Return one head's choices as JSON values."""
    return {
        "head": trained.metrics["head"],
        "training": dict(trained.metrics),
        "worlds": [
            {
                "world": one.world,
                "best": {"stop": one.best.bracket.stop, "take_profit": one.best.bracket.take_profit},
                "best_bps": one.best.net * 1e4,
                "none_bps": one.none * 1e4,
                "chosen": {"stop": one.bracket.stop, "take_profit": one.bracket.take_profit},
                "share": one.share,
                "exact_bps": one.exact * 1e4,
                "fresh_bps": one.fresh * 1e4,
                "fresh_error_bps": one.fresh_error * 1e4,
                "fresh_episodes": one.episodes,
                "fraction": one.fraction,
            }
            for one in choices
        ],
    }


def print_heads(found: Sequence[tuple[TrainedExits, Sequence[Choice]]]) -> None:
    """Print one table a head."""
    from rich import box  # noqa: PLC0415 -- heavy: paid where a table is printed
    from rich.console import Console  # noqa: PLC0415 -- as above
    from rich.table import Table  # noqa: PLC0415 -- as above

    for trained, choices in found:
        table = Table(
            title=f"exit head {trained.metrics['head']}, trained on {trained.metrics['learned_bars']} trades of all "
            f"worlds in {trained.cpu_s:.1f} CPU-s",
            caption="stop, take-profit in sigma; bp a trade after costs, exact; at: share of entries that get it",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("world", overflow="fold", min_width=11)
        for name in ("best", "bp", "chosen", "at", "bp", "fresh paths", "of best"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in choices:
            table.add_row(
                one.world.removeprefix("exit_"),
                "any" if one.fraction is None else _bracket(one.best.bracket),
                f"{one.best.net * 1e4:.0f}",
                _bracket(one.bracket),
                f"{one.share:.0%}" if one.is_grid else "-",
                f"{one.exact * 1e4:.1f}",
                f"{one.fresh * 1e4:.1f} ± {one.fresh_error * 1e4:.1f}",
                "-" if one.fraction is None else f"{one.fraction:.3f}",
            )
        Console().print(table)


def _bracket(bracket: Bracket) -> str:
    return ", ".join(
        "none" if level is None or math.isinf(level) else f"{level:.2g}"
        for level in (bracket.stop, bracket.take_profit)
    )
