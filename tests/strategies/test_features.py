from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from bars_for_features import priced, random_series, recorded, split
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.calendar import TradingCalendar, calendar
from brokers.series import BarSeries, to_ns
from strategies.features import (
    FeatureError,
    FeatureSpec,
    Group,
    IncrementalFeatures,
    compute_frame,
    default_spec,
    tutorial_spec,
    volatility_frame,
)
from strategies.features.groups import LEVELS

FIVE_MINUTES = timedelta(minutes=5)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ALWAYS = calendar("24/7")
SIGNALS = ("flow", "flag", "same")


def nyse() -> TradingCalendar:
    return calendar("XNYS")


def small_spec() -> FeatureSpec:
    """Every kind of group, with memories short enough for random examples; odd windows on purpose."""
    return FeatureSpec(
        (
            Group("returns", "returns", {"horizons": [1, 3, 7], "unit": 13}),
            Group("volume", "volume", {"ratios": [[1, 11]], "flows": [5], "illiquidity": [3, 11]}),
            Group("volatility", "volatility", {"levels": [6], "ranges": [7], "downside": 9, "tails": 12}),
            Group("trend", "trend", {"means": [5, 24], "slopes": [10], "averages": [[2, 5, 21]], "unit": 13}),
            Group("range", "range", {"positions": [7, 20], "widths": [6], "unit": 13}),
            Group("calendar", "calendar", {"intraday": True}),
            Group(
                "regime",
                "regime",
                {"ratios": [[3, 14]], "efficiency": [9], "autocorrelation": [15], "drawdowns": [23]},
            ),
            Group("signals", "signals", {"names": list(SIGNALS), "window": 17}),
            Group("levels", "levels", {"names": list(SIGNALS)}),
        )
    )


def warm_rows(spec: FeatureSpec, series: BarSeries, venue: TradingCalendar = ALWAYS) -> np.ndarray:
    rows = compute_frame(spec, series, venue)[spec.memory_bars - 1 :]
    assert len(rows)
    return rows


def assert_runners_agree(spec: FeatureSpec, series: BarSeries, venue: TradingCalendar, period: timedelta) -> None:
    frame = compute_frame(spec, series, venue)
    sigma = volatility_frame(spec, series, venue)
    live = IncrementalFeatures(spec, [series.symbol], venue, period)
    for place in range(len(series)):
        live.append(series.bar(place))
        row = live.latest([series.symbol])[0]
        np.testing.assert_allclose(row, frame[place], rtol=0, atol=1e-12, equal_nan=True)
        np.testing.assert_allclose(live.volatility([series.symbol])[0], sigma[place], rtol=0, atol=1e-15)


