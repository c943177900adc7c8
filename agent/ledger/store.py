"""Opening the ledger, and the few statements that write and read it.

One process writes. Each method that changes something takes the caller's transaction, so a cycle decides
what is atomic; `Ledger.transaction()` commits once, with an fsync, before it returns.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Dialect,
    Engine,
    MetaData,
    PrimaryKeyConstraint,
    Result,
    Row,
    Select,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from agent.ledger import schema
from agent.ledger.lock import LedgerInUseError, locked_file
from agent.ledger.postgres import REMEDIES as SERVER_REMEDIES
from agent.ledger.postgres import lock_server, server_engine
from agent.redaction import Redactor

Values = Mapping[str, Any]


class LedgerError(Exception):
    """The ledger cannot be opened, read or written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """A ledger of an older program was brought up to date."""

    before: str
    """Schema revision that it had."""
    after: str
    """Schema revision that it has."""
    copy: Path | None
    """What it was before, beside it; None where it is no file."""


class Ledger:
    """The daemon's ledger.

    Args:
        engine: SQLAlchemy engine whose database is at the newest schema revision.
        url: For messages, without credentials.
        held: What is released with it: the lock of a daemon's run.
        file: The SQLite file; None for none.
        redactor: Takes secrets out of the free text that is written; None for what looks like one.
        locked: The session that holds a server's lock, and writes; None where no server's lock is held.
    """

    def __init__(
        self,
        engine: Engine,
        url: str,
        held: ExitStack | None = None,
        file: Path | None = None,
        redactor: Redactor | None = None,
        locked: Connection | None = None,
    ) -> None:
        self.engine = engine
        self.url = url
        self.redactor = redactor if redactor is not None else Redactor()
        schema.redact_with(engine.dialect, self.redactor)
        self.migrated: Migrated | None = None
        """What opening it changed; None for nothing."""
        self._held = held
        self._file = None if file is None else (file.absolute(), _file_identity(file))
        self.last_commit_s = 0.0
        self._inserts: dict[tuple[str, ...], _Insert] = {}
        self._connection = locked
        self._is_locked = locked is not None
        self._reader: Connection | None = None
        self._open: Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection whose changes are committed, durably, when the block ends without an error.

        Raises:
            LedgerError: The change was not committed: nothing of it is there.
        """
        self._check_identity()
        connection = self._writer()
        began = time.perf_counter()
        try:
            with connection.begin():
                self._open = connection
                yield connection
        except SQLAlchemyError as error:
            self._drop_writer()
            raise _explained(error, self.url) from error
        finally:
            self._open = None
        self.last_commit_s = time.perf_counter() - began

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for questions; within a transaction, that transaction's own.

        Raises:
            LedgerError: The question was not answered.
        """
        if self._open is not None:
            yield self._open
            return
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _explained(error, self.url) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Answer every question of the block from one state of the ledger, while another process writes.

        Raises:
            LedgerError: A question was not answered.
        """
        with self.reading() as connection:
            if self._open is None and self.engine.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")  # SQLite's transactions always are
            outer, self._open = self._open, connection
            try:
                yield
            finally:
                self._open = outer

    def rows(self, statement: Select[Any], parameters: Values | None = None) -> Sequence[Row[Any]]:
        """Return all rows of a question."""
        try:
            found: Sequence[Row[Any]] = self._ask(statement, parameters, Result.all)
        except (ValueError, ArithmeticError) as error:
            raise _damaged(error, self.url) from error
        return found

    def first(self, statement: Select[Any], parameters: Values | None = None) -> Row[Any] | None:
        """Return the first row of a question."""
        try:
            found: Row[Any] | None = self._ask(statement, parameters, Result.first)
        except (ValueError, ArithmeticError) as error:
            raise _damaged(error, self.url) from error
        return found

    def close(self) -> None:
        """Release the database."""
        try:
            self._drop_writer()
            self._drop_reader()
        finally:
            self.engine.dispose()
            if self._held is not None:
                self._held.close()

    # ---- writing, inside a transaction -------------------------------------------------------------

    def upsert(self, connection: Connection, table: Table, rows: Sequence[Values]) -> None:
        """Insert rows, or replace the values of rows with the same primary key. All rows have the first one's keys."""
        self._insert(connection, "upsert", table, rows)

    def insert_new(self, connection: Connection, table: Table, rows: Sequence[Values]) -> None:
        """Insert the rows whose primary key is not there yet; leave the others as they are."""
        self._insert(connection, "new", table, rows)

    def set_state(self, connection: Connection, key: str, value: Mapping[str, Any]) -> None:
        """Write one durable fact, texts in it redacted."""
        self.upsert(connection, schema.state, [{"key": key, "value": value}])

    def incident(self, connection: Connection, at: datetime, kind: str, detail: str, symbol: str | None = None) -> None:
        """Write down that something happened which a person may want to know; `detail` is redacted, then cut."""
        connection.execute(
            schema.incidents.insert(),
            {
                "at": at,
                "recorded_at": datetime.now(UTC),
                "kind": kind,
                "symbol": symbol,
                "detail": detail,
            },
        )

    # ---- questions ----------------------------------------------------------------------------------

    def get_state(self, key: str) -> dict[str, Any] | None:
        """Return one durable fact."""
        row = self.first(select(schema.state.c.value).where(schema.state.c.key == key))
        return None if row is None else dict(row.value)

    def last_cycle(self) -> Row[Any] | None:
        """Return the newest cycle."""
        return self.first(select(schema.cycles).order_by(schema.cycles.c.close_time.desc()).limit(1))

    def last_equity(self) -> Row[Any] | None:
        """Return the newest equity row."""
        return self.first(select(schema.equity).order_by(schema.equity.c.close_time.desc()).limit(1))

    # ---- private ------------------------------------------------------------------------------------

    def _insert(self, connection: Connection, kind: str, table: Table, rows: Sequence[Values]) -> None:
        if not rows:
            return
        key = (kind, table.name, *rows[0])
        insert = self._inserts.get(key)
        if insert is None:
            dialect, names = self.engine.dialect, list(rows[0])
            make = _upsert if kind == "upsert" else _insert_or_ignore
            insert = self._inserts[key] = _Insert(make(dialect.name, table, names), table, names, dialect)
        insert.execute(connection, rows)

    def _ask(self, statement: Select[Any], parameters: Values | None, fetch: Callable[[Result[Any]], Any]) -> Any:
        """Ask within the open transaction, else on a connection kept for questions, each answered by itself."""
        if self._open is not None:
            return fetch(self._open.execute(statement, parameters))
        try:
            if self._reader is None:
                self._reader = self.engine.connect().execution_options(**_each_by_itself(self.engine))
            return fetch(self._reader.execute(statement, parameters))
        except SQLAlchemyError as error:
            self._drop_reader()
            raise _explained(error, self.url) from error

    def _drop_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            try:
                reader.close()
            except SQLAlchemyError as error:
                raise _explained(error, self.url) from error

    def _check_identity(self) -> None:
        """Refuse to write into a file that is no longer in its place: SQLite would, and all of it would be lost."""
        if self._file is None:
            return
        path, identity = self._file
        if _file_identity(path) != identity:
            raise LedgerError(
                f"ledger {self.url}: {path} was removed or replaced while it was in use: put it back, then start again"
            )

    def _writer(self) -> Connection:
        if self._connection is None:
            try:
                make = lock_server if self._is_locked else Engine.connect
                self._connection = make(self.engine).execution_options(write=True)
            except LedgerInUseError as error:
                raise LedgerError(f"ledger {self.url}: the connection was lost, and {error} now: stop one") from None
            except SQLAlchemyError as error:
                raise _explained(error, self.url) from error
        return self._connection

    def _drop_writer(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                if self._is_locked:
                    connection.invalidate()  # the session ends, and its lock: it must not go back to the pool with it
                connection.close()
            except SQLAlchemyError as error:
                raise _explained(error, self.url) from error


class _Insert:
    """One insert as text, with a converter per column.

    For the rows of a thousand symbols SQLAlchemy's own handling of parameters takes longer than SQLite.
    """

    def __init__(self, statement: Any, table: Table, names: Sequence[str], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=names)
        self._table = table.name
        self._text = compiled.string
        self._is_positional = compiled.positional
        # values that the schema gives where a row has none
        self._defaults = {column.name: column.default.arg for column in compiled.insert_prefetch}
        self._converters: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in (compiled.positiontup or [*names, *self._defaults])
        ]

    def execute(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Insert the rows.

        Raises:
            LedgerError: A value that the ledger does not take.
        """
        if self._defaults:
            rows = [{**self._defaults, **row} for row in rows]
        try:  # column by column: which converter a value goes through is asked once for all rows
            columns = [
                [row[name] for row in rows] if convert is None else [convert(row[name]) for row in rows]
                for name, convert in self._converters
            ]
        except ValueError as error:
            raise LedgerError(f"a row of {self._table} cannot be written: {error}") from error
        values = zip(*columns, strict=True)
        if self._is_positional:
            parameters: Any = list(values)
        else:
            names = [name for name, _ in self._converters]
            parameters = [dict(zip(names, row, strict=True)) for row in values]
        connection.exec_driver_sql(self._text, parameters[0] if len(parameters) == 1 else parameters)


def open_ledger(
    url: str,
    *,
    busy_timeout_s: float = 5.0,
    free_bytes_min: int = 0,
    durable: bool = True,
    create: bool = True,
    exclusive: bool = False,
    redactor: Redactor | None = None,
) -> Ledger:
    """Open a ledger and bring its schema to the newest revision.

    Args:
        url: SQLAlchemy URL; `sqlite://` is an in-memory ledger.
        busy_timeout_s: Longest wait for another process's lock.
        free_bytes_min: Least free space on a SQLite file's disk.
        durable: fsync on every commit; False only for replays, whose ledger can be made again.
        create: False refuses a database that is not there (for commands that only read).
        exclusive: True for the daemon: refuses a ledger that another daemon runs on, and holds it until `close`.
        redactor: Takes secrets out of the free text that is written; None for what looks like one.

    Raises:
        LedgerError: With the remedy.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise LedgerError(
            "ledger.url is not a database URL: write for example sqlite:///var/tandem.sqlite"
        ) from None  # neither the value nor SQLAlchemy's words: either may hold a password
    shown = shown_url(parsed)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    in_memory = is_sqlite and parsed.database in (None, "", ":memory:")
    on_disk = is_sqlite and not in_memory
    if on_disk:
        _check_not_restoring(Path(str(parsed.database)))
        _check_file(Path(str(parsed.database)), free_bytes_min=free_bytes_min, create=create)
    engine = _engine(parsed, shown, busy_timeout_s=busy_timeout_s, in_memory=in_memory, durable=durable)
    if is_sqlite:
        _configure_sqlite(engine, durable=durable, wal=not in_memory)
    locked = None
    with ExitStack() as held:
        held.callback(engine.dispose)
        try:
            if exclusive and on_disk:
                held.enter_context(locked_file(Path(str(parsed.database))))
            elif exclusive and engine.dialect.name == "postgresql":
                locked = held.enter_context(lock_server(engine))
            file = Path(str(parsed.database)) if on_disk else None
            migrated = _migrate(engine, shown, file, create=create)
        except LedgerInUseError as error:
            raise LedgerError(f"ledger {shown}: {error}: stop it, or give this one another ledger.url") from None
        except SQLAlchemyError as error:
            raise _explained(error, shown) from error
        except OSError as error:
            raise LedgerError(
                f"ledger {shown}: {error.filename} cannot be written ({error.strerror}): make the ledger's folder "
                "writable for this user"
            ) from error
        kept = held.pop_all()
    ledger = Ledger(engine, shown, kept, file, redactor, locked)
    ledger.migrated = migrated
    return ledger


def shown_url(url: URL) -> str:
    """Return a ledger's URL as it may be shown: without a password before the host or in the query."""
    return Redactor().text(url.render_as_string(hide_password=True))


def _check_not_restoring(path: Path) -> None:
    """Refuse a ledger of which a restore was killed half-way: what stands there may be neither the old nor the new."""
    marker = Path(f"{path.absolute()}.restoring")
    if marker.exists():
        raise LedgerError(
            f"ledger {path}: a restore of it was interrupted ({marker} is there): run `tandem ledger restore` again"
        )


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _engine(parsed: URL, shown: str, *, busy_timeout_s: float, in_memory: bool, durable: bool) -> Engine:
    try:
        if in_memory:
            return create_engine(parsed, poolclass=StaticPool, connect_args={"check_same_thread": False})
        if parsed.get_backend_name() == "sqlite":
            return create_engine(parsed, connect_args={"timeout": busy_timeout_s, "check_same_thread": False})
        if parsed.get_backend_name() == "postgresql":
            return server_engine(parsed, busy_timeout_s=busy_timeout_s, durable=durable)
        return create_engine(parsed, pool_pre_ping=True)
    except (SQLAlchemyError, ImportError) as error:
        raise LedgerError(
            f"ledger {shown}: {error}; install the driver (for PostgreSQL: pip install '.[postgres]') or correct "
            "ledger.url"
        ) from error


def _check_file(path: Path, *, free_bytes_min: int, create: bool) -> None:
    try:
        if not path.exists():
            if not create:
                raise LedgerError(f"there is no ledger at {path}: run the daemon first, or correct ledger.url")
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise LedgerError(f"the ledger {path} is a folder: name a file in ledger.url")
        free = shutil.disk_usage(path.parent).free if create and free_bytes_min else free_bytes_min
    except OSError as error:
        raise LedgerError(
            f"the ledger's folder {path.parent} cannot be used ({error.strerror or error}): make it, writable for "
            "this user, or correct ledger.url"
        ) from error
    if free < free_bytes_min:
        raise LedgerError(
            f"only {free:,} bytes are free for the ledger in {path.parent}, {free_bytes_min:,} are wanted: "
            "free some space or lower ledger.free_bytes_min"
        )


def _configure_sqlite(engine: Engine, *, durable: bool, wal: bool) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions itself, below
        cursor = connection.cursor()
        if wal:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("each_by_itself"):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("write") else "BEGIN")


