"""The exit head: what it may look at, what it says, and that it says nothing where there is nothing."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_markets import ALL_COSTS, walk

from brokers.calendar import calendar
from brokers.series import BarSeries
from strategies.features import FeatureSpec, Group, compute_frame, tutorial_spec, volatility_frame
from training.errors import TrainingError
from training.exits.bench import bench_settings, chosen_brackets, entries, simulated_rows
from training.exits.calibration import conformal_factors
from training.exits.fit import TrainedExits, fit_exits, train_exits
from training.exits.labels import Labels
from training.exits.rows import ExitRows, exit_rows, volatility_column
from training.exits.settings import ExitSettings
from training.market import MarketTable, build_table
from training.markets.exits import ExitWorlds
from training.markets.world import Streams

CAPITAL = 10_000.0
SPEC = FeatureSpec(
    (
        Group("volatility", "volatility", {"levels": [16, 64], "ranges": [16], "downside": 16, "tails": 16}),
        Group("returns", "returns", {"horizons": [1, 4], "unit": 64}),
    )
)
SMALL = ExitSettings(horizon_bars=8, levels=(1.0, 2.0, 4.0), hidden=(8, 4), epochs=3.0, batch_size=64)
WORLDS = ExitWorlds().all()


def market(*series: BarSeries) -> tuple[Mapping[str, BarSeries], MarketTable]:
    by_name = {one.symbol: one for one in series}
    features = {name: compute_frame(SPEC, one, calendar("24/7")) for name, one in by_name.items()}
    return by_name, build_table(by_name, features, ALL_COSTS, capital_usd=CAPITAL)


def rows_of(table: MarketTable, series: Mapping[str, BarSeries]) -> ExitRows:
    return exit_rows(table, series, SPEC, SMALL, ALL_COSTS, capital_usd=CAPITAL)


def noise(rows: int, seed: int) -> ExitRows:
    """Labels that have nothing to do with the features."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, 6)).astype(np.float32)
    return ExitRows(
        features_RF=features,
        sigma_R=np.exp(features[:, 0].astype(np.float64)) * 2e-3,
        labels=Labels(
            rng.normal(0.0, 0.02, (rows, 2, 16)).astype(np.float32),
            *np.abs(rng.normal(0.0, 0.02, (2, rows))).astype(np.float32),
        ),
        decided_R=np.arange(rows),
        known_R=np.arange(rows) + 1,
        table_row_R=np.arange(rows),
    )


def fitted(rows: ExitRows, settings: ExitSettings = SMALL, seed: int = 1) -> TrainedExits:
    level_F = np.arange(rows.features_RF.shape[1]) == 0
    return fit_exits(rows, settings, volatility_column=0, level_F=level_F, seed=seed)


def told(trained: TrainedExits, rows: ExitRows, target: int) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = trained.module(torch.from_numpy(rows.features_RF), torch.full((len(rows),), target))
    return {name: one.numpy() for name, one in zip(trained.module.output_names, out, strict=True)}


@pytest.fixture(scope="module")
def on_noise() -> tuple[TrainedExits, ExitRows]:
    rows = noise(4_000, seed=3)
    return fitted(rows), rows


def test_the_volatility_of_the_rows_is_the_daemon_s() -> None:
    series, table = market(walk("AAA", 600), walk("BBB", 500, seed=1))
    rows = rows_of(table, series)
    daemon_T = np.concatenate([volatility_frame(SPEC, one, calendar("24/7")) for one in series.values()])
    np.testing.assert_allclose(rows.sigma_R, daemon_T[rows.table_row_R], rtol=1e-6)


def test_rows_end_a_horizon_before_their_run_does_and_stand_in_the_order_of_time() -> None:
    series, table = market(walk("AAA", 600), walk("BBB", 500, seed=1))
    rows = rows_of(table, series)
    assert len(rows) == 600 + 500 - 2 * (SPEC.memory_bars - 1 + SMALL.horizon_bars)
    assert (table.symbol_T[rows.table_row_R] == table.symbol_T[rows.table_row_R + SMALL.horizon_bars]).all()
    assert (np.diff(rows.decided_R) >= 0).all()


def test_bars_outside_of_the_table_s_runs_change_nothing() -> None:
    series, table = market(walk("AAA", 700))
    train = table.where(np.arange(len(table)) < 500)
    bars = series["AAA"]
    later = np.arange(len(bars)) >= 500
    moved = {name: np.where(later, getattr(bars, name) * 3.0, getattr(bars, name)) for name in ("open", "high", "low")}
    labels, others = (rows_of(train, one).labels for one in (series, {"AAA": replace(bars, **moved)}))
    np.testing.assert_array_equal(labels.value_RSK, others.value_RSK)