@given(seed=st.integers(0, 10_000), bars=st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_both_runners_give_the_same_rows_on_random_bars(seed: int, bars: int) -> None:
    assert_runners_agree(small_spec(), random_series(seed, bars), ALWAYS, FIVE_MINUTES)


def test_both_runners_give_the_same_rows_for_the_default_spec_with_signals() -> None:
    spec = default_spec(FIVE_MINUTES, SIGNALS)
    assert_runners_agree(spec, random_series(7, spec.memory_bars + 150), ALWAYS, FIVE_MINUTES)


def test_both_runners_give_the_same_rows_for_the_tutorial_spec() -> None:
    assert_runners_agree(tutorial_spec(), random_series(8, 300), ALWAYS, FIVE_MINUTES)


def test_both_runners_give_the_same_rows_over_sessions_and_splits() -> None:
    spec = default_spec(HOUR)
    series = random_series(9, spec.memory_bars + 300, venue=nyse(), period=HOUR)
    assert_runners_agree(spec, split(series, spec.memory_bars + 100, 4.0), nyse(), HOUR)


def test_both_runners_give_the_same_rows_on_recorded_stocks() -> None:
    spec = default_spec(HOUR)
    series = recorded("us_equity_1h.parquet", HOUR, nyse())["AAPL"]
    assert_runners_agree(spec, series.slice(0, spec.memory_bars + 1_200), nyse(), HOUR)


def test_warming_with_a_series_equals_appending_its_bars() -> None:
    spec = default_spec(FIVE_MINUTES, SIGNALS)
    series = random_series(3, spec.memory_bars + 60)
    warmed = IncrementalFeatures(spec, ["X"], ALWAYS, FIVE_MINUTES)
    warmed.warm(series.slice(0, spec.memory_bars + 5))
    warmed.append_many([series.bar(place) for place in range(spec.memory_bars + 5, len(series))])
    np.testing.assert_array_equal(warmed.latest(["X"])[0], warm_rows(spec, series)[-1])


@given(known=st.integers(0, 80), seed=st.integers(0, 1_000))
@settings(max_examples=20, deadline=None)
def test_warming_with_too_few_bars_goes_on_where_it_stopped(known: int, seed: int) -> None:
    spec = small_spec()
    series = random_series(seed, 120)
    live = IncrementalFeatures(spec, ["X"], ALWAYS, FIVE_MINUTES)
    if known:
        live.warm(series.slice(0, known))
    live.append_many([series.bar(place) for place in range(known, len(series))])
    np.testing.assert_array_equal(live.latest(["X"])[0], warm_rows(spec, series)[-1])


def test_a_symbol_without_bars_has_a_row_of_nan_beside_warm_ones() -> None:
    spec = default_spec(FIVE_MINUTES)
    series = random_series(3, spec.memory_bars)
    live = IncrementalFeatures(spec, ["cold", "X"], ALWAYS, FIVE_MINUTES)
    live.warm(series)
    cold, warm = live.latest(["cold", "X"])
    assert np.isnan(cold).all()
    assert np.isnan(live.volatility(["cold"])).all()
    np.testing.assert_array_equal(warm, warm_rows(spec, series)[-1])


def test_symbols_that_miss_bars_do_not_disturb_the_others() -> None:
    spec = small_spec()
    names = ["A", "B", "C"]
    all_series = {name: replace(random_series(seed, 150), symbol=name) for seed, name in enumerate(names)}
    live = IncrementalFeatures(spec, names, ALWAYS, FIVE_MINUTES)
    rng = np.random.default_rng(0)
    fed = dict.fromkeys(names, 0)
    for _ in range(100):
        batch = [name for name in names if rng.random() < 0.8]
        live.append_many([all_series[name].bar(fed[name]) for name in batch])
        for name in batch:
            fed[name] += 1
    for row, name in zip(live.latest(names), names, strict=True):
        np.testing.assert_array_equal(row, compute_frame(spec, all_series[name].slice(0, fed[name]), ALWAYS)[-1])


@given(seed=st.integers(0, 10_000), cut=st.integers(100, 240), factor=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_later_bars_and_a_rescaled_adj_factor_change_no_bit(seed: int, cut: int, factor: float) -> None:
    series = random_series(seed, 250)
    later = replace(series, adj_factor=series.adj_factor * factor)
    before = compute_frame(small_spec(), series.slice(0, cut), ALWAYS)
    np.testing.assert_array_equal(before, compute_frame(small_spec(), later, ALWAYS)[:cut])


@pytest.mark.parametrize("spec", [default_spec(HOUR), tutorial_spec()], ids=["default", "tutorial"])
def test_on_recorded_stocks_no_feature_of_any_bar_changes_when_later_bars_come(spec: FeatureSpec) -> None:
    series = recorded("us_equity_1h.parquet", HOUR, nyse())["SPY"].slice(0, 9_000)
    whole = compute_frame(spec, series, nyse())
    # every remainder of a vector width and of a chunk, and a rescaled series as a vendor sends it after a dividend
    for cut in (spec.memory_bars, 4_865, 4_866, 4_867, 8_191, 8_998, 8_999):
        part = series.slice(0, cut)
        rescaled = replace(part, adj_factor=part.adj_factor * 0.9871)
        np.testing.assert_array_equal(compute_frame(spec, rescaled, nyse()), whole[:cut])


@pytest.mark.parametrize("spec", [default_spec(HOUR), tutorial_spec()], ids=["default", "tutorial"])
def test_on_recorded_stocks_each_bars_row_is_the_one_known_at_its_close(spec: FeatureSpec) -> None:
    series = recorded("us_equity_1h.parquet", HOUR, nyse())["AAPL"]
    begin = int(np.flatnonzero(np.diff(series.adj_factor))[1]) - 100
    assert begin > spec.memory_bars
    whole = compute_frame(spec, series, nyse())
    for bar in range(begin, begin + 250):
        known = series.slice(bar + 1 - spec.memory_bars, bar + 1)
        np.testing.assert_array_equal(compute_frame(spec, known, nyse())[-1], whole[bar])


@given(seed=st.integers(0, 10_000), factor=st.sampled_from([1e-4, 0.37, 3.0, 7.7e5]))
@settings(max_examples=20, deadline=None)
def test_prices_times_a_constant_give_the_same_features(seed: int, factor: float) -> None:
    series = random_series(seed, 200)
    ours, theirs = warm_rows(small_spec(), series), warm_rows(small_spec(), priced(series, factor))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_prices_times_a_constant_give_the_same_default_features_over_sessions() -> None:
    series = random_series(21, 1_500, venue=nyse(), period=HOUR)
    spec = default_spec(HOUR)
    ours, theirs = warm_rows(spec, series, nyse()), warm_rows(spec, priced(series, 0.013), nyse())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@given(seed=st.integers(0, 10_000), at=st.integers(1, 199), ratio=st.sampled_from([2.0, 7.0, 20.0, 1 / 15]))
@settings(max_examples=20, deadline=None)
def test_a_split_changes_no_feature(seed: int, at: int, ratio: float) -> None:
    series = random_series(seed, 200)
    ours, theirs = warm_rows(small_spec(), series), warm_rows(small_spec(), split(series, at, ratio))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spec", [default_spec(HOUR), tutorial_spec()], ids=["default", "tutorial"])
def test_the_last_memory_bars_determine_a_row_exactly(spec: FeatureSpec) -> None:
    series = random_series(4, spec.memory_bars + 40, venue=nyse(), period=HOUR)
    tail = series.slice(len(series) - spec.memory_bars, len(series))
    np.testing.assert_array_equal(warm_rows(spec, tail, nyse())[-1], warm_rows(spec, series, nyse())[-1])


def test_one_bar_less_than_the_memory_gives_no_row() -> None:
    spec = default_spec(HOUR)
    series = random_series(4, spec.memory_bars - 1, venue=nyse(), period=HOUR)
    assert np.isnan(compute_frame(spec, series, nyse())).all()


def test_no_feature_looks_further_back_than_it_declares() -> None:
    spec = default_spec(FIVE_MINUTES, SIGNALS)
    ours, theirs = random_series(5, spec.memory_bars + 10), random_series(6, spec.memory_bars + 10)
    last = warm_rows(spec, ours)[-1]
    for column, name in enumerate(spec.names):
        old = len(ours) - spec.memory_of(name)
        mixed = _with_other_past(ours, theirs, old)
        assert warm_rows(spec, mixed)[-1, column] == last[column], name


def _with_other_past(series: BarSeries, other: BarSeries, bars: int) -> BarSeries:
    def joined(name: str) -> np.ndarray:
        return np.concatenate((getattr(other, name)[:bars], getattr(series, name)[bars:]))

    columns = ("open", "high", "low", "close", "volume", "adj_factor")
    signals = {name: np.concatenate((other.signals[name][:bars], series.signals[name][bars:])) for name in SIGNALS}
    return replace(series, signals=signals, **{name: joined(name) for name in columns})


@pytest.mark.parametrize("period", [FIVE_MINUTES, DAY], ids=["5m", "1d"])
def test_every_row_is_finite_and_within_the_declared_ranges(period: timedelta) -> None:
    spec = default_spec(period, SIGNALS)
    rows = warm_rows(spec, random_series(11, 1_500, period=period))
    assert np.isfinite(rows).all()
    assert ((rows >= spec.ranges[:, 0]) & (rows <= spec.ranges[:, 1])).all()


@pytest.mark.parametrize("spec", [default_spec(FIVE_MINUTES), tutorial_spec()], ids=["default", "tutorial"])
def test_a_market_that_never_moves_and_never_trades_gives_finite_rows(spec: FeatureSpec) -> None:
    series = random_series(1, spec.memory_bars + 5)
    ones = np.ones(len(series))
    dead = replace(series, open=ones, high=ones, low=ones, close=ones, volume=ones * 0, adj_factor=ones)
    assert np.isfinite(warm_rows(spec, dead)).all()


def test_on_a_random_walk_the_features_in_volatilities_have_about_unit_variance() -> None:
    spec = default_spec(FIVE_MINUTES)
    rng = np.random.default_rng(2)
    series = random_series(2, 30_000)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 2e-3, len(series))))
    walk = replace(series, open=close, high=close, low=close, close=close, adj_factor=np.ones(len(series)))
    spread = warm_rows(spec, walk).std(axis=0)
    for group in ("returns", "trend"):
        assert ((spread[spec.group_slices[group]] > 0.7) & (spread[spec.group_slices[group]] < 1.4)).all()


