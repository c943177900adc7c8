"""The Strategy protocol: a batch of observations in, one Opinion or Abstention per symbol out.

The DQN, the language model, their fusion and every baseline are Strategies; any of them runs live, in
replay and in evaluation. Shapes: S symbols, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum, unique
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from strategies.features import FeatureSpec


@unique
class Action(IntEnum):
    """The action word at every interface, seen from the position."""

    HOLD = 0
    BUY = 1
    SELL = 2


@unique
class Reason(StrEnum):
    """Why a decision is what it is: machine-readable, never prose."""

    # what the strategy said
    POLICY_GREEDY = "policy_greedy"
    RULE = "rule"
    LLM_VOTE = "llm_vote"
    FUSED = "fused"
    DISAGREEMENT = "disagreement"
    # why nothing could be said (Abstention)
    WARMING_UP = "warming_up"
    NO_BAR = "no_bar"
    STALE_DATA = "stale_data"
    INCOMPLETE_BARS = "incomplete_bars"
    BAD_FEATURES = "bad_features"
    MODEL_ERROR = "model_error"
    # why the language model could not say anything (Abstention)
    LLM_WARMING = "llm_warming"
    LLM_TIMEOUT = "llm_timeout"
    LLM_UNREACHABLE = "llm_unreachable"
    LLM_BUSY = "llm_busy"
    LLM_BREAKER_OPEN = "llm_breaker_open"
    LLM_WRONG_MODEL = "llm_wrong_model"
    LLM_BAD_ANSWER = "llm_bad_answer"
    LLM_LOW_MASS = "llm_low_mass"
    LLM_SUPERSEDED = "llm_superseded"
    LLM_NOT_RECORDED = "llm_not_recorded"
    # what became of it
    TARGET_HELD = "target_held"
    ORDER_WORKING = "order_working"
    BELOW_MINIMUM = "below_minimum"
    SHORTS_OFF = "shorts_off"
    NO_VOLATILITY = "no_volatility"
    NO_BUYING_POWER = "no_buying_power"
    REJECTED = "rejected"
    LATE = "late"
    UNRESOLVED_ORDER = "unresolved_order"
    SYMBOL_PAUSED = "symbol_paused"
    PROTECTIVE_EXIT = "protective_exit"
    NO_ANSWER = "no_answer"
    # what the gate said
    HALTED = "halted"
    MAX_POSITION = "max_position"
    MAX_NOTIONAL = "max_notional"
    DAILY_LOSS = "daily_loss"
    DRAWDOWN = "drawdown"
    ORDER_RATE = "order_rate"
    OUT_OF_RANGE = "out_of_range"
    REJECT_STREAK = "reject_streak"
    COOLDOWN = "cooldown"
    TRADED = "traded"


def action_of(target: int, position: int) -> Action:
    """Label a target as seen from the position: BUY and SELL only where they differ."""
    if target > position:
        return Action.BUY
    return Action.SELL if target < position else Action.HOLD


@dataclass(frozen=True, slots=True)
class ExitLevels:
    """Exits as log-distances from the entry price, both > 0; None for no such exit."""

    stop: float | None
    take_profit: float | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a strategy wants for one symbol.

    Args:
        symbol: Canonical symbol.
        target: -1, 0 or 1: the position wanted.
        q: Value per target (keys -1, 0, 1 as far as allowed), in the strategy's own unit; may be empty.
        reason: POLICY_GREEDY, RULE, LLM_VOTE, FUSED or DISAGREEMENT.
        exits: Exit levels that the strategy chose; None leaves them to the configuration.
        detail: Numbers that explain it (for `tandem why`).
        note: The mind's own words, one line of at most 200 characters; empty for none.
        votes: What the minds said whose answers were fused into this one, by name; empty for a single mind.
        probabilities: Probability per target, where the mind has one; empty where it has none.
    """

    symbol: str
    target: int
    q: Mapping[int, float] = field(default_factory=dict)
    reason: Reason = Reason.RULE
    exits: ExitLevels | None = None
    detail: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    votes: Mapping[str, Opinion | Abstention] = field(default_factory=dict)
    probabilities: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Abstention:
    """A strategy had nothing to say for one symbol, and why. Never a HOLD vote.

    Args:
        symbol: Canonical symbol.
        reason: Machine-readable.
        detail: What exactly, one line.
        votes: What the minds said that were asked together, by name; empty for a single mind.
    """

    symbol: str
    reason: Reason
    detail: str = ""
    votes: Mapping[str, Opinion | Abstention] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observations:
    """One batch: what every strategy sees at one bar close.

    Args:
        symbols: S canonical symbols.
        close_time: The bar close that is decided on, aware UTC.
        features_SF: float64, one row a symbol; a row with any NaN is not usable.
        positions_S: int8 in {-1, 0, 1}: the position held, or being entered, per symbol.
        deadline_monotonic_s: `time.monotonic()` by which an answer must be there; None for none.
    """

    symbols: Sequence[str]
    close_time: datetime
    features_SF: NDArray[np.float64]
    positions_S: NDArray[np.int8]
    deadline_monotonic_s: float | None = None


class Strategy(Protocol):
    """Anything that decides. Stateless between calls: what it needs to know is in the observations."""

    @property
    def name(self) -> str:
        """Short name, also the key of its vote in the ledger."""
        ...

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features it reads; the runner computes exactly these."""
        ...

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol, in the order of `observations.symbols`.

        A row of features with a NaN is answered by an Abstention(BAD_FEATURES or WARMING_UP).
        """
        ...
