"""What a rule held, bar by bar: targets followed without a loop, and positions in front of and behind each fill.

Axes: T rows of the market table, P positions (-1, 0, 1 at index 0, 1, 2), R scored rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.market import Float, Int

Positions = NDArray[np.int8]
Mask = NDArray[np.bool_]


def begins(rows: Int) -> Mask:
    """Tell where an unbroken run of rows begins, (R,); rows ascend."""
    first_R = np.ones(len(rows), dtype=np.bool_)
    first_R[1:] = np.diff(rows) != 1
    return first_R


def follow(target_PR: NDArray[np.integer], begins_R: Mask) -> Positions:
    """Follow a rule from flat at the beginning of every run; return what it holds after each row's fill, (R,).

    The rule at one row is a map from position held to position wanted, and maps compose associatively: the maps of
    1, 2, 4, ... rows are put together (Hillis & Steele 1986) until each is the same for every position before it.
    Equals `training.validation.follow`.

    Args:
        target_PR: Targets by position held (-1, 0, 1) and row.
        begins_R: First rows of runs.
    """
    # what is never wanted is never held: a rule without shorts has two positions
    lowest = min(int(target_PR.min(initial=0)), 0)
    map_PR = (target_PR[lowest + 1 :] - lowest).astype(np.int8)
    flat = -lowest
    map_PR[:, begins_R] = map_PR[flat, begins_R]
    # where every position is kept the map changes nothing: most rows of a rule that seldom trades
    moves_R = (map_PR != np.arange(len(map_PR))[:, None]).any(axis=0) | begins_R
    map_PM = np.ascontiguousarray(map_PR[:, moves_R])
    open_rows = np.flatnonzero((map_PM != map_PM[flat]).any(axis=0))
    reach = 1
    while len(open_rows):
        before_PO = map_PM[:, open_rows - reach].astype(np.intp)
        map_PM[:, open_rows] = np.take_along_axis(map_PM[:, open_rows], before_PO, axis=0)
        undecided = (map_PM[:, open_rows] != map_PM[flat, open_rows]).any(axis=0)
        open_rows = open_rows[undecided]
        reach *= 2
    held_R: Positions = (map_PM[flat, np.cumsum(moves_R) - 1] + lowest).astype(np.int8)
    return held_R


def held_before(held_R: NDArray[np.number], begins_R: Mask) -> NDArray[np.number]:
    """Return what was held in front of each fill: what was held before it, flat at the beginning of a run."""
    before_R = np.roll(held_R, 1)
    before_R[begins_R] = 0
    return before_R


def band_positions(score_R: Float, band: float, begins_R: Mask, *, shorts: bool) -> Positions:
    """Return positions of a no-trade band: long above it, short or flat below minus it, kept in between."""
    signal_R = (score_R > band).astype(np.int8) - (score_R < -band).astype(np.int8)
    at_R = np.arange(len(score_R))
    last_R = np.maximum.accumulate(np.where((signal_R != 0) | begins_R, at_R, 0))
    held_R: Positions = signal_R[last_R]
    return held_R if shorts else np.maximum(held_R, np.int8(0))


def spells(held_R: Positions, begins_R: Mask) -> tuple[Int, Int]:
    """Return where each spell of one position begins and how long it lasts; a run ends a spell."""
    change_R = begins_R.copy()
    change_R[1:] |= held_R[1:] != held_R[:-1]
    start = np.flatnonzero(change_R)
    return start, np.diff(np.append(start, len(held_R)))