def test_a_window_mean_is_the_mean_of_the_window() -> None:
    series = random_series(12, 900)
    spec = FeatureSpec((Group("trend", "trend", {"means": [768], "slopes": [100], "averages": [], "unit": 50}),))
    above, slope = warm_rows(spec, series)[-1]
    price = np.log(series.close * series.adj_factor)
    sigma = np.sqrt(np.mean(np.diff(price)[-50:] ** 2) + 1e-12)
    assert above == pytest.approx((price[-1] - price[-768:].mean()) / sigma / np.sqrt(256), abs=1e-8)
    expected = (price[-100:].mean() - price[-200:-100].mean()) / sigma / np.sqrt(200 / 3)
    assert slope == pytest.approx(expected, abs=1e-8)


def test_the_position_in_the_range_is_that_of_the_adjusted_close() -> None:
    series = random_series(13, 400)
    spec = FeatureSpec((Group("range", "range", {"positions": [100], "widths": [], "unit": 50}),))
    high = np.log(series.high * series.adj_factor)[-100:].max()
    low = np.log(series.low * series.adj_factor)[-100:].min()
    close = np.log(series.close * series.adj_factor)[-1]
    position = (2 * close - high - low) / (high - low + 1e-6)
    assert warm_rows(spec, series)[-1, -1] == pytest.approx(position, abs=1e-7)


