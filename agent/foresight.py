"""Everything of a replay that does not depend on what is traded: bars on a grid of closes, features, answers.

A fast replay computes it once, in columns, and jumps over the closes at which no answer asks for a change. What
cannot be told beforehand to the last bit raises `NotFastError`: such a replay runs the live cycle instead.

Axes: T closes, N bars of a symbol, F features.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agent.history import lookback
from agent.looking import out_of_range
from agent.settings import Settings
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.costs import PRICE_QUANTUM, split_ratios
from brokers.exact_columns import ExactError, quantised_units
from brokers.series import BarSeries, Float, Int, from_ns, places_in, to_ns
from brokers.simulated.reach import Reach
from strategies.batch import BatchAnswers, BatchStrategy
from strategies.features import FeatureError, FeatureSpec, IncrementalFeatures, features_and_volatility
from strategies.strategy import Abstention, Observations, Opinion, Strategy

_SAMPLES = 12
"""Closes at which features and answers are computed the live way as well, and must be the same bits."""
_BYTES_MAX = 4_000_000_000
"""Largest table of features that is held, bytes."""
_APPENDED = 3
"""Bars of each sample that the incremental runner is given one by one."""

Answer = TypeVar("Answer")


class NotFastError(Exception):
    """This replay cannot be computed beforehand to the last bit; the message says why."""


@dataclass(frozen=True, slots=True)
class SymbolForesight:
    """What is known of one symbol.

    Args:
        series: Its bars; those before the first close are history.
        bar_T: Index of the bar that closes at each close; -1 where none does.
        last_T: Index of the newest bar at each close; -1 where there is none.
        first_T: Index of the first bar that closes at or after each close, and one for after the end (T + 1).
        close_N: Place among the closes of each bar's close; -1 for history, T for what comes after the last.
        open_N: Place of the first close at or after each bar opens for trading: `close_N`, but the close before it
            where a gap ends at that very instant.
        seen_T: Bars that the incremental features have seen at each close.
        features_NF: NaN where they are not warm.
        volatility_N: Of one bar; NaN where it is not known.
        out_of_range_N: Features at or beyond their range.
        usable_T: True where the strategy can be asked.
        close_T: Price of the newest bar at each close; means nothing where there is none.
        answers: By position, its answers to every bar.
        change_at: By position, the first close at or after each one at which an answer may ask for another (T + 1).
        mark_T: What a unit is worth at each close, in units of 1e-9, whole numbers; 0 before the first bar.
        reach: Finds prices.
    """

    series: BarSeries
    bar_T: Int
    last_T: Int
    first_T: Int
    close_N: Int
    open_N: Int
    seen_T: Int
    features_NF: Float
    volatility_N: Float
    out_of_range_N: Int
    usable_T: NDArray[np.bool_]
    close_T: Float
    answers: Mapping[int, BatchAnswers]
    change_at: Mapping[int, Int]
    mark_T: Float
    reach: Reach


@dataclass(frozen=True, slots=True)
class Foresight:
    """See the module.

    Args:
        closes_ns: T closes, ns since the epoch.
        symbols: As the settings name them, in that order.
        spec: The strategy's features.
        warm_last: By symbol, index of the newest bar before the first close; -1 for none.
        volatility_TS: Of one bar, at each close; NaN where the features are not warm.
        out_of_range_TS: Features of the newest bar at or beyond their range.
    """

    closes_ns: Int
    symbols: Mapping[str, SymbolForesight]
    spec: FeatureSpec
    warm_last: Mapping[str, int]
    volatility_TS: Float
    out_of_range_TS: Int


def foresee(
    settings: Settings,
    series: Mapping[str, BarSeries],
    strategy: Strategy,
    calendar: TradingCalendar,
    begin: datetime,
    opens_ns: Mapping[str, Int],
) -> Foresight:
    """Compute what does not depend on what is traded.

    Args:
        settings: Of the replay, with symbols.
        series: Bars by symbol.
        strategy: Answers in batches.
        calendar: Sessions.
        begin: Where venue time starts.
        opens_ns: By symbol, when each bar opens for trading.

    Raises:
        NotFastError: It cannot be told beforehand.
    """
    if not isinstance(strategy, BatchStrategy):
        raise NotFastError(f"{strategy.name} answers one close after the other")
    played = {symbol: series[symbol] for symbol in settings.symbols}
    spec = strategy.feature_spec
    needed = sum(map(len, played.values())) * len(spec.names) * 8
    if needed > _BYTES_MAX:
        raise NotFastError(f"the features would need {needed / 1e9:.1f} GB of memory: choose fewer symbols or bars")
    closes_ns = _closes(settings, played, calendar, begin)
    begin_ns = to_ns(begin)
    remembered_ns = to_ns(lookback(calendar, settings.bar_period, spec.memory_bars, begin))
    found: dict[str, SymbolForesight] = {}
    warm_last: dict[str, int] = {}
    for symbol, bars in played.items():
        _check_bars(bars, begin_ns)
        history = int(bars.close_ns.searchsorted(begin_ns, side="right"))
        remembered = int(bars.start_ns.searchsorted(remembered_ns))
        warm = max(0, history - remembered)
        warm_last[symbol] = history - 1 if warm else -1
        place_N = places_in(closes_ns, opens_ns[symbol], side="left")
        found[symbol] = _symbol(settings, bars, strategy, calendar, closes_ns, place_N, warm=warm, history=history)
    seen = Foresight(
        closes_ns=closes_ns,
        symbols=found,
        spec=spec,
        warm_last=warm_last,
        volatility_TS=np.stack([_volatility(one, spec) for one in found.values()], axis=1),
        out_of_range_TS=np.stack([one.out_of_range_N[one.last_T] for one in found.values()], axis=1),
    )
    _verify(seen, strategy, calendar, settings)
    return seen


def at_once(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what a coroutine returns that never waits.

    Raises:
        NotFastError: It waits.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    coroutine.close()
    raise NotFastError("the strategy waits for something before it answers")


def _closes(settings: Settings, series: Mapping[str, BarSeries], calendar: TradingCalendar, begin: datetime) -> Int:
    """Return the closes that are decided, and check that every bar played is one of the calendar's."""
    begin_ns = to_ns(begin)
    end_ns = max(int(bars.close_ns[-1]) for bars in series.values())
    starts, opens, closes = calendar.grid_ns(begin_ns, end_ns, period_to_ns(settings.bar_period))
    if not len(closes) or (np.diff(closes) <= 0).any() or closes[-1] != end_ns:
        raise NotFastError("the calendar's closes are not those of the bars")
    for symbol, bars in series.items():
        first = int(bars.close_ns.searchsorted(begin_ns, side="right"))
        place: Int | slice = slice(None)
        if not np.array_equal(bars.close_ns[first:], closes):
            place = np.minimum(closes.searchsorted(bars.close_ns[first:]), len(closes) - 1)
        columns = ((bars.close_ns, closes), (bars.start_ns, starts), (bars.open_ns, opens))
        if any((mine[first:] != grid[place]).any() for mine, grid in columns):
            raise NotFastError(f"bars of {symbol} lie beside the calendar's")
    limit = settings.daemon.max_bars
    return closes if limit is None else closes[:limit]


