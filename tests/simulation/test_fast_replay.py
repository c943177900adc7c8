"""The fast replay against the live cycle: the same tables, to the last digit, whatever is traded.

Every case is drawn from a seed: markets with gaps, missing bars, splits and dividends, strategies, costs, exits,
partial fills, limits that trip. Nothing here knows what the right trades are; the live cycle does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from real_replays import CRYPTO, EQUITIES, STRATEGIES, Case, played

from agent.fast_replay import NotFastError, _Run, fast_replay
from agent.ledger.store import open_ledger
from agent.replay import ReplayResult, replay
from agent.report import ReportData, figures, from_ledger, write_report
from agent.report.data import NotMeasured
from agent.report.sources import from_replay
from agent.settings import Settings, load
from agent.tables import COSTS
from brokers.calendar import calendar
from brokers.domain import parse_period
from brokers.series import BarSeries, from_ns
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.bundle import Bundle

TIMES = {"trades": "filled_at", "equity": "close_time", "decisions": "close_time", "incidents": "at"}
PRICES = ("open", "high", "low", "close")
STEPS = (2.0, 0.5, 1 / 3.000007, 1.004, 1.02, 0.99, 7.0, 0.1)
"""Steps of `adj_factor`: even and uneven splits, and dividends."""


REPORTED = (29, 34, 37, 41)
"""Drawn cases with splits whose reports are compared: a halt, orders refused, stops, and many of them, at all costs."""


def differences(fast: ReplayResult, exact: ReplayResult) -> list[str]:
    """Return the first difference of each column of each table; empty where they are equal."""
    found = []
    for table in ("trades", "equity", "decisions", "incidents"):
        left, right = getattr(fast, table), getattr(exact, table)
        if left.schema != right.schema or left.height != right.height:
            found.append(f"{table}: {left.height} rows against {right.height}, {left.schema} {right.schema}")
            height = min(left.height, right.height)
            left, right = left.head(height), right.head(height)
        for column in right.columns:
            unequal = (~left[column].eq_missing(right[column])).arg_true()
            if len(unequal):
                row = unequal[0]
                at = right[TIMES[table]][row]
                values = f"{left[column][row]!r} against {right[column][row]!r}"
                found.append(f"{table}.{column}: {len(unequal)} rows, first {row} at {at}: {values}")
    if {**fast.metrics, "replay": "exact"} != exact.metrics:
        found.append(f"metrics: {fast.metrics} against {exact.metrics}")
    return found


def market(rng: np.random.Generator, settings: Settings, symbols: list[str], bars: int) -> dict[str, BarSeries]:
    """Return a synthetic market with missing bars, splits and dividends."""
    made = generate(
        SyntheticMarketSettings(
            seed=int(rng.integers(1_000_000)),
            symbols=tuple(symbols),
            bars=bars,
            period=settings.bar_period,
            calendar=settings.calendar,
        ),
        calendar(settings.calendar),
    )
    return {symbol: disturbed(rng, one) for symbol, one in made.items()}


def disturbed(rng: np.random.Generator, bars: BarSeries) -> BarSeries:
    count = len(bars)
    kept = np.ones(count, dtype=np.bool_)
    if rng.random() < 0.5:
        kept = rng.random(count) > rng.choice([0.002, 0.05])
    if rng.random() < 0.3:
        begin = int(rng.integers(count))
        kept[begin : begin + int(rng.integers(1, 40))] = False
    kept[[0, -1]] = rng.random() < 0.7
    kept[:2] = True
    factor = np.ones(count)
    for _ in range(int(rng.choice([0, 0, 1, 4]))):
        place = int(rng.integers(1, count))
        step = float(rng.choice(STEPS))
        factor[place:] *= step
    prices = {name: np.round(getattr(bars, name) / factor, 6) for name in PRICES}
    prices["high"] = np.maximum(prices["high"], np.maximum(prices["open"], prices["close"]))
    prices["low"] = np.minimum(prices["low"], np.minimum(prices["open"], prices["close"]))
    changed = replace(bars, **prices, adj_factor=factor)
    columns = {name: getattr(changed, name)[kept] for name in COLUMNS}
    return replace(changed, **columns)


COLUMNS = ("start_ns", "close_ns", "open_ns", *PRICES, "volume", "adj_factor")


def drawn(seed: int) -> tuple[Settings, dict[str, BarSeries]]:
    """Return one case."""
    rng = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    sessions = rng.random() < 0.35
    period = pick("5m", "1h", "1d") if sessions else pick("5m", "1m", "1h")
    symbols = ["B", "A", "D", "C"][: int(rng.integers(1, 5))]
    shorts = bool(rng.random() < 0.5)
    strategy, params = pick(
        ("random", {"flip_probability": pick(0.02, 0.2, 0.5), "seed": int(rng.integers(99))}),
        ("random", {"flip_probability": 0.1, "seed": int(rng.integers(99))}),
        ("momentum", {"lookback": pick(4, 16), "enter": pick(0.3, 1.0), "leave": pick(0.0, 0.2)}),
        ("mean_reversion", {"window": pick(8, 32), "enter": pick(0.5, 1.0), "leave": 0.0}),
        ("ma_cross", {"fast": 3, "slow": pick(8, 30)}),
        ("no_trade_band", {"window": 8, "ic": 0.3, "cost_bps": 0.1}),
        ("buy_and_hold", {}),
    )
    stop, profit = pick(0.3, 1.0, 3.0, "null"), pick(0.3, 1.0, 4.0, "null")
    tight = rng.random() < 0.4
    bars = int(rng.integers(200, 500))
    chosen = [
        f"symbols={symbols}",
        f"period={period}",
        f"calendar={'XNYS' if sessions else '24/7'}",
        f"strategy.name={strategy}",
        f"strategy.params={params}",
        f"strategy.shorts={str(shorts).lower()}",
        f"costs.fee_bps={pick(0, 1, 10)}",
        f"costs.half_spread_bps={pick(0, 2)}",
        f"costs.impact={pick(0, 0.5)}",
        f"costs.latency_bars={pick(1, 1, 1, 2, 3)}",
        f"exits.stop_volatility={stop}",
        f"exits.take_profit_volatility={profit}",
        f"exits.max_loss_fraction={pick(0.002, 0.01, 0.05, 1.0)}",
        f"exchange.partial_fill_probability={pick(0, 0.1, 0.5, 1)}",
        f"exchange.leverage={pick(1, 1, 2)}",
        f"exchange.seed={int(rng.integers(99))}",
        f"exchange.rule_set={pick('native', 'native', 'native', 'alpaca')}",
        f"exchange.initial_cash_usd={pick(100_000, 100_000, 1_000, 30)}",
        f"sizing.max_fraction={pick(0.1, 0.45, 1.0)}",
        f"sizing.volatility_target_annual={pick(0.1, 0.4, 30)}",
        f"risk.max_position_fraction={pick(0.2, 0.5, 1.5)}",
        f"risk.max_gross_fraction={pick(0.6, 1.0, 3.0)}",
        f"risk.drawdown_fraction={pick(0.002, 0.01) if tight else 1}",
        f"risk.daily_loss_fraction={pick(0.001, 0.01) if rng.random() < 0.3 else 1}",
        f"risk.orders_per_hour={pick(1, 2, 1000)}",
        f"risk.cooldown_bars={pick(0, 0, 3)}",
        f"risk.out_of_range_features_max={pick(0, 3)}",
        f"risk.reject_streak_max={pick(1, 5)}",
    ]
    if rng.random() < 0.15:
        chosen.append(f"daemon.max_bars={int(rng.integers(1, bars))}")
    settings = load(None, chosen)
    series = market(rng, settings, symbols, bars)
    if rng.random() < 0.5:
        first = series[symbols[0]]
        begin = from_ns(first.start_ns[int(rng.integers(1, len(first) // 2))])
        if rng.random() < 0.2:
            begin += parse_period(period) / 2
        exchange = settings.exchange.model_copy(update={"start": begin})
        settings = settings.model_copy(update={"exchange": exchange})
    return settings, series


def compared(settings: Settings, series: Mapping[str, BarSeries]) -> ReplayResult:
    """Replay both ways and compare; returns the result."""
    fast, exact = fast_replay(settings, series), replay(settings, series)
    assert differences(fast, exact) == []
    return exact


@pytest.mark.parametrize("seed", range(25))
def test_the_fast_replay_of_a_drawn_case_is_the_exact_one(seed: int) -> None:
    compared(*drawn(seed))


def _tiny_models() -> ModuleType:
    """The tiny ONNX policies of the strategies' tests, by path: test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def policy_with_exits(folder: Path, *, shorts: bool) -> Path:
    """A policy that follows the last return, with exits that depend on the state and are sometimes none."""
    tiny = _tiny_models()
    weights = np.eye(tiny.WIDTH + 1)
    outputs = {"q_flat": 0.0 * weights[0], "q_long": weights[0], "exit_stop": 0.004 * weights[1]}
    outputs |= {"exit_take_profit": 0.01 * weights[2], "exit_gain": 0.001 * weights[1], "adverse_q90": weights[2]}
    if shorts:
        outputs["q_short"] = -weights[0]
    model = tiny.linear_model(outputs, {"exit_stop": 0.002, "exit_take_profit": 0.004})
    bundle: Bundle = tiny.make_bundle(folder, model, targets=(-1, 0, 1) if shorts else (0, 1))
    return bundle.path


