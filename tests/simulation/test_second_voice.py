"""Two minds in one daemon: whatever the language model's server does, the policy's orders leave in time."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from crash_kit import differences, ledger_rows
from sqlalchemy import select, update
from voice_kit import Played, play, two_minds

from agent.commands.status_screen import show_status
from agent.explain import explain
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.ollama.server import Standin, serve_in_thread
from agent.overview import overview

log = structlog.get_logger("tandem.tests")

CLOSES = 8
HEAVY = "fusion.llm_weight=5"
"""A weight at which a vote that should not count would be seen in the orders."""

FAULTS = {
    "hang": "llm_timeout",
    "dribble=0.5": "llm_timeout",
    "rubbish": "llm_bad_answer",
    "rubbish_content": "llm_bad_answer",
    "wrong_schema": "llm_bad_answer",
    "missing_model": "llm_wrong_model",
    "drop": "llm_unreachable",
    "queue_full": "llm_busy",
    "mid_stream_error": "llm_unreachable",
    "truncated": "llm_bad_answer",
    "low_mass": "llm_low_mass",
}


def opened(url: str) -> Ledger:
    return open_ledger(url, create=False)


def traded(played: Played) -> dict[str, Any]:
    """Return what left the daemon and what came back, without what the second mind said."""
    ledger = opened(played.url)
    try:
        rows = ledger_rows(ledger)
    finally:
        ledger.close()
    return {key: rows[key] for key in ("orders", "fills", "positions", "intents", "costs", "equity", "incidents")}


def second_votes(played: Played) -> Counter[str]:
    ledger = opened(played.url)
    try:
        votes = [row.votes["llm"] for row in ledger.rows(select(schema.decisions.c.votes))]
    finally:
        ledger.close()
    return Counter(vote.get("abstained", "voted") for vote in votes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the policy alone does."""
    folder = tmp_path_factory.mktemp("alone")
    played = play(two_minds(folder, "http://127.0.0.1:9", "strategy.name=dqn"), folder / "l.sqlite", CLOSES)
    rows = traded(played)
    assert len(rows["fills"]) > 5
    return rows


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_with_every_fault_of_the_server_the_policy_trades_as_if_alone_and_the_reason_is_on_record(
    fault: str | None, alone: dict[str, Any], tmp_path: Path
) -> None:
    standin = Standin(parallel=8)
    served = nullcontext("http://127.0.0.1:9") if fault is None else serve_in_thread(standin)
    expected = "llm_unreachable" if fault is None else FAULTS[fault]
    with served as url:
        deadline_s = 0.2 if expected == "llm_timeout" else 2.0
        chosen = two_minds(tmp_path, url, HEAVY, f"llm.deadline_s={deadline_s}", digest=standin.digest("tandem"))
        met = [] if fault is None else [fault]
        played = play(chosen, tmp_path / "l.sqlite", CLOSES, once_warm=lambda: standin.set_faults(*met))
    assert differences(alone, traded(played)) == []
    votes = second_votes(played)
    assert votes.keys() <= {expected, "llm_warming"}, votes
    assert votes.total() == CLOSES * 3
    [counted] = [
        line.rpartition(" ")[2]
        for line in played.metrics.splitlines()
        if line.startswith("tandem_abstentions_total") and f'"{max(votes)}"' in line and '"llm"' in line
    ]
    assert float(counted) == votes[max(votes)]
    ledger = opened(played.url)
    try:
        told = explain(ledger, "S00", None)
    finally:
        ledger.close()
    assert told["votes"]["llm"]["abstained"] in votes
    assert told["votes"]["fused"]["target"] == told["votes"]["policy"]["target"]


