"""The tables of a fast replay: what `agent.tables` reads from a ledger, written from columns.

Closes that were decided by the rules bring their own rows; those passed over are told by the answers that were
foreseen, the position that stood still, and the account's cash and holdings.

Axes: T closes, S symbols (sorted by name), N executions; rows of decisions are T x S, closes first.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from agent.foresight import Foresight, SymbolForesight
from agent.looking import silence
from agent.tables import COSTS, DECISIONS, EQUITY, TRADES
from brokers.account import AccountBook
from brokers.domain import Fill, Leg, OrderType
from brokers.exact_columns import WHOLE_MAX, ExactError, Pair, constants, product, running_maximum, units
from brokers.series import BarSeries, Float, Int, from_ns, to_ns
from strategies.strategy import Reason

if TYPE_CHECKING:
    from agent.settings import Settings
    from brokers.simulated.engine import MatchingEngine

_DECIMALS = 9
"""Quantities and prices have at most so many; cash and equity twice as many."""
_ACTIONS = ("HOLD", "BUY", "SELL")
_DIGITS = 9
"""Decimals to which the numbers of a vote are rounded (`agent.deciding`)."""
_BLOCK = 8_192
"""Numbers that are rounded at a time."""
_PLAIN_LEAST = 1e-4
"""Smaller numbers are written with an exponent by Python and without one by Polars."""
_PLAIN_MOST = 1e15
_LEVELS = ("stop", "take_profit")
_ZERO = Decimal(0)
_TARGETS = {-1: "q_short", 0: "q_flat", 1: "q_long"}


@dataclass(frozen=True, slots=True)
class Holdings:
    """Cash and signed quantities at the closes from one on."""

    cash: Decimal
    qty: tuple[tuple[str, Decimal], ...]


class Decided(NamedTuple):
    """One row of a close that was decided by the rules: what the table needs of it, so that many rows stay small.

    `votes` is None where they are the answer that was foreseen at this position, and nothing else.
    """

    close: int
    symbol: str
    position: int
    target: int
    held_qty: float
    action: str
    reason: str
    outcome: str
    stop: float | None
    take_profit: float | None
    q: tuple[tuple[int, float], ...]
    votes: str | None


def decided(close: int, row: Mapping[str, Any], *, foreseen: bool) -> Decided:
    """Return a row of `agent.deciding` as the table needs it; `foreseen`: its answer is the one at its position."""
    votes: Mapping[str, Any] = row["votes"]
    stop, take_profit = row["stop"], row["take_profit"]
    text: str | None = None
    q: Mapping[str, float] = {}
    if not foreseen or len(votes) > 1:
        text = json.dumps(votes)
        q = next((vote["q"] for vote in votes.values() if vote.get("q")), {})
    return Decided(
        close,
        row["symbol"],
        row["position"],
        row["target"],
        float(row["held_qty"]),
        row["action"],
        row["reason"],
        row["outcome"],
        None if stop is None else float(stop),
        None if take_profit is None else float(take_profit),
        tuple([(int(target), value) for target, value in q.items()]) if q else (),
        text,
    )


@dataclass(slots=True)
class Path:
    """What a replay leaves behind: holdings, positions at closes passed over, and rows of the others."""

    symbols: tuple[str, ...]
    closes: int
    position: dict[str, NDArray[np.int8]] = field(init=False)
    held: dict[str, Float] = field(init=False)
    decided: list[Decided] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    holdings: list[Holdings] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin flat."""
        self.position = {symbol: np.zeros(self.closes, dtype=np.int8) for symbol in self.symbols}
        self.held = {symbol: np.zeros(self.closes) for symbol in self.symbols}

    @property
    def cash(self) -> Decimal:
        """Cash now."""
        return self.holdings[-1].cash

    def hold(self, close: int, holdings: Holdings) -> None:
        """Note the holdings at a close and those after it."""
        if self.starts and self.starts[-1] == close:
            self.holdings[-1] = holdings
        else:
            self.starts.append(close)
            self.holdings.append(holdings)

    def held_at(self, close: int) -> Holdings:
        """Return the holdings at a close."""
        return self.holdings[bisect_right(self.starts, close) - 1]

    def rest(self, begin: int, end: int, positions: Mapping[str, int], book: AccountBook) -> None:
        """Note the closes begin .. end (exclusive), at which nothing changes."""
        for symbol, position in positions.items():
            if position:
                self.position[symbol][begin:end] = position
                self.held[symbol][begin:end] = float(book.qty(symbol))


