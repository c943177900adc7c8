"""What the learner is taught, against the definitions in scalars: rewards and choices by hand, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import asked, bars_of, paying, small, teacher_of
from small_markets import ALL_COSTS, reward_by_hand, table_of, walk

from brokers.costs import CostModel
from brokers.series import BarSeries
from training.dqn.bars import Bars, learnable_rows, parts, positions
from training.dqn.losses import support
from training.dqn.targets import recent_gains
from training.market import MarketTable, reward_table

GAMMA = 0.9
CAPITAL_USD = 10_000.0
SERIES = (walk(n=40, seed=4), walk("BBB", 24, seed=5))


class ByHand:
    """Rewards of `SERIES` in the learner's unit, from the definition alone."""

    def __init__(self, bars: Bars, costs: CostModel, held: Sequence[int]) -> None:
        self.scale, self.costs, self.held = bars.reward_scale, costs, held

    def reward(self, t: int, old: int, new: int) -> float:
        of, at = self._bar(t)
        return self.scale * reward_by_hand(of, at, self.held[old], self.held[new], self.costs, CAPITAL_USD)

    def night(self, t: int, held: int) -> float:
        of, at = self._bar(t)
        return self.scale * math.log(1.0 + self.held[held] * (of.open[at + 1] / of.close[at] - 1.0))

    def day(self, t: int, held: int) -> float:
        of, at = self._bar(t)
        return self.scale * math.log(of.close[at + 1] / of.open[at + 1] * self.held[held] + (1 - self.held[held]))

    def cost(self, t: int, old: int, new: int) -> float:
        return self.reward(t, old, new) - self.night(t, old) - self.day(t, new)

    def _bar(self, t: int) -> tuple[BarSeries, int]:
        first = len(SERIES[0])
        return (SERIES[0], t) if t < first else (SERIES[1], t - first)


def the_market(costs: CostModel = ALL_COSTS) -> MarketTable:
    return table_of(*SERIES, costs=costs, capital_usd=CAPITAL_USD, holes=(0, 1, 12))


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 2.0, shape)


@given(
    seed=st.integers(0, 2**16),
    fee=st.floats(0.0, 60.0),
    spread=st.floats(0.0, 10.0),
    impact=st.floats(0.0, 1.0),
    shorts=st.booleans(),
)
def test_a_reward_is_the_sum_of_night_cost_and_day(
    *, seed: int, fee: float, spread: float, impact: float, shorts: bool
) -> None:
    costs = CostModel(fee_bps=fee, half_spread_bps=spread, impact=impact)
    reward_TPN = reward_table(walk(n=30, seed=seed), costs, capital_usd=1_000.0)
    taken, held = parts(reward_TPN, shorts=shorts), positions(shorts=shorts)
    for old, p in enumerate(held):
        for new, n in enumerate(held):
            whole_T = taken.overnight_TN[:, old] + taken.cost_TS[:, abs(n - p)] + taken.intrabar_TN[:, new]
            np.testing.assert_allclose(whole_T, reward_TPN[:, p + 1, n + 1], atol=1e-12)
    assert (np.nan_to_num(taken.cost_TS) <= 1e-12).all()
    assert (np.nan_to_num(np.diff(taken.cost_TS, axis=1)) <= 1e-12).all()
    assert (np.nan_to_num(taken.overnight_TN[:, held.index(0)]) == 0.0).all()


def test_rows_without_a_step_have_no_parts() -> None:
    reward_TPN = reward_table(walk(n=5), ALL_COSTS, capital_usd=1_000.0)
    taken = parts(reward_TPN, shorts=True)
    assert np.isnan(taken.overnight_TN[-1]).all()
    assert np.isnan(taken.cost_TS[-1]).all()


def test_only_rows_with_enough_deciding_rows_behind_them_are_learned_from() -> None:
    table = the_market()
    starts = set(table.start_rows.tolist())
    for steps in (1, 2, 4):
        wanted = [t for t in sorted(starts) if all(t + k in starts for k in range(1, steps + 1))]
        assert learnable_rows(table, steps).tolist() == wanted


