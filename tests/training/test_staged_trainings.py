"""Trainings broken on purpose: the doctor must see what is wrong and rank the true cause first or second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_learner import Tiny, paying, settings_of, small_world, tables, train

from training.dqn.doctor import Doctor, Finding, judge
from training.dqn.history import Record, validated
from training.dqn.run_facts import Facts, run_facts
from training.market import MarketTable
from training.markets.martingale import Martingale
from training.markets.predictor import Predictor

BARS, OTHER_BARS = 8_000, 6_000
Tables = tuple[MarketTable, MarketTable]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def facts_of(table: MarketTable, validation: MarketTable, tiny: Tiny) -> Facts:
    if tiny.broken_features:
        observations = table.observations_TG.copy()
        observations[:, : int(np.ceil(tiny.broken_features * table.n_features))] = 3.0
        table = replace(table, observations_TG=observations)
    return run_facts(
        {"training": settings_of(tiny)},
        table,
        [f"column {i}" for i in range(table.n_features)],
        reward_scale=tiny.reward_factor / float(table.reward_TPN[table.start_rows, 2, 2].std()),
        planned_updates=tiny.updates,
        validation_bars=len(validation.start_rows),
        parameters=sum(weights.numel() for weights in torch.nn.Linear(table.n_features, 32).parameters()),
    )


def run(tiny: Tiny, made: Tables) -> tuple[list[Record], Facts]:
    return [validated(record) for record in train(*made, tiny)], facts_of(*made, tiny)


@cache
def usual() -> Tables:
    return tables(small_world(), BARS, OTHER_BARS)


def costly() -> Tables:
    return tables(small_world().model_copy(update={"cost_bps": 500.0}), BARS, OTHER_BARS)


def few() -> Tables:
    return tables(small_world(), 200, OTHER_BARS)


def some() -> Tables:
    return tables(small_world(), 1_000, OTHER_BARS)


def nothing() -> Tables:
    return tables(Martingale(shorts=False), BARS, OTHER_BARS)


def slow_signal() -> Tables:
    world = small_world().model_copy(update={"cost_bps": 40.0, "half_life": 20.0})
    return tables(world, BARS, OTHER_BARS)


def returns(table: MarketTable) -> np.ndarray:
    return np.nan_to_num(table.reward_TPN[:, 1, 2])


def one_bad_tick() -> Tables:
    train_table, other = usual()
    grow_T = returns(train_table)
    grow_T[len(grow_T) // 2] = 3.0
    return paying(train_table, grow_T, side=0.001), other


def rare_gains() -> Tables:
    rng = np.random.default_rng(0)
    train_table, other = usual()
    jumps = [np.where(rng.random(len(table)) < 0.04, 0.10, -0.002) for table in (train_table, other)]
    return paying(train_table, jumps[0], side=0.001), paying(other, jumps[1], side=0.001)


@dataclass(frozen=True)
class Staged:
    symptom: str
    cause: str
    tiny: Tiny
    made: Callable[[], Tables] = usual

    def __str__(self) -> str:
        return f"{self.symptom}-{self.cause}"


GOOD = Tiny()
WILD = replace(
    GOOD, learning_rate=0.5, tau=1.0, double=False, gamma=0.9999, huber_delta=1e9, max_grad_norm=1e9,
    hidden=(64, 64), seed=2,
)  # fmt: skip
RUNAWAY = replace(
    GOOD, learning_rate=0.03, tau=1.0, double=False, gamma=0.9999, huber_delta=1e9, max_grad_norm=1e9,
    hidden=(64, 64, 64), seed=3, weight_decay=0.0,
)  # fmt: skip
FAST_RATE = replace(GOOD, learning_rate=2.0)
LONG_SIGHT = replace(GOOD, gamma=0.9999, tau=1.0, double=False)
MEMORY = replace(GOOD, weight_decay=0.0, hidden=(64, 64))
HELD = replace(GOOD, weight_decay=100.0)
DEAD = replace(GOOD, bias=-20.0)
BROKEN = replace(GOOD, broken_features=1.0)
UNEXPLORED = replace(GOOD, replay="transitions", exploration_final_eps=0.0, flat_bonus=5.0)
MEDIAN = replace(GOOD, huber_delta=0.05)

STAGED = [
    Staged("not_finite", "learning_rate_high", replace(GOOD, learning_rate=1e20, huber_delta=1e9)),
    Staged("q_beyond_bound", "gamma_high", RUNAWAY),
    Staged("q_beyond_bound", "target_fast", RUNAWAY),
    Staged("q_beyond_bound", "reward_scale", replace(GOOD, reward_factor=0.001)),
    Staged("wrong_way", "reward_sign", replace(GOOD, sign=-1.0)),
    Staged("loss_spike", "learning_rate_high", WILD),
    Staged("loss_spike", "outliers", replace(GOOD, huber_delta=1e9, max_grad_norm=1e9, batch_size=16), one_bad_tick),
    Staged("gradient_explodes", "learning_rate_high", WILD),
    Staged("q_unsettled", "gamma_high", LONG_SIGHT),
    Staged("td_large", "reward_scale", replace(GOOD, reward_factor=1000.0)),
    Staged("td_small", "few_bars", MEMORY, few),
    Staged("td_small", "reward_scale", replace(GOOD, reward_factor=0.001)),
    Staged("td_tails", "huber_small", MEDIAN, rare_gains),
    Staged("td_tails", "heavy_rewards", replace(GOOD, huber_delta=50.0), rare_gains),
    Staged("target_slow", "target_slow", replace(GOOD, tau=1e-5)),
    Staged("target_none", "target_fast", LONG_SIGHT),
    Staged("always_clipped", "clipped_hard", replace(GOOD, max_grad_norm=0.001)),
    Staged("dead_units", "learning_rate_high", FAST_RATE),
    Staged("dead_units", "start_dead", DEAD),
    Staged("dead_units", "inputs", BROKEN),
    Staged("collapse", "cost_high", GOOD, costly),
    Staged("collapse", "unexplored", UNEXPLORED),
    Staged("collapse", "held_at_zero", HELD),
    Staged("collapse", "learning_rate_high", FAST_RATE),
    Staged("collapse", "huber_small", MEDIAN, rare_gains),
    Staged("flips", "inputs", BROKEN),
    Staged("overfit", "few_bars", MEMORY, few),
    Staged("crash", "few_bars", replace(MEMORY, learning_rate=5e-3), some),
    Staged("overtrades", "gamma_low", replace(GOOD, gamma=0.0, cost_factor=0.0), slow_signal),
    Staged("nothing_learned", "no_signal", GOOD, nothing),
    Staged("nothing_learned", "learning_rate_low", replace(GOOD, learning_rate=1e-7)),
    Staged("nothing_learned", "held_at_zero", HELD),
    Staged("nothing_learned", "inputs", BROKEN),
    Staged("nothing_learned", "unexplored", UNEXPLORED),
]
QUICK = {"dead_units-learning_rate_high", "overfit-few_bars"}

_runs: dict[Any, list[Finding]] = {}


def findings(staged: Staged) -> list[Finding]:
    """The findings of a staged training; several symptoms share one."""
    key = (staged.tiny, staged.made)
    if key not in _runs:
        _runs[key] = judge(*run(staged.tiny, staged.made()))
    return _runs[key]


@pytest.mark.parametrize(
    "staged", [pytest.param(one, id=str(one), marks=[] if str(one) in QUICK else pytest.mark.slow) for one in STAGED]
)
def test_what_was_broken_is_found_and_its_cause_is_first_or_second(staged: Staged) -> None:
    found = {finding.symptom.name: finding for finding in findings(staged)}
    assert staged.symptom in found, list(found)
    ranked = [cause.name for cause in found[staged.symptom].causes]
    assert staged.cause in ranked[:2], ranked


HEALTHY = [
    (GOOD, usual),
    (replace(GOOD, seed=2), usual),
    (replace(GOOD, seed=3, hidden=(64, 64)), usual),
    (replace(GOOD, seed=4, gamma=0.98), slow_signal),
    (replace(GOOD, seed=5, learning_rate=5e-4), usual),
    (replace(GOOD, seed=6, learning_rate=5e-3, tau=0.1, gamma=0.99), usual),
    (replace(GOOD, seed=7, batch_size=512, weight_decay=0.3), usual),
]


@pytest.mark.parametrize(
    ("tiny", "made"),
    [pytest.param(*one, marks=[] if n == 0 else pytest.mark.slow) for n, one in enumerate(HEALTHY)],
)
def test_a_training_that_goes_well_is_not_complained_about(tiny: Tiny, made: Callable[[], Tables]) -> None:
    records, facts = run(tiny, made())
    doctor = Doctor(facts)
    live = [(record["update"], finding.symptom) for record in records for finding in doctor.observe(record)]
    assert live == []
    assert judge(records, facts) == []


@pytest.mark.slow
def test_a_weak_signal_in_many_bars_is_no_reason_to_complain() -> None:
    made = tables(Predictor(shorts=False, columns=1), 60_000, 20_000)
    records, facts = run(replace(GOOD, gamma=0.98, learning_rate=1e-3), made)
    assert [finding.symptom.name for finding in judge(records, facts)] == []
