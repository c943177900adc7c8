"""How fast a venue is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brokers.alpaca.pacing import TokenBucket


class Wall:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(per_minute=st.integers(1, 400), pauses_s=st.lists(st.floats(0.0, 3.0), min_size=50, max_size=400))
def test_no_minute_holds_more_requests_than_the_limit(per_minute: int, pauses_s: list[float]) -> None:
    wall = Wall()
    bucket = TokenBucket(per_minute, wall)
    sent: list[float] = []
    for pause_s in pauses_s:
        wall.now_s += pause_s
        for _ in range(per_minute):
            if bucket.take(urgent=True) > 0.0:
                break
            sent.append(wall.now_s)
    for place, at_s in enumerate(sent):
        assert sum(at_s <= other < at_s + 60.0 for other in sent[place:]) <= per_minute


def test_a_reserve_is_kept_for_exits() -> None:
    bucket = TokenBucket(200, Wall())
    while bucket.take(urgent=False) == 0.0:
        pass
    assert [bucket.take(urgent=True) for _ in range(30)] == [0.0] * 30
