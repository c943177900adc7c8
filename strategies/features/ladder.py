"""Window statistics that can be merged: the summary of a window is built from summaries of its halves.

A *summary* of a block of consecutive bars holds, for the columns that a plan asks for, sums, decayed sums,
sums weighted by age, highest high and lowest low, and sums since the session began. Two neighbouring blocks
merge into one (a semigroup), so the summary of the last 2n bars is that of the last n merged with the one of
n bars earlier: ten merges reach 1,024 bars. A window of W bars is W's binary digits, largest block newest.

The tree of merges hangs on the bar it ends at and on nothing else. Hence a value needs exactly its W bars,
never drifts, is the same to the last bit wherever the series begins or ends, and costs O(log W) a bar, over a
whole series or incrementally.

Axes: K rows of a summary, n blocks or symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from strategies.features.columns import Float

Index = NDArray[np.int64]

FLAG = "begins_session"


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows a summary has, in the order of its first axis.

    Args:
        sums: Columns that are summed.
        decays: (column, half-life in bars): sums weighted by 2^(-age / half-life), age 0 the newest.
        segments: Columns summed since the last bar that begins a session, within the block.
        ramps: Columns summed with weight age.
        extremes: True where highest high and lowest low are kept, as log distance from the last close.
    """

    sums: tuple[str, ...]
    decays: tuple[tuple[str, float], ...] = ()
    segments: tuple[str, ...] = ()
    ramps: tuple[str, ...] = ()
    extremes: bool = False
    index: dict[tuple[str, str, float], int] = field(init=False, compare=False)
    _rates_K1: Float = field(init=False, compare=False)
    _ramp_sums: list[int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Number the rows."""
        keys = [("sum", column, 0.0) for column in self.sums]
        keys += [("decay", column, half_life) for column, half_life in self.decays]
        keys += [("segment", column, 0.0) for column in ((FLAG, *self.segments) if self.segments else ())]
        keys += [("ramp", column, 0.0) for column in self.ramps]
        keys += [("high", "", 0.0), ("low", "", 0.0)] if self.extremes else []
        index = {key: row for row, key in enumerate(keys)}
        object.__setattr__(self, "index", index)
        rates = [[0.5 ** (1.0 / half_life)] for _, half_life in self.decays]
        object.__setattr__(self, "_rates_K1", np.array(rates, dtype=np.float64).reshape(-1, 1))
        object.__setattr__(self, "_ramp_sums", [index["sum", column, 0.0] for column in self.ramps])

    @property
    def count(self) -> int:
        """Number of rows, K."""
        return len(self.index)

    @property
    def columns(self) -> frozenset[str]:
        """Base columns that the rows are made of."""
        extremes = {"to_high", "to_low"} if self.extremes else set()
        return frozenset(column for _, column, _ in self.index if column) | extremes

    def leaves(self, columns: Mapping[str, Float]) -> Float:
        """Return the summaries of single bars, (K, n), from base columns of length n."""
        n = len(columns["ret"])
        out_Kn = np.zeros((self.count, n))
        for (kind, column, _), row in self.index.items():
            if kind in {"sum", "decay", "segment"}:
                out_Kn[row] = columns[column]
            elif kind == "high":
                out_Kn[row] = columns["to_high"]
            elif kind == "low":
                out_Kn[row] = columns["to_low"]
        return out_Kn

    def merge(self, older_Kn: Float, newer_Kn: Float, newer_bars: int) -> Float:
        """Return the summaries of blocks `older` followed by blocks `newer` of `newer_bars` bars each."""
        out_Kn = older_Kn + newer_Kn
        row = len(self.sums)
        if self.decays:
            part = slice(row, row + len(self.decays))
            weight_K1 = self._rates_K1**newer_bars
            np.multiply(older_Kn[part], weight_K1, out=out_Kn[part])
            out_Kn[part] += newer_Kn[part]
            row = part.stop
        if self.segments:
            part = slice(row + 1, row + 1 + len(self.segments))
            flag_n = newer_Kn[row]
            np.multiply(older_Kn[part], 1.0 - flag_n, out=out_Kn[part])
            out_Kn[part] += newer_Kn[part]
            np.maximum(older_Kn[row], flag_n, out=out_Kn[row])
            row = part.stop
        for older_sum in self._ramp_sums:
            out_Kn[row] += newer_bars * older_Kn[older_sum]
            row += 1
        if self.extremes:
            moved_n = newer_Kn[self.index["sum", "ret", 0.0]]
            np.maximum(older_Kn[row] - moved_n, newer_Kn[row], out=out_Kn[row])
            np.minimum(older_Kn[row + 1] - moved_n, newer_Kn[row + 1], out=out_Kn[row + 1])
        return out_Kn


def blocks(window: int, lag: int) -> Iterator[tuple[int, int]]:
    """Yield (block bars, lag in bars) of the blocks that make a window, newest first, largest first."""
    size = 1 << (window.bit_length() - 1)
    while size:
        if window & size:
            yield size, lag
            lag += size
        size >>= 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a set of features needs of the ladder.

    Args:
        rows: Rows of a summary.
        windows: Every (window bars, lag bars) that is read.
        sizes: Block sizes 1, 2, 4 … up to the largest that is read.
        reach: For each size, the largest lag in bars at which a block of that size is read.
        bars: Bars that determine every window: largest window + lag.
    """

    rows: Rows
    windows: frozenset[tuple[int, int]]
    sizes: tuple[int, ...] = field(init=False)
    reach: tuple[int, ...] = field(init=False)
    bars: int = field(init=False)

    def __post_init__(self) -> None:
        """Work out sizes and reaches from the windows."""
        read = [block for window, lag in self.windows for block in blocks(window, lag)]
        largest = max(size for size, _ in read)
        sizes = tuple(1 << k for k in range(largest.bit_length()))
        reach = {size: (size if size < largest else 0) for size in sizes}
        for size, lag in read:
            reach[size] = max(reach[size], lag)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "reach", tuple(reach[size] for size in sizes))
        object.__setattr__(self, "bars", max(window + lag for window, lag in self.windows))


