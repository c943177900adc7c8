"""The log's file: appended to, followed when somebody else renames it, rotated by itself above a size.

One process writes it. logrotate may rename it at any time, without a signal and without a copy: the next record goes
into a new file under the old name, and none is lost or cut.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

FILE_MODE = 0o640


class LogFile:
    """An append-only text file that outlives rotations; the caller writes from one thread at a time.

    Args:
        path: The file; its folder is made when missing.
        bytes_max: Size from which it is rotated here; None leaves rotation to others.
        files_kept: Rotated files kept as `path.1` (newest) to `path.N`.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, bytes_max: int | None, files_kept: int) -> None:
        self._path = path.absolute()
        self._bytes_max = bytes_max
        self._files_kept = files_kept
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._opened()

    def current(self) -> TextIO:
        """Return the file to write the next record to.

        Raises:
            OSError: It was renamed and cannot be made again.
        """
        if not self._is_in_place():
            self._reopen()
        elif self._bytes_max is not None and os.fstat(self._file.fileno()).st_size >= self._bytes_max:
            self._rotate()
        return self._file

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _is_in_place(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        held = os.fstat(self._file.fileno())
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def _rotate(self) -> None:
        for number in range(self._files_kept - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._reopen()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _reopen(self) -> None:
        opened = self._opened()  # first: where this fails the old one stays usable
        self._file.close()
        self._file = opened

    def _opened(self) -> TextIO:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
