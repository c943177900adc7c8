"""Equity and executions become metrics: what was earned, at what risk, how much was traded and what it cost.

Annual figures use the bars per year that the equity curve really has, so sessions, holidays and gaps count as
they are. A metric that the data does not define (a Sharpe ratio without volatility, a win rate without closed
trades) is None, never zero.

Axes: T closes, N executions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brokers.costs import split_ratios
from brokers.series import BarSeries, Int
from strategies.features.columns import Float

YEAR_NS = 365.25 * 86_400e9
_DUST = 1e-9
"""A position smaller than this share of what was traded in it is closed."""


class PerformanceError(ValueError):
    """An equity curve or executions from which nothing can be measured."""


@dataclass(frozen=True, slots=True)
class Executions:
    """Executions as columns, oldest first.

    Args:
        symbol: N names.
        signed_qty: Units, positive for buys.
        price: Quote currency per unit.
        fee: Quote currency, >= 0.
        at_ns: Times, ns since the epoch.
    """

    symbol: Sequence[str]
    signed_qty: Float
    price: Float
    fee: Float
    at_ns: Int


@dataclass(frozen=True, slots=True)
class Split:
    """Held quantity of a symbol is multiplied by `ratio` at a time (ns since the epoch)."""

    symbol: str
    at_ns: int
    ratio: float


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A position from flat to flat: its profit after fees, quote currency, and when it began and ended."""

    symbol: str
    profit: float
    opened_ns: int
    closed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a run achieved. Fractions unless named otherwise; annual where marked; None where undefined.

    Args:
        closes: Equity points.
        years: From the first to the last of them.
        closes_per_year: Actual closes per year.
        total_return: Last equity over first, minus 1.
        cagr: Compound annual growth rate.
        volatility: Annual standard deviation of returns per close.
        sharpe: Annual Sharpe ratio, interest rate zero.
        sharpe_se: Its standard error, with skewness and kurtosis (Mertens 2002; Lo 2002).
        sortino: Annual mean over downside deviation (Sortino & Price 1994, target zero).
        calmar: Compound annual growth over the largest drawdown (Young 1991), over the whole run.
        skewness: Of returns per close, g1 = m3 / m2^1.5; None below three returns or without any spread.
        excess_kurtosis: Of returns per close, g2 = m4 / m2^2 - 3; 0 for normal returns.
        expected_shortfall: Mean of the worst 5 % of returns per close, <= 0 where they are losses
            (Acerbi & Tasche 2002).
        best_close: Largest return of one close.
        worst_close: Smallest return of one close.
        max_drawdown: Largest fall from a peak, >= 0.
        max_drawdown_closes: Longest stretch below a peak, in closes, also if it has not ended.
        max_drawdown_days: The same in days.
        exposure: Mean gross position value over equity; None where it was not recorded.
        time_in_market: Share of closes with a position; None where it was not recorded.
        turnover: Traded value per year over mean equity, both sides counted.
        executions: Number of them.
        round_trips: Positions opened and closed.
        win_rate: Share of round trips with a profit after fees.
        profit_factor: Sum of profits over sum of losses.
        payoff_ratio: Mean profit of winning over mean loss of losing round trips.
        mean_trip_days: Mean duration of a round trip.
        fees: Quote currency.
        fees_bps: Fees over traded value, basis points.
    """

    closes: int
    years: float
    closes_per_year: float
    total_return: float
    cagr: float | None
    volatility: float
    sharpe: float | None
    sharpe_se: float | None
    sortino: float | None
    calmar: float | None
    skewness: float | None
    excess_kurtosis: float | None
    expected_shortfall: float | None
    best_close: float
    worst_close: float
    max_drawdown: float
    max_drawdown_closes: int
    max_drawdown_days: float
    exposure: float | None
    time_in_market: float | None
    turnover: float
    executions: int
    round_trips: int
    win_rate: float | None
    profit_factor: float | None
    payoff_ratio: float | None
    mean_trip_days: float | None
    fees: float
    fees_bps: float | None


class _Column(Protocol):
    def to_list(self) -> list[Any]: ...

    def to_numpy(self) -> NDArray[Any]: ...


class Frame(Protocol):
    """A table with named columns, as Polars and pandas give."""

    def __getitem__(self, name: str, /) -> _Column: ...


def performance(equity: Frame, trades: Frame, *, splits: Sequence[Split] = ()) -> Performance:
    """Measure a run from its tables.

    Args:
        equity: `close_time`, `equity`, `gross_exposure` (position value over equity), one row a close.
        trades: `symbol`, `side` (buy, sell), `qty`, `price`, `fee`, `filled_at`, one row an execution.
        splits: Splits of the traded symbols (`splits_of`); without them a held split looks like a trade.

    Raises:
        PerformanceError: See `measure`.
    """
    sign_N = np.array([1.0 if str(side) == "buy" else -1.0 for side in trades["side"].to_list()])
    executions = Executions(
        symbol=[str(symbol) for symbol in trades["symbol"].to_list()],
        signed_qty=sign_N * _floats(trades["qty"]),
        price=_floats(trades["price"]),
        fee=_floats(trades["fee"]),
        at_ns=_times(trades["filled_at"]),
    )
    exposure_T = _floats(equity["gross_exposure"])
    return measure(
        _floats(equity["equity"]), _times(equity["close_time"]), executions, exposure_T=exposure_T, splits=splits
    )


def measure(
    equity_T: Float,
    close_ns_T: Int,
    executions: Executions,
    *,
    exposure_T: Float | None = None,
    splits: Sequence[Split] = (),
) -> Performance:
    """Measure an equity curve and the executions behind it.

    Raises:
        PerformanceError: Fewer than two closes, times that do not increase, or equity that is not positive.
    """
    if len(equity_T) < 2 or len(equity_T) != len(close_ns_T):
        raise PerformanceError(f"{len(equity_T)} equity points at {len(close_ns_T)} times: at least two are needed")
    if not (np.diff(close_ns_T) > 0).all():
        raise PerformanceError("times of the equity curve do not increase: sort it, one row a close")
    if not (np.isfinite(equity_T) & (equity_T > 0.0)).all():
        raise PerformanceError("equity is not positive and finite throughout: returns are not defined")
    years = float(close_ns_T[-1] - close_ns_T[0]) / YEAR_NS
    per_year = (len(equity_T) - 1) / years
    returns_T = equity_T[1:] / equity_T[:-1] - 1.0
    depth, longest, longest_ns = drawdowns(equity_T, close_ns_T)
    traded = float(np.sum(np.abs(executions.signed_qty) * executions.price))
    fees = float(np.sum(executions.fee))
    trips = round_trips(executions, splits)
    gains = math.fsum(trip.profit for trip in trips if trip.profit > 0.0)
    losses = -math.fsum(trip.profit for trip in trips if trip.profit < 0.0)
    winners, losers = sum(trip.profit > 0.0 for trip in trips), sum(trip.profit < 0.0 for trip in trips)
    sharpe, sharpe_se = sharpe_ratio(returns_T, per_year)
    skewness, kurtosis = shape_of(returns_T)
    growth = float(equity_T[-1] / equity_T[0])
    cagr = _cagr(growth, years)
    return Performance(
        closes=len(equity_T),
        years=years,
        closes_per_year=per_year,
        total_return=growth - 1.0,
        cagr=cagr,
        volatility=float(np.std(returns_T, ddof=1)) * math.sqrt(per_year) if len(returns_T) > 1 else 0.0,
        sharpe=sharpe,
        sharpe_se=sharpe_se,
        sortino=sortino_ratio(returns_T, per_year),
        calmar=cagr / depth if cagr is not None and depth > 0.0 else None,
        skewness=skewness,
        excess_kurtosis=None if kurtosis is None else kurtosis - 3.0,
        expected_shortfall=expected_shortfall(returns_T),
        best_close=float(np.max(returns_T)),
        worst_close=float(np.min(returns_T)),
        max_drawdown=depth,
        max_drawdown_closes=longest,
        max_drawdown_days=longest_ns / 86_400e9,
        exposure=None if exposure_T is None else float(np.mean(exposure_T)),
        time_in_market=None if exposure_T is None else float(np.mean(exposure_T > 0.0)),
        turnover=traded / float(np.mean(equity_T)) / years,
        executions=len(executions.symbol),
        round_trips=len(trips),
        win_rate=winners / len(trips) if trips else None,
        profit_factor=gains / losses if losses > 0.0 else None,
        payoff_ratio=(gains / winners) / (losses / losers) if winners and losers else None,
        mean_trip_days=(
            math.fsum(trip.closed_ns - trip.opened_ns for trip in trips) / len(trips) / 86_400e9 if trips else None
        ),
        fees=fees,
        fees_bps=fees / traded * 1e4 if traded > 0.0 else None,
    )


def sharpe_ratio(returns_T: Float, per_year: float) -> tuple[float | None, float | None]:
    """Return the annual Sharpe ratio of returns per close, and its standard error.

    The variance of the ratio per close is (1 - g3 SR + (g4 - 1) / 4 SR^2) / (T - 1), with g3 the skewness and
    g4 the kurtosis (3 for normal returns).
    """
    count = len(returns_T)
    spread = float(np.std(returns_T, ddof=1)) if count > 1 else 0.0
    if spread <= 1e-15:
        return None, None
    mean = float(np.mean(returns_T))
    ratio = mean / spread
    z_T = (returns_T - mean) / float(np.std(returns_T))
    skewness, kurtosis = _moments(z_T)
    variance = (1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio * ratio) / (count - 1)
    return ratio * math.sqrt(per_year), math.sqrt(max(variance, 0.0) * per_year)


def sortino_ratio(returns_T: Float, per_year: float) -> float | None:
    """Return the annual mean return over the downside deviation (root mean square of losses over all closes)."""
    downside = math.sqrt(float(np.mean(np.minimum(returns_T, 0.0) ** 2)))
    return float(np.mean(returns_T)) / downside * math.sqrt(per_year) if downside > 1e-15 else None


def shape_of(returns_T: Float) -> tuple[float | None, float | None]:
    """Return skewness and kurtosis (3 for normal returns) of returns, by moments without correction for bias."""
    spread = float(np.std(returns_T)) if len(returns_T) > 2 else 0.0
    if spread <= 1e-15:
        return None, None
    z_T = (returns_T - float(np.mean(returns_T))) / spread
    return _moments(z_T)


def _moments(z_T: Float) -> tuple[float, float]:
    """Return the third and fourth moment; by products, since NumPy's whole powers take thirty times as long."""
    squared_T = z_T * z_T
    return float(np.mean(squared_T * z_T)), float(np.mean(squared_T * squared_T))


