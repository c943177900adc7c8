import numpy as np
import pytest

from training.instructions import LANES, NARROW, ROWS, WIDE, block_narrow, block_wide
from training.machine_code import generator, machine_code, next_below, next_bits


def test_integers_below_a_bound_are_even() -> None:
    state = generator("test", 1)
    for count in (1, 2, 7, 1_000):
        drawn = np.array([next_below(state, count) for _ in range(20_000)])
        times = np.bincount(drawn, minlength=count)
        assert len(times) == count
        freedom = max(count - 1, 1)
        surprise = ((times - 20_000 / count) ** 2 / (20_000 / count)).sum()
        assert surprise < freedom + 5.0 * np.sqrt(2.0 * freedom)


def test_the_generator_is_the_published_one() -> None:
    state = np.array([1_234_567], dtype=np.uint64)
    # the first numbers of SplitMix64 from this seed, as its authors' program prints them
    assert [int(next_bits(state)) for _ in range(3)] == [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
    ]


def test_every_key_has_a_generator_of_its_own() -> None:
    states = {int(generator(*key)[0]) for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 0))}
    assert len(states) == 4
    assert generator("a", 1).tolist() == generator("a", 1).tolist()


@machine_code
def _blocks(out, left, right, start, terms, transposed, floor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 -- a kernel
    row, term = (1, ROWS) if transposed else (terms, 1)
    block_wide(out, 0, WIDE + NARROW, left, 0, row, term, right, 0, WIDE + NARROW, terms, start, 0, floor)
    block_narrow(out, WIDE, WIDE + NARROW, left, 0, row, term, right, WIDE, WIDE + NARROW, terms, start, WIDE, floor)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_block_is_a_matrix_product_with_a_start_and_a_floor(*, transposed: bool) -> None:
    assert LANES in {8, 16}
    rng = np.random.default_rng(0)
    terms = 13
    left = rng.normal(size=(terms, ROWS) if transposed else (ROWS, terms)).astype(np.float32)
    right = rng.normal(size=(terms, WIDE + NARROW)).astype(np.float32)
    start = rng.normal(size=WIDE + NARROW).astype(np.float32)
    wanted = start + (left.T if transposed else left).astype(np.float64) @ right
    for floor in (-np.inf, 0.0):
        out = np.zeros((ROWS, WIDE + NARROW), dtype=np.float32)
        _blocks(out.ravel(), left.ravel(), right.ravel(), start, terms, transposed, np.float32(floor))
        np.testing.assert_allclose(out, np.maximum(wanted, floor), rtol=1e-5, atol=1e-5)


def test_a_sum_that_is_not_a_number_stays_one() -> None:
    left, right = np.ones(ROWS, dtype=np.float32), np.ones(WIDE + NARROW, dtype=np.float32)
    right[3] = np.nan
    out = np.zeros((ROWS, WIDE + NARROW), dtype=np.float32)
    _blocks(out.ravel(), left, right, np.zeros_like(right), 1, False, np.float32(0.0))  # noqa: FBT003 -- a kernel
    assert np.isnan(out[:, 3]).all()
    assert (np.delete(out, 3, axis=1) == 1.0).all()