def test_the_session_return_counts_from_the_session_open() -> None:
    spec = FeatureSpec((Group("overnight", "overnight", {"window": 64, "unit": 64}),))
    series = random_series(14, 700, venue=nyse(), period=HOUR)
    session = nyse().session_ids(series.start_ns)
    first = int(np.flatnonzero(session == session[-1])[0])
    price = np.log(series.close * series.adj_factor)
    sigma = np.sqrt(np.mean(np.diff(price)[-64:] ** 2) + 1e-12)
    opened = np.log(series.open[first] * series.adj_factor[first])
    gap, since_open, _ = warm_rows(spec, series, nyse())[-1]
    assert np.sinh(gap) == pytest.approx((opened - price[first - 1]) / sigma, abs=1e-7)
    assert since_open == pytest.approx((price[-1] - opened) / sigma / np.sqrt(len(series) - first), abs=1e-7)


def test_the_autocorrelation_is_that_of_neighbouring_returns() -> None:
    series = random_series(15, 500)
    spec = FeatureSpec(
        (Group("regime", "regime", {"ratios": [], "efficiency": [], "autocorrelation": [64], "drawdowns": []}),)
    )
    returns = np.diff(np.log(series.close * series.adj_factor))
    expected = (returns[-64:] @ returns[-65:-1]) / (returns[-64:] @ returns[-64:])
    assert warm_rows(spec, series)[-1, -1] == pytest.approx(expected, abs=1e-6)


