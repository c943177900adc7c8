from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tandem_cli import replayed

from agent.control import resume
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.orders import Intent, IntentState, client_order_id, intent_id, scope_prefix
from agent.records import arm_exits, write_exit
from agent.trading_state import ArmedExit, TradingState
from brokers.account import Holding
from brokers.domain import ExitPlan, Leg, OrderState, Side

AT = datetime(2024, 3, 1, 14, 30, tzinfo=UTC)
LONG_PLAN = ExitPlan(stop=Decimal(95), take_profit=Decimal(110))
SHORT_PLAN = ExitPlan(stop=Decimal(105), take_profit=Decimal(90))


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    opened = open_ledger("sqlite://")
    yield opened
    opened.close()


def order_row(client_id: str, state: OrderState, **changes: Any) -> dict[str, Any]:
    return {
        "client_id": client_id,
        "intent_id": client_id.rpartition("-")[0],
        "attempt": 1,
        "parent_client_id": None,
        "venue_id": "",
        "symbol": "SPY",
        "side": "buy",
        "leg": "entry",
        "type": "market",
        "qty": Decimal(10),
        "limit_price": None,
        "stop_price": None,
        "state": state.value,
        "filled_qty": Decimal(0),
        "avg_price": None,
        "submitted_at": AT,
        "updated_at": AT,
        "reason": "",
        **changes,
    }


def intent_row(
    name: str, *, side: str = "buy", leg: str = "entry", state: str = "done", **changes: Any
) -> dict[str, Any]:
    plan = LONG_PLAN if side == "buy" else SHORT_PLAN
    return {
        "intent_id": name,
        "sequence": 0,
        "close_time": AT,
        "symbol": "SPY",
        "side": side,
        "leg": leg,
        "qty": Decimal(10),
        "stop": plan.stop if leg == "entry" else None,
        "take_profit": plan.take_profit if leg == "entry" else None,
        "max_loss_usd": None,
        "reference_price": 100.0,
        "predicted_cost_fraction": 0.001,
        "valid_until": None,
        "state": state,
        "note": "",
        **changes,
    }


def test_a_new_ledger_loads_as_nothing(ledger: Ledger) -> None:
    assert asdict(TradingState.load(ledger)) == asdict(TradingState())