def _each_by_itself(engine: Engine) -> dict[str, Any]:
    """Return the options of a connection on which no transaction is begun: an idle one would hold old rows."""
    if engine.dialect.name == "sqlite":
        return {"each_by_itself": True}  # see `_configure_sqlite`
    return {"isolation_level": "AUTOCOMMIT"}


def _migrate(engine: Engine, shown: str, file: Path | None, *, create: bool) -> Migrated | None:
    """Bring the schema to the newest revision; a database of something else, or of a newer program, is refused.

    An older file is copied first, and changed in one transaction: killed in between, it is as it was.
    """
    with engine.connect() as connection:
        tables = set(engine.dialect.get_table_names(connection))
        revision = None
        if "alembic_version" in tables:
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision == schema.REVISION:
        return None
    if tables and revision is None:
        raise LedgerError(
            f"ledger {shown}: it holds tables of something else ({', '.join(sorted(tables)[:4])}): correct ledger.url"
        )
    if not tables and create:
        _make_newest(engine)
        return None
    # Alembic is imported only for an older ledger: it costs a tenth of a CPU second and 12 MB.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise LedgerError(
            f"ledger {shown}: its schema revision {revision!r} is not known to this program, whose newest is "
            f"{schema.REVISION!r}: run the newer program that made it, or give another ledger.url"
        )
    if not create and revision is None:
        raise LedgerError(f"ledger {shown}: it is empty: run the daemon first, or correct ledger.url")
    if not create:
        raise LedgerError(
            f"ledger {shown}: its schema revision {revision!r} is older than {schema.REVISION!r}: start the daemon "
            "once, or run `tandem ledger migrate`: it brings the ledger up to date"
        )
    copy = None
    if file is not None and revision is not None:
        from agent.ledger.backup import copy_before_migration  # noqa: PLC0415 - only for an older ledger

        copy = copy_before_migration(file, revision)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return None if revision is None else Migrated(revision, schema.REVISION, copy)


