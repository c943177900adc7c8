"""Runs to report on: a real replay with hostile names, the same with two minds, and one as long as a year and more."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from tandem_cli import replay_settings

from agent.ledger.store import open_ledger
from agent.logs import configure
from agent.replay import replay
from agent.report import IncidentRow, ReportData, from_ledger
from agent.settings import Settings
from brokers.costs import CostModel
from brokers.series import BarSeries
from brokers.simulated.synthetic import SyntheticMarketSettings, generate

HOSTILE = "<script>alert('x')</script>&\"\u2028{{data}}"
"""A symbol's name that would end a tag, a string, a data block or a template, if anything let it."""
MINUTE_NS = 60 * 10**9


def a_run(
    folder: Path,
    *,
    symbols: tuple[str, ...] = (HOSTILE, "BBB"),
    bars: int = 700,
    settings: Settings | None = None,
) -> ReportData:
    """Return the report's data of a restless replay of the synthetic market."""
    ledger = replayed_into(folder, symbols=symbols, bars=bars, settings=settings)
    opened = open_ledger(ledger, create=False)
    try:
        return from_ledger(opened)
    finally:
        opened.close()


def replayed_into(
    folder: Path, *, symbols: tuple[str, ...] = ("AAA", "BBB"), bars: int = 500, settings: Settings | None = None
) -> str:
    """Replay into a ledger file and return its URL."""
    configure(level="critical")
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    series = generate(SyntheticMarketSettings(symbols=symbols, bars=bars, start=datetime(2024, 1, 30, tzinfo=UTC)))
    replay(settings or replay_settings(), series, ledger_url=url)
    return url


def with_two_minds(data: ReportData) -> ReportData:
    """Return the same run as if two minds had been asked, one of which often abstains."""
    votes = []
    for index, target in enumerate(data.decisions["target"].to_list()):
        other = {"abstained": "llm_timeout"} if index % 5 == 0 else {"target": target if index % 3 else 0, "q": {}}
        own = {"target": target, "q": {"0": 0.0, "1": 0.1}}
        votes.append(json.dumps({"fused": own, "dqn": own, "llm": other, "gate": {"refused": "halted"}}))
    incidents = [
        IncidentRow(datetime(2024, 2, 1, tzinfo=UTC), "late_fill", HOSTILE, "<img src=x onerror=alert(1)>"),
        IncidentRow(datetime(2024, 2, 2, tzinfo=UTC), "halt", None, "by hand"),
    ]
    return replace(data, decisions=data.decisions.with_columns(pl.Series("votes", votes)), incidents=incidents)


def long_run(rows: int = 262_046, executions: int = 30_000) -> ReportData:
    """Return a run of so many decisions on two symbols of 5-minute bars, as random as prices, with one spike."""
    rng = np.random.default_rng(3)
    closes = rows // 2
    start_ns = 1_672_531_200 * 10**9 + np.arange(closes, dtype=np.int64) * 5 * MINUTE_NS
    close_ns = start_ns + 5 * MINUTE_NS
    times = pl.Series("close_time", close_ns).cast(pl.Datetime("ns", "UTC")).cast(pl.Datetime("us", "UTC"))
    equity = 100_000.0 * np.exp(np.cumsum(rng.normal(0.0, 4e-4, closes)))
    equity[closes // 3] *= 1.5  # one close alone
    exposure = np.repeat(rng.choice([0.0, 0.45, 0.9], -(-closes // 12)), 12)[:closes]
    bars: dict[str, BarSeries] = {}
    for symbol in ("ETHUSDT", "BTCUSDT"):
        close = 1_500.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-3, closes)))
        opened = np.concatenate(([close[0]], close[:-1]))
        high, low = np.maximum(opened, close) * 1.0005, np.minimum(opened, close) * 0.9995
        volume, factor = np.full(closes, 500.0), np.ones(closes)
        bars[symbol] = BarSeries(symbol, start_ns, close_ns, start_ns, opened, high, low, close, volume, factor)
    position = np.where(exposure > 0.0, 1, 0)
    decisions = pl.concat(
        pl.DataFrame(
            {
                "close_time": times,
                "symbol": [symbol] * closes,
                "action": ["HOLD"] * closes,
                "target": position,
                "position_before": position,
                "reason": ["policy_greedy"] * closes,
                "outcome": ["target_held"] * closes,
                "votes": ['{"dqn":{"target":1},"llm":{"abstained":"llm_timeout"}}'] * closes,
            }
        )
        for symbol in bars
    )
    at = np.sort(rng.choice(closes, executions, replace=False))
    trades = pl.DataFrame(
        {
            "symbol": rng.choice(list(bars), executions),
            "side": np.where(np.arange(executions) % 2, "sell", "buy"),
            "qty": np.full(executions, 2.0),
            "price": bars["ETHUSDT"].close[at],
            "fee": np.full(executions, 3.0),
            "filled_at": times.gather(at),
            "kind": ["open"] * executions,
            "leg": rng.choice(["entry", "close", "stop", "take_profit"], executions),
            "exec_id": [f"{n:012d}" for n in range(executions)],
            "decision_price": bars["ETHUSDT"].close[at],
            "quote_price": bars["ETHUSDT"].close[at] * 1.0001,
            "predicted_fraction": np.full(executions, 0.0013),
            "realised_fraction": np.full(executions, 0.0012),
        }
    )
    begin = datetime(2023, 1, 1, tzinfo=UTC)
    return ReportData(
        strategy="dqn",
        symbols=tuple(bars),
        equity=pl.DataFrame({"close_time": times, "equity": equity, "gross_exposure": exposure}),
        decisions=decisions,
        executions=trades,
        bars=bars,
        costs=CostModel(),
        predictions=None,
        incidents=[
            IncidentRow(begin + timedelta(hours=n), "stale_bar", "ETHUSDT", "a bar came late") for n in range(3_000)
        ],
        facts=[("program version", "0.1.0")],
        source="a made-up run",
    )
