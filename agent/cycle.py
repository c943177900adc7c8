"""One bar close: bars in, decisions and intents committed, orders out.

`Trader.on_close` is the whole job, live and in replay; only the clock and the venue behind the protocols
differ. Looking is `agent.looking`, deciding `agent.deciding`; here the minds are asked and the answer is made
durable. Everything of one close that is decided is committed in one transaction before the first order leaves;
a close is therefore either not decided, or decided and resumable. Calling it twice is harmless.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import structlog
from sqlalchemy import Connection, update

from agent.answers import checked
from agent.bar_splits import BarSplits
from agent.deciding import PLANNED, Decider
from agent.exits import fired_exits
from agent.ledger import schema
from agent.ledger.store import Ledger
from agent.looking import Looker, View, bar_row
from agent.metrics import Metrics
from agent.orders import Intent
from agent.parts import Parts
from agent.recent import Recent
from agent.records import record_outcome
from agent.risk import breach, breach_text
from agent.settings import Settings
from agent.trading_state import TradingState
from brokers.domain import BrokerError, UnavailableError
from brokers.protocol import Clock
from strategies.strategy import Abstention, Observations, Opinion, Reason

log = structlog.get_logger("tandem.cycle")

GUARD_EVERY_S = 1.0
"""Wall seconds between two looks at fills and local exits while a mind thinks."""


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one close came to: bars that were new, decisions made, intents carried out, and a standing halt's reason."""

    close_time: datetime
    bars: int
    decisions: int
    intents: int
    seconds: float
    halted: str | None


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
        self.newest = parts.newest_bars
        self.looker = Looker(parts)
        self.decider = Decider(parts)
        self.splits = BarSplits(parts)
        self.recent = Recent(parts.ledger, parts.calendar, parts.settings.bar_period, parts.settings.risk.cooldown_bars)
        self._halted: str | None = None

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
        with collected_afterwards():
            view = await self.looker.look(close)
            answers = await self._ask(view)
            self._take_control(view.control)
            self.splits.apply(view)
            decisions, intents = self.decider.decide(view, answers, self.recent.before(close))
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
            self.decider.exit_intent(symbol, leg, now, float(quotes[symbol].mid), sequence=number)
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

    # ---- asking -------------------------------------------------------------------------------------

    async def _ask(self, view: View) -> list[Opinion | Abstention]:
        """Ask the strategy about the symbols whose bar is there; the others get an Abstention that says why."""
        answers: dict[str, Opinion | Abstention] = {}
        usable: list[int] = []
        for index, (symbol, silent) in enumerate(zip(self.symbols, self.looker.silences(view), strict=True)):
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
                positions_S=np.array([self.decider.position(name) for name in names], dtype=np.int8),
                deadline_monotonic_s=time.monotonic() + deadline_s,
            )
            answers.update(await self._opinions(observations, deadline_s))
        return [answers[symbol] for symbol in self.symbols]

    async def _opinions(self, observations: Observations, deadline_s: float) -> dict[str, Opinion | Abstention]:
        thinking = asyncio.create_task(self._thought(observations, deadline_s))
        try:
            await self._guard_until(thinking)  # what fails here is not the mind's fault: a ledger's ends the daemon
            return await self._said(thinking, observations, deadline_s)
        finally:
            thinking.cancel()

    async def _said(
        self, thinking: asyncio.Task[Sequence[Opinion | Abstention]], observations: Observations, deadline_s: float
    ) -> dict[str, Opinion | Abstention]:
        """Return what the mind said; whatever it failed with is an abstention with a reason, never a vote."""
        try:
            return checked(observations.symbols, await thinking)
        except TimeoutError:
            log.exception("the strategy missed its deadline", strategy=self.parts.strategy.name, deadline_s=deadline_s)
            return {s: Abstention(s, Reason.NO_ANSWER, "deadline") for s in observations.symbols}
        except Exception as error:  # any fault of a model is an abstention with a reason, never a vote
            log.exception("the strategy failed", strategy=self.parts.strategy.name)
            return {s: Abstention(s, Reason.MODEL_ERROR, str(error)[:200]) for s in observations.symbols}

    async def _thought(self, observations: Observations, deadline_s: float) -> Sequence[Opinion | Abstention]:
        async with asyncio.timeout(deadline_s):
            return await self.parts.strategy.opinions(observations)

    async def _guard_until(self, thinking: asyncio.Task[Any]) -> None:
        """While a mind thinks, arm exits of what fills and fire local ones, on a venue that runs by itself."""
        while not self.clock.stepped:
            done, _ = await asyncio.wait({thinking}, timeout=GUARD_EVERY_S)
            if done:
                return
            try:
                await self.parts.reconciler.sync()
                await self.watch_exits()
            except BrokerError as error:  # asked again at the next look, and after this close
                log.warning("the venue cannot be watched while a mind thinks", error=str(error))

    def _time_to_answer_s(self, close: datetime) -> float:
        """Return what is left of the decision deadline; a tenth of it at least, since reductions are never too late."""
        deadline_s = self.settings.daemon.decision_deadline_s
        if self.clock.stepped:
            return deadline_s
        gone_s = (self.clock.now() - close).total_seconds()
        return max(deadline_s - gone_s, deadline_s / 10.0)

    # ---- committing and carrying out ----------------------------------------------------------------

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

    def _commit(self, view: View, decisions: list[dict[str, Any]], intents: list[Intent]) -> None:
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
            self.ledger.upsert(connection, schema.bars_seen, [bar_row(bar) for bar in bars])
            self.ledger.upsert(connection, schema.decisions, decisions)
            self.ledger.upsert(connection, schema.equity, [equity_row])
            self.ledger.upsert(connection, schema.cycles, [cycle_row])
            self._write_intents(connection, intents)
            if self.parts.answers is not None:
                self.parts.answers.write(connection, self.ledger)
            self._halt_on_breach(connection, view)
        if self.parts.answers is not None:
            self.parts.answers.written()
        for bar in bars:
            self.newest[bar.symbol] = bar
        state.last_close, state.last_close_done = close, not intents
        state.last_equity = view.account.equity

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
        self.recent.note(intents)

    def _halt_on_breach(self, connection: Connection, view: View) -> None:
        risk = self.decider.account_risk(view)
        reason = breach(risk, self.settings.risk)
        if reason is None or risk.halted is not None:
            return
        detail = breach_text(risk, self.settings.risk)
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

    def _count(self, view: View, decisions: list[dict[str, Any]], ended: Mapping[str, str], seconds: float) -> None:
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
        counted: Counter[tuple[str, str]] = Counter()
        for row in decisions:
            outcome = ended.get(row["symbol"], row["outcome"]) if row["outcome"] == PLANNED else row["outcome"]
            counted[row["action"], outcome] += 1
            for mind, vote in row["votes"].items():
                if "abstained" in vote:
                    metrics.abstained(mind, vote["abstained"])
        for (action, outcome), count in counted.items():
            metrics.decided(action.lower(), outcome, count)


@contextmanager
def collected_afterwards() -> Iterator[None]:
    """Put off the search for cyclic garbage: for the rows of ten thousand symbols Python would search all that lives.

    What is looked at and decided in between waits no longer than the decision deadline.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


__all__ = ["BrokerError", "CycleReport", "Trader"]
