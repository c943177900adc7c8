"""The accounting face of the environment: executions in, equity at every close out, from bars and shared functions.

It uses nothing of what an exchange said a fill cost: price and fee of every execution are computed again from
the bars (`brokers.costs`), and booked with splits and dividends by `brokers.account.AccountBook`. Equal equity
therefore proves that training and trading mean the same by a fill.

Order inside one bar: its split or dividend, then its executions as they are listed, then the mark at its close.
Across symbols, closes come before the opens of the same instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Any

import numpy as np

from brokers.account import AccountBook
from brokers.costs import (
    CostModel,
    dividend_per_unit,
    is_split,
    limit_fill_price,
    quantise,
    reference_before,
    split_ratio,
    stop_trigger_price,
)
from brokers.domain import Side, utc
from brokers.series import BarSeries, Int, to_ns
from training.errors import AccountingError

if TYPE_CHECKING:
    import polars as pl


@unique
class FillKind(StrEnum):
    """What made an execution happen."""

    OPEN = "open"
    """A market order at the bar's open."""
    STOP = "stop"
    """A resting stop: takes liquidity at its level, or at the open beyond it."""
    LIMIT = "limit"
    """A resting limit: fills at its level or better, without spread and impact."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What was traded, in which bar and why; no price, because that is recomputed.

    Args:
        symbol: Canonical symbol.
        side: BUY or SELL.
        qty: Units, > 0.
        bar_start_ns: Start of the bar that the fill belongs to, ns.
        kind: Open, stop or limit.
        level: Stop or limit price (quote currency); None for `FillKind.OPEN`.
    """

    symbol: str
    side: Side
    qty: Decimal
    bar_start_ns: int
    kind: FillKind
    level: float | None = None


@dataclass(frozen=True, slots=True)
class AccountedFill:
    """One execution with its recomputed price and fee, quote currency."""

    execution: Execution
    price: Decimal
    fee: Decimal


@dataclass(frozen=True, slots=True)
class AccountedEquity:
    """Equity after every close.

    Args:
        close_ns: Distinct closes of all symbols, ns, increasing.
        equity: Quote currency, one value a close.
        fills: Every execution, in the order booked.
    """

    close_ns: Int
    equity: tuple[Decimal, ...]
    fills: tuple[AccountedFill, ...]


def account_equity(
    series: Mapping[str, BarSeries],
    executions: pl.DataFrame | Iterable[Execution | Mapping[str, Any]],
    initial_cash: Decimal,
    costs: CostModel,
) -> AccountedEquity:
    """Recompute an account from its executions.

    Args:
        series: Bars of every symbol traded.
        executions: `Execution`s, or rows (a Polars frame) with `symbol, side, qty, bar_start, kind, level`,
            such as a replay's `trades.parquet`; other columns are not read. Within a bar in the order filled.
        initial_cash: Quote currency before the first bar.
        costs: The shared cost model.

    Raises:
        AccountingError: A row is not an execution, names a bar that is not there, has no completed bar before
            it, or could not have filled in its bar.
    """
    by_bar = _by_bar(series, executions)
    events = sorted(
        (at_ns, opening, symbol, index)
        for symbol, bars in series.items()
        for opening, column in ((False, bars.close_ns), (True, bars.open_ns))
        for index, at_ns in enumerate(column.tolist())
    )
    book = AccountBook(cash=initial_cash)
    marks: dict[str, Decimal] = {}
    fills: list[AccountedFill] = []
    closes: list[int] = []
    equity: list[Decimal] = []
    for position, (at_ns, opening, symbol, index) in enumerate(events):
        bars = series[symbol]
        if opening:
            _corporate_action(book, marks, bars, index)
            marks.setdefault(symbol, quantise(float(bars.open[index])))
            for execution in by_bar.pop((symbol, index), ()):
                fill = _price(execution, bars, index, costs)
                book.fill(symbol, execution.side, execution.qty, fill.price, fill.fee)
                fills.append(fill)
            continue
        marks[symbol] = quantise(float(bars.close[index]))
        following = events[position + 1] if position + 1 < len(events) else None
        if following is None or following[0] != at_ns or following[1]:
            closes.append(at_ns)
            equity.append(book.equity(marks))
    return AccountedEquity(np.array(closes, dtype=np.int64), tuple(equity), tuple(fills))


