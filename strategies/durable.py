"""Files and directories that appear complete or not at all, also after a crash or a power failure."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_directory(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write a new directory of files.

    Raises:
        OSError: It exists and holds something, or cannot be written; nothing is left behind then.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o755)
        for name, content in contents.items():
            _write_synced(temporary / name, content)
        sync_directory(temporary)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file, or make it; a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    _write_synced(temporary, content)
    temporary.replace(path)
    sync_directory(path.parent)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