def test_only_orders_that_may_still_fill_are_loaded(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        rows = [order_row(f"tdm-{state.value}-1", state) for state in OrderState]
        ledger.upsert(connection, schema.orders, rows)
    loaded = TradingState.load(ledger)
    assert {order.state for order in loaded.orders.values()} == {state for state in OrderState if not state.is_terminal}


def test_planned_intents_come_back_in_the_order_of_their_execution(ledger: Ledger) -> None:
    later = AT + timedelta(minutes=5)
    with ledger.transaction() as connection:
        rows = [
            intent_row("tdm-c", state="planned", close_time=later),
            intent_row("tdm-b", state="planned", sequence=1),
            intent_row("tdm-a", state="planned", leg="close", side="sell"),
            intent_row("tdm-d", state="done"),
        ]
        ledger.upsert(connection, schema.intents, rows)
    loaded = TradingState.load(ledger)
    assert list(loaded.intents) == ["tdm-a", "tdm-b", "tdm-c"]
    assert loaded.intents["tdm-b"].exits == LONG_PLAN
    assert loaded.intents["tdm-a"].exits is None
    assert {intent.state for intent in loaded.intents.values()} == {IntentState.PLANNED}


def test_positions_exits_and_the_account_come_back(ledger: Ledger) -> None:
    state = TradingState()
    armed = ArmedExit("SPY", "tdm-x", Side.SELL, LONG_PLAN, "venue", AT)
    with ledger.transaction() as connection:
        rows = [
            {"symbol": symbol, "qty": qty, "avg_cost": Decimal("99.5"), "updated_at": AT}
            for symbol, qty in (("SPY", Decimal(10)), ("AAPL", Decimal(0)))
        ]
        ledger.upsert(connection, schema.positions, rows)
        write_exit(connection, ledger, state, armed)
        equity = {"close_time": AT, "equity": Decimal(9), "cash": Decimal(1), "gross_exposure": 0.5}
        ledger.upsert(connection, schema.equity, [{**equity, "peak": Decimal(11), "day_start": Decimal(10)}])
        cycle = {"close_time": AT, "run_id": 1, "status": "decided", "symbols": 1}
        ledger.upsert(connection, schema.cycles, [cycle])
        ledger.set_state(connection, "last_execution", {"exec_id": "000000000042"})
    loaded = TradingState.load(ledger)
    assert loaded.book.holdings == {"SPY": Holding(qty=Decimal(10), avg_cost=Decimal("99.5"))}
    assert loaded.exits == {"SPY": armed}
    assert (loaded.peak_equity, loaded.day_start_equity, loaded.day) == (Decimal(11), Decimal(10), "2024-03-01")
    assert (loaded.last_close, loaded.last_close_done) == (AT, False)
    assert loaded.last_exec_id == "000000000042"


def test_streaks_and_pauses_outlive_a_restart(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        ledger.set_state(connection, "rejects", {"SPY": 3})
        ledger.set_state(connection, "paused", {"AAPL": "order_lost"})
    loaded = TradingState.load(ledger)
    assert (loaded.rejects, loaded.paused) == ({"SPY": 3}, {"AAPL": "order_lost"})


def test_a_drawdown_is_counted_anew_after_a_resume(ledger: Ledger) -> None:
    row = {"close_time": AT, "equity": Decimal(70), "cash": Decimal(70), "gross_exposure": 0.0}
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.equity, [{**row, "peak": Decimal(100), "day_start": Decimal(70)}])
        ledger.set_state(connection, "halt", {"halted": True, "reason": "drawdown 30 %"})
    assert TradingState.load(ledger).peak_equity == Decimal(100)
    resume(ledger, AT + timedelta(minutes=1))
    assert TradingState.load(ledger).peak_equity == Decimal(0)  # the next close sets it to its equity


def test_what_a_replay_held_at_its_end_is_what_a_restart_would_know(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    replayed(path, bars=300)
    ledger = open_ledger(f"sqlite:///{path}")
    loaded = TradingState.load(ledger)
    moved: dict[str, Decimal] = {}
    for fill in ledger.rows(select(schema.fills)):
        sign = 1 if fill.side == "buy" else -1
        moved[fill.symbol] = moved.get(fill.symbol, Decimal(0)) + sign * fill.qty
    assert {symbol: holding.qty for symbol, holding in loaded.book.holdings.items()} == {
        symbol: qty for symbol, qty in moved.items() if qty
    }
    assert set(loaded.exits) == set(loaded.book.holdings)
    for symbol, armed in loaded.exits.items():
        assert (armed.side is Side.SELL) == (loaded.book.qty(symbol) > 0)
    ledger.close()


def test_working_orders_and_the_entry_among_them(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        rows = [
            order_row("tdm-e-1", OrderState.PARTIAL),
            order_row("tdm-e-1.stop", OrderState.HELD, leg="stop", parent_client_id="tdm-e-1"),
            order_row("tdm-o-1", OrderState.ACCEPTED, symbol="AAPL"),
        ]
        ledger.upsert(connection, schema.orders, rows)
    loaded = TradingState.load(ledger)
    assert {order.client_id for order in loaded.working_orders("SPY")} == {"tdm-e-1", "tdm-e-1.stop"}
    entry = loaded.working_entry("SPY")
    assert entry is not None
    assert entry.client_id == "tdm-e-1"
    assert loaded.working_entry("IBM") is None


# ---- exits follow positions ----------------------------------------------------------------------------


def arm(ledger: Ledger, state: TradingState) -> list[str]:
    with ledger.transaction() as connection:
        return arm_exits(connection, ledger, state, AT)


def entered(ledger: Ledger, qty: int, *intents: dict[str, Any]) -> TradingState:
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.intents, list(intents))
    state = TradingState()
    state.book.holdings["SPY"] = Holding(qty=Decimal(qty), avg_cost=Decimal(100))
    return state


def test_a_filled_entry_arms_the_exits_that_were_committed_with_it(ledger: Ledger) -> None:
    state = entered(ledger, 10, intent_row("tdm-long"))
    assert arm(ledger, state) == []
    armed = state.exits["SPY"]
    assert (armed.plan, armed.side, armed.mode, armed.intent_id) == (LONG_PLAN, Side.SELL, "local", "tdm-long")


def test_exits_are_the_venues_once_it_holds_every_level(ledger: Ledger) -> None:
    state = entered(ledger, 10, intent_row("tdm-long"))
    arm(ledger, state)
    with ledger.transaction() as connection:
        legs = [
            order_row("tdm-long-1.stop", OrderState.ACCEPTED, leg="stop", side="sell", parent_client_id="tdm-long-1"),
            order_row(
                "tdm-long-1.tp", OrderState.ACCEPTED, leg="take_profit", side="sell", parent_client_id="tdm-long-1"
            ),
        ]
        ledger.upsert(connection, schema.orders, legs)
    state.orders = TradingState.load(ledger).orders
    arm(ledger, state)
    assert state.exits["SPY"].mode == "venue"
    del state.orders["tdm-long-1.stop"]
    arm(ledger, state)
    assert state.exits["SPY"].mode == "local"


def test_a_closed_position_leaves_no_exits_behind(ledger: Ledger) -> None:
    state = entered(ledger, 10, intent_row("tdm-long"))
    arm(ledger, state)
    state.book.holdings.clear()
    arm(ledger, state)
    assert state.exits == {}
    assert TradingState.load(ledger).exits == {}


def test_a_reversal_between_two_looks_takes_the_new_entrys_exits(ledger: Ledger) -> None:
    state = entered(ledger, 10, intent_row("tdm-long"))
    arm(ledger, state)
    with ledger.transaction() as connection:
        later = AT + timedelta(minutes=5)
        ledger.upsert(connection, schema.intents, [intent_row("tdm-short", side="sell", close_time=later)])
    state.book.holdings["SPY"].qty = Decimal(-10)
    assert arm(ledger, state) == []
    assert (state.exits["SPY"].plan, state.exits["SPY"].side) == (SHORT_PLAN, Side.BUY)
    assert TradingState.load(ledger).exits["SPY"].intent_id == "tdm-short"


def test_a_position_that_nobody_planned_is_reported(ledger: Ledger) -> None:
    assert arm(ledger, entered(ledger, 10)) == ["SPY"]


def test_exits_of_a_long_never_guard_a_short(ledger: Ledger) -> None:
    state = entered(ledger, 10, intent_row("tdm-long"))
    arm(ledger, state)
    state.book.holdings["SPY"].qty = Decimal(-10)
    assert arm(ledger, state) == ["SPY"]


# ---- ids come from decisions ---------------------------------------------------------------------------


def test_the_same_decision_is_the_same_order_and_any_other_is_not() -> None:
    base = ("paper", "SPY", AT, Side.BUY, Leg.ENTRY)
    others = [
        ("live2", "SPY", AT, Side.BUY, Leg.ENTRY),
        ("paper", "AAPL", AT, Side.BUY, Leg.ENTRY),
        ("paper", "SPY", AT + timedelta(minutes=5), Side.BUY, Leg.ENTRY),
        ("paper", "SPY", AT, Side.SELL, Leg.ENTRY),
        ("paper", "SPY", AT, Side.BUY, Leg.CLOSE),
    ]
    assert intent_id(*base) == intent_id(*base)
    ids = {intent_id(*each) for each in [base, *others]}
    assert len(ids) == 6
    attempts = {client_order_id(each, attempt) for each in ids for attempt in (1, 2, 3)}
    assert len(attempts) == 18
    assert all(len(each) <= 48 and each.startswith("tdm-") for each in attempts)


def test_ids_of_one_account_scope_begin_alike_and_unlike_those_of_another() -> None:
    ours = [intent_id("paper", symbol, AT, Side.BUY, Leg.ENTRY) for symbol in ("SPY", "AAPL")]
    theirs = intent_id("other", "SPY", AT, Side.BUY, Leg.ENTRY)
    assert all(each.startswith(scope_prefix("paper")) for each in ours)
    assert not theirs.startswith(scope_prefix("paper"))


def test_intents_cannot_be_changed() -> None:
    fields = {"intent_id": "x", "sequence": 0, "close_time": AT, "symbol": "SPY", "side": Side.BUY, "leg": Leg.ENTRY}
    more = {"qty": Decimal(1), "exits": None, "reference_price": 1.0, "predicted_cost_fraction": 0.0}
    intent = Intent(**fields, **more, valid_until=None)  # type: ignore[arg-type]  # two mappings of the right types
    with pytest.raises(AttributeError):
        intent.qty = Decimal(2)  # type: ignore[misc]  # that is what is tested
