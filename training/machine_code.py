"""Functions turned into machine code by Numba, and the random numbers that they draw.

A kernel is compiled when first called (never at import) and kept on disk beside its file, or in `NUMBA_CACHE_DIR`; it
does not hold the interpreter's lock. Products may be fused with the sum that follows them, nothing else is reordered:
the same call gives the same bits again on the same kind of processor. Division by zero gives infinity, as in NumPy.

Code that was kept is compiled again when its own file changes, not when a kernel that it calls from another file does:
whoever changes this file or `training.instructions` empties the folders of kept code (`make clean`).

The generator is SplitMix64 (Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators"): its state is
one uint64 in an array, so that it can be saved between any two draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import structlog
from numpy.typing import NDArray

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
UInt64 = NDArray[np.uint64]

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNUSED_BITS, _RANGE_BITS = np.uint64(31), np.uint64(33)
_RANGE, _RANGE_MASK = np.uint64(1 << 33), np.uint64((1 << 33) - 1)

log = structlog.get_logger(__name__)


def machine_code(kernel: Kernel) -> Kernel:
    """Compile `kernel` at its first call; keep the result where a folder can be written."""
    try:
        return cast("Kernel", numba.njit(cache=True, **_OPTIONS)(kernel))
    except RuntimeError as error:
        log.warning("compiled_code_not_kept", kernel=kernel.__name__, error=str(error), remedy="set NUMBA_CACHE_DIR")
        return cast("Kernel", numba.njit(**_OPTIONS)(kernel))


def generator(*key: str | int) -> UInt64:
    """Return the state, (1,), of a generator of its own for each key."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return np.array([int.from_bytes(digest)], dtype=np.uint64)


@machine_code
def next_bits(state_1: Any) -> Any:
    """Return 64 random bits."""
    state_1[0] += _GOLDEN
    bits = state_1[0]
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


@machine_code
def next_below(state_1: Any, count: Any) -> Any:
    """Return a random integer from 0 to `count` - 1, evenly; `count` is at most 2^31.

    Lemire 2019, "Fast Random Integer Generation in an Interval".
    """
    size = np.uint64(count)
    uneven = _RANGE % size
    while True:
        scaled = (next_bits(state_1) >> _UNUSED_BITS) * size
        if (scaled & _RANGE_MASK) >= uneven:
            return np.int64(scaled >> _RANGE_BITS)
