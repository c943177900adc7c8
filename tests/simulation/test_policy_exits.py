"""A policy's own exits, from its answer to the position they protect: chosen at the entry, and never again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Row, select

from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.replay import replay
from agent.settings import load
from brokers.calendar import calendar
from brokers.simulated.synthetic import SyntheticMarketSettings, generate

ACCEPTED_LOSS = 0.02


def _tiny_models() -> ModuleType:
    """The tiny ONNX policies of the strategies' tests, by path: test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A replay of a policy whose exits follow the state, and are sometimes none."""
    folder = tmp_path_factory.mktemp("exits")
    tiny = _tiny_models()
    weights = np.eye(tiny.WIDTH + 1)
    stay = 0.3 * weights[-1]
    outputs = {"q_flat": 0.0 * weights[0], "q_long": weights[0] + stay}
    outputs |= {"exit_stop": 0.004 * weights[1], "exit_take_profit": 0.01 * weights[2]}
    model = tiny.linear_model(outputs, {"exit_stop": 0.002, "exit_take_profit": 0.004})
    bundle = tiny.make_bundle(folder / "bundle", model)
    chosen = ["strategy.name=dqn", f"strategy.bundle={bundle.path}", f"exits.max_loss_fraction={ACCEPTED_LOSS}"]
    settings = load(None, ["symbols=[A]", *chosen, "exits.stop_volatility=5", "exits.take_profit_volatility=5"])
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=300, period=settings.bar_period), calendar("24/7"))
    replay(settings, series, ledger_url=url)
    opened = open_ledger(url, create=False)
    yield opened
    opened.close()


def entries(ledger: Ledger) -> list[tuple[Row[Any], Row[Any]]]:
    """Return every decision that entered, with its entry's intent."""
    intents, decisions = schema.intents, schema.decisions
    rows = {row.close_time: row for row in ledger.rows(select(decisions))}
    found = ledger.rows(select(intents).where(intents.c.leg == "entry").order_by(intents.c.close_time))
    return [(rows[intent.close_time], intent) for intent in found]


def said(decision: Row[Any]) -> dict[str, float | None]:
    exits: dict[str, float | None] = json.loads(json.dumps(decision.votes))["policy"]["exits"]
    return exits


def test_every_entry_is_protected_at_the_distances_that_its_answer_said(ledger: Ledger) -> None:
    seen = entries(ledger)
    assert len(seen) > 10
    for decision, intent in seen:
        for name, sign in (("stop", -1), ("take_profit", 1)):
            distance, price = said(decision)[name], getattr(intent, name)
            assert (distance is None) == (price is None)
            if distance is not None:
                assert float(price) == pytest.approx(decision.reference_price * np.exp(sign * distance), rel=1e-6)


def test_an_entry_without_a_stop_says_what_loss_is_accepted_instead(ledger: Ledger) -> None:
    without = [one for one in entries(ledger) if said(one[0])["stop"] is None]
    assert 0 < len(without) < len(entries(ledger))
    for decision, intent in without:
        accepted = intent.qty * Decimal(repr(decision.reference_price)) * Decimal(repr(ACCEPTED_LOSS))
        assert intent.max_loss_usd == accepted
    assert all(
        intent.max_loss_usd is None for decision, intent in entries(ledger) if said(decision)["stop"] is not None
    )


def test_a_close_at_which_the_position_is_kept_says_other_exits_and_arms_none(ledger: Ledger) -> None:
    rows = ledger.rows(select(schema.decisions).order_by(schema.decisions.c.close_time))
    kept = [row for row in rows if row.target == row.position == 1 and row.outcome == "target_held"]
    assert len({tuple(said(row).values()) for row in kept}) > 20
    assert all(row.stop is None and row.take_profit is None for row in kept)
    planned = {row.close_time for row in ledger.rows(select(schema.intents))}
    assert not planned & {row.close_time for row in kept}