def best(values: Sequence[float]) -> int:
    return int(np.argmax(values))


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_step", [1, 2, 3, 4])
def test_post_decision_targets_are_those_computed_by_hand(*, shorts: bool, double: bool, n_step: int) -> None:
    table = the_market()
    bars = bars_of(table, shorts=shorts, steps=n_step)
    hand, n = ByHand(bars, ALL_COSTS, bars.positions), len(bars.positions)
    online_TN, target_TN = drawn(1, len(table), n), drawn(2, len(table), n)
    rows = learnable_rows(table, n_step)
    expected = [[np.mean([hand.cost(t, p, m) for t in rows]) for m in range(n)] for p in range(n)]

    def worth(t: int, held: int, left: int) -> float:
        earned = hand.day(t, held) + GAMMA * hand.night(t + 1, held)
        chooser_N = online_TN[t + 1] if double or left > 1 else target_TN[t + 1]
        choice = best([expected[held][m] + chooser_N[m] for m in range(n)])
        behind = target_TN[t + 1, choice] if left == 1 else worth(t + 1, choice, left - 1)
        return earned + GAMMA * (hand.cost(t + 1, held, choice) + behind)

    settings = small(gamma=GAMMA, double=double, n_step=n_step)
    taught = teacher_of(settings, bars).teach(
        torch.from_numpy(rows[None]), asked(online_TN[..., None]), asked(target_TN[..., None])
    )
    wanted = [[worth(t, held, n_step) for held in range(n)] for t in rows.tolist()]
    np.testing.assert_allclose(taught.value_EBOK[0, :, :, 0], wanted, atol=2e-5)


def pairs_by_hand(
    hand: ByHand, online_TNN: np.ndarray, target_TNN: np.ndarray, *, double: bool, phi: Callable[[int, int], float]
) -> Callable[[int, int, int, int], float]:
    """Q-learning over some bars on whole rewards."""

    def worth(t: int, old: int, new: int, left: int) -> float:
        reward = hand.reward(t, old, new) + GAMMA * phi(t + 1, new) - phi(t, old)
        chooser_NN = online_TNN[t + 1] if double or left > 1 else target_TNN[t + 1]
        choice = best(chooser_NN[new])
        behind = target_TNN[t + 1, new, choice] if left == 1 else worth(t + 1, new, choice, left - 1)
        return reward + GAMMA * behind

    return worth


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("shaped", [False, True])
def test_free_targets_are_those_computed_by_hand(*, shorts: bool, double: bool, n_step: int, shaped: bool) -> None:
    table = the_market()
    bars = bars_of(table, shorts=shorts, steps=n_step)
    hand, n = ByHand(bars, ALL_COSTS, bars.positions), len(bars.positions)
    online_TNN, target_TNN = drawn(1, len(table), n, n), drawn(2, len(table), n, n)
    settings = small(
        value_heads="free",
        gamma=GAMMA,
        double=double,
        n_step=n_step,
        reward="shaped" if shaped else "log_equity",
        shaping_weight=0.3,
        shaping_bars=3,
    )
    long = bars.positions.index(1)

    def phi(t: int, held: int) -> float:
        if not shaped:
            return 0.0
        known = [i for i in range(t - 3, t) if i >= 0 and table.run_end_T[i] == table.run_end_T[t]]
        return 0.3 * bars.positions[held] * sum(hand.reward(i, long, long) for i in known)

    worth = pairs_by_hand(hand, online_TNN, target_TNN, double=double, phi=phi)
    rows = learnable_rows(table, n_step)
    taught = teacher_of(settings, bars).teach(
        torch.from_numpy(rows[None]),
        asked(online_TNN.reshape(len(table), -1, 1)),
        asked(target_TNN.reshape(len(table), -1, 1)),
    )
    wanted = [[worth(t, old, new, n_step) for old in range(n) for new in range(n)] for t in rows.tolist()]
    np.testing.assert_allclose(taught.value_EBOK[0, :, :, 0], wanted, atol=2e-5)