def _check_bars(bars: BarSeries, begin_ns: int) -> None:
    """Leave bars that the live cycle refuses to it."""
    positive = (bars.open, bars.high, bars.low, bars.close, bars.adj_factor)
    # what is not a number is neither above zero nor below infinity, and so is its whole column's extreme
    is_good = all(float(column.min()) > 0.0 and float(column.max()) < math.inf for column in positive)
    is_good = is_good and float(bars.volume.min()) >= 0.0 and float(bars.volume.max()) < math.inf
    is_good = is_good and bool((bars.high >= np.maximum(bars.open, bars.close)).all())
    if not (is_good and (bars.low <= np.minimum(bars.open, bars.close)).all()):
        raise NotFastError(f"bars of {bars.symbol} hold prices or volumes that no market has")
    # from the venue's begin to a bar's close its history must not change under it
    if (np.diff(bars.start_ns) <= 0).any() or begin_ns < 0:
        raise NotFastError(f"bars of {bars.symbol} are out of order")


def _symbol(
    settings: Settings,
    bars: BarSeries,
    strategy: BatchStrategy,
    calendar: TradingCalendar,
    closes_ns: Int,
    open_N: Int,
    *,
    warm: int,
    history: int,
) -> SymbolForesight:
    spec = strategy.feature_spec
    begin = max(0, history - spec.memory_bars)
    count, closes = len(bars), len(closes_ns)
    features_NF, volatility_N = np.full((count, len(spec.names)), np.nan), np.full(count, np.nan)
    try:
        features_NF[begin:], volatility_N[begin:] = features_and_volatility(spec, bars.slice(begin, count), calendar)
        mark_N = quantised_units(bars.close)
    except (FeatureError, ExactError) as error:
        raise NotFastError(str(error)) from error
    close_N = np.full(count, -1, dtype=np.int64)
    is_whole = np.array_equal(bars.close_ns[history:][:closes], closes_ns)
    if is_whole:  # a bar at every close: nothing needs to be looked up
        place = np.minimum(np.arange(count - history), closes)
    else:
        place = closes_ns.searchsorted(bars.close_ns[history:])
    close_N[history:] = place
    bar_T = np.full(closes, -1, dtype=np.int64)
    decided = np.flatnonzero((close_N >= 0) & (close_N < closes))
    bar_T[close_N[decided]] = decided
    if is_whole:
        first_T = history + np.arange(closes + 1)
        last_T = first_T[:-1]
    else:
        last_T = bars.close_ns.searchsorted(closes_ns, side="right") - 1
        first_T = np.append(bars.close_ns.searchsorted(closes_ns), last_T[-1] + 1)
    if not warm:  # bars before the memory were never fetched
        last_T = np.where(last_T < history, -1, last_T)
    seen_T = min(warm, spec.memory_bars) + np.maximum(last_T + 1 - history, 0)
    usable_T = (bar_T >= 0) & (seen_T >= spec.memory_bars)
    usable_T &= np.isfinite(features_NF[bar_T]).all(axis=1)
    positions = (-1, 0, 1) if settings.strategy.shorts else (0, 1)
    answers = {position: strategy.batch(bars.symbol, bars.close_ns, features_NF, position) for position in positions}
    change_at = {
        position: next_of(usable_T & _may_change(given, position, shorts=settings.strategy.shorts)[bar_T])
        for position, given in answers.items()
    }
    return SymbolForesight(
        series=bars,
        bar_T=bar_T,
        last_T=last_T,
        first_T=first_T,
        close_N=close_N,
        open_N=open_N,
        seen_T=seen_T,
        features_NF=features_NF,
        volatility_N=volatility_N,
        out_of_range_N=out_of_range(features_NF, spec.ranges),
        usable_T=usable_T,
        close_T=bars.close[history : history + closes] if is_whole else bars.close[last_T],
        answers=answers,
        change_at=change_at,
        mark_T=_marks(bars, mark_N, last_T, open_N, close_N),
        reach=Reach(bars),
    )


