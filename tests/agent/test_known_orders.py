from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from agent.trading_state import KnownOrder, KnownOrders
from brokers.domain import Leg, OrderState, Side

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=60)


def order(number: int) -> KnownOrder:
    return KnownOrder(
        client_id=f"tdm-{number}",
        intent_id=f"intent-{number}",
        attempt=1,
        parent_client_id=None,
        symbol="ABC"[number % 3],
        side=Side.BUY,
        leg=Leg.ENTRY,
        qty=Decimal(number + 1),
        filled_qty=Decimal(0),
        state=OrderState.ACCEPTED,
        stop_price=None,
        limit_price=None,
    )


@given(STEPS)
def test_the_orders_of_a_symbol_are_those_of_all_orders_in_their_order(steps: list[tuple[bool, int]]) -> None:
    orders, plain = KnownOrders(), {}
    for is_kept, number in steps:
        client_id = f"tdm-{number}"
        if is_kept:
            orders[client_id] = plain[client_id] = order(number)
        else:
            assert orders.pop(client_id, None) == plain.pop(client_id, None)
        assert list(orders.items()) == list(plain.items())
        for symbol in "ABC":
            assert list(orders.of(symbol)) == [each for each in plain.values() if each.symbol == symbol]


@given(STEPS)
def test_nothing_is_kept_of_orders_that_are_gone(steps: list[tuple[bool, int]]) -> None:
    orders = KnownOrders()
    for _, number in steps:
        orders[f"tdm-{number}"] = order(number)
    orders.clear()
    assert (len(orders), orders._by_id, orders._by_symbol) == (0, {}, {})
