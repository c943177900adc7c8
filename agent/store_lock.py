"""One daemon for each bar store: two would each write the store's tail anew without the other's bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.minds import StartError
from brokers.file_lock import FileLockedError, file_lock

LOCK_FILE = "daemon.lock"


@contextmanager
def held_bar_store(folder: Path | None) -> Iterator[None]:
    """Hold a bar store for a whole run, made when missing; the system frees it when the process dies.

    Raises:
        StartError: Another daemon holds it.
        OSError: The folder cannot be made or written.
    """
    with ExitStack() as held:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(file_lock(folder / LOCK_FILE))
            except FileLockedError as error:
                raise StartError(
                    f"the bar store {folder} is in use: the daemon of {error} writes it: stop it, or give this one "
                    "another daemon.bar_store"
                ) from None
        yield
