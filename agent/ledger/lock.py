"""One daemon for each ledger: a lock that is held for a whole run and that the system frees when a process dies.

Beside a SQLite file lies `<file>.lock`, locked by `flock` and naming its holder; it is never removed, because a
second daemon may be waiting on the very file. On PostgreSQL the session that writes holds an advisory lock instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from brokers.file_lock import FileLockedError, file_lock, lock_path


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
