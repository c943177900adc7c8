"""Deciding: answers in, decisions and intents out. No ledger, no clock, no waiting.

The same code decides live, in exact replay and in fast replay: whoever calls it brings what was seen at the
close and what the ledger remembers of the last hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from agent.exits import fired_exits
from agent.orders import Intent, intent_id
from agent.risk import AccountRisk, SymbolRisk, judge_entry
from brokers.costs import ReferenceBar, decimal_of
from brokers.domain import Bar, ExitPlan, Leg, OrderState, Side
from strategies.decision import decide, plan_exits
from strategies.sizing import target_quantity
from strategies.strategy import Abstention, Opinion, Reason

if TYPE_CHECKING:
    from agent.looking import View
    from agent.settings import Settings
    from agent.trading_state import TradingState
    from brokers.costs import CostModel
    from brokers.domain import Instrument
    from strategies.decision import ExitConfig
    from strategies.sizing import SizingConfig
    from strategies.strategy import Strategy

PLANNED = "planned"
"""Outcome of a decision whose intents are committed and not yet carried out."""
_ZERO = Decimal(0)
_DEAR = Decimal("1.03")
"""What a unit may cost in the end, relative to the price decided on."""
_UNCLEAR = (OrderState.SUBMITTING, OrderState.UNKNOWN)


class Rooms(Protocol):
    """What deciding needs of the wired rooms: nothing in it waits, and nothing of it is durable."""

    @property
    def settings(self) -> Settings:
        """The settings."""
        ...

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols, in the order in which they are decided."""
        ...

    @property
    def state(self) -> TradingState:
        """What is known of orders, positions and exits."""
        ...

    @property
    def newest_bars(self) -> Mapping[str, Bar]:
        """Newest bar by symbol before the close that is decided."""
        ...

    @property
    def instruments(self) -> Mapping[str, Instrument]:
        """Rules by symbol."""
        ...

    @property
    def costs(self) -> CostModel:
        """What trading is expected to cost."""
        ...

    @property
    def bars_per_year(self) -> float:
        """Scales the annual volatility that is aimed at."""
        ...

    @property
    def sizing(self) -> SizingConfig:
        """How large an entry is."""
        ...

    @property
    def exits(self) -> ExitConfig:
        """Where exits lie that the strategy does not choose."""
        ...

    @property
    def strategy(self) -> Strategy:
        """Who decides."""
        ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the gate must know of the time before a close.

    Args:
        entries_last_hour: Entry intents by symbol.
        bars_since_stop: Bars since a stop was hit, by symbol; only asked for where there is a cooldown.
    """

    entries_last_hour: Mapping[str, int]
    bars_since_stop: Mapping[str, int]


@dataclass(slots=True)
class _Budget:
    """What entries of this close may still use: gross exposure so far, and buying power left."""

    risk: AccountRisk
    buying_power: Decimal


class _Close(NamedTuple):
    """Where a symbol stands in the view of a close, and what is remembered."""

    view: View
    place: int
    remembered: Remembered


class Decider:
    """Turns the answers of one close into decisions and intents.

    Args:
        parts: The wired rooms; of these the settings, the state, the rules of the symbols, costs and sizes.
    """

    def __init__(self, parts: Rooms) -> None:
        self.parts = parts
        self.settings = parts.settings
        self.state = parts.state
        self.symbols = parts.symbols
        self.period = parts.settings.bar_period
        self.newest = parts.newest_bars
        self._mind = parts.strategy.name
        self._patience = timedelta(seconds=parts.settings.daemon.decision_deadline_s)

    def decide(
        self,
        view: View,
        answers: Sequence[Opinion | Abstention],
        remembered: Remembered,
        positions: Mapping[str, int] | None = None,
    ) -> tuple[list[dict[str, Any]], list[Intent]]:
        """Return one row of `decisions` a symbol, and the intents in the order in which they go out: closes first.

        Args:
            view: What was seen at the close.
            answers: One a symbol.
            remembered: What the gate must know of the time before.
            positions: By symbol what `position` gives now, where that has been asked for already.
        """
        budget = _Budget(self.account_risk(view), view.account.buying_power)
        newest = {symbol: bars[-1] for symbol, bars in view.bars.items() if bars}
        fired = dict(fired_exits(self.state, newest, {})) if self.state.exits else {}
        decisions: list[dict[str, Any]] = []
        intents: list[Intent] = []
        for index, (symbol, answer) in enumerate(zip(self.symbols, answers, strict=True)):
            position = self.position(symbol) if positions is None else positions[symbol]
            row = self._decision_row(view, index, answer, position)
            wanted: list[Intent] = []
            if symbol in fired and not self._unresolved(symbol):
                price = newest[symbol].close
                wanted = [self.exit_intent(symbol, fired[symbol], view.close_time, price, sequence=0)]
                row["outcome"] = Reason.PROTECTIVE_EXIT.value
            elif isinstance(answer, Opinion):
                wanted = self._intents_of(answer, row, newest[symbol], budget, _Close(view, index, remembered))
            intents += wanted
            decisions.append(row)
        return decisions, _in_order(intents)

    def _decision_row(self, view: View, index: int, answer: Opinion | Abstention, position: int) -> dict[str, Any]:
        symbol = self.symbols[index]
        bars = view.bars[symbol]
        newest = bars[-1] if bars else self.newest.get(symbol)
        decision = decide(
            answer,
            mind=self._mind,
            close_time=view.close_time,
            position=position,
            volatility=view.volatility_S.item(index),
            reference_price=None if newest is None else decimal_of(newest.close),
        )
        if decision.target < 0 and not self.settings.strategy.shorts:
            decision = replace(decision, target=0, reasons=(Reason.SHORTS_OFF, *decision.reasons))
        reason = decision.reasons[0].value
        return {
            "close_time": view.close_time,
            "symbol": symbol,
            "action": decision.action.name,
            "target": decision.target,
            "position": position,
            "held_qty": self.state.book.qty(symbol),
            "reason": reason,
            "outcome": reason,
            "votes": {name: _vote(vote) for name, vote in decision.votes.items()},
            "reference_price": None if newest is None else newest.close,
            "volatility": decision.volatility,
            "stop": None,
            "take_profit": None,
            "bar_start": None if newest is None else newest.start,
        }

    def _intents_of(
        self, opinion: Opinion, row: dict[str, Any], bar: Bar, budget: _Budget, met: _Close
    ) -> list[Intent]:
        """Turn one opinion into closing and entering intents; the row's outcome says what became of it."""
        symbol, target, position = opinion.symbol, row["target"], row["position"]
        if self._unresolved(symbol):
            row["outcome"] = Reason.UNRESOLVED_ORDER.value
            return []
        if target == position:
            working = self.state.working_entry(symbol) or self._closing(symbol)
            row["outcome"] = (Reason.ORDER_WORKING if working else Reason.TARGET_HELD).value
            return []
        if self._closing(symbol):
            row["outcome"] = Reason.ORDER_WORKING.value
            return []
        row["outcome"] = PLANNED
        close = row["close_time"]
        intents: list[Intent] = []
        if position:
            side = Side.SELL if position > 0 else Side.BUY
            entry = self.state.working_entry(symbol)
            qty = abs(self.state.book.qty(symbol)) or (_ZERO if entry is None else entry.qty)
            intents.append(self._intent(symbol, side, Leg.CLOSE, qty, close, bar))
        if target:
            entry_intent = self._entry(opinion, row, bar, budget, met)
            if entry_intent is not None:
                intents.append(entry_intent)
        return intents

    def _entry(self, opinion: Opinion, row: dict[str, Any], bar: Bar, budget: _Budget, met: _Close) -> Intent | None:
        symbol, side = opinion.symbol, Side.BUY if row["target"] > 0 else Side.SELL
        instrument = self.parts.instruments[symbol]
        volatility = met.view.volatility_S.item(met.place)
        if not volatility > 0.0:
            row["outcome"] = Reason.NO_VOLATILITY.value if row["position"] == 0 else PLANNED
            return None
        if budget.risk.equity <= 0:  # a loss beyond the account, or an account without money: nothing can be sized
            row["outcome"] = Reason.NO_BUYING_POWER.value if row["position"] == 0 else PLANNED
            row["votes"]["gate"] = {"refused": Reason.NO_BUYING_POWER.value}
            return None
        risk = self._symbol_risk(symbol, bar, met)
        wanted = abs(
            target_quantity(
                self.parts.sizing,
                target=row["target"],
                equity=budget.risk.equity,
                price=risk.price,
                volatility=volatility,
                instrument=instrument,
                bars_per_year=self.parts.bars_per_year,
            )
        )
        verdict = judge_entry(wanted, budget.risk, risk, self.settings.risk) if wanted > 0 else None
        reason = Reason.BELOW_MINIMUM if verdict is None else verdict.reason
        qty = _ZERO if verdict is None else verdict.qty
        affordable = budget.buying_power / (risk.price * _DEAR)
        if qty > affordable:
            qty, reason = max(affordable, _ZERO), Reason.NO_BUYING_POWER
        qty = instrument.round_qty(qty)
        if qty <= 0 or qty * risk.price < instrument.min_notional:
            outcome = reason or Reason.BELOW_MINIMUM
            row["outcome"] = outcome.value if row["position"] == 0 else PLANNED
            row["votes"]["gate"] = {"refused": outcome.value}
            return None
        plan = plan_exits(
            self.parts.exits,
            target=row["target"],
            price=risk.price,
            qty=qty,
            volatility=volatility,
            instrument=instrument,
            levels=opinion.exits,
        )
        row["stop"], row["take_profit"] = plan.stop, plan.take_profit
        if reason is not None:
            row["votes"]["gate"] = {"reduced": reason.value, "from": str(wanted), "to": str(qty)}
        if len(self.symbols) > 1:
            budget.risk = replace(budget.risk, gross=budget.risk.gross + qty * risk.price)
            budget.buying_power -= qty * risk.price * _DEAR
        valid_until = row["close_time"] + self._patience
        return self._intent(symbol, side, Leg.ENTRY, qty, row["close_time"], bar, exits=plan, valid_until=valid_until)

    def _symbol_risk(self, symbol: str, bar: Bar, met: _Close) -> SymbolRisk:
        view, remembered = met.view, met.remembered
        return SymbolRisk(
            price=decimal_of(bar.close),
            bar_age_periods=(view.close_time - bar.close_time) / self.period,
            features_out_of_range=view.out_of_range_S.item(met.place),
            entries_last_hour=remembered.entries_last_hour.get(symbol, 0),
            reject_streak=self.state.rejects.get(symbol, 0),
            bars_since_stop=remembered.bars_since_stop.get(symbol),
            paused=self.state.paused.get(symbol),
        )

    def _intent(
        self,
        symbol: str,
        side: Side,
        leg: Leg,
        qty: Decimal,
        close: datetime,
        bar: Bar,
        *,
        exits: ExitPlan | None = None,
        valid_until: datetime | None = None,
    ) -> Intent:
        reference = ReferenceBar.of(bar.high, bar.low, bar.volume)
        return Intent(
            intent_id=intent_id(self.settings.account_scope, symbol, close, side, leg),
            sequence=0,
            close_time=close,
            symbol=symbol,
            side=side,
            leg=leg,
            qty=qty,
            exits=exits,
            reference_price=bar.close,
            predicted_cost_fraction=self.parts.costs.side_fraction(float(qty), reference),
            valid_until=valid_until,
        )

    def exit_intent(self, symbol: str, leg: Leg, at: datetime, price: float, *, sequence: int) -> Intent:
        """Return the intent of a protective exit that the daemon fires itself."""
        qty = self.state.book.qty(symbol)
        side = Side.SELL if qty > 0 else Side.BUY
        return Intent(
            intent_id=intent_id(self.settings.account_scope, symbol, at, side, leg),
            sequence=sequence,
            close_time=at,
            symbol=symbol,
            side=side,
            leg=leg,
            qty=abs(qty),
            exits=None,
            reference_price=price,
            predicted_cost_fraction=self.parts.costs.side_fraction(0.0, ReferenceBar(volume=0.0, sigma=0.0)),
            valid_until=None,
        )

    def _unresolved(self, symbol: str) -> bool:
        """Tell whether an order's fate is not known, or an intent of an earlier close still waits to be sent."""
        intents, orders = self.state.intents, self.state.orders.of(symbol)
        if intents and any(intent.symbol == symbol for intent in intents.values()):
            return True
        return bool(orders) and any(order.state in _UNCLEAR for order in orders)

    def _closing(self, symbol: str) -> bool:
        orders = self.state.orders.of(symbol)
        return bool(orders) and any(
            order.leg is not Leg.ENTRY and order.parent_client_id is None and not order.state.is_terminal
            for order in orders
        )

    def position(self, symbol: str) -> int:
        """Return the position that a decision starts from: held, or being entered; 0 while it is being closed.

        A remainder below the venue's smallest order (fees taken in the asset leave such) counts as flat: it could
        neither be sold nor be let stand in the way of an entry.
        """
        orders = self.state.orders.of(symbol)
        if orders and any(order.leg is Leg.CLOSE and not order.state.is_terminal for order in orders):
            return 0
        held = self.state.book.qty(symbol)
        if held:
            newest = self.newest.get(symbol)
            least = self.parts.instruments[symbol].min_notional
            if newest is None or abs(held) * decimal_of(newest.close) >= least:
                return 1 if held > 0 else -1
        entry = self.state.working_entry(symbol) if orders else None
        return 0 if entry is None else entry.side.sign

    def account_risk(self, view: View) -> AccountRisk:
        """Return the account as the gate sees it; a new day and a new peak are noted."""
        equity = view.account.equity
        state = self.state
        day = view.close_time.date().isoformat()
        if day != state.day:
            state.day, state.day_start_equity = day, equity if state.last_equity is None else state.last_equity
        state.peak_equity = max(state.peak_equity, equity)
        gross = _ZERO
        for position in view.positions.values():
            gross += abs(position.qty * position.mark)
        for order in state.orders.values():
            if order.leg is Leg.ENTRY and order.symbol in self.newest:
                gross += (order.qty - order.filled_qty) * decimal_of(self.newest[order.symbol].close)
        halt = view.control.get("halt", {})
        return AccountRisk(
            equity=equity,
            peak=state.peak_equity,
            day_start=state.day_start_equity,
            gross=gross,
            halted=str(halt.get("reason", "")) if halt.get("halted") else None,
        )


