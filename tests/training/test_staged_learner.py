"""The learner itself, broken on purpose in every way the doctor knows: seen, and the true cause ranked first or second.

Real trainings of small ensembles on worlds whose state is one of the features. Mistakes that no setting makes (a sign,
a bias, costs that learning does not know) are made in the ensemble before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from tiny_learner import paying, small_world, tables

from brokers.calendar import calendar
from strategies.features import compute_frame, default_spec
from training.dqn.doctor import Doctor, Finding, judge
from training.dqn.ensemble import Ensemble
from training.dqn.history import Record, validated
from training.dqn.run_facts import Facts, run_facts
from training.dqn.settings import DqnSettings
from training.market import MarketTable, build_table
from training.markets.hidden_trend import HiddenTrend
from training.markets.martingale import Martingale
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.world import PERIOD, World

pytestmark = pytest.mark.slow

SMALL = {
    "members": 2,
    "network": "mlp",
    "hidden": (32,),
    "updates": 600,
    "evaluations": 15,
    "threads": 1,
    "batch_bars": 128,
}
Mistake = Callable[[Ensemble], None]


def trained(
    table: MarketTable,
    settings: Mapping[str, Any],
    mistake: Mistake | None = None,
    *,
    groups: list[slice] | None = None,
    reward_scale: float | None = None,
) -> tuple[list[Record], Facts]:
    chosen = DqnSettings(**{**SMALL, **settings})
    groups = groups or [slice(0, 1), slice(1, table.n_features)]
    ensemble = Ensemble(table, chosen, groups, seed=1, shorts=False, reward_scale=reward_scale, embargo_bars=0)
    if mistake is not None:
        mistake(ensemble)
    while not ensemble.done:
        ensemble.run(ensemble.next_stop())
    facts = run_facts(
        {"training": {"dqn": chosen.model_dump(mode="json")}},
        table,
        [f"column {i}" for i in range(table.n_features)],
        reward_scale=ensemble.bars.reward_scale,
        planned_updates=chosen.updates,
        validation_bars=min(4096, len(table.start_rows) // 5),
        parameters=sum(one[0].numel() for one in ensemble.learners[0].weights()[0].values()),
        groups=len(groups),
    )
    return [validated(record) for record in ensemble.records], facts


def usual() -> MarketTable:
    return tables(small_world(), 12_000, 100)[0]


def few() -> MarketTable:
    return tables(small_world(), 400, 100)[0]


def costly() -> MarketTable:
    return tables(small_world().model_copy(update={"cost_bps": 500.0}), 12_000, 100)[0]


def fairly_costly() -> MarketTable:
    return tables(small_world().model_copy(update={"cost_bps": 80.0}), 12_000, 100)[0]


def nothing() -> MarketTable:
    return tables(Martingale(shorts=False), 12_000, 100)[0]


def still() -> MarketTable:
    table = usual()
    observations = table.observations_TG.copy()
    observations[:, :-1] = 3.0
    return replace(table, observations_TG=observations)


def rare_gains() -> MarketTable:
    table, rng = usual(), np.random.default_rng(0)
    return paying(table, np.where(rng.random(len(table)) < 0.04, 0.10, -0.002), side=0.001)


def one_bad_tick() -> MarketTable:
    table = usual()
    grow_T = np.nan_to_num(table.reward_TPN[:, 1, 2])
    grow_T[len(grow_T) // 3] = 3.0
    return paying(table, grow_T, side=0.001)


def charged_for_the_opposite(ensemble: Ensemble) -> None:
    """What is learned has the wrong sign: the account is kept on the true table."""
    ensemble.bars.intrabar_TN *= -1.0
    ensemble.bars.overnight_TN *= -1.0


def every_unit_far_below_zero(ensemble: Ensemble) -> None:
    for learner in ensemble.learners:
        for flat in (learner.online, learner.target, learner.mean):
            for name, view in flat.views.items():
                if name.endswith("bias") and view.shape[-1] == SMALL["hidden"][0]:  # type: ignore[index]
                    view.fill_(-30.0)


def costs_that_learning_does_not_know(ensemble: Ensemble) -> None:
    ensemble.bars.cost_TS *= 0.0
    ensemble.bars.expected_cost_NN *= 0.0


@dataclass(frozen=True)
class Staged:
    symptom: str
    cause: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    table: Callable[[], MarketTable] = usual
    mistake: Mistake | None = None
    reward_scale: float | None = None

    def __str__(self) -> str:
        return f"{self.symptom}-{self.cause}"


TORCH = {"dueling": True}
"""The compiled learner ends with an error at a gradient that is no number, and keeps its weights to itself."""
FAST_RATE = {"learning_rate": 3.0}
LONG_SIGHT = {"gamma": 0.9999, "tau": 1.0, "double": False, "lr_schedule": "constant", "updates": 1500}
RUNAWAY = {
    "gamma": 0.9999, "tau": 1.0, "double": False, "learning_rate": 0.03, "value_loss": "mse", "max_grad_norm": 1e9,
    "hidden": (64, 64, 64), "lr_schedule": "constant",
}  # fmt: skip
MEMORY = {"weight_decay": 0.0, "input_l1": 0.0, "hidden": (64, 64), "updates": 1500, "members": 5}
HELD = {"weight_decay": 100.0}
MEDIAN = {"huber_delta": 0.05}

STAGED = [
    Staged("not_finite", "learning_rate_high", {**TORCH, "learning_rate": 1e20, "value_loss": "mse"}),
    Staged("q_beyond_bound", "gamma_high", RUNAWAY),
    Staged("q_beyond_bound", "target_fast", RUNAWAY),
    Staged("loss_spike", "outliers", {"value_loss": "mse", "max_grad_norm": 1e9, "batch_bars": 16}, one_bad_tick),
    Staged("td_large", "reward_scale", reward_scale=1e5),
    Staged("td_small", "reward_scale", reward_scale=0.1),
    Staged("td_tails", "huber_small", MEDIAN, rare_gains),
    Staged("target_slow", "target_slow", {"tau": 1e-5}),
    Staged("target_none", "target_fast", LONG_SIGHT),
    Staged("q_unsettled", "gamma_high", LONG_SIGHT),
    Staged("always_clipped", "clipped_hard", {"max_grad_norm": 0.001}),
    Staged("dead_units", "learning_rate_high", {"learning_rate": 0.3}),
    Staged("dead_units", "inputs", {}, still),
    Staged("dead_units", "start_dead", TORCH, usual, every_unit_far_below_zero),
    Staged("collapse", "cost_high", {}, costly),
    Staged("collapse", "held_at_zero", HELD),
    Staged("collapse", "learning_rate_high", {**FAST_RATE, "lr_schedule": "constant"}),
    Staged("loss_spike", "learning_rate_high", FAST_RATE),
    Staged("collapse", "huber_small", MEDIAN, rare_gains),
    Staged("collapse", "start_dead", TORCH, usual, every_unit_far_below_zero),
    Staged("overfit", "few_bars", MEMORY, few),
    Staged("overtrades", "cost_unknown", TORCH, fairly_costly, costs_that_learning_does_not_know),
    Staged("wrong_way", "reward_sign", TORCH, usual, charged_for_the_opposite),
    Staged("nothing_learned", "no_signal", {}, nothing),
    Staged("nothing_learned", "learning_rate_low", {"learning_rate": 1e-8}),
    Staged("crash", "learning_rate_high", {**FAST_RATE, "lr_schedule": "constant"}),
    Staged("nothing_learned", "inputs", {}, still),
    Staged("nothing_learned", "held_at_zero", HELD),
]

_runs: dict[str, list[Finding]] = {}


@pytest.mark.parametrize("staged", STAGED, ids=str)
def test_what_was_broken_is_found_and_its_cause_is_first_or_second(staged: Staged) -> None:
    key = repr((dict(staged.settings), staged.table, staged.mistake, staged.reward_scale))
    if key not in _runs:
        _runs[key] = judge(*trained(staged.table(), staged.settings, staged.mistake, reward_scale=staged.reward_scale))
    found = {finding.symptom.name: finding for finding in _runs[key]}
    assert staged.symptom in found, list(found)
    ranked = [cause.name for cause in found[staged.symptom].causes]
    assert staged.cause in ranked[:2], ranked


def with_its_features(world: World, bars: int) -> tuple[MarketTable, list[slice]]:
    """A world's bars as the daemon's features see them."""
    path = world.path(bars, 1, "training")
    spec = default_spec(PERIOD, sorted(path.series.signals))
    frame = compute_frame(spec, path.series, calendar("24/7"))
    table = build_table({path.series.symbol: path.series}, {path.series.symbol: frame}, world.costs(), capital_usd=1e4)
    return table, [spec.group_slices[name] for name in spec.groups]


HEALTHY: list[tuple[World, Mapping[str, Any]]] = [
    (MeanReverting(shorts=False), {"updates": 1000}),
    (MeanReverting(shorts=False), {"updates": 1000, "network": "attention", "hidden": (64,)}),
    (MeanReverting(shorts=False, half_life=5.0, cost_bps=10.0), {"learning_rate": 1e-3, "updates": 1000}),
    (HiddenTrend(shorts=False), {"updates": 1500, "batch_bars": 256}),
    (Predictor(shorts=False, columns=4, ic=0.1), {"updates": 1500, "batch_bars": 256}),
]


@pytest.mark.parametrize("world_and_settings", HEALTHY, ids=lambda one: f"{one[0].name}")
def test_a_training_that_goes_well_is_not_complained_about(
    world_and_settings: tuple[World, Mapping[str, Any]],
) -> None:
    world, settings = world_and_settings
    table, groups = with_its_features(world, 60_000)
    records, facts = trained(table, settings, groups=groups)
    doctor = Doctor(facts)
    live = [(record["update"], finding.symptom) for record in records for finding in doctor.observe(record)]
    assert live == []
