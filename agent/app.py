"""The composition root: settings in, a wired daemon or replay out. Nothing else builds parts."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.execution import DeskLimits, OrderDesk
from agent.history import History
from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.logs import Redactor
from agent.metrics import Metrics
from agent.minds import StartError, make_minds
from agent.parts import Parts
from agent.reconcile import Reconciler
from agent.settings import Settings
from agent.trading_state import TradingState
from brokers.calendar import TradingCalendar, calendar
from brokers.domain import ExitPlan, Instrument, Side
from brokers.files import atomic_write
from brokers.protocol import Broker, Clock, MarketData
from strategies.decision import ExitConfig
from strategies.features import IncrementalFeatures
from strategies.sizing import SizingConfig, bars_per_year
from strategies.strategy import Strategy

if TYPE_CHECKING:
    from agent.ledger.answers import PendingAnswers

log = structlog.get_logger("tandem.app")


SOURCE_FILE = "source.txt"
"""In a bar store: whose bars it holds."""


@dataclass(slots=True)
class Venue:
    """One venue's three faces."""

    broker: Broker
    data: MarketData
    clock: Clock


def tandem_version() -> str:
    """Return the installed version; `source` where the package is not installed."""
    try:
        return version("tandem-trader")
    except PackageNotFoundError:
        return "source"


def make_strategy(settings: Settings, *, replaying: bool = False, explains: bool = True) -> tuple[Strategy, str]:
    """Return the strategy that the settings name, and what pins it; see `agent.minds`.

    Raises:
        StartError: There is no such strategy, bundle or model, or it does not fit.
    """
    minds = make_minds(settings, replaying=replaying, explains=explains)
    return minds.strategy, minds.pinned


def make_calendar(settings: Settings) -> TradingCalendar:
    """Return the calendar that the settings name.

    Raises:
        StartError: There is no such calendar.
    """
    try:
        trading = calendar(settings.calendar)
    except ValueError as error:
        raise StartError(f"calendar: {error}") from error
    try:
        trading.next_close(datetime(2024, 1, 1, tzinfo=UTC), settings.bar_period)
    except ValueError as error:
        raise StartError(f"period: {error}") from error
    return trading


def check_bar_store(settings: Settings) -> None:
    """Refuse a bar store that cannot be written: it is first needed at a session's end, hours after the start.

    Raises:
        StartError: Naming the folder and the remedy.
    """
    folder = settings.daemon.bar_store
    if folder is None:
        return
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StartError(
            f"the bar store {folder} cannot be written ({there} is no folder that this user may write in): "
            "correct daemon.bar_store, or set it to null to keep no bars"
        )
    _refuse_foreign_bars(folder, _bars_source(settings))


def claim_bar_store(settings: Settings) -> None:
    """Note in a new bar store whose bars it holds, once the daemon is about to keep some.

    Raises:
        StartError: It holds another market's.
        OSError: The folder cannot be written.
    """
    folder = settings.daemon.bar_store
    if folder is None:
        return
    source = _bars_source(settings)
    _refuse_foreign_bars(folder, source)
    if not (folder / SOURCE_FILE).exists():
        with atomic_write(folder / SOURCE_FILE) as file:
            file.write(f"{source}\n".encode())


def _bars_source(settings: Settings) -> str:
    """Say where bars come from: those of one market must not warm the features of another."""
    if settings.venue.kind == "alpaca":
        return f"alpaca, feed {settings.strategy.data_feed}"
    if settings.venue.url is not None:
        return f"exchange, feed {settings.strategy.data_feed}"
    exchange = settings.exchange
    if exchange.bars is not None:
        return f"exchange, {exchange.bars.name}"
    return f"exchange, synthetic market of seed {exchange.synthetic.seed}"


def _refuse_foreign_bars(folder: Path, source: str) -> None:
    note = folder / SOURCE_FILE
    held = note.read_text(encoding="utf-8").strip() if note.exists() else source
    if held != source:
        raise StartError(
            f"the bar store {folder} holds bars of {held!r}, the settings say {source!r}: give this market a "
            "daemon.bar_store of its own"
        )


