"""A training in a folder of its own: it can be stopped or killed at any moment, and the same command goes on with it.

`RUN/` holds `run.json` (what is known before the first update), `history.jsonl`, `checkpoints/` and `report.html`.
Starting and going on are one path: whatever whole checkpoint stands there is gone on with, if it is of this training.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from training.dqn.checkpoint import CheckpointStore, one_trainer
from training.dqn.doctor import Doctor, Finding
from training.dqn.history import History, TensorBoardLog
from training.dqn.run_facts import Facts, read_run_facts, run_facts, write_run_facts
from training.dqn.run_report import write_report
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.dqn.ensemble import Ensemble

CODE_FORMAT = 1
"""Of what a state holds: a checkpoint of another one is refused."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


class StoppedBySignalError(TrainingError):
    """The training was told to stop; its checkpoint stands, and the same command goes on with it."""


class Steppable(Protocol):
    """A training that can be stepped, saved and gone on with: `training.dqn.ensemble.Ensemble`."""

    updates: int
    records: list[dict[str, Any]]

    @property
    def done(self) -> bool:
        """Whether every update was made."""
        ...

    def next_stop(self, checkpoint_updates: int | None = None) -> int:
        """Return the update of the next evaluation or checkpoint."""
        ...

    def run(self, until: int, interrupted: Callable[[], bool]) -> None:
        """Learn up to an update, and evaluate where it is due."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        ...

    def restore(self, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a state."""
        ...


def in_folder(
    run_dir: Path,
    *,
    configuration: Mapping[str, Any],
    feature_names: Sequence[str],
    feature_hash: str,
    groups: int,
    data: str,
    on_progress: Callable[[int, int], None] | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    budget_s: float | None = None,
    log_dir: Path | None = None,
) -> Callable[[Ensemble], None]:
    """Return what drives an ensemble to its end in a folder: the loop of `train_ensemble`, and everything beside it.

    Args:
        run_dir: The run's folder.
        configuration: The whole of it, as JSON: a checkpoint of another one is refused.
        feature_names: (F,) of the table's columns.
        feature_hash: Of the feature spec.
        groups: Feature groups.
        data: Fingerprint of the bars.
        on_progress: Called with updates done and planned.
        on_finding: See `train_in`.
        budget_s: See `train_in`.
        log_dir: See `train_in`.
    """

    def drive(ensemble: Ensemble) -> None:
        settings, planned = ensemble.settings, ensemble.settings.updates
        rows = ensemble.table.start_rows
        train_in(
            run_dir,
            ensemble,
            identity={
                "configuration": configuration,
                "feature_spec": feature_hash,
                "data": data,
                "table": {"rows": len(rows), "first": int(rows[0]), "last": int(rows[-1])},
                "code_format": CODE_FORMAT,
            },
            facts=run_facts(
                configuration,
                ensemble.table,
                feature_names,
                reward_scale=ensemble.bars.reward_scale,
                planned_updates=None if budget_s is not None else planned,
                validation_bars=min(len(one.own) for one in ensemble.members),
                groups=groups if settings.network == "attention" else 1,
                parameters=sum(one[0].numel() for one in ensemble.learners[0].weights()[0].values()),
            ),
            checkpoint_updates=max(1, settings.checkpoint_episodes * settings.episode_bars // settings.batch_bars),
            on_progress=None if on_progress is None else lambda updates: on_progress(updates, planned),
            on_finding=on_finding,
            budget_s=budget_s,
            log_dir=log_dir,
        )

    return drive


def train_in(
    run_dir: Path,
    training: Steppable,
    *,
    identity: Mapping[str, Any],
    facts: Facts,
    checkpoint_updates: int,
    on_progress: Callable[[int], None] | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    budget_s: float | None = None,
    log_dir: Path | None = None,
) -> bool:
    """Train to the end, from the last checkpoint where there is one; returns whether the budget ended it.

    Args:
        run_dir: The run's folder; made where it is not there.
        training: Fresh, of the same settings and data as what it goes on with.
        identity: See `CheckpointStore`.
        facts: See `run_facts`.
        checkpoint_updates: Updates between checkpoints.
        on_progress: Called with the updates done.
        on_finding: Called with each symptom when it is first seen.
        budget_s: Wall seconds after which learning stops, with a checkpoint.
        log_dir: Folder for TensorBoard event files.

    Raises:
        TrainingError: Another process trains there, the checkpoint is of another training, or a folder cannot be
            written.
        StoppedBySignalError: SIGTERM or SIGINT came; a checkpoint was written.
    """
    with one_trainer(run_dir), _told_to_stop() as told:
        store, history = CheckpointStore(run_dir, identity), History(run_dir)
        found = store.latest()
        since = 0 if found is None else found[0]
        history.truncate(since)
        write_run_facts(run_dir, facts)
        if found is not None:
            training.restore(found[1], history.records)
            log.info("training_resumed", run=str(run_dir), update=since)
        doctor = Doctor(facts, history.records)
        board = None if log_dir is None else TensorBoardLog(log_dir, since_update=since or None)
        ends_at = None if budget_s is None else time.monotonic() + budget_s
        saved = since

        def late() -> bool:
            return ends_at is not None and time.monotonic() >= ends_at

        try:
            while not training.done and not late() and not told.is_set():
                training.run(training.next_stop(checkpoint_updates), lambda: told.is_set() or late())
                _record(training, history, doctor, board, on_finding)
                if training.updates >= (saved // checkpoint_updates + 1) * checkpoint_updates:
                    store.try_save(training.updates, training.state())
                    saved = training.updates
                if on_progress is not None:
                    on_progress(training.updates)
            if training.updates > saved:
                store.try_save(training.updates, training.state())
        finally:  # also after an error: what led to it is what one wants to see
            if board is not None:
                board.close()
            if history.records:
                write_report(run_dir)
        if told.is_set() and not training.done:
            raise StoppedBySignalError(
                f"stopped at update {training.updates}: the same command goes on from the checkpoint in {run_dir}"
            )
        return not training.done


def note_exits(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Add what a trained exit head says of itself to what is known of the run, and renew its report.

    Raises:
        TrainingError: The run's folder cannot be written.
    """
    write_run_facts(run_dir, {**read_run_facts(run_dir), "exits": dict(metrics)})
    write_report(run_dir)


def _record(
    training: Steppable,
    history: History,
    doctor: Doctor,
    board: TensorBoardLog | None,
    on_finding: Callable[[Finding], None] | None,
) -> None:
    """Pass on the evaluations that the history does not have yet."""
    last = history.records[-1]["update"] if history.records else 0
    for record in training.records:
        if record["update"] <= last:
            continue
        kept = history.append(record)
        if board is not None:
            board.write(kept)
        for finding in doctor.observe(kept):
            log.warning("training_symptom", symptom=finding.symptom.name, update=kept["update"])
            if board is not None:
                board.tell(finding.lines(), kept["update"])
            if on_finding is not None:
                on_finding(finding)


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; elsewhere than in the main thread nothing sets it."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        told.set()

    before = {one: signal.signal(one, stop) for one in SIGNALS}
    try:
        yield told
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
