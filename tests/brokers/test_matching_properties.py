"""What holds for every flow of orders: money adds up, nothing is sold twice, exits never overfill."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from decimal import Decimal
from itertools import chain

import numpy as np
from exchange_kit import FAR, Floor, series, walk
from hypothesis import given
from hypothesis import strategies as st

from brokers.account import AccountBook
from brokers.costs import CostModel
from brokers.domain import DuplicateClientIdError, OrderRequest, OrderState, OrderType, RejectedError, Side
from brokers.series import BarSeries
from brokers.simulated.engine import MatchingEngine

SYMBOLS = ("A", "B")
BARS = 40

ACTION = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["market", "limit", "stop", "stop_limit", "bracket", "close", "cancel", "wait"]),
        "symbol": st.sampled_from(SYMBOLS),
        "side": st.sampled_from(list(Side)),
        "qty": st.integers(1, 400),
        "offset": st.floats(-0.01, 0.01),
        "pick": st.integers(0, 1_000),
        "steps": st.integers(0, 3),
    }
)


def market(seed: int) -> dict[str, BarSeries]:
    """Return two walks; the second one splits and pays a dividend."""
    first, second = walk("A", BARS, seed), walk("B", BARS, seed + 1)
    factor = np.ones(BARS)
    factor[12:] *= 1.01
    factor[20:] *= 2.0
    prices = np.stack([second.open, second.high, second.low, second.close], axis=1) / factor[:, None]
    rows = [tuple(map(float, row)) for row in prices]
    return {"A": first, "B": series("B", rows, adj=list(factor), volume=second.volume)}  # type: ignore[arg-type]


def act(engine: MatchingEngine, action: dict[str, object], number: int) -> None:
    symbol, side = str(action["symbol"]), action["side"]
    kind, name = action["kind"], f"o{number}"
    assert isinstance(side, Side)
    quote = engine.quote(symbol)
    if quote is None or kind == "wait":
        return
    price = (quote.mid * (1 + Decimal(str(action["offset"])))).quantize(Decimal("0.0001"))
    qty = Decimal(str(action["qty"]))
    if kind == "cancel":
        orders = engine.open_orders()
        if orders:
            engine.cancel(orders[int(str(action["pick"])) % len(orders)].client_id)
        return
    if kind == "close":
        position = engine.positions().get(symbol)
        if position is None or not position.qty_available:
            return
        side, qty = Side.SELL if position.qty > 0 else Side.BUY, abs(position.qty_available)
        request = OrderRequest(name, symbol, side, qty)
    elif kind == "bracket":
        width = Decimal("0.006") * side.sign
        stop, profit = quote.mid * (1 - width), quote.mid * (1 + width)
        request = OrderRequest(name, symbol, side, qty, stop_loss=stop, take_profit=profit)
    else:
        request = OrderRequest(
            name,
            symbol,
            side,
            qty,
            type=OrderType(str(kind)),
            limit_price=price if "limit" in str(kind) else None,
            stop_price=price if "stop" in str(kind) else None,
        )
    engine.submit(request)


def check(engine: MatchingEngine) -> None:
    for position in engine.positions().values():
        sign = 1 if position.qty > 0 else -1
        assert 0 <= sign * position.qty_available <= sign * position.qty
    assert engine.account().buying_power >= 0
    book = engine.book()
    for order in book.values():
        assert 0 <= order.filled_qty <= order.qty
        assert (order.state is OrderState.FILLED) == (order.filled_qty == order.qty)
        legs = [book[client_id] for client_id in order.leg_ids]
        if sum(leg.state is OrderState.FILLED for leg in legs):
            assert all(leg.state.is_terminal for leg in legs)
            assert order.state.is_terminal
            assert sum(leg.filled_qty > 0 for leg in legs) == 1


def replayed(engine: MatchingEngine) -> AccountBook:
    """Return the account that the journal alone gives."""
    book = AccountBook(cash=engine.settings.initial_cash)
    fills = ((int(fill.exec_id), fill) for fill in engine.fills())
    actions = ((action.sequence, action) for action in engine.corporate_actions())
    for _, entry in sorted(chain(fills, actions), key=lambda pair: pair[0]):
        if hasattr(entry, "exec_id"):
            book.fill(entry.symbol, entry.side, entry.qty, entry.price, entry.fee)
        elif entry.kind == "split":
            book.split(entry.symbol, entry.amount)
        else:
            assert book.dividend(entry.symbol, entry.amount) == entry.cash
    return book


@given(
    actions=st.lists(ACTION, min_size=5, max_size=60),
    seed=st.integers(0, 50),
    shorting=st.booleans(),
    partial=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_money_adds_up_and_exits_never_overfill_under_any_flow(
    actions: list[dict[str, object]], seed: int, partial: float, *, shorting: bool
) -> None:
    engine = Floor(
        market(seed),
        costs=CostModel(),
        seed=seed,
        shorting=shorting,
        leverage=Decimal(2),
        partial_fill_probability=partial,
    ).engine
    for number, action in enumerate(actions):
        try:
            act(engine, action, number)
        except DuplicateClientIdError:
            raise
        except RejectedError:
            assert engine.order(f"o{number}") is None
        for _ in range(int(str(action["steps"]))):
            engine.advance(engine.now, FAR)
            check(engine)
        if not shorting:
            assert all(held.qty > 0 for held in engine.account_book().holdings.values())
    assert replayed(engine) == engine.account_book()


@given(actions=st.lists(ACTION, min_size=5, max_size=40), seed=st.integers(0, 50))
def test_the_same_flow_gives_the_same_books(actions: list[dict[str, object]], seed: int) -> None:
    def run() -> MatchingEngine:
        engine = Floor(market(seed), seed=seed, shorting=True, partial_fill_probability=0.4).engine
        for number, action in enumerate(actions):
            try:
                act(engine, action, number)
            except RejectedError:
                continue
            finally:
                engine.advance(engine.now, FAR)
        return engine

    first, second = run(), run()
    assert first.book() == second.book()
    assert first.fills() == second.fills()


@given(
    actions=st.lists(ACTION, min_size=3, max_size=25),
    seed=st.integers(0, 50),
    waits=st.lists(st.integers(1, 900 * 12), min_size=25, max_size=25),
    latency=st.sampled_from([1, 1, 3]),
)
def test_passing_over_quiet_stretches_leaves_what_stepping_through_them_leaves(
    actions: list[dict[str, object]], seed: int, waits: list[int], latency: int
) -> None:
    def made() -> MatchingEngine:
        costs = CostModel(latency_bars=latency)
        return Floor(market(seed), costs=costs, seed=seed, shorting=True, partial_fill_probability=0.4).engine

    skipping, stepping = made(), made()
    for number, action in enumerate(actions):
        for engine in (skipping, stepping):
            with contextlib.suppress(RejectedError):
                act(engine, action, number)
        until = skipping.now + timedelta(seconds=waits[number])
        changed: dict[str, None] = {}
        while stepping.now < until:
            changed |= dict.fromkeys(stepping.advance(stepping.now, until).orders_changed)
        assert set(skipping.run_until(until)) == set(changed)
        assert skipping.book() == stepping.book()
        assert skipping.fills() == stepping.fills()
        assert skipping.corporate_actions() == stepping.corporate_actions()
        assert skipping.account() == stepping.account()
        assert (skipping.now, skipping.last_event, skipping.feed_ended, skipping.next_event_at()) == (
            stepping.now,
            stepping.last_event,
            stepping.feed_ended,
            stepping.next_event_at(),
        )
