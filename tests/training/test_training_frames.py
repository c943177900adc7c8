"""Frames for training against the definition, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.calendar import calendar
from strategies.features import FeatureSpec, Group, compute_frame, default_spec, tutorial_spec
from strategies.features.view import robust_score
from training.frames import exact_frame, rolling_scores, training_frame
from training.markets.predictor import Predictor
from training.markets.world import PERIOD

ALWAYS = calendar("24/7")


@given(
    window=st.integers(1, 12),
    values=st.lists(
        st.one_of(st.integers(-3, 3).map(float), st.floats(-1e12, 1e12), st.just(0.1)), min_size=12, max_size=80
    ),
)
def test_every_score_is_the_definitions(window: int, values: list[float]) -> None:
    column = np.array(values)
    expected = robust_score(np.lib.stride_tricks.sliding_window_view(column, window))
    np.testing.assert_array_equal(rolling_scores(column, window), expected)


@pytest.mark.parametrize("kind", ["noise", "steps", "mostly one value", "slow"])
def test_scores_of_long_columns_are_the_definitions(kind: str) -> None:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(6_000)
    column = {
        "noise": noise,
        "steps": np.round(noise),
        "mostly one value": np.where(rng.random(6_000) < 0.05, noise, 2.0),
        "slow": np.cumsum(noise) * 1e6,
    }[kind]
    expected = robust_score(np.lib.stride_tricks.sliding_window_view(column, 128))
    np.testing.assert_array_equal(rolling_scores(column, 128), expected)


def test_a_missing_value_is_missing_in_every_window_that_holds_it() -> None:
    column = np.random.default_rng(3).standard_normal(100)
    column[50] = np.nan
    scores = rolling_scores(column, 10)
    assert np.flatnonzero(np.isnan(scores)).tolist() == list(range(41, 51))


def test_frames_for_training_are_the_features_rounded() -> None:
    series = Predictor(columns=3).path(6_000, 1).series
    for spec in (default_spec(PERIOD, tuple(series.signals)), tutorial_spec()):
        frame = compute_frame(spec, series, ALWAYS)
        np.testing.assert_array_equal(exact_frame(spec, series, ALWAYS), frame)
        np.testing.assert_array_equal(training_frame(spec, series, ALWAYS), frame.astype(np.float32))


def test_too_few_bars_give_rows_of_nan() -> None:
    series = Predictor(columns=1).path(100, 1).series
    frame = training_frame(default_spec(PERIOD), series, ALWAYS)
    assert frame.shape == (100, len(default_spec(PERIOD).names))
    assert np.isnan(frame).all()


def test_a_hole_in_a_column_leaves_the_rows_unusable_that_read_it() -> None:
    series = Predictor(columns=2).path(600, 1).series
    holed = series.signals["column_000"].copy()
    holed[300] = np.nan
    spec = FeatureSpec((Group("signals", "signals", {"names": ["column_000"], "window": 32}),))
    frame = training_frame(spec, replace(series, signals={"column_000": holed}), ALWAYS)
    assert np.flatnonzero(np.isnan(frame[100:, 0])).tolist() == list(range(200, 232))
