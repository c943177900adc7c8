"""Files and folders that are either whole or not there: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import polars as pl


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends without an error it stands at `path`, whole and on disk.

    After an error (a full disk) the old file, if any, stands untouched and nothing half-written is left.

    Raises:
        OSError: The folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, name}:
            error.filename = str(path)  # a failed write does not know what it was for, a failed rename says it second
        raise


def write_parquet(frame: pl.DataFrame, path: Path, *, rows_per_group: int | None = None) -> None:
    """Write a frame as Parquet (zstd), whole or not at all.

    It is encoded in memory first: an error of the disk is then an `OSError`, not one of the encoder.
    """
    encoded = io.BytesIO()
    frame.write_parquet(encoded, compression="zstd", row_group_size=rows_per_group)
    with atomic_write(path) as file:
        file.write(encoded.getbuffer())


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a new folder of files.

    Raises:
        OSError: It exists and holds something, or cannot be written; nothing is left behind then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, content in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
