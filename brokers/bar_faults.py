"""What can be wrong with bars, found all at once and said with symbol, time, value, count and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brokers.series import Float, from_ns

PRICES = ("open", "high", "low", "close")

ROUNDING = 1e-9
"""Relative excess of open or close over high (under low) that is rounding of adjusted prices, not a fault."""

PRICE_MIN, PRICE_MAX = 1e-9, 1e12
"""Fill prices are rounded to 1e-9 (`brokers.costs.PRICE_QUANTUM`): smaller ones would become zero."""

IMPORT = "repair with `tandem data import`"


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault in a file: where it is first seen, how often, and what to do.

    Args:
        kind: What is wrong, in words.
        symbol: Symbol of the first offending row; empty where the whole file is meant.
        at: Bar start of the first offending row, RFC 3339; empty where the whole file is meant.
        value: What stands there.
        count: Offending rows, all symbols together.
        remedy: What to do.
    """

    kind: str
    symbol: str
    at: str
    value: str
    count: int
    remedy: str

    def __str__(self) -> str:
        """Say it in one line."""
        where = f", first {self.symbol} at {self.at}: {self.value}" if self.at else f": {self.value}"
        rows = f" ({self.count} row{'s' if self.count != 1 else ''}{where})" if self.count else where
        return f"{self.kind}{rows}; {self.remedy}"


class BarsError(ValueError):
    """A bars file that cannot be used; lists every kind of fault found in it."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        """Keep the faults beside the message."""
        super().__init__(f"{source}:" + "".join(f"\n  - {fault}" for fault in faults))
        self.source = source
        self.faults = tuple(faults)


def rfc3339(ns: int) -> str:
    """Return an instant as text, UTC, with Z."""
    return from_ns(ns).isoformat().replace("+00:00", "Z")


def find_faults(columns: Mapping[str, Mapping[str, NDArray[Any]]], signals: Sequence[str] = ()) -> list[Fault]:
    """Return every kind of fault in the values and the order of bars; empty for clean bars."""
    kinds: list[tuple[str, str, Callable[[Mapping[str, NDArray[Any]]], tuple[NDArray[np.bool_], str]]]] = [
        ("bars are not sorted by time", IMPORT, _unsorted),
        ("two bars of one symbol have the same start", f"{IMPORT} (--keep-last where they differ)", _duplicated),
        ("a price is not a finite number", f"drop the row, or {IMPORT} from a complete source", _not_finite(PRICES)),
        ("volume is not a finite number", "write 0 where nothing traded", _not_finite(("volume",))),
        (
            "a signal is not a finite number",
            "fill it with a value known at that bar, or drop the column",
            _not_finite(signals),
        ),
        ("a price is zero or negative", "drop the row: returns need positive prices", _not_positive(PRICES)),
        (
            "a price is too small or too large",
            f"quote the symbol in another unit: prices from {PRICE_MIN:g} to {PRICE_MAX:g} can be traded",
            _any_of(
                PRICES, lambda values: ((values > 0) & (values < PRICE_MIN)) | (values > PRICE_MAX) & (values < np.inf)
            ),
        ),
        ("high, low, open and close contradict each other", "fetch these bars again from their source", _inconsistent),
        ("volume is negative", "fetch these bars again from their source", _negative_volume),
        ("adj_factor is not a positive number", "write 1 where nothing is adjusted", _bad_factor),
    ]
    faults = []
    for kind, remedy, test in kinds:
        count, first = 0, ("", "", "")
        for symbol, bars in columns.items():
            bad, column = test(bars)
            if bad.any():
                row = int(bad.argmax())
                if not count:
                    shown = f"{column}={bars[column][row]:g}" if column in bars else _prices_text(bars, row)
                    first = (symbol, rfc3339(int(bars["start_ns"][row])), shown)
                count += int(bad.sum())
        if count:
            faults.append(Fault(kind, *first, count, remedy))
    return faults


_Test = tuple[NDArray[np.bool_], str]


def _unsorted(bars: Mapping[str, NDArray[Any]]) -> _Test:
    return np.diff(bars["start_ns"], prepend=bars["start_ns"][:1]) < 0, ""


def _duplicated(bars: Mapping[str, NDArray[Any]]) -> _Test:
    order = np.argsort(bars["start_ns"], kind="stable")
    ordered = bars["start_ns"][order]
    bad = np.zeros(len(ordered), dtype=np.bool_)
    bad[order[1:]] = ordered[1:] == ordered[:-1]
    return bad, ""


def _not_finite(names: Sequence[str]) -> Callable[[Mapping[str, NDArray[Any]]], _Test]:
    return _any_of(names, lambda values: ~np.isfinite(values))


def _not_positive(names: Sequence[str]) -> Callable[[Mapping[str, NDArray[Any]]], _Test]:
    return _any_of(names, lambda values: values <= 0)


def _any_of(
    names: Sequence[str], test: Callable[[Float], NDArray[np.bool_]]
) -> Callable[[Mapping[str, NDArray[Any]]], _Test]:
    """Return a test that is true where any of the columns is bad, with the column of the first bad row."""

    def run(bars: Mapping[str, NDArray[Any]]) -> _Test:
        bad = np.zeros(len(bars["start_ns"]), dtype=np.bool_)
        for name in names:
            bad |= test(bars[name])
        row = int(bad.argmax())
        return bad, next(
            (name for name in names if bad[row : row + 1].any() and test(bars[name][row : row + 1])[0]), ""
        )

    return run


def _inconsistent(bars: Mapping[str, NDArray[Any]]) -> _Test:
    high, low = bars["high"], bars["low"]
    above = np.maximum(bars["open"], bars["close"]) > high + ROUNDING * np.abs(high)
    below = np.minimum(bars["open"], bars["close"]) < low - ROUNDING * np.abs(low)
    bad: NDArray[np.bool_] = (high < low) | above | below
    return bad, ""


def _negative_volume(bars: Mapping[str, NDArray[Any]]) -> _Test:
    return bars["volume"] < 0, "volume"


def _bad_factor(bars: Mapping[str, NDArray[Any]]) -> _Test:
    if "adj_factor" not in bars:
        return np.zeros(len(bars["start_ns"]), dtype=np.bool_), ""
    return ~(np.isfinite(bars["adj_factor"]) & (bars["adj_factor"] > 0)), "adj_factor"


def _prices_text(bars: Mapping[str, NDArray[Any]], row: int) -> str:
    return " ".join(f"{name}={bars[name][row]:g}" for name in PRICES)
