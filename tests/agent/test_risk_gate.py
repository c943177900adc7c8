from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_cli import replay_settings

from agent.replay import replay
from agent.risk import AccountRisk, SymbolRisk, breach, judge_entry
from agent.settings import RiskSettings
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.strategy import Reason

LIMITS = RiskSettings(cooldown_bars=3)
ACCOUNT = AccountRisk(
    equity=Decimal(100_000), peak=Decimal(100_000), day_start=Decimal(100_000), gross=Decimal(0), halted=None
)
SYMBOL = SymbolRisk(
    price=Decimal(100),
    bar_age_periods=0.0,
    features_out_of_range=0,
    entries_last_hour=0,
    reject_streak=0,
    bars_since_stop=None,
    paused=None,
)
SMALL = Decimal(10)


def test_an_entry_within_every_limit_passes_unchanged() -> None:
    verdict = judge_entry(SMALL, ACCOUNT, SYMBOL, LIMITS)
    assert (verdict.qty, verdict.reason) == (SMALL, None)


ACCOUNT_REFUSALS = [
    ({"halted": "by hand"}, Reason.HALTED),
    ({"equity": Decimal(79_999)}, Reason.DRAWDOWN),
    ({"equity": Decimal(94_999)}, Reason.DAILY_LOSS),
]
SYMBOL_REFUSALS = [
    ({"paused": "order_lost"}, Reason.SYMBOL_PAUSED),
    ({"bar_age_periods": 2.5}, Reason.STALE_DATA),
    ({"features_out_of_range": 4}, Reason.OUT_OF_RANGE),
    ({"entries_last_hour": 60}, Reason.ORDER_RATE),
    ({"reject_streak": 5}, Reason.REJECT_STREAK),
    ({"bars_since_stop": 2}, Reason.COOLDOWN),
]


@pytest.mark.parametrize(("changes", "reason"), ACCOUNT_REFUSALS)
def test_each_limit_of_the_account_refuses_an_entry(changes: dict[str, object], reason: Reason) -> None:
    verdict = judge_entry(SMALL, replace(ACCOUNT, **changes), SYMBOL, LIMITS)
    assert (verdict.qty, verdict.reason) == (Decimal(0), reason)


@pytest.mark.parametrize(("changes", "reason"), SYMBOL_REFUSALS)
def test_each_limit_of_the_symbol_refuses_an_entry(changes: dict[str, object], reason: Reason) -> None:
    verdict = judge_entry(SMALL, ACCOUNT, replace(SYMBOL, **changes), LIMITS)
    assert (verdict.qty, verdict.reason) == (Decimal(0), reason)


@pytest.mark.parametrize(
    "changes",
    [
        {"bar_age_periods": 2.0},
        {"features_out_of_range": 3},
        {"entries_last_hour": 59},
        {"reject_streak": 4},
        {"bars_since_stop": 3},
    ],
)
def test_at_the_limit_itself_an_entry_passes(changes: dict[str, object]) -> None:
    assert judge_entry(SMALL, ACCOUNT, replace(SYMBOL, **changes), LIMITS).reason is None


def test_losses_exactly_at_their_limits_pass() -> None:
    assert judge_entry(SMALL, replace(ACCOUNT, equity=Decimal(95_000)), SYMBOL, LIMITS).reason is None


def test_the_worst_reason_is_named_first() -> None:
    account = replace(ACCOUNT, halted="by hand", equity=Decimal(50_000))
    assert judge_entry(SMALL, account, replace(SYMBOL, paused="x"), LIMITS).reason is Reason.HALTED


@pytest.mark.parametrize(
    ("limits", "account", "most", "reason"),
    [
        ({"max_position_fraction": 0.25}, {}, Decimal(250), Reason.MAX_POSITION),
        ({"max_order_notional_usd": Decimal(7_000)}, {}, Decimal(70), Reason.MAX_NOTIONAL),
        ({}, {"gross": Decimal(90_000)}, Decimal(100), Reason.MAX_NOTIONAL),
        ({}, {"gross": Decimal(130_000)}, Decimal(0), Reason.MAX_NOTIONAL),
    ],
)
def test_a_cap_makes_an_entry_smaller_and_says_why(
    limits: dict[str, object], account: dict[str, object], most: Decimal, reason: Reason
) -> None:
    verdict = judge_entry(Decimal(10_000), replace(ACCOUNT, **account), SYMBOL, LIMITS.model_copy(update=limits))
    assert (verdict.qty, verdict.reason) == (most, reason)


def test_a_gain_is_no_loss_and_a_new_peak_no_drawdown() -> None:
    account = replace(ACCOUNT, equity=Decimal(120_000), peak=Decimal(120_000))
    assert account.drawdown == 0.0
    assert account.daily_loss < 0.0


def test_an_account_that_never_had_equity_has_no_drawdown() -> None:
    empty = replace(ACCOUNT, equity=Decimal(0), peak=Decimal(0), day_start=Decimal(0))
    assert (empty.drawdown, empty.daily_loss) == (0.0, 0.0)


def test_a_drawdown_beyond_its_limit_is_a_breach_that_halts() -> None:
    assert breach(replace(ACCOUNT, equity=Decimal(79_999)), LIMITS) is Reason.DRAWDOWN
    assert breach(replace(ACCOUNT, equity=Decimal(80_000)), LIMITS) is None


money = st.decimals(min_value=1, max_value=10**9, places=2)


@given(qty=st.decimals(min_value="0.001", max_value=10**6, places=3), equity=money, gross=money, price=money)
def test_the_gate_never_makes_an_entry_larger_nor_negative_nor_beyond_a_cap(
    qty: Decimal, equity: Decimal, gross: Decimal, price: Decimal
) -> None:
    account = AccountRisk(equity=equity, peak=equity, day_start=equity, gross=gross, halted=None)
    verdict = judge_entry(qty, account, replace(SYMBOL, price=price), LIMITS)
    assert Decimal(0) <= verdict.qty <= qty
    assert (verdict.reason is None) == (verdict.qty == qty)
    tolerance = Decimal("1e-15")
    assert verdict.qty * price <= equity * Decimal("0.5") * (1 + tolerance)
    assert verdict.qty * price <= max(equity - gross, Decimal(0)) * (1 + tolerance)


def test_reductions_pass_while_every_entry_is_refused() -> None:
    """In a whole replay whose day is lost early, positions are still left as the strategy wants."""
    series = generate(SyntheticMarketSettings(symbols=("AAA", "BBB"), bars=500))
    decisions = replay(replay_settings(risk={"daily_loss_fraction": 0.0005}), series).decisions
    refused = decisions.filter(decisions["outcome"] == "daily_loss")
    assert refused.height > 10
    assert (refused["position_before"] == 0).all()
    reductions = decisions.filter(
        (decisions["position_before"] != 0)
        & (decisions["target"] != decisions["position_before"])
        & (decisions["close_time"] >= refused["close_time"].min())
    )
    assert reductions.height > 0
    assert set(reductions["outcome"]) <= {"traded", "order_working"}
    assert "traded" in reductions["outcome"].to_list()
