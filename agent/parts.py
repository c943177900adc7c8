"""The wired rooms of one daemon or replay, as one value. Built by `agent.app` and by nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.execution import OrderDesk
from agent.history import History
from agent.ledger.store import Ledger
from agent.metrics import Metrics
from agent.reconcile import Reconciler
from agent.settings import Settings
from agent.trading_state import TradingState
from brokers.calendar import TradingCalendar
from brokers.costs import CostModel
from brokers.domain import Bar, Instrument
from brokers.protocol import Broker, Clock, MarketData
from strategies.decision import ExitConfig
from strategies.features import IncrementalFeatures
from strategies.sizing import SizingConfig
from strategies.strategy import Strategy

if TYPE_CHECKING:
    from agent.ledger.answers import PendingAnswers


@dataclass(slots=True)
class Parts:
    """See the module. `pause` waits wall seconds; a replay's returns at once.

    `answers` are the language model's, on their way to the ledger; None where none is asked.
    """

    settings: Settings
    run_id: int
    symbols: tuple[str, ...]
    broker: Broker
    data: MarketData
    clock: Clock
    calendar: TradingCalendar
    ledger: Ledger
    state: TradingState
    metrics: Metrics
    instruments: dict[str, Instrument]
    costs: CostModel
    bars_per_year: float
    sizing: SizingConfig
    exits: ExitConfig
    features: IncrementalFeatures
    history: History
    strategy: Strategy
    reconciler: Reconciler
    desk: OrderDesk
    pause: Callable[[float], Awaitable[None]]
    answers: PendingAnswers | None = None
    newest_bars: dict[str, Bar] = field(default_factory=dict)
