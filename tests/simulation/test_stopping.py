"""SIGTERM at random instants, also while the venue hangs: an orderly end within five seconds."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from kill_kit import Market, Stage, stage

SEED = 7
STOP_S_MAX = 5.0
Scale = Callable[[int, int], int]

pytestmark = pytest.mark.slow


@pytest.fixture
def market(market_data: Path) -> Market:
    bars = market_data / "binance_eth_btc_usdt_5m.parquet"
    return Market(bars, datetime(2023, 3, 10, tzinfo=UTC), closes=5_000)


def stop(played: Stage) -> float:
    """Send SIGTERM; returns the seconds until the process was gone."""
    assert played.daemon is not None
    began = time.monotonic()
    played.daemon.send_signal(signal.SIGTERM)
    code = played.daemon.wait(30)
    took_s = time.monotonic() - began
    assert code == 0, played.daemon_log()[-3000:]
    played.kill_daemon()
    return took_s


def wait_ready(played: Stage) -> None:
    deadline = time.monotonic() + 60
    while not played.is_ready():
        assert time.monotonic() < deadline, played.daemon_log()[-3000:]
        time.sleep(0.01)


def ended(played: Stage) -> tuple[str | None, str | None]:
    """Return when and why the newest run ended, as the ledger has it."""
    when, why = played.ask("select ended_at, end_reason from runs order by run_id desc limit 1")[0]
    return when, why


def test_sigterm_ends_the_daemon_and_leaves_exits_standing(market: Market, scale: Scale, tmp_path: Path) -> None:
    draws = random.Random(SEED)
    with stage(tmp_path / "stage", market, answer_delay_s=0.02) as played:
        for _ in range(scale(15, 3)):
            played.start_daemon()
            wait_ready(played)
            time.sleep(draws.uniform(0.0, 2.0))
            assert stop(played) < STOP_S_MAX, f"seed {SEED}"
            assert ended(played)[0] is not None
            assert ended(played)[1] == "signal"
            assert played.recovery_problems() == [], f"seed {SEED}"
            _exits_stand(played)


def _exits_stand(played: Stage) -> None:
    """Check that what the ledger calls protected at the venue is protected there."""
    books = played.books()
    for (symbol,) in played.ask("select symbol from exits where mode = 'venue'"):
        held = abs(Decimal(books["positions"].get(symbol, "0")))
        stops = [o for o in books["orders"] if o["symbol"] == symbol and o["leg"] == "stop"]
        working = [o for o in stops if o["status"] in ("new", "accepted", "partially_filled")]
        assert sum((Decimal(o["qty"]) - Decimal(o["filled_qty"]) for o in working), Decimal(0)) >= held


def test_sigterm_ends_the_daemon_while_the_venue_hangs(market: Market, scale: Scale, tmp_path: Path) -> None:
    draws = random.Random(SEED)
    with stage(tmp_path / "stage", market) as played:
        for _ in range(scale(8, 2)):
            played.start_daemon()
            wait_ready(played)
            time.sleep(draws.uniform(0.0, 1.0))
            assert played.exchange is not None
            played.exchange.send_signal(signal.SIGSTOP)  # it accepts connections and never answers
            try:
                time.sleep(draws.uniform(0.05, 1.0))
                assert stop(played) < STOP_S_MAX, f"seed {SEED}"
            finally:
                played.exchange.send_signal(signal.SIGCONT)
            assert ended(played)[1] == "signal"
            assert played.recovery_problems() == [], f"seed {SEED}"


def test_sigterm_ends_a_daemon_whose_venue_has_never_answered(market: Market, tmp_path: Path) -> None:
    with stage(tmp_path / "stage", market) as played:
        assert played.exchange is not None
        played.exchange.send_signal(signal.SIGSTOP)
        try:
            played.start_daemon()
            deadline = time.monotonic() + 30
            while not played.ledger.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(1.0)
            assert stop(played) < STOP_S_MAX
        finally:
            played.exchange.send_signal(signal.SIGCONT)
        assert played.ask("select count(*) from runs") == [(0,)]