def test_the_week_begins_on_monday() -> None:
    spec = FeatureSpec((Group("calendar", "calendar", {"intraday": False}),))
    venue = calendar("24/7")
    begin = to_ns(datetime(2024, 1, 1, tzinfo=UTC))  # a Monday
    start, opened, closed = venue.grid_ns(begin, begin + 100 * 86_400 * 10**9, 86_400 * 10**9)
    ones = np.ones(len(start))
    series = BarSeries("X", start, closed, opened, ones, ones, ones, ones, ones, ones)
    day = np.arange(len(start)) % 7
    expected = np.stack([np.sin(day * 2 * np.pi / 7), np.cos(day * 2 * np.pi / 7)], axis=1)
    np.testing.assert_allclose(warm_rows(spec, series), expected[spec.memory_bars - 1 :], atol=1e-12)


def test_progress_reaches_one_at_the_session_close_also_on_a_half_day() -> None:
    spec = FeatureSpec((Group("calendar", "calendar", {"intraday": True}),))
    series = recorded("us_equity_1h.parquet", HOUR, nyse())["SPY"].slice(0, 4_000)
    session = nyse().session_ids(series.start_ns)
    last = np.flatnonzero(np.diff(session))
    progress = compute_frame(spec, series, nyse())[:, spec.names.index("calendar.progress")]
    complete = last[(last >= spec.memory_bars) & (np.append(np.diff(series.close_ns), 0)[last] > 3_600 * 10**9)]
    assert np.median(progress[complete]) == 1.0
    assert np.nanmax(progress) == 1.0


def test_a_signal_is_scored_against_its_median() -> None:
    spec = FeatureSpec((Group("signals", "signals", {"names": ["flow"], "window": 100}),))
    series = random_series(15, 200)
    window = series.signals["flow"][-100:]
    deviation = np.median(np.abs(window - np.median(window)))
    score = (window[-1] - np.median(window)) / (1.4826 * deviation)
    assert warm_rows(spec, series)[-1, 0] == pytest.approx(score, rel=1e-9)


def levels_of(*values: float) -> np.ndarray:
    """The level of a column that ends with these values."""
    spec = FeatureSpec((Group("levels", "levels", {"names": ["flow"]}),))
    series = random_series(15, spec.memory_bars + len(values) - 1)
    column = np.concatenate([series.signals["flow"][: -len(values)], values])
    return warm_rows(spec, replace(series, signals={"flow": column}))[:, 0]


def test_a_level_is_the_column_where_it_is_small_and_its_logarithm_where_it_is_large() -> None:
    values = np.array([-1e9, -1e-6, 0.0, 1e-6, 0.1, 1e3, 1e9])
    expected = [-np.log(2e9), -1e-6, 0.0, 1e-6, 0.1 - 0.1**3 / 6, np.log(2e3), np.log(2e9)]
    np.testing.assert_allclose(levels_of(*values), expected, rtol=1e-5, atol=0)


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_levels_keep_the_order_of_their_column_and_no_amount_up_to_1e9_leaves_the_range(values: list[float]) -> None:
    ordered = levels_of(*sorted(values))
    assert (np.diff(ordered) >= 0.0).all()
    assert np.abs(ordered).max() < LEVELS


def test_levels_in_the_smallest_and_largest_units_are_the_same_once_normalised() -> None:
    flow = np.random.default_rng(5).normal(5.0, 1.0, 200)

    def normalised(unit: float) -> np.ndarray:
        level = levels_of(*(flow * unit)).astype(np.float32).astype(np.float64)
        return (level - level.mean()) / level.std()

    np.testing.assert_allclose(normalised(1e-6), (flow - flow.mean()) / flow.std(), atol=1e-4)
    assert np.corrcoef(normalised(1e9), flow)[0, 1] > 0.98


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_a_level_that_is_no_number_leaves_the_row_unusable(missing: float) -> None:
    before, at, after = levels_of(1.0, missing, 1.0)
    assert np.isnan(at)
    assert before == after == np.arcsinh(1.0)


