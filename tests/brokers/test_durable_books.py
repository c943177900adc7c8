"""The exchange's books through restarts, kills and bad disks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import durable_driver
import pytest
from exchange_kit import FAR, Floor, at, flat

from brokers.account import AccountBook
from brokers.costs import CostModel
from brokers.domain import OrderRequest, OrderState, OutcomeUnknownError, Side
from brokers.simulated.books import BooksError
from brokers.simulated.broker import SimulatedBroker
from brokers.simulated.engine import MatchingEngine
from brokers.simulated.sqlite_books import SqliteBooks

DRIVER = Path(durable_driver.__file__)

Rows = dict[str, list[tuple[Any, ...]]]


def contents(path: Path) -> Rows:
    """Return every row of the books."""
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}  # noqa: S608
    connection.close()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Return the books of a run that nothing interrupted."""
    path = tmp_path_factory.mktemp("books") / "reference.sqlite"
    engine = durable_driver.engine(path)
    durable_driver.trade(engine)
    engine.close()
    return contents(path)


def test_the_plan_of_the_kill_test_trades_in_every_way(uninterrupted: Rows) -> None:
    states = {row[9] for row in uninterrupted["orders"]}
    assert states >= {"filled", "canceled"}
    assert len(uninterrupted["fills"]) > 30


def test_books_opened_again_after_every_step_end_as_if_never_closed(tmp_path: Path, uninterrupted: Rows) -> None:
    path = tmp_path / "books.sqlite"
    while True:
        engine = durable_driver.engine(path)
        steps = _trade_some(engine, 40)
        engine.close()
        if not steps:
            break
    assert contents(path) == uninterrupted


def _trade_some(engine: MatchingEngine, steps: int) -> int:
    done = 0
    while done < steps and not engine.feed_ended:
        engine.advance(engine.now, FAR)
        if engine.last_event == "close":
            for symbol in durable_driver.SYMBOLS:
                durable_driver.decide(engine, symbol, engine.now)
        done += 1
    return done


def kill_until_done(path: Path, seed: int, kills: int) -> int:
    """Run the driver to its end, killing it at random instants; return how many kills met a living process."""
    draws = random.Random(seed)
    met = 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DRIVER.parent), str(DRIVER.parents[2])])}
    while True:
        with subprocess.Popen(
            [sys.executable, str(DRIVER), str(path)], env=environment, stdout=subprocess.PIPE, bufsize=0
        ) as process:
            assert process.stdout is not None
            if met < kills:
                process.stdout.read(1)
                for _ in range(draws.randrange(20)):
                    process.stdout.read(1)
                time.sleep(draws.uniform(0.0, 0.01))
                process.kill()
            while process.stdout.read(65_536):
                continue
        if process.returncode == 0:
            return met
        assert process.returncode == -signal.SIGKILL
        met += 1


def test_a_run_killed_at_random_instants_ends_with_the_same_books(tmp_path: Path, uninterrupted: Rows) -> None:
    path = tmp_path / "books.sqlite"
    assert kill_until_done(path, seed=1, kills=3) == 3
    assert contents(path) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_many_kills_lose_nothing_and_double_nothing(tmp_path: Path, seed: int, uninterrupted: Rows) -> None:
    path = tmp_path / "books.sqlite"
    assert kill_until_done(path, seed=seed, kills=12) > 3
    assert contents(path) == uninterrupted


def test_an_advance_committed_before_a_crash_is_answered_again_and_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "books.sqlite"
    first = Floor(flat(5), books=SqliteBooks(path)).to(at(1))
    first.buy("a")
    answer = first.engine.advance(at(1), FAR)
    first.engine.close()
    second = Floor(flat(5), books=SqliteBooks(path)).engine
    again = second.advance(at(1), FAR)
    assert again.repeated
    assert (again.now, again.event, again.orders_changed) == (answer.now, answer.event, answer.orders_changed)
    assert len(second.fills()) == 1
    second.close()


def test_the_books_replayed_through_a_fresh_account_give_the_same_money(tmp_path: Path) -> None:
    engine = durable_driver.engine(tmp_path / "books.sqlite")
    durable_driver.trade(engine)
    book = AccountBook(cash=engine.settings.initial_cash)
    for fill in engine.fills():
        book.fill(fill.symbol, fill.side, fill.qty, fill.price, fill.fee)
    assert book == engine.account_book()
    engine.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 6}, "seed was 5, is 6"), ({"fee_bps": 11.0}, "fee_bps=10.0"), ({"bars": 140}, "feed was")],
)
def test_books_of_something_else_are_refused_with_the_difference_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "books.sqlite"
    durable_driver.engine(path).close()
    with pytest.raises(BooksError, match=named):
        durable_driver.engine(path, **change)


def test_two_exchanges_cannot_share_books(tmp_path: Path) -> None:
    path = tmp_path / "books.sqlite"
    first = durable_driver.engine(path)
    with pytest.raises(BooksError, match="another exchange process uses them"):
        Floor(flat(5), books=SqliteBooks(path, lock_wait_s=0.05))
    first.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "books.sqlite"
    path.write_text("notes, not books. " * 100)
    with pytest.raises(BooksError, match="some other file"):
        Floor(flat(5), books=SqliteBooks(path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(BooksError, match=r"file/books\.sqlite"):
        Floor(flat(5), books=SqliteBooks(blocker / "books.sqlite"))


def test_read_only_books_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "books.sqlite"
    Floor(flat(5), books=SqliteBooks(path)).engine.close()
    books = SqliteBooks(path)
    floor = Floor(flat(5), books=books).to(at(1))
    assert books._connection is not None
    books._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(BooksError, match="make the file and its folder writable"):
        floor.buy("a")
    floor.engine.close()


def test_after_a_full_disk_the_exchange_stands_where_its_books_stand(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path / "books.sqlite")
    floor = Floor(flat(400), books=books).to(at(1))
    assert books._connection is not None
    pages = books._connection.execute("PRAGMA page_count").fetchone()[0]
    books._connection.execute(f"PRAGMA max_page_count = {pages}")
    placed = 0

    def fill_the_disk() -> None:
        nonlocal placed
        for placed in range(500):
            floor.buy(f"order-{placed}", "1", stop_loss="90", take_profit="110")

    with pytest.raises(BooksError, match="free space"):
        fill_the_disk()
    assert floor.engine.order(f"order-{placed}") is None
    assert floor.order(f"order-{placed - 1}").state is OrderState.ACCEPTED
    floor.buy(f"order-{placed}", "1")
    assert floor.order(f"order-{placed}").state is OrderState.ACCEPTED
    floor.engine.close()


def test_a_submission_whose_commit_failed_has_an_unknown_outcome(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path / "books.sqlite")
    floor = Floor(flat(5), books=books, costs=CostModel()).to(at(1))
    assert books._connection is not None
    books._connection.execute("PRAGMA query_only = ON")
    broker = SimulatedBroker(floor.engine)
    with pytest.raises(OutcomeUnknownError, match="looked up by its client id"):
        asyncio.run(broker.submit(OrderRequest("a", "X", Side.BUY, Decimal(1))))
    assert asyncio.run(broker.order("a")) is None
    floor.engine.close()
