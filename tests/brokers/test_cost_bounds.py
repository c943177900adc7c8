"""However thin the market and however dear the model: a fill has a positive price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.configuration import ConfigurationError, CostSettings, validate
from brokers.costs import HALF_SPREAD_BPS_MAX, IMPACT_FRACTION_MAX, CostModel, ReferenceBar
from brokers.domain import Side

DEAR = CostModel(half_spread_bps=HALF_SPREAD_BPS_MAX, impact=1e6, participation_cap=1e9)


@given(
    price=st.floats(1e-4, 1e7),
    qty=st.floats(1e-9, 1e12),
    high=st.floats(1.0, 1e6),
    volume=st.floats(0.0, 1e9),
    impact=st.floats(0.0, 1e6),
    side=st.sampled_from(Side),
)
def test_a_fill_has_a_positive_price(
    price: float, qty: float, high: float, volume: float, impact: float, side: Side
) -> None:
    model = CostModel(half_spread_bps=HALF_SPREAD_BPS_MAX, impact=impact, participation_cap=1e9)
    filled = model.taking_price(price, side, qty, ReferenceBar.of(high, 1.0, volume))
    assert filled > 0


def test_the_size_impact_is_at_most_half_the_price() -> None:
    assert DEAR.impact_fraction(1e9, ReferenceBar.of(10.0, 1.0, 1.0)) == IMPACT_FRACTION_MAX == 0.5


def test_a_half_spread_of_half_the_price_is_refused() -> None:
    with pytest.raises(ValueError, match=r"costs\.half_spread_bps is 5000\.0: give at most 4999"):
        CostModel(half_spread_bps=5_000.0)
    with pytest.raises(ConfigurationError, match="half_spread_bps"):
        validate(CostSettings, {"half_spread_bps": 5_000.0}, source="a test")
