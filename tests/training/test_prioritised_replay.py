from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.dqn.prioritised import PrioritisedSlots, annealed
from training.errors import TrainingError

ALPHA, CLIP, EPSILON = 0.6, 1.0, 0.01


def filled(errors: NDArray[Any], *, capacity: int | None = None, seed: int = 0, **law: float) -> PrioritisedSlots:
    """A store whose slot i holds error i."""
    store = PrioritisedSlots(capacity or len(errors), seed=seed, **law)
    slot_B = store.append(len(errors))
    store.update(slot_B, errors.astype(np.float32))
    return store


def expected(errors: NDArray[Any]) -> NDArray[np.float64]:
    """Schaul's probabilities, in doubles."""
    priority = (np.minimum(np.abs(errors.astype(np.float32)), CLIP) + EPSILON) ** ALPHA
    return priority / priority.sum()


def surprise_of_counts(store: PrioritisedSlots, probability: NDArray[np.float64], draws: int) -> float:
    """Pearson's chi-square of drawn frequencies, in standard deviations above its mean."""
    counts = np.zeros(len(probability))
    for _ in range(draws // 1_000):
        counts += np.bincount(store.sample(1_000, 0.0)[0], minlength=len(probability))
    wanted = probability * counts.sum()
    freedom = len(probability) - 1
    return float((((counts - wanted) ** 2 / wanted).sum() - freedom) / np.sqrt(2.0 * freedom))


@pytest.mark.parametrize(
    "errors",
    [
        np.random.default_rng(1).normal(0.0, 0.5, 97),
        np.full(64, 0.3),
        np.concatenate([np.zeros(199), [50.0]]),
        np.array([0.0, 1e-9, 0.5]),
        np.geomspace(1e-4, 10.0, 33),
    ],
    ids=["noise", "all equal", "one huge among zeros", "three", "five decades"],
)
def test_slots_are_drawn_in_proportion_to_their_clipped_errors(errors: NDArray[Any]) -> None:
    store = filled(errors)
    np.testing.assert_allclose(store.probabilities(), expected(errors), rtol=1e-6)
    assert surprise_of_counts(store, expected(errors), 200_000) < 5.0


def test_a_single_slot_is_drawn_every_time() -> None:
    slot_B, weight_B = filled(np.array([0.1])).sample(5, 1.0)
    assert slot_B.tolist() == [0] * 5
    assert weight_B.tolist() == [1.0] * 5


def test_alpha_zero_draws_evenly() -> None:
    store = filled(np.geomspace(1e-3, 1.0, 50), alpha=0.0)
    assert store.probabilities().tolist() == [1 / 50] * 50
    assert surprise_of_counts(store, np.full(50, 1 / 50), 100_000) < 5.0


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_undo_the_preference_relative_to_the_largest_of_the_batch(beta: float) -> None:
    errors = np.random.default_rng(3).normal(0.0, 0.5, 200)
    slot_B, weight_B = filled(errors).sample(64, beta)
    wanted = (len(errors) * expected(errors)[slot_B]) ** -beta
    np.testing.assert_allclose(weight_B, wanted / wanted.max(), rtol=1e-6)


def test_weights_anneal_to_a_full_correction_at_the_last_step() -> None:
    assert [annealed(0.4, step, 7) for step in (0, 3, 6, 100)] == [0.4, 0.7, 1.0, 1.0]
    assert annealed(0.4, 0, 1) == 0.4


def test_a_growing_store_draws_only_from_the_slots_in_use() -> None:
    store = PrioritisedSlots(100)
    assert store.append(10).tolist() == list(range(10))
    assert set(store.sample(1_000, 0.5)[0].tolist()) == set(range(10))
    store.append(15)
    assert len(store) == 25
    assert set(store.sample(2_000, 0.5)[0].tolist()) == set(range(25))


def test_a_full_store_overwrites_its_oldest_slots_with_the_largest_priority() -> None:
    store = filled(np.zeros(10))
    store.append(7)
    assert store.append(5).tolist() == [7, 8, 9, 0, 1]
    largest = (CLIP + EPSILON) ** ALPHA
    assert len(store) == 10
    np.testing.assert_allclose(store.probabilities(), np.full(10, 0.1), rtol=1e-9)
    store.update(np.arange(10), np.zeros(10))
    store.append(3)  # slots 2, 3, 4
    small = EPSILON**ALPHA
    wanted = np.where(np.isin(np.arange(10), [2, 3, 4]), largest, small)
    np.testing.assert_allclose(store.probabilities(), wanted / wanted.sum(), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_running_sum_is_exact_after_any_history(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 40))
    store = PrioritisedSlots(capacity, seed=data.draw(st.integers(0, 9)))
    for _ in range(data.draw(st.integers(1, 12))):
        store.append(data.draw(st.integers(1, capacity)))
        slot_B = np.array(data.draw(st.lists(st.integers(0, len(store) - 1), min_size=1, max_size=50)))
        errors = data.draw(st.lists(st.floats(-1e30, 1e30), min_size=len(slot_B), max_size=len(slot_B)))
        store.update(slot_B, np.array(errors))  # a slot more than once: the last error stands
    state = store.state()
    assert state["books"][2] == state["share"].sum(dtype=np.int64)
    assert store.probabilities().sum() == pytest.approx(1.0, rel=1e-12)


def test_the_bound_is_tight_again_after_the_only_large_priority_is_gone() -> None:
    store = filled(np.concatenate([np.zeros(99), [1.0]]))
    for _ in range(20):
        store.update(np.arange(99, 100), np.zeros(1))
    state = store.state()
    assert state["books"][3] == state["share"].max()


def test_a_restored_store_goes_on_as_if_it_had_never_stopped() -> None:
    rng = np.random.default_rng(5)
    errors = rng.normal(0.0, 0.5, 300)
    going = filled(errors, capacity=400)
    going.sample(64, 0.4)
    resumed = PrioritisedSlots(400, seed=77)
    resumed.restore(going.state())
    for _ in range(30):
        drawn = [store.sample(64, 0.7) for store in (going, resumed)]
        assert drawn[0][0].tolist() == drawn[1][0].tolist()
        assert drawn[0][1].tolist() == drawn[1][1].tolist()
        found = rng.normal(0.0, 0.5, 64)
        for store in (going, resumed):
            store.update(drawn[0][0], found)
            store.append(9)
    assert going.state()["books"].tolist() == resumed.state()["books"].tolist()
    assert going.state()["share"].tolist() == resumed.state()["share"].tolist()


def test_a_state_does_not_move_with_the_store_it_was_taken_from() -> None:
    store = filled(np.full(20, 0.5))
    state = store.state()
    store.update(np.arange(20), np.zeros(20))
    store.sample(8, 0.5)
    again = PrioritisedSlots(20)
    again.restore(state)
    np.testing.assert_allclose(again.probabilities(), 1 / 20)


def test_a_state_of_another_law_or_with_wrong_books_is_refused() -> None:
    store = filled(np.full(20, 0.5))
    with pytest.raises(TrainingError, match=r"kept with \(alpha, clip, epsilon\) \[0.6, 1.0, 0.01\], not \[0.5"):
        PrioritisedSlots(20, alpha=0.5).restore(store.state())
    with pytest.raises(TrainingError, match="do not fit"):
        PrioritisedSlots(10).restore(store.state())
    spoilt = store.state()
    spoilt["share"][3] += 1
    with pytest.raises(TrainingError, match="does not agree"):
        PrioritisedSlots(20).restore(spoilt)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"capacity": 0}, "of 0 slots"),
        ({"capacity": 2**30 + 1}, "slots"),
        ({"capacity": 8, "alpha": 1.5}, "alpha is 1.5"),
        ({"capacity": 8, "clip": 0.0}, "clip is 0.0"),
        ({"capacity": 8, "epsilon": float("nan")}, "epsilon is nan"),
    ],
)
def test_a_law_out_of_bounds_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        PrioritisedSlots(**arguments)


def test_an_error_that_is_no_number_changes_nothing() -> None:
    store = filled(np.full(4, 0.5))
    before = store.probabilities().tolist()
    with pytest.raises(TrainingError, match=r"slot 2 of 4 in use cannot take the error nan"):
        store.update(np.array([0, 2]), np.array([0.1, np.nan]))
    with pytest.raises(TrainingError, match="slot 9 of 4"):
        store.update(np.array([0, 9]), np.array([0.1, 0.1]))
    with pytest.raises(TrainingError, match="one error for each slot"):
        store.update(np.array([0]), np.array([0.1, 0.1]))
    assert store.probabilities().tolist() == before


def test_nothing_can_be_drawn_from_an_empty_store() -> None:
    store = PrioritisedSlots(4)
    with pytest.raises(TrainingError, match="append some before drawing"):
        store.sample(2, 0.4)
    with pytest.raises(TrainingError, match="append 1 to 4"):
        store.append(5)
    store.append(1)
    with pytest.raises(TrainingError, match=r"beta 1\.1"):
        store.sample(2, 1.1)
