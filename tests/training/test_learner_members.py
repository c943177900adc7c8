"""Members of an ensemble: who leaves out what, and that nobody depends on anybody."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import bars_of, ensemble_of, exported, learner_of, market, run_to, small
from small_markets import HOUR_NS, table_of, walk

from training.dqn.bars import blocks_in_time, earliest, latest, learnable_rows, left_out
from training.dqn.ensemble import Ensemble, members_of, train_ensemble
from training.errors import TrainingError
from training.market import MarketTable

KINDS: list[dict[str, Any]] = [
    {},
    {"double": False},
    {"network": "attention", "group_width": 4},
    {"norm": "batch"},
    {"replay": "transitions", "value_heads": "free", "prioritised": True},
]


def pooled(n: int = 300) -> MarketTable:
    """Three symbols over the same hours."""
    return table_of(*(walk(name, n, seed=seed) for seed, name in enumerate("ABC")), holes=(0, 1))


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_number_of_threads_changes_no_bit(changes: dict[str, Any]) -> None:
    weights = []
    for threads in (1, 2, 3):
        ensemble = ensemble_of(small(members=3, threads=threads, **changes), market())
        run_to(ensemble, 12)
        weights.append(exported(ensemble))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_member_learns_the_same_in_any_company(changes: dict[str, Any]) -> None:
    settings, table = small(**changes), market()
    groups = [learner_of(settings, table, seeds=seeds) for seeds in ((1, 2, 3), (2,), (2, 9))]
    for learner in groups:
        for _ in range(6):
            learner.update(torch.full((len(learner.online.values_EW),), 0.01))
    of_two = [groups[0].online.values_EW[1], groups[1].online.values_EW[0], groups[2].online.values_EW[0]]
    assert torch.equal(of_two[0], of_two[1])
    assert torch.equal(of_two[0], of_two[2])
    assert not torch.equal(groups[0].online.values_EW[0], of_two[0])


def test_a_smaller_ensemble_is_a_part_of_a_larger_one() -> None:
    five, three = (run_to(ensemble_of(small(members=members), market()), 12) for members in (5, 3))
    assert torch.equal(exported(five)[:3], exported(three))


def test_left_out_blocks_share_no_instant_and_cover_all() -> None:
    table = pooled()
    members = members_of(table, small(members=5), 1, embargo_bars=4)
    own = [set(one.own.tolist()) for one in members]
    assert sum(map(len, own)) == len(set().union(*own)) == len(learnable_rows(table))
    spans = sorted((table.close_ns_T[one.own].min(), table.close_ns_T[one.own].max()) for one in members)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    sizes = [len(one) for one in own]
    assert max(sizes) - min(sizes) <= 6
    assert len({one.seed for one in members}) == 5


def test_nobody_learns_from_near_its_own_block_and_everything_else_is_learned() -> None:
    table, embargo = pooled(), 4
    for member in members_of(table, small(members=5), 1, embargo_bars=embargo):
        for symbol in range(3):
            of_symbol = table.symbol_T == symbol
            own = member.own[of_symbol[member.own]]
            wanted = {
                int(row)
                for row in learnable_rows(table)
                if of_symbol[row] and not own.min() - embargo <= row <= own.max() + embargo
            }
            assert set(member.rows[of_symbol[member.rows]].tolist()) == wanted


def test_an_embargo_stays_a_small_share_of_a_block() -> None:
    table = pooled()
    for member in members_of(table, small(members=5), 1, embargo_bars=10_000):
        left = len(learnable_rows(table)) - len(member.rows) - len(member.own)
        assert 0 < left <= 2 * 0.1 * len(member.own) + 6


@given(embargo=st.integers(0, 40), count=st.integers(2, 7), holes=st.sets(st.integers(2, 80), max_size=6))
def test_an_embargo_is_exact_for_every_symbol(embargo: int, count: int, holes: set[int]) -> None:
    table = table_of(walk("A", 90), walk("B", 60, seed=1), holes=(0, 1, *(hole for hole in holes if hole < 60)))
    rows = learnable_rows(table)
    for block in blocks_in_time(table, rows, count):
        kept = left_out(table, rows, block, embargo)
        for row in rows.tolist():
            same = block[table.symbol_T[block] == table.symbol_T[row]]
            near = len(same) > 0 and same.min() - embargo <= row <= same.max() + embargo
            assert (row in kept) != near


@pytest.mark.parametrize("n_step", [1, 5])
def test_no_target_reaches_into_a_block_that_is_left_out(n_step: int) -> None:
    table = pooled()
    for member in members_of(table, small(members=5, n_step=n_step), 1, embargo_bars=0):
        reached = np.unique(member.rows[:, None] + np.arange(n_step + 1))
        assert not set(reached.tolist()) & set(member.own.tolist())


def test_evidence_is_of_all_symbols_alike() -> None:
    table = pooled()
    rows = learnable_rows(table)
    for some in (earliest(table, rows, 30), latest(table, rows, 30)):
        assert np.bincount(table.symbol_T[some]).tolist() == [10, 10, 10]
    assert table.close_ns_T[earliest(table, rows, 30)].max() == table.close_ns_T[rows].min() + 9 * HOUR_NS
    assert table.close_ns_T[latest(table, rows, 30)].min() == table.close_ns_T[rows].max() - 9 * HOUR_NS
    assert earliest(table, rows, 10**6).tolist() == rows.tolist()


def test_too_few_bars_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(TrainingError, match="at least 50 are needed"):
        ensemble_of(small(), table_of(walk(n=30)))


def test_many_symbols_over_too_few_instants_are_refused() -> None:
    table = table_of(*(walk(f"S{k}", 6, seed=k) for k in range(40)), holes=(0, 1))
    with pytest.raises(TrainingError, match="2 closes cannot be cut into 5 blocks of time"):
        ensemble_of(small(), table)


def test_prices_that_never_move_are_refused() -> None:
    table = market()
    table.reward_TPN[np.isfinite(table.reward_TPN)] = 0.0
    with pytest.raises(TrainingError, match="never move"):
        ensemble_of(small(), table)


def test_rewards_have_unit_deviation_and_inputs_are_clipped() -> None:
    table = market()
    bars = bars_of(table, clip=1.5)
    rows = torch.from_numpy(learnable_rows(table))
    assert (bars.intrabar_TN + bars.overnight_TN)[rows, 1].std(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    x_RF = bars.observe(rows)
    assert x_RF.abs().max() == 1.5
    raw = table.features_TF[rows]
    wanted = np.clip((raw - raw.mean(0)) / raw.std(0), -1.5, 1.5)
    np.testing.assert_allclose(x_RF, wanted, atol=1e-5)


def test_what_comes_after_the_training_rows_is_not_heard_of() -> None:
    table = table_of(walk(n=300), holes=())
    spoilt = replace(table, observations_TG=table.observations_TG.copy(), reward_TPN=table.reward_TPN.copy())
    before = np.arange(300) < 200
    spoilt.observations_TG[200:, :-1] = 1e6
    spoilt.reward_TPN[200:] *= 50.0
    one, other = (run_to(ensemble_of(small(), each.where(before)), 12) for each in (table, spoilt))
    assert torch.equal(exported(one), exported(other))


def test_a_time_budget_ends_a_training() -> None:
    told: list[tuple[int, int]] = []
    trained = train_ensemble(
        market(),
        small(updates=1_000_000),
        [slice(0, 3)],
        seed=1,
        shorts=False,
        budget_s=0.2,
        on_progress=lambda done, planned: told.append((done, planned)),
    )
    assert trained.stopped_by_budget
    assert 0 < trained.updates < 1_000_000
    assert told[-1] == (trained.updates, 1_000_000)


def test_records_have_one_entry_for_each_member_in_their_order() -> None:
    ensemble = run_to(ensemble_of(small(members=3, threads=2), market()), 12)
    alone = [run_to(ensemble_of(small(members=3, threads=1), market()), 12)]
    assert [record["update"] for record in ensemble.records] == [6, 12]
    for name in ("loss", "td_p50", "grad_norm", "train_bps", "validation_bps", "target_gap", "lr"):
        assert len(ensemble.records[-1][name]) == 3
        if name != "target_gap":
            np.testing.assert_allclose(ensemble.records[-1][name], alone[0].records[-1][name])


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    ensemble: Ensemble = ensemble_of(small(updates=400, evaluations=400, batch_bars=1, learning_rate=1.0), market())
    run_to(ensemble, 400)
    rates = [record["lr"][0] for record in ensemble.records]
    assert rates[0] == pytest.approx(0.02)
    assert np.argmax(rates) == 49
    assert rates[-1] < 1e-4


def test_plateau_halves_the_rate_of_a_member_that_does_not_improve() -> None:
    settings = small(updates=60, evaluations=60, lr_schedule="plateau", lr_patience=4, learning_rate=1e-9, members=2)
    ensemble = run_to(ensemble_of(settings, market()), 60)
    warm = np.minimum(1.0, np.arange(1, 61) / 50)
    for member in (0, 1):
        factors = np.array([record["lr"][member] for record in ensemble.records]) / 1e-9 / warm
        scores = [record["validation_bps"][member] for record in ensemble.records]
        factor, highest, waited = 1.0, -np.inf, 0
        for told, score in zip(factors, scores, strict=True):
            assert told == pytest.approx(factor)
            waited += 1
            if score > highest:
                highest, waited = score, 0
            elif waited == 4:
                factor, waited = factor / 2.0, 0
        assert factor < 1.0
