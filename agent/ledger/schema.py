"""Tables of the ledger. Money is stored as text and read as Decimal; times are ISO text in UTC.

Text keeps both exact in SQLite, sorts correctly and reads well in any database shell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Dialect, Float, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator

from agent.redaction import Redactor

REVISION = "0002"
"""The newest migration; `store.open_ledger` upgrades an older database to it."""


class Money(TypeDecorator[Decimal]):
    """Decimal as text, exactly."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        """Write plain notation."""
        del dialect
        return None if value is None else format(value, "f")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Decimal | None:
        """Read back the same number."""
        del dialect
        return None if value is None else Decimal(value)


class Words(TypeDecorator[str]):
    """Free text, some of it a venue's: without the ledger's secrets, then cut to the column's length.

    The redactor belongs to the ledger's engine, so that no writer can forget it, whichever way it takes.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Redact first: a secret that was cut in two would no longer be found."""
        if value is None:
            return None
        redactor = _REDACTORS.get(dialect, _PLAIN)
        length = self.impl_instance.length if isinstance(self.impl_instance, String) else None
        return redactor.text(value)[:length].replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL takes no NUL

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Read it as it is."""
        del dialect
        return value


def redact_with(dialect: Dialect, redactor: Redactor) -> None:
    """Let every free text that goes through this dialect, which is one engine's, be redacted by `redactor`."""
    _REDACTORS[dialect] = redactor


_PLAIN = Redactor()
_REDACTORS: WeakKeyDictionary[Dialect, Redactor] = WeakKeyDictionary()


class UtcTime(TypeDecorator[datetime]):
    """Aware UTC time as ISO text with microseconds; a naive time is refused."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """Write `2023-01-01T00:05:00.000000Z`."""
        del dialect
        return None if value is None else iso(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Read an aware time."""
        del dialect
        return None if value is None else datetime.fromisoformat(value)


_COMPACT = json.JSONEncoder(separators=(",", ":")).encode  # one encoder: `json.dumps` would make one for each row


