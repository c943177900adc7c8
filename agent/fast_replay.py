"""Fast replay: the trades of `agent.replay`, without passing every bar.

Features and answers come in columns (`agent.foresight`). A close is *passed over* where no order can change, no
price reaches an exit, no corporate action meets a holding, no answer asks for another position and no limit of the
account can be broken; all others go through the live rules one by one: `agent.deciding`, `agent.risk`, sizing, exits
and the matching engine. What the tables say of closes passed over is written in columns (`agent.replay_tables`).

Axes: T closes, S symbols.
"""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import structlog

from agent.answers import checked
from agent.app import bars_per_year_of, make_calendar, make_strategy
from agent.deciding import Decider, Remembered
from agent.exchange import make_engine
from agent.foresight import NotFastError, SymbolForesight, at_once, foresee
from agent.looking import View, silence
from agent.lookout import MARGIN, Lookout
from agent.orders import Intent
from agent.replay import ReplayResult, result_of
from agent.replay_desk import ReplayDesk
from agent.replay_rooms import NewestBars, ReplayRooms
from agent.replay_tables import Holdings, Path, Told, decided, tables_of
from agent.risk import breach, breach_text
from agent.tables import INCIDENTS
from agent.trading_state import TradingState
from brokers.calendar import DAY_NS
from brokers.domain import Bar, Leg
from brokers.series import BarSeries, Float, Int, from_ns, to_ns
from brokers.simulated.broker import SimulatedBroker
from strategies.batch import BatchStrategy
from strategies.decision import ExitConfig
from strategies.sizing import SizingConfig
from strategies.strategy import Abstention, Observations, Opinion, Reason

if TYPE_CHECKING:
    from agent.settings import Settings
    from brokers.simulated.engine import MatchingEngine

log = structlog.get_logger("tandem.replay")

__all__ = ["NotFastError", "fast_replay"]

_HOUR = timedelta(hours=1)
_TELL_EVERY = 1_000
"""Closes between two words of progress."""
_NO_FEATURES: Float = np.empty((0, 0))
"""No rule of a decision looks at features."""


def fast_replay(
    settings: Settings, series: Mapping[str, BarSeries], *, progress: Callable[[float], None] | None = None
) -> ReplayResult:
    """Replay recorded bars; the tables are those of `agent.replay.replay`.

    Args:
        settings: As for the daemon; `symbols` empty means all of `series`.
        series: Bars by symbol.
        progress: Called with the fraction of closes that has passed.

    Raises:
        NotFastError: This replay cannot be told beforehand: use `agent.replay.replay`.
        StartError: The strategy cannot be had.
        BrokerError: As in the daemon.
    """
    if not settings.symbols:
        settings = settings.model_copy(update={"symbols": tuple(series)})
    with _unsearched():  # until all that the replay has made is let go: the first search would look through it
        return _replayed(settings, series, progress)


def _replayed(
    settings: Settings, series: Mapping[str, BarSeries], progress: Callable[[float], None] | None
) -> ReplayResult:
    run = _Run(settings, {symbol: series[symbol] for symbol in settings.symbols})
    run.play(progress)
    tables = tables_of(run.told(), series)
    return result_of(
        settings,
        tables.decisions,
        tables.trades,
        tables.equity,
        incidents=run.incidents(),
        series=series,
        way="fast",
    )