@pytest.mark.parametrize("heads", ["free", "post_decision"])
def test_quantiles_are_taught_those_of_the_target_that_the_mean_chooses(heads: str) -> None:
    table, atoms = the_market(), 4
    bars = bars_of(table)
    hand = ByHand(bars, ALL_COSTS, bars.positions)
    n_values = 4 if heads == "free" else 2
    online, target = drawn(1, len(table), n_values, atoms), drawn(2, len(table), n_values, atoms)
    rows = learnable_rows(table)
    expected = np.mean([hand.cost(t, 0, 1) for t in rows]) * (1.0 - np.eye(2))
    settings = small(value_heads=heads, gamma=GAMMA, value_loss="quantile", atoms=atoms)
    taught = teacher_of(settings, bars).teach(torch.from_numpy(rows[None]), asked(online), asked(target))
    for place, t in enumerate(rows.tolist()):
        mean = online[t + 1].mean(axis=1)
        for old in range(2):
            for new in range(2):
                if heads == "free":
                    choice = 2 * new + best([mean[2 * new], mean[2 * new + 1]])
                    wanted = hand.reward(t, old, new) + GAMMA * target[t + 1, choice]
                else:
                    choice = best([expected[new, m] + mean[m] for m in range(2)])
                    paid = hand.night(t + 1, new) + hand.cost(t + 1, new, choice)
                    wanted = hand.day(t, new) + GAMMA * (paid + target[t + 1, choice])
                got = taught.value_EBOK[0, place, 2 * old + new if heads == "free" else new]
                np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_histogram_is_asked_for_its_expectation() -> None:
    table = the_market()
    bars = bars_of(table)
    settings = small(value_loss="categorical", atoms=8, gamma=GAMMA)
    support_K = support(settings, "cpu")
    assert support_K is not None
    logits = drawn(3, len(table), 2, 8)
    share = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    rows = torch.from_numpy(learnable_rows(table)[None])
    one = teacher_of(settings, bars, support_K).teach(rows, asked(logits), asked(logits))
    means = (share * (np.arange(8) * 5.0 - 17.5)).sum(axis=-1, keepdims=True)
    other = teacher_of(small(gamma=GAMMA), bars).teach(rows, asked(means), asked(means))
    np.testing.assert_allclose(one.value_EBOK, other.value_EBOK, atol=1e-4)


@pytest.mark.parametrize("shorts", [False, True])
def test_munchausens_targets_are_the_papers(*, shorts: bool) -> None:
    table, alpha, tau = the_market(), 0.9, 0.4
    bars = bars_of(table, shorts=shorts)
    hand, n = ByHand(bars, ALL_COSTS, bars.positions), len(bars.positions)
    q_TNN = drawn(2, len(table), n, n) / 2.0
    q_TNN[::3] *= 20.0  # log policies far below the clip
    settings = small(value_heads="free", gamma=GAMMA, munchausen=alpha, munchausen_temperature=tau)
    rows = learnable_rows(table)
    target = asked(q_TNN.reshape(len(table), -1, 1))
    taught = teacher_of(settings, bars).teach(
        torch.from_numpy(rows[None]), asked(drawn(9, len(table), n * n, 1)), target
    )

    def policy(values: np.ndarray) -> np.ndarray:
        weight = np.exp((values - values.max()) / tau)
        return weight / weight.sum()

    for place, t in enumerate(rows.tolist()):
        for old in range(n):
            for new in range(n):
                log_now = tau * math.log(max(policy(q_TNN[t, old])[new], 1e-300))
                later = policy(q_TNN[t + 1, new])
                soft = sum(w * (q - tau * math.log(w)) for w, q in zip(later, q_TNN[t + 1, new], strict=True) if w > 0)
                wanted = hand.reward(t, old, new) + alpha * min(0.0, max(-1.0, log_now)) + GAMMA * soft
                assert taught.value_EBOK[0, place, old * n + new, 0].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("heads", ["free", "post_decision"])
def test_what_the_bars_behind_a_transition_pay_is_in_no_target(heads: str) -> None:
    table = the_market()
    bars = bars_of(table, reward_scale=100.0)
    count = 4 if heads == "free" else 2
    ask, other = asked(drawn(1, len(table), count, 1)), asked(drawn(2, len(table), count, 1))
    teacher = teacher_of(small(value_heads=heads), bars)
    row = torch.tensor([[5]])
    before = teacher.teach(row, ask, other).value_EBOK.clone()
    bars.intrabar_TN[6:, 1] += 50.0
    bars.overnight_TN[7:, 1] += 50.0
    assert torch.equal(teacher.teach(row, ask, other).value_EBOK, before)
    bars.intrabar_TN[5, 1] += 1.0
    assert not torch.equal(teacher.teach(row, ask, other).value_EBOK, before)


