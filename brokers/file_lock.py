"""A lock file that one process holds and that the system frees when it dies, however it dies.

The file names its holder and is never removed, because another process may be waiting on the very file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.02


class FileLockedError(Exception):
    """Another process holds the lock; the message names it, for example `process 4711`."""


@contextmanager
def file_lock(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, made when missing.

    Args:
        path: The lock file.
        wait_s: How long to wait for another process to let go of it.

    Raises:
        FileLockedError: Another process holds it.
        OSError: The file cannot be made.
    """
    give_up = time.monotonic() + wait_s
    with path.open("a+", encoding="ascii", errors="replace") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    file.seek(0)
                    holder = file.read(20).strip()
                    raise FileLockedError(f"process {holder}" if holder.isdigit() else "another process") from None
            time.sleep(POLL_S)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_path(database: Path) -> Path:
    """Return the lock file that stands beside a database file, whichever path leads to it."""
    return Path(f"{database.resolve()}.lock")
