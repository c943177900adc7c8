"""One bar close: bars in, decisions and intents committed, orders out.

`Trader.on_close` is the whole job, live and in replay; only the clock and the venue behind the protocols
differ. Everything of one close that is decided is committed in one transaction before the first order
leaves; a close is therefore either not decided, or decided and resumable. Calling it twice is harmless.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import structlog
from sqlalchemy import Connection, func, or_, select, update

from agent.answers import checked
from agent.exits import fired_exits
from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.metrics import Metrics
from agent.orders import Intent, intent_id
from agent.parts import Parts
from agent.records import record_outcome, record_position, split_plan, write_exit
from agent.risk import AccountRisk, SymbolRisk, breach, judge_entry
from agent.settings import Settings
from agent.splits import is_met, settle_met
from agent.trading_state import ArmedExit, TradingState
from brokers.account import split_quantity
from brokers.costs import ReferenceBar, is_split, split_ratio
from brokers.domain import Account, Bar, BrokerError, Leg, OrderState, Position, Side, UnavailableError
from brokers.protocol import Clock
from strategies.decision import decide, plan_exits
from strategies.sizing import target_quantity
from strategies.strategy import Abstention, Observations, Opinion, Reason

log = structlog.get_logger("tandem.cycle")

_CONTROL = select(schema.state).where(or_(schema.state.c.key == "halt", schema.state.c.key == "resumed"))

_LONGEST_PAUSE = timedelta(days=14)
"""No calendar's sessions pause longer."""

PLANNED = "planned"
"""Outcome of a decision whose intents are committed and not yet carried out."""


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one close came to: bars that were new, decisions made, intents carried out, and a standing halt's reason."""

    close_time: datetime
    bars: int
    decisions: int
    intents: int
    seconds: float
    halted: str | None


@dataclass(slots=True)
class _View:
    """Everything that is known about one close before anything is decided."""

    close_time: datetime
    bars: dict[str, list[Bar]]
    account: Account
    positions: Mapping[str, Position]
    control: Mapping[str, Any]
    features_SF: np.ndarray[Any, np.dtype[np.float64]]
    volatility_S: np.ndarray[Any, np.dtype[np.float64]]
    out_of_range_S: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class _Budget:
    """What entries of this close may still use: gross exposure so far, and buying power left."""

    risk: AccountRisk
    buying_power: Decimal