def _make_newest(engine: Engine) -> None:
    """Make the tables of a new ledger as the newest migration leaves them (a test compares), marked as migrated."""
    mark = Table(
        "alembic_version",
        MetaData(),
        Column("version_num", String(32), nullable=False),
        PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
    )
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        mark.create(connection)
        connection.execute(mark.insert(), {"version_num": schema.REVISION})


def _upsert(dialect: str, table: Table, columns: Sequence[str]) -> Any:
    insert = _dialect_insert(dialect, table)
    keys = [column.name for column in table.primary_key]
    changed = {name: insert.excluded[name] for name in columns if name not in keys}
    if not changed:
        return insert.on_conflict_do_nothing(index_elements=keys)
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


def _insert_or_ignore(dialect: str, table: Table, _columns: Sequence[str]) -> Any:
    return _dialect_insert(dialect, table).on_conflict_do_nothing(
        index_elements=[column.name for column in table.primary_key]
    )


def _dialect_insert(dialect: str, table: Table) -> Any:
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - only the dialect in use is loaded

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite  # noqa: PLC0415 - only the dialect in use is loaded

    return sqlite.insert(table)


_REMEDIES = (
    ("locked", "another process holds it: stop the other daemon on this ledger, or give this one another ledger.url"),
    ("readonly", "it is read-only: make the file and its folder writable for this user"),
    ("disk is full", "the disk is full: free some space and start again, nothing half-written is left"),
    ("unable to open", "it cannot be opened: check that the folder exists and may be written by this user"),
    ("not a database", "the file is not a SQLite database: move it away or correct ledger.url"),
    ("malformed", "the file is damaged: restore a backup"),
    ("Could not decode", "the file is damaged: restore a backup"),
    ("no such table", "it is not a ledger of this program, or of another version"),
    ("disk I/O error", "the disk gave an error: check the disk and its free space"),
)


