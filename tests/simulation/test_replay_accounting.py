"""Replays of real bars against the environment's accounting face: two ways to the same account.

The replay's equity comes out of the matching engine by way of venue, desk and ledger; the accounting face is
given bars, quantities and exit levels alone and computes every price, fee, split and dividend again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from real_replays import CRYPTO, EQUITIES, STRATEGIES, TIGHT_EXITS, WIDE_LIMITS, Case, played

from agent.replay import ReplayResult, replay
from agent.settings import Settings, load
from brokers.calendar import calendar
from brokers.costs import is_split
from brokers.series import BarSeries, to_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from training.accounting import account_equity


def largest_difference(settings: Settings, series: dict[str, BarSeries], result: ReplayResult) -> float:
    """Return the largest relative difference of equity over all closes of the replay at which a bar closed.

    At a close of the calendar without any bar (a late opening, say) the account may hold what was filled at the open
    of that very instant: the accounting face, which knows bars alone, says nothing of it.
    """
    accounted = account_equity(series, result.trades, settings.exchange.initial_cash_usd, settings.costs.model())
    equity_ns = np.array([to_ns(at) for at in result.equity["close_time"]])
    known = np.isin(equity_ns, accounted.close_ns)
    assert known.mean() > 0.98
    place = np.searchsorted(accounted.close_ns, equity_ns[known])
    expected = np.array([float(value) for value in accounted.equity])[place]
    return float(np.abs(expected / result.equity["equity"].to_numpy()[known] - 1.0).max())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [CRYPTO, EQUITIES], ids=["crypto", "equities"])
def test_a_replay_and_the_accounting_face_agree_on_equity(
    case: Case, strategy: str, market_data: Path, tmp_path: Path, scale: Callable[[Any, Any], Any]
) -> None:
    settings, series, result = played(case, strategy, market_data, tmp_path, scale(None, 1_500))
    kinds = dict(result.trades.group_by("kind").len().iter_rows())
    print(f"{case.file} {strategy}: closes {result.equity.height}, trades {result.trades.height}, {kinds}")  # noqa: T201 - the numbers of docs/experiments.md
    assert result.trades.height > 0
    assert largest_difference(settings, series, result) <= 1e-9


@pytest.mark.slow
def test_random_trading_on_real_bars_meets_stops_partial_fills_and_splits(
    market_data: Path, tmp_path: Path, scale: Callable[[Any, Any], Any]
) -> None:
    _, series, result = played(EQUITIES, "random", market_data, tmp_path, scale(None, 4_500))
    by_order = result.trades.group_by("client_id").len()
    assert by_order.filter(pl.col("len") > 1).height > 0, "no order filled in parts"
    assert {"open", "stop", "limit"} <= set(result.trades["kind"])
    assert splits_held(series, result) > 0, "no split met a position"


def splits_held(series: dict[str, BarSeries], result: ReplayResult) -> int:
    """Count the splits that happened while their symbol was held."""
    count = 0
    for symbol, bars in series.items():
        decisions = result.decisions.filter(pl.col("symbol") == symbol)
        held = dict(zip(decisions["close_time"].dt.epoch("ns").to_list(), decisions["position"], strict=True))
        for index in range(1, len(bars)):
            if is_split(bars.adj_factor[index] / bars.adj_factor[index - 1]):
                count += int(held.get(int(bars.close_ns[index - 1]), 0) != 0)
    return count


def test_the_replay_of_a_synthetic_market_agrees_with_the_accounting_face() -> None:
    chosen = ["strategy.name=random", "strategy.params={flip_probability: 0.3}", "symbols=[A,B]"]
    settings = load(None, [*WIDE_LIMITS, *TIGHT_EXITS, *chosen])
    series = generate(SyntheticMarketSettings(symbols=("A", "B"), bars=400), calendar("24/7"))
    result = replay(settings, series)
    assert result.trades.height > 50
    assert largest_difference(settings, series, result) <= 1e-9


def test_a_replay_repeats_itself_exactly() -> None:
    settings = load(None, ["strategy.name=random", "symbols=[A]"])
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=300), calendar("24/7"))
    first, second = replay(settings, series), replay(settings, series)
    assert first.trades.height > 0
    assert first.trades.equals(second.trades)
    assert first.decisions.equals(second.decisions)


def test_a_position_held_across_an_uneven_split_closes_to_nothing_and_can_be_entered_again() -> None:
    settings = load(
        None, [*WIDE_LIMITS, "strategy.name=random", "strategy.params={flip_probability: 0.3}", "symbols=[A]"]
    )
    bars = generate(SyntheticMarketSettings(symbols=("A",), bars=300), calendar("24/7"))["A"]
    after = np.arange(len(bars)) >= 144
    ratio = 1 / 3.000007  # as a vendor's rounded factors give it
    prices = {name: np.where(after, getattr(bars, name) / ratio, getattr(bars, name)) for name in PRICES}
    series = {"A": replace(bars, **prices, adj_factor=np.where(after, ratio, 1.0))}
    result = replay(settings, series)
    held = result.decisions["held_qty"].to_numpy()
    assert held[143] > 0, "the seed no longer holds a position over the split"
    assert held[144] == pytest.approx(held[143] * ratio, abs=1e-9)
    flat = np.flatnonzero((held == 0.0) & after[: len(held)])
    assert len(flat) > 5, "the position never became exactly flat after the split"
    assert (np.diff(held[flat[0] :]) > 0).any(), "nothing was bought again"
    assert largest_difference(settings, series, result) <= 1e-9


PRICES = ("open", "high", "low", "close")
