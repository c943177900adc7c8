"""What is going to be judged, frozen before the first test bar is scored, and the count of all that ever was.

The manifest is written first, with the hash of its own content; whoever finds a report can tell that nothing was
chosen after the fact, as far as one machine can tell it: a folder can be thrown away, a line of the count deleted.
The count is a file of JSON lines beside the reports. A line `planned` stands there before the scoring, so a run that
was broken off, because of what it showed or otherwise, counts as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brokers.files import atomic_write
from training.errors import TrainingError

MANIFEST_FILE = "manifest.json"
TRIALS_FILE = "trials.jsonl"
TRIALS_BYTES_MAX = 64 * 2**20
"""A longer count is refused: it is not one of ours."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the SHA-256 of its canonical JSON as `hash`."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, "hash": content_hash(plain)}


def content_hash(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's canonical JSON, its own hash left out."""
    content = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, whole and on disk or not at all.

    Raises:
        TrainingError: It cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written ({error.strerror or error}): name a folder of yours") from error


@dataclass(frozen=True, slots=True)
class Luck:
    """How many trials these data have seen.

    Args:
        trials: Policies scored on them, each seed one, this run's included; a run repeated exactly counts once.
        deviation: Standard deviation of their Sharpe ratios per close; None where fewer than two are known.
    """

    trials: int
    deviation: float | None


class Trials:
    """The count of trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self, manifest: Mapping[str, Any]) -> None:
        """Write down that a manifest is about to be scored.

        Raises:
            TrainingError: The file cannot be written.
        """
        self._append({"event": "planned", **_of(manifest), "seeds": list(manifest["seeds"])})

    def score(self, manifest: Mapping[str, Any], sharpes: Sequence[float | None]) -> None:
        """Write down the Sharpe ratio per close of each seed's policy.

        Raises:
            TrainingError: The file cannot be written.
        """
        self._append({"event": "scored", **_of(manifest), "sharpe_per_close": list(sharpes)})

    def luck(self, fingerprint: str) -> Luck:
        """Return what was ever tried on the bars with this fingerprint.

        Raises:
            TrainingError: A line that is not one of ours.
        """
        seeds: dict[str, int] = {}
        sharpes: dict[str, list[float]] = {}
        for number, line in enumerate(self._lines(), start=1):
            try:
                entry = json.loads(line)
                if entry["fingerprint"] != fingerprint:
                    continue
                if entry["event"] == "planned":
                    seeds[entry["manifest"]] = len(entry["seeds"])
                else:
                    sharpes[entry["manifest"]] = [float(x) for x in entry["sharpe_per_close"] if x is not None]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(
                    f"line {number} of {self.path} is no trial ({error!r}): mend or remove the line, or name another "
                    "file with --trials"
                ) from error
        known = [one for several in sharpes.values() for one in several]
        return Luck(max(sum(seeds.values()), 1), float(np.std(known, ddof=1)) if len(known) > 1 else None)

    def _lines(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            if self.path.stat().st_size > TRIALS_BYTES_MAX:
                raise TrainingError(f"{self.path} exceeds {TRIALS_BYTES_MAX} bytes: name another file with --trials")
            return [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"{self.path} cannot be read ({error}): name another file with --trials") from error

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write((json.dumps(entry, allow_nan=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written ({error.strerror or error}): name another file with --trials"
            ) from error


def _of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {"fingerprint": manifest["data"]["fingerprint"], "manifest": manifest["hash"]}