def _explained(error: SQLAlchemyError, url: str) -> LedgerError:
    text = str(error.orig) if isinstance(error, DatabaseError | OperationalError) and error.orig else str(error)
    for sign, remedy in (*_REMEDIES, *SERVER_REMEDIES):
        if sign in text:
            return LedgerError(f"ledger {url}: {remedy} ({text})")
    return LedgerError(f"ledger {url}: {text}")


def _damaged(error: Exception, url: str) -> LedgerError:
    """Return what to say of a stored value that is no time, number or JSON."""
    return LedgerError(f"ledger {url}: it holds a value that cannot be read ({error}): restore a backup")


_UPDATE_ORDER = update(schema.orders).where(schema.orders.c.client_id == bindparam("which"))
_UPDATE_INTENT = update(schema.intents).where(schema.intents.c.intent_id == bindparam("which"))


def update_order(connection: Connection, client_id: str, **values: Any) -> None:
    """Change columns of one order."""
    connection.execute(_UPDATE_ORDER, {"which": client_id, **values})


def update_intent(connection: Connection, intent_id: str, **values: Any) -> None:
    """Change columns of one intent."""
    connection.execute(_UPDATE_INTENT, {"which": intent_id, **values})


def total(values: Sequence[Decimal]) -> Decimal:
    """Add money exactly."""
    return sum(values, Decimal(0))