def _in_order(intents: list[Intent]) -> list[Intent]:
    """Return intents in the order in which they go out, numbered: closes first."""
    if len(intents) < 2:
        return intents  # made with the number 0
    closing = [intent for intent in intents if intent.leg is not Leg.ENTRY]
    entering = [intent for intent in intents if intent.leg is Leg.ENTRY]
    return [
        intent if intent.sequence == number else replace(intent, sequence=number)
        for number, intent in enumerate(closing + entering)
    ]


def _vote(vote: Opinion | Abstention) -> dict[str, Any]:
    if isinstance(vote, Abstention):
        return {"abstained": vote.reason.value, "detail": vote.detail}
    row: dict[str, Any] = {
        "target": vote.target,
        "q": {str(key): round(float(value), 9) for key, value in vote.q.items()},
        "detail": {key: round(float(value), 9) for key, value in vote.detail.items()},
    }
    if vote.exits is not None and vote.target:
        levels = {"stop": vote.exits.stop, "take_profit": vote.exits.take_profit}
        row["exits"] = {name: None if level is None else round(level, 9) for name, level in levels.items()}
    if vote.probabilities:
        row["p"] = {str(key): round(float(value), 9) for key, value in vote.probabilities.items()}
    if vote.note:
        row["note"] = vote.note
    return row
