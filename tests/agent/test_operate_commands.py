from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select
from tandem_cli import replay_settings, replayed, tandem

from agent.commands.why_screen import show_explanation
from agent.control import halt, resume
from agent.explain import explain
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.overview import liveness, overview
from agent.reasons import GATE, SENTENCES, sentence
from agent.replay import replay
from brokers.calendar import calendar
from brokers.domain import Bar
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.strategy import Reason

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SAMPLE = 300


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "ledger.sqlite"
    replayed(path)
    return path


@pytest.fixture
def ledger(recorded: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A copy of the replay's ledger, which a test may change."""
    copy = tmp_path / "ledger.sqlite"
    copy.write_bytes(recorded.read_bytes())
    opened = open_ledger(f"sqlite:///{copy}", create=False)
    yield opened
    opened.close()


def option(ledger: Ledger) -> list[str]:
    return ["--set", f"ledger.url={ledger.url}"]


def decisions(ledger: Ledger) -> list[tuple[str, datetime, str, str]]:
    rows = ledger.rows(select(schema.decisions).order_by(schema.decisions.c.close_time, schema.decisions.c.symbol))
    return [(row.symbol, row.close_time, row.action, row.outcome) for row in rows]


# ---- why -----------------------------------------------------------------------------------------------


def test_every_decision_of_a_replay_can_be_explained(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    every = decisions(ledger)
    chosen = random.Random(7).sample(every, SAMPLE)
    for number, (symbol, close, action, outcome) in enumerate(chosen):
        found = explain(ledger, symbol, close)
        assert found["decided"]
        assert (found["decision"]["action"], found["decision"]["outcome"]) == (action, outcome)
        assert found["decision"]["reason_text"] == SENTENCES[found["decision"]["reason"]]
        assert found["bar"]["source"] == "ledger"
        assert found["equity"] is not None
        if number % 5 == 0:
            show_explanation(found, asked=None, utc_assumed=False)
    assert capsys.readouterr().out.count("Gate, size and exits") == SAMPLE / 5


def test_the_replay_holds_what_these_tests_are_about(ledger: Ledger) -> None:
    outcomes = {outcome for _, _, _, outcome in decisions(ledger)}
    assert {"traded", "target_held", "order_working", "daily_loss", "warming_up"} <= outcomes


def test_a_traded_bar_shows_its_fills_with_predicted_and_realised_cost(ledger: Ledger) -> None:
    traded = [(symbol, close) for symbol, close, _, outcome in decisions(ledger) if outcome == "traded"]
    for symbol, close in traded[:-2]:  # the last orders may still wait for the end of the market
        found = explain(ledger, symbol, close)
        fills = [fill for intent in found["intents"] for order in intent["orders"] for fill in order["fills"]]
        assert fills
        for fill in fills:
            assert fill["predicted_cost"] > 0
            assert fill["realised_cost"] is not None
            assert fill["client_id"].startswith("tdm-")


def test_the_fills_of_all_explanations_are_the_fills_of_the_ledger(ledger: Ledger) -> None:
    seen: set[str] = set()
    for symbol, close, _, _ in decisions(ledger):
        for intent in explain(ledger, symbol, close)["intents"]:
            seen |= {fill["exec_id"] for order in intent["orders"] for fill in order["fills"]}
    assert seen == {row.exec_id for row in ledger.rows(select(schema.fills))}


def test_a_held_bar_says_why_nothing_was_traded(ledger: Ledger) -> None:
    symbol, close = next((s, c) for s, c, action, outcome in decisions(ledger) if outcome == "target_held")
    done = tandem("why", symbol, close.isoformat(), *option(ledger))
    assert done.code == 0
    assert "HOLD" in done.out
    assert SENTENCES["target_held"] in " ".join(done.out.split())
    assert "Intent" not in done.out


def test_a_refused_entry_names_the_limit(ledger: Ledger) -> None:
    symbol, close = next((s, c) for s, c, _, outcome in decisions(ledger) if outcome == "daily_loss")
    found = explain(ledger, symbol, close)
    assert found["gate"]["verdict"] == "refused"
    assert "risk.daily_loss_fraction" in found["gate"]["text"]


def test_a_reduced_entry_says_from_what_to_what(ledger: Ledger) -> None:
    verdicts = [explain(ledger, symbol, close)["gate"] for symbol, close, _, _ in decisions(ledger)]
    reduced = next(gate for gate in verdicts if gate["verdict"] == "reduced")
    assert Decimal(reduced["to"]) < Decimal(reduced["from"])


def test_exits_that_closed_a_position_are_told_with_the_entry(ledger: Ledger) -> None:
    orders = schema.orders
    stopped = ledger.rows(select(orders).where(orders.c.leg == "stop", orders.c.filled_qty != Decimal(0)))
    intents = schema.intents
    row = ledger.first(select(intents).where(intents.c.intent_id == stopped[0].intent_id))
    assert row is not None
    exits = explain(ledger, row.symbol, row.close_time)["exits"]
    assert exits["text"] == "the stop closed the position"


def test_any_instant_of_a_bar_means_its_close(ledger: Ledger) -> None:
    done = tandem("why", "AAA", "2024-01-01T12:31", "--json", *option(ledger))
    assert done.json["close_time"] == "2024-01-01T12:35:00Z"
    assert done.json["utc_assumed"]
    exactly = tandem("why", "AAA", "2024-01-01T12:35:00Z", "--json", *option(ledger))
    assert exactly.json["close_time"] == "2024-01-01T12:35:00Z"
    assert not exactly.json["utc_assumed"]


def test_without_a_time_the_last_close_is_explained(ledger: Ledger) -> None:
    assert explain(ledger, "AAA", None)["close_time"] == decisions(ledger)[-1][1]


def test_a_screen_says_that_utc_was_assumed(ledger: Ledger) -> None:
    assert "UTC assumed" in tandem("why", "AAA", "2024-01-01T12:31", *option(ledger)).out


def test_a_time_before_the_first_run_is_named_as_such(ledger: Ledger) -> None:
    found = explain(ledger, "AAA", datetime(2023, 1, 1, tzinfo=UTC))
    assert (found["decided"], found["why"]) == (False, "before_first_run")


def test_a_time_after_the_last_close_is_not_decided_yet(ledger: Ledger) -> None:
    found = explain(ledger, "AAA", NOW)
    assert found["why"] == "not_yet_decided"
    assert "replay ended" in found["text"]


def test_a_gap_between_two_runs_says_that_no_daemon_ran(ledger: Ledger) -> None:
    gap = _forget_closes(ledger)
    with ledger.transaction() as connection:
        connection.execute(schema.cycles.update().where(schema.cycles.c.close_time > gap).values(run_id=2))
    found = explain(ledger, "AAA", gap)
    assert found["why"] == "not_running"
    assert "replay ended" in found["text"]
    assert found["previous_close"] < gap < found["following_close"]
    assert "no decision: no daemon was running" in tandem("why", "AAA", gap.isoformat(), *option(ledger)).out


def test_a_close_that_was_missed_shows_the_incident(ledger: Ledger) -> None:
    gap = _forget_closes(ledger)
    with ledger.transaction() as connection:
        ledger.incident(connection, gap + timedelta(seconds=9), "cycle_failed", "the venue did not answer")
    found = explain(ledger, "AAA", gap)
    assert found["why"] == "missed"
    assert [incident["kind"] for incident in found["incidents"]] == ["cycle_failed"]


def _forget_closes(ledger: Ledger) -> datetime:
    close = datetime(2024, 1, 1, 20, tzinfo=UTC)
    with ledger.transaction() as connection:
        for table in (schema.cycles, schema.decisions):
            connection.execute(table.delete().where(table.c.close_time == close))
    return close


def test_an_unknown_symbol_suggests_the_nearest(ledger: Ledger) -> None:
    done = tandem("why", "AAB", *option(ledger))
    assert done.code == 1
    assert "did you mean 'AAA'?" in done.err


def test_a_word_that_is_no_time_is_wrong_usage(ledger: Ledger) -> None:
    done = tandem("why", "AAA", "yesterday", *option(ledger))
    assert done.code == 2
    assert "2024-03-01T14:30" in done.err


def test_a_bar_that_left_the_ledger_is_read_from_the_bar_store(ledger: Ledger, tmp_path: Path) -> None:
    from brokers.bar_store import BarStore  # noqa: PLC0415 - Polars, for this test alone

    close = datetime(2024, 1, 1, 12, tzinfo=UTC)
    bars = schema.bars_seen
    row = ledger.first(select(bars).where(bars.c.symbol == "AAA", bars.c.close_time == close))
    assert row is not None
    bar = Bar("AAA", row.start, close, row.open, row.high, row.low, row.close, row.volume)
    store = tmp_path / "bars"
    BarStore(store).write_session([bar], period=timedelta(minutes=5), calendar=calendar("24/7"))
    with ledger.transaction() as connection:
        connection.execute(bars.delete().where(bars.c.close_time == close))
    assert explain(ledger, "AAA", close)["bar"]["source"] == "none"
    found = explain(ledger, "AAA", close, store)["bar"]
    assert (found["source"], found["close"]) == ("bar store", row.close)


def test_a_revised_bar_shows_what_was_decided_on_and_the_correction(ledger: Ledger) -> None:
    close = datetime(2024, 1, 1, 12, tzinfo=UTC)
    bars = schema.bars_seen
    row = ledger.first(select(bars).where(bars.c.symbol == "AAA", bars.c.close_time == close))
    assert row is not None
    with ledger.transaction() as connection:
        revised = {**row._mapping, "revision": 1, "close": row.close + 1.0}
        ledger.upsert(connection, bars, [revised])
    bar = explain(ledger, "AAA", close)["bar"]
    assert bar["close"] == row.close
    assert [one["close"] for one in bar["revisions"]] == [row.close + 1.0]


def test_every_reason_has_a_sentence_of_its_own() -> None:
    assert {str(reason) for reason in Reason} <= set(SENTENCES)
    assert len(set(SENTENCES.values())) == len(SENTENCES)
    assert set(SENTENCES) >= GATE


def test_a_code_of_another_version_stands_for_itself() -> None:
    assert "brand_new" in sentence("brand_new")


# ---- status --------------------------------------------------------------------------------------------


def test_status_shows_the_account_positions_and_who_guards_them(ledger: Ledger) -> None:
    done = tandem("status", "--json", *option(ledger))
    assert done.code == 0
    found = done.json
    last = ledger.last_equity()
    assert last is not None
    assert Decimal(found["account"]["equity"]) == last.equity
    held = {row.symbol: row.qty for row in ledger.rows(select(schema.positions)) if row.qty}
    assert {row["symbol"]: Decimal(row["qty"]) for row in found["positions"]} == held
    assert {row["guard"] for row in found["positions"]} <= {"venue", "local"}
    assert [row["symbol"] for row in found["last_close"]] == ["AAA", "BBB"]
    assert sum(row["decisions"] for row in found["last_24h"]) == 2 * 288
    assert found["daemon"]["state"] == "ended"


def test_status_for_people_names_what_matters(ledger: Ledger) -> None:
    text = tandem("status", *option(ledger)).out
    for word in ("equity", "drawdown", "Positions", "Last close", "replay ended", "random", "entries   allowed"):
        assert word in text


def test_a_position_without_exits_is_guarded_by_nobody(ledger: Ledger) -> None:
    _hold(ledger, "AAA")
    with ledger.transaction() as connection:
        connection.execute(schema.exits.delete())
    assert "NOBODY: no exits" in tandem("status", *option(ledger)).out


def test_local_exits_of_a_dead_daemon_guard_nothing(ledger: Ledger) -> None:
    _hold(ledger, "AAA")
    exit_row = {
        "symbol": "AAA",
        "intent_id": "tdm-x",
        "side": "sell",
        "stop": Decimal(90),
        "take_profit": None,
        "max_loss_usd": None,
        "mode": "local",
        "armed_at": NOW,
    }
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.exits, [exit_row])
    position = next(row for row in overview(ledger, NOW)["positions"] if row["symbol"] == "AAA")
    assert (position["guard"], position["guarded_now"]) == ("local", False)


def _hold(ledger: Ledger, symbol: str) -> None:
    row = {"symbol": symbol, "qty": Decimal(3), "avg_cost": Decimal(99), "updated_at": NOW}
    with ledger.transaction() as connection:
        ledger.upsert(connection, schema.positions, [row])


def test_unresolved_orders_are_shown_apart(ledger: Ledger) -> None:
    orders = schema.orders
    row = ledger.first(select(orders).where(orders.c.leg == "entry"))
    assert row is not None
    with ledger.transaction() as connection:
        connection.execute(orders.update().where(orders.c.client_id == row.client_id).values(state="unknown"))
    found = overview(ledger, NOW)
    assert [order["client_id"] for order in found["unresolved_orders"]] == [row.client_id]
    assert row.client_id not in {order["client_id"] for order in found["working_orders"]}


def test_a_stepped_daemon_is_alive_while_it_decides_and_silent_after(ledger: Ledger) -> None:
    cycle = ledger.last_cycle()
    with ledger.transaction() as connection:
        connection.execute(schema.runs.update().values(ended_at=None, end_reason=None))
    run = ledger.first(select(schema.runs))
    assert cycle is not None
    decided = datetime.fromtimestamp(cycle.decided_wall_ms / 1_000, UTC)
    assert liveness(run, cycle, decided + timedelta(seconds=30))["state"] == "running"
    assert liveness(run, cycle, decided + timedelta(hours=1))["state"] == "silent"


def test_a_daemon_on_a_running_venue_is_alive_until_its_next_close_is_overdue(ledger: Ledger) -> None:
    cycle = ledger.last_cycle()
    with ledger.transaction() as connection:
        connection.execute(schema.runs.update().values(ended_at=None, venue="alpaca"))
        began = datetime.fromtimestamp(0, UTC)
        connection.execute(schema.runs.update().values(started_at=began))
        connection.execute(schema.cycles.update().values(decided_wall_ms=0.0))
    run, cycle = ledger.first(select(schema.runs)), ledger.last_cycle()
    assert cycle is not None
    due = cycle.close_time + timedelta(minutes=5)
    assert liveness(run, cycle, due + timedelta(seconds=60))["state"] == "running"
    assert liveness(run, cycle, due + timedelta(seconds=180))["state"] == "silent"


def test_status_works_on_a_ledger_without_a_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite'}"
    open_ledger(url).close()
    done = tandem("status", "--set", f"ledger.url={url}")
    assert done.code == 0
    assert "has never run" in done.out


def test_asking_about_a_ledger_that_is_not_there_says_so_and_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    for command in (["status"], ["why", "AAA"], ["halt"], ["resume"]):
        done = tandem(*command, "--set", f"ledger.url=sqlite:///{path}")
        assert done.code == 1
        assert "run the daemon first" in done.err
    assert not path.exists()


def test_a_narrow_terminal_loses_no_client_id(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    working = overview(ledger, NOW)["working_orders"]
    squeezed = "".join(tandem("status", *option(ledger)).out.split())
    assert all(order["client_id"][:20] in squeezed for order in working)
    assert "…" not in squeezed


# ---- halt and resume -----------------------------------------------------------------------------------


def test_a_halt_is_written_once_with_its_first_reason(ledger: Ledger) -> None:
    first = tandem("halt", "looking at something", "--json", *option(ledger)).json
    again = tandem("halt", "another reason", "--json", *option(ledger)).json
    assert (first["changed"], again["changed"]) == (True, False)
    assert again["reason"] == "looking at something"
    standing = ledger.get_state("halt")
    assert standing is not None
    assert standing["halted"]
    assert [row.kind for row in ledger.rows(select(schema.incidents))].count("halt") == 1


def test_resume_ends_the_halt_and_forgets_pauses_and_streaks(ledger: Ledger) -> None:
    halt(ledger, "test", NOW)
    with ledger.transaction() as connection:
        ledger.set_state(connection, "paused", {"AAA": "order_lost"})
        ledger.set_state(connection, "rejects", {"BBB": 4})
    done = tandem("resume", *option(ledger))
    assert done.code == 0
    assert "AAA" in done.out
    assert ledger.get_state("paused") == {}
    assert ledger.get_state("rejects") == {}
    assert (ledger.get_state("halt") or {})["halted"] is False
    assert (ledger.get_state("resumed") or {})["count"] == 1


def test_resuming_twice_counts_once(ledger: Ledger) -> None:
    halt(ledger, "test", NOW)
    assert [resume(ledger, NOW)[0] for _ in range(3)] == [True, False, False]
    assert (ledger.get_state("resumed") or {})["count"] == 1


def test_a_halt_of_a_stepped_venue_carries_venue_time(ledger: Ledger) -> None:
    _, standing = halt(ledger, "test", NOW)
    cycle = ledger.last_cycle()
    assert cycle is not None
    assert standing["at"] == schema.iso(cycle.close_time)


def test_a_halted_daemon_trades_no_entry_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "halted.sqlite"
    new = open_ledger(f"sqlite:///{path}")
    halt(new, "before the start", NOW)
    new.close()
    result = replayed(path, bars=120, settings=replay_settings())
    assert set(result.decisions["outcome"]) == {"warming_up", "target_held", "halted"}
    assert result.trades.height == 0


def test_a_resume_after_a_drawdown_halt_lets_the_daemon_trade_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'drawdown.sqlite'}"
    settings = replay_settings(risk={"drawdown_fraction": 0.01, "daily_loss_fraction": 1.0})
    series = generate(SyntheticMarketSettings(symbols=("AAA", "BBB"), bars=600))
    resumed: list[datetime] = []

    def operator(_fraction: float) -> None:
        mine = open_ledger(url)
        cycle = mine.last_cycle()
        if not resumed and cycle is not None and resume(mine, NOW)[0]:
            resumed.append(cycle.close_time)
        mine.close()

    decisions = replay(settings, series, ledger_url=url, progress=operator).decisions
    assert "halted" in decisions.filter(decisions["close_time"] <= resumed[0])["outcome"].to_list()
    after = decisions.filter((decisions["close_time"] > resumed[0]) & (decisions["position_before"] == 0))
    entries = after.filter(after["target"] != 0)
    assert entries["outcome"][0] == "traded"


def test_halt_waits_for_the_daemons_transaction_instead_of_failing(ledger: Ledger) -> None:
    held, release = threading.Event(), threading.Event()

    def daemon() -> None:
        connection = sqlite3.connect(ledger.url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        held.set()
        release.wait(5)
        connection.execute("COMMIT")
        connection.close()

    thread = threading.Thread(target=daemon)
    thread.start()
    held.wait(5)
    threading.Timer(0.2, release.set).start()
    done = tandem("halt", *option(ledger))
    thread.join()
    assert done.code == 0
    assert done.out.startswith("halted")
    assert "UTC (venue time) by " in done.out


def test_the_operator_commands_import_neither_polars_nor_onnxruntime(ledger: Ledger) -> None:
    code = (
        "import sys; from agent.cli import app\n"
        f"sys.argv = ['tandem', 'status', '--set', 'ledger.url={ledger.url}']\n"
        "app(standalone_mode=False)\n"
        "bad = {'polars', 'onnxruntime', 'alpaca', 'pandas', 'exchange_calendars', 'alembic'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_text_of_the_ledger_that_a_disk_has_damaged_is_told_with_its_remedy(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger.sqlite"
    copy.write_bytes(recorded.read_bytes().replace(b'"target"', b'"tar\xffet"'))
    done = tandem("status", "--set", f"ledger.url=sqlite:///{copy}")
    assert done.code == 1
    assert "the file is damaged: restore a backup" in done.err
