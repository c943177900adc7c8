"""Durable books on SQLite: WAL, synchronous=FULL, one transaction per commit, one process at a time.

Money and quantities are text (exact decimals), times are ns since the epoch. The `identity` table names what the
books belong to; books of another seed, feed or cost model are refused, because the same orders would fill otherwise.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from brokers.account import AccountBook, Holding
from brokers.domain import Fill, Leg, OrderState, OrderType, Side, TimeInForce
from brokers.file_lock import FileLockedError, file_lock, lock_path
from brokers.series import from_ns, to_ns
from brokers.simulated.books import BooksError
from brokers.simulated.orders import BookOrder
from brokers.simulated.state import Changes, ClockMark, CorporateAction, Event, Snapshot

SCHEMA_VERSION = 1
LOCK_WAIT_S = 2.0
"""How long to wait for another process to let go of the books."""

_SCHEMA = """
CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE clock (
    one INTEGER PRIMARY KEY CHECK (one = 1), now_ns INTEGER NOT NULL, cursor INTEGER NOT NULL, event TEXT NOT NULL,
    changed TEXT NOT NULL, sequence INTEGER NOT NULL
) STRICT;
CREATE TABLE account (
    one INTEGER PRIMARY KEY CHECK (one = 1), cash TEXT NOT NULL, fees_paid TEXT NOT NULL, realised_pnl TEXT NOT NULL
) STRICT;
CREATE TABLE holdings (symbol TEXT PRIMARY KEY, qty TEXT NOT NULL, avg_cost TEXT NOT NULL) STRICT;
CREATE TABLE orders (
    client_id TEXT PRIMARY KEY, venue_id TEXT NOT NULL UNIQUE, sequence INTEGER NOT NULL UNIQUE, symbol TEXT NOT NULL,
    side TEXT NOT NULL, qty TEXT NOT NULL, type TEXT NOT NULL, tif TEXT NOT NULL, leg TEXT NOT NULL,
    state TEXT NOT NULL, submitted_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL, limit_price TEXT, stop_price TEXT,
    parent_client_id TEXT, leg_ids TEXT NOT NULL, filled_qty TEXT NOT NULL, filled_value TEXT NOT NULL,
    filled_ns INTEGER, expires_ns INTEGER, opens_to_wait INTEGER NOT NULL, is_triggered INTEGER NOT NULL,
    opening_qty TEXT NOT NULL, reserve_price TEXT NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE fills (
    exec_id TEXT PRIMARY KEY, client_id TEXT NOT NULL REFERENCES orders (client_id), symbol TEXT NOT NULL,
    side TEXT NOT NULL, qty TEXT NOT NULL, price TEXT NOT NULL, fee TEXT NOT NULL, at TEXT NOT NULL, mark_price TEXT
) STRICT;
CREATE TABLE actions (
    sequence INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, symbol TEXT NOT NULL, kind TEXT NOT NULL,
    amount TEXT NOT NULL, cash TEXT NOT NULL
) STRICT;
"""

_REMEDIES = {
    "locked": "another exchange process uses them: stop it, or give another file (--books, exchange.books)",
    "readonly": "make the file and its folder writable",
    "unable to open": "create its folder and make it writable",
    "full": "free space on its disk, then start again: nothing that was answered is lost",
    "not a database": "it is some other file: give another one (--books, exchange.books)",
    "Permission denied": "make the file and its folder writable",
    "No such file": "its folder cannot be made: give another file (--books, exchange.books)",
    "disk I/O error": "make the file and its folder writable, and check the disk",
    "malformed": "the file is damaged: restore a copy, or start new books",
}


def _optional(decode: Callable[[str], Any]) -> Callable[[str | None], Any]:
    return lambda text: None if text is None else decode(text)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "side": Side,
    "type": OrderType,
    "tif": TimeInForce,
    "leg": Leg,
    "state": OrderState,
    "event": Event,
    "is_triggered": bool,
    "leg_ids": lambda text: tuple(json.loads(text)),
    "changed": lambda text: tuple(json.loads(text)),
    "at": lambda ns: from_ns(int(ns)),
}
for _name in ("qty", "filled_qty", "filled_value", "opening_qty", "reserve_price", "price", "fee", "amount", "cash"):
    _DECODERS[_name] = Decimal
for _name in ("limit_price", "stop_price", "mark_price"):
    _DECODERS[_name] = _optional(Decimal)

_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "leg_ids": json.dumps,
    "changed": json.dumps,
    "at": lambda at: str(to_ns(at)),
}


def _columns(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


_CLOCK, _ORDER, _FILL, _ACTION = (_columns(kind) for kind in (ClockMark, BookOrder, Fill, CorporateAction))


def _encode(row: object, columns: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(_encode_value(name, getattr(row, name)) for name in columns)


def _encode_value(name: str, value: Any) -> Any:
    encoder = _ENCODERS.get(name)
    if encoder is not None:
        return encoder(value)
    return str(value) if isinstance(value, Decimal) else value


def _decode(row: Iterable[Any], columns: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: _DECODERS[name](value) if name in _DECODERS else value for name, value in zip(columns, row, strict=True)
    }


def _upsert(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    return f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - names are constants


_PUT_CLOCK = _upsert("clock", ("one", *_CLOCK))
_PUT_ACCOUNT = _upsert("account", ("one", "cash", "fees_paid", "realised_pnl"))
_PUT_ORDER = _upsert("orders", _ORDER)
_PUT_FILL = _upsert("fills", _FILL).replace(" OR REPLACE", "")
_PUT_ACTION = _upsert("actions", _ACTION).replace(" OR REPLACE", "")


class SqliteBooks:
    """Books in one SQLite file, held by one process.

    Args:
        path: The file; it and its folder are created when missing.
        lock_wait_s: How long to wait for another process to let go of it.
    """

    keeps = True

    def __init__(self, path: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.path = path
        self._lock_wait_s = lock_wait_s
        self._connection: sqlite3.Connection | None = None
        self._held = ExitStack()

    def open(self, identity: Mapping[str, str]) -> Snapshot | None:
        """Return what was last committed; None for new books.

        Raises:
            BooksError: Not readable or writable, in use, or made with something else (each difference named).
        """
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a lock of its own, not SQLite's exclusive mode: a backup may read the books while they are in use
            self._held.enter_context(file_lock(lock_path(self.path), self._lock_wait_s))
            connection = sqlite3.connect(
                self.path, timeout=self._lock_wait_s, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            self._claim(connection, identity)
            connection.execute("COMMIT")
            return self._read(connection)
        except FileLockedError as error:
            self.close()
            raise self._explain("opened", f"locked by {error}") from error
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self._explain("opened", error) from error
        except BooksError:
            self.close()
            raise

    def commit(self, changes: Changes) -> None:
        """Write one transaction, durable when this returns.

        Raises:
            BooksError: It was not written, or it is not known; `open` tells.
        """
        connection = self._connection
        if connection is None:
            msg = f"the books {self.path} are closed: open them before trading on them"
            raise BooksError(msg)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_PUT_CLOCK, (1, *_encode(changes.clock, _CLOCK)))
            if changes.account is not None:
                self._put_account(connection, changes.account)
            connection.executemany(_PUT_ORDER, [_encode(order, _ORDER) for order in changes.orders])
            connection.executemany(_PUT_FILL, [_encode(fill, _FILL) for fill in changes.fills])
            connection.executemany(_PUT_ACTION, [_encode(action, _ACTION) for action in changes.actions])
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # what broke the commit may break this too; `open` starts afresh
                connection.execute("ROLLBACK")
            raise self._explain("written", error) from error

    def close(self) -> None:
        """Release the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error):  # everything answered is committed already; nothing is left to lose
                self._connection.close()
            self._connection = None
        self._held.close()

    def _claim(self, connection: sqlite3.Connection, identity: Mapping[str, str]) -> None:
        """Make the schema of new books, or check that old ones belong to this engine."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone() is not None:
                msg = f"the books {self.path} are the database of something else: give another file (--books)"
                raise BooksError(msg)
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.executemany("INSERT INTO identity (name, value) VALUES (?, ?)", sorted(identity.items()))
            return
        if version != SCHEMA_VERSION:
            msg = f"the books {self.path} have schema {version}, this program knows {SCHEMA_VERSION}: start new books"
            raise BooksError(msg)
        saved = dict(connection.execute("SELECT name, value FROM identity"))
        differences = [
            f"{name} was {saved.get(name, 'absent')}, is {identity.get(name, 'absent')}"
            for name in sorted(saved.keys() | identity.keys())
            if saved.get(name) != identity.get(name)
        ]
        if differences:
            msg = (
                f"the books {self.path} were made with something else ({'; '.join(differences)}): "
                "go back to it, or give another file (--books, exchange.books)"
            )
            raise BooksError(msg)

    @staticmethod
    def _put_account(connection: sqlite3.Connection, account: AccountBook) -> None:
        row = (1, str(account.cash), str(account.fees_paid), str(account.realised_pnl))
        connection.execute(_PUT_ACCOUNT, row)
        connection.execute("DELETE FROM holdings")
        connection.executemany(
            "INSERT INTO holdings (symbol, qty, avg_cost) VALUES (?, ?, ?)",
            [(symbol, str(held.qty), str(held.avg_cost)) for symbol, held in account.holdings.items()],
        )

    @staticmethod
    def _read(connection: sqlite3.Connection) -> Snapshot | None:
        def rows(table: str, columns: tuple[str, ...], order: str) -> list[dict[str, Any]]:
            query = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"  # noqa: S608 - names are constants
            return [_decode(row, columns) for row in connection.execute(query)]

        clocks = rows("clock", _CLOCK, "one")
        if not clocks:
            return None
        money = connection.execute("SELECT cash, fees_paid, realised_pnl FROM account").fetchone()
        account = None
        if money is not None:
            cash, fees_paid, realised_pnl = (Decimal(text) for text in money)
            held = connection.execute("SELECT symbol, qty, avg_cost FROM holdings ORDER BY rowid")
            holdings = {symbol: Holding(Decimal(qty), Decimal(cost)) for symbol, qty, cost in held}
            account = AccountBook(cash=cash, holdings=holdings, fees_paid=fees_paid, realised_pnl=realised_pnl)
        return Snapshot(
            clock=ClockMark(**clocks[0]),
            account=account,
            orders=[BookOrder(**row) for row in rows("orders", _ORDER, "sequence")],
            fills=[Fill(**row) for row in rows("fills", _FILL, "exec_id")],
            actions=[CorporateAction(**row) for row in rows("actions", _ACTION, "sequence")],
        )

    def _explain(self, what: str, error: Exception | str) -> BooksError:
        text = str(error)
        remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in text), "see the system's message")
        return BooksError(f"the books {self.path} could not be {what} ({text}): {remedy}")
