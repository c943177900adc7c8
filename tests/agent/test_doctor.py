from __future__ import annotations

import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tandem_cli import tandem

from agent.ledger.store import open_ledger


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Everything in a folder of its own, a baseline instead of a model."""
    given = {
        "ledger.url": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "daemon.bar_store": tmp_path / "bars",
        "strategy.name": "momentum",
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def findings(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = tandem("doctor", "--json", *arguments)
    return done.code, {check["name"]: check for check in done.json["checks"]}


def test_a_sound_machine_passes_without_making_anything(options: list[str], tmp_path: Path) -> None:
    code, found = findings(*options)
    assert code == 0
    assert {check["status"] for check in found.values()} == {"ok"}
    assert {"python", "packages", "settings", "calendar", "ledger", "bar store", "strategy", "venue"} <= set(found)
    assert list(tmp_path.iterdir()) == []


def test_every_failure_and_warning_has_a_remedy(options: list[str]) -> None:
    wrong = ["--set", "calendar=XNYZ", "--set", "strategy.name=dqn", "--set", "venue.url=https://api.alpaca.markets"]
    code, found = findings(*options, *wrong)
    assert code == 1
    bad = [check for check in found.values() if check["status"] != "ok"]
    assert len(bad) >= 3
    assert all(check["remedy"] for check in bad)


def test_people_read_the_status_as_words(options: list[str]) -> None:
    done = tandem("doctor", *options, "--set", "strategy.name=momentm")
    assert done.code == 1
    assert "FAIL" in done.out
    assert "did you mean" in done.out
    assert "1 failures" in done.out


def test_settings_that_cannot_be_read_are_a_finding(options: list[str]) -> None:
    code, found = findings(*options, "--set", "risk.cooldown_bar=1")
    assert code == 1
    assert "cooldown_bars" in found["settings"]["detail"]
    assert found["python"]["status"] == "ok"


def test_a_live_trading_host_is_refused(options: list[str]) -> None:
    wrong = ("--set", "venue.kind=alpaca", "--set", "symbols=[SPY]", "--set", "venue.url=https://api.alpaca.markets")
    code, found = findings(*options, *wrong)
    assert code == 1
    assert found["paper only"]["status"] == "fail"
    assert "paper trading alone" in found["paper only"]["detail"]


def test_alpaca_without_keys_is_not_asked(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APCA_API_KEY_ID", raising=False)
    monkeypatch.delenv("APCA_API_SECRET_KEY", raising=False)
    code, found = findings(*options, "--set", "venue.kind=alpaca", "--set", "symbols=[SPY]")
    assert code == 0
    assert found["venue"]["status"] == "warn"
    assert "APCA_API_KEY_ID" in found["venue"]["remedy"]


def test_a_venue_that_does_not_answer_is_a_failure(options: list[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    code, found = findings(*options, "--set", f"venue.url=http://127.0.0.1:{port}", "--set", "venue.outage_s_max=0")
    assert code == 1
    assert "no usable answer" in found["venue"]["detail"]


def test_a_locked_ledger_is_found(options: list[str], tmp_path: Path) -> None:
    open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}").close()
    holder = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        code, found = findings(*options)
    finally:
        holder.close()
    assert code == 1
    assert "another process holds it" in found["ledger"]["detail"]


def test_a_file_that_is_no_ledger_is_found(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database, but long enough to be read as one" * 40)
    code, found = findings(*options)
    assert code == 1
    assert "not a SQLite database" in found["ledger"]["detail"]


def test_another_account_scope_than_the_ledgers_is_found(options: list[str], tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with ledger.transaction() as connection:
        ledger.set_state(connection, "account_scope", {"name": "another"})
    ledger.close()
    code, found = findings(*options)
    assert code == 1
    assert "'another'" in found["account scope"]["detail"]


def test_too_little_free_space_is_found(options: list[str]) -> None:
    code, found = findings(*options, "--set", "ledger.free_bytes_min=1000000000000000")
    assert code == 1
    assert "wanted" in found["ledger folder"]["detail"]


def test_a_port_in_use_is_a_warning(options: list[str]) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        code, found = findings(*options, "--set", f"health.port={used.getsockname()[1]}")
    assert code == 0
    assert found["health.port"]["status"] == "warn"


def test_a_bars_file_that_is_not_there_is_found(options: list[str], tmp_path: Path) -> None:
    code, found = findings(*options, "--set", f"exchange.bars={tmp_path / 'none.parquet'}")
    assert code == 1
    assert "cannot be read" in found["exchange bars"]["detail"]


def test_a_standing_halt_is_a_warning(options: list[str], tmp_path: Path) -> None:
    open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}").close()
    tandem("halt", "maintenance", *options)
    code, found = findings(*options)
    assert code == 0
    assert "maintenance" in found["halt"]["detail"]


def test_a_notification_url_that_cannot_be_used_is_a_finding_without_its_token(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_NOTIFICATION_URLS", "json://localhost:1/fine json://example.org/T0KEN9secret")
    code, found = findings(*options)
    assert code == 1
    assert found["notifications"]["status"] == "fail"
    assert "json#2" in found["notifications"]["detail"]
    assert "T0KEN9secret" not in str(found)


def test_notification_urls_that_can_be_used_are_named_by_their_service(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_NOTIFICATION_URLS", "json://localhost:1/T0KEN9secret")
    code, found = findings(*options)
    assert code == 0
    assert found["notifications"]["detail"].startswith("json#1: halts, ")


@pytest.mark.parametrize("place", ["", "a_file/tandem.log", "missing/tandem.log"])
def test_a_log_file_is_checked_before_it_is_needed(options: list[str], tmp_path: Path, place: str) -> None:
    (tmp_path / "a_file").touch()
    code, found = findings(*options, "--set", f"log.file={tmp_path / place}")
    can_be_made = place.startswith("missing")
    assert (code, found["log file"]["status"]) == ((0, "ok") if can_be_made else (1, "fail"))
    assert not (tmp_path / "missing").exists()
