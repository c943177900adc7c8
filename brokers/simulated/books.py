"""Where the exchange's state is kept: nowhere (`MemoryBooks`, for replay) or in SQLite (`SqliteBooks`).

Durable books are committed in one transaction per advance, submission or cancellation, before the answer
leaves; a process killed at any instruction continues from the last answer it may have given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from brokers.domain import UnavailableError
from brokers.simulated.state import Changes, Snapshot


class BooksError(UnavailableError):
    """The books cannot be opened, read or written; the message says why and what to do."""


class Books(Protocol):
    """Durable memory of one engine."""

    @property
    def keeps(self) -> bool:
        """True where commits must be made; False where nothing outlives the process."""
        ...

    def open(self, identity: Mapping[str, str]) -> Snapshot | None:
        """Return what was last committed; None for new books, which then belong to `identity`.

        Raises:
            BooksError: The books belong to another seed, feed or cost model, or cannot be read.
        """
        ...

    def commit(self, changes: Changes) -> None:
        """Write one transaction, durable when this returns.

        Raises:
            BooksError: Nothing was written, or it is not known: `open` tells.
        """
        ...

    def close(self) -> None:
        """Release the books."""
        ...


class MemoryBooks:
    """No memory beyond the process."""

    keeps = False

    def open(self, identity: Mapping[str, str]) -> Snapshot | None:  # noqa: ARG002 - new at every start, so any identity fits
        """Return None: the account is new."""
        return None

    def commit(self, changes: Changes) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Nothing is held."""
