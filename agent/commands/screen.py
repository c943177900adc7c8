"""Writing results: JSON for programs, plain sections and tables for people.

Nothing depends on colour, and cells are folded, never cut: what is asked for can be read on any terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120
"""Columns where stdout is no terminal and COLUMNS is not set."""

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def plain(value: Any) -> Any:
    """Return a JSON value: times as RFC 3339, money as text (exact, as in the ledger)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return format(value, "f") if isinstance(value, Decimal) else value


def print_json(value: Any) -> None:
    """Write a result as JSON to stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


class Screen:
    """One screen of sections on stdout."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - paid by commands that print for people

        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.console: Console = Console(
            file=sys.stdout, highlight=False, markup=False, emoji=False, width=None if known else PIPE_WIDTH
        )

    def say(self, text: str) -> None:
        """Write a line."""
        self.console.print(text, soft_wrap=False, overflow="fold")

    def title(self, text: str) -> None:
        """Begin a section."""
        self.console.print()
        self.console.print(text, style="bold", overflow="fold")

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write labels and what belongs to them."""
        from rich.table import Table  # noqa: PLC0415 - as above

        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in rows:
            grid.add_row(f"  {label}", text)
        self.console.print(grid)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table."""
        from rich.table import Table  # noqa: PLC0415 - as above

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
        for index, name in enumerate(columns):
            table.add_column(f"  {name}" if index == 0 else name, overflow="fold")
        for row in rows:
            cells = ["" if cell is None else str(cell) for cell in row]
            table.add_row(f"  {cells[0]}", *cells[1:])
        self.console.print(table)


def when(at: datetime | None) -> str:
    """Return a time for people, UTC said."""
    if at is None:
        return "never"
    shape = "%Y-%m-%d %H:%M" if not at.second and not at.microsecond else "%Y-%m-%d %H:%M:%S"
    return at.strftime(shape) + " UTC"


def halted(halt: Mapping[str, Any]) -> str:
    """Say since when, by whom and why no entries are made."""
    since = when(datetime.fromisoformat(str(halt["at"])))
    return f"since {since} (venue time) by {halt['by']}: {halt['reason']}"


def span(length: timedelta) -> str:
    """Return a duration for people, in its largest unit."""
    seconds = max(length.total_seconds(), 0.0)
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1, "s"))
    return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"


def money(value: Decimal | float | None) -> str:
    """Return an amount with two decimals."""
    return "-" if value is None else f"{value:,.2f}"


def number(value: Decimal | float | None) -> str:
    """Return a quantity or price without needless zeros; a computed one with ten digits."""
    if value is None:
        return "-"
    if isinstance(value, Decimal) and len(value.normalize().as_tuple().digits) <= 12:
        return f"{value.normalize():f}"
    return f"{value:.10g}"
