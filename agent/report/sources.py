"""Where a report's data come from: a ledger, a replay's result, or the folder that a backtest wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from sqlalchemy import Row, select

from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.overview import STEPPED_VENUE
from agent.report.data import IncidentRow, NotMeasured, ReportData, ReportError
from agent.tables import COSTS, decisions_frame, equity_frame
from brokers.calendar import calendar
from brokers.configuration import CostSettings
from brokers.costs import CostModel
from brokers.domain import parse_period
from brokers.series import BarSeries, to_ns

if TYPE_CHECKING:
    from agent.replay import ReplayResult
    from agent.settings import Settings

LEDGER_FILE = "ledger.sqlite"
"""What a backtest's `--keep-ledger` writes."""
INCIDENTS_READ_MAX = 5_000

_COLUMNS = {
    "equity": ("close_time", "equity", "cash", "gross_exposure"),
    "decisions": ("close_time", "symbol", "action", "target", "reason", "outcome", "votes"),
    "trades": ("symbol", "side", "qty", "price", "fee", "filled_at", "kind", "leg"),
}
"""What each table of a backtest must hold to be reported on."""

_KINDS = {"market": "open", "stop": "stop", "stop_limit": "stop", "limit": "limit"}
_PRICES = ("open", "high", "low", "close", "volume", "adj_factor")
_SHOWN_SETTINGS = (
    ("period", "bar period"),
    ("calendar", "calendar"),
    ("asset_class", "asset class"),
    ("exchange.seed", "seed of fills"),
    ("exchange.synthetic.seed", "seed of the synthetic market"),
    ("exchange.initial_cash_usd", "initial cash, USD"),
    ("exchange.partial_fill_probability", "chance of a partial fill"),
    ("costs.fee_bps", "fee, bps a side"),
    ("costs.half_spread_bps", "half-spread, bps"),
    ("costs.impact", "impact coefficient"),
    ("costs.latency_bars", "latency, bars"),
    ("strategy.shorts", "shorts allowed"),
    ("strategy.data_feed", "data feed"),
    ("sizing.volatility_target_annual", "volatility target, annual"),
    ("sizing.max_fraction", "largest entry, fraction of equity"),
    ("risk.max_position_fraction", "largest position, fraction of equity"),
    ("risk.max_gross_fraction", "largest gross exposure, fraction of equity"),
    ("risk.daily_loss_fraction", "daily loss limit, fraction"),
    ("risk.drawdown_fraction", "drawdown limit, fraction"),
    ("exits.stop_volatility", "stop, standard deviations"),
    ("exits.take_profit_volatility", "take-profit, standard deviations"),
)
"""Settings that explain a result. A list, not everything: paths, hosts and accounts have no place on a page."""


def from_ledger(
    ledger: Ledger,
    *,
    series: Mapping[str, BarSeries] | None = None,
    bar_store: Path | None = None,
    decisions: pl.DataFrame | None = None,
    equity: pl.DataFrame | None = None,
) -> ReportData:
    """Read everything from a ledger.

    Args:
        ledger: Of a daemon, dead or alive, or of a replay.
        series: The bars that were played, where they are at hand; else the ledger's own and the bar store's are read.
        bar_store: Where a daemon keeps bars that have left the ledger.
        decisions: `agent.tables.decisions_frame` of this ledger, where it has been made already.
        equity: `agent.tables.equity_frame` likewise.

    Raises:
        ReportError: No daemon has run on it.
        LedgerError: It cannot be read.
    """
    with ledger.snapshot():
        runs = ledger.rows(select(schema.runs).order_by(schema.runs.c.run_id))
        if not runs:
            raise ReportError(f"no daemon has run on the ledger {ledger.url}: there is nothing to report yet")
        settings: Mapping[str, Any] = next((run.settings for run in reversed(runs) if run.settings), {})
        period = parse_period(settings["period"]) if "period" in settings else timedelta(0)
        decisions = decisions_frame(ledger, period) if decisions is None else decisions
        equity = equity_frame(ledger) if equity is None else equity
        executions = _executions(ledger)
        incidents = _incidents(ledger)
        named = dict.fromkeys(name for run in runs for name in run.settings.get("symbols", ()))
        symbols = tuple(named) or tuple(decisions["symbol"].unique(maintain_order=True))
        bars = _played(series, symbols) if series is not None else _kept_bars(ledger, settings, symbols, bar_store)
        bars = _within(bars, equity)
    return ReportData(
        strategy=runs[-1].strategy,
        symbols=symbols,
        equity=equity,
        decisions=decisions,
        executions=executions,
        bars=bars,
        costs=_cost_model(settings),
        predictions=None,
        incidents=incidents,
        facts=[*_run_facts(runs), *_setting_facts(settings, runs[-1].venue)],
        source=f"the ledger of {len(runs)} run{'s' if len(runs) > 1 else ''}",
    )


