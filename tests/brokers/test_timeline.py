"""The events of a feed in their order: however they are merged, they are those of a plain sort."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from exchange_kit import PERIOD, T0, flat, series
from hypothesis import given
from hypothesis import strategies as st

from brokers.calendar import calendar
from brokers.simulated.feed import CLOSE, OPEN, Feed, Timeline

BARS = 12
DEADLINE_NS = 10_000_000_000
Missing = st.sets(st.integers(0, BARS - 1), max_size=BARS - 2)


def timeline(missing: list[set[int]], splits: set[int]) -> tuple[Feed, Timeline]:
    factor = np.cumprod([0.5 if bar in splits else 1.0 for bar in range(BARS)]).tolist()
    names = "ABC"[: len(missing)]
    bars = {
        name: series(name, flat(BARS), skip=sorted(gone), adj=factor) for name, gone in zip(names, missing, strict=True)
    }
    feed = Feed(bars, PERIOD, calendar("24/7"), T0 - timedelta(minutes=5))
    return feed, Timeline.of(feed, DEADLINE_NS)


def expected(feed: Feed, found: Timeline) -> list[tuple[int, int, int, int]]:
    """Return (time, kind, symbol, bar) of every event: at one instant closes come first, symbols in their order."""
    events = []
    for place, symbol in enumerate(feed.symbols):
        for bar in range(len(feed.series[symbol])):
            events.append((int(feed.series[symbol].close_ns[bar]), CLOSE, place, bar))
            events.append((int(found.opens_ns[place][bar]), OPEN, place, bar))
    return sorted(events)


@given(st.lists(Missing, min_size=1, max_size=3), st.sets(st.integers(1, BARS - 1)))
def test_events_come_in_the_order_of_a_plain_sort(missing: list[set[int]], splits: set[int]) -> None:
    feed, found = timeline(missing, splits)
    times = np.repeat(found.times_ns, np.diff(found.offsets))
    columns = (times, found.kinds, found.symbols, found.bars)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected(feed, found)
    assert (np.diff(found.times_ns) > 0).all(), "an instant comes once"


@given(st.lists(Missing, min_size=1, max_size=3), st.sets(st.integers(1, BARS - 1)))
def test_an_instant_is_flagged_where_a_bar_opens_with_another_factor(missing: list[set[int]], splits: set[int]) -> None:
    feed, found = timeline(missing, splits)
    acting = set()
    for place, symbol in enumerate(feed.symbols):
        factor = feed.series[symbol].adj_factor
        acting |= {int(found.opens_ns[place][bar]) for bar in range(1, len(factor)) if factor[bar] != factor[bar - 1]}
    assert set(found.times_ns[found.has_action].tolist()) == acting
