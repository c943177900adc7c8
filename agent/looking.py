"""Looking: everything that is known about one close before anything is decided.

The bars that are new, the venue's corrections of the last ones, the account, what other processes have
switched, and the features. A look that fails is repeated with the same bars: nothing is kept of half of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import or_, select

from agent.ledger import schema
from agent.parts import Parts
from brokers.domain import Account, Bar, Position
from strategies.observation import usable_rows
from strategies.strategy import Abstention, Reason

log = structlog.get_logger("tandem.looking")

_CONTROL = select(schema.state).where(or_(schema.state.c.key == "halt", schema.state.c.key == "resumed"))


@dataclass(slots=True)
class View:
    """One close as it was found.

    Args:
        bars: By symbol the bars that are new, oldest first; the last one closes here if it has come.
        control: The halt and the count of `tandem resume`, as other processes left them.
        features_SF: One row a symbol; NaN where the features are not warm.
        volatility_S: Of one bar, log return; NaN where it is not known.
        out_of_range_S: How many features stand at or beyond the range in which they are clipped.
    """

    close_time: datetime
    bars: dict[str, list[Bar]]
    account: Account
    positions: Mapping[str, Position]
    control: Mapping[str, Any]
    features_SF: NDArray[np.float64]
    volatility_S: NDArray[np.float64]
    out_of_range_S: NDArray[np.int64]


class Looker:
    """Looks at one close after the other.

    Args:
        parts: The wired rooms.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings = parts.settings
        self.clock = parts.clock
        self.ledger = parts.ledger
        self.state = parts.state
        self.symbols = parts.symbols
        self.period = parts.settings.bar_period
        self.newest = parts.newest_bars
        self._ranges_F2 = parts.features.spec.ranges
        self._refused: dict[str, datetime] = {}

    async def look(self, close: datetime) -> View:
        """Return what is known at a close; the bars go into the features.

        Raises:
            BrokerError: The venue could not be asked.
        """
        bars = await self._new_bars(close)
        account = await self.parts.broker.account()
        positions = await self.parts.broker.positions()
        # last, when nothing can fail any more: a look that fails is repeated with the same bars
        self.parts.features.append_many(bar for found in bars.values() for bar in found)
        features_SF = self.parts.features.latest(self.symbols)
        return View(
            close_time=close,
            bars=bars,
            account=account,
            positions=positions,
            control=self._control(),
            features_SF=features_SF,
            volatility_S=self.parts.features.volatility(self.symbols),
            out_of_range_S=self._out_of_range(features_SF),
        )

    async def _new_bars(self, close: datetime) -> dict[str, list[Bar]]:
        """Fetch the bars up to this close; on a running venue, ask again until all are there or time is short."""
        since = self.parts.calendar.start_of(close, self.period)
        if self.state.last_close is not None:
            since = min(since, self.state.last_close - (timedelta(0) if self.clock.stepped else self.period))
        patience_s = self.settings.daemon.decision_deadline_s / 2
        give_up = time.monotonic() + patience_s
        while True:
            fetched = await self.parts.data.bars(self.symbols, self.period, since, close)
            await self._revisions(fetched)
            bars = {symbol: self._unseen(fetched[symbol], close) for symbol in self.symbols}
            complete = all(bars[s] and bars[s][-1].close_time == close for s in self.symbols)
            if complete or self.clock.stepped or time.monotonic() > give_up:
                return bars
            await self.parts.pause(min(1.0, patience_s / 4))

    def _unseen(self, fetched: Sequence[Bar], close: datetime) -> list[Bar]:
        fresh: list[Bar] = []
        for bar in fetched:
            newest = self.newest.get(bar.symbol)
            if bar.close_time > close or (newest is not None and bar.start <= newest.start):
                continue
            if (fault := _fault(bar)) is not None:
                self._refuse(bar, fault)
                continue
            fresh.append(bar)
        return fresh

    async def _revisions(self, fetched: Mapping[str, Sequence[Bar]]) -> None:
        """Keep a venue's correction of a newest bar as a new revision; features use it from now on."""
        for symbol in self.symbols:
            before = self.newest.get(symbol)
            for bar in fetched[symbol]:
                if before is None or bar.start != before.start or not _differs(bar, before) or _fault(bar) is not None:
                    continue
                revised = replace(bar, revision=before.revision + 1)
                with self.ledger.transaction() as connection:
                    self.ledger.upsert(connection, schema.bars_seen, [bar_row(revised)])
                self.newest[symbol] = revised
                await self.parts.history.warm(symbol, until=revised.close_time)  # later ones are appended
                log.info("bar revised", symbol=symbol, start=bar.start.isoformat(), revision=revised.revision)

    def _out_of_range(self, features_SF: NDArray[np.float64]) -> NDArray[np.int64]:
        """Count, per symbol, the features that stand at or beyond the range in which they are clipped."""
        return out_of_range(features_SF, self._ranges_F2)

    def _refuse(self, bar: Bar, fault: str) -> None:
        """Leave an incident, one a bar: it is fetched again until a good one has come."""
        if self._refused.get(bar.symbol) == bar.start:
            return
        self._refused[bar.symbol] = bar.start
        with self.ledger.transaction() as connection:
            self.ledger.incident(connection, bar.close_time, "bad_bar", f"{bar.start}: {fault}", bar.symbol)
        self.parts.metrics.incident("bad_bar")
        log.error("bar refused", symbol=bar.symbol, start=bar.start.isoformat(), fault=fault)

    def _control(self) -> dict[str, Any]:
        """Read what other processes may have changed: the halt, and `tandem resume`."""
        return {row.key: row.value for row in self.ledger.rows(_CONTROL)}

    def silences(self, view: View) -> list[Abstention | None]:
        """Return, for each symbol, why nobody can be asked about it; None where one can."""
        finite_S = usable_rows(view.features_SF).tolist()
        return [
            None if finite and self._came(view, symbol) else self._silence(view, index, symbol)
            for index, (symbol, finite) in enumerate(zip(self.symbols, finite_S, strict=True))
        ]

    @staticmethod
    def _came(view: View, symbol: str) -> bool:
        bars = view.bars[symbol]
        return bool(bars) and bars[-1].close_time == view.close_time

    def _silence(self, view: View, index: int, symbol: str) -> Abstention | None:
        bars = view.bars[symbol]
        return silence(
            symbol,
            view.close_time,
            newest=bars[-1] if bars else self.newest.get(symbol),
            came=self._came(view, symbol),
            features_F=view.features_SF[index],
            bars_seen=self.parts.features.bars_seen(symbol),
            memory_bars=self.parts.features.spec.memory_bars,
            stale_after=self.settings.risk.stale_bars_max * self.period,
        )