@dataclass(frozen=True, slots=True)
class Told:
    """What the tables are made of; `halted_at` is the first close after a halt."""

    settings: Settings
    seen: Foresight
    strategy: str
    path: Path
    engine: MatchingEngine
    leg_of: Callable[[str], Leg]
    cost_of: Callable[[Fill], Mapping[str, float | None]]
    halted_at: int


# ---- decisions ----------------------------------------------------------------------------------------------


class _Words:
    """A text column as codes."""

    def __init__(self, words: Sequence[str]) -> None:
        self._codes = {word: code for code, word in enumerate(words)}

    def code(self, word: str) -> int:
        return self._codes.setdefault(word, len(self._codes))

    def series(self, codes: NDArray[np.int32]) -> pl.Series:
        return pl.Series(list(self._codes), dtype=pl.String).gather(codes)


class _Texts:
    """A text column put together from parts that know their rows."""

    def __init__(self) -> None:
        self._rows: list[Int] = []
        self._parts: list[pl.Series] = []

    def add(self, rows: Int, part: pl.Series) -> None:
        if len(rows):
            self._rows.append(rows)
            self._parts.append(part)

    def series(self) -> pl.Series:
        rows = np.concatenate(self._rows)
        places = np.empty(len(rows), dtype=np.int64)
        places[rows] = np.arange(len(rows))  # every row has one part
        return pl.concat(self._parts).gather(places)