def test_the_same_seed_learns_the_same_to_the_last_bit() -> None:
    rows = noise(1_000, seed=5)
    first, again, other = (fitted(rows, seed=seed).state() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_state_taken_back_says_the_same(on_noise: tuple[TrainedExits, ExitRows]) -> None:
    trained, rows = on_noise
    fresh = fitted(noise(1_000, seed=9))
    fresh.module.load_state_dict(trained.state())
    for name, values in told(trained, rows, -1).items():
        np.testing.assert_array_equal(values, told(fresh, rows, -1)[name])


def test_labels_without_a_law_get_no_exits_nearly_everywhere(on_noise: tuple[TrainedExits, ExitRows]) -> None:
    trained, rows = on_noise
    for target in (1, -1):
        assert np.isinf(told(trained, rows, target)["exit_stop"]).mean() > 0.8


def test_a_target_of_flat_has_no_exits(on_noise: tuple[TrainedExits, ExitRows]) -> None:
    flat = told(*on_noise, 0)
    assert np.isinf(flat["exit_stop"]).all()
    assert np.isinf(flat["exit_take_profit"]).all()
    assert (flat["exit_gain"] == 0.0).all()


def test_quantiles_increase_and_the_sides_mirror_each_other(on_noise: tuple[TrainedExits, ExitRows]) -> None:
    long, short = told(*on_noise, 1), told(*on_noise, -1)
    shares = [f"q{100 * share:g}" for share in SMALL.quantiles]
    for way, other in (("favourable", "adverse"), ("adverse", "favourable")):
        columns = np.stack([long[f"{way}_{share}"] for share in shares])
        assert (np.diff(columns, axis=0) >= 0.0).all()
        assert (columns > 0.0).all()
        np.testing.assert_array_equal(columns, np.stack([short[f"{other}_{share}"] for share in shares]))


def test_twice_the_volatility_doubles_every_distance(on_noise: tuple[TrainedExits, ExitRows]) -> None:
    trained, rows = on_noise
    features = rows.features_RF.copy()
    features[:, 0] += math.log(2.0)
    one, two = told(trained, rows, 1), told(trained, replace(rows, features_RF=features), 1)
    for name, values in one.items():
        np.testing.assert_allclose(two[name], 2.0 * values, rtol=1e-3)


def test_a_conformal_factor_covers_its_share_of_what_it_was_made_on() -> None:
    rng = np.random.default_rng(2)
    reach_R2 = rng.exponential(size=(501, 2)).astype(np.float32)
    quantile_R2Q = rng.uniform(0.2, 0.4, (501, 2, 2)).astype(np.float32)
    factor_2Q = conformal_factors(reach_R2, quantile_R2Q, (0.25, 0.9))
    covered_2Q = (reach_R2[:, :, None] <= quantile_R2Q * factor_2Q).mean(axis=0)
    np.testing.assert_allclose(covered_2Q, [[0.25, 0.9]] * 2, atol=0.003)
    assert (covered_2Q >= [0.25, 0.9]).all()


def test_a_side_on_which_the_choice_loses_on_later_bars_has_no_exits() -> None:
    rows = noise(2_000, seed=1)
    later = np.arange(2_000) >= 1_500
    # the second bracket earns before, and loses after
    rows.labels.value_RSK[:, 0, 1] = rows.labels.value_RSK[:, 0, 0] + np.where(later, -0.01, 0.01)
    trained = fitted(rows)
    assert not trained.metrics["brackets"]["long"]["is_used"]
    assert np.isinf(told(trained, rows, 1)["exit_take_profit"]).all()


def test_features_without_volatility_are_refused_with_the_remedy() -> None:
    with pytest.raises(TrainingError, match=r"lack volatility.level_64.*training.exits.head=off"):
        volatility_column(tutorial_spec())


def test_too_few_bars_for_the_horizon_are_refused_with_the_remedy() -> None:
    series, table = market(walk("AAA", 150))
    with pytest.raises(TrainingError, match=r"exits need 200.*horizon_bars"):
        rows_of(table, series)


def test_a_head_that_is_off_is_not_trained() -> None:
    with pytest.raises(TrainingError, match="head is off"):
        fitted(noise(500, seed=1), SMALL.model_copy(update={"head": "off"}))


def test_a_head_trained_on_a_table_tells_what_it_learned_from() -> None:
    series, table = market(walk("AAA", 900), walk("BBB", 800, seed=1))
    trained = train_exits(table, series, SPEC, SMALL, ALL_COSTS, capital_usd=CAPITAL, seed=1)
    assert trained.metrics["learned_bars"] + trained.metrics["held_out_bars"] < len(rows_of(table, series))
    assert trained.metrics["quantiles"]["shares"] == list(SMALL.quantiles)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"levels": (2.0, 1.0)}, "smallest first"),
        ({"levels": ()}, "give 1 to 12 levels"),
        ({"quantiles": (0.5, 1.0)}, "below 1"),
        ({"hidden": ()}, "at least one width"),
        ({"sigmoid_range": (0.2, 0.1)}, "nearer first"),
    ],
)
def test_settings_that_make_no_head_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ExitSettings.model_validate(values)


def test_worlds_that_need_different_exits_get_them_from_one_head() -> None:
    settings = bench_settings("quantile", ExitSettings(epochs=10.0, batch_size=256))
    rows = simulated_rows(WORLDS, settings, episodes=2_500, seed=1)
    trained = fit_exits(rows, settings, volatility_column=0, level_F=np.zeros(16, dtype=bool), seed=1)
    chosen = {
        world.name: chosen_brackets(trained, entries(WORLDS, place, 100, Streams(f"{world.name}|a test")), world.sigma)
        for place, world in enumerate(WORLDS)
    }
    assert (chosen["exit_reversion"][:, 0] > 5.0).mean() > 0.8, "a stop only harms there"
    assert (chosen["exit_breakdown"][:, 0] < 5.0).mean() > 0.7, "a stop is everything there"
    assert np.isinf(chosen["exit_trend"][:, 1]).mean() > 0.5, "a take-profit only harms there"


def test_the_sigmoid_head_tells_excursions_within_its_range() -> None:
    rows = noise(1_000, seed=4)
    trained = fitted(rows, SMALL.model_copy(update={"head": "sigmoid_mse"}))
    out = told(trained, rows, 1)
    assert list(out) == ["exit_stop", "exit_take_profit"]
    assert 0.002 < out["exit_stop"].min() <= out["exit_stop"].max() < 0.2
    assert np.isinf(told(trained, rows, 0)["exit_stop"]).all()
