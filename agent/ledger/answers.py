"""The language model's answers in the ledger: written with the close they belong to, read by replays.

Both are answer books (`strategies.answers.AnswerBook`), each for its one direction.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy import Connection, bindparam, select

from agent.ledger import schema
from agent.ledger.store import Ledger
from strategies.answers import AnswersError, RecordedAnswer

PENDING_MAX = 100_000
"""Answers that wait for a commit; a close brings one a symbol."""

_ANSWER = select(schema.llm_answers).where(
    schema.llm_answers.c.prompt_hash == bindparam("prompt_hash"), schema.llm_answers.c.digest == bindparam("digest")
)


class PendingAnswers:
    """What the model has just said, until it is committed with the decisions of its close."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._pending: deque[RecordedAnswer] = deque(maxlen=PENDING_MAX)

    def __len__(self) -> int:
        return len(self._pending)

    def find(self, prompt_hash: str, digest: str) -> RecordedAnswer | None:
        """Return the answer to a prompt among those that wait."""
        key = (prompt_hash, digest)
        return next((one for one in self._pending if (one.prompt_hash, one.digest) == key), None)

    def keep(self, answer: RecordedAnswer) -> None:
        """Let an answer wait for the commit of its close."""
        self._pending.append(answer)

    def write(self, connection: Connection, ledger: Ledger) -> None:
        """Write what waits, in the caller's transaction; what a model answered to the same prompt before stays."""
        rows = {(answer.prompt_hash, answer.digest): _row(answer) for answer in reversed(self._pending)}
        if rows:
            ledger.insert_new(connection, schema.llm_answers, list(rows.values()))

    def written(self) -> None:
        """Forget what has been committed."""
        self._pending.clear()


class LedgerAnswers:
    """What a model said live, as a replay reads it.

    Args:
        ledger: Of a daemon; only read.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def find(self, prompt_hash: str, digest: str) -> RecordedAnswer | None:
        """Return what this model answered to this prompt; None where it was never asked.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        row = self._ledger.first(_ANSWER, {"prompt_hash": prompt_hash, "digest": digest})
        if row is None:
            return None
        values: dict[str, Any] = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
        if values["probabilities"] is not None:
            values["probabilities"] = tuple(values["probabilities"])
        return RecordedAnswer(**values)

    def keep(self, answer: RecordedAnswer) -> None:
        """Refuse: a replay asks no model, so there is nothing to record.

        Raises:
            AnswersError: Always.
        """
        raise AnswersError(f"the answer for {answer.symbol} cannot be recorded: this ledger is only read")


def _row(answer: RecordedAnswer) -> dict[str, Any]:
    return {
        "prompt_hash": answer.prompt_hash,
        "digest": answer.digest,
        "prompt_version": answer.prompt_version,
        "symbol": answer.symbol,
        "close_time": answer.close_time,
        "content": answer.content,
        "probabilities": None if answer.probabilities is None else list(answer.probabilities),
        "mass": answer.mass,
        "latency_s": answer.latency_s,
        "done_reason": answer.done_reason,
    }
