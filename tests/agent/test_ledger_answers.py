"""Answers of the language model on their way through the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.ledger.answers import LedgerAnswers, PendingAnswers
from agent.ledger.store import open_ledger
from strategies.answers import RecordedAnswer

ANSWER = RecordedAnswer(
    prompt_hash="ab" * 32,
    digest="0123456789ab",
    prompt_version="1",
    content='{"action": "BUY", "reason": "trend"}',
    probabilities=(0.125, 0.25, 0.625),
    mass=0.97,
    latency_s=0.4,
    done_reason="stop",
    symbol="ETHUSDT",
    close_time=datetime(2024, 1, 1, 0, 5, tzinfo=UTC),
)


def test_an_answer_is_found_as_it_came_once_its_close_is_committed(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'l.sqlite'}", durable=False)
    silent = replace(ANSWER, prompt_hash="cd" * 32, probabilities=None, mass=None)
    pending = PendingAnswers()
    for answer in (ANSWER, silent):
        pending.keep(answer)
    assert LedgerAnswers(ledger).find(ANSWER.prompt_hash, ANSWER.digest) is None
    with ledger.transaction() as connection:
        pending.write(connection, ledger)
    pending.written()
    for answer in (ANSWER, silent):
        assert LedgerAnswers(ledger).find(answer.prompt_hash, answer.digest) == answer
    assert len(pending) == 0
    ledger.close()


def test_the_first_answer_to_a_prompt_stays(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'l.sqlite'}", durable=False)
    pending = PendingAnswers()
    for latency_s in (1.0, 2.0):
        pending.keep(replace(ANSWER, latency_s=latency_s))
    for _ in range(2):
        with ledger.transaction() as connection:
            pending.write(connection, ledger)
        pending.keep(replace(ANSWER, latency_s=3.0))
    found = LedgerAnswers(ledger).find(ANSWER.prompt_hash, ANSWER.digest)
    assert found is not None
    assert found.latency_s == 1.0
    ledger.close()


def test_a_commit_that_fails_keeps_the_answers_waiting(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'l.sqlite'}", durable=False)
    pending = PendingAnswers()
    pending.keep(ANSWER)

    def commit_on_a_full_disk() -> None:
        with ledger.transaction() as connection:
            pending.write(connection, ledger)
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        commit_on_a_full_disk()
    assert pending.find(ANSWER.prompt_hash, ANSWER.digest) == ANSWER
    assert LedgerAnswers(ledger).find(ANSWER.prompt_hash, ANSWER.digest) is None
    ledger.close()
