"""The course of a training: its history as arrays, and what it was set to, for whoever judges it.

Axes: K evaluations, E members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dqn.history import ACTION_SHARE, Record
from training.dqn.run_facts import Facts

Float = NDArray[np.float64]


class Course:
    """Records and facts of one training.

    Args:
        records: As in the history; at least one.
        facts: As in `run.json`; whatever is not there is not judged by.
    """

    def __init__(self, records: Sequence[Record], facts: Facts) -> None:
        self.records = records
        self.facts = facts

    def __len__(self) -> int:
        """Return the number of evaluations."""
        return len(self.records)

    @cached_property
    def updates_K(self) -> NDArray[np.int64]:
        """Updates at each evaluation."""
        return np.array([record["update"] for record in self.records], dtype=np.int64)

    def members(self, name: str) -> Float:
        """Return (K, E) of a metric; NaN where it is none."""
        width = len(self.records[0]["loss"])
        return np.array(
            [[math.nan] * width if record[name] is None else record[name] for record in self.records], dtype=np.float64
        )

    def middle(self, name: str) -> Float:
        """Return (K,) the median member; one member that strays is not the training."""
        return np.asarray(np.median(self.members(name), axis=1))

    def mean(self, name: str) -> Float:
        """Return (K,) the mean member."""
        return np.asarray(self.members(name).mean(axis=1))

    def late(self, values_K: Float) -> float:
        """Return the mean over the last third of the evaluations."""
        return float(values_K[-max(1, len(values_K) // 3) :].mean())

    @cached_property
    def largest_share_KE(self) -> Float:
        """Share of the training rows that the most frequent target has."""
        return np.array([[max(one.values()) for one in record[ACTION_SHARE]] for record in self.records])

    @cached_property
    def action_entropy_K(self) -> Float:
        """Entropy of the shares of the targets, nats, of the median member."""
        entropies = [
            [-sum(share * math.log(share) for share in one.values() if share > 0.0) for one in record[ACTION_SHARE]]
            for record in self.records
        ]
        return np.asarray(np.median(np.array(entropies), axis=1))

    @cached_property
    def shares_KEN(self) -> Float:
        """Share of each target."""
        return np.array([[list(one.values()) for one in record[ACTION_SHARE]] for record in self.records])

    @property
    def progress(self) -> float:
        """Share of the planned updates that is done; 1 where no plan is known."""
        planned = self.facts.get("planned_updates")
        return 1.0 if not planned else min(1.0, int(self.updates_K[-1]) / planned)

    def setting(self, name: str) -> Any:
        """Return a setting of the training, whatever section below `training` it stands in; None if not known."""
        found = self.path_of(name)
        return None if found is None else found[1]

    def path_of(self, name: str) -> tuple[str, Any] | None:
        """Return where a setting stands, as `--set` names it, and its value; None where it is not known.

        The section of the learner that trains comes first: another learner's values have the same names beside it.
        """
        training = self._section("configuration").get("training")
        waiting = [("training", training)] if isinstance(training, Mapping) else []
        if waiting and isinstance(own := waiting[0][1].get(learner := waiting[0][1].get("learner", "dqn")), Mapping):
            waiting.insert(0, (f"training.{learner}", own))
        while waiting:
            path, section = waiting.pop(0)
            if name in section:
                return f"{path}.{name}", section[name]
            waiting += [(f"{path}.{key}", inner) for key, inner in section.items() if isinstance(inner, Mapping)]
        return None

    def number(self, name: str) -> float | None:
        """Return a setting as a number; None where it is not known, or none."""
        value = self.setting(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def fact(self, section: str, name: str) -> float | None:
        """Return a number of `run.json`; None where it is not known."""
        value = self._section(section).get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def names(self, section: str, name: str) -> list[str] | None:
        """Return a list of names of `run.json`; None where it is not known."""
        value = self._section(section).get(name)
        return [str(one) for one in value] if isinstance(value, list) else None

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.facts.get(name)
        return section if isinstance(section, Mapping) else {}

    @cached_property
    def learning_rate(self) -> float:
        """The setting, or the largest rate of the course."""
        return self.number("learning_rate") or float(self.middle("lr").max())

    @cached_property
    def target_rate(self) -> float | None:
        """Share of the way to the online network that the target goes in one update."""
        tau, interval = self.number("tau"), self.number("target_update_interval")
        return None if tau is None else tau / (interval or 1.0)

    @cached_property
    def horizon_bars(self) -> float | None:
        """Bars that count: 1 / (1 - gamma)."""
        gamma = self.number("gamma")
        return None if gamma is None else (1.0 / (1.0 - gamma) if gamma < 1.0 else math.inf)

    @cached_property
    def gross_bps_K(self) -> Float | None:
        """Validation before costs: net plus turnover times the cost of a side; None where the cost is unknown."""
        if "validation_gross_bps" in self.records[0]:
            return self.mean("validation_gross_bps")
        side = self.fact("rewards", "side_cost_bps")
        return None if side is None else self.mean("validation_bps") + self.mean("turnover") * side