def _corporate_action(book: AccountBook, marks: dict[str, Decimal], bars: BarSeries, index: int) -> None:
    """Book the split or dividend of one bar against the bar before it."""
    if index == 0:
        return
    ratio = float(bars.adj_factor[index] / bars.adj_factor[index - 1])
    if ratio == 1.0:
        return
    if is_split(ratio):
        factor = split_ratio(ratio)
        book.split(bars.symbol, factor)
        marks[bars.symbol] /= factor
    else:
        book.dividend(bars.symbol, dividend_per_unit(float(bars.close[index - 1]), ratio))


def _price(execution: Execution, bars: BarSeries, index: int, costs: CostModel) -> AccountedFill:
    """Return price and fee of one execution in bar `index`.

    Intrabar triggers belong to the bar, so they are priced with the same reference bar as its open.
    """
    if index == 0:
        raise AccountingError(
            f"{execution.symbol}: an execution in the first bar given has no completed bar before it; "
            "begin the bars one earlier"
        )
    reference = reference_before(bars, index)
    side, qty = execution.side, float(execution.qty)
    bar = tuple(float(column[index]) for column in (bars.open, bars.high, bars.low))
    if execution.kind is FillKind.OPEN:
        price = costs.taking_price(bar[0], side, qty, reference)
    else:
        if execution.level is None:
            raise AccountingError(f"{execution.symbol}: a {execution.kind} execution needs its level")
        rule = stop_trigger_price if execution.kind is FillKind.STOP else limit_fill_price
        touched = rule(side, execution.level, *bar)
        if touched is None:
            raise AccountingError(
                f"{execution.symbol}: a {side} {execution.kind} at {execution.level} cannot fill in the bar "
                f"open {bar[0]}, high {bar[1]}, low {bar[2]}"
            )
        if execution.kind is FillKind.STOP:
            price = costs.taking_price(touched, side, qty, reference)
        else:
            price = quantise(touched)
    return AccountedFill(execution, price, costs.fee(execution.qty, price))


def _by_bar(
    series: Mapping[str, BarSeries], executions: pl.DataFrame | Iterable[Execution | Mapping[str, Any]]
) -> dict[tuple[str, int], list[Execution]]:
    """Group executions by (symbol, bar index), keeping their order."""
    rows: Iterable[Execution | Mapping[str, Any]]
    rows = executions.iter_rows(named=True) if hasattr(executions, "iter_rows") else executions
    grouped: dict[tuple[str, int], list[Execution]] = {}
    for row in rows:
        execution = row if isinstance(row, Execution) else _execution(row)
        bars = series.get(execution.symbol)
        if bars is None:
            raise AccountingError(f"no bars of {execution.symbol}: give the series that it traded on")
        index = int(np.searchsorted(bars.start_ns, execution.bar_start_ns))
        if index == len(bars) or bars.start_ns[index] != execution.bar_start_ns:
            raise AccountingError(f"{execution.symbol} has no bar that starts at {execution.bar_start_ns} ns")
        grouped.setdefault((execution.symbol, index), []).append(execution)
    return grouped


def _execution(row: Mapping[str, Any]) -> Execution:
    """Read one row of a trades table."""
    try:
        start, level = row["bar_start"], row["level"]
        return Execution(
            symbol=str(row["symbol"]),
            side=Side(row["side"]),
            qty=_decimal(row["qty"]),
            bar_start_ns=to_ns(utc(start)) if isinstance(start, datetime) else int(start),
            kind=FillKind(row["kind"]),
            level=None if level is None else float(level),
        )
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise AccountingError(f"not an execution: {dict(row)!r} ({error!r})") from error


def _decimal(value: Any) -> Decimal:
    """Return an exact quantity: text and Decimal as they are, a float by its shortest decimal form."""
    return Decimal(repr(float(value))) if isinstance(value, float) else Decimal(value)
