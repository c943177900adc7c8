"""One daemon for each ledger: a lock that is held for a whole run and that the system frees when a process dies.

Beside a SQLite file lies `<file>.lock`, locked by `flock` and naming its holder; it is never removed, because a
second daemon may be waiting on the very file. PostgreSQL holds a session's advisory lock instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from brokers.file_lock import FileLockedError, file_lock, lock_path

ADVISORY_KEY = 0x74616E64656D  # "tandem"
"""PostgreSQL's advisory lock of a database that holds a ledger."""


class LedgerInUseError(Exception):
    """Another daemon holds the ledger; the message says which."""


@contextmanager
def locked_file(database: Path) -> Iterator[None]:
    """Hold the lock of a SQLite ledger.

    Raises:
        LedgerInUseError: Another process holds it.
        OSError: The lock file cannot be made.
    """
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock_path(database)))
        except FileLockedError as error:
            raise LedgerInUseError(f"the daemon of {error} runs on it") from None
        yield


@contextmanager
def locked_server(engine: Engine) -> Iterator[None]:
    """Hold the lock of a PostgreSQL ledger; other databases have none, and are not locked.

    Raises:
        LedgerInUseError: Another session holds it.
        SQLAlchemyError: The server did not answer.
    """
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_KEY}).scalar():
            raise LedgerInUseError("the daemon of another session runs on it")
        yield