@pytest.mark.parametrize("shorts", [False, True])
def test_the_fast_replay_of_a_policy_with_exits_of_its_own_is_the_exact_one(*, shorts: bool, tmp_path: Path) -> None:
    bundle = f"strategy.bundle={policy_with_exits(tmp_path / 'bundle', shorts=shorts)}"
    chosen = [f"strategy.shorts={str(shorts).lower()}", "exits.max_loss_fraction=0.004", "costs.fee_bps=1"]
    settings = load(None, ["symbols=[A,B]", "strategy.name=dqn", bundle, *chosen])
    series = market(np.random.default_rng(5), settings, ["A", "B"], 350)
    exact = compared(settings, series)
    assert {"open", "stop", "limit"} <= set(exact.trades["kind"])
    from_flat = exact.decisions.filter((exact.decisions["position_before"] == 0) & (exact.decisions["target"] != 0))
    entries = from_flat.filter(from_flat["outcome"] == "traded")
    told = [json.loads(votes)["policy"]["exits"] for votes in entries["votes"]]
    for name in ("stop", "take_profit"):
        is_none = [one[name] is None for one in told]
        assert any(is_none)
        assert not all(is_none)
        assert is_none == entries[name].is_null().to_list()


EXECUTIONS = ("filled_at", "symbol", "side", "leg", "kind", "qty", "price", "fee", "exec_id", *COSTS)


