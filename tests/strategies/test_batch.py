"""The batch face of every strategy answers as its other face does, row by row, to the last bit."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny_models import WIDTH, make_bundle

from brokers.calendar import calendar
from brokers.series import from_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.baselines import BASELINES, make_baseline
from strategies.batch import BatchStrategy
from strategies.features import compute_frame
from strategies.policy import BundlePolicy
from strategies.strategy import Observations, Opinion, Strategy

HOUR = timedelta(hours=1)
ROWS = 200


def compare(strategy: Strategy, features_TF: np.ndarray, positions: tuple[int, ...]) -> int:
    """Check every row at every position; returns how many were left in doubt."""
    assert isinstance(strategy, BatchStrategy)
    close_ns_T = np.arange(1, ROWS + 1, dtype=np.int64) * 3_600_000_000_000
    doubtful = 0
    for position in positions:
        batch = strategy.batch("S", close_ns_T, features_TF, position)
        doubtful += int(batch.near_T.sum())
        for row in range(ROWS):
            observations = Observations(
                symbols=["S"],
                close_time=from_ns(close_ns_T[row]),
                features_SF=features_TF[row : row + 1],
                positions_S=np.array([position], dtype=np.int8),
            )
            (answer,) = asyncio.run(strategy.opinions(observations))
            assert isinstance(answer, Opinion)
            assert batch.near_T[row] or answer.target == batch.target_T[row]
            assert dict(answer.detail) == {name: values[row] for name, values in batch.detail.items()}
            assert dict(answer.q) == {target: values[row] for target, values in batch.q.items()}
            assert answer.reason is batch.reason
    return doubtful


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shorts", [False, True])
def test_a_baseline_answers_a_batch_as_it_answers_one_close(name: str, *, shorts: bool) -> None:
    strategy = make_baseline(name, {"shorts": shorts}, HOUR)
    features = np.random.default_rng(0).normal(0.0, 1.0, (ROWS, len(strategy.feature_spec.names)))
    assert compare(strategy, features, (-1, 0, 1)) == 0


def test_a_policy_answers_a_batch_as_it_answers_one_close(tmp_path: Path) -> None:
    policy = BundlePolicy(make_bundle(tmp_path / "bundle"), shorts=True)
    features = np.random.default_rng(0).normal(0.0, 1.0, (ROWS, WIDTH))
    assert compare(policy, features, policy.targets) < ROWS // 10


def test_a_score_at_its_threshold_is_left_to_the_other_face() -> None:
    strategy = make_baseline("momentum", {"enter": 0.5, "leave": 0.25}, HOUR)
    scores = np.array([[0.5], [0.5 + 1e-12], [0.25], [-0.5], [0.4]])
    close_ns = np.arange(1, 6, dtype=np.int64) * 3_600_000_000_000
    assert strategy.batch("S", close_ns, scores, 1).near_T.tolist() == [True, True, True, True, False]


def test_crossing_averages_refuse_a_fast_mean_that_is_not_faster() -> None:
    with pytest.raises(ValueError, match="fast"):
        make_baseline("ma_cross", {"fast": 30, "slow": 30}, HOUR)


def test_crossing_averages_go_with_the_difference_of_the_means_of_log_prices() -> None:
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=400), calendar("24/7"))["A"]
    strategy = make_baseline("ma_cross", {"fast": 5, "slow": 20}, SyntheticMarketSettings().period)
    scores = compute_frame(strategy.feature_spec, series, calendar("24/7"))[:, 0]
    log_close = np.log(series.close)
    for row in range(strategy.feature_spec.memory_bars, 400):
        expected = log_close[row - 4 : row + 1].mean() - log_close[row - 19 : row + 1].mean()
        assert np.sign(scores[row]) == np.sign(expected)
