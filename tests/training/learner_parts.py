"""Small learners for tests: markets, and networks that are tables of values by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_markets import ALL_COSTS, table_of, walk

from brokers.costs import CostModel
from training.dqn.bars import Bars, learnable_rows
from training.dqn.ensemble import Ensemble
from training.dqn.learner import Learner
from training.dqn.network import Answer, Network
from training.dqn.settings import DqnSettings
from training.dqn.targets import Ask, Teacher
from training.market import Int, MarketTable

SMALL: Mapping[str, Any] = {
    "members": 1,
    "network": "mlp",
    "hidden": (8,),
    "updates": 12,
    "evaluations": 2,
    "batch_bars": 16,
    "threads": 1,
}
GROUPS = (slice(0, 1), slice(1, 3))


def small(**changes: Any) -> DqnSettings:
    return DqnSettings(**{**SMALL, **changes})


def market(n: int = 160, *, costs: CostModel = ALL_COSTS, seed: int = 0) -> MarketTable:
    """Two symbols, a hole in the features of both, nights, and costs that differ from bar to bar."""
    return table_of(walk(n=n, seed=seed), walk("BBB", n * 2 // 3, seed=seed + 1), costs=costs, holes=(0, 1, 20))


def bars_of(
    table: MarketTable, *, shorts: bool = False, steps: int = 1, reward_scale: float | None = None, clip: float = 5.0
) -> Bars:
    return Bars(table, learnable_rows(table, steps), shorts=shorts, reward_scale=reward_scale, input_clip=clip)


def learner_of(
    settings: DqnSettings,
    table: MarketTable,
    *,
    shorts: bool = False,
    seeds: Sequence[int] = (1,),
    rows: Int | None = None,
) -> Learner:
    rows = learnable_rows(table, settings.n_step) if rows is None else rows
    bars = bars_of(table, shorts=shorts, steps=settings.n_step)
    return Learner(settings, bars, GROUPS, [rows] * len(seeds), seeds)


def ensemble_of(settings: DqnSettings, table: MarketTable, *, seed: int = 1, shorts: bool = False) -> Ensemble:
    return Ensemble(table, settings, GROUPS, seed=seed, shorts=shorts, reward_scale=None, embargo_bars=5)


def run_to(ensemble: Ensemble, update: int) -> Ensemble:
    while ensemble.updates < update:
        ensemble.run(min(ensemble.next_stop(), update))
    return ensemble


def exported(ensemble: Ensemble) -> torch.Tensor:
    """Every weight and buffer that would be exported, (E, W)."""
    kept = [[*weights.values(), *buffers.values()] for weights, buffers in (one.weights() for one in ensemble.learners)]
    return torch.cat([torch.cat([one.flatten(1) for one in parts], dim=1) for parts in kept])


def asked(value_TOK: np.ndarray) -> Ask:
    """A network that is a table: atoms of every value by row."""
    table = torch.from_numpy(value_TOK.astype(np.float32))

    def ask(row_EB: torch.Tensor) -> Answer:
        return Answer(table[row_EB])

    return ask


def teacher_of(settings: DqnSettings, bars: Bars, support_K: torch.Tensor | None = None) -> Teacher:
    return Teacher(Network(settings, GROUPS, len(bars.positions)), bars, support_K)


def paying(table: MarketTable, overnight_T: np.ndarray, intrabar_T: np.ndarray, side_T: np.ndarray) -> MarketTable:
    """The table whose rewards are those of given log growths and costs of one side."""
    held = np.array([-1.0, 0.0, 1.0])
    reward_TPN = (
        overnight_T[:, None, None] * held[:, None]
        - side_T[:, None, None] * np.abs(held - held[:, None])
        + intrabar_T[:, None, None] * held
    )
    reward_TPN[np.isnan(table.reward_TPN)] = np.nan
    return replace(table, reward_TPN=reward_TPN)