class SeriesLadder:
    """Summaries of all blocks that end at the bars of one stretch of a series."""

    def __init__(self, plan: Plan, leaves_KL: Float) -> None:
        """Build every level; level of size n has L - n + 1 blocks, the last ending at the last bar."""
        self._levels = [leaves_KL]
        for size in plan.sizes[:-1]:
            below = self._levels[-1]
            self._levels.append(plan.rows.merge(below[:, :-size], below[:, size:], size))

    def level(self, size: int) -> Float:
        """Return summaries of all blocks of `size` bars."""
        return self._levels[size.bit_length() - 1]

    def block(self, size: int, lag: int, count: int) -> Float:
        """Return, for the last `count` bars, the block of `size` bars that ends `lag` bars earlier, (K, count)."""
        level = self.level(size)
        end = level.shape[1] - lag
        return level[:, end - count : end]


class SymbolLadder:
    """Summaries of the newest blocks of S symbols, moved on bar by bar; rings hold what later merges will read."""

    def __init__(self, plan: Plan, symbols: int) -> None:
        """Reserve the rings: size n needs the last `reach` blocks of n bars."""
        self._plan = plan
        count = plan.rows.count
        self._newest_PSK = np.zeros((len(plan.sizes), symbols, count))
        self._rings_SRK = [np.zeros((symbols, reach + 1, count)) for reach in plan.reach]
        self._leaves_S = np.zeros(symbols, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._newest_PSK.nbytes + sum(ring.nbytes for ring in self._rings_SRK)

    def push(self, index_S: Index, leaves_KS: Float) -> None:
        """Append one bar to each of the symbols in `index_S` (no symbol twice)."""
        plan = self._plan
        at_S = self._leaves_S[index_S]
        block_KS = leaves_KS
        for step, size in enumerate(plan.sizes):
            ring_SRK = self._rings_SRK[step]
            length = ring_SRK.shape[1]
            block_SK = block_KS.T
            ring_SRK[index_S, at_S % length] = block_SK
            self._newest_PSK[step, index_S] = block_SK
            if step + 1 < len(plan.sizes):
                older_SK = ring_SRK[index_S, (at_S - size) % length]
                block_KS = plan.rows.merge(np.ascontiguousarray(older_SK.T), block_KS, size)
        self._leaves_S[index_S] = at_S + 1

    def load(self, symbol: int, series: SeriesLadder) -> None:
        """Replace one symbol's state by the end of a stretch of its series."""
        for step, size in enumerate(self._plan.sizes):
            level_KL = series.level(size)
            ring_RK = self._rings_SRK[step][symbol]
            ring_RK[:] = 0.0
            kept = min(len(ring_RK), level_KL.shape[1])
            # the newest block sits at slot -1, where a bar numbered -1 modulo the length belongs
            ring_RK[len(ring_RK) - kept :] = level_KL[:, level_KL.shape[1] - kept :].T
            self._newest_PSK[step, symbol] = ring_RK[-1]
        self._leaves_S[symbol] = 0

    def block(self, size: int, lag: int, index_S: Index) -> Float:
        """Return each symbol's block of `size` bars that ends `lag` bars before its last, (K, S)."""
        step = size.bit_length() - 1
        if lag == 0:
            return np.ascontiguousarray(self._newest_PSK[step, index_S].T)
        ring_SRK = self._rings_SRK[step]
        slot_S = (self._leaves_S[index_S] - 1 - lag) % ring_SRK.shape[1]
        return np.ascontiguousarray(ring_SRK[index_S, slot_S].T)