def _volatility(one: SymbolForesight, spec: FeatureSpec) -> Float:
    is_warm = (one.last_T >= 0) & (one.seen_T >= spec.memory_bars)
    return np.where(is_warm, one.volatility_N[one.last_T], np.nan)


def _marks(bars: BarSeries, mark_N: Float, last_T: Int, open_N: Int, close_N: Int) -> Float:
    """Return what a unit is worth at each close: the last one, in the units of a split that has opened since."""
    mark_T = np.where(last_T >= 0, mark_N[last_T], 0.0)
    for bar, ratio in split_ratios(bars.adj_factor).items():
        for close in range(int(open_N[bar]), int(close_N[bar])):
            before = Decimal(int(mark_T[close])).scaleb(-9)
            mark_T[close] = int((before / ratio).quantize(PRICE_QUANTUM).scaleb(9))
    return mark_T


def _may_change(answers: BatchAnswers, position: int, *, shorts: bool) -> NDArray[np.bool_]:
    """Tell which answers may ask for another position than the one they were given."""
    target = answers.target_T
    changes: NDArray[np.bool_] = answers.near_T | (np.abs(target) > 1) | (target != position)
    return changes if shorts else changes | (target < 0)


def next_of(flags_T: NDArray[np.bool_]) -> Int:
    """Return the first True at or after each place, (T + 1,); T where there is none."""
    ends = np.append(np.flatnonzero(flags_T), len(flags_T))
    return np.repeat(ends, np.diff(ends, prepend=-1))


