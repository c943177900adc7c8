"""FeatureSpec: which features a model reads, in which order, what they need, and the hash that pins it."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np

from strategies.features.columns import BASE_BARS, Float
from strategies.features.groups import GROUPS, Feature
from strategies.features.ladder import Plan
from strategies.features.view import MarketView, TracingView

DEFINITIONS = 1
"""Version of every formula and base column; raised whenever one changes, so that old models refuse to load."""

MEMORY_BARS_MAX = 4_096
"""Longest memory that a spec may ask for, in bars."""

VOLATILITY_WINDOW = 64
"""Bars of the volatility estimate that sizing and exits use; part of every spec's memory."""


class FeatureError(ValueError):
    """A spec, a bar or a series that features cannot be computed from."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group of features: its name in the spec, the kind of formulas, and their parameters (JSON values)."""

    name: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def features(self) -> tuple[Feature, ...]:
        """Build the group's features.

        Raises:
            FeatureError: Unknown kind, or parameters that the kind does not take.
        """
        build = GROUPS.get(self.kind)
        if build is None:
            near = difflib.get_close_matches(self.kind, GROUPS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(GROUPS)}"
            raise FeatureError(f"no feature group of kind {self.kind!r}: {hint}")
        try:
            inspect.signature(build).bind(**self.params)
            return tuple(build(**self.params))
        except TypeError as error:
            takes = ", ".join(inspect.signature(build).parameters)
            raise FeatureError(
                f"feature group {self.name!r} of kind {self.kind!r}: {error}; it takes {takes}"
            ) from error


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """An ordered set of feature groups.

    Args:
        definitions: The groups, in the order of the model's input.
        period_s: Bar period, in seconds, that it is meant for; None for any.
    """

    definitions: tuple[Group, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        """Build everything once, so that a wrong spec fails where it is made.

        Raises:
            FeatureError: No features, a name twice, or a memory beyond `MEMORY_BARS_MAX`.
        """
        if not self.names:
            raise FeatureError("a FeatureSpec without features: give at least one group")
        if len(set(self.groups)) != len(self.groups):
            raise FeatureError(f"feature groups {self.groups} are not unique: give each its own name")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise FeatureError(f"features {', '.join(twice)} occur twice: keep one of each")
        if self.memory_bars > MEMORY_BARS_MAX:
            raise FeatureError(
                f"features need {self.memory_bars} bars of memory, {MEMORY_BARS_MAX} are the most: shorten the windows"
            )

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Every feature, in order; F of them."""
        return tuple(feature for group in self._built for feature in group)

    @cached_property
    def _built(self) -> tuple[tuple[Feature, ...], ...]:
        return tuple(group.features() for group in self.definitions)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.definitions)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def group_slices(self) -> Mapping[str, slice]:
        """Where each group's features stand among the F columns."""
        slices = {}
        begin = 0
        for name, built in zip(self.groups, self._built, strict=True):
            slices[name] = slice(begin, begin + len(built))
            begin += len(built)
        return slices

    @cached_property
    def ranges(self) -> Float:
        """Smallest and largest value of each feature, (F, 2): formulas are clipped there."""
        return np.array([(feature.low, feature.high) for feature in self.features], dtype=np.float64)

    @cached_property
    def _trace(self) -> TracingView:
        view = TracingView()
        for feature in self.features:
            feature.formula(view)
        view.sigma(VOLATILITY_WINDOW)
        return view

    @cached_property
    def plan(self) -> Plan:
        """What the features need of the ladder."""
        return Plan(rows=self._trace.rows(), windows=frozenset(self._trace.windows))

    @cached_property
    def signal_windows(self) -> Mapping[str, int]:
        """Bars read of each user column."""
        return dict(self._trace.signals)

    @cached_property
    def memory_bars(self) -> int:
        """Bars that determine a row exactly, the newest included; so many are needed before the first row."""
        return _memory_bars(self._trace)

    def memory_of(self, name: str) -> int:
        """Return the bars that determine one feature exactly, the newest included."""
        view = TracingView()
        self.features[self.names.index(name)].formula(view)
        return _memory_bars(view)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON: what was asked for, and the names, ranges and memory that follow from it."""
        content = {
            "definitions": DEFINITIONS,
            "period_s": self.period_s,
            "groups": [{"name": g.name, "kind": g.kind, "params": dict(g.params)} for g in self.definitions],
            "names": self.names,
            "ranges": self.ranges.tolist(),
            "memory_bars": self.memory_bars,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, content: str | Mapping[str, Any]) -> FeatureSpec:
        """Rebuild a spec.

        Raises:
            FeatureError: Not a spec, or one whose formulas differ from this version's.
        """
        try:
            data = json.loads(content) if isinstance(content, str) else content
            version = data["definitions"]
            groups = tuple(Group(g["name"], g["kind"], g["params"]) for g in data["groups"])
            period_s = data["period_s"]
            written = json.dumps(data, sort_keys=True, separators=(",", ":"))
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureError(f"not a feature spec ({error!r}): give what FeatureSpec.to_json wrote") from error
        if version != DEFINITIONS:
            raise FeatureError(
                f"feature spec of definitions {version}, this program has {DEFINITIONS}: train the model again, "
                "or run the version that made it"
            )
        spec = cls(groups, period_s)
        if json.loads(spec.to_json()) != json.loads(written):
            raise FeatureError(
                "feature spec lists other names, ranges or memory than its groups give: it was edited, or made by "
                "another version; train the model again"
            )
        return spec

    def __reduce__(self) -> tuple[type[FeatureSpec], tuple[tuple[Group, ...], float | None]]:
        """Go to another process as what was asked for: formulas are built there again."""
        return FeatureSpec, (self.definitions, self.period_s)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpec) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def row(self, view: MarketView) -> list[Float]:
        """Evaluate every feature on a view, clipped to its range: F arrays of length n."""
        return [np.minimum(np.maximum(f.formula(view), f.low), f.high) for f in self.features]


def _memory_bars(view: TracingView) -> int:
    windows = max((window + lag + BASE_BARS for window, lag in view.windows), default=1)
    return max(windows, *view.signals.values(), 1)


def default_spec(period: timedelta, signals: Sequence[str] = ()) -> FeatureSpec:
    """Return the features that models are trained on unless told otherwise.

    Args:
        period: Bar period; from one day on, the time of day is left out.
        signals: The user's own columns to add: each against its recent past, and at its own level.
    """
    intraday = period < timedelta(days=1)
    unit = 64
    groups = [
        Group("returns", "returns", {"horizons": [1, 2, 4, 8, 16, 32, 64, 128], "unit": unit}),
        Group(
            "volume",
            "volume",
            {"ratios": [[1, 64], [4, 64], [16, 256], [64, 768]], "flows": [16, 64], "illiquidity": [16, 256]},
        ),
        Group("volatility", "volatility", {"levels": [16, 64, 768], "ranges": [16], "downside": 64, "tails": 64}),
        Group(
            "trend",
            "trend",
            {
                "means": [16, 64, 256, 768],
                "slopes": [128],
                "averages": [[8, 32, 256], [32, 128, 768]],
                "unit": unit,
            },
        ),
        Group("range", "range", {"positions": [16, 64, 256, 768], "widths": [16], "unit": unit}),
        Group("overnight", "overnight", {"window": 256, "unit": unit}),
        Group("calendar", "calendar", {"intraday": intraday}),
        Group(
            "regime",
            "regime",
            {
                "ratios": [[8, 64], [64, 768]],
                "efficiency": [16, 64],
                "autocorrelation": [64, 256],
                "drawdowns": [768],
            },
        ),
    ]
    if signals:
        groups.append(Group("signals", "signals", {"names": list(signals), "window": 128}))
        groups.append(Group("levels", "levels", {"names": list(signals)}))
    return FeatureSpec(tuple(groups), period.total_seconds())


def tutorial_spec(window: int = 10) -> FeatureSpec:
    """Return the plain state that tutorials use: `window` price changes, volumes and volatilities, 3 * window numbers.

    Volumes and volatilities are divided by the largest of their window. The position is the observation's part.
    """
    return FeatureSpec(
        (
            Group("changes", "window_changes", {"window": window}),
            Group("volume", "window_volume", {"window": window}),
            Group("volatility", "window_volatility", {"window": window}),
        )
    )