def from_folder(folder: Path) -> ReportData:
    """Read the folder that a backtest wrote: its ledger where it was kept, else its tables.

    Raises:
        ReportError: It holds no backtest.
        LedgerError: The kept ledger cannot be read.
    """
    if (folder / LEDGER_FILE).is_file():
        ledger = open_ledger(f"sqlite:///{(folder / LEDGER_FILE).resolve()}", create=False)
        try:
            return from_ledger(ledger)
        finally:
            ledger.close()
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("decisions", "trades", "equity")}
        told = folder / "incidents.parquet"
        incidents = _incident_rows(pl.read_parquet(told)) if told.is_file() else None
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise ReportError(
            f"{folder} is not what a backtest wrote ({error}): name the folder given to `tandem backtest --out`"
        ) from error
    for name, columns in _COLUMNS.items():
        if lacking := [column for column in columns if column not in frames[name].columns]:
            raise ReportError(
                f"{folder / name}.parquet lacks the column {lacking[0]!r}, so it is not what a backtest wrote: name "
                "the folder given to `tandem backtest --out`"
            )
    kept = NotMeasured("the ledger of this backtest was not kept (tandem backtest --keep-ledger)")
    trades = frames["trades"]
    has_costs = set(COSTS) <= set(trades.columns)
    if not has_costs:  # an older version wrote it
        trades = trades.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in COSTS)
    names = frames["decisions"]["symbol"].unique(maintain_order=True)
    return ReportData(
        strategy=str(metrics.get("strategy", "unknown")),
        symbols=tuple(metrics.get("symbols", names)),
        equity=frames["equity"],
        decisions=frames["decisions"],
        executions=_numbers(trades),
        bars=kept,
        costs=kept,
        predictions=None if has_costs else kept,
        incidents=kept if incidents is None else incidents,
        facts=[("strategy", str(metrics.get("strategy", "unknown")))],
        source="the tables of a backtest, without its ledger",
    )


def from_replay(settings: Settings, result: ReplayResult, series: Mapping[str, BarSeries]) -> ReportData:
    """Take the tables of a fast replay, which has no ledger, and the bars that it played."""
    chosen = settings.model_dump(mode="json")
    symbols = tuple(result.metrics["symbols"])
    return ReportData(
        strategy=str(result.metrics["strategy"]),
        symbols=symbols,
        equity=result.equity,
        decisions=result.decisions,
        executions=_numbers(result.trades),
        bars=_within(_played(series, symbols), result.equity),
        costs=_cost_model(chosen),
        predictions=None,
        incidents=_incident_rows(result.incidents),
        facts=_setting_facts(chosen, STEPPED_VENUE),
        source="the tables of a fast backtest",
    )


# ---- private ----------------------------------------------------------------------------------------


