"""The errors of `training`: every one names the thing, its value and the remedy."""

from __future__ import annotations


class TrainingError(Exception):
    """A model cannot be trained from what was given."""


class AccountingError(TrainingError):
    """Executions and bars do not fit together: the equity is unknown, not approximate."""
