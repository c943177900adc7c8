"""Checkpoints: the whole state of a training, on disk at one instant or not at all.

A checkpoint is a folder of `RUN/checkpoints`: `arrays.safetensors`, `state.json` (the rest of the state, the update
and what training it belongs to) and `SHA256SUMS` over both. It is written beside its place, synced and renamed, and
only then are older ones removed: at any instant, also of a kill or a power cut, a whole one stands there.
No code is stored and none is run by reading one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
import structlog

from brokers.files import write_folder
from training.dqn.state_codec import decode, encode
from training.errors import TrainingError

FORMAT = 1
"""Of the files. A checkpoint of another one is refused."""

KEPT = 2
"""Whole checkpoints that stay; with two, a damaged disk block does not cost the run."""

DIFFERENCES_SHOWN_MAX = 12

_NAME = re.compile(r"(\d{6})-(\d{12})")
_ARRAYS, _STATE, _SUMS = "arrays.safetensors", "state.json", "SHA256SUMS"

log = structlog.get_logger(__name__)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_dir: The run's folder.
        identity: What the training is: a JSON object of its configuration, feature spec, data, table and code format.
            A checkpoint of another one is never loaded.

    Attributes:
        failures: Saves that did not succeed since this object was made.
    """

    def __init__(self, run_dir: Path, identity: Mapping[str, Any]) -> None:
        self.folder = run_dir / "checkpoints"
        self.identity = _plain(identity)
        self.failures = 0
        self._damaged: set[str] = set()

    def save(self, update: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint; it becomes the latest. Returns its folder.

        Args:
            update: Gradient updates done.
            state: What `state_codec.encode` takes.

        Raises:
            TrainingError: The state holds what cannot be stored, or the disk is full or fails; the checkpoints before
                stand untouched.
        """
        tree, arrays = encode(state)
        content = {"format": FORMAT, "update": update, "identity": self.identity, "state": tree}
        files = {
            _STATE: json.dumps(content, allow_nan=False, separators=(",", ":")).encode(),
            _ARRAYS: safetensors.numpy.save(arrays),
        }
        files[_SUMS] = "".join(f"{_sha256(data)}  {name}\n" for name, data in files.items()).encode()
        try:
            names = self._names()
            number = 1 + (int(names[-1].partition("-")[0]) if names else 0)
            folder = self.folder / f"{number:06d}-{update:012d}"
            write_folder(folder, files)
        except OSError as error:
            self.failures += 1
            remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the disk"
            raise TrainingError(
                f"the checkpoint of update {update} cannot be written to {self.folder} "
                f"({error.strerror or error}): {remedy}; the one before stands untouched"
            ) from error
        self._remove_old(folder.name)
        return folder

    def try_save(self, update: int, state: Mapping[str, Any]) -> bool:
        """Save where that is possible: a full disk is a warning and a count, and the training goes on.

        Raises:
            TrainingError: The state holds what cannot be stored: a mistake that every later save would repeat.
        """
        failures = self.failures
        try:
            self.save(update, state)
        except TrainingError as error:
            if self.failures == failures:
                raise
            log.warning("checkpoint_failed", update=update, failures=self.failures, error=str(error))
            return False
        return True

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return update and state of the newest whole checkpoint; None where none was ever written.

        A damaged one is passed over, and a log line says so.

        Raises:
            TrainingError: It is of another training (see `check`), or there are checkpoints and all are damaged.
        """
        found = self._newest_whole()
        if found is None:
            return None
        folder, content, arrays = found
        refuse_other(folder, content["identity"], self.identity)
        return int(content["update"]), decode(content["state"], arrays)

    def check(self, identity: Mapping[str, Any] | None = None) -> None:
        """Refuse to go on from a checkpoint of another training.

        Args:
            identity: What the training is now; None: what the store was made with.

        Raises:
            TrainingError: The newest whole checkpoint has another identity; every difference is named.
        """
        found = self._newest_whole()
        if found is not None:
            refuse_other(found[0], found[1]["identity"], self.identity if identity is None else _plain(identity))

    def _newest_whole(self) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
        names = self._names()
        faults = []
        for name in reversed(names):
            try:
                content, arrays = _read(self.folder / name)
            except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                faults.append(f"{name}: {error}")
                self._damaged.add(name)
                log.warning("checkpoint_damaged", folder=str(self.folder / name), error=str(error))
                continue
            if content["format"] != FORMAT:
                raise TrainingError(
                    f"{self.folder / name} has format {content['format']}, this version reads {FORMAT}: go on with the "
                    "version that wrote it, or start anew in another folder"
                )
            return self.folder / name, content, arrays
        if faults:
            raise TrainingError(
                f"no checkpoint in {self.folder} is whole ({'; '.join(faults)}): start anew in another folder"
            )
        return None

    def _names(self) -> list[str]:
        """Return the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if _NAME.fullmatch(entry.name))

    def _remove_old(self, newest: str) -> None:
        """Remove all but the last whole ones, and what killed processes left; a failure costs space, not the run."""
        whole = [name for name in self._names() if name not in self._damaged or name == newest]
        keep = set(whole[-KEPT:])
        try:
            for entry in list(self.folder.iterdir()):
                if entry.name in keep:
                    continue
                if _NAME.fullmatch(entry.name):
                    # out of the list in one step, so that a kill while its files go does not leave half of one in it
                    entry = entry.rename(self.folder / f".{entry.name}.old")  # noqa: PLW2901 -- its new name
                if entry.name.startswith("."):
                    shutil.rmtree(entry)
        except OSError as error:
            log.warning("old_checkpoint_stays", folder=str(self.folder), error=str(error))


@contextmanager
def one_trainer(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder for one process: two trainers in it would write over one another.

    Raises:
        TrainingError: Another process holds it, or the folder cannot be written.
    """
    path = run_dir / ".trainer.lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror}): name a folder that this user owns"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"another process trains in {run_dir}: wait for it, or name another folder") from error
        yield
    finally:
        os.close(descriptor)


