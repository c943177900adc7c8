"""Looking up times in sorted times, with and without the way that looks up nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.series import places_in

TIMES = st.lists(st.integers(-20, 60), max_size=12)


@pytest.mark.parametrize("side", ["left", "right"])
@given(times=TIMES, asked=TIMES)
def test_places_are_those_of_a_search(side: Literal["left", "right"], times: list[int], asked: list[int]) -> None:
    sorted_ns, at_ns = np.unique(np.array(times, dtype=np.int64)), np.array(asked, dtype=np.int64)
    assert places_in(sorted_ns, at_ns, side=side).tolist() == sorted_ns.searchsorted(at_ns, side=side).tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@given(shifts=st.lists(st.integers(0, 11), min_size=1, max_size=12))
def test_places_of_times_that_run_along_are_those_of_a_search(
    side: Literal["left", "right"], shifts: list[int]
) -> None:
    sorted_ns = 10 * np.arange(1, len(shifts) + 1, dtype=np.int64)
    at_ns = sorted_ns - np.array(shifts, dtype=np.int64)
    assert places_in(sorted_ns, at_ns, side=side).tolist() == sorted_ns.searchsorted(at_ns, side=side).tolist()