def silence(
    symbol: str,
    close: datetime,
    *,
    newest: Bar | None,
    came: bool,
    features_F: NDArray[np.float64],
    bars_seen: int,
    memory_bars: int,
    stale_after: timedelta,
) -> Abstention | None:
    """Return why nobody can be asked about a symbol at a close; None where one can.

    `newest` is its newest bar, and `came` tells whether that is this close's and new.
    """
    if newest is None:
        return Abstention(symbol, Reason.NO_BAR, "no bar has ever been seen")
    if not came:
        reason = Reason.STALE_DATA if close - newest.close_time > stale_after else Reason.NO_BAR
        return Abstention(symbol, reason, f"the newest bar closed {newest.close_time.isoformat()}")
    if not np.isfinite(features_F).all():
        if bars_seen < memory_bars:
            return Abstention(symbol, Reason.WARMING_UP, f"{bars_seen} of {memory_bars} bars")
        return Abstention(symbol, Reason.BAD_FEATURES, "a feature is not finite")
    return None


def out_of_range(features_SF: NDArray[np.float64], ranges_F2: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count, per row, the features that stand at or beyond the range in which they are clipped.

    Features bounded by 1 are shares and flags that reach their bounds in the normal course of things.
    """
    low_F, high_F = ranges_F2[:, 0], ranges_F2[:, 1]
    with np.errstate(invalid="ignore"):
        beyond_SF = (features_SF <= low_F) | (features_SF >= high_F)
    return np.asarray((beyond_SF & (high_F > 1.0)).sum(axis=1), dtype=np.int64)


def bar_row(bar: Bar) -> dict[str, Any]:
    """Return the row of `bars_seen`."""
    return {
        "symbol": bar.symbol,
        "start": bar.start,
        "revision": bar.revision,
        "close_time": bar.close_time,
        "open": bar.open,
        "high": bar.high,
        "low": bar.low,
        "close": bar.close,
        "volume": bar.volume,
        "adj_factor": bar.adj_factor,
        "signals": dict(bar.signals) or None,
    }


def _differs(bar: Bar, other: Bar) -> bool:
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.adj_factor) != (
        other.open,
        other.high,
        other.low,
        other.close,
        other.volume,
        other.adj_factor,
    )


def _fault(bar: Bar) -> str | None:
    """Return what is wrong with a live bar; None for nothing."""
    if (
        0.0 < bar.low <= bar.open <= bar.high < math.inf
        and bar.low <= bar.close <= bar.high
        and 0.0 <= bar.volume < math.inf
        and 0.0 < bar.adj_factor < math.inf
    ):
        return None  # every value is a number then, in its place
    numbers = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.adj_factor)
    if not all(math.isfinite(number) for number in numbers):
        return "a value is not finite"
    if min(bar.open, bar.high, bar.low, bar.close, bar.adj_factor) <= 0 or bar.volume < 0:
        return "a price is not positive or the volume is negative"
    return "open or close lies outside low and high"
