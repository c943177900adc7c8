"""Secrets that a venue, an operator or an error puts into words: none reaches the bytes of the ledger's files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from agent import control
from agent.app import end_run
from agent.known_secrets import known_secrets, redactor_of
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger, update_intent, update_order
from agent.settings import Settings

AT = datetime(2024, 3, 1, 14, 30, tzinfo=UTC)
SECRET = 'wJalr/"Xut\\nFEMI-K7MDENG'  # noqa: S105 - what must not be found
TOLD = f"403 forbidden: key {SECRET} may not trade; see https://bot:{SECRET}@venue.test/"


def run_row() -> dict[str, Any]:
    text = dict.fromkeys(("version", "account_scope", "venue", "strategy", "strategy_id"), "x")
    return {"run_id": 1, "started_at": AT, "started_venue_at": AT, "settings": {}, **text}


def intent_row() -> dict[str, Any]:
    return {
        "intent_id": "i",
        "sequence": 1,
        "close_time": AT,
        "symbol": "A",
        "side": "buy",
        "leg": "entry",
        "qty": Decimal(1),
        "reference_price": 1.0,
        "predicted_cost_fraction": 0.0,
        "state": "planned",
    }


def order_row(reason: str = "") -> dict[str, Any]:
    texts = {"intent_id": "i", "symbol": "A", "side": "buy", "leg": "entry", "type": "market", "state": "new"}
    numbers = {"attempt": 1, "qty": Decimal(1), "filled_qty": Decimal(0)}
    times = {"submitted_at": AT, "updated_at": AT}
    return {"client_id": "c", **texts, **numbers, **times, "reason": reason}


def in_transaction(write: Callable[[Ledger, Connection], None]) -> Callable[[Ledger], None]:
    def act(ledger: Ledger) -> None:
        with ledger.transaction() as connection:
            write(ledger, connection)

    return act


WRITERS: dict[str, Callable[[Ledger], None]] = {
    "an incident": in_transaction(lambda ledger, c: ledger.incident(c, AT, "rejected", TOLD, "A")),
    "an intent's note": in_transaction(lambda _, c: update_intent(c, "i", note=TOLD)),
    "an order's reason": in_transaction(lambda _, c: update_order(c, "c", reason=TOLD)),
    "an order as the venue tells it": in_transaction(
        lambda ledger, c: ledger.upsert(c, schema.orders, [order_row(TOLD)])
    ),
    "a durable fact": in_transaction(lambda ledger, c: ledger.set_state(c, "paused", {"A": TOLD, "n": 3})),
    "the settings of a run": in_transaction(
        lambda _, c: (
            c.execute(schema.runs.insert(), {**run_row(), "run_id": 2, "settings": {"params": {"x": [TOLD]}}}) and None
        )
    ),
    "the end of a run": lambda ledger: end_run(ledger, 1, f"failed: {TOLD}"),
    "an operator's halt": lambda ledger: control.halt(ledger, TOLD, AT) and None,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_secret_in_words_never_reaches_the_bytes_of_the_ledger(
    write: Callable[[Ledger], None], tmp_path: Path
) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET + "\n")
    settings = Settings.model_validate({"venue": {"secret_key_file": secret_file}})
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", redactor=redactor_of(settings, {}))
    with ledger.transaction() as connection:
        connection.execute(schema.runs.insert(), run_row())
        ledger.upsert(connection, schema.intents, [intent_row()])
        ledger.upsert(connection, schema.orders, [order_row()])
    write(ledger)
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("ledger.sqlite*")))
    ledger.close()
    assert b"[redacted]" in written
    for spelling in (SECRET, SECRET.replace("\\", "\\\\"), "FEMI-K7MDENG"):
        assert spelling.encode() not in written


def test_a_secret_at_the_end_of_a_column_is_not_cut_into_a_readable_half(tmp_path: Path) -> None:
    ledger = open_ledger(
        f"sqlite:///{tmp_path / 'ledger.sqlite'}", redactor=redactor_of(Settings(), {"APCA_API_SECRET_KEY": SECRET})
    )
    with ledger.transaction() as connection:
        ledger.incident(connection, AT, "rejected", "x" * 490 + SECRET)
    row = ledger.first(schema.incidents.select())
    ledger.close()
    assert row is not None
    assert row.detail == "x" * 490 + "[redacted]"


def test_the_secrets_are_keys_urls_with_their_tokens_and_the_password_of_the_ledger(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("PKFILE123\n")
    settings = Settings.model_validate(
        {"venue": {"key_id_file": key_file}, "ledger": {"url": "postgresql://tandem:hunter2%21@db/tandem"}}
    )
    environ = {
        "APCA_API_SECRET_KEY": "of-the-environment",
        "TANDEM_NOTIFICATION_URLS": "json://user:pa%20ssword@host/alerts slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnl",
    }
    found = known_secrets(settings, environ)
    assert {"of-the-environment", "PKFILE123", "hunter2!", "pa ssword", "A1BRTD4JD", "TIiajkdnl"} <= set(found)
    assert "alerts" not in found


def test_a_password_in_the_query_of_the_ledger_s_url_is_a_secret() -> None:
    settings = Settings.model_validate({"ledger": {"url": "postgresql:///tandem?port=5433&password=hunter2%21"}})
    assert known_secrets(settings, {}) == ["hunter2!"]
