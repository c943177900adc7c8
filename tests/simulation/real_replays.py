"""Replays of recorded bars that several proofs share: which bars, which settings, which strategies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.replay import ReplayResult, replay
from agent.settings import Settings, load
from brokers.bars import load_bars
from brokers.calendar import calendar
from brokers.series import BarSeries
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
    configuration = load_training(None, [*given, *LOW_COSTS, "training.preset=reference", "training.timesteps=3000"])
    market = load_market(configuration, bars=market_data / case.file, end=datetime.fromisoformat(case.train_end))
    folder = tmp_path / "bundle"
    train_policy(configuration, market, folder)
    return folder