class Trader:
    """Decides and trades at each close.

    Args:
        parts: The wired rooms (venue, ledger, strategy, features, desk, ...).
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings: Settings = parts.settings
        self.clock: Clock = parts.clock
        self.ledger: Ledger = parts.ledger
        self.state: TradingState = parts.state
        self.metrics: Metrics = parts.metrics
        self.symbols: tuple[str, ...] = parts.symbols
        self.period: timedelta = parts.settings.bar_period
        self.newest: dict[str, Bar] = dict(parts.newest_bars)
        self._ranges_F2 = parts.features.spec.ranges
        # features bounded by 1 are shares and flags that reach their bounds in the normal course of things
        self._clipped_F = self._ranges_F2[:, 1] > 1.0
        self._halted: str | None = None
        self._entries: deque[tuple[datetime, str]] | None = None

    # ---- the job ------------------------------------------------------------------------------------

    async def on_close(self, close: datetime) -> CycleReport:
        """Decide and trade one close.

        Raises:
            BrokerError: The venue could not be asked; nothing was decided.
            LedgerError: Nothing could be written; the daemon must stop.
        """
        began = time.perf_counter()
        if self.state.last_close is not None and close <= self.state.last_close:
            await self.resume()
            return CycleReport(close, 0, 0, 0, time.perf_counter() - began, self._halted)
        await self.resume()
        if not self.clock.stepped:  # a stepped venue is looked at whenever its time has moved
            await self.parts.reconciler.sync()
        view = await self._look(close)
        answers = await self._ask(view)
        decisions, intents = self._decide(view, answers)
        self._commit(view, decisions, intents)
        outcomes = await self._carry_out(intents)
        ended = {intent.symbol: outcomes[intent.intent_id].value for intent in intents if intent.intent_id in outcomes}
        seconds = time.perf_counter() - began
        self._count(view, decisions, ended, seconds)
        new_bars = sum(len(bars) for bars in view.bars.values())
        return CycleReport(close, new_bars, len(decisions), len(intents), seconds, self._halted)

    async def resume(self) -> None:
        """Carry out what was decided and not finished, in its old order: the same path after a kill and live."""
        if self.state.intents:
            await self._know(intent.symbol for intent in self.state.intents.values())
            await self._carry_out(list(self.state.intents.values()))
            await self.parts.reconciler.sync()  # what was found there may have filled in the meantime
        elif not self.state.last_close_done and self.state.last_close is not None:
            self._close_cycle({}, [])

    async def watch_exits(self) -> None:
        """Check locally armed exits against current quotes, between two closes (venues that run by themselves)."""
        local = [armed for armed in self.state.exits.values() if armed.mode == "local"]
        if not local or self.clock.stepped:
            return
        quotes = await self.parts.data.quotes([armed.symbol for armed in local])
        fired = fired_exits(self.state, {}, quotes)
        held = await self.parts.broker.positions() if fired else {}
        if any(symbol not in held or held[symbol].qty != self.state.book.qty(symbol) for symbol, _ in fired):
            # a split, whose exits lie elsewhere from now on, or a count that is off: an exit waits for neither
            await self.parts.reconciler.reconcile()
            fired = fired_exits(self.state, {}, quotes)
        await self._know(symbol for symbol, _ in fired)
        now = self.clock.now()
        planned = {intent.symbol for intent in self.state.intents.values()}
        fresh = [
            self._exit_intent(symbol, leg, now, float(quotes[symbol].mid), sequence=number)
            for number, (symbol, leg) in enumerate(fired)
            if symbol not in planned
        ]
        if fresh:
            with self.ledger.transaction() as connection:
                self._write_intents(connection, fresh)
            await self._carry_out(fresh)

    async def _know(self, symbols: Iterable[str]) -> None:
        """Ask for the rules of symbols that are held and, by the settings, no longer traded."""
        unknown = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self.parts.instruments]
        if unknown:
            self.parts.instruments.update(await self.parts.broker.instruments(unknown))

    # ---- looking ------------------------------------------------------------------------------------

    async def _look(self, close: datetime) -> _View:
        bars = await self._new_bars(close)
        account = await self.parts.broker.account()
        positions = await self.parts.broker.positions()
        # last, when nothing can fail any more: a look that fails is repeated with the same bars
        self.parts.features.append_many(bar for found in bars.values() for bar in found)
        features_SF = self.parts.features.latest(self.symbols)
        return _View(
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
                    self.ledger.upsert(connection, schema.bars_seen, [_bar_row(revised)])
                self.newest[symbol] = revised
                await self.parts.history.warm(symbol, until=revised.close_time)  # later ones are appended
                log.info("bar revised", symbol=symbol, start=bar.start.isoformat(), revision=revised.revision)

    def _out_of_range(self, features_SF: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Count, per symbol, the features that stand at or beyond the range in which they are clipped."""
        low_F, high_F = self._ranges_F2[:, 0], self._ranges_F2[:, 1]
        with np.errstate(invalid="ignore"):
            beyond_SF = (features_SF <= low_F) | (features_SF >= high_F)
        return np.asarray((beyond_SF & self._clipped_F).sum(axis=1), dtype=np.int64)

    def _refuse(self, bar: Bar, fault: str) -> None:
        with self.ledger.transaction() as connection:
            self.ledger.incident(connection, bar.close_time, "bad_bar", f"{bar.start}: {fault}", bar.symbol)
        self.metrics.incident("bad_bar")
        log.error("bar refused", symbol=bar.symbol, start=bar.start.isoformat(), fault=fault)

    def _control(self) -> dict[str, Any]:
        """Read what other processes may have changed: the halt, and `tandem resume`."""
        return {row.key: row.value for row in self.ledger.rows(_CONTROL)}

    # ---- asking -------------------------------------------------------------------------------------

    async def _ask(self, view: _View) -> list[Opinion | Abstention]:
        """Ask the strategy about the symbols whose bar is there; the others get an Abstention that says why."""
        answers: dict[str, Opinion | Abstention] = {}
        usable: list[int] = []
        for index, symbol in enumerate(self.symbols):
            silent = self._silence(view, index, symbol)
            if silent is None:
                usable.append(index)
            else:
                answers[symbol] = silent
        if usable:
            names = [self.symbols[i] for i in usable]
            deadline_s = self._time_to_answer_s(view.close_time)
            observations = Observations(
                symbols=names,
                close_time=view.close_time,
                features_SF=view.features_SF[usable],
                positions_S=np.array([self._position(name) for name in names], dtype=np.int8),
                deadline_monotonic_s=time.monotonic() + deadline_s,
            )
            answers.update(await self._opinions(observations, deadline_s))
        return [answers[symbol] for symbol in self.symbols]

    async def _opinions(self, observations: Observations, deadline_s: float) -> dict[str, Opinion | Abstention]:
        try:
            async with asyncio.timeout(deadline_s):
                opinions = await self.parts.strategy.opinions(observations)
        except TimeoutError:
            log.exception("the strategy missed its deadline", strategy=self.parts.strategy.name, deadline_s=deadline_s)
            return {s: Abstention(s, Reason.NO_ANSWER, "deadline") for s in observations.symbols}
        except Exception as error:  # any fault of a model is an abstention with a reason, never a vote
            log.exception("the strategy failed", strategy=self.parts.strategy.name)
            return {s: Abstention(s, Reason.MODEL_ERROR, str(error)[:200]) for s in observations.symbols}
        return checked(observations.symbols, opinions)

    def _time_to_answer_s(self, close: datetime) -> float:
        """Return what is left of the decision deadline; a tenth of it at least, since reductions are never too late."""
        deadline_s = self.settings.daemon.decision_deadline_s
        if self.clock.stepped:
            return deadline_s
        gone_s = (self.clock.now() - close).total_seconds()
        return max(deadline_s - gone_s, deadline_s / 10.0)

    def _silence(self, view: _View, index: int, symbol: str) -> Abstention | None:
        bars = view.bars[symbol]
        if not bars or bars[-1].close_time != view.close_time:
            newest = bars[-1] if bars else self.newest.get(symbol)
            if newest is None:
                return Abstention(symbol, Reason.NO_BAR, "no bar has ever been seen")
            age = (view.close_time - newest.close_time) / self.period
            reason = Reason.STALE_DATA if age > self.settings.risk.stale_bars_max else Reason.NO_BAR
            return Abstention(symbol, reason, f"the newest bar closed {newest.close_time.isoformat()}")
        if not np.isfinite(view.features_SF[index]).all():
            seen = self.parts.features.bars_seen(symbol)
            wanted = self.parts.features.spec.memory_bars
            if seen < wanted:
                return Abstention(symbol, Reason.WARMING_UP, f"{seen} of {wanted} bars")
            return Abstention(symbol, Reason.BAD_FEATURES, "a feature is not finite")
        return None

    def _position(self, symbol: str) -> int:
        """Return the position that a decision starts from: held, or being entered; 0 while it is being closed.

        A remainder below the venue's smallest order (fees taken in the asset leave such) counts as flat: it could
        neither be sold nor be let stand in the way of an entry.
        """
        for order in self.state.working_orders(symbol):
            if order.leg is Leg.CLOSE:
                return 0
        held = self.state.book.qty(symbol)
        newest = self.newest.get(symbol)
        least = self.parts.instruments[symbol].min_notional
        if held and (newest is None or abs(held) * Decimal(repr(newest.close)) >= least):
            return 1 if held > 0 else -1
        entry = self.state.working_entry(symbol)
        return 0 if entry is None else entry.side.sign

    # ---- deciding -----------------------------------------------------------------------------------

    def _decide(
        self, view: _View, answers: Sequence[Opinion | Abstention]
    ) -> tuple[list[dict[str, Any]], list[Intent]]:
        self._take_control(view.control)
        self._apply_splits(view)
        budget = self._budget(view)
        newest = {symbol: bars[-1] for symbol, bars in view.bars.items() if bars}
        fired = dict(fired_exits(self.state, newest, {}))
        entries_last_hour = self._entries_last_hour(view.close_time)
        bars_since_stop = self._bars_since_stop(view.close_time)
        decisions: list[dict[str, Any]] = []
        intents: list[Intent] = []
        for index, (symbol, answer) in enumerate(zip(self.symbols, answers, strict=True)):
            row = self._decision_row(view, index, symbol, answer)
            wanted: list[Intent] = []
            if symbol in fired and not self._unresolved(symbol):
                price = newest[symbol].close
                wanted = [self._exit_intent(symbol, fired[symbol], view.close_time, price, sequence=0)]
                row["outcome"] = Reason.PROTECTIVE_EXIT.value
            elif isinstance(answer, Opinion):
                risk = SymbolRisk(
                    price=Decimal(repr(newest[symbol].close)),
                    bar_age_periods=(view.close_time - newest[symbol].close_time) / self.period,
                    features_out_of_range=int(view.out_of_range_S[index]),
                    entries_last_hour=entries_last_hour.get(symbol, 0),
                    reject_streak=self.state.rejects.get(symbol, 0),
                    bars_since_stop=bars_since_stop.get(symbol),
                    paused=self.state.paused.get(symbol),
                )
                wanted = self._intents_of(answer, row, newest[symbol], risk, budget, view.volatility_S[index])
            intents += wanted
            decisions.append(row)
        closing = [intent for intent in intents if intent.leg is not Leg.ENTRY]
        entering = [intent for intent in intents if intent.leg is Leg.ENTRY]
        ordered = [replace(intent, sequence=number) for number, intent in enumerate(closing + entering)]
        return decisions, ordered

    def _decision_row(self, view: _View, index: int, symbol: str, answer: Opinion | Abstention) -> dict[str, Any]:
        bars = view.bars[symbol]
        newest = bars[-1] if bars else self.newest.get(symbol)
        position = self._position(symbol)
        volatility = float(view.volatility_S[index])
        decision = decide(
            answer,
            mind=self.parts.strategy.name,
            close_time=view.close_time,
            position=position,
            volatility=volatility if math.isfinite(volatility) else None,
            reference_price=None if newest is None else Decimal(repr(newest.close)),
        )
        if decision.target < 0 and not self.settings.strategy.shorts:
            decision = replace(decision, target=0, reasons=(Reason.SHORTS_OFF, *decision.reasons))
        return {
            "close_time": view.close_time,
            "symbol": symbol,
            "action": decision.action.name,
            "target": decision.target,
            "position": position,
            "held_qty": self.state.book.qty(symbol),
            "reason": decision.reasons[0].value,
            "outcome": decision.reasons[0].value,
            "votes": {name: _vote(vote) for name, vote in decision.votes.items()},
            "reference_price": None if newest is None else newest.close,
            "volatility": decision.volatility,
            "stop": None,
            "take_profit": None,
            "bar_start": None if newest is None else newest.start,
        }

    def _intents_of(
        self, opinion: Opinion, row: dict[str, Any], bar: Bar, risk: SymbolRisk, budget: _Budget, volatility: float
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
            qty = abs(self.state.book.qty(symbol)) or (Decimal(0) if entry is None else entry.qty)
            intents.append(self._intent(symbol, side, Leg.CLOSE, qty, close, bar))
        if target:
            entry_intent = self._entry(opinion, row, bar, risk, budget, volatility)
            if entry_intent is not None:
                intents.append(entry_intent)
        return intents

    def _entry(
        self, opinion: Opinion, row: dict[str, Any], bar: Bar, risk: SymbolRisk, budget: _Budget, volatility: float
    ) -> Intent | None:
        symbol, side = opinion.symbol, Side.BUY if row["target"] > 0 else Side.SELL
        instrument = self.parts.instruments[symbol]
        if not volatility > 0.0:
            row["outcome"] = Reason.NO_VOLATILITY.value if row["position"] == 0 else PLANNED
            return None
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
        qty = Decimal(0) if verdict is None else verdict.qty
        affordable = budget.buying_power / (risk.price * Decimal("1.03"))
        if qty > affordable:
            qty, reason = max(affordable, Decimal(0)), Reason.NO_BUYING_POWER
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
        budget.risk = replace(budget.risk, gross=budget.risk.gross + qty * risk.price)
        budget.buying_power -= qty * risk.price * Decimal("1.03")
        intent = self._intent(symbol, side, Leg.ENTRY, qty, row["close_time"], bar)
        return replace(
            intent,
            exits=plan,
            valid_until=row["close_time"] + timedelta(seconds=self.settings.daemon.decision_deadline_s),
        )

    def _intent(self, symbol: str, side: Side, leg: Leg, qty: Decimal, close: datetime, bar: Bar) -> Intent:
        reference = ReferenceBar.of(bar.high, bar.low, bar.volume)
        return Intent(
            intent_id=intent_id(self.settings.account_scope, symbol, close, side, leg),
            sequence=0,
            close_time=close,
            symbol=symbol,
            side=side,
            leg=leg,
            qty=qty,
            exits=None,
            reference_price=bar.close,
            predicted_cost_fraction=self.parts.costs.side_fraction(float(qty), reference),
            valid_until=None,
        )

    def _exit_intent(self, symbol: str, leg: Leg, at: datetime, price: float, *, sequence: int) -> Intent:
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
        return any(intent.symbol == symbol for intent in self.state.intents.values()) or any(
            order.state in (OrderState.SUBMITTING, OrderState.UNKNOWN) for order in self.state.working_orders(symbol)
        )

    def _closing(self, symbol: str) -> bool:
        return any(
            order.leg is not Leg.ENTRY and order.parent_client_id is None for order in self.state.working_orders(symbol)
        )

    # ---- account and gate ---------------------------------------------------------------------------

    def _budget(self, view: _View) -> _Budget:
        equity = view.account.equity
        state = self.state
        day = view.close_time.date().isoformat()
        if day != state.day:
            last = self.ledger.last_equity()
            state.day, state.day_start_equity = day, equity if last is None else last.equity
        state.peak_equity = max(state.peak_equity, equity)
        gross = sum((abs(p.qty * p.mark) for p in view.positions.values()), Decimal(0))
        for order in state.orders.values():
            if order.leg is Leg.ENTRY and order.symbol in self.newest:
                gross += (order.qty - order.filled_qty) * Decimal(repr(self.newest[order.symbol].close))
        halt = view.control.get("halt", {})
        risk = AccountRisk(
            equity=equity,
            peak=state.peak_equity,
            day_start=state.day_start_equity,
            gross=gross,
            halted=str(halt.get("reason", "")) if halt.get("halted") else None,
        )
        return _Budget(risk=risk, buying_power=view.account.buying_power)

    def _take_control(self, control: Mapping[str, Any]) -> None:
        """Note a halt; forget streaks, pauses and the peak when somebody said `tandem resume` since the last close.

        The drawdown is counted anew from there: the old one would halt again at once.
        """
        halt = control.get("halt", {})
        self._halted = str(halt.get("reason", "")) if halt.get("halted") else None
        count = control.get("resumed", {}).get("count", 0)
        if count != self.state.resumed:
            self.state.resumed = count
            self.state.peak_equity = Decimal(0)
            self.state.rejects.clear()
            self.state.paused.clear()
            with self.ledger.transaction() as connection:  # what was written since `tandem resume` goes with them
                self.ledger.set_state(connection, "rejects", {})
                self.ledger.set_state(connection, "paused", {})

    def _entries_last_hour(self, close: datetime) -> Mapping[str, int]:
        """Count the entries decided within an hour before a close; read once, then kept up by `_write_intents`."""
        since = close - timedelta(hours=1)
        if self._entries is None:
            question = (
                select(schema.intents.c.close_time, schema.intents.c.symbol)
                .where(schema.intents.c.close_time > since, schema.intents.c.leg == Leg.ENTRY.value)
                .order_by(schema.intents.c.close_time)
            )
            self._entries = deque((row.close_time, row.symbol) for row in self.ledger.rows(question))
        while self._entries and self._entries[0][0] <= since:
            self._entries.popleft()
        return Counter(symbol for _, symbol in self._entries)

    def _bars_since_stop(self, close: datetime) -> dict[str, int]:
        cooldown = self.settings.risk.cooldown_bars
        if cooldown == 0:
            return {}
        since = close - (cooldown + 1) * self.period * 6 - _LONGEST_PAUSE  # bars are counted in sessions alone
        question = (
            select(schema.fills.c.symbol, func.max(schema.fills.c.at).label("at"))
            .where(schema.fills.c.leg == Leg.STOP.value, schema.fills.c.at > since)
            .group_by(schema.fills.c.symbol)
        )
        return {
            row.symbol: len(self.parts.calendar.closes_between(row.at, close, self.period))
            for row in self.ledger.rows(question)
        }

    def _apply_splits(self, view: _View) -> None:
        """Apply the splits of the new bars to our own count and to the exits; the venue has applied them already."""
        for symbol, bars in view.bars.items():
            before = self.newest.get(symbol)
            for bar in bars:
                ratio = 1.0 if before is None else bar.adj_factor / before.adj_factor
                if is_split(ratio):
                    self._apply_split(
                        view, symbol, bar, split_ratio(ratio), None if before is None else before.close_time
                    )
                before = bar

    def _apply_split(self, view: _View, symbol: str, bar: Bar, ratio: Decimal, last_close: datetime | None) -> None:
        now = view.close_time
        venue = view.positions.get(symbol)
        venue_qty = Decimal(0) if venue is None else venue.qty
        with self.ledger.transaction() as connection:
            marks = self.ledger.get_state(f"split:{symbol}") or {}
            if marks.get("bar") == schema.iso(bar.start):
                return
            if self.state.book.qty(symbol) != venue_qty:
                self._split_book(connection, symbol, bar, ratio)
            armed = self.state.exits.get(symbol)
            if is_met(marks, last_close):
                settle_met(connection, self.ledger, self.state, symbol, marks, ratio)
            elif armed is not None and self._priced_at(connection, armed) <= bar.start:
                write_exit(connection, self.ledger, self.state, replace(armed, plan=split_plan(armed.plan, ratio)))
            self.ledger.set_state(connection, f"split:{symbol}", {"bar": schema.iso(bar.start), "ratio": str(ratio)})
            record_position(connection, self.ledger, self.state, symbol, now)
        log.info("split applied", symbol=symbol, ratio=str(ratio), bar=bar.start.isoformat())

    def _priced_at(self, connection: Connection, armed: ArmedExit) -> datetime:
        """Return when a plan's prices were set: the close its entry was decided on."""
        question = select(schema.intents.c.close_time).where(schema.intents.c.intent_id == armed.intent_id)
        decided = connection.execute(question).scalar()
        return armed.armed_at if decided is None else decided

    def _split_book(self, connection: Connection, symbol: str, bar: Bar, ratio: Decimal) -> None:
        """Scale what was held before the bar opened; fills of this bar are in new units already."""
        opened = self.parts.calendar.open_of(bar.start, self.period)
        question = select(schema.fills).where(schema.fills.c.symbol == symbol, schema.fills.c.at >= opened)
        later = connection.execute(question.order_by(schema.fills.c.exec_id)).all()
        moved = sum((row.qty if row.side == Side.BUY.value else -row.qty for row in later), Decimal(0))
        holding = self.state.book.holdings.get(symbol)
        held_before = (Decimal(0) if holding is None else holding.qty) - moved
        if holding is not None and held_before:
            holding.qty = split_quantity(held_before, ratio) + moved
            holding.avg_cost /= ratio

    # ---- committing and carrying out ----------------------------------------------------------------

    def _commit(self, view: _View, decisions: list[dict[str, Any]], intents: list[Intent]) -> None:
        close, state = view.close_time, self.state
        bars = [bar for found in view.bars.values() for bar in found]
        gross = sum((abs(p.qty * p.mark) for p in view.positions.values()), Decimal(0))
        equity_row = {
            "close_time": close,
            "equity": view.account.equity,
            "cash": view.account.cash,
            "gross_exposure": float(gross / view.account.equity) if view.account.equity else 0.0,
            "peak": state.peak_equity,
            "day_start": state.day_start_equity,
        }
        cycle_row = {
            "close_time": close,
            "run_id": self.parts.run_id,
            "status": "decided" if intents else "done",
            "symbols": len(decisions),
            "decided_wall_ms": time.time() * 1_000.0,
        }
        with self.ledger.transaction() as connection:
            self.ledger.upsert(connection, schema.bars_seen, [_bar_row(bar) for bar in bars])
            self.ledger.upsert(connection, schema.decisions, decisions)
            self.ledger.upsert(connection, schema.equity, [equity_row])
            self.ledger.upsert(connection, schema.cycles, [cycle_row])
            self._write_intents(connection, intents)
            self._halt_on_breach(connection, view)
        for bar in bars:
            self.newest[bar.symbol] = bar
        state.last_close, state.last_close_done = close, not intents

    def _write_intents(self, connection: Connection, intents: list[Intent]) -> None:
        rows = [
            {
                "intent_id": intent.intent_id,
                "sequence": intent.sequence,
                "close_time": intent.close_time,
                "symbol": intent.symbol,
                "side": intent.side.value,
                "leg": intent.leg.value,
                "qty": intent.qty,
                "stop": None if intent.exits is None else intent.exits.stop,
                "take_profit": None if intent.exits is None else intent.exits.take_profit,
                "max_loss_usd": None if intent.exits is None else intent.exits.max_loss_usd,
                "reference_price": intent.reference_price,
                "predicted_cost_fraction": intent.predicted_cost_fraction,
                "valid_until": intent.valid_until,
                "state": intent.state.value,
                "note": "",
            }
            for intent in intents
        ]
        self.ledger.insert_new(connection, schema.intents, rows)
        self.state.intents.update({intent.intent_id: intent for intent in intents})
        if self._entries is not None:
            self._entries.extend((each.close_time, each.symbol) for each in intents if each.leg is Leg.ENTRY)

    def _halt_on_breach(self, connection: Connection, view: _View) -> None:
        risk = self._budget(view).risk
        reason = breach(risk, self.settings.risk)
        if reason is None or risk.halted is not None:
            return
        detail = f"drawdown {risk.drawdown:.2%} exceeds {self.settings.risk.drawdown_fraction:.2%}"
        self.ledger.set_state(
            connection, "halt", {"halted": True, "reason": detail, "at": schema.iso(view.close_time), "by": "risk gate"}
        )
        self.ledger.incident(connection, view.close_time, "halt", detail)
        self.metrics.incident("halt")
        self._halted = detail
        log.error("halted", reason=detail)

    async def _carry_out(self, intents: list[Intent]) -> dict[str, Reason]:
        if not intents:
            return {}
        outcomes = await self.parts.desk.execute(intents)
        self._close_cycle(outcomes, intents)
        if self.clock.stepped and self.state.intents:
            waiting = ", ".join(f"{i.leg.value} of {i.symbol}" for i in self.state.intents.values())
            raise UnavailableError(
                f"the exchange could not be asked about {waiting}: its time must not pass before; start again once it "
                "answers, nothing is lost"
            )
        return outcomes

    def _close_cycle(self, outcomes: Mapping[str, Reason], intents: Sequence[Intent]) -> None:
        """Write what the unfinished intents wait for; the cycle is done once nothing of it is left to send.

        The outcome of a finished intent was written with its end.
        """
        with self.ledger.transaction() as connection:
            for intent in intents:
                if intent.intent_id in self.state.intents and intent.intent_id in outcomes:
                    record_outcome(connection, intent, outcomes[intent.intent_id])
            if not self.state.intents:
                connection.execute(
                    update(schema.cycles).where(schema.cycles.c.status == "decided").values(status="done")
                )
                self.state.last_close_done = True

    def _count(self, view: _View, decisions: list[dict[str, Any]], ended: Mapping[str, str], seconds: float) -> None:
        metrics = self.metrics
        metrics.cycles.inc()
        metrics.cycle_seconds.observe(seconds)
        metrics.ledger_commit_seconds.observe(self.ledger.last_commit_s)
        equity, peak = view.account.equity, self.state.peak_equity
        metrics.equity_usd.set(float(equity))
        metrics.drawdown_ratio.set(float(1 - equity / peak) if peak > 0 else 0.0)
        gross = sum((abs(p.qty * p.mark) for p in view.positions.values()), Decimal(0))
        metrics.gross_exposure_ratio.set(float(gross / equity) if equity > 0 else 0.0)
        for symbol in self.symbols:
            newest = self.newest.get(symbol)
            if newest is not None:
                metrics.data_age(symbol, (view.close_time - newest.close_time).total_seconds())
        for row in decisions:
            outcome = ended.get(row["symbol"], row["outcome"]) if row["outcome"] == PLANNED else row["outcome"]
            metrics.decided(row["action"].lower(), outcome)
            vote = row["votes"][self.parts.strategy.name]
            if "abstained" in vote:
                metrics.abstained(self.parts.strategy.name, vote["abstained"])


def _vote(vote: Opinion | Abstention) -> dict[str, Any]:
    if isinstance(vote, Abstention):
        return {"abstained": vote.reason.value, "detail": vote.detail}
    return {
        "target": vote.target,
        "q": {str(key): round(float(value), 9) for key, value in vote.q.items()},
        "detail": {key: round(float(value), 9) for key, value in vote.detail.items()},
    }


def _bar_row(bar: Bar) -> dict[str, Any]:
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
    numbers = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.adj_factor)
    if not all(math.isfinite(number) for number in numbers):
        return "a value is not finite"
    if min(bar.open, bar.high, bar.low, bar.close, bar.adj_factor) <= 0 or bar.volume < 0:
        return "a price is not positive or the volume is negative"
    if bar.high < max(bar.open, bar.close) or bar.low > min(bar.open, bar.close):
        return "open or close lies outside low and high"
    return None


__all__ = ["BrokerError", "CycleReport", "Trader"]