class Json(TypeDecorator[Any]):
    """A small mapping as compact JSON text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, Any] | None, dialect: Dialect) -> str | None:
        """Write compact JSON."""
        del dialect
        return None if value is None else _COMPACT(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:
        """Read it back."""
        del dialect
        return None if value is None else json.loads(value)


class WordsJson(Json):
    """The same with `Words` in it: texts are redacted, numbers and keys stay."""

    cache_ok = True

    def process_bind_param(self, value: Mapping[str, Any] | None, dialect: Dialect) -> str | None:
        """Redact before it is JSON: afterwards a replaced number would be none."""
        return super().process_bind_param(_REDACTORS.get(dialect, _PLAIN).value(value), dialect)


@lru_cache(maxsize=4_096)
def iso(at: datetime) -> str:
    """Return the ledger's text form of an aware time.

    Raises:
        ValueError: `at` is naive.
    """
    if at.tzinfo is None:
        raise ValueError(f"naive time {at.isoformat()} in the ledger: give it a time zone")
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")


metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run_id", Integer, primary_key=True, autoincrement=True),
    Column("started_at", UtcTime, nullable=False),
    Column("started_venue_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("end_reason", Words(200)),
    Column("version", String(40), nullable=False),
    Column("account_scope", String(64), nullable=False),
    Column("venue", String(40), nullable=False),
    Column("strategy", String(80), nullable=False),
    Column("strategy_id", String(80), nullable=False),
    Column("settings", WordsJson, nullable=False),
)

cycles = Table(
    "cycles",
    metadata,
    Column("close_time", UtcTime, primary_key=True),
    Column("run_id", Integer, nullable=False),
    Column("status", String(12), nullable=False),  # decided | done
    Column("symbols", Integer, nullable=False),
    Column("decided_wall_ms", Float),  # system clock, ms since the epoch
)

bars_seen = Table(
    "bars_seen",
    metadata,
    Column("symbol", String(40), primary_key=True),
    Column("start", UtcTime, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("close_time", UtcTime, nullable=False),
    Column("open", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("close", Float, nullable=False),
    Column("volume", Float, nullable=False),
    Column("adj_factor", Float, nullable=False),
    Column("signals", Json),
)
Index("bars_seen_close", bars_seen.c.close_time)

decisions = Table(
    "decisions",
    metadata,
    Column("close_time", UtcTime, primary_key=True),
    Column("symbol", String(40), primary_key=True),
    Column("action", String(4), nullable=False),
    Column("target", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("held_qty", Money, nullable=False),
    Column("reason", String(40), nullable=False),
    Column("outcome", String(40), nullable=False),
    Column("votes", Json, nullable=False),
    Column("reference_price", Float),
    Column("volatility", Float),
    Column("stop", Money),
    Column("take_profit", Money),
    Column("bar_start", UtcTime),
)
Index("decisions_symbol", decisions.c.symbol, decisions.c.close_time)

intents = Table(
    "intents",
    metadata,
    Column("intent_id", String(40), primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("close_time", UtcTime, nullable=False),
    Column("symbol", String(40), nullable=False),
    Column("side", String(4), nullable=False),
    Column("leg", String(12), nullable=False),
    Column("qty", Money, nullable=False),
    Column("stop", Money),
    Column("take_profit", Money),
    Column("max_loss_usd", Money),
    Column("reference_price", Float, nullable=False),
    Column("predicted_cost_fraction", Float, nullable=False),
    Column("valid_until", UtcTime),
    Column("state", String(12), nullable=False),  # planned | sent | done | dropped
    Column("note", Words(200), nullable=False, default=""),
)
Index("intents_open", intents.c.state)
Index("intents_close", intents.c.close_time)

orders = Table(
    "orders",
    metadata,
    Column("client_id", String(128), primary_key=True),
    Column("intent_id", String(40), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("parent_client_id", String(128)),
    Column("venue_id", String(80), nullable=False, default=""),
    Column("symbol", String(40), nullable=False),
    Column("side", String(4), nullable=False),
    Column("leg", String(12), nullable=False),
    Column("type", String(12), nullable=False),
    Column("qty", Money, nullable=False),
    Column("limit_price", Money),
    Column("stop_price", Money),
    Column("state", String(12), nullable=False),
    Column("filled_qty", Money, nullable=False),
    Column("avg_price", Money),
    Column("submitted_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("reason", Words(300), nullable=False, default=""),
)
Index("orders_state", orders.c.state)
Index("orders_symbol", orders.c.symbol)
Index("orders_intent", orders.c.intent_id)

fills = Table(
    "fills",
    metadata,
    Column("venue", String(40), primary_key=True),
    Column("exec_id", String(80), primary_key=True),
    Column("client_id", String(128), nullable=False),
    Column("symbol", String(40), nullable=False),
    Column("side", String(4), nullable=False),
    Column("leg", String(12), nullable=False),
    Column("qty", Money, nullable=False),
    Column("price", Money, nullable=False),
    Column("fee", Money, nullable=False),
    Column("at", UtcTime, nullable=False),
)
Index("fills_client", fills.c.client_id)
Index("fills_symbol", fills.c.symbol, fills.c.at)

costs = Table(
    "costs",
    metadata,
    Column("venue", String(40), primary_key=True),
    Column("exec_id", String(80), primary_key=True),
    Column("decision_price", Float),
    Column("quote_price", Float),
    Column("predicted_fraction", Float),
    Column("realised_fraction", Float),
)

positions = Table(
    "positions",
    metadata,
    Column("symbol", String(40), primary_key=True),
    Column("qty", Money, nullable=False),
    Column("avg_cost", Money, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

exits = Table(
    "exits",
    metadata,
    Column("symbol", String(40), primary_key=True),
    Column("intent_id", String(40), nullable=False),
    Column("side", String(4), nullable=False),  # side of the closing order
    Column("stop", Money),
    Column("take_profit", Money),
    Column("max_loss_usd", Money),
    Column("mode", String(8), nullable=False),  # venue | local
    Column("armed_at", UtcTime, nullable=False),
)

equity = Table(
    "equity",
    metadata,
    Column("close_time", UtcTime, primary_key=True),
    Column("equity", Money, nullable=False),
    Column("cash", Money, nullable=False),
    Column("gross_exposure", Float, nullable=False),
    Column("peak", Money, nullable=False),
    Column("day_start", Money, nullable=False),
)

incidents = Table(
    "incidents",
    metadata,
    Column("incident_id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("symbol", String(40)),
    Column("detail", Words(500), nullable=False),
)
Index("incidents_at", incidents.c.at)

llm_answers = Table(
    "llm_answers",
    metadata,
    Column("prompt_hash", String(64), primary_key=True),
    Column("digest", String(80), primary_key=True),
    Column("prompt_version", String(20), nullable=False),
    Column("symbol", String(40), nullable=False),
    Column("close_time", UtcTime, nullable=False),
    Column("content", String(1000), nullable=False),
    Column("probabilities", Json),
    Column("mass", Float),
    Column("latency_s", Float, nullable=False),
    Column("done_reason", String(20), nullable=False),
)
"""What the language model answered, by question and served model: a replay reads it from here."""
Index("llm_answers_close", llm_answers.c.close_time)

state = Table(
    "state",
    metadata,
    Column("key", String(80), primary_key=True),
    Column("value", WordsJson, nullable=False),
)
"""Small durable facts: the halt, reject streaks, the last execution id, applied splits."""
