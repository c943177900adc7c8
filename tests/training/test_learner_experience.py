"""Where batches come from: the rows of the market, or what episodes went through."""

from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import market, small

from training.dqn.bars import learnable_rows
from training.dqn.experience import Episodes, MarketDraws
from training.market import Int, MarketTable

FLAT, LONG = 0, 1


def stay_flat(row_EK: torch.Tensor, held_EK: torch.Tensor) -> torch.Tensor:
    del row_EK
    return torch.full_like(held_EK, FLAT)


def go_on(row_EK: torch.Tensor, held_EK: torch.Tensor) -> torch.Tensor:
    """A target that depends on row and position, so that a wrong one is seen."""
    return (row_EK + held_EK) % 2


def episodes(table: MarketTable, rows: Int | None = None, members: int = 1, **changes: Any) -> Episodes:
    usual = {
        "replay": "transitions",
        "n_envs": 4,
        "steps_per_update": 8,
        "episode_bars": 7,
        "buffer_size": 4_000,
        "exploration_initial": 0.0,
        "exploration_final": 0.0,
    }
    rows = learnable_rows(table) if rows is None else rows
    return Episodes(small(**{**usual, **changes}), table, [rows] * members, list(range(members)), n_targets=2)


def kept(experience: Episodes) -> tuple[Int, Int]:
    """Rows and pairs of every stored transition of the first member, in order."""
    count = experience.steps * 4
    state = experience.state()
    return state["ring"][0][:count], state["pair"][0][:count].astype(np.int64)


def test_transitions_never_cross_the_end_of_a_run_nor_leave_the_rows_of_their_member() -> None:
    table = market()
    rows = learnable_rows(table)
    rows = rows[(rows < 60) | (rows > 80)]
    experience = episodes(table, rows)
    for _ in range(200):
        experience.advance(stay_flat, 0.0)
    at, _ = kept(experience)
    assert set(at.tolist()) <= set(rows.tolist())
    assert len(set(at.tolist())) > 0.9 * len(rows)


