from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import steady
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from training.dqn.history import History, TensorBoardLog, read_history, validated
from training.errors import TrainingError

NUMBERS = st.floats(allow_nan=False)


def test_what_is_recorded_is_what_is_read(tmp_path: Path) -> None:
    history = History(tmp_path)
    for update in (10, 20):
        history.append(steady(update))
    assert read_history(tmp_path) == history.records
    assert [record["update"] for record in history.records] == [10, 20]


@given(loss=st.lists(NUMBERS, min_size=1, max_size=3), epsilon=st.none() | NUMBERS)
def test_numbers_come_back_exactly(loss: list[float], epsilon: float | None) -> None:
    record = validated(steady(1, members=len(loss), loss=loss, epsilon=epsilon))
    assert validated(json.loads(json.dumps(record))) == record


def test_numbers_that_are_not_finite_are_kept_in_valid_json(tmp_path: Path) -> None:
    History(tmp_path).append(steady(1, loss=[math.nan, math.inf], q_bound=-math.inf))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "history.jsonl").read_text(), parse_constant=refuse)
    (record,) = read_history(tmp_path)
    assert math.isnan(record["loss"][0])
    assert (record["loss"][1], record["q_bound"]) == (math.inf, -math.inf)


def test_numpy_s_numbers_and_arrays_are_welcome() -> None:
    record = validated(steady(1, update=np.int64(7), loss=np.float32([1, 2]), q_bound=np.float64(3)))
    assert (record["update"], record["loss"], record["q_bound"]) == (7, [1.0, 2.0], 3.0)
    assert type(record["update"]) is int


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in steady(1).items() if key != name}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("loss"), "lacks loss"),
        ({**without("td_p99"), "td_p999": [1.0, 1.0]}, "has no 'td_p999', did you mean 'td_p99'"),
        (steady(1, update=1.5), "update is 1.5"),
        (steady(1, update=-1), "update is -1"),
        (steady(1, lr=[0.1]), "lr has 1 entries, loss has 2"),
        (steady(1, lr=0.1), "lr is 0.1: a list"),
        (steady(1, loss=[]), "loss is"),
        (steady(1, turnover=["much", 1]), "turnover is 'much'"),
        (steady(1, epsilon=True), "epsilon is True"),
        (steady(1, action_share=[{"2": 1.0}] * 2), "action_share has"),
        (steady(1, own={"a": 1}), "own is"),
        ([1], "is a mapping"),
    ],
)
def test_a_record_that_the_schema_does_not_allow_is_refused(record: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        History(tmp_path).append(record)
    assert not (tmp_path / "history.jsonl").exists()


def test_further_numbers_are_kept() -> None:
    record = validated(steady(1, gross_bps=[1, 2], temperature=0.5, note=None))
    assert (record["gross_bps"], record["temperature"], record["note"]) == ([1.0, 2.0], 0.5, None)


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, killed = History(tmp_path / "whole"), History(tmp_path / "killed")
    for update in range(10, 100, 10):
        whole.append(steady(update))
    for update in range(10, 70, 10):
        killed.append(steady(update))
    resumed = History(tmp_path / "killed")
    assert resumed.truncate(40) == 2
    for update in range(50, 100, 10):
        resumed.append(steady(update))
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_a_line_that_a_kill_tore_is_left_out_and_written_over(tmp_path: Path) -> None:
    History(tmp_path).append(steady(10))
    path = tmp_path / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    with capture_logs() as logs:
        resumed = History(tmp_path)
    assert [line["event"] for line in logs] == ["history_torn"]
    resumed.append(steady(20))
    assert [record["update"] for record in read_history(tmp_path)] == [10, 20]


def test_a_damaged_line_within_is_an_error_that_names_it(tmp_path: Path) -> None:
    history = History(tmp_path)
    for update in (10, 20):
        history.append(steady(update))
    history.path.write_bytes(b"{torn\n" + history.path.read_bytes())
    with pytest.raises(TrainingError, match=r"history\.jsonl, line 1, is damaged"):
        read_history(tmp_path)


def test_a_folder_without_a_history_is_an_error_that_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="name the folder of a training"):
        read_history(tmp_path)


@pytest.mark.parametrize("later", [steady(10), steady(20, members=3)])
def test_a_record_that_does_not_follow_is_refused(later: dict[str, Any], tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(steady(10))
    with pytest.raises(TrainingError):
        history.append(later)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refused_is_written_with_the_next_record(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(steady(10))
    with files_end_at(history.path.stat().st_size + 100), capture_logs() as logs:
        history.append(steady(20))
        history.append(steady(30))
    assert [(line["event"], line["waiting"]) for line in logs] == [
        ("history_not_written", 1),
        ("history_not_written", 2),
    ]
    assert [record["update"] for record in read_history(tmp_path)] == [10]
    history.append(steady(40))
    assert history.failures == 2
    assert [record["update"] for record in read_history(tmp_path)] == [10, 20, 30, 40]


def test_tensorboard_shows_each_member_and_their_mean(tmp_path: Path) -> None:
    board = TensorBoardLog(tmp_path)
    board.write(validated(steady(10, loss=[1.0, 3.0], exit_spread=0.5)))
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415  # heavy

    seen = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in seen.Scalars("loss/mean")] == [2.0]
    assert [event.value for event in seen.Scalars("loss/1")] == [3.0]
    assert seen.Scalars("exit_spread")[0].step == 10
    assert seen.Scalars("action_share/0/mean")[0].value == pytest.approx(0.6)
    assert not [tag for tag in seen.Tags()["scalars"] if tag.startswith(("epsilon", "update"))]
