"""The daemon on recorded bars, and the exchange that it trades on, killed at random instants and started again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from crash_kit import differences
from kill_kit import SUBMIT_DELAY_S, Kills, Market, Outcome, killed_run, outcome, stage, venue_part

SEED = 20230310
Scale = Callable[[int, int], int]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def market(market_data: Path, scale: Scale) -> Market:
    bars = market_data / "binance_eth_btc_usdt_5m.parquet"
    return Market(bars, datetime(2023, 3, 10, tzinfo=UTC), closes=scale(480, 40))


@pytest.fixture(scope="module")
def uninterrupted(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with stage(tmp_path_factory.mktemp("base") / "stage", market) as played:
        played.start_daemon()
        played.finish_daemon()
        return outcome(played)


def test_the_scenario_has_entries_closes_stops_take_profits_and_partial_fills(uninterrupted: Outcome) -> None:
    legs = uninterrupted.ledger["fill legs"]
    assert {"entry", "close", "stop", "take_profit"} <= set(legs)
    orders_filled = {row[0] for row in uninterrupted.ledger["fills"]}
    assert len(legs) > len(orders_filled)
    assert not differences(venue_part(uninterrupted.ledger), uninterrupted.books)
    assert uninterrupted.ledger["incidents"] == []


@pytest.mark.parametrize("who", ["daemon", "exchange", "both"])
def test_a_run_with_kills_ends_as_one_without(
    who: str, market: Market, uninterrupted: Outcome, scale: Scale, tmp_path: Path
) -> None:
    kills = scale(50, 6 if who == "daemon" else 4)
    in_submit_window = scale(10, 1)
    with stage(tmp_path / "stage", market, SUBMIT_DELAY_S) as played:
        report = killed_run(played, SEED, kills, who=who)
        got = outcome(played)
    sys.stdout.write(f"\nkilling {who}, seed {SEED}, {market.closes} closes: {report}\n")
    _agree(uninterrupted, got, report, who)
    assert report.windows.total() == kills
    assert report.in_submit_window >= in_submit_window, f"seed {SEED}: {report}"


def _agree(uninterrupted: Outcome, got: Outcome, report: Kills, who: str) -> None:
    told = f"killing {who}, seed {SEED}: {report}"
    assert differences(uninterrupted.ledger, got.ledger) == [], told
    assert differences(uninterrupted.books, got.books) == [], told
    assert differences(venue_part(got.ledger), got.books) == [], told
    assert report.problems == [], told