@contextmanager
def _unsearched() -> Iterator[None]:
    """Let Python search nothing for cyclic garbage: what a replay makes lives to its end or has no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Run:
    """One replay on its way. `t` is the close that comes next; the engine stands somewhere before it."""

    def __init__(self, settings: Settings, series: Mapping[str, BarSeries]) -> None:
        calendar = make_calendar(settings)
        strategy, _ = make_strategy(settings, replaying=True, explains=False)
        if not isinstance(strategy, BatchStrategy):
            raise NotFastError(f"{strategy.name} answers one close after the other")
        self.settings = settings
        self.engine: MatchingEngine = make_engine(settings, series)
        self._venue = self.engine.account_book()
        opens_ns = {symbol: self.engine.opens_ns(symbol) for symbol in settings.symbols}
        self.seen = foresee(settings, series, strategy, calendar, self.engine.feed.start, opens_ns)
        self.closes_ns: Int = self.seen.closes_ns
        self.symbols = settings.symbols
        self.state = TradingState()
        self.newest = NewestBars(self.seen)
        instruments = dict(self.engine.instruments)
        self.rooms = ReplayRooms(
            settings=settings,
            symbols=settings.symbols,
            state=self.state,
            newest_bars=self.newest,
            instruments=instruments,
            costs=settings.costs.model(),
            bars_per_year=bars_per_year_of(calendar, settings, self.engine.feed.start),
            sizing=SizingConfig(**settings.sizing.model_dump()),
            exits=ExitConfig(**settings.exits.model_dump()),
            strategy=strategy,
        )
        self.decider = Decider(self.rooms)
        brackets = SimulatedBroker(self.engine).capabilities.brackets
        self.desk = ReplayDesk(self.engine, self.state, instruments, calendar, settings.bar_period, brackets)
        self.halted: str | None = None
        self.halted_at = len(self.closes_ns)
        self._entries: deque[tuple[datetime, str]] = deque()
        self._entered: Counter[str] = Counter()
        self._acting = [symbol for symbol, one in self.seen.symbols.items() if one.reach.has_actions]
        self._foreseen: Sequence[str] = ()
        """Symbols whose answers at the newest close that was decided are those foreseen."""
        self._moves = 0
        self._day_ns = -1
        """The venue day whose begin is in step."""
        self.path = Path(self.symbols, len(self.closes_ns))
        self.path.hold(0, self._holdings())
        self.lookout = Lookout(self.rooms, self.seen, self.engine, self.path)

    def incidents(self) -> pl.DataFrame:
        """Return what went wrong; see `agent.tables.incidents_frame`."""
        halts: list[tuple[datetime, str, str | None, str]] = []
        if self.halted is not None:
            halts = [(from_ns(self.closes_ns[self.halted_at - 1]), "halt", None, self.halted)]
        refused = [(at, "rejected", symbol, why) for at, symbol, why in self.desk.rejections]
        # at one close the halt comes first: it is committed with the decisions, before orders leave
        rows = sorted([*halts, *refused], key=lambda row: row[0])
        return pl.DataFrame(rows, schema=INCIDENTS, orient="row", infer_schema_length=None)

    def told(self) -> Told:
        """Return what the tables are made of."""
        return Told(
            settings=self.settings,
            seen=self.seen,
            strategy=self.rooms.strategy.name,
            path=self.path,
            engine=self.engine,
            leg_of=self.desk.leg_of,
            cost_of=self.desk.cost_of,
            halted_at=self.halted_at,
        )

    # ---- time ---------------------------------------------------------------------------------------

    def play(self, progress: Callable[[float], None] | None) -> None:
        """Pass all closes."""
        t, end, told = 0, len(self.closes_ns), 0
        while t < end:
            positions = self.lookout.positions(t)
            if positions is None:
                t = self._step(t)
            else:
                stop, is_clear = self.lookout.next_interest(t, positions)
                if stop > t:
                    self._pass_over(t, stop, positions)
                t = stop
                if t < end and is_clear:
                    t = self._jump(t, positions)
                else:
                    if t:
                        self._run_until(t - 1)
                    if t < end:
                        t = self._step(t)
            if progress is not None and t - told >= _TELL_EVERY:
                told = t
                progress(t / end)

    def _jump(self, t: int, positions: Mapping[str, int]) -> int:
        """Decide a close up to which nothing can happen on the exchange. Returns the close that comes next."""
        self._run_until(t)
        self._decide(t, positions)
        return t + 1

    def _step(self, t: int) -> int:
        """Move to the next event; decide where it is the close. Returns the close that comes next."""
        due_ns = self.closes_ns.item(t)
        engine = self.engine
        changed = engine.pass_event(due_ns)
        if changed:
            self.desk.sync(changed)
        moves = engine.moves()
        if moves != self._moves:
            self._moves = moves
            self.path.hold(t, self._holdings())
        if engine.now_ns != due_ns:
            return t
        self._decide(t, None)
        return t + 1

    def _pass_over(self, t: int, stop: int, positions: Mapping[str, int]) -> None:
        """Pass the closes t .. stop (exclusive), at which every position stays as it is."""
        self.state.peak_equity = self.lookout.peak(t, stop, positions)
        self.path.rest(t, stop, positions, self.state.book)

    def _run_until(self, t: int) -> None:
        """Let time pass on the exchange up to a close; nothing happens on the way."""
        until_ns = self.closes_ns.item(t)
        if until_ns > self.engine.now_ns:
            changed = self.engine.pass_events(until_ns)
            if changed or self.engine.moves() != self._moves:
                at = from_ns(until_ns).isoformat()
                msg = f"orders {', '.join(changed)} changed by {at}, in a stretch that was passed over"
                raise AssertionError(msg)

    def _holdings(self) -> Holdings:
        book = self._venue
        if not book.holdings:
            return Holdings(book.cash, ())
        return Holdings(book.cash, tuple([(symbol, holding.qty) for symbol, holding in book.holdings.items()]))

    # ---- one close by the rules ---------------------------------------------------------------------

    def _decide(self, t: int, positions: Mapping[str, int] | None) -> None:
        """Decide and trade one close as `agent.cycle` does; `positions` where they are known and nothing moves them."""
        self.newest.move(t - 1)
        self._meet_day(t)
        view = self._view(t)
        answers = self._answers(t, view.close_time, positions)
        for symbol in self._acting:
            bars, one = view.bars[symbol], self.seen.symbols[symbol]
            if bars and one.reach.opens_with_action(one.bar_T.item(t)) and symbol in self.newest:
                self.desk.split(symbol, bars[0], self.newest[symbol], view.positions)
        remembered = self._remembered(view.close_time, t)
        decisions, intents = self.decider.decide(view, answers, remembered, positions)
        self._note(intents)
        self._halt_on_breach(view, t)
        self.state.last_close = view.close_time
        self.state.last_equity = view.account.equity
        self.newest.move(t)
        if intents:
            outcomes = self.desk.execute(intents, halted=self.halted is not None)
            rows = {row["symbol"]: row for row in decisions}
            for intent in intents:
                if intent.leg is not Leg.STOP and intent.leg is not Leg.TAKE_PROFIT:
                    rows[intent.symbol]["outcome"] = outcomes[intent.intent_id].value
        # where positions were known, every answer is the one foreseen there, but those that had to be asked for
        foreseen = () if positions is None else self._foreseen
        self.path.decided += [decided(t, row, foreseen=row["symbol"] in foreseen) for row in decisions]

    def _note(self, intents: Sequence[Intent]) -> None:
        """Remember intents that have been decided."""
        self.desk.note(intents)
        for intent in intents:
            if intent.leg is Leg.ENTRY:
                self._entries.append((intent.close_time, intent.symbol))
                self._entered[intent.symbol] += 1

    def _meet_day(self, t: int) -> None:
        """Bring the equity with which the venue day began in step where its first close was passed over."""
        close_ns = self.closes_ns.item(t)
        day_ns = close_ns - close_ns % DAY_NS
        if day_ns == self._day_ns:
            return
        self._day_ns = day_ns
        day = from_ns(day_ns).date().isoformat()
        if day == self.state.day:
            return
        first = int(self.closes_ns.searchsorted(day_ns))
        if first == t:
            self.state.last_equity = None if t == 0 else self.lookout.equity_at(t - 1)
            return
        self.state.day, self.state.day_start_equity = day, self.lookout.equity_at(max(first - 1, 0))

    def _view(self, t: int) -> View:
        bars: dict[str, list[Bar]] = {}
        for symbol in self.symbols:
            one = self.seen.symbols[symbol]
            place = one.bar_T.item(t)
            bars[symbol] = [one.series.bar(place)] if place >= 0 else []
        return View(
            close_time=from_ns(self.closes_ns.item(t)),
            bars=bars,
            account=self.engine.account(),
            positions=self.engine.positions(),
            control={} if self.halted is None else {"halt": {"halted": True, "reason": self.halted}},
            features_SF=_NO_FEATURES,
            volatility_S=self.seen.volatility_TS[t],
            out_of_range_S=self.seen.out_of_range_TS[t],
        )

    def _row(self, one: SymbolForesight, t: int) -> Float:
        """Return the features as the live runner gives them: the newest bar's, NaN before they are warm."""
        place = int(one.last_T[t])
        if place < 0 or one.seen_T[t] < self.seen.spec.memory_bars:
            return np.full(len(self.seen.spec.names), np.nan)
        row_F: Float = one.features_NF[place]
        return row_F

    def _answers(self, t: int, close: datetime, positions: Mapping[str, int] | None) -> list[Opinion | Abstention]:
        answers: dict[str, Opinion | Abstention] = {}
        usable: list[str] = []
        is_foreseen = True
        for symbol in self.symbols:
            one = self.seen.symbols[symbol]
            if not one.usable_T.item(t):
                answers[symbol] = self._silence(t, symbol, one)
                continue
            usable.append(symbol)
            given = one.answers.get(self.decider.position(symbol) if positions is None else positions[symbol])
            bar = one.bar_T.item(t)
            if given is None or given.near_T.item(bar):
                is_foreseen = False
            elif is_foreseen:
                answers[symbol] = given.opinion(symbol, bar)
        self._foreseen = usable if is_foreseen else ()
        if usable and not is_foreseen:  # the very question that the live cycle asks
            observations = Observations(
                symbols=usable,
                close_time=close,
                features_SF=np.stack([self._row(self.seen.symbols[symbol], t) for symbol in usable]),
                positions_S=np.array([self.decider.position(symbol) for symbol in usable], dtype=np.int8),
            )
            answers.update(checked(usable, self._opinions(observations)))
        return [answers[symbol] for symbol in self.symbols]

    def _opinions(self, observations: Observations) -> list[Opinion | Abstention]:
        strategy = self.rooms.strategy
        try:
            return list(at_once(strategy.opinions(observations)))
        except NotFastError:
            raise
        except Exception as error:  # any fault of a model is an abstention with a reason, never a vote
            log.exception("the strategy failed", strategy=strategy.name)
            return [Abstention(symbol, Reason.MODEL_ERROR, str(error)[:200]) for symbol in observations.symbols]

    def _silence(self, t: int, symbol: str, one: SymbolForesight) -> Abstention:
        """Return why the strategy is not asked about a symbol at a close."""
        last = int(one.last_T[t])
        found = silence(
            symbol,
            from_ns(self.closes_ns.item(t)),
            newest=one.series.bar(last) if last >= 0 else None,
            came=bool(one.bar_T[t] >= 0),
            features_F=self._row(one, t),
            bars_seen=int(one.seen_T[t]),
            memory_bars=self.seen.spec.memory_bars,
            stale_after=self.settings.risk.stale_bars_max * self.settings.bar_period,
        )
        if found is None:
            msg = f"{symbol}: the live cycle would ask at close {t}, which was not foreseen"
            raise AssertionError(msg)
        return found

    def _remembered(self, close: datetime, t: int) -> Remembered:
        since = close - _HOUR
        while self._entries and self._entries[0][0] <= since:
            self._entered[self._entries.popleft()[1]] -= 1
        stops: dict[str, int] = {}
        if self.settings.risk.cooldown_bars:
            stops = {symbol: self._bars_since(at, t) for symbol, at in self.desk.stopped.items()}
        return Remembered(self._entered, stops)

    def _bars_since(self, at: datetime, t: int) -> int:
        """Count the closes after a time, up to a close."""
        return t + 1 - int(self.closes_ns.searchsorted(to_ns(at), side="right"))

    def _halt_on_breach(self, view: View, t: int) -> None:
        equity, peak = float(view.account.equity), float(self.state.peak_equity)
        if equity > 0.0 and 1.0 - equity / peak < self.settings.risk.drawdown_fraction - MARGIN:
            return  # far from it: the peak is that of `account_risk`
        if self.halted is not None:
            return
        risk = self.decider.account_risk(view)
        if breach(risk, self.settings.risk) is None:
            return
        self.halted = breach_text(risk, self.settings.risk)
        self.halted_at = t + 1
        self.lookout.halt(view.account.equity)