def _verify(seen: Foresight, strategy: Strategy, calendar: TradingCalendar, settings: Settings) -> None:
    """Compute some closes the live way: another machine's arithmetic may differ in the last digits.

    Raises:
        NotFastError: Something differs.
    """
    names = list(seen.symbols)
    live = IncrementalFeatures(seen.spec, names, calendar, settings.bar_period)
    asked = np.unique(np.linspace(0, len(seen.closes_ns) - 1, _SAMPLES).astype(np.int64))
    for close in asked.tolist():
        usable = [name for name in names if seen.symbols[name].usable_T[close]]
        for name in usable:
            one = seen.symbols[name]
            bar = int(one.bar_T[close])
            live.warm(one.series.slice(0, bar + 1 - _APPENDED))
            live.append_many(one.series.bar(index) for index in range(bar + 1 - _APPENDED, bar + 1))
        if not usable:
            continue
        features_SF, volatility_S = live.latest(usable), live.volatility(usable)
        for place, name in enumerate(usable):
            one = seen.symbols[name]
            bar = int(one.bar_T[close])
            is_same = np.array_equal(features_SF[place], one.features_NF[bar])
            if not is_same or volatility_S[place] != one.volatility_N[bar]:
                raise NotFastError(f"features of {name} differ in their last digits from those of the live cycle")
        _verify_answers(seen, strategy, close, usable)


def _verify_answers(seen: Foresight, strategy: Strategy, close: int, names: Sequence[str]) -> None:
    closed = from_ns(seen.closes_ns[close])
    for position in next(iter(seen.symbols.values())).answers:
        bars = [int(seen.symbols[name].bar_T[close]) for name in names]
        observations = Observations(
            symbols=list(names),
            close_time=closed,
            features_SF=np.stack([seen.symbols[name].features_NF[bar] for name, bar in zip(names, bars, strict=True)]),
            positions_S=np.full(len(names), position, dtype=np.int8),
        )
        for name, bar, answer in zip(names, bars, at_once(strategy.opinions(observations)), strict=True):
            given = seen.symbols[name].answers[position]
            if not given.near_T[bar] and not _same(answer, given, bar):
                raise NotFastError(f"{strategy.name} answers a batch otherwise than one close")


def _same(answer: Opinion | Abstention, given: BatchAnswers, bar: int) -> bool:
    if isinstance(answer, Abstention):
        return False
    return (
        answer.target == given.target_T[bar]
        and answer.reason is given.reason
        and dict(answer.q) == {target: values[bar] for target, values in given.q.items()}
        and dict(answer.detail) == {name: values[bar] for name, values in given.detail.items()}
        and answer.exits == given.opinion(answer.symbol, bar).exits
        and not (answer.note or answer.votes or answer.probabilities)
    )
