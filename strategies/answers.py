"""Recorded answers of a language model, found by prompt and model: what makes a replay ask nobody."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from brokers.domain import utc
from brokers.files import sync_folder
from strategies.prompt import ANSWER_CHARACTERS_MAX
from strategies.strategy import Action

ACTION_ORDER: Final = (Action.SELL, Action.HOLD, Action.BUY)
"""The order of `RecordedAnswer.probabilities`."""
DIGEST_CHARACTERS: Final = 12
"""Digits of a model's digest that answers are found by: as many as Ollama shows."""
ANSWERS_MAX: Final = 2_000_000
"""Most answers of one file."""
CONTENT_CHARACTERS_MAX: Final = ANSWER_CHARACTERS_MAX + 1
"""Kept of an answer: one character more than may be read, so that a refused one is refused again."""


class AnswersError(ValueError):
    """A recorded answer, or a file of them, that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """One answer, as it came.

    Args:
        prompt_hash: `strategies.prompt.prompt_hash` of what was asked.
        digest: `short_digest` of the model that answered.
        prompt_version: `PROMPT_VERSION` when it was asked.
        content: The text, at most `CONTENT_CHARACTERS_MAX` characters.
        probabilities: Of SELL, HOLD and BUY at the token that decides, summing to 1, before calibration; None where
            the server told none.
        mass: What the three had together before they were made to sum to 1; None where the server told none.
        latency_s: From question to answer.
        done_reason: Why the model stopped, in the server's word: "stop" for an answer that is whole.
        symbol: Canonical symbol it was asked for.
        close_time: Bar close it was asked for, aware UTC.

    Raises:
        AnswersError: Probabilities that are none, too much text, or a NUL in it.
    """

    prompt_hash: str
    digest: str
    prompt_version: str
    content: str
    probabilities: tuple[float, float, float] | None
    mass: float | None
    latency_s: float
    done_reason: str
    symbol: str
    close_time: datetime

    def __post_init__(self) -> None:
        if self.probabilities is not None and not (
            len(self.probabilities) == len(ACTION_ORDER)
            and all(math.isfinite(one) and one >= 0.0 for one in self.probabilities)
            and math.isclose(math.fsum(self.probabilities), 1.0, abs_tol=1e-6)
        ):
            raise AnswersError(f"probabilities {self.probabilities} of {self.symbol} are not three that sum to 1")
        if self.mass is not None and not (math.isfinite(self.mass) and self.mass >= 0.0):
            raise AnswersError(f"mass {self.mass} of {self.symbol} is no probability")
        if len(self.content) > CONTENT_CHARACTERS_MAX:
            raise AnswersError(f"answer of {len(self.content)} characters, {CONTENT_CHARACTERS_MAX} are the most")
        if "\0" in self.content:
            raise AnswersError("the answer holds a NUL, which no database on a server keeps")
        if self.digest != short_digest(self.digest):
            raise AnswersError(f"digest {self.digest!r} is not a short digest: give short_digest(digest)")

    def to_json(self) -> str:
        """Return it as one line of ASCII."""
        return json.dumps(asdict(self) | {"close_time": self.close_time.isoformat()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> RecordedAnswer:
        """Read what `to_json` wrote.

        Raises:
            AnswersError: Anything else.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            data["close_time"] = utc(datetime.fromisoformat(data["close_time"]))
            if data["probabilities"] is not None:
                data["probabilities"] = tuple(map(float, data["probabilities"]))
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AnswersError(f"not a recorded answer ({error}): {text[:80]!r}") from error


def short_digest(digest: str) -> str:
    """Return the digits that answers are found by, from a digest of any length, with or without `sha256:`."""
    return digest.removeprefix("sha256:").lower()[:DIGEST_CHARACTERS]


class AnswerBook(Protocol):
    """Where answers are recorded and found."""

    def find(self, prompt_hash: str, digest: str) -> RecordedAnswer | None:
        """Return the answer to a prompt by the model of a `short_digest`; None where there is none."""
        ...

    def keep(self, answer: RecordedAnswer) -> None:
        """Record an answer; where the same model answered the same prompt before, the first answer stays."""
        ...


class AnswerMemory:
    """An answer book that lives as long as the process."""

    def __init__(self) -> None:
        """Start with no answers."""
        self._answers: dict[tuple[str, str], RecordedAnswer] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, prompt_hash: str, digest: str) -> RecordedAnswer | None:
        """See `AnswerBook.find`."""
        return self._answers.get((prompt_hash, digest))

    def keep(self, answer: RecordedAnswer) -> None:
        """See `AnswerBook.keep`.

        Raises:
            AnswersError: `ANSWERS_MAX` are kept already.
        """
        if len(self) >= ANSWERS_MAX:
            raise AnswersError(f"{ANSWERS_MAX} answers are kept, which is the most: record them in a file by stretches")
        self._answers.setdefault((answer.prompt_hash, answer.digest), answer)


class AnswerFile:
    """An answer book in a JSONL file; memory holds where each answer stands, not the answers.

    A line that was cut short by a crash is ignored at the end of the file, and an error anywhere else. One process
    appends at a time; each answer is one write, synced before `keep` returns.
    """

    def __init__(self, path: Path | str) -> None:
        """Index a file, which is made when something is first kept.

        Raises:
            AnswersError: A line that is no answer, named by file and number; or more than `ANSWERS_MAX`.
            OSError: It cannot be read.
        """
        self.path = Path(path)
        self._places: dict[tuple[str, str], int] = {}
        self._end = 0
        if self.path.exists():
            self._index()

    def __len__(self) -> int:
        return len(self._places)

    def _index(self) -> None:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._note(RecordedAnswer.from_json(line))
                except AnswersError as error:
                    raise AnswersError(f"{self.path}, line {number}: {error}") from error
                self._end += len(line)

    def _note(self, answer: RecordedAnswer) -> None:
        if len(self) >= ANSWERS_MAX:
            raise AnswersError(f"more than {ANSWERS_MAX} answers in {self.path}: begin another file")
        self._places.setdefault((answer.prompt_hash, answer.digest), self._end)

    def find(self, prompt_hash: str, digest: str) -> RecordedAnswer | None:
        """See `AnswerBook.find`.

        Raises:
            AnswersError: The file was changed since it was indexed.
            OSError: It cannot be read.
        """
        place = self._places.get((prompt_hash, digest))
        if place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place)
            answer = RecordedAnswer.from_json(file.readline())
        if (answer.prompt_hash, answer.digest) != (prompt_hash, digest):
            raise AnswersError(f"{self.path} was changed by somebody else: read it again")
        return answer

    def keep(self, answer: RecordedAnswer) -> None:
        """See `AnswerBook.keep`.

        Raises:
            AnswersError: The file holds `ANSWERS_MAX` already.
            OSError: It cannot be written; the answer is not recorded then.
        """
        if (answer.prompt_hash, answer.digest) in self._places:
            return
        line = answer.to_json().encode() + b"\n"
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if not is_new else "xb", buffering=0) as file:
            file.seek(self._end)
            file.truncate()  # what a crash cut short
            if file.write(line) != len(line):
                raise OSError(f"{self.path} took a part of a line only: is the disk full?")
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)
        self._note(answer)
        self._end += len(line)
