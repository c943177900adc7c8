"""What a tearsheet is made of: tables of one run, and the bars it traded. What is missing carries its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from brokers.costs import CostModel
from brokers.series import BarSeries

if TYPE_CHECKING:
    import polars as pl


class ReportError(Exception):
    """A run from which no report can be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """Something the sources do not hold, and why. Shown as such, never as a number."""

    reason: str


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """Something a person may want to know; `at` is venue time."""

    at: datetime
    kind: str
    symbol: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """One run, as its ledger or its result tables tell it.

    Args:
        strategy: Name of who decided.
        symbols: Canonical symbols, in the order of the settings.
        equity: `close_time`, `equity`, `gross_exposure`, one row a close, oldest first.
        decisions: `close_time`, `symbol`, `action`, `target`, `position_before`, `reason`, `outcome`, `votes`
            (JSON text), one row a bar and symbol, oldest first.
        executions: `symbol`, `side`, `qty`, `price`, `fee`, `filled_at`, `kind`, `leg`, `exec_id`, and the ledger's
            `decision_price`, `quote_price`, `predicted_fraction`, `realised_fraction` (null where not recorded).
        bars: Bars from the first to the last close of the run, not adjusted, of the symbols that have any.
        costs: The cost model of the run's settings.
        predictions: None where the executions carry predicted costs.
        incidents: Oldest first.
        facts: Settings and facts of the run, label and text; no secrets.
        source: Where all of it was read, in words, without credentials.
    """

    strategy: str
    symbols: tuple[str, ...]
    equity: pl.DataFrame
    decisions: pl.DataFrame
    executions: pl.DataFrame
    bars: Mapping[str, BarSeries] | NotMeasured
    costs: CostModel | NotMeasured
    predictions: NotMeasured | None
    incidents: Sequence[IncidentRow] | NotMeasured
    facts: Sequence[tuple[str, str]]
    source: str