def expected_shortfall(returns_T: Float, share: float = 0.05) -> float | None:
    """Return the mean of the worst `share` of returns (at least one); None below 1 / share returns.

    Source: Acerbi & Tasche (2002), "On the coherence of expected shortfall", by order statistics.
    """
    count = math.floor(len(returns_T) * share)
    return float(np.mean(np.partition(returns_T, count - 1)[:count])) if count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A run seen from a benchmark over the same closes. None where undefined.

    Args:
        correlation: Of returns per close.
        beta: Covariance with the benchmark's returns over their variance (Sharpe 1964).
        alpha: Annual mean return that beta does not explain, interest rate zero (Jensen 1968).
        excess_return: Total return less the benchmark's.
        information_ratio: Annual mean over standard deviation of the difference of returns (Goodwin 1998).
    """

    correlation: float | None
    beta: float | None
    alpha: float | None
    excess_return: float
    information_ratio: float | None


def relative(equity_T: Float, benchmark_T: Float, close_ns_T: Int) -> Relative:
    """Compare an equity curve with a benchmark's at the same closes.

    Raises:
        PerformanceError: Fewer than two closes, columns of different length, or equity that is not positive.
    """
    if len(equity_T) < 2 or not len(equity_T) == len(benchmark_T) == len(close_ns_T):
        raise PerformanceError(
            f"{len(equity_T)} equity points, {len(benchmark_T)} of the benchmark, {len(close_ns_T)} times: "
            "give columns of one length, at least two"
        )
    if not (equity_T > 0.0).all() or not (benchmark_T > 0.0).all():
        raise PerformanceError("equity is not positive throughout: returns are not defined")
    per_year = (len(equity_T) - 1) / (float(close_ns_T[-1] - close_ns_T[0]) / YEAR_NS)
    own_T, other_T = equity_T[1:] / equity_T[:-1] - 1.0, benchmark_T[1:] / benchmark_T[:-1] - 1.0
    centred_T, centred_other_T = own_T - np.mean(own_T), other_T - np.mean(other_T)
    own, other = float(np.mean(centred_T**2)), float(np.mean(centred_other_T**2))
    shared = float(np.mean(centred_T * centred_other_T))
    beta = shared / other if other > 1e-30 else None
    return Relative(
        correlation=shared / math.sqrt(own * other) if own > 1e-30 and other > 1e-30 else None,
        beta=beta,
        alpha=None if beta is None else (float(np.mean(own_T)) - beta * float(np.mean(other_T))) * per_year,
        excess_return=float(equity_T[-1] / equity_T[0] - benchmark_T[-1] / benchmark_T[0]),
        information_ratio=sharpe_ratio(own_T - other_T, per_year)[0],
    )


def drawdowns(equity_T: Float, close_ns_T: Int) -> tuple[float, int, int]:
    """Return the deepest fall from a peak, and the longest stretch from a peak to its recovery: closes and ns.

    A stretch that has not ended counts up to the last close.
    """
    peak_T = np.maximum.accumulate(equity_T)
    depth = float(np.max(1.0 - equity_T / peak_T))
    under_T = equity_T < peak_T
    edges = np.flatnonzero(under_T[1:] != under_T[:-1])  # the first close is its own peak
    if not len(edges):
        return depth, 0, 0
    # a stretch ends at the close that recovers; the last one may not have
    peaks, ends = edges[0::2], np.append(edges[1::2] + 1, len(equity_T) - 1)[: (len(edges) + 1) // 2]
    return depth, int((ends - peaks).max()), int((close_ns_T[ends] - close_ns_T[peaks]).max())


def round_trips(executions: Executions, splits: Sequence[Split] = ()) -> list[RoundTrip]:
    """Return every position that was opened and closed, in order of closing.

    An execution that turns a position closes one trip and opens the next, its fee shared by quantity. Profit is
    what the executions brought in cash, so a split in between changes nothing of it; dividends are not in it.
    """
    signed_qty, prices, fees = executions.signed_qty.tolist(), executions.price.tolist(), executions.fee.tolist()
    events: list[tuple[int, int, int]] = [(at, 1, n) for n, at in enumerate(executions.at_ns.tolist())]
    events += [(split.at_ns, 0, n) for n, split in enumerate(splits)]
    open_trips: dict[str, _OpenTrip] = {}
    closed: list[RoundTrip] = []
    # a split at the time of an execution comes first: it belongs to the bar's open
    for at_ns, kind, n in sorted(events):
        if kind == 0:
            trip = open_trips.get(splits[n].symbol)
            if trip is not None:
                trip.qty *= splits[n].ratio
                trip.largest *= splits[n].ratio
            continue
        symbol = executions.symbol[n]
        qty, price, fee = signed_qty[n], prices[n], fees[n]
        trip = open_trips.get(symbol)
        if trip is not None and trip.qty * qty < 0.0:
            part = min(1.0, abs(trip.qty / qty))
            if 1.0 - part < _DUST:
                part = 1.0
            trip.add(part * qty, price, part * fee)
            qty, fee = qty - part * qty, fee - part * fee
            if abs(trip.qty) <= _DUST * trip.largest:
                closed.append(RoundTrip(symbol, trip.cash, trip.opened_ns, at_ns))
                del open_trips[symbol]
        if qty != 0.0:
            open_trips.setdefault(symbol, _OpenTrip(at_ns)).add(qty, price, fee)
    return closed


def splits_of(series: Mapping[str, BarSeries]) -> list[Split]:
    """Return the splits that `adj_factor` of some symbols tells of, at the opens of their bars."""
    return [
        Split(symbol, int(one.open_ns[bar]), float(ratio))
        for symbol, one in series.items()
        for bar, ratio in split_ratios(one.adj_factor).items()
    ]


@dataclass(slots=True)
class _OpenTrip:
    """A position that is open: signed units, largest size so far, and cash that its executions brought."""

    opened_ns: int
    qty: float = 0.0
    largest: float = 0.0
    cash: float = 0.0

    def add(self, qty: float, price: float, fee: float) -> None:
        self.qty += qty
        self.largest = max(self.largest, abs(self.qty))
        self.cash -= qty * price + fee


def _cagr(growth: float, years: float) -> float | None:
    """Return compound annual growth; None where the year's figure exceeds any number (hours of data)."""
    exponent = math.log(growth) / years
    return math.expm1(exponent) if exponent < 700.0 else None


def _floats(column: _Column) -> Float:
    values = column.to_numpy()
    if values.dtype == np.float64:
        return values
    return np.array([float(value) for value in values], dtype=np.float64)


def _times(column: _Column) -> Int:
    return np.asarray(column.to_numpy()).astype("datetime64[ns]").astype(np.int64)
