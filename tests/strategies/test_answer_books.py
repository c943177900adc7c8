from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.answers import (
    ACTION_ORDER,
    CONTENT_CHARACTERS_MAX,
    AnswerBook,
    AnswerFile,
    AnswerMemory,
    AnswersError,
    RecordedAnswer,
    short_digest,
)
from strategies.strategy import Action

ANSWER = RecordedAnswer(
    prompt_hash="a" * 64,
    digest="0123456789ab",
    prompt_version="1",
    content='{"action": "BUY", "reason": "über \u2028 \\ud800"}',
    probabilities=(0.125, 0.25, 0.625),
    mass=0.75,
    latency_s=0.5,
    done_reason="stop",
    symbol="BTC/USD",
    close_time=datetime(2024, 3, 1, 12, tzinfo=UTC),
)


def numbered(count: int) -> list[RecordedAnswer]:
    return [replace(ANSWER, prompt_hash=f"{number:064d}", latency_s=float(number)) for number in range(count)]


def test_probabilities_are_of_sell_hold_and_buy() -> None:
    assert ACTION_ORDER == (Action.SELL, Action.HOLD, Action.BUY)


@given(
    st.text(st.characters(exclude_characters="\0"), max_size=60),
    st.none() | st.floats(0, 1),
    st.none() | st.tuples(*[st.floats(1e-3, 1.0)] * 3),
    st.text(max_size=20),
)
def test_an_answer_is_read_as_it_was_written(
    content: str, mass: float | None, odds: tuple[float, float, float] | None, symbol: str
) -> None:
    total = math.fsum(odds or (1.0,))
    sell, hold, buy = (one / total for one in odds or (1.0, 0.0, 0.0))
    answer = replace(
        ANSWER, content=content, mass=mass, probabilities=None if odds is None else (sell, hold, buy), symbol=symbol
    )
    line = answer.to_json()
    assert line.isascii()
    assert "\n" not in line
    assert RecordedAnswer.from_json(line) == answer


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": (0.5, 0.5, 0.5)},
        {"probabilities": (math.nan, 0.5, 0.5)},
        {"probabilities": (1.5, -0.5, 0.0)},
        {"probabilities": (0.5, 0.5)},
        {"mass": math.nan},
        {"mass": -0.1},
        {"content": "x" * (CONTENT_CHARACTERS_MAX + 1)},
        {"content": '{"action": "BUY", "reason": "\0"}'},
        {"digest": "0123456789abcdef"},
        {"digest": "sha256:01234"},
    ],
)
def test_an_answer_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(AnswersError):
        replace(ANSWER, **change)  # type: ignore[arg-type]  # a test may pass anything


@pytest.mark.parametrize("digest", ["0123456789abCDEF", "sha256:0123456789abcdef", "0123456789ab"])
def test_a_digest_is_known_by_its_first_twelve_digits(digest: str) -> None:
    assert short_digest(digest) == "0123456789ab"


@pytest.fixture(params=["memory", "file"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> AnswerBook:
    return AnswerMemory() if request.param == "memory" else AnswerFile(tmp_path / "folder" / "answers.jsonl")


def test_a_book_finds_by_prompt_and_model_and_nothing_else(book: AnswerBook) -> None:
    for answer in numbered(3):
        book.keep(answer)
    assert book.find(f"{1:064d}", ANSWER.digest) == numbered(3)[1]
    assert book.find(f"{9:064d}", ANSWER.digest) is None
    assert book.find(f"{1:064d}", "f" * 12) is None


def test_the_first_answer_to_a_prompt_stays(book: AnswerBook) -> None:
    book.keep(ANSWER)
    book.keep(replace(ANSWER, content="another"))
    assert book.find(ANSWER.prompt_hash, ANSWER.digest) == ANSWER


def test_a_file_is_read_again_after_a_restart_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = AnswerFile(path)
    for answer in numbered(4)[:2]:
        first.keep(answer)
    second = AnswerFile(path)
    for answer in numbered(4)[2:]:
        second.keep(answer)
    third = AnswerFile(path)
    assert len(third) == 4
    assert [third.find(one.prompt_hash, one.digest) for one in numbered(4)] == numbered(4)


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_line_that_a_crash_cut_short_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    book = AnswerFile(path)
    for answer in numbered(2):
        book.keep(answer)
    path.write_bytes(path.read_bytes()[:-cut])
    again = AnswerFile(path)
    assert len(again) == 1
    for answer in numbered(3)[1:]:
        again.keep(answer)
    assert len(AnswerFile(path)) == 3


def test_what_a_crash_left_is_dropped_also_where_it_is_longer_than_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerFile(path).keep(numbered(1)[0])
    with path.open("ab") as file:
        file.write(b"x" * 5_000)
    AnswerFile(path).keep(numbered(2)[1])
    assert path.read_text().splitlines(keepends=True) == [f"{one.to_json()}\n" for one in numbered(2)]


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "null", "NaN", ANSWER.to_json().replace("+00:00", ""), ANSWER.to_json()[:-1] + ', "x": 1}']
)
def test_a_line_that_is_no_answer_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{ANSWER.to_json()}\n{line}\n")
    with pytest.raises(AnswersError, match=r"answers\.jsonl, line 2"):
        AnswerFile(path)


def test_a_file_that_somebody_else_changed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    book = AnswerFile(path)
    book.keep(ANSWER)
    path.write_text(replace(ANSWER, prompt_hash="b" * 64).to_json() + "\n")
    with pytest.raises(AnswersError, match="changed by somebody else"):
        book.find(ANSWER.prompt_hash, ANSWER.digest)
