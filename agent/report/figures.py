"""The report's numbers: performance beside buy and hold, months, costs, reasons, and how the minds agree.

Everything here is computed from `ReportData` and can be printed as JSON (`Figures.summary`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.report.benchmark import Benchmark, buy_and_hold
from agent.report.data import NotMeasured, ReportData
from brokers.series import BarSeries, Float, Int, from_ns
from strategies.performance import (
    Executions,
    Performance,
    PerformanceError,
    Relative,
    measure,
    relative,
    splits_of,
)
from strategies.strategy import Reason

if TYPE_CHECKING:
    import polars as pl

GATE_KEY = "gate"
"""Key of a decision's votes under which the risk gate's verdict stands: not a mind."""
ABSTAINED = "abstained"
TARGET_WORDS: Mapping[int, str] = {-1: "short", 0: "flat", 1: "long"}
ANSWERS = ("short", "flat", "long", ABSTAINED)


@dataclass(frozen=True, slots=True)
class Month:
    """Return of one calendar month (UTC), from its predecessor's last close; of the benchmark too where known."""

    year: int
    month: int
    value: float
    benchmark: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostGroup:
    """Costs of some executions, quote currency; predicted and realised over the same `compared` of them.

    Args:
        name: What they have in common.
        executions: How many.
        compared: Of those, with a predicted and a realised cost.
        traded: Value traded by all.
        traded_compared: Value traded by the compared ones.
        fee: Fees of all.
        predicted_fee: By the cost model of the settings; None where it is not known. Like all below: compared ones.
        predicted_spread: Likewise.
        predicted_impact: What the prediction has beyond fee and spread.
        predicted: The whole.
        realised_fee: As the venue charged.
        realised_price: How much worse than the price at the fill: spread and impact together.
        realised: Both.
        delay: What the price moved, against us, between decision and fill; None where no fill tells.
        delayed: Executions that tell it.
    """

    name: str
    executions: int
    compared: int
    traded: float
    traded_compared: float
    fee: float
    predicted_fee: float | None
    predicted_spread: float | None
    predicted_impact: float | None
    predicted: float
    realised_fee: float
    realised_price: float
    realised: float
    delay: float | None
    delayed: int

    def bps(self, cost: float) -> float | None:
        """Return a cost of the compared executions in basis points of what they traded; None for nothing traded."""
        return cost / self.traded_compared * 1e4 if self.traded_compared > 0.0 else None


