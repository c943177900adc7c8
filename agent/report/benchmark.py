"""Buy and hold on the run's own bars: the same start, the same money, the same costs, and no further decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brokers.costs import CostModel, dividend_per_unit, is_split, reference_before, split_ratio
from brokers.domain import Side
from brokers.series import BarSeries, Float, Int
from strategies.performance import Executions

_ROUNDS_MAX = 50
"""Rounds in which quantity and its own size impact are brought together; a few are enough."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Equity and exposure (position value over equity) at the run's closes (axis T), and the purchases."""

    equity_T: Float
    exposure_T: Float
    executions: Executions


def buy_and_hold(bars: Mapping[str, BarSeries], costs: CostModel, close_ns_T: Int, capital: float) -> Benchmark:
    """Hold an equal share of the money in every symbol from the run's first close on.

    Each symbol is bought once, at the open that a decision of the first close would have had (`latency_bars`), with
    spread, size impact and fee inside its share; quantities are fractional. A symbol without a bar then is bought at
    its first open, until when its share stays in cash. Splits change the quantity, dividends stay in cash, and
    nothing is sold: the last close is a mark, as it is for a position that the run still holds.

    Args:
        bars: Not adjusted, with the bar of the first close where there is one.
        costs: The run's.
        close_ns_T: The run's closes.
        capital: Equity at the first of them.
    """
    share = capital / len(bars)
    parts = [_one(series, costs, close_ns_T, share) for series in bars.values()]
    equity_T = np.sum([equity for equity, _, _ in parts], axis=0)
    held_T = np.sum([held for _, held, _ in parts], axis=0)
    bought = [purchase for _, _, purchase in parts if purchase is not None]
    return Benchmark(
        equity_T=equity_T,
        exposure_T=held_T / equity_T,
        executions=Executions(
            symbol=[one[0] for one in bought],
            signed_qty=np.array([one[1] for one in bought]),
            price=np.array([one[2] for one in bought]),
            fee=np.array([one[3] for one in bought]),
            at_ns=np.array([one[4] for one in bought], dtype=np.int64),
        ),
    )


_Purchase = tuple[str, float, float, float, int]


def _one(series: BarSeries, costs: CostModel, close_ns_T: Int, share: float) -> tuple[Float, Float, _Purchase | None]:
    """Return what one symbol's share is worth at every close, how much of it is in the position, the purchase."""
    first = int(series.open_ns.searchsorted(close_ns_T[0])) + costs.latency_bars - 1
    if first >= len(series):
        return np.full(len(close_ns_T), share), np.zeros(len(close_ns_T)), None
    qty, price = _affordable(series, costs, first, share)
    fee_rate = costs.fee_bps * 1e-4
    qty_K = np.full(len(series) - first, qty)
    cash_K = np.zeros(len(series) - first)
    factor = series.adj_factor
    for before in (np.flatnonzero(np.diff(factor[first:])) + first).tolist():
        ratio = float(factor[before + 1]) / float(factor[before])
        held = before + 1 - first
        if is_split(ratio):
            qty_K[held:] *= float(split_ratio(ratio))
        else:
            cash_K[held:] += qty_K[held] * float(dividend_per_unit(float(series.close[before]), ratio))
    held_K = qty_K * series.close[first:]
    # a close without a bar of this symbol keeps the last mark
    seen_T = series.close_ns[first:].searchsorted(close_ns_T, side="right") - 1
    bought_T, at_T = seen_T >= 0, np.maximum(seen_T, 0)
    equity_T: Float = np.where(bought_T, (held_K + cash_K)[at_T], share)
    held_T: Float = np.where(bought_T, held_K[at_T], 0.0)
    purchase = (series.symbol, qty, price, qty * price * fee_rate, int(series.open_ns[first]))
    return equity_T, held_T, purchase


def _affordable(series: BarSeries, costs: CostModel, index: int, share: float) -> tuple[float, float]:
    """Return the quantity that a share pays for with all costs, and the price it is bought at."""
    opened = float(series.open[index])
    reference = reference_before(series, index)
    qty = share / opened
    price = opened
    for _ in range(_ROUNDS_MAX):
        price = float(costs.taking_price(opened, Side.BUY, qty, reference))
        before, qty = qty, share / (price * (1.0 + costs.fee_bps * 1e-4))
        if abs(qty - before) <= 1e-12 * qty:
            break
    return qty, price