def numbers(data: ReportData) -> str:
    """Return every number of a report."""
    found = figures(data)
    assert not isinstance(data.incidents, NotMeasured)
    assert not isinstance(found.costs, NotMeasured)
    assert found.costs.compared == data.executions.height
    groups = [asdict(group) for group in (*found.costs_by_leg, *found.costs_by_symbol)]
    columns = [found.close_ns_T.tolist(), found.equity_T.tolist(), [asdict(one) for one in data.incidents]]
    rows = data.executions.select(EXECUTIONS).rows()
    return json.dumps([found.summary(), groups, columns, rows], sort_keys=True, default=str, indent=1)


@pytest.mark.parametrize("seed", REPORTED)
def test_the_report_of_a_fast_replay_has_every_number_of_the_exact_ones(seed: int, tmp_path: Path) -> None:
    settings, series = drawn(seed)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    replay(settings, series, ledger_url=url)
    ledger = open_ledger(url, create=False)
    try:
        exact = from_ledger(ledger, series=series)
    finally:
        ledger.close()
    fast = from_replay(settings, fast_replay(settings, series), series)
    assert numbers(fast).splitlines() == numbers(exact).splitlines()


@pytest.mark.slow
def test_fast_and_exact_replays_agree_on_every_case_and_meet_whatever_can_happen(
    scale: Callable[[Any, Any], Any],
) -> None:
    met: set[str] = set()
    trades = 0
    for seed in range(25, 25 + scale(200, 40)):
        exact = compared(*drawn(seed))
        trades += exact.trades.height
        met.update(exact.trades["kind"], exact.decisions["outcome"], exact.metrics["incidents"])
    print(f"{trades} trades, met {sorted(met)}")  # noqa: T201 - the numbers of docs/experiments.md
    assert met >= {"open", "stop", "limit", "halted", "daily_loss", "protective_exit", "rejected", "no_bar", "cooldown"}