class _DecisionColumns:
    """Fills the columns of `decisions.parquet`."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.seen = told.seen
        self.names = sorted(told.seen.symbols)
        self.closes, self.count = len(told.seen.closes_ns), len(self.names)
        rows = self.closes * self.count
        self.position, self.target = np.zeros(rows, dtype=np.int8), np.zeros(rows, dtype=np.int8)
        self.action = np.zeros(rows, dtype=np.int32)
        self.reason, self.outcome = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
        self.held = np.zeros(rows)
        self.numbers: dict[str, Float] = {}
        self.start_ns = np.zeros(rows, dtype=np.int64)
        self.actions, self.reasons, self.outcomes = _Words(_ACTIONS), _Words([]), _Words([])
        self.votes = _Texts()
        self._not_warm = np.full(len(told.seen.spec.names), np.nan)
        self.is_decided_T = np.zeros(self.closes, dtype=np.bool_)
        self.is_decided_T[[one.close for one in told.path.decided]] = True

    def frame(self) -> pl.DataFrame:
        for place, symbol in enumerate(self.names):
            self._passed_over(symbol, place)
        self._decided()
        after = self.position.copy()
        after[: -self.count] = self.position[self.count :]
        columns: dict[str, Any] = {
            "timestamp": _times(self.start_ns),
            "close_time": _times(np.repeat(self.seen.closes_ns, self.count)),
            "symbol": pl.Series(self.names, dtype=pl.String).gather(np.tile(np.arange(self.count), self.closes)),
            "action": self.actions.series(self.action),
            "target": pl.Series(self.target),
            "position_before": pl.Series(self.position),
            "held_qty": pl.Series(self.held),
            **{name: self._column(name) for name in ("stop", "take_profit", *_TARGETS.values())},
            "reason": self.reasons.series(self.reason),
            "outcome": self.outcomes.series(self.outcome),
            "votes": self.votes.series(),
        }
        frame = pl.DataFrame({name: columns[name] for name in DECISIONS}, schema=DECISIONS)
        return frame.with_columns(pl.Series("position", after))

    def _number(self, name: str) -> Float:
        """Return the values of a column of numbers, NaN where there is none; made when first asked for."""
        found = self.numbers.get(name)
        if found is None:
            found = self.numbers[name] = np.full(len(self.position), np.nan)
        return found

    def _column(self, name: str) -> pl.Series:
        if name not in self.numbers:
            return pl.Series([None], dtype=pl.Float64).new_from_index(0, len(self.position))
        return pl.Series(self.numbers[name]).fill_nan(None)

    def _passed_over(self, symbol: str, place: int) -> None:
        """Write every close of a symbol that was passed over."""
        one = self.seen.symbols[symbol]
        rows_T, mine = np.arange(self.closes) * self.count + place, slice(place, None, self.count)
        position_T = self.told.path.position[symbol]
        self.position[mine], self.held[mine] = position_T, self.told.path.held[symbol]
        self.target[mine] = position_T  # where nobody could be asked
        period_ns = round(self.told.settings.bar_period.total_seconds() * 1e9)
        starts = np.where(one.last_T >= 0, one.series.start_ns[one.last_T], self.seen.closes_ns - period_ns)
        self.start_ns[mine] = starts
        quiet_T = ~self.is_decided_T
        silent = np.flatnonzero(quiet_T & ~one.usable_T)
        texts = [self._abstained(symbol, one, close, close * self.count + place) for close in silent.tolist()]
        self.votes.add(rows_T[silent], pl.Series(texts, dtype=pl.String))
        is_halted_T = np.arange(self.closes) >= self.told.halted_at
        for position, given in one.answers.items():
            closes = np.flatnonzero(quiet_T & one.usable_T & (position_T == position))
            if not len(closes):
                continue
            target = given.target_T[one.bar_T[closes]]
            for wanted in _TARGETS:
                chosen = closes[target == wanted]
                if not len(chosen):
                    continue
                refused = wanted != position
                if refused and not is_halted_T[chosen].all():
                    msg = f"{symbol}: a close at which {wanted} was wanted from {position} was passed over"
                    raise AssertionError(msg)
                self._answered(one, chosen, rows_T[chosen], position=position, wanted=wanted, refused=refused)

    def _answered(
        self, one: SymbolForesight, closes: Int, rows: Int, *, position: int, wanted: int, refused: bool
    ) -> None:
        self.target[rows] = wanted
        self.action[rows] = 1 if wanted > position else 2 if wanted < position else 0
        self.reason[rows] = self.reasons.code(one.answers[position].reason.value)
        outcome = Reason.HALTED if refused else Reason.TARGET_HELD
        self.outcome[rows] = self.outcomes.code(outcome.value)
        self._voted(one, closes, rows, position=position, wanted=wanted, refused=refused)

    def _voted(
        self, one: SymbolForesight, closes: Int, rows: Int, *, position: int, wanted: int, refused: bool
    ) -> None:
        """Write the votes of closes at which the answer that was foreseen at a position wants the same."""
        given, bars = one.answers[position], one.bar_T[closes]
        q = {target: _rounded(values[bars]) for target, values in given.q.items()}
        for target, values in q.items():
            self._number(_TARGETS[target])[rows] = values
        detail = {name: _rounded(values[bars]) for name, values in given.detail.items()}
        exits: dict[str, Float] = {}
        if given.exits is not None and wanted:
            exits = {name: levels[bars] for name, levels in zip(_LEVELS, given.exits, strict=True)}
        text = _votes_text(self.told.strategy, wanted, q, detail, exits, count=len(rows), refused=refused)
        self.votes.add(rows, text)

    def _abstained(self, symbol: str, one: SymbolForesight, close: int, row: int) -> str:
        """Write why nobody could be asked; returns the votes."""
        last, spec = int(one.last_T[close]), self.seen.spec
        is_warm = last >= 0 and one.seen_T[close] >= spec.memory_bars
        answer = silence(
            symbol,
            from_ns(self.seen.closes_ns[close]),
            newest=one.series.bar(last) if last >= 0 else None,
            came=bool(one.bar_T[close] >= 0),
            features_F=one.features_NF[last] if is_warm else self._not_warm,
            bars_seen=int(one.seen_T[close]),
            memory_bars=spec.memory_bars,
            stale_after=self.told.settings.risk.stale_bars_max * self.told.settings.bar_period,
        )
        if answer is None:
            msg = f"{symbol}: close {close} was passed over as if nobody could be asked"
            raise AssertionError(msg)
        self.reason[row] = self.reasons.code(answer.reason.value)
        self.outcome[row] = self.outcomes.code(answer.reason.value)
        vote = {"abstained": answer.reason.value, "detail": answer.detail}
        return json.dumps({self.told.strategy: vote})

    def _decided(self) -> None:
        """Write the closes that were decided by the rules."""
        decided = self.told.path.decided
        if not decided:
            return
        columns = dict(zip(Decided._fields, zip(*decided, strict=True), strict=True))
        places = {symbol: place for place, symbol in enumerate(self.names)}
        close_N = np.array(columns["close"])
        place_N = np.array([places[symbol] for symbol in columns["symbol"]])
        rows_N = close_N * self.count + place_N
        self.position[rows_N], self.target[rows_N] = columns["position"], columns["target"]
        self.held[rows_N] = columns["held_qty"]
        self.action[rows_N] = [self.actions.code(word) for word in columns["action"]]
        self.reason[rows_N] = [self.reasons.code(word) for word in columns["reason"]]
        self.outcome[rows_N] = [self.outcomes.code(word) for word in columns["outcome"]]
        for name in ("stop", "take_profit"):
            if any(level is not None for level in columns[name]):
                self._number(name)[rows_N] = np.array(columns[name], dtype=np.float64)  # None becomes NaN
        is_told_N = np.array([votes is not None for votes in columns["votes"]])
        for row in np.flatnonzero(is_told_N).tolist():
            for target, value in decided[row].q:
                self._number(_TARGETS[target])[rows_N[row]] = value
        texts = [votes for votes in columns["votes"] if votes is not None]
        self.votes.add(rows_N[is_told_N], pl.Series(texts, dtype=pl.String))
        position_N = np.array(columns["position"])
        for symbol, place in places.items():
            one = self.seen.symbols[symbol]
            for position, given in one.answers.items():
                mine = np.flatnonzero(~is_told_N & (place_N == place) & (position_N == position))
                target = given.target_T[one.bar_T[close_N[mine]]]
                for wanted in _TARGETS:
                    chosen = mine[target == wanted]
                    if len(chosen):
                        closes, rows = close_N[chosen], rows_N[chosen]
                        self._voted(one, closes, rows, position=position, wanted=wanted, refused=False)


def _votes_text(
    mind: str,
    target: int,
    q: Mapping[int, Float],
    detail: Mapping[str, Float],
    exits: Mapping[str, Float],
    *,
    count: int,
    refused: bool,
) -> pl.Series:
    """Return `json.dumps` of the votes of many closes that differ in their numbers alone."""
    parts: list[str | pl.Series] = [f'{{{json.dumps(mind)}: {{"target": {target}, "q": {{']
    for place, (key, values) in enumerate(q.items()):
        parts += [f'{", " if place else ""}"{key}": ', _written(values)]
    parts.append('}, "detail": {')
    for place, (name, values) in enumerate(detail.items()):
        parts += [f"{', ' if place else ''}{json.dumps(name)}: ", _written(values)]
    parts.append("}")
    for place, (name, values) in enumerate(exits.items()):
        begin = ", " if place else ', "exits": {'
        parts += [f"{begin}{json.dumps(name)}: ", _level(values)]
    parts.append(
        ("}}" if exits else "}") + (f', "gate": {{"refused": "{Reason.HALTED.value}"}}' if refused else "") + "}"
    )
    joined: list[pl.Expr] = []
    columns: dict[str, pl.Series] = {}
    for place, part in enumerate(parts):
        if isinstance(part, str):
            joined.append(pl.lit(part))
        else:
            columns[f"c{place}"] = part
            joined.append(pl.col(f"c{place}"))
    if not columns:
        return pl.Series(["".join(part for part in parts if isinstance(part, str))]).new_from_index(0, count)
    return pl.DataFrame(columns).select(pl.concat_str(joined)).to_series()


def _level(values: Float) -> pl.Series:
    """Return the distances of an exit as `json.dumps` writes them, null for none; see `strategies.batch`."""
    is_none = np.isinf(values) | (values <= 0.0)
    return _written(_rounded(np.where(is_none, 1.0, values))).set(pl.Series(is_none), "null")


def _written(values: Float) -> pl.Series:
    """Return numbers as `json.dumps` writes them."""
    texts = pl.Series(values).cast(pl.String)
    size = np.abs(values)
    odd = np.flatnonzero(((size < _PLAIN_LEAST) & (values != 0.0)) | ~(size < _PLAIN_MOST))
    return texts.scatter(odd, [json.dumps(values[row].item()) for row in odd.tolist()]) if len(odd) else texts


def _rounded(values: Float) -> Float:
    """Return what `round(value, 9)` gives of each value."""
    rounded = np.empty(len(values))
    for begin in range(0, len(values), _BLOCK):
        rounded[begin : begin + _BLOCK] = _rounded_block(values[begin : begin + _BLOCK])
    return rounded


def _rounded_block(values: Float) -> Float:
    scaled = values * 10.0**_DIGITS
    rounded = np.rint(scaled) / 10.0**_DIGITS
    # the product is rounded itself: where that may decide, and beyond whole numbers, Python does
    doubtful = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 1e-3 + np.abs(scaled) * 1e-15
    for row in np.flatnonzero(doubtful | ~(np.abs(scaled) < 2.0**52)).tolist():
        rounded[row] = round(values[row].item(), _DIGITS)
    return rounded


def _times(ns: Int) -> pl.Series:
    return pl.Series(ns // 1_000).cast(DECISIONS["close_time"])


# ---- trades -------------------------------------------------------------------------------------------------


def _trades(told: Told, series: Mapping[str, BarSeries]) -> pl.DataFrame:
    """Return one row an execution, oldest first; see `agent.tables.trades_frame`."""
    rows = [_trade(fill, told) for fill in told.engine.fills()]
    columns: dict[str, Any] = dict(zip(_TOLD_OF_TRADES, zip(*rows, strict=True), strict=True)) if rows else {}
    at_ns = np.array(columns.pop("at_ns", ()), dtype=np.int64)
    start_ns = np.zeros(len(rows), dtype=np.int64)
    symbols = np.array(columns.get("symbol", ()), dtype=object)
    for symbol in told.seen.symbols:
        mine = np.flatnonzero(symbols == symbol)
        bars = series[symbol]
        place = np.minimum(bars.close_ns.searchsorted(at_ns[mine]), len(bars) - 1)
        start_ns[mine] = bars.start_ns[place]
    columns |= {"bar_start": _times(start_ns), "filled_at": _times(at_ns)}
    return pl.DataFrame({name: columns.get(name, ()) for name in TRADES}, schema=TRADES)


def _trade(fill: Fill, told: Told) -> tuple[Any, ...]:
    """Return what `_TOLD_OF_TRADES` names of an execution."""
    order, cost = told.engine.book()[fill.client_id], told.cost_of(fill)
    kind = _KINDS[order.type]
    level = order.stop_price if kind == "stop" else order.limit_price if kind == "limit" else None
    return (
        to_ns(fill.at),
        fill.symbol,
        fill.side.value,
        fill.qty,
        fill.price,
        fill.fee,
        kind,
        level,
        fill.client_id,
        told.leg_of(fill.client_id).value,
        fill.exec_id,
        *[cost[name] for name in COSTS],
    )


_KINDS = {OrderType.MARKET: "open", OrderType.STOP: "stop", OrderType.STOP_LIMIT: "stop", OrderType.LIMIT: "limit"}
_TOLD_OF_TRADES = (
    *("at_ns", "symbol", "side", "qty", "price", "fee", "kind", "level", "client_id", "leg", "exec_id"),
    *COSTS,
)


# ---- equity -------------------------------------------------------------------------------------------------


def _equity(told: Told) -> pl.DataFrame:
    """Return one row a close; see `agent.tables.equity_frame`."""
    starts = np.array([*told.path.starts, told.path.closes])
    lengths = np.diff(starts)
    try:
        equity, gross, drawdown = _equity_columns(told, lengths)
    except ExactError:
        equity, gross, drawdown = _equity_by_row(told)
    cash = np.repeat(np.array([float(one.cash) for one in told.path.holdings]), lengths)
    columns = {
        "close_time": _times(told.seen.closes_ns),
        "equity": equity,
        "cash": cash,
        "gross_exposure": gross,
        "drawdown": drawdown,
    }
    return pl.DataFrame(columns, schema=EQUITY)


def _equity_columns(told: Told, lengths: Int) -> tuple[Float, Float, Float]:
    """Return equity, gross exposure and drawdown.

    Raises:
        ExactError: Numbers with more digits than the columns hold.
    """
    path = told.path
    # while nothing is held, one row stands for all
    is_flat = np.array([not one.qty for one in path.holdings])
    rows = np.flatnonzero(np.repeat(~is_flat, lengths) | _begins(lengths))
    spans = lengths
    lengths = np.where(is_flat, 1, lengths)
    cash = constants([units(one.cash, 2 * _DECIMALS) for one in path.holdings])
    equity = Pair(np.repeat(cash.high, lengths), np.repeat(cash.low, lengths))
    gross = Pair(np.zeros(len(rows)), np.zeros(len(rows)))
    for symbol, one in told.seen.symbols.items():
        held = [dict(span.qty).get(symbol, _ZERO) for span in path.holdings]
        if not any(held):
            continue
        whole = [units(qty, _DECIMALS) for qty in held]
        if max(map(abs, whole)) >= WHOLE_MAX:
            raise ExactError(f"{symbol}: a quantity has more digits than a float holds")
        qty_T = np.repeat(np.array(whole, dtype=np.float64), lengths)
        mark_T = one.mark_T[rows]
        value = product(qty_T, mark_T)
        equity += value
        gross += value if min(whole) >= 0 else product(np.abs(qty_T), mark_T)
    peak = running_maximum(equity)
    one_unit = constants([10 ** (2 * _DECIMALS)])
    unit = Pair(np.broadcast_to(one_unit.high, len(rows)), np.broadcast_to(one_unit.low, len(rows)))
    with np.errstate(divide="ignore", invalid="ignore"):
        equity_T, doubtful = equity.over(unit)
        exposure_T, unsure = gross.over(equity)
        share_T, uncertain = equity.over(peak)
    drawdown_T = 1.0 - share_T
    for row in np.flatnonzero(doubtful | unsure | uncertain | ~((equity.high > 0.0) & (peak.high > 0.0))).tolist():
        # as the ledger's rows are: in Decimal
        total, exposed, highest = (_money(column, row) for column in (equity, gross, peak))
        equity_T[row], exposure_T[row], drawdown_T[row] = _equity_row(total, exposed, max(highest, _ZERO))
    # a row that stands for a flat span is repeated over it
    counts = np.repeat(np.where(is_flat, spans, 1), lengths)
    return np.repeat(equity_T, counts), np.repeat(exposure_T, counts), np.repeat(drawdown_T, counts)


def _begins(lengths: Int) -> NDArray[np.bool_]:
    """Tell which rows begin a span."""
    begins = np.zeros(int(lengths.sum()), dtype=np.bool_)
    begins[np.cumsum(lengths) - lengths] = True
    return begins


def _money(column: Pair, row: int) -> Decimal:
    return Decimal(int(column.high[row]) + int(column.low[row])).scaleb(-2 * _DECIMALS)


def _equity_by_row(told: Told) -> tuple[Float, Float, Float]:
    """Return what `_equity_columns` does, in Decimal row by row."""
    rows = np.zeros((3, told.path.closes))
    peak = _ZERO
    for close in range(told.path.closes):
        holdings = told.path.held_at(close)
        values = [qty * _mark(told.seen.symbols[symbol], close) for symbol, qty in holdings.qty]
        total = holdings.cash + sum(values, _ZERO)
        peak = max(peak, total)
        rows[:, close] = _equity_row(total, sum(map(abs, values), _ZERO), peak)
    return rows[0], rows[1], rows[2]


def _equity_row(equity: Decimal, gross: Decimal, peak: Decimal) -> tuple[float, float, float]:
    exposure = float(gross / equity) if equity else 0.0
    return float(equity), exposure, 1.0 - float(equity / peak) if peak else 0.0


def _mark(one: SymbolForesight, close: int) -> Decimal:
    return Decimal(int(one.mark_T[close])).scaleb(-_DECIMALS)


# ---- the result ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tables:
    """The three tables of a replay."""

    decisions: pl.DataFrame
    trades: pl.DataFrame
    equity: pl.DataFrame


def tables_of(told: Told, series: Mapping[str, BarSeries]) -> Tables:
    """Return the tables of a replay."""
    return Tables(decisions=_DecisionColumns(told).frame(), trades=_trades(told, series), equity=_equity(told))
