"""Replays of real bars against the environment's accounting face: two ways to the same account.

The replay's equity comes out of the matching engine by way of venue, desk and ledger; the accounting face is
given bars, quantities and exit levels alone and computes every price, fee, split and dividend again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from agent.replay import ReplayResult, replay
from agent.settings import Settings, load
from brokers.bars import load_bars
from brokers.calendar import calendar
from brokers.costs import is_split
from brokers.series import BarSeries, to_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from training.accounting import account_equity
from training.data import load_market
from training.dqn.pipeline import train_policy
from training.settings import load_training

LOW_COSTS = ("costs.fee_bps=1", "costs.half_spread_bps=0.5", "costs.impact=0.1")
"""At the default costs a policy that is trained on these bars learns not to trade, and tests nothing here."""
WIDE_LIMITS = ("risk.drawdown_fraction=1", "risk.daily_loss_fraction=1", "risk.orders_per_hour=1000")
TIGHT_EXITS = ("exits.stop_volatility=1.5", "exits.take_profit_volatility=2.5")


@dataclass(frozen=True, slots=True)
class Case:
    file: str
    settings: tuple[str, ...]
    train_end: str


CRYPTO = Case(
    file="binance_eth_btc_usdt_5m.parquet",
    settings=("symbols=[BTCUSDT,ETHUSDT]", "exchange.start=2023-01-01T00:00:00Z", "exchange.end=2023-02-01T00:00:00Z"),
    train_end="2023-04-01T00:00:00Z",
)
EQUITIES = Case(
    file="us_equity_1h.parquet",
    settings=("period=1h", "calendar=XNYS", "asset_class=us_equity", "exchange.start=1998-09-01T00:00:00Z"),
    train_end="2004-01-01T00:00:00Z",
)
STRATEGIES = ("random", "momentum", "dqn")


def played(
    case: Case, strategy: str, market_data: Path, tmp_path: Path, closes: int | None
) -> tuple[Settings, dict[str, BarSeries], ReplayResult]:
    overrides = [*case.settings, *WIDE_LIMITS, *TIGHT_EXITS, f"strategy.name={strategy}"]
    if strategy == "dqn":
        overrides += [*LOW_COSTS, f"strategy.bundle={policy(case, market_data, tmp_path)}"]
    if strategy == "random":
        overrides.append("strategy.params={flip_probability: 0.2}")
    if closes is not None:
        overrides.append(f"daemon.max_bars={closes}")
    settings = load(None, overrides)
    series = load_bars(
        market_data / case.file,
        period=settings.bar_period,
        calendar=calendar(settings.calendar),
        symbols=settings.symbols or None,
        end=settings.exchange.end,
    )
    return settings, series, replay(settings, series)


def policy(case: Case, market_data: Path, tmp_path: Path) -> Path:
    """Train a small policy on the case's bars; how good it is does not matter here, only that it decides."""
    given = [text for text in case.settings if text.startswith(("symbols", "period", "calendar"))]
    configuration = load_training(None, [*given, *LOW_COSTS, "training.timesteps=3000"])
    market = load_market(configuration, bars=market_data / case.file, end=datetime.fromisoformat(case.train_end))
    folder = tmp_path / "bundle"
    train_policy(configuration, market, folder)
    return folder


def largest_difference(settings: Settings, series: dict[str, BarSeries], result: ReplayResult) -> float:
    """Return the largest relative difference of equity over all closes of the replay."""
    accounted = account_equity(series, result.trades, settings.exchange.initial_cash_usd, settings.costs.model())
    at_ns = np.array([to_ns(at) for at in result.equity["close_time"]])
    # a close of the calendar at which no symbol has a bar (a late open, say) has the equity of the one before
    place = np.searchsorted(accounted.close_ns, at_ns, side="right") - 1
    expected = np.array([float(value) for value in accounted.equity])[place]
    return float(np.abs(expected / result.equity["equity"].to_numpy() - 1.0).max())


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
