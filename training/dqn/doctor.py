"""The doctor: reads the history of a training, names what is wrong, ranks likely causes and proposes the change.

`diagnose` reads a run's folder; a training that runs holds a `Doctor` and shows it each evaluation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.dqn.causes import Cause, rank
from training.dqn.course import Course
from training.dqn.history import Record, read_history
from training.dqn.run_facts import Facts, read_run_facts
from training.dqn.symptoms import Symptom, see
from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom and its likely causes, the likeliest first."""

    symptom: Symptom
    causes: tuple[Cause, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self.symptom), "causes": [asdict(cause) for cause in self.causes]}

    def lines(self) -> list[str]:
        """Return it as text for a terminal."""
        seen = self.symptom
        told = [f"{seen.severity}: {seen.title} ({seen.name}, since update {seen.since_update})"]
        told += [f"    {line}" for line in seen.evidence]
        for number, cause in enumerate(self.causes, start=1):
            told.append(f"  {number}. {cause.title} ({cause.name})")
            told += [f"       {line}" for line in cause.evidence]
            told.append(f"       try: {cause.change}")
        return told


class Doctor:
    """Watches one training while it runs.

    Args:
        facts: What is known of it, as in `run.json`.
        records: Evaluations there are already, of a training that was resumed; what they show is not told again.
    """

    def __init__(self, facts: Facts, records: list[Record] | None = None) -> None:
        self.facts = facts
        self._records = list(records or [])
        self._told = {one.name for one in see(Course(self._records, facts))} if self._records else set()

    def observe(self, record: Record) -> list[Finding]:
        """Return what this evaluation shows for the first time. Takes a few milliseconds.

        Args:
            record: As `history.validated` returns it.
        """
        self._records.append(record)
        course = Course(self._records, self.facts)
        new = [one for one in see(course) if one.name not in self._told]
        self._told |= {one.name for one in new}
        return [Finding(one, rank(one, course)) for one in new]

    def findings(self) -> list[Finding]:
        """Return all that the course so far shows."""
        return judge(self._records, self.facts) if self._records else []


def judge(records: list[Record], facts: Facts) -> list[Finding]:
    """Return what a whole course shows, the worst first; empty for a training that goes well.

    Raises:
        TrainingError: No evaluation.
    """
    if not records:
        raise TrainingError("there is no evaluation to judge: let the training run until its first one")
    course = Course(records, facts)
    return [Finding(one, rank(one, course)) for one in see(course)]


def diagnose(run_dir: Path) -> list[Finding]:
    """Return what the run in a folder shows.

    Raises:
        TrainingError: It has no history, or a damaged one.
    """
    return judge(read_history(run_dir), read_run_facts(run_dir))


def is_bad(findings: list[Finding]) -> bool:
    """Return whether the training's result is worthless."""
    return any(finding.symptom.severity == "error" for finding in findings)


def as_text(run_dir: Path, findings: list[Finding]) -> str:
    """Return findings for a terminal."""
    if not findings:
        return f"{run_dir}: nothing found"
    return "\n\n".join("\n".join(finding.lines()) for finding in findings)


def as_result(run_dir: Path, findings: list[Finding]) -> dict[str, Any]:
    """Return findings for programs."""
    return {"run": str(run_dir), "bad": is_bad(findings), "findings": [finding.to_json() for finding in findings]}
