"""The history of a training: one record for each evaluation, appended to `RUN/history.jsonl`.

Units: values, TD errors and losses in the learner's reward unit (one deviation of a bar's reward); `*_bps` in basis
points of log equity per bar, after costs. Lists have one entry for each member of the ensemble. A number that is not
finite, which JSON does not have, stands as the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from brokers.configuration import did_you_mean
from brokers.files import atomic_write
from training.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = dict[str, Any]
"""One evaluation, as `validated` returns it."""

COUNTS: Mapping[str, str] = {
    "update": "gradient updates done",
    "bars_seen": "bars in all batches together",
}
NUMBERS: Mapping[str, str] = {
    "cpu_s": "process time spent learning, seconds",
    "q_bound": "largest absolute value that discounted rewards can have",
}
NUMBERS_OR_NONE: Mapping[str, str] = {
    "epsilon": "share of random actions; none where nothing is explored",
    "beta": "exponent of the importance weights; none without priorities",
    "exit_spread": "deviation of the proposed stop distances over their mean; none without an exit head",
}
MEMBERS: Mapping[str, str] = {
    "lr": "learning rate",
    "loss": "mean loss of the updates since the evaluation before",
    "td_p50": "median absolute TD error",
    "td_p90": "its 90 % quantile",
    "td_p99": "its 99 % quantile",
    "q_abs_max": "largest absolute value",
    "target_gap": "root mean square of online minus target values",
    "grad_norm": "mean norm of the gradient before clipping",
    "grad_clipped": "share of updates whose gradient was clipped",
    "dead_units": "share of hidden units that no training row activates",
    "train_bps": "after-cost log growth on training rows",
    "validation_bps": "after-cost log growth on the rows it is validated on",
    "validation_error_bps": "standard error of the former",
    "turnover": "sides traded per bar on the rows it is validated on",
}
ACTION_SHARE = "action_share"
"""Share of training rows at which each target is the best: one mapping a member, by target as text."""
MEMBERS_OR_NONE: Mapping[str, str] = {"attention_entropy": "entropy of the attention, nats, mean over heads"}

_ALL = {*COUNTS, *NUMBERS, *NUMBERS_OR_NONE, *MEMBERS, *MEMBERS_OR_NONE, ACTION_SHARE}
_TARGETS = frozenset({"-1", "0", "1"})
_NOT_FINITE = frozenset({"nan", "inf", "-inf"})
MEAN = "mean"

log = structlog.get_logger(__name__)


class History:
    """The history of one run.

    A disk that is full costs nothing but the delay: what could not be written is written with the next record.

    Args:
        run_dir: The run's folder; it is made where it is not there.

    Attributes:
        records: Everything that was recorded, oldest first.
        failures: Writes that did not succeed since this object was made.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "history.jsonl"
        self.records: list[Record] = read_history(run_dir) if self.path.exists() else []
        self.failures = 0
        self._unwritten: list[str] = []
        self._size: int | None = None

    def append(self, record: Mapping[str, Any]) -> Record:
        """Record one evaluation; it is on disk when this returns, unless the disk fails, which a log line says.

        Raises:
            TrainingError: The record is not what the schema says, or not later than the one before.
        """
        checked = validated(record)
        if self.records and checked["update"] <= self.records[-1]["update"]:
            raise TrainingError(
                f"a record of update {checked['update']} after one of {self.records[-1]['update']}: truncate the "
                "history to the checkpoint's update before going on"
            )
        if self.records and len(checked["loss"]) != len(self.records[-1]["loss"]):
            raise TrainingError(
                f"a record of {len(checked['loss'])} members after one of {len(self.records[-1]['loss'])}: a history "
                "is of one ensemble"
            )
        self.records.append(checked)
        self._unwritten.append(_line(checked))
        try:
            self._write()
        except OSError as error:
            self.failures += 1
            log.warning("history_not_written", path=str(self.path), error=str(error), waiting=len(self._unwritten))
        return checked

    def truncate(self, update: int) -> int:
        """Forget what came after an update: a training that goes on from its checkpoint records it again.

        Returns:
            How many records were forgotten.

        Raises:
            TrainingError: The file cannot be written.
        """
        kept = [record for record in self.records if record["update"] <= update]
        forgotten = len(self.records) - len(kept)
        try:
            with atomic_write(self.path) as file:
                file.write("".join(map(_line, kept)).encode())
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written ({error.strerror or error}): check the disk") from error
        self.records, self._unwritten, self._size = kept, [], None
        return forgotten

    def _write(self) -> None:
        """Append what waits; a write that ends in the middle is taken back."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if self._size is None:
                self._size = _whole_bytes(self.path)
            if file.tell() != self._size:
                file.truncate(self._size)
            file.write("".join(self._unwritten).encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._unwritten.clear()


def read_history(run_dir: Path) -> list[Record]:
    """Return the records of a run; a last line that was torn by a kill is left out.

    Raises:
        TrainingError: There is no history, or a line before the last is damaged.
    """
    path = run_dir / "history.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error.strerror}): name the folder of a training, which holds history.jsonl"
        ) from error
    if lines.pop():
        log.warning("history_torn", path=str(path), line=len(lines) + 1)
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = validated(json.loads(line))
        except (ValueError, TrainingError) as error:
            raise TrainingError(f"{path}, line {number}, is damaged ({error}): remove this line") from error
        if records and record["update"] <= records[-1]["update"]:
            raise TrainingError(
                f"{path}, line {number}, is of update {record['update']} after {records[-1]['update']}: two trainings "
                "wrote into one folder; keep the lines of one"
            )
        records.append(record)
    return records


def validated(record: Mapping[str, Any]) -> Record:
    """Return a record with plain numbers, in the order of the schema.

    Names that the schema does not have are kept at its end: numbers, None, or one number for each member.

    Raises:
        TrainingError: A name is missing or looks like a misspelt one, or a value is of another type.
    """
    if not isinstance(record, Mapping):
        raise TrainingError(f"a record is a mapping, not a {type(record).__name__}")
    missing = _ALL - set(record)
    for name in record:
        if name not in _ALL and (hint := did_you_mean(name, missing)).startswith(", did"):
            raise TrainingError(f"a record has no {name!r}{hint}")
    if missing:
        raise TrainingError(f"a record lacks {', '.join(sorted(missing))}")
    members = len(_list("loss", record["loss"]))
    found: Record = {}
    for name in COUNTS:
        if isinstance(record[name], bool) or not isinstance(record[name], Integral) or record[name] < 0:
            raise TrainingError(f"{name} is {record[name]!r}: a count is a whole number, not below 0")
        found[name] = int(record[name])
    for name in NUMBERS:
        found[name] = _number(name, record[name])
    for name in NUMBERS_OR_NONE:
        found[name] = None if record[name] is None else _number(name, record[name])
    for name in MEMBERS:
        found[name] = _of_members(name, record[name], members)
    found[ACTION_SHARE] = [_shares(one) for one in _list(ACTION_SHARE, record[ACTION_SHARE], members)]
    for name in MEMBERS_OR_NONE:
        found[name] = None if record[name] is None else _of_members(name, record[name], members)
    for name in sorted(set(record) - _ALL):
        value = record[name]
        plain = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
        found[name] = None if value is None else _of_members(name, value, members) if plain else _number(name, value)
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TrainingError(f"{name} is {value!r}: a number is needed")
    return float(value)


def _list(name: str, value: Any, members: int | None = None) -> list[Any]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, Sequence) or isinstance(value, str) or not len(value):
        raise TrainingError(f"{name} is {value!r}: a list with one entry for each member is needed")
    if members is not None and len(value) != members:
        raise TrainingError(f"{name} has {len(value)} entries, loss has {members}: one for each member is needed")
    return list(value)


def _of_members(name: str, value: Any, members: int) -> list[float]:
    return [_number(name, one) for one in _list(name, value, members)]


def _shares(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value or not set(value) <= _TARGETS:
        raise TrainingError(f"{ACTION_SHARE} has {value!r}: a mapping by target (-1, 0, 1, as text) is needed")
    return {name: _number(ACTION_SHARE, value[name]) for name in sorted(value, key=int)}


def _line(record: Record) -> str:
    return json.dumps(_plain(record), allow_nan=False, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    """Return a value with numbers that are not finite as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _whole_bytes(path: Path) -> int:
    """Return where the last whole line ends."""
    return path.read_bytes().rfind(b"\n") + 1


