"""Exact replay: the live cycle, bar by bar, on the built-in exchange's clock.

Nothing here decides, sizes, gates or fills: it drives `agent.cycle.Trader` over recorded bars and writes
what happened as tables.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from agent.app import Venue, end_run, make_calendar, make_strategy, wire
from agent.cycle import Trader
from agent.exchange import make_engine
from agent.ledger.store import Ledger, open_ledger
from agent.settings import Settings
from brokers.files import atomic_write, write_parquet
from brokers.series import BarSeries
from brokers.simulated.broker import SimulatedBroker, SimulatedClock

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Tables of one replay (Polars frames, see `agent.tables`) and its metrics."""

    decisions: pl.DataFrame
    trades: pl.DataFrame
    equity: pl.DataFrame
    incidents: pl.DataFrame
    metrics: Mapping[str, Any]


def replay(
    settings: Settings,
    series: Mapping[str, BarSeries],
    *,
    ledger_url: str = "sqlite://",
    explains: bool = False,
    progress: Callable[[float], None] | None = None,
) -> ReplayResult:
    """Run the live cycle over recorded bars.

    Args:
        settings: As for the daemon; `symbols` empty means all of `series`.
        series: Bars by symbol.
        ledger_url: Where the replay's ledger is kept; in memory by default.
        explains: True where somebody will ask why: a policy then tells the weight of each feature group with its
            votes, as it does live. Nothing else differs.
        progress: Called with the fraction of venue time that has passed.

    Raises:
        StartError: The strategy cannot be had.
        BrokerError, LedgerError: As in the daemon.
    """
    if not settings.symbols:
        settings = settings.model_copy(update={"symbols": tuple(series)})
    ledger = open_ledger(ledger_url, durable=False)
    try:
        asyncio.run(_drive(settings, series, ledger, progress, explains=explains))
        return _result(settings, ledger, series)
    finally:
        ledger.close()


async def _drive(
    settings: Settings,
    series: Mapping[str, BarSeries],
    ledger: Ledger,
    progress: Callable[[float], None] | None,
    *,
    explains: bool,
) -> None:
    trading_calendar = make_calendar(settings)
    engine = make_engine(settings, {symbol: series[symbol] for symbol in settings.symbols})
    venue_broker = SimulatedBroker(engine)
    clock = SimulatedClock(engine)
    strategy, strategy_id = make_strategy(settings, replaying=True, explains=explains)

    async def no_pause(_seconds: float) -> None:
        return

    parts = await wire(
        settings,
        Venue(broker=venue_broker, data=venue_broker, clock=clock),
        ledger,
        strategy,
        strategy_id,
        trading_calendar=trading_calendar,
        pause=no_pause,
    )
    parts.newest_bars = await parts.history.warm_all(clock.now())
    trader = Trader(parts)
    await parts.reconciler.reconcile()
    begin, end = engine.feed.start, engine.feed.end
    turn = 0
    limit = settings.daemon.max_bars
    while not clock.feed_ended and (limit is None or turn < limit):
        due = trading_calendar.next_close(clock.now(), settings.bar_period)
        now = await clock.advance(due)
        if clock.last is not None and clock.last.orders_changed:
            await parts.reconciler.sync()
        if now == due:
            await trader.on_close(due)
            turn += 1
            if progress is not None and turn % 64 == 0:
                progress((now - begin) / (end - begin))
    end_run(ledger, parts.run_id, "replay ended")


def _result(settings: Settings, ledger: Ledger, series: Mapping[str, BarSeries]) -> ReplayResult:
    from agent.tables import (  # noqa: PLC0415 - Polars, at the end only
        decisions_frame,
        equity_frame,
        incidents_frame,
        trades_frame,
    )

    decisions = decisions_frame(ledger, settings.bar_period)
    trades = trades_frame(ledger, series)
    equity = equity_frame(ledger)
    incidents = incidents_frame(ledger)
    return result_of(settings, decisions, trades, equity, incidents=incidents, series=series, way="exact")


def result_of(
    settings: Settings,
    decisions: pl.DataFrame,
    trades: pl.DataFrame,
    equity: pl.DataFrame,
    *,
    incidents: pl.DataFrame,
    series: Mapping[str, BarSeries],
    way: Literal["exact", "fast"],
) -> ReplayResult:
    """Return a replay's tables with what is measured on them; `way` says how it was replayed."""
    from strategies.performance import PerformanceError, performance, splits_of  # noqa: PLC0415 - at the end only

    played = {symbol: series[symbol] for symbol in settings.symbols}
    measured = None
    unmeasured: str | None = "fewer than two closes"
    if equity.height > 1:
        try:
            measured, unmeasured = performance(equity, trades, splits=splits_of(played)), None
        except PerformanceError as error:  # a loss beyond the account: the tables stand all the same
            unmeasured = str(error)
    metrics: dict[str, Any] = {
        "replay": way,
        "strategy": settings.strategy.name,
        "symbols": list(settings.symbols),
        "closes": equity.height,
        "decisions": decisions.height,
        "trades": trades.height,
        "incidents": dict(sorted(Counter(incidents["kind"]).items())),
        "performance": None if measured is None else asdict(measured),
        "not_measured": unmeasured,
    }
    return ReplayResult(decisions=decisions, trades=trades, equity=equity, incidents=incidents, metrics=metrics)


def write_result(result: ReplayResult, folder: Path) -> None:
    """Write `decisions`, `trades`, `equity` and `incidents` as `.parquet` and `metrics.json`, all of them or none.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".result-", dir=folder) as made:
        staged = Path(made)
        for name in ("decisions", "trades", "equity", "incidents"):
            write_parquet(getattr(result, name), staged / f"{name}.parquet")
        with atomic_write(staged / "metrics.json") as file:
            file.write((json.dumps(result.metrics, indent=2, default=str) + "\n").encode())
        for path in sorted(staged.iterdir()):
            path.replace(folder / path.name)
