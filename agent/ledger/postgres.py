"""A ledger on a PostgreSQL server: its engine, its lock, and what its errors mean."""

from __future__ import annotations

import math
import os
import time
from contextlib import ExitStack
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, text

from agent.ledger.lock import LedgerInUseError

STATEMENT_S_MAX = 60.0
"""Longest the server may take for one statement, or leave the wire silent."""
ADVISORY_KEY = 0x74616E64656D  # "tandem"
"""PostgreSQL's advisory lock of a database that holds a ledger."""
SERVER_LOCK_WAIT_S = 1.0
"""How long to wait for it: the server may not have noticed yet that its holder was killed."""
SERVER_LOCK_POLL_S = 0.05

_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_HOLDER = text(
    "SELECT pid, application_name FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE granted "
    "AND locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = :key AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()))"
)

REMEDIES = (
    ("lock timeout", "another process holds it for too long: look for a session that is idle in a transaction"),
    ("onnection refused", "the database server cannot be reached: start it, or correct ledger.url"),
    ("No such file or directory", "the database server cannot be reached: start it, or correct ledger.url"),
    ("starting up", "the database server is not ready yet: start again once it is"),
    ("shutting down", "the database server is not ready yet: start again once it is"),
    ("terminating connection", "the database server ended the connection: start again once it answers"),
    ("the connection is closed", "the database server ended the connection: start again once it answers"),
    ("server closed the connection", "the database server ended the connection: start again once it answers"),
    ("connection failed", "the database server cannot be used: check it, its users and ledger.url"),
    ("permission denied", "the database's user may not do that: make it the owner of the database"),
)
"""What to do, by a part of the server's or the driver's words."""


def server_engine(url: URL, *, busy_timeout_s: float, durable: bool) -> Engine:
    """Return an engine on which every wait is bounded; the driver is psycopg unless the URL names another.

    Raises:
        ImportError, SQLAlchemyError: The driver is not installed, or the URL is not understood.
    """
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg":
        return create_engine(url, pool_pre_ping=True)
    settings = {
        "synchronous_commit": "on" if durable else "off",
        "lock_timeout": round(busy_timeout_s * 1_000),
        "statement_timeout": round(STATEMENT_S_MAX * 1_000),
    }
    arguments: dict[str, Any] = {
        "connect_timeout": max(2, math.ceil(busy_timeout_s)),
        "tcp_user_timeout": round(STATEMENT_S_MAX * 1_000),
        "application_name": f"tandem, process {os.getpid()}",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    return create_engine(url, pool_pre_ping=True, connect_args=arguments)


def lock_server(engine: Engine) -> Connection:
    """Return a session that holds the lock of the ledger.

    It must be the session that writes: where it is lost, to a server that restarts say, the lock and the right to
    write are lost together.

    Raises:
        LedgerInUseError: Another session holds it.
        SQLAlchemyError: The server did not answer.
    """
    give_up = time.monotonic() + SERVER_LOCK_WAIT_S
    with ExitStack() as opened:
        connection = opened.enter_context(engine.connect().execution_options(write=True))
        while not connection.execute(_LOCK, {"key": ADVISORY_KEY}).scalar():
            if time.monotonic() > give_up:
                holder = connection.execute(_HOLDER, {"key": ADVISORY_KEY}).first()
                who = "another session" if holder is None else f"session {holder.pid} ({holder.application_name})"
                raise LedgerInUseError(f"the daemon of {who} runs on it")
            connection.commit()
            time.sleep(SERVER_LOCK_POLL_S)
        connection.commit()
        opened.pop_all()
    return connection