class TensorBoardLog:
    """Writes records as TensorBoard's scalars: each metric for every member, and its mean.

    Args:
        folder: Where the event files go.
        since_update: A resumed training hides what was written after this update; None for a new one.
    """

    def __init__(self, folder: Path, *, since_update: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- heavy: paid by those who ask for it

        purge = None if since_update is None else since_update + 1
        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=purge)

    def write(self, record: Record) -> None:
        """Write one record."""
        for name, value in record.items():
            if name in COUNTS or value is None:
                continue
            if name == ACTION_SHARE:
                for target in value[0]:
                    self._members(f"{name}/{target}", [member[target] for member in value], record["update"])
            elif isinstance(value, list):
                self._members(name, value, record["update"])
            else:
                self._scalar(name, value, record["update"])

    def tell(self, lines: Sequence[str], update: int) -> None:
        """Write what the doctor found, as text."""
        self._writer.add_text("doctor", "\n".join(f"    {line}" for line in lines), update)

    def close(self) -> None:
        """Write what waits and end."""
        self._writer.close()

    def _members(self, name: str, values: Sequence[float], update: int) -> None:
        self._scalar(f"{name}/{MEAN}", sum(values) / len(values), update)
        for member, value in enumerate(values) if len(values) > 1 else ():
            self._scalar(f"{name}/{member}", value, update)

    def _scalar(self, name: str, value: float, update: int) -> None:
        self._writer.add_scalar(name, value, update)
