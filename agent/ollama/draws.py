"""Randomness that depends on what it is for, and on nothing else."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["draw"]


def draw(seed: int, *key: str | int) -> float:
    """Return a number in [0, 1) that the seed and the key determine."""
    text = "\x1f".join(str(part) for part in (seed, *key))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
