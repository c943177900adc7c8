"""The plain environment, the batched core, the compiled core and the Gymnasium face are one environment."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_markets import HOUR_NS, some_features, walk

from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.series import BarSeries, to_ns
from strategies.strategy import Action
from training.compiled import GOING, TERMINATED, TRUNCATED, CompiledBatch, warm_up
from training.environment import MarketBatch, StartPosition, TradingEnv
from training.errors import TrainingError
from training.market import MarketTable, build_table, joined_bars
from training.plain import PlainEnvironment

HOUR = timedelta(hours=1)
CAPITAL_USD = 10_000.0

EXACT = 1e-12
"""Plain and table differ by at most this: NumPy's vector logarithm and the C library's may differ in the last bit, a
split ratio and a dividend are rounded to 1e-12 and 1e-9 as the account books them, and a table multiplies in another
order. Faces of one table do not differ at all."""
BOOKED = 1e-10
"""The same where a dividend was paid: 1e-9 of the quote currency on a price of about a hundred."""


@dataclass(frozen=True)
class SmallMarket:
    series: dict[str, BarSeries]
    features: dict[str, np.ndarray]
    costs: CostModel
    joined: dict[str, np.ndarray]

    def table(self) -> MarketTable:
        table = build_table(self.series, self.features, self.costs, capital_usd=CAPITAL_USD)
        return table.without_gaps(np.concatenate([self.joined[symbol] for symbol in self.series]))

    def plain(self, *, episode_bars: int, shorts: bool) -> PlainEnvironment:
        return PlainEnvironment(
            self.series,
            self.features,
            self.costs,
            capital_usd=CAPITAL_USD,
            episode_bars=episode_bars,
            shorts=shorts,
            joined=self.joined,
        )


def without(bars: BarSeries, rows: list[int]) -> BarSeries:
    keep = np.setdiff1d(np.arange(len(bars)), rows)
    columns = ("start_ns", "close_ns", "open_ns", "open", "high", "low", "close", "volume", "adj_factor")
    return replace(bars, **{name: getattr(bars, name)[keep] for name in columns})


@st.composite
def markets(draw: st.DrawFn) -> SmallMarket:
    """Two series of hourly bars with overnight gaps, splits, dividends, a wild bar, holes and missing bars."""
    series, features, joined = {}, {}, {}
    hours = calendar("24/7")
    for name in ("AAA", "BBB"):
        events = draw(
            st.dictionaries(st.integers(1, 38), st.sampled_from([0.25, 0.5, 1.004, 1.03, 2.0, 3.0]), max_size=4)
        )
        bars = walk(name, 40, seed=draw(st.integers(0, 2**16)), events=events)
        if (wild := draw(st.none() | st.integers(1, 38))) is not None:
            factor = draw(st.sampled_from([0.003, 0.4, 2.6]))
            bars.close[wild] *= factor
            bars.high[wild], bars.low[wild] = bars.high[wild] * max(factor, 1.0), bars.low[wild] * min(factor, 1.0)
        if draw(st.booleans()):
            bars.volume[draw(st.integers(0, 39))] = 0.0
        bars = without(bars, draw(st.lists(st.integers(1, 38), max_size=4)))
        series[name] = bars
        features[name] = some_features(bars, holes=(0, 1, draw(st.integers(2, len(bars) - 1))))
        joined[name] = joined_bars(bars, hours, HOUR, missing_bars_max=draw(st.integers(0, 2)))
    costs = CostModel(
        fee_bps=draw(st.floats(0, 60)),
        half_spread_bps=draw(st.floats(0, 20)),
        impact=draw(st.sampled_from([0.0, 0.5, 3.0])),
        latency_bars=draw(st.integers(1, 3)),
    )
    return SmallMarket(series, features, costs, joined)


def place(market: SmallMarket, table: MarketTable, row: int) -> tuple[str, int]:
    """Return the symbol of a table's row and the row within its series."""
    symbol = table.symbols[table.symbol_T[row]]
    return symbol, row - int(np.flatnonzero(table.symbol_T == table.symbol_T[row])[0])


def batch_of(
    kind: type[MarketBatch], table: MarketTable, n: int, *, shorts: bool, start_position: StartPosition = "random"
) -> MarketBatch:
    return kind(table, n, episode_bars=12, shorts=shorts, start_position=start_position)