def _executions(ledger: Ledger) -> pl.DataFrame:
    fills, orders, costs = schema.fills, schema.orders, schema.costs
    question = (
        select(fills, orders.c.type, *(costs.c[name] for name in COSTS))
        .outerjoin(orders, orders.c.client_id == fills.c.client_id)
        .outerjoin(costs, (costs.c.venue == fills.c.venue) & (costs.c.exec_id == fills.c.exec_id))
        .order_by(fills.c.at, fills.c.exec_id)
    )
    records = [
        {
            "symbol": row.symbol,
            "side": row.side,
            "qty": float(row.qty),
            "price": float(row.price),
            "fee": float(row.fee),
            "filled_at": row.at,
            "kind": _KINDS.get(row.type, row.type),
            "leg": row.leg,
            "exec_id": row.exec_id,
            **{name: getattr(row, name) for name in COSTS},
        }
        for row in ledger.rows(question)
    ]
    text = dict.fromkeys(("symbol", "side", "kind", "leg", "exec_id"), pl.String())
    number = dict.fromkeys(("qty", "price", "fee", *COSTS), pl.Float64())
    types: dict[str, Any] = {**text, **number, "filled_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(records, schema=types, infer_schema_length=None)


def _incidents(ledger: Ledger) -> list[IncidentRow]:
    table = schema.incidents
    question = select(table).order_by(table.c.incident_id.desc()).limit(INCIDENTS_READ_MAX)
    rows = [IncidentRow(row.at, row.kind, row.symbol, row.detail) for row in ledger.rows(question)]
    return rows[::-1]


def _incident_rows(incidents: pl.DataFrame) -> list[IncidentRow]:
    """Return the newest rows of `agent.tables.incidents_frame`."""
    rows = incidents.tail(INCIDENTS_READ_MAX).select("at", "kind", "symbol", "detail").iter_rows()
    return [IncidentRow(*row) for row in rows]


def _numbers(trades: pl.DataFrame) -> pl.DataFrame:
    """Return a replay's `trades` as executions: floats, by time as a ledger's are."""
    return trades.with_columns(pl.col("qty", "price", "fee").cast(pl.Float64)).sort(
        "filled_at", "exec_id", maintain_order=True
    )


def _played(series: Mapping[str, BarSeries], symbols: Sequence[str]) -> Mapping[str, BarSeries] | NotMeasured:
    missing = [symbol for symbol in symbols if symbol not in series]
    if missing:
        return NotMeasured(f"no bars of {', '.join(missing)} were given")
    return {symbol: series[symbol] for symbol in symbols}


def _kept_bars(
    ledger: Ledger, settings: Mapping[str, Any], symbols: Sequence[str], bar_store: Path | None
) -> Mapping[str, BarSeries] | NotMeasured:
    """Return the newest revision of every bar that the ledger, or the bar store behind it, holds."""
    if "period" not in settings or "calendar" not in settings:
        return NotMeasured("the ledger's runs recorded no bar period and calendar")
    period, trading = parse_period(settings["period"]), calendar(settings["calendar"])
    seen = schema.bars_seen
    names = ("symbol", "start", "revision", *_PRICES)
    question = select(*(seen.c[name] for name in names)).order_by(seen.c.symbol, seen.c.start, seen.c.revision)
    newest: dict[str, dict[int, tuple[float, ...]]] = {symbol: {} for symbol in symbols}
    for row in ledger.rows(question.where(seen.c.symbol.in_(symbols))):
        newest[row.symbol][to_ns(row.start)] = tuple(row[3:])
    if bar_store is not None and bar_store.is_dir():
        for symbol, bars in newest.items():
            _add_stored(bars, bar_store, symbol, period)
    newest = {symbol: bars for symbol, bars in newest.items() if bars}
    if not newest:
        return NotMeasured("neither the ledger nor the bar store holds bars of these symbols")
    period_ns = round(period.total_seconds() * 1e9)
    found: dict[str, BarSeries] = {}
    for symbol, bars in newest.items():
        start_ns = np.array(sorted(bars), dtype=np.int64)
        open_ns, close_ns, _ = trading.bounds_ns(start_ns, period_ns)
        table = np.array([bars[start] for start in start_ns.tolist()], dtype=np.float64)
        columns = dict(zip(_PRICES, np.ascontiguousarray(table.T), strict=True))
        found[symbol] = BarSeries(symbol=symbol, start_ns=start_ns, close_ns=close_ns, open_ns=open_ns, **columns)
    return found


def _add_stored(bars: dict[int, tuple[float, ...]], bar_store: Path, symbol: str, period: timedelta) -> None:
    from brokers.bar_store import BarStore  # noqa: PLC0415 - only for a daemon that keeps bars

    stored = BarStore(bar_store).read(symbol, period)
    columns = [getattr(stored, name).tolist() for name in _PRICES]
    for start, *values in zip(stored.start_ns.tolist(), *columns, strict=True):
        bars.setdefault(start, tuple(values))


def _within(bars: Mapping[str, BarSeries] | NotMeasured, equity: pl.DataFrame) -> Mapping[str, BarSeries] | NotMeasured:
    """Return the bars from the run's first close to its last."""
    if isinstance(bars, NotMeasured):
        return bars
    if not equity.height:
        return NotMeasured("the run has not decided a close yet")
    first, last = to_ns(_time(equity["close_time"][0])), to_ns(_time(equity["close_time"][-1]))
    cut = {
        symbol: one.slice(int(one.close_ns.searchsorted(first)), int(one.close_ns.searchsorted(last, side="right")))
        for symbol, one in bars.items()
    }
    kept = {symbol: one for symbol, one in cut.items() if len(one)}
    return kept or NotMeasured("no bars lie within the run")


def _time(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is not a time")
    return value


def _cost_model(settings: Mapping[str, Any]) -> CostModel | NotMeasured:
    if "costs" not in settings:
        return NotMeasured("the run recorded no cost settings")
    return CostSettings.model_validate(settings["costs"]).model()


def _run_facts(runs: Sequence[Row[Any]]) -> list[tuple[str, str]]:
    first, last = runs[0], runs[-1]
    facts = [
        ("program version", last.version),
        ("strategy", last.strategy),
        ("strategy id", last.strategy_id),
        ("venue", last.venue),
        ("runs on this ledger", str(len(runs))),
        ("first run began, system time", f"{first.started_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    versions = list(dict.fromkeys(run.version for run in runs))
    if len(versions) > 1:
        facts.append(("earlier versions", ", ".join(versions[:-1])))
    minds = list(dict.fromkeys(run.strategy_id for run in runs))
    if len(minds) > 1:
        facts.append(("earlier strategy ids", ", ".join(minds[:-1])))
    ended = "still running, or killed" if last.ended_at is None else last.end_reason or "no reason recorded"
    return [*facts, ("the last run's end", ended)]


def _setting_facts(settings: Mapping[str, Any], venue: str) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    exchange = settings.get("exchange", {})
    foreign = ["exchange."] if venue != STEPPED_VENUE else []
    foreign += ["exchange.synthetic."] if exchange.get("bars") is not None else []
    for path, label in _SHOWN_SETTINGS:
        if path.startswith(tuple(foreign)):
            continue
        value: Any = settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            facts.append((label, str(value).lower() if isinstance(value, bool) else str(value)))
    return facts
