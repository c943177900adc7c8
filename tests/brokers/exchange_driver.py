"""The exchange process of the contract tests: a fixed market behind HTTP, on durable books.

Run: `python exchange_driver.py BOOKS PORT RULES`; prints the URL once it listens.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from exchange_kit import Floor, walk

from brokers.costs import CostModel
from brokers.simulated.books import Books
from brokers.simulated.engine import MatchingEngine
from brokers.simulated.server import ServerOptions, serve
from brokers.simulated.sqlite_books import SqliteBooks

BARS = 60
SYMBOLS = ("A", "B/USD")


def engine(books: Books | None = None, rules: str = "native") -> MatchingEngine:
    """The engine that both sides of a comparison open."""
    market = {symbol: walk(symbol, BARS, seed=index) for index, symbol in enumerate(SYMBOLS)}
    return Floor(
        market, books=books, costs=CostModel(), seed=5, partial_fill_probability=0.4, shorting=True, rule_set=rules
    ).engine


@contextmanager
def running(books: Path, *, port: int = 0, rules: str = "native") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the process and give its URL."""
    command = [sys.executable, __file__, str(books), str(port), rules]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the exchange process did not start"
            yield url, process
        finally:
            process.terminate()
            process.wait(10)


if __name__ == "__main__":
    serve(
        engine(SqliteBooks(Path(sys.argv[1])), sys.argv[3]),
        ServerOptions(port=int(sys.argv[2])),
        on_ready=partial(print, flush=True),
    )
