"""Settings of the exit head: the section `training.exits`."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from brokers.configuration import Section

LEVEL_MAX = 100.0
LEVELS_MAX = 12
"""Most levels on either side: the number of brackets is the square of it."""


class ExitSettings(Section):
    """How stop and take-profit are learned. Distances are in volatilities of one bar, as the daemon measures them."""

    head: Literal["quantile", "sigmoid_mse", "off"] = "quantile"
    """`quantile`: by expected value after costs, "no exit" included. `sigmoid_mse`: one sigmoid a level, fitted to
    excursions in per cent, which collapses to one bracket for all. `off`: the configuration's exits."""
    horizon_bars: int = Field(16, ge=2, le=2_000)
    """Bars after the entry over which brackets are compared."""
    levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    """Stops and take-profits that are compared, in volatilities of one bar; having none is always compared too."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Quantiles of the favourable and of the adverse excursion that are learned."""
    caution: float = Field(2.0, ge=0, le=10)
    """Standard errors by which a bracket must beat having no exits."""
    hidden: tuple[int, ...] = (32, 16)
    """Widths of the head's own layers."""
    epochs: float = Field(6.0, gt=0, le=1_000)
    """Times that every bar is learned from."""
    batch_size: int = Field(1_024, ge=16, le=65_536)
    """Bars of one update."""
    learning_rate: float = Field(3e-3, gt=0, le=1)
    """Adam's step at the start; it falls to nothing along half a cosine."""
    calibration_fraction: float = Field(0.2, gt=0, lt=0.9)
    """Last share of the training bars, on which quantiles are recalibrated and the choice is tested."""
    input_clip: float = Field(5.0, gt=0)
    """Features are normalised by the training bars and clipped to this many deviations."""
    sigmoid_range: tuple[float, float] = (0.002, 0.2)
    """Of `sigmoid_mse`: nearest and furthest level, as log distances."""

    @field_validator("head", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """Read what YAML makes of the word off."""
        return "off" if value is False else value

    @field_validator("levels")
    @classmethod
    def _levels(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(values) <= LEVELS_MAX or not all(0.0 < one <= LEVEL_MAX for one in values):
            raise ValueError(f"give 1 to {LEVELS_MAX} levels above 0 and at most {LEVEL_MAX:g}, such as [2, 4, 8]")
        return _increasing(values)

    @field_validator("quantiles")
    @classmethod
    def _quantiles(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or not all(0.0 < one < 1.0 for one in values):
            raise ValueError("give shares above 0 and below 1, such as [0.25, 0.5, 0.75]")
        return _increasing(values)

    @field_validator("hidden")
    @classmethod
    def _hidden(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or not all(1 <= width <= 1_024 for width in values):
            raise ValueError("give at least one width from 1 to 1024, such as [32, 16]")
        return values

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.sigmoid_range
        if not 0.0 < low < high <= 2.0:
            raise ValueError("sigmoid_range: give two log distances, the nearer first, such as [0.002, 0.2]")
        return self


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError("give each value once, the smallest first")
    return values
