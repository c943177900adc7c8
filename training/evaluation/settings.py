"""Settings of `tandem train evaluate`: the section `evaluation` of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from brokers.configuration import Section, load_settings


class EvaluationSettings(Section):
    """How a policy is judged."""

    folds: int = Field(4, ge=1, le=100)
    """Test windows, one behind the other; before each a policy is trained anew."""
    window: Literal["expanding", "rolling"] = "expanding"
    """Training windows begin with the first bar, or move along at a constant length."""
    train_share: float = Field(0.5, gt=0, lt=1)
    """Share of the closes before the first test window; the length of a rolling window."""
    embargo_bars: int = Field(64, ge=0, le=100_000)
    """Bars left out before each test window, beyond the features' memory and the bars that pay a decision."""
    seeds: int = Field(5, ge=1, le=100)
    """Policies trained for each fold, at `training.seed` and the numbers after it."""
    resamples: int = Field(2_000, ge=100, le=100_000)
    """Draws of the stationary bootstrap."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    draws: int = Field(20, ge=1, le=1_000)
    """Random rivals that are averaged; matched ones, for each seed."""
    cuts: int = Field(3, ge=1, le=100)
    """Prefixes of each symbol on which the features are computed again."""
    shuffle_block_bars: int = Field(1, ge=1, le=10_000)
    """Bars that stay together in the shuffled market: at 1 nothing can be learned there, longer blocks keep skill."""
    alarm: float = Field(0.001, gt=0, lt=0.5)
    """Probability at which a leak control rings without a leak."""


class _File(Section):
    """Of a configuration file only the section of ours; the others belong to the daemon and the trainer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    evaluation: EvaluationSettings = EvaluationSettings()


def load_evaluation(
    file: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> EvaluationSettings:
    """Read the section `evaluation` of a configuration file, environment and overrides.

    Raises:
        ConfigurationError: With one line for each fault.
    """
    return load_settings(_File, file, overrides, environ).evaluation
