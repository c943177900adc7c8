"""Long series for small screens: in every bucket of time the lowest and the highest value stay.

Axes: T points, B buckets.
"""

from __future__ import annotations

import numpy as np

from brokers.series import Float, Int


def buckets_of(time_T: Int, buckets: int) -> Int:
    """Return the bucket of each point: `buckets` equal parts of the span of time."""
    span = int(time_T[-1] - time_T[0]) + 1
    # split in two steps: nanoseconds of years times a thousand buckets would overflow
    width = max(1, -(-span // buckets))
    bucket_T: Int = (time_T - time_T[0]) // width
    return bucket_T


def thin(time_T: Int, value_T: Float, buckets: int) -> Int:
    """Return the indexes to keep, ascending: first, last, and each bucket's lowest and highest value.

    A series of at most two points a bucket is kept whole.
    """
    count = len(time_T)
    if count <= 2 * buckets:
        return np.arange(count, dtype=np.int64)
    bucket_T = buckets_of(time_T, buckets)
    order = np.lexsort((value_T, bucket_T))
    sorted_T = bucket_T[order]
    edge = np.flatnonzero(np.diff(sorted_T))
    lowest = order[np.concatenate(([0], edge + 1))]
    highest = order[np.concatenate((edge, [count - 1]))]
    kept: Int = np.unique(np.concatenate(([0, count - 1], lowest, highest))).astype(np.int64)
    return kept


def banded(time_T: Int, value_T: Float, buckets: int) -> tuple[Int, Float, Float, Float]:
    """Return each bucket's last time, mean, lowest and highest value; buckets without a point are left out."""
    bucket_T = buckets_of(time_T, buckets)
    first = np.concatenate(([0], np.flatnonzero(np.diff(bucket_T)) + 1))
    sizes = np.diff(np.concatenate((first, [len(time_T)])))
    last = np.concatenate((first[1:] - 1, [len(time_T) - 1]))
    mean = np.add.reduceat(value_T, first) / sizes
    return time_T[last], mean, np.minimum.reduceat(value_T, first), np.maximum.reduceat(value_T, first)
