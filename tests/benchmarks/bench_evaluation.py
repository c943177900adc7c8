"""Judging a policy: CPU seconds of everything in `tandem train evaluate` but the training of policies.

    python tests/benchmarks/bench_evaluation.py [--bars FILE] [--seeds 5] [--folds 4]

The policy that is judged is a linear rule drawn for each fold and seed; it learns nothing and costs nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from bench_kit import Figure, tell
from numpy.typing import NDArray

from training.data import load_market
from training.evaluation.command import learner
from training.evaluation.controls import one_bar_lag, shuffled_returns, truncated_features
from training.evaluation.folds import walk_forward
from training.evaluation.ground import features_by, prepare
from training.evaluation.manifest import Luck
from training.evaluation.play import play
from training.evaluation.report import report
from training.evaluation.settings import load_evaluation
from training.evaluation.tracks import begins
from training.evaluation.tracks import follow as at_once
from training.market import MarketTable
from training.settings import TrainingSettings, load_training
from training.validation import TargetOf
from training.validation import follow as one_by_one

SELDOM = 0.005
"""Share of the bars at which a rule that seldom trades wants something of its own."""
SYNTHETIC_BARS = 131_023
"""Of each of two symbols: as many as fifteen months of 5-minute bars."""


def drawn(table: MarketTable, settings: TrainingSettings, seed: int) -> TargetOf:
    """Return a rule that goes with a drawn direction of the features."""
    del settings
    weight_F = np.random.default_rng(seed).standard_normal(table.n_features)

    def rule(features_BF: NDArray[np.float32], position_B: NDArray[np.int64]) -> NDArray[np.int64]:
        score_B = features_BF @ weight_F
        return np.where(score_B > 2.0, 1, np.where(score_B < -2.0, 0, np.maximum(position_B, 0)))

    return rule


def main() -> None:
    """Judge once and tell what each step took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=Path, help="bars file; two synthetic symbols where none is given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=4)
    given = parser.parse_args()
    overrides = [f"evaluation.seeds={given.seeds}", f"evaluation.folds={given.folds}"]
    if given.bars is None:
        overrides += ["symbols=[AAA, BBB]", f"exchange.synthetic.bars={SYNTHETIC_BARS}"]
    configuration, settings = load_training(None, overrides, environ={}), load_evaluation(None, overrides, environ={})
    took: list[Figure] = []
    at = time.process_time()

    def told(name: str) -> None:
        nonlocal at
        now = time.process_time()
        took.append(Figure(name, f"{now - at:.2f} s CPU"))
        at = now

    market = load_market(configuration, bars=given.bars)
    candidate = learner(configuration, settings, market)
    told("bars read, trainer imported")
    ground = prepare(
        market,
        configuration,
        memory_bars=candidate.spec.memory_bars,
        features_of=features_by(candidate.spec, market),
        shorts=False,
    )
    folds = walk_forward(ground.table, settings, memory_bars=ground.memory_bars)
    told(f"features, rewards at four costs, folds: {len(ground.table)} bars")
    played = play(ground, folds, drawn, configuration.training, settings, seeds=candidate.seeds)
    told(f"eight rules at four costs: {len(played.rows)} test bars, {len(candidate.seeds)} seeds, ridges fitted")
    report(ground, played, settings, Luck(given.seeds, None), seed=1)
    told(f"intervals and p-values, {settings.resamples} resamples")
    truncated_features(ground, settings, seed=1)
    one_bar_lag(ground, played, settings, seed=1)
    shuffled_returns(ground, configuration, drawn, settings, seed=1)
    told("leak controls")
    tell("judging a policy that costs nothing", took)
    tell(f"following a rule over {len(ground.table.start_rows)} bars", following(ground.table))


def following(table: MarketTable) -> list[Figure]:
    """Time the loop that validation follows a rule with, and the scan, on a rule that seldom trades and on chance."""
    rng = np.random.default_rng(0)
    seldom_PT = np.tile(np.array([[0], [0], [1]]), len(table))
    seldom_PT[:, rng.random(len(table)) < SELDOM] = rng.integers(0, 2)
    rows = table.start_rows
    found = []
    for name, target_PT in (("seldom", seldom_PT), ("at every bar", rng.integers(-1, 2, (3, len(table))))):
        times = [time.process_time()]
        one_by_one(table, target_PT)
        times.append(time.process_time())
        at_once(target_PT[:, rows], begins(rows))
        times.append(time.process_time())
        loop_s, scan_s = np.diff(times).tolist()
        found.append(Figure(f"trades {name}: loop, scan", f"{loop_s * 1e3:.0f}, {scan_s * 1e3:.0f} ms CPU"))
    return found


if __name__ == "__main__":
    main()