@given(market=markets(), shorts=st.booleans(), seed=st.integers(0, 2**16))
def test_the_table_pays_what_the_plain_environment_pays(*, market: SmallMarket, shorts: bool, seed: int) -> None:
    table, rng = market.table(), np.random.default_rng(seed)
    if len(table.start_rows) == 0:
        return
    env, plain = TradingEnv(table, episode_bars=12, shorts=shorts), market.plain(episode_bars=12, shorts=shorts)
    tolerance = EXACT if not any(((a.adj_factor != 1.0).any()) for a in market.series.values()) else BOOKED
    for _ in range(4):
        row, position = int(rng.choice(table.start_rows)), int(rng.integers(-1 if shorts else 0, 2))
        observation, _ = env.reset(options={"row": row, "position": position})
        np.testing.assert_array_equal(observation, plain.start(*place(market, table, row), position))
        over = False
        while not over:
            action = int(rng.integers(3))
            expected = plain.step(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == pytest.approx(expected.reward, rel=tolerance, abs=tolerance)
            np.testing.assert_array_equal(observation, expected.observation)
            assert (terminated, truncated) == (expected.terminated, expected.truncated)
            over = terminated or truncated


@given(market=markets())
def test_a_step_exists_in_the_table_where_it_exists_in_the_plain_environment(market: SmallMarket) -> None:
    table, plain = market.table(), market.plain(episode_bars=12, shorts=False)
    existing = [row for row in range(len(table)) if plain._step_exists(*place(market, table, row))]
    assert table.start_rows.tolist() == existing


@given(market=markets(), shorts=st.booleans(), seed=st.integers(0, 2**16))
def test_the_compiled_core_is_the_batched_core_bit_for_bit(*, market: SmallMarket, shorts: bool, seed: int) -> None:
    table = market.table()
    if len(table.start_rows) == 0:
        return
    plain, fast = (batch_of(kind, table, 7, shorts=shorts) for kind in (MarketBatch, CompiledBatch))
    streams = [np.random.default_rng(seed) for _ in range(2)]
    plain.reset(streams[0])
    fast.reset(streams[1])
    actions = np.random.default_rng(seed + 1)
    for _ in range(30):
        np.testing.assert_array_equal(plain.observe(), fast.observe())
        action_N = actions.integers(3, size=7)
        expected, answer = plain.step(action_N), fast.step(action_N)
        assert [(a.dtype, a.tobytes()) for a in expected] == [(a.dtype, a.tobytes()) for a in answer]
        np.testing.assert_array_equal(plain.observe(), fast.observe())
        over_N = expected[1] | expected[2]
        plain.reset(streams[0], over_N)
        fast.reset(streams[1], over_N)


@given(
    market=markets(), shorts=st.booleans(), seed=st.integers(0, 2**16), cuts=st.lists(st.integers(0, 60), max_size=4)
)
def test_steps_played_in_one_call_are_those_of_many_calls_and_of_the_gymnasium_face(
    *, market: SmallMarket, shorts: bool, seed: int, cuts: list[int]
) -> None:
    table = market.table()
    if len(table.start_rows) == 0:
        return
    action_KN = np.random.default_rng(seed).integers(3, size=(60, 5)).astype(np.int8)
    whole, pieces = (batch_of(CompiledBatch, table, 5, shorts=shorts) for _ in range(2))
    streams = [np.random.default_rng(seed) for _ in range(2)]
    for batch, stream in zip((whole, pieces), streams, strict=True):
        batch.reset(stream)
    played = whole.play(action_KN, streams[0])
    parts = [pieces.play(part, streams[1]) for part in np.split(action_KN, sorted(cuts))]
    for name in ("row_KN", "position_KN", "reward_KN", "ended_KN"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(played, name), joined)

    env = TradingEnv(table, episode_bars=12, shorts=shorts)
    for slot in range(5):
        fresh = True
        for k in range(60):
            if fresh:
                env.reset(options={"row": played.row_KN[k, slot], "position": played.position_KN[k, slot]})
            assert (env._row, env._position) == (played.row_KN[k, slot], played.position_KN[k, slot])
            _, reward, terminated, truncated, _ = env.step(int(action_KN[k, slot]))
            assert reward == played.reward_KN[k, slot]
            assert played.ended_KN[k, slot] == (TERMINATED if terminated else TRUNCATED if truncated else GOING)
            fresh = terminated or truncated


def test_a_missing_bar_is_a_gap_where_fewer_are_allowed() -> None:
    bars = without(walk(n=20), [5, 11, 12])
    joined = {most: joined_bars(bars, calendar("24/7"), HOUR, missing_bars_max=most) for most in (0, 1, 2)}
    gaps = {most: np.flatnonzero(~joined_T).tolist() for most, joined_T in joined.items()}
    assert gaps == {0: [4, 9, 16], 1: [9, 16], 2: [16]}


def test_a_night_and_a_weekend_are_no_gaps() -> None:
    sessions = calendar("XNYS")
    week_ns = 7 * 24 * HOUR_NS
    monday_ns = to_ns(datetime(2024, 1, 8, tzinfo=UTC))
    start, opened, closed = sessions.grid_ns(monday_ns, monday_ns + 2 * week_ns, HOUR_NS)
    bars = replace(walk(n=len(start)), start_ns=start, open_ns=opened, close_ns=closed)
    assert joined_bars(bars, sessions, HOUR, missing_bars_max=0)[:-1].all()
    holed = joined_bars(without(bars, [9]), sessions, HOUR, missing_bars_max=0)
    assert np.flatnonzero(~holed[:-1]).tolist() == [8]


@pytest.mark.parametrize("latency", [1, 2, 3])
def test_no_step_is_paid_across_a_gap(latency: int) -> None:
    bars = walk(n=20)
    table = build_table({"AAA": bars}, {"AAA": np.zeros((20, 2))}, CostModel(latency_bars=latency), capital_usd=1.0)
    cut = table.without_gaps(np.arange(20) != 9)
    lost = set(table.start_rows.tolist()) - set(cut.start_rows.tolist())
    assert lost == set(range(10 - latency, 10))
    assert cut.run_end_T[0] == 10 - latency


def test_a_negative_number_of_missing_bars_is_refused() -> None:
    with pytest.raises(TrainingError, match="missing_bars_max is -1"):
        joined_bars(walk(), calendar("24/7"), HOUR, missing_bars_max=-1)


def _small_table() -> MarketTable:
    series = {"AAA": walk(n=60)}
    return build_table(series, {"AAA": some_features(series["AAA"])}, CostModel(), capital_usd=CAPITAL_USD)


def _batch(n: int = 3) -> CompiledBatch:
    batch = CompiledBatch(_small_table(), n, episode_bars=5)
    batch.reset(np.random.default_rng(0))
    return batch


@pytest.mark.parametrize("action", [-1, 3, 2**40])
def test_an_action_that_does_not_exist_is_refused_and_no_slot_moves(action: int) -> None:
    batch = _batch()
    before = batch._state_3N.copy()
    with pytest.raises(TrainingError, match=f"action {action} of slot 1"):
        batch.step(np.array([0, action, 0]))
    np.testing.assert_array_equal(batch._state_3N, before)


def test_a_slot_whose_episode_is_over_is_not_stepped() -> None:
    batch, hold = _batch(), np.zeros(3, dtype=np.int64)
    while not batch.step(hold)[2].any():
        pass
    with pytest.raises(TrainingError, match="reset it before the next step"):
        batch.step(hold)


@pytest.mark.parametrize("actions", [np.zeros(2, dtype=np.int64), np.zeros(3), np.zeros((3, 1), dtype=np.int64)])
def test_actions_of_another_shape_or_kind_are_refused(actions: np.ndarray) -> None:
    with pytest.raises(TrainingError, match=r"give integers of shape \(3,\)"):
        _batch().step(actions)


def test_observations_are_written_where_they_are_wanted() -> None:
    batch = _batch()
    out = np.full((3, 4), np.nan, dtype=np.float32)
    assert batch.observe(out) is out
    np.testing.assert_array_equal(out, MarketBatch.observe(batch))
    with pytest.raises(TrainingError, match="give contiguous float32"):
        batch.observe(np.zeros((3, 4)))


@given(market=markets(), shorts=st.booleans(), seed=st.integers(0, 2**16))
def test_an_observed_advance_is_a_played_step_and_the_observation_after_it(
    *, market: SmallMarket, shorts: bool, seed: int
) -> None:
    table = market.table()
    if len(table.start_rows) == 0:
        return
    observed, unseen = (batch_of(CompiledBatch, table, 40, shorts=shorts) for _ in range(2))
    streams = [np.random.default_rng(seed) for _ in range(2)]
    for batch, stream in zip((observed, unseen), streams, strict=True):
        batch.reset(stream)
    actions, out = np.random.default_rng(seed), observed.observe()
    for _ in range(20):
        action_N = actions.integers(3, size=40)
        observation, step = observed.advance(action_N, streams[0], out)
        expected = unseen.play(action_N[np.newaxis], streams[1])
        assert observation is out
        np.testing.assert_array_equal(observation, MarketBatch.observe(unseen))
        np.testing.assert_array_equal(step.reward_KN, expected.reward_KN)
        np.testing.assert_array_equal(step.ended_KN, expected.ended_KN)


def test_starts_drawn_ahead_are_drawn_again_when_they_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.compiled.RESTARTS_MIN", 8)
    batch = _batch(n=4)
    played = batch.play(np.ones((400, 4), dtype=np.int8), np.random.default_rng(1))
    starts = played.row_KN[1:][played.ended_KN[:-1] != GOING]
    assert len(starts) >= 300
    assert set(starts.tolist()) == set(batch.table.start_rows.tolist())


def test_a_reset_forgets_the_starts_drawn_ahead() -> None:
    rows = []
    for _ in range(2):
        batch, rng = _batch(), np.random.default_rng(5)
        batch.play(np.zeros((len(rows) * 7 + 1, 3), dtype=np.int8), np.random.default_rng(9))
        batch.reset(rng)
        rows.append(batch.play(np.zeros((20, 3), dtype=np.int8), rng).row_KN)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_every_position_and_action_moves_alike_in_both_cores() -> None:
    table = _small_table()
    for shorts in (False, True):
        batches = [kind(table, 9, shorts=shorts) for kind in (MarketBatch, CompiledBatch)]
        for batch in batches:
            batch.reset(np.random.default_rng(0))
            batch.position_N[:] = np.repeat([-1, 0, 1], 3)
            batch.step(np.tile([int(action) for action in Action], 3))
        np.testing.assert_array_equal(batches[0].position_N, batches[1].position_N)


def test_the_kernels_can_be_compiled_before_they_are_needed() -> None:
    warm_up(_small_table())
