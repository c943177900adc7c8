import gc
from collections.abc import Iterator

import pytest

from agent.cycle import collected_afterwards


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_garbage_is_searched_again_after_a_close_that_failed() -> None:
    def fail() -> None:
        with collected_afterwards():
            assert not gc.isenabled()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert gc.isenabled()


def test_two_closes_at_once_leave_the_collector_on() -> None:
    first, second = collected_afterwards(), collected_afterwards()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_collector_that_was_switched_off_stays_off() -> None:
    gc.disable()
    with collected_afterwards():
        pass
    assert not gc.isenabled()
