"""Every point at which the daemon can die, one by one and in storms, and every lie that a wire can tell.

The final ledger must be that of a run which nobody interrupted, to the last column.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from crash_kit import HISTORY_BARS, Tap, World, Worlds, differences, settings, walk

BARS = HISTORY_BARS + 36
SPLIT_BAR = HISTORY_BARS + 20
Scale = Callable[[int, int], int]


class Scenario:
    """Worlds of one kind, and how the one ended in which nothing went wrong."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds = worlds
        world = worlds.new()
        self.tap = world.play()
        self.ledger = world.ledger()
        self.books = world.books()
        self.problems = world.problems

    def after(self, tap: Tap, *, without: tuple[str, ...] = ()) -> tuple[list[str], World]:
        """Play another world through a tap; returns what differs from the undisturbed one."""
        world = self.worlds.new()
        world.play(tap)
        ledger, expected = world.ledger(), self.ledger
        for name in without:
            ledger.pop(name)
        found = differences({k: v for k, v in expected.items() if k not in without}, ledger)
        found += differences(self.books, world.books()) + world.problems
        self.worlds.drop(world)
        return found, world


def _native(folder: Path) -> Worlds:
    return Worlds(folder, settings(), {symbol: walk(symbol, BARS, 1) for symbol in "AB"})


def _exits_armed_locally(folder: Path) -> Worlds:
    chosen = settings("exchange.rule_set=alpaca", "strategy.shorts=false")
    return Worlds(folder, chosen, {symbol: walk(symbol, BARS, 1) for symbol in "AB"})


def _split_while_holding(folder: Path, ratio: float = 4.0) -> Worlds:
    chosen = settings(
        "symbols=[A]",
        "exits.stop_volatility=4",
        "exits.take_profit_volatility=4",
        "strategy.params={flip_probability: 0.1, seed: 3}",
    )
    return Worlds(folder, chosen, {"A": walk("A", BARS, 1, split_at=SPLIT_BAR, ratio=ratio)})


SCENARIOS: Mapping[str, Callable[[Path], Worlds]] = {
    "native": _native,
    "exits armed locally": _exits_armed_locally,
    "split while holding": _split_while_holding,
}


@pytest.fixture(scope="module", params=list(SCENARIOS))
def scenario(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return Scenario(SCENARIOS[request.param](tmp_path_factory.mktemp("worlds")))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return Scenario(_native(tmp_path_factory.mktemp("native")))


def test_ledger_and_books_of_an_undisturbed_run_agree(scenario: Scenario) -> None:
    both = {key: scenario.ledger[key] for key in ("orders", "fills")}
    assert differences(both, {key: scenario.books[key] for key in both}) == []
    assert scenario.problems == []
    assert scenario.ledger["incidents"] == []


def test_the_native_scenario_holds_every_kind_of_fill(native: Scenario) -> None:
    assert {"entry", "close", "stop", "take_profit"} <= set(native.ledger["fill legs"])


def test_a_run_that_crashes_again_and_again_ends_as_one_that_does_not(native: Scenario) -> None:
    found, world = native.after(Tap(every=151))
    assert found == []
    assert world.lives > 5


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "and again while it recovers"])
def test_a_crash_at_any_point_changes_nothing(scenario: Scenario, again: bool, scale: Scale) -> None:  # noqa: FBT001 - a parameter of the test
    stride = scale(2, 120)
    for number in range(1 + again, scenario.tap.count + 1, stride):
        crashes = frozenset([number, number + 1 + number % 15] if again else [number])
        found, _ = scenario.after(Tap(crash_at=crashes))
        assert found == [], f"crashed at points {sorted(crashes)}: {scenario.tap.labels[number - 1]}"


@pytest.mark.slow
def test_storms_of_crashes_change_nothing(scenario: Scenario, scale: Scale) -> None:
    for every in range(60, 140, scale(1, 20)):
        found, _ = scenario.after(Tap(every=every))
        assert found == [], f"crashed at every {every}th point of a life"


@pytest.mark.slow
def test_a_wire_that_lies_about_orders_changes_nothing(scenario: Scenario, scale: Scale) -> None:
    for seed in range(scale(150, 6)):
        found, world = scenario.after(_lies(seed), without=("incidents",))
        assert found == [], f"seed {seed}, {world.lives} lives"


def _lies(seed: int) -> Tap:
    """Return a wire on which orders and look-ups go wrong, perhaps other questions too, perhaps with crashes."""
    draws = random.Random(seed)
    probability = draws.choice([0.1, 0.3, 0.6])
    lies: dict[str, list[str]] = {
        "submit": ["lost", "unanswered", "limited"],
        "cancel": ["lost", "unanswered"],
        "order": ["silent"],
    }
    if seed % 2:
        lies |= {name: ["silent"] for name in ("fills", "positions", "open_orders", "account", "bars")}
    often = ("submit", "cancel", "order")
    faults = {
        name: _fault(f"{seed} {name}", kinds, probability if name in often else probability / 20)
        for name, kinds in lies.items()
    }
    return Tap(every=draws.choice([None, None, 77, 131]), faults=faults)


def _fault(key: str, kinds: list[str], probability: float) -> Callable[[int], str | None]:
    draws = random.Random(key)

    def fault(_number: int) -> str | None:
        return draws.choice(kinds) if draws.random() < probability else None

    return fault


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [4.0, 1.5, 1 / 3])
def test_a_split_while_holding_keeps_venue_exits_and_count_in_step(ratio: float, tmp_path: Path) -> None:
    undisturbed = Scenario(_split_while_holding(tmp_path, ratio))
    labels = undisturbed.tap.labels
    assert float(undisturbed.ledger["state"]["split:A"]["ratio"]) == pytest.approx(ratio)
    at_split = [n for n in range(len(labels)) if labels[n] == "after advance"][2 * (SPLIT_BAR - HISTORY_BARS)]
    for number in range(at_split - 2, at_split + 30, 4):
        found, _ = undisturbed.after(Tap(crash_at=frozenset([number])))
        assert found == [], f"crashed at point {number}: {labels[number - 1]}"