def test_the_fast_replay_passes_over_closes() -> None:
    settings = load(None, ["strategy.name=ma_cross", "symbols=[A]", "exits.stop_volatility=null"])
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=1_500), calendar("24/7"))
    run = _Run(settings, series)
    run.play(None)
    assert 0 < len(run.path.decided) < 300, "most closes should need no decision by the rules"


def test_a_halt_is_met_at_the_close_that_breaks_the_limit_though_nothing_trades_there() -> None:
    limit = ["risk.drawdown_fraction=0.01", "sizing.max_fraction=0.9", "sizing.volatility_target_annual=30"]
    none = ["exits.stop_volatility=null", "exits.take_profit_volatility=null", "exits.max_loss_fraction=1"]
    settings = load(None, ["strategy.name=buy_and_hold", "symbols=[A]", *limit, *none])
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=600), calendar("24/7"))
    exact = compared(settings, series)
    assert exact.metrics["incidents"] == {"halt": 1}
    assert exact.trades.height < 10


def test_a_loss_beyond_the_account_ends_entries_and_nothing_else(tmp_path: Path) -> None:
    chosen = ["strategy.name=random", "strategy.params={flip_probability: 0.3, seed: 5}", "strategy.shorts=true"]
    limits = ["risk.drawdown_fraction=10", "risk.daily_loss_fraction=10", "exits.stop_volatility=null"]
    settings = load(None, [*chosen, *limits, "symbols=[A,B]"])
    series = generate(SyntheticMarketSettings(symbols=("A", "B"), bars=400), calendar("24/7"))
    rocket = np.where(np.arange(400) >= 200, 1_000.0, 1.0)
    series = series | {"A": replace(series["A"], **{name: getattr(series["A"], name) * rocket for name in PRICES})}
    result = compared(settings, series)
    bankrupt = result.equity.filter(result.equity["equity"] < 0)
    assert bankrupt.height > 10, "the seed no longer holds a short when the price leaps"
    after = result.decisions.filter(result.decisions["close_time"] >= bankrupt["close_time"][0])
    assert (after["outcome"] == "no_buying_power").sum() > 0
    assert (after["held_qty"].to_numpy()[-2:] == 0.0).all(), "what was held is still closed"
    assert result.metrics["performance"] is None
    assert "not positive" in result.metrics["not_measured"]
    write_report(tmp_path / "report.html", from_replay(settings, result, series))
    assert "not positive" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_bars_that_the_live_cycle_refuses_are_left_to_it() -> None:
    settings = load(None, ["strategy.name=random", "symbols=[A]"])
    bars = generate(SyntheticMarketSettings(symbols=("A",), bars=300), calendar("24/7"))["A"]
    high = bars.high.copy()
    high[200] = bars.low[200] / 2
    with pytest.raises(NotFastError, match="no market"):
        fast_replay(settings, {"A": replace(bars, high=high)})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", [CRYPTO, EQUITIES], ids=["crypto", "equities"])
def test_fast_and_exact_replays_of_real_bars_agree(
    case: Case, strategy: str, market_data: Path, tmp_path: Path, scale: Callable[[Any, Any], Any]
) -> None:
    settings, series, exact = played(case, strategy, market_data, tmp_path, scale(None, 1_500))
    fast = fast_replay(settings, series)
    print(f"{case.file} {strategy}: closes {exact.equity.height}, trades {exact.trades.height}")  # noqa: T201 - as above
    assert exact.trades.height > 0
    assert differences(fast, exact) == []