@dataclass(frozen=True, slots=True)
class Mind:
    """What one mind said: answers by word, abstentions by code, and how often the decision had the same target."""

    name: str
    answers: Mapping[str, int]
    abstentions: Mapping[str, int]
    followed: int

    @property
    def spoken(self) -> int:
        """Votes that name a target."""
        return sum(count for word, count in self.answers.items() if word != ABSTAINED)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two minds on the same decisions: `table[first][second]` counts by answer."""

    first: str
    second: str
    table: Mapping[str, Mapping[str, int]]

    @property
    def both(self) -> int:
        """Decisions on which neither abstained."""
        return sum(self.table[a][b] for a in ANSWERS for b in ANSWERS if ABSTAINED not in (a, b))

    @property
    def share(self) -> float | None:
        """Share of those with the same target; None where there is none."""
        same = sum(self.table[word][word] for word in ANSWERS if word != ABSTAINED)
        return same / self.both if self.both else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960): agreement beyond chance; None where chance alone explains all of it."""
        if self.share is None:
            return None
        words = [word for word in ANSWERS if word != ABSTAINED]
        rows = [sum(self.table[word][other] for other in words) / self.both for word in words]
        columns = [sum(self.table[other][word] for other in words) / self.both for word in words]
        chance = sum(a * b for a, b in zip(rows, columns, strict=True))
        return (self.share - chance) / (1.0 - chance) if chance < 1.0 - 1e-12 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All numbers of one report."""

    close_ns_T: Int
    equity_T: Float
    performance: Performance | NotMeasured
    benchmark: Benchmark | NotMeasured
    benchmark_performance: Performance | NotMeasured
    relative: Relative | NotMeasured
    months: Sequence[Month]
    costs: CostGroup | NotMeasured
    costs_by_leg: Sequence[CostGroup]
    costs_by_symbol: Sequence[CostGroup]
    actions: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]
    outcomes: Mapping[str, Mapping[str, int]]
    minds: Sequence[Mind]
    agreements: Sequence[Agreement]
    incidents: Mapping[str, int] | NotMeasured

    def summary(self) -> dict[str, Any]:
        """Return the numbers for programs; what is not measured says why."""
        return {
            "closes": len(self.close_ns_T),
            "performance": _plain(self.performance),
            "buy_and_hold": _plain(self.benchmark_performance),
            "relative": _plain(self.relative),
            "months": [asdict(month) for month in self.months],
            "costs": _plain(self.costs),
            "actions": dict(self.actions),
            "reasons": {code: dict(counts) for code, counts in self.reasons.items()},
            "outcomes": {code: dict(counts) for code, counts in self.outcomes.items()},
            "minds": [asdict(mind) for mind in self.minds],
            "agreement": [
                {"first": a.first, "second": a.second, "both_spoke": a.both, "share": a.share, "kappa": a.kappa}
                for a in self.agreements
            ],
            "incidents": _plain(self.incidents),
        }


def figures(data: ReportData) -> Figures:
    """Compute everything that the report shows."""
    close_ns_T = times_ns(data.equity["close_time"])
    equity_T = data.equity["equity"].to_numpy()
    measured = _performance(data, close_ns_T, equity_T)
    benchmark = _benchmark(data, close_ns_T, equity_T)
    minds, agreements = votes(data.decisions)
    known = data.incidents if isinstance(data.incidents, NotMeasured) else Counter(i.kind for i in data.incidents)
    by_leg, by_symbol = (_grouped(data, name) for name in ("leg", "symbol"))
    return Figures(
        close_ns_T=close_ns_T,
        equity_T=equity_T,
        performance=measured,
        benchmark=benchmark,
        benchmark_performance=_benchmark_performance(benchmark, data, close_ns_T),
        relative=_relative(benchmark, equity_T, close_ns_T, measured),
        months=months(equity_T, close_ns_T, None if isinstance(benchmark, NotMeasured) else benchmark.equity_T),
        costs=data.predictions if data.predictions is not None else cost_group("all", data.executions, data),
        costs_by_leg=by_leg,
        costs_by_symbol=by_symbol,
        actions=dict(Counter(data.decisions["action"].to_list()).most_common()),
        reasons=_by_action(data.decisions, "reason"),
        outcomes=_by_action(data.decisions, "outcome"),
        minds=minds,
        agreements=agreements,
        incidents=known if isinstance(known, NotMeasured) else dict(known.most_common()),
    )


def times_ns(column: pl.Series) -> Int:
    """Return a column of times as ns since the epoch."""
    return np.asarray(column.to_numpy()).astype("datetime64[ns]").astype(np.int64)


def months(equity_T: Float, close_ns_T: Int, benchmark_T: Float | None) -> list[Month]:
    """Return the return of every calendar month (UTC) that holds a close; the first one begins at the first close.

    A close at midnight ends the day before, and with it perhaps the month.
    """
    if len(equity_T) < 2:
        return []
    month_T = (close_ns_T - 1).astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
    last = np.concatenate((np.flatnonzero(np.diff(month_T)), [len(month_T) - 1]))
    found: list[Month] = []
    before = 0
    for end in last.tolist():
        year, month = divmod(int(month_T[end]), 12)
        other = None if benchmark_T is None else float(benchmark_T[end] / benchmark_T[before] - 1.0)
        found.append(Month(year + 1970, month + 1, float(equity_T[end] / equity_T[before] - 1.0), other))
        before = end
    return found


def cost_group(name: str, executions: pl.DataFrame, data: ReportData) -> CostGroup:
    """Add up the costs of some executions."""
    column = {key: executions[key].to_numpy().astype(np.float64) for key in _COST_INPUTS}
    notional = column["qty"] * column["price"]
    sign = np.where(executions["side"].to_numpy() == "buy", 1.0, -1.0)
    predicted, realised = column["predicted_fraction"], column["realised_fraction"]
    compared = np.isfinite(predicted) & np.isfinite(realised)
    moved = sign * (column["quote_price"] / column["decision_price"] - 1.0) * notional
    known = np.isfinite(moved)
    traded = float(notional[compared].sum())
    whole = float((predicted * notional)[compared].sum())
    fee = spread = impact = None
    if not isinstance(data.costs, NotMeasured):
        fee, spread = data.costs.fee_bps * 1e-4 * traded, data.costs.half_spread_bps * 1e-4 * traded
        impact = whole - fee - spread
    paid = float(column["fee"][compared].sum())
    total = float((realised * notional)[compared].sum())
    return CostGroup(
        name=name,
        executions=len(notional),
        compared=int(compared.sum()),
        traded=float(notional.sum()),
        traded_compared=traded,
        fee=float(column["fee"].sum()),
        predicted_fee=fee,
        predicted_spread=spread,
        predicted_impact=impact,
        predicted=whole,
        realised_fee=paid,
        realised_price=total - paid,
        realised=total,
        delay=float(moved[known].sum()) if known.any() else None,
        delayed=int(known.sum()),
    )


_COST_INPUTS = ("qty", "price", "fee", "decision_price", "quote_price", "predicted_fraction", "realised_fraction")


def votes(decisions: pl.DataFrame) -> tuple[list[Mind], list[Agreement]]:
    """Count what every mind said, and every pair of them on the decisions that both were asked about."""
    answers: dict[str, Counter[str]] = {}
    abstentions: dict[str, Counter[str]] = {}
    followed: Counter[str] = Counter()
    pairs: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for text, target in zip(decisions["votes"].to_list(), decisions["target"].to_list(), strict=True):
        said: dict[str, str] = {}
        for name, vote in json.loads(text).items():
            if name == GATE_KEY:
                continue
            code = vote.get(ABSTAINED)
            word = ABSTAINED if code is not None else TARGET_WORDS[int(vote["target"])]
            said[name] = word
            answers.setdefault(name, Counter())[word] += 1
            if code is not None:
                abstentions.setdefault(name, Counter())[str(code)] += 1
            elif int(vote["target"]) == target:
                followed[name] += 1
        for pair in combinations(said, 2):
            pairs.setdefault(pair, Counter())[said[pair[0]], said[pair[1]]] += 1
    minds = [
        Mind(
            name,
            {word: counts[word] for word in ANSWERS},
            dict(abstentions.get(name, Counter()).most_common()),
            followed[name],
        )
        for name, counts in answers.items()
    ]
    agreements = [
        Agreement(first, second, {a: {b: counts[a, b] for b in ANSWERS} for a in ANSWERS})
        for (first, second), counts in pairs.items()
    ]
    return minds, agreements


def span(close_ns_T: Int) -> tuple[datetime, datetime] | None:
    """Return the first and the last close; None without any."""
    return (from_ns(int(close_ns_T[0])), from_ns(int(close_ns_T[-1]))) if len(close_ns_T) else None


# ---- private ----------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, NotMeasured):
        return {"not_measured": value.reason}
    return dict(value) if isinstance(value, Mapping) else asdict(value)


def _performance(data: ReportData, close_ns_T: Int, equity_T: Float) -> Performance | NotMeasured:
    if len(equity_T) < 2:
        return NotMeasured("fewer than two closes have been decided")
    rows = data.executions
    sign = np.where(rows["side"].to_numpy() == "buy", 1.0, -1.0)
    executions = Executions(
        symbol=rows["symbol"].to_list(),
        signed_qty=sign * rows["qty"].to_numpy(),
        price=rows["price"].to_numpy(),
        fee=rows["fee"].to_numpy(),
        at_ns=times_ns(rows["filled_at"]),
    )
    splits = () if isinstance(data.bars, NotMeasured) else splits_of(data.bars)
    exposure_T = data.equity["gross_exposure"].to_numpy()
    try:
        return measure(equity_T, close_ns_T, executions, exposure_T=exposure_T, splits=splits)
    except PerformanceError as error:
        return NotMeasured(str(error))


def _benchmark(data: ReportData, close_ns_T: Int, equity_T: Float) -> Benchmark | NotMeasured:
    if isinstance(data.bars, NotMeasured):
        return data.bars
    if isinstance(data.costs, NotMeasured):
        return data.costs
    if len(equity_T) < 2:
        return NotMeasured("fewer than two closes have been decided")
    missing = [symbol for symbol in data.symbols if symbol not in data.bars]
    if missing:
        return NotMeasured(f"no bars of {', '.join(missing)} lie within the run")
    lost = _without_beginning(data, data.bars, int(close_ns_T[0]))
    if lost:
        return NotMeasured(f"the bars of the run's beginning are no longer kept for {', '.join(lost)}")
    return buy_and_hold(data.bars, data.costs, close_ns_T, float(equity_T[0]))


_NO_BAR_THEN = frozenset({Reason.NO_BAR.value, Reason.STALE_DATA.value})


def _without_beginning(data: ReportData, bars: Mapping[str, BarSeries], first_ns: int) -> list[str]:
    """Return symbols whose first decision saw a bar that is not among the bars any more."""
    opening = data.decisions.filter(data.decisions["close_time"] == data.equity["close_time"][0])
    reasons = dict(zip(opening["symbol"].to_list(), opening["reason"].to_list(), strict=True))
    return [
        symbol
        for symbol, one in bars.items()
        if int(one.close_ns[0]) > first_ns and reasons.get(symbol, Reason.NO_BAR.value) not in _NO_BAR_THEN
    ]


def _benchmark_performance(
    benchmark: Benchmark | NotMeasured, data: ReportData, close_ns_T: Int
) -> Performance | NotMeasured:
    if isinstance(benchmark, NotMeasured):
        return benchmark
    splits = () if isinstance(data.bars, NotMeasured) else splits_of(data.bars)
    try:
        return measure(
            benchmark.equity_T, close_ns_T, benchmark.executions, exposure_T=benchmark.exposure_T, splits=splits
        )
    except PerformanceError as error:
        return NotMeasured(str(error))


def _relative(
    benchmark: Benchmark | NotMeasured, equity_T: Float, close_ns_T: Int, measured: Performance | NotMeasured
) -> Relative | NotMeasured:
    if isinstance(benchmark, NotMeasured):
        return benchmark
    if isinstance(measured, NotMeasured):
        return measured
    return relative(equity_T, benchmark.equity_T, close_ns_T)


def _grouped(data: ReportData, column: str) -> list[CostGroup]:
    if data.predictions is not None or not data.executions.height:
        return []
    parts = data.executions.partition_by(column, as_dict=True, maintain_order=True)
    groups = [cost_group(str(key[0]), part, data) for key, part in parts.items()]
    return sorted(groups, key=lambda group: -group.traded)


def _by_action(decisions: pl.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """Return counts by code and action, the most frequent code first."""
    counted = decisions.group_by(column, "action").len()
    table: dict[str, dict[str, int]] = {}
    for code, action, count in counted.iter_rows():
        table.setdefault(str(code), {})[str(action)] = int(count)
    return dict(sorted(table.items(), key=lambda item: (-sum(item[1].values()), item[0])))