class Periodic:
    """A market that repeats itself every `PERIOD` bars, and the exact values of its original problem."""

    PERIOD = 6
    SIDE = 0.004

    def __init__(self, *, shorts: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        rows = np.arange(4 * self.PERIOD) % self.PERIOD
        self.night_K, self.day_K = rng.normal(0.0, 0.002, self.PERIOD), rng.normal(0.0, 0.006, self.PERIOD)
        table = table_of(walk(n=len(rows)), holes=())
        self.table = paying(table, self.night_K[rows], self.day_K[rows], np.full(len(rows), self.SIDE))
        self.bars = bars_of(self.table, shorts=shorts, reward_scale=100.0)
        self.held = np.array(self.bars.positions)
        self.rows = np.arange(self.PERIOD, 2 * self.PERIOD)

    def exact(self, gamma: float) -> np.ndarray:
        """Value iteration, (PERIOD, N, N)."""
        held = self.held
        reward_KNN = 100.0 * (
            self.night_K[:, None, None] * held[:, None]
            - self.SIDE * np.abs(held - held[:, None])
            + self.day_K[:, None, None] * held
        )
        q_KNN = np.zeros_like(reward_KNN)
        for _ in range(400):
            q_KNN = reward_KNN + gamma * np.roll(q_KNN.max(axis=2), -1, axis=0)[:, None, :]
        return q_KNN

    def learned(self, **changes: Any) -> np.ndarray:
        """Targets put in place of the values until nothing moves, (PERIOD, O)."""
        settings = small(gamma=GAMMA, **changes)
        n = len(self.held)
        value_KO = np.zeros((self.PERIOD, n * n if settings.value_heads == "free" else n))
        teacher = teacher_of(settings, self.bars)
        for _ in range(250):
            ask = asked(np.tile(value_KO, (4, 1))[..., None])
            taught = teacher.teach(torch.from_numpy(self.rows[None]), ask, ask)
            value_KO = taught.value_EBOK[0, :, :, 0].numpy().astype(np.float64)
        return value_KO

    def potential(self, weight: float, count: int) -> np.ndarray:
        """(PERIOD, N)."""
        gain = 100.0 * (self.night_K + self.day_K)
        recent = [sum(gain[(k - 1 - j) % self.PERIOD] for j in range(count)) for k in range(self.PERIOD)]
        return weight * np.array(recent)[:, None] * self.held


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_free_values_settle_on_the_optimum_of_the_original_problem(*, shorts: bool, n_step: int) -> None:
    market = Periodic(shorts=shorts)
    n = len(market.held)
    learned = market.learned(value_heads="free", n_step=n_step).reshape(-1, n, n)
    np.testing.assert_allclose(learned, market.exact(GAMMA), atol=1e-4)


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_post_decision_values_settle_on_the_same_optimum(*, shorts: bool, n_step: int) -> None:
    market = Periodic(shorts=shorts)
    exact = market.exact(GAMMA)
    learned = market.learned(n_step=n_step)
    cost_NN = -100.0 * market.SIDE * np.abs(market.held - market.held[:, None])
    old_KN = 100.0 * market.night_K[:, None] * market.held
    q_KNN = cost_NN + learned[:, None, :]
    np.testing.assert_allclose(old_KN[:, :, None] + q_KNN, exact, atol=1e-4)
    np.testing.assert_array_equal(q_KNN.argmax(axis=2), exact.argmax(axis=2))
    assert len(np.unique(exact.argmax(axis=2))) > 1


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("n_step", [1, 2])
def test_a_shaped_reward_moves_values_by_the_potential_and_no_choice(*, shorts: bool, n_step: int) -> None:
    market = Periodic(shorts=shorts)
    n = len(market.held)
    shaped = market.learned(
        value_heads="free", reward="shaped", shaping_weight=2.0, shaping_bars=4, n_step=n_step
    ).reshape(-1, n, n)
    exact, phi_KN = market.exact(GAMMA), market.potential(2.0, 4)
    assert np.abs(phi_KN).max() > 1.0
    np.testing.assert_allclose(shaped, exact - phi_KN[:, :, None], atol=1e-3)
    np.testing.assert_array_equal(shaped.argmax(axis=2), exact.argmax(axis=2))


def test_a_recent_gain_knows_no_bar_that_is_not_over_and_none_of_another_run() -> None:
    late = replace(ALL_COSTS, latency_bars=2)
    table = the_market(late)
    bars = bars_of(table, reward_scale=1.0)
    long_T = table.reward_TPN[:, 2, 2]
    gained_T = recent_gains(bars, 3)
    for t in table.start_rows.tolist():
        known = [i for i in (t - 4, t - 3, t - 2) if i >= 0 and table.run_end_T[i] == table.run_end_T[t]]
        assert gained_T[t].item() == pytest.approx(sum(long_T[i] for i in known), abs=1e-6)
