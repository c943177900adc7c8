"""The learner against a world whose optimum is known: skill is seen, and so is a mistake that would cost it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brokers.calendar import calendar
from strategies.features import compute_frame, default_spec
from training.dqn.ensemble import train_ensemble
from training.dqn.settings import DqnSettings
from training.market import MarketTable, build_table
from training.markets.bench import LEAD_BARS, score
from training.markets.deciders import follow
from training.markets.mean_reverting import MeanReverting
from training.markets.world import PERIOD

pytestmark = pytest.mark.slow

WORLD = MeanReverting(shorts=False)
SPEC = default_spec(PERIOD)
SETTINGS = DqnSettings(network="mlp", members=3, updates=1_500, threads=1)


def training_table(bars: int) -> MarketTable:
    path = WORLD.path(bars, 1, "training")
    features = compute_frame(SPEC, path.series, calendar("24/7"))
    name = path.series.symbol
    return build_table({name: path.series}, {name: features}, WORLD.costs(), capital_usd=10_000.0)


def captured(table: MarketTable, settings: DqnSettings = SETTINGS) -> float:
    """Fraction of the optimum that a training on the table captures on a path never seen."""
    trained = train_ensemble(
        table, settings, tuple(SPEC.group_slices.values()), seed=1, shorts=False, embargo_bars=SPEC.memory_bars
    )
    path = WORLD.path(LEAD_BARS + 40_000, 1)
    features = compute_frame(SPEC, path.series, calendar("24/7"))[LEAD_BARS - 1 : -1].astype(np.float32)
    target_PT = np.zeros((3, len(features)), dtype=np.int64)
    for held in (0, 1):
        with torch.no_grad():
            flat, long, *_ = trained.network(torch.from_numpy(features), torch.full((len(features), 1), float(held)))
        target_PT[held + 1] = (long > flat).numpy()[:, 0]
    optimum = WORLD.solve()
    return score(WORLD, optimum, path, follow(target_PT)).mean / optimum.gain


@pytest.mark.parametrize(
    "changes", [{}, {"dueling": True}, {"value_heads": "free", "reward": "shaped"}, {"n_step": 4}], ids=str
)
def test_a_small_ensemble_captures_most_of_the_optimum_from_sixty_thousand_bars(changes: dict[str, Any]) -> None:
    assert captured(training_table(60_000), SETTINGS.model_copy(update=changes)) >= 0.85


def test_a_learner_with_the_sign_of_its_rewards_wrong_is_seen() -> None:
    table = training_table(60_000)
    flipped = replace(table, reward_TPN=np.ascontiguousarray(table.reward_TPN[:, ::-1, ::-1]))
    assert captured(flipped) < 0.2


def test_the_transitions_of_episodes_teach_the_same_skill() -> None:
    settings = SETTINGS.model_copy(update={"replay": "transitions", "steps_per_update": 128.0, "n_envs": 64})
    assert captured(training_table(60_000), settings) >= 0.85