def test_new_kinds_of_groups_leave_the_hashes_of_old_specs_as_they_were() -> None:
    """Models trained before stay loadable: a changed hash is a model that refuses to serve."""
    hashes = {"tutorial": tutorial_spec().hash[:16], "default": default_spec(FIVE_MINUTES).hash[:16]}
    assert hashes == {"tutorial": "16e033612ea6bc11", "default": "7b2bac72138b439f"}


def test_a_spec_survives_json_with_its_hash() -> None:
    spec = default_spec(FIVE_MINUTES, SIGNALS)
    again = FeatureSpec.from_json(json.dumps(json.loads(spec.to_json()), indent=2))
    assert (again, again.hash, again.names) == (spec, spec.hash, spec.names)


def test_specs_that_differ_anywhere_have_different_hashes() -> None:
    specs = [default_spec(FIVE_MINUTES), default_spec(HOUR), default_spec(HOUR, ["flow"]), tutorial_spec()]
    assert len({spec.hash for spec in [*specs, tutorial_spec(11)]}) == 5


def test_an_edited_spec_is_refused() -> None:
    content = json.loads(tutorial_spec().to_json())
    content["memory_bars"] += 1
    with pytest.raises(FeatureError, match="train the model again"):
        FeatureSpec.from_json(content)


def test_an_unknown_group_suggests_the_right_name() -> None:
    with pytest.raises(FeatureError, match="did you mean 'volatility'"):
        FeatureSpec((Group("v", "volatilty"),))


def test_a_wrong_parameter_names_those_that_exist() -> None:
    with pytest.raises(FeatureError, match="horizons, unit"):
        FeatureSpec((Group("r", "returns", {"horizon": [1]}),))


def test_group_slices_cover_the_row_in_order() -> None:
    spec = default_spec(FIVE_MINUTES)
    covered = [name for part in spec.group_slices.values() for name in spec.names[part]]
    assert tuple(covered) == spec.names


def test_a_bar_that_is_not_newer_is_refused_and_changes_nothing() -> None:
    series = random_series(1, 200)
    live = IncrementalFeatures(small_spec(), ["X"], ALWAYS, FIVE_MINUTES)
    live.warm(series)
    before = live.latest(["X"])
    with pytest.raises(FeatureError, match="warm again after a revision"):
        live.append(series.bar(199))
    np.testing.assert_array_equal(before, live.latest(["X"]))


@pytest.mark.parametrize("broken", [{"close": 0.0}, {"volume": -1.0}, {"high": float("nan")}])
def test_a_bar_with_an_impossible_number_is_refused(broken: dict[str, float]) -> None:
    bar = random_series(1, 2).bar(0)
    live = IncrementalFeatures(tutorial_spec(), ["X"], ALWAYS, FIVE_MINUTES)
    with pytest.raises(FeatureError, match="no market has"):
        live.append(replace(bar, **broken))


def test_a_missing_user_column_is_an_error_and_not_a_zero() -> None:
    series = replace(random_series(1, 200), signals={})
    with pytest.raises(FeatureError, match="lack the columns flow"):
        compute_frame(small_spec(), series, ALWAYS)


def test_bars_of_another_period_than_the_spec_are_refused() -> None:
    with pytest.raises(FeatureError, match="300 s"):
        IncrementalFeatures(default_spec(FIVE_MINUTES), ["X"], ALWAYS, HOUR)


def test_state_of_a_hundred_symbols_stays_small() -> None:
    live = IncrementalFeatures(default_spec(FIVE_MINUTES), [str(n) for n in range(100)], ALWAYS, FIVE_MINUTES)
    assert live.nbytes < 15e6


def test_a_thousand_symbols_are_served_well_within_a_bar() -> None:
    names = [f"S{number}" for number in range(1_000)]
    spec = default_spec(FIVE_MINUTES)
    series = random_series(2, spec.memory_bars + 3)
    live = IncrementalFeatures(spec, names, ALWAYS, FIVE_MINUTES)
    for place in range(3):
        bars = [replace(series.bar(place), symbol=name) for name in names]
        begin = time.process_time()
        live.append_many(bars)
        live.latest(names)
        spent_s = time.process_time() - begin
    assert spent_s < 0.08