def test_votes_of_weight_change_orders_and_the_ledger_says_which(alone: dict[str, Any], tmp_path: Path) -> None:
    standin = Standin(parallel=8)
    with serve_in_thread(standin) as url:
        chosen = two_minds(tmp_path, url, HEAVY, "fusion.temperature=100", digest=standin.digest("tandem"))
        played = play(chosen, tmp_path / "l.sqlite", CLOSES)
    assert second_votes(played) == {"voted": CLOSES * 3}
    assert differences(alone, traded(played)) != []
    ledger = opened(played.url)
    try:
        decisions = list(ledger.rows(select(schema.decisions)))
        answers = list(ledger.rows(select(schema.llm_answers)))
    finally:
        ledger.close()
    for row in decisions:
        fused, policy, llm = (row.votes[name] for name in ("fused", "policy", "llm"))
        assert fused["detail"]["llm_weight"] == 5.0
        assert fused["detail"]["llm_effect"] == float(fused["target"] != policy["target"])
        assert abs(sum(llm["p"].values()) - 1.0) < 1e-6
    assert any(row.votes["fused"]["detail"]["llm_effect"] for row in decisions)
    assert 0 < len(answers) <= CLOSES * 3


def test_at_weight_zero_the_votes_are_on_record_and_change_nothing(alone: dict[str, Any], tmp_path: Path) -> None:
    standin = Standin(parallel=8)
    with serve_in_thread(standin) as url:
        played = play(two_minds(tmp_path, url, digest=standin.digest("tandem")), tmp_path / "l.sqlite", CLOSES)
    assert second_votes(played) == {"voted": CLOSES * 3}
    assert differences(alone, traded(played)) == []


def test_status_counts_votes_abstentions_and_the_targets_that_they_changed(tmp_path: Path) -> None:
    standin = Standin(parallel=8)
    with serve_in_thread(standin) as url:
        chosen = two_minds(tmp_path, url, HEAVY, "fusion.temperature=100", digest=standin.digest("tandem"))
        played = play(chosen, tmp_path / "l.sqlite", CLOSES, once_warm=lambda: standin.set_faults("low_mass*3"))
    ledger = opened(played.url)
    try:
        votes = [row.votes for row in ledger.rows(select(schema.decisions.c.votes))]
        found = overview(ledger, datetime.now(UTC))
    finally:
        ledger.close()
    effects = sum(vote["fused"]["detail"].get("llm_effect", 0.0) for vote in votes)
    assert found["language_model"] == {
        "decisions": CLOSES * 3,
        "voted": CLOSES * 3 - 3,
        "abstained": {"llm_low_mass": 3},
        "weight": 5.0,
        "changed_target": effects,
        "changed_share": effects / (CLOSES * 3),
    }
    assert effects > 0
    screen = StringIO()
    with redirect_stdout(screen):
        show_status(found, datetime.now(UTC))
    words = " ".join(screen.getvalue().split())
    assert f"language model voted on {CLOSES * 3 - 3} of the last {CLOSES * 3} decisions with weight 5" in words
    assert "abstained: llm_low_mass 3" in words


def test_status_counts_decisions_on_which_the_policy_abstained(tmp_path: Path) -> None:
    played = play(two_minds(tmp_path, "http://127.0.0.1:9"), tmp_path / "l.sqlite", 2)
    ledger = opened(played.url)
    silent = {"abstained": "bad_features", "detail": "1 of 3 is not finite"}
    try:
        with ledger.transaction() as connection:
            connection.execute(
                update(schema.decisions).values(votes={"fused": silent, "policy": silent, "llm": silent})
            )
        found = overview(ledger, datetime.now(UTC))["language_model"]
    finally:
        ledger.close()
    assert (found["voted"], found["abstained"], found["changed_target"]) == (0, {"bad_features": 6}, 0)


def test_status_says_nothing_of_a_language_model_where_there_is_none(tmp_path: Path) -> None:
    played = play(two_minds(tmp_path, "http://127.0.0.1:9", "strategy.name=dqn"), tmp_path / "l.sqlite", 2)
    ledger = opened(played.url)
    try:
        assert overview(ledger, datetime.now(UTC))["language_model"] is None
    finally:
        ledger.close()


# ---- against the wall clock -------------------------------------------------------------------------------------


