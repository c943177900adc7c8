from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.calendar import calendar
from brokers.domain import AssetClass, Instrument
from strategies.decision import Decision, DecisionError, ExitConfig, decide, plan_exits
from strategies.features import default_spec
from strategies.observation import model_inputs, saturated_share, usable_rows
from strategies.sizing import SizingConfig, SizingError, bars_per_year, exposure_fraction, target_quantity
from strategies.strategy import Abstention, Action, ExitLevels, Opinion, Reason

CLOSE = datetime(2024, 3, 1, 12, tzinfo=UTC)
ETH = Instrument(
    "ETHUSDT", AssetClass.CRYPTO, price_tick=Decimal("0.01"), qty_step=Decimal("0.001"), min_notional=Decimal(10)
)
SHORTABLE = Instrument("SPY", AssetClass.EQUITY, qty_step=Decimal(1), shortable=True)


def size(
    volatility: float = 0.002,
    *,
    target: int = 1,
    equity: str = "10000",
    instrument: Instrument = ETH,
    config: SizingConfig | None = None,
) -> Decimal:
    return target_quantity(
        config or SizingConfig(volatility_target_per_bar=0.0004),
        target=target,
        equity=Decimal(equity),
        price=Decimal(3000),
        volatility=volatility,
        instrument=instrument,
        bars_per_year=105_190.0,
    )


def test_the_size_aims_at_the_volatility_target() -> None:
    # 0.0004 / 0.002 = 20% of 10,000 at 3,000 each
    assert size() == Decimal("0.666")


def test_calm_markets_are_capped_at_the_largest_fraction() -> None:
    assert size(1e-6) == Decimal("0.833")


def test_the_annual_target_is_spread_over_the_bars_of_a_year() -> None:
    config = SizingConfig(volatility_target_annual=0.2, max_fraction=1.0)
    assert exposure_fraction(config, 0.02, 252.0) == pytest.approx(0.2 / math.sqrt(252) / 0.02, abs=1e-12)


def test_a_size_below_the_smallest_order_is_zero() -> None:
    assert size(equity="49") == 0


def test_flat_is_zero_whatever_the_volatility() -> None:
    assert size(math.nan, target=0) == 0


def test_a_short_is_negative_and_in_whole_steps() -> None:
    assert size(target=-1, equity="100000", instrument=SHORTABLE) == Decimal(-6)


@pytest.mark.parametrize("volatility", [math.nan, 0.0, math.inf, -0.1])
def test_an_unknown_volatility_is_an_error_and_not_a_size(volatility: float) -> None:
    with pytest.raises(SizingError, match="volatility"):
        size(volatility)


def test_a_short_of_what_cannot_be_shorted_is_an_error() -> None:
    with pytest.raises(SizingError, match="sold short"):
        size(target=-1)


@given(
    equity=st.decimals(1, 10**7, places=2),
    volatility=st.floats(1e-6, 0.5),
    step=st.sampled_from(["1", "0.01", "0.000001"]),
)
def test_a_size_never_exceeds_the_cap_and_sits_on_the_step(equity: Decimal, volatility: float, step: str) -> None:
    instrument = Instrument("X", AssetClass.CRYPTO, qty_step=Decimal(step))
    qty = size(volatility, equity=str(equity), instrument=instrument)
    assert qty * 3000 <= equity * Decimal("0.25")
    assert qty % Decimal(step) == 0


def test_a_year_of_sessions_has_its_real_number_of_bars() -> None:
    hour = timedelta(hours=1)
    assert bars_per_year(calendar("24/7"), hour, CLOSE) == 8_766
    assert 1_700 < bars_per_year(calendar("XNYS"), hour, CLOSE) < 1_800


USUAL = ExitConfig(stop_volatility=2.0, take_profit_volatility=4.0, horizon_bars=25)


def plan(
    target: int = 1, *, config: ExitConfig = USUAL, levels: ExitLevels | None = None
) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    made = plan_exits(
        config, target=target, price=Decimal(3000), qty=Decimal(2), volatility=0.01, instrument=ETH, levels=levels
    )
    return made.stop, made.take_profit, made.max_loss_usd


def test_exits_stand_at_volatilities_of_the_horizon() -> None:
    # 2 and 4 times 1% times sqrt(25)
    assert plan() == (Decimal("2714.51"), Decimal("3664.21"), None)


def test_exits_of_a_short_are_mirrored() -> None:
    assert plan(-1) == (Decimal("3315.51"), Decimal("2456.19"), None)


def test_the_strategys_own_exits_come_first() -> None:
    assert plan(levels=ExitLevels(stop=math.log(1.5), take_profit=None)) == (Decimal("2000.00"), None, None)


def test_a_plan_without_a_stop_names_the_loss_it_accepts() -> None:
    config = ExitConfig(stop_volatility=None, max_loss_fraction=0.05)
    assert plan(config=config) == (None, None, Decimal(300))


def test_an_exit_is_at_least_one_tick_away() -> None:
    stop, take_profit, _ = plan(levels=ExitLevels(stop=1e-9, take_profit=1e-9))
    assert (stop, take_profit) == (Decimal("2999.99"), Decimal("3000.01"))


@given(distance=st.floats(1e-9, 1e3), target=st.sampled_from([-1, 1]))
def test_exits_are_prices_on_the_right_side(distance: float, target: int) -> None:
    stop, take_profit, _ = plan(target, levels=ExitLevels(stop=distance, take_profit=distance))
    assert stop is not None
    assert take_profit is not None
    assert min(stop, take_profit) > 0
    assert (stop - 3000) * target < 0 < (take_profit - 3000) * target


def test_an_abstention_keeps_the_position_and_says_why() -> None:
    decision = decide(
        Abstention("X", Reason.MODEL_ERROR),
        mind="policy",
        close_time=CLOSE,
        position=1,
        volatility=math.nan,
        reference_price=None,
    )
    assert (decision.target, decision.action, decision.reasons) == (1, Action.HOLD, (Reason.MODEL_ERROR,))
    assert decision.volatility is None


def test_the_action_is_seen_from_the_position() -> None:
    opinion = Opinion("X", target=0, q={0: 0.2, 1: 0.1})
    decision = decide(opinion, mind="p", close_time=CLOSE, position=1, volatility=0.01, reference_price=Decimal(1))
    assert (decision.action, decision.q, decision.votes) == (Action.SELL, {0: 0.2, 1: 0.1}, {"p": opinion})


def test_a_decision_without_a_reason_cannot_be_made() -> None:
    with pytest.raises(DecisionError, match="every decision says why"):
        Decision(symbol="X", close_time=CLOSE, position=0, target=0, reasons=())


def test_model_inputs_are_float32_with_the_position_as_a_column() -> None:
    inputs = model_inputs(np.ones((3, 4)), np.array([0, 1, -1], dtype=np.int8))
    assert [(value.dtype, value.shape) for value in inputs.values()] == [("float32", (3, 4)), ("float32", (3, 1))]
    assert inputs["position"].ravel().tolist() == [0.0, 1.0, -1.0]


def test_a_bad_tick_saturates_many_features_and_a_calm_row_none() -> None:
    spec = default_spec(timedelta(minutes=5))
    calm, wild = np.zeros(len(spec.names)), spec.ranges[:, 1]
    assert saturated_share(spec, np.stack([calm, wild])).tolist() == [0.0, 1.0]


def test_rows_with_nan_or_infinity_are_not_usable() -> None:
    assert usable_rows(np.array([[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]])).tolist() == [True, False, False]