def refuse_other(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compare two identities.

    Raises:
        TrainingError: They differ; each difference is named by its keys, with the stored and the current value.
    """
    differences = list(_differences(stored, current, ""))
    if not differences:
        return
    shown = differences[:DIFFERENCES_SHOWN_MAX]
    if more := len(differences) - len(shown):
        shown.append(f"and {more} more")
    raise TrainingError(
        f"the checkpoint in {folder} is of another training:\n  "
        + "\n  ".join(shown)
        + "\ngo on with the values it was made with, or start anew in another folder"
    )


def _differences(stored: Any, current: Any, path: str) -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(current, Mapping):
        for key in sorted({*stored, *current}):
            where = f"{path}.{key}" if path else str(key)
            if key not in stored:
                yield f"{where}: not there, now {_short(current[key])}"
            elif key not in current:
                yield f"{where}: {_short(stored[key])}, now not there"
            else:
                yield from _differences(stored[key], current[key], where)
    elif json.dumps(stored, sort_keys=True) != json.dumps(current, sort_keys=True):
        yield f"{path}: {_short(stored)}, now {_short(current)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as it comes back from JSON.

    Raises:
        TrainingError: It is not JSON.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(identity), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"the identity of a training must be a JSON object: {error}") from error
    return plain


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return content and arrays of a checkpoint.

    Raises:
        OSError: A file is not there or cannot be read.
        ValueError: A file is not the one that was written.
        SafetensorError: As above, of the arrays.
    """
    wanted = {}
    for line in (folder / _SUMS).read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    data = {}
    for name in (_STATE, _ARRAYS):
        data[name] = (folder / name).read_bytes()
        if wanted.get(name) != _sha256(data[name]):
            raise ValueError(f"{name} is not the file that was written: its SHA-256 differs")
    content: dict[str, Any] = json.loads(data[_STATE])
    return content, safetensors.numpy.load(data[_ARRAYS])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