async def wire(
    settings: Settings,
    venue: Venue,
    ledger: Ledger,
    strategy: Strategy,
    strategy_id: str,
    *,
    trading_calendar: TradingCalendar,
    pause: Callable[[float], Awaitable[None]],
    metrics: Metrics | None = None,
    bar_store: Path | None = None,
    record_settings: bool = True,
    answers: PendingAnswers | None = None,
) -> Parts:
    """Build the parts around a connected venue, and write the run into the ledger.

    Raises:
        BrokerError: The venue did not answer.
        LedgerError: The ledger cannot be written.
    """
    metrics = metrics if metrics is not None else Metrics()
    symbols = settings.symbols
    instruments = dict(await venue.broker.instruments(symbols))
    state = TradingState.load(ledger)
    run_id = _begin_run(settings, venue, ledger, strategy, strategy_id, record_settings=record_settings)
    features = IncrementalFeatures(strategy.feature_spec, symbols, trading_calendar, settings.bar_period)
    exits = ExitConfig(**settings.exits.model_dump())
    reconciler = Reconciler(
        broker=venue.broker,
        clock=venue.clock,
        ledger=ledger,
        state=state,
        default_exits=default_exits(settings, instruments),
        metrics=metrics,
        pause=pause,
    )
    desk = OrderDesk(
        broker=venue.broker,
        clock=venue.clock,
        ledger=ledger,
        state=state,
        reconciler=reconciler,
        instruments=instruments,
        limits=DeskLimits(settings.daemon.attempts_max, settings.venue.outage_s_max),
        metrics=metrics,
        pause=pause,
    )
    history = History(
        store_root=bar_store,
        ledger=ledger,
        data=venue.data,
        clock=venue.clock,
        calendar=trading_calendar,
        symbols=symbols,
        period=settings.bar_period,
        features=features,
    )
    return Parts(
        settings=settings,
        run_id=run_id,
        symbols=symbols,
        broker=venue.broker,
        data=venue.data,
        clock=venue.clock,
        calendar=trading_calendar,
        ledger=ledger,
        state=state,
        metrics=metrics,
        instruments=instruments,
        costs=settings.costs.model(),
        bars_per_year=bars_per_year_of(trading_calendar, settings, venue.clock.now()),
        sizing=SizingConfig(**settings.sizing.model_dump()),
        exits=exits,
        features=features,
        history=history,
        strategy=strategy,
        reconciler=reconciler,
        desk=desk,
        pause=pause,
        answers=answers,
    )


def bars_per_year_of(trading_calendar: TradingCalendar, settings: Settings, at: datetime) -> float:
    """Return how many bars a year of trading has, as sizing scales volatility with it."""
    if trading_calendar.id == "24/7":
        return timedelta(days=365.25) / settings.bar_period
    return bars_per_year(trading_calendar, settings.bar_period, at)


def default_exits(settings: Settings, instruments: dict[str, Instrument]) -> Callable[[str, Side, Decimal], ExitPlan]:
    """Return the maker of exits for a position that was found without any: a stop at the accepted loss."""

    def plan(symbol: str, side: Side, price: Decimal) -> ExitPlan:
        distance = price * Decimal(repr(settings.exits.max_loss_fraction))
        stop = price - side.sign * distance
        instrument = instruments.get(symbol)
        return ExitPlan(stop=instrument.round_price(stop) if instrument is not None else stop, take_profit=None)

    return plan


def _begin_run(
    settings: Settings, venue: Venue, ledger: Ledger, strategy: Strategy, strategy_id: str, *, record_settings: bool
) -> int:
    row = {
        "started_at": datetime.now(UTC),
        "started_venue_at": venue.clock.now(),
        "version": tandem_version(),
        "account_scope": settings.account_scope,
        "venue": venue.broker.capabilities.name,
        "strategy": strategy.name,
        "strategy_id": strategy_id[:80],
        # a database URL may carry a password
        "settings": json.loads(Redactor().text(settings.model_dump_json())) if record_settings else {},
    }
    with ledger.transaction() as connection:
        scope = ledger.get_state("account_scope")
        if scope is not None and scope["name"] != settings.account_scope:
            raise StartError(
                f"the ledger belongs to account_scope {scope['name']!r}, the settings say {settings.account_scope!r}: "
                "use the scope of the ledger, or another ledger.url"
            )
        last, now = ledger.last_cycle(), venue.clock.now()
        if last is not None and last.close_time > now + _clock_tolerance(venue):
            raise StartError(
                f"venue time is {now.isoformat()}, but the ledger has decided the close {last.close_time.isoformat()} "
                "already: give back the exchange's books that belong to this ledger (or set the clock), or start with "
                "another ledger.url"
            )
        ledger.set_state(connection, "account_scope", {"name": settings.account_scope})
        result = connection.execute(schema.runs.insert(), row)
        key = result.inserted_primary_key
        return int(key[0]) if key is not None else 0


def _clock_tolerance(venue: Venue) -> timedelta:
    """Return how far venue time may lie before what was seen of it: not at all where it is written in books."""
    return timedelta(0) if venue.clock.stepped else timedelta(minutes=1)


def end_run(ledger: Ledger, run_id: int, reason: str) -> None:
    """Write when and why a run ended."""
    with ledger.transaction() as connection:
        connection.execute(
            schema.runs.update()
            .where(schema.runs.c.run_id == run_id)
            .values(ended_at=datetime.now(UTC), end_reason=reason[:200])
        )
