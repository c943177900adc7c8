"""How far a fast replay can look ahead: up to which close nothing can happen, and why it must be decided by the rules.

Everything here errs on the side of deciding: a close that is decided for nothing gives the same row. What stays as it
is between two closes is the number of units held of every symbol; what is looked for is an answer that asks for
another position, a price that reaches an exit, a split or dividend, and a limit of the account.

Axes: T closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from agent.foresight import Foresight, SymbolForesight, next_of
from agent.replay_rooms import NewestBars, ReplayRooms
from agent.replay_tables import Path
from brokers.series import Float, Int

if TYPE_CHECKING:
    from brokers.simulated.engine import MatchingEngine

MARGIN = 1e-9
"""Relative distance within which a price or a limit counts as reached: the exact rule then decides."""
_FLOOR_FRACTION = Decimal("0.01")
"""Least equity, as a fraction of what was there at a halt, at which a refused entry surely is not too small."""


class Lookout:
    """Looks ahead from where a replay stands.

    Args:
        rooms: Settings, state, sizes and rules.
        seen: What was foreseen.
        engine: The exchange.
        path: Holdings so far.
    """

    def __init__(self, rooms: ReplayRooms, seen: Foresight, engine: MatchingEngine, path: Path) -> None:
        self.rooms = rooms
        self.settings = rooms.settings
        self.state = rooms.state
        self.newest: NewestBars = rooms.newest_bars
        self.seen = seen
        self.engine = engine
        self.path = path
        self._closes = len(seen.closes_ns)
        self._venue = engine.account_book()
        self._flat = dict.fromkeys(rooms.symbols, 0)
        self._dust = {symbol: 2.0 * float(rules.min_notional) for symbol, rules in rooms.instruments.items()}
        """Value of a holding below which it may count as nothing."""
        self._halted_floor: float | None = None
        """Since a halt: the equity down to which entries are surely refused for it."""
        self._halted_change: dict[str, Int] = {}
        self._reaches: tuple[int, int, float] = (0, 0, 0.0)
        """The closes, first and one after the last, at which equity was looked at, and the highest of it there."""

    def halt(self, equity: Decimal) -> None:
        """Look at answers from now on as those of a halted account."""
        self._halted_floor = float(equity * _FLOOR_FRACTION)
        for symbol, one in self.seen.symbols.items():
            self._halted_change[symbol] = self._change_while_halted(one, symbol, self._halted_floor)

    def positions(self, t: int) -> dict[str, int] | None:
        """Return every symbol's position where nothing but exits works; None where something may change by itself."""
        if not self.engine.only_legs_rest():
            return None
        book, venue = self.state.book, self._venue
        if not book.holdings and not venue.holdings:
            return self._flat
        found = self._flat.copy()
        self.newest.move(t - 1)
        for symbol in {**book.holdings, **venue.holdings}:
            qty, one = book.qty(symbol), self.seen.symbols[symbol]
            if qty != venue.qty(symbol):
                return None  # a split has opened whose bar has not closed
            last = self.newest.index(symbol)
            if last < 0 or abs(float(qty)) * one.series.close.item(last) < self._dust[symbol]:
                return None  # so little that it may count as nothing
            found[symbol] = 1 if qty > 0 else -1
            if found[symbol] not in one.answers:
                return None
        return found

    def next_interest(self, t: int, positions: Mapping[str, int]) -> tuple[int, bool]:
        """Return the first close from `t` on that must be decided by the rules, and whether the way there is clear.

        The way is clear where nothing can happen on the exchange up to that close, itself included.
        """
        asked = end = self._closes
        for symbol, position in positions.items():
            change_at = self.seen.symbols[symbol].change_at[position]
            if self._halted_change and position == 0:
                change_at = self._halted_change[symbol]
            asked = min(asked, change_at.item(t))
        beyond = min(asked + 1, end)
        reached = beyond
        for symbol, position in positions.items():
            if position:
                reached = min(reached, self._next_reached(symbol, t, reached))
        stop = min(asked, reached)
        return (stop if stop <= t else self._within_limits(t, stop, positions)), reached == beyond

    def _next_reached(self, symbol: str, t: int, stop: int) -> int:
        """Return the first close of t .. stop whose bar may meet an exit, a split or a dividend of a holding."""
        one = self.seen.symbols[symbol]
        begin, end = one.first_T.item(t), int(one.open_N.searchsorted(stop))
        action = one.reach.next_action(begin, end)
        below, above = self._levels(symbol)
        bar = one.reach.first(begin, action, below, above)
        if bar == end:
            return stop
        opened = one.open_N.item(bar)
        return opened if opened >= t else one.close_N.item(bar)

    def _levels(self, symbol: str) -> tuple[float, float]:
        """Return prices between which nothing of a held symbol can trigger."""
        holding = self.state.book.holdings[symbol]
        is_long = holding.qty > 0
        losing: list[Decimal] = []
        winning: list[Decimal] = []
        armed = self.state.exits.get(symbol)
        if armed is not None:
            plan = armed.plan
            losing += [] if plan.stop is None else [plan.stop]
            winning += [] if plan.take_profit is None else [plan.take_profit]
            if plan.max_loss_usd is not None:
                losing.append(holding.avg_cost - plan.max_loss_usd / holding.qty)
        for order in self.state.orders.of(symbol):
            losing += [] if order.stop_price is None else [order.stop_price]
            winning += [] if order.limit_price is None else [order.limit_price]
        dust = self._dust[symbol] / abs(float(holding.qty))
        below, above = (losing, winning) if is_long else (winning, losing)
        lowest = max((float(price) for price in below), default=0.0)
        highest = min((float(price) for price in above), default=np.inf)
        return max(lowest, dust) * (1.0 + MARGIN), highest * (1.0 - MARGIN)

    def _within_limits(self, t: int, stop: int, positions: Mapping[str, int]) -> int:
        """Return how far the account can be passed over: up to the first close that may break a limit for good."""
        low, high = self._equity_range(t, stop, positions)
        self._reaches = (t, stop, high)
        if self._halted_floor is not None:
            if self._halted_change and low < self._halted_floor * (1.0 + MARGIN):
                self._halted_change = {}  # so little is left that an entry may be too small for another reason
                return self.next_interest(t, positions)[0]
            return stop
        limit = self.settings.risk.drawdown_fraction - MARGIN
        peak = float(self.state.peak_equity)
        if low > 0.0 and 1.0 - low / max(peak, high) < limit:
            return stop
        equity_T = self._equity_floats(t, stop, positions)
        peak_T = np.maximum(np.maximum.accumulate(equity_T), peak)
        is_broken = ~((equity_T > 0.0) & (1.0 - equity_T / peak_T < limit))
        return t + int(is_broken.argmax()) if is_broken.any() else stop

    def _equity_range(self, t: int, stop: int, positions: Mapping[str, int]) -> tuple[float, float]:
        """Return the lowest and the highest equity at the closes t .. stop to a float's precision."""
        held = [symbol for symbol, position in positions.items() if position]
        cash = float(self.path.cash)
        if not held:
            return cash, cash
        if len(held) > 1:
            equity_T = self._equity_floats(t, stop, positions)
            return float(equity_T.min()), float(equity_T.max())
        close_T, qty = self.seen.symbols[held[0]].close_T[t:stop], float(self.state.book.qty(held[0]))
        lowest, highest = float(close_T.min()) * qty + cash, float(close_T.max()) * qty + cash
        return (lowest, highest) if qty > 0.0 else (highest, lowest)

    def _equity_floats(self, t: int, stop: int, positions: Mapping[str, int]) -> Float:
        """Return equity at the closes t .. stop to a float's precision."""
        value_T: Float = np.zeros(stop - t)
        for symbol, position in positions.items():
            if position:
                value_T += self.seen.symbols[symbol].close_T[t:stop] * float(self.state.book.qty(symbol))
        return value_T + float(self.path.cash)

    def peak(self, t: int, stop: int, positions: Mapping[str, int]) -> Decimal:
        """Return the highest equity so far, once t .. stop (exclusive) have passed."""
        begin, end, high = self._reaches
        if (begin, end) != (t, stop):
            high = self._equity_range(t, stop, positions)[1]
        peak = self.state.peak_equity
        return peak if high < float(peak) * (1.0 - MARGIN) else max(peak, self._highest(t, stop, positions))

    def _highest(self, t: int, stop: int, positions: Mapping[str, int]) -> Decimal:
        """Return the highest equity of t .. stop (exclusive)."""
        if positions is self._flat:
            return self.path.cash
        equity_T = self._equity_floats(t, stop, positions)
        most = float(equity_T.max())
        near = np.flatnonzero(equity_T >= most - abs(most) * 1e-12).tolist()
        return max(self.equity_at(t + place) for place in near)

    def equity_at(self, t: int) -> Decimal:
        """Return the equity at a close that has passed, or that is passed over."""
        holdings = self.path.held_at(t)
        marks = (int(self.seen.symbols[symbol].mark_T[t]) for symbol, _ in holdings.qty)
        return holdings.cash + sum(
            (qty * Decimal(mark).scaleb(-9) for (_, qty), mark in zip(holdings.qty, marks, strict=True)), Decimal(0)
        )

    def _change_while_halted(self, one: SymbolForesight, symbol: str, floor: float) -> Int:
        """Return, as `change_at` does, the closes at which a flat symbol's refused entry is not sure to be `halted`."""
        instrument = self.rooms.instruments[symbol]
        given = one.answers[0]
        least = 2.0 * float(instrument.min_notional) + 2.0 * float(instrument.qty_step) * one.series.close
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = self.rooms.sizing.per_bar(self.rooms.bars_per_year) / one.volatility_N
            fraction = np.clip(wanted, self.rooms.sizing.min_fraction, self.rooms.sizing.max_fraction)
            is_sure = (floor * fraction > least) & (one.volatility_N > 0.0)
        odd = given.near_T | (np.abs(given.target_T) > 1)
        odd |= (given.target_T < 0) & (not self.settings.strategy.shorts)
        doubtful = odd | ((given.target_T != 0) & ~is_sure)
        return next_of(one.usable_T & doubtful[one.bar_T])