def assert_on_schedule(played: Played, count: int, symbols: int, period_s: float, deadline_s: float) -> None:
    """No close was missed, none was decided without every symbol, and every order left by the deadline."""
    ledger = opened(played.url)
    try:
        closes = [row.close_time for row in ledger.rows(select(schema.cycles).order_by(schema.cycles.c.close_time))]
        decided = Counter(row.close_time for row in ledger.rows(select(schema.decisions.c.close_time)))
        late = [row.outcome for row in ledger.rows(select(schema.decisions.c.outcome)) if row.outcome == "late"]
        incidents = [row.kind for row in ledger.rows(select(schema.incidents.c.kind))]
    finally:
        ledger.close()
    assert len(closes) == count
    assert {later - earlier for earlier, later in itertools.pairwise(closes)} == {timedelta(seconds=period_s)}
    assert set(decided.values()) == {symbols}
    assert late == []
    assert "missed_closes" not in incidents
    assert 'tandem_missed_jobs_total{job="close"}' not in played.metrics
    behind = [(at - max(close for close in closes if close <= at)).total_seconds() for at in played.sent]
    assert behind
    assert max(behind) <= deadline_s


@pytest.mark.slow
def test_answers_that_come_late_are_dropped_and_counted_and_the_schedule_holds(tmp_path: Path, scale: Any) -> None:
    """Delays and deadline divided by 20: 50 symbols, 1,000 bars of one second, 8 questions at once."""
    symbols, closes = scale((50, 1_000), (40, 25))
    _on_the_wall(tmp_path, symbols, closes, period_s=1, shrink=20.0)


@pytest.mark.slow
def test_the_same_at_true_delays(tmp_path: Path, scale: Any) -> None:
    """Answers take 0.1 to 3 s, the deadline is 8 s: 50 symbols, 100 bars of ten seconds."""
    symbols, closes = scale((50, 100), (50, 2))
    _on_the_wall(tmp_path, symbols, closes, period_s=10, shrink=1.0)


@contextmanager
def stand_in_process(delay_s: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """Run the stand-in as a process of its own; yields (url, digest)."""
    low, high = (format(seconds, "f") for seconds in delay_s)
    command = [sys.executable, "-m", "agent.cli", "ollama", "--port", "0", "--json", "--parallel", "16"]
    with subprocess.Popen([*command, "--delay-s", low, high], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        try:
            yield ready["url"], ready["models"][0]["digest"]
        finally:
            process.terminate()


def _on_the_wall(folder: Path, symbols: int, closes: int, *, period_s: int, shrink: float) -> None:
    deadline_s = 0.9 * period_s  # what the daemon does itself does not shrink with the delays
    with stand_in_process((0.1 / shrink, 3.0 / shrink)) as (url, digest):
        chosen = two_minds(
            folder,
            url,
            f"daemon.decision_deadline_s={deadline_s}",
            "daemon.bar_grace_s=0",
            "daemon.sync_interval_s=3600",
            f"llm.deadline_s={8.0 / shrink}",
            "llm.reserve_s=0.3",
            digest=digest,
            symbols=symbols,
            period=f"{period_s}s",
        )
        played = play(chosen, folder / "l.sqlite", closes, on_the_wall=True)
        with urllib.request.urlopen(f"{url}/stand-in/v1/requests", timeout=5) as answer:  # noqa: S310 - our own server
            served = json.load(answer)
    assert_on_schedule(played, closes, symbols, period_s, deadline_s)
    votes = second_votes(played)
    assert votes["voted"] > 0
    assert votes.total() == closes * symbols
    assert votes["llm_timeout"] >= played.counters["late"]
    assert served["in_flight_max"] >= 8
    half = len(played.resident_kb) // 2
    if closes >= 100:
        grown_kb = max(played.resident_kb[half:]) - max(played.resident_kb[:half])
        assert grown_kb < 10_000, f"the second half needed {grown_kb} kB more"
    log.info(
        "on the wall",
        closes=closes,
        symbols=symbols,
        votes=dict(votes),
        late=played.counters["late"],
        resident_kb=(played.resident_kb[half], played.resident_kb[-1]),
        at_once=served["in_flight_max"],
    )
