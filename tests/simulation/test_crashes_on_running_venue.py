"""Crashes on a venue whose time does not wait: whatever happened meanwhile is found, booked once and protected."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from crash_kit import HISTORY_BARS, PERIOD, Tap, World, Worlds, differences, settings, walk
from running_kit import TappedRunningClock

Scale = Callable[[int, int], int]


@pytest.fixture(params=["native", "alpaca"])
def worlds(request: pytest.FixtureRequest, tmp_path: Path) -> Worlds:
    """Exits at the venue, and exits that only the daemon watches."""
    shorts = str(request.param == "native").lower()
    chosen = settings(
        f"exchange.rule_set={request.param}",
        f"strategy.shorts={shorts}",
        "exits.stop_volatility=1.5",
        "daemon.sync_interval_s=20",
    )
    return Worlds(tmp_path, chosen, {symbol: walk(symbol, HISTORY_BARS + 40, 1) for symbol in "AB"})


def play(worlds: Worlds, seed: int) -> tuple[World, Tap]:
    """Play a world through crashes and pauses that a seed draws."""
    draws = random.Random(seed)
    world = worlds.new()
    world.make_clock = TappedRunningClock

    def pause() -> None:
        gap = draws.choice([timedelta(0), timedelta(seconds=4), timedelta(seconds=40), draws.random() * 2 * PERIOD])
        world.engine.run_until(world.engine.now + gap)

    world.while_dead = pause
    return world, world.play(Tap(every=draws.randrange(50, 300)))


@pytest.mark.slow
def test_ledger_and_venue_agree_after_any_crashes_and_pauses(worlds: Worlds, scale: Scale) -> None:
    for seed in range(scale(60, 4)):
        world, tap = play(worlds, seed)
        ledger, books = world.ledger(), world.books()
        told = f"seed {seed}, {len(tap.crashes)} crashes"
        held = {symbol: row[0] for symbol, row in ledger["positions"].items() if row[0] != "0"}
        both = {"orders": ledger["orders"], "fills": ledger["fills"], "positions": held}
        assert differences(both, books) == [], told
        assert world.problems == [], told
        kinds = {match for row in ledger["incidents"] for match in re.findall(r"'kind': '(\w+)'", row)}
        assert kinds <= {"missed_closes", "missed_job"}, f"{told}: {ledger['incidents']}"
        worlds.drop(world)