def test_an_episode_goes_on_row_by_row_with_what_it_holds() -> None:
    table = market()
    experience = episodes(table, n_envs=4)
    for _ in range(100):
        experience.advance(go_on, 0.0)
    at, pair = kept(experience)
    at_SK, pair_SK = at.reshape(-1, 4), pair.reshape(-1, 4)
    np.testing.assert_array_equal(pair_SK % 2, (at_SK + pair_SK // 2) % 2)
    goes_on = at_SK[1:] == at_SK[:-1] + 1
    assert goes_on.mean() > 0.7
    # a new episode begins right behind the old one by chance, now and then
    assert ((pair_SK[1:] // 2)[goes_on] == (pair_SK[:-1] % 2)[goes_on]).mean() > 0.98


def test_no_episode_is_longer_than_its_bars() -> None:
    experience = episodes(market(), n_envs=4)
    for _ in range(100):
        experience.advance(stay_flat, 0.0)
    at_SK = kept(experience)[0].reshape(-1, 4)
    for column in at_SK.T:
        spells = np.split(column, np.flatnonzero(np.diff(column) != 1) + 1)
        assert max(len(one) for one in spells) <= 2 * 7  # two that follow by chance, at the most


@pytest.mark.parametrize(("steps_per_update", "updates", "steps"), [(8, 10, 20), (4, 10, 10), (1, 16, 4), (6, 4, 6)])
def test_steps_are_made_as_often_as_updates_are_due_to(steps_per_update: float, updates: int, steps: int) -> None:
    experience = episodes(market(), steps_per_update=steps_per_update)
    for _ in range(updates):
        experience.advance(stay_flat, 0.0)
    assert abs(experience.steps - steps) <= 1


def test_exploration_falls_by_episodes_to_its_floor_after_fifteen_hundred() -> None:
    experience = episodes(
        market(),
        exploration="per_episode",
        exploration_initial=1.0,
        exploration_final=0.05,
        episode_bars=8,
        steps_per_update=4,
    )
    told: list[float] = []
    for _ in range(3_100):
        experience.advance(stay_flat, 0.0)
        told.append(experience.epsilon or 0.0)
    assert told == pytest.approx([max(0.05, 0.998 ** (step // 2)) for step in range(3_100)], rel=1e-12)
    assert told[2 * 1_490] > 0.05 == told[2 * 1_500]


def test_exploration_falls_in_a_line_over_its_share_of_the_updates() -> None:
    experience = episodes(market(), exploration_initial=0.8, exploration_final=0.1, exploration_fraction=0.5)
    told: list[float] = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        experience.advance(stay_flat, progress)
        told.append(experience.epsilon or 0.0)
    assert told == pytest.approx([0.8, 0.45, 0.1, 0.1])


def test_an_explorer_takes_every_target_alike_and_a_greedy_one_none_but_the_best() -> None:
    wild = episodes(market(), exploration_initial=1.0, exploration_final=1.0)
    calm = episodes(market())
    for experience in (wild, calm):
        for _ in range(200):
            experience.advance(stay_flat, 0.0)
    assert abs((kept(wild)[1] % 2).mean() - 0.5) < 0.05
    assert (kept(calm)[1] % 2 == FLAT).all()


@pytest.mark.parametrize(("start", "shares"), [("flat", {FLAT}), ("random", {FLAT, LONG})])
def test_episodes_start_where_they_are_told_to(start: str, shares: set[int]) -> None:
    experience = episodes(market(), start_position=start, n_envs=40)
    assert set(experience.state()["held"][0].tolist()) == shares


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_full_ring_forgets_the_oldest(*, prioritised: bool) -> None:
    experience = episodes(market(), buffer_size=10, prioritised=prioritised)
    order: list[int] = []

    def watching(row_EK: torch.Tensor, held_EK: torch.Tensor) -> torch.Tensor:
        order.extend(row_EK[0].tolist())
        return torch.zeros_like(held_EK)

    for _ in range(9):
        experience.advance(watching, 0.0)
    assert sorted(experience.state()["ring"][0].tolist()) == sorted(order[-10:])
    drawn = experience.draw(0.0)
    assert set(drawn.row_EB.ravel().tolist()) <= set(order[-10:])


def test_early_draws_are_of_what_was_lived() -> None:
    experience = episodes(market())
    experience.advance(stay_flat, 0.0)
    at, _ = kept(experience)
    assert set(experience.draw(0.0).row_EB.ravel().tolist()) <= set(at.tolist())


def test_a_draw_of_a_transition_is_a_row_with_its_own_pair() -> None:
    experience = episodes(market(), prioritised=True)
    for _ in range(20):
        experience.advance(go_on, 0.0)
    at, pair = kept(experience)
    known = set(zip(at.tolist(), pair.tolist(), strict=True))
    draw = experience.draw(0.5)
    assert draw.pair_EB is not None
    assert set(zip(draw.row_EB[0].tolist(), draw.pair_EB[0].tolist(), strict=True)) <= known


@pytest.mark.parametrize("replay", ["market", "transitions"])
def test_what_surprises_is_drawn_more_often_and_weighted_back(replay: str) -> None:
    table = market()
    rows = learnable_rows(table)
    experience: MarketDraws | Episodes
    if replay == "market":
        experience = MarketDraws(small(prioritised=True, priority_alpha=1.0, batch_bars=256), [rows], [1])
    else:
        experience = episodes(table, prioritised=True, priority_alpha=1.0, batch_bars=256)
        for _ in range(30):
            experience.advance(stay_flat, 0.0)
    for _ in range(30):
        draw = experience.draw(1.0)
        odd_EB = (draw.row_EB % 2).numpy().astype(np.float32)
        experience.update(draw, odd_EB * 2.0)
    draw = experience.draw(1.0)
    odd_EB = (draw.row_EB % 2).numpy() == 1
    assert odd_EB.mean() > 0.95
    assert draw.weight_EB is not None
    if not odd_EB.all():
        weight_EB = draw.weight_EB.numpy()
        assert weight_EB[odd_EB].mean() < 0.1 * weight_EB[~odd_EB].mean()


def test_the_correction_of_the_weights_rises_with_the_training() -> None:
    rows = learnable_rows(market())
    experience = MarketDraws(small(prioritised=True, priority_beta=0.0, batch_bars=256), [rows], [1])
    draw = experience.draw(0.0)
    experience.update(draw, (draw.row_EB % 2).numpy().astype(np.float32) * 3.0)
    spreads = []
    for progress in (0.0, 0.5, 1.0):
        weight_EB = experience.draw(progress).weight_EB
        assert weight_EB is not None
        spreads.append(weight_EB.max().item() / weight_EB.min().item())
    assert spreads[0] == 1.0
    assert spreads[2] == pytest.approx(spreads[1] ** 2, rel=1e-3)
    assert spreads[1] > 1.5


def test_bars_are_drawn_evenly_and_only_those_of_the_member() -> None:
    rows = learnable_rows(market())
    experience = MarketDraws(small(batch_bars=5_000), [rows[:50], rows[50:90]], [1, 2])
    row_EB = experience.draw(0.0).row_EB.numpy()
    for drawn, own in zip(row_EB, (rows[:50], rows[50:90]), strict=True):
        counts = np.array([(drawn == row).sum() for row in own])
        assert counts.sum() == 5_000
        assert np.abs(counts / 5_000 * len(own) - 1.0).max() < 0.45


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_members_draws_do_not_depend_on_its_company(*, prioritised: bool) -> None:
    table = market()
    three, one = (episodes(table, members=count, prioritised=prioritised, exploration_initial=1.0) for count in (3, 1))
    for experience in (three, one):
        for _ in range(10):
            experience.advance(stay_flat, 0.1)
    assert torch.equal(three.draw(0.2).row_EB[:1], one.draw(0.2).row_EB)
