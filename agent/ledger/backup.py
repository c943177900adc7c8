"""Copies of the ledger and of the exchange's books: made while a daemon writes, and put back while none does.

Both databases are copied from snapshots that are pinned together while the ledger's write lock is held, for
milliseconds: the daemon commits nothing in between, and an order leaves only after its intent is committed. So
a copy is what a kill of the daemon between two commits would have left, from which every start recovers.

A backup is a folder: `ledger.sqlite`, `exchange.sqlite` where there are books, and `backup.json`, which names
their hashes. It appears under its name complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from agent.ledger import schema
from agent.ledger.lock import LedgerInUseError, locked_file
from agent.ledger.store import LedgerError
from brokers.file_lock import FileLockedError, file_lock, lock_path

FORMAT = 1
MANIFEST = "backup.json"
LEDGER, BOOKS = "ledger.sqlite", "exchange.sqlite"
MANIFEST_BYTES_MAX = 100_000
_CHUNK = 1 << 20
_COUNTED = ("runs", "cycles", "decisions", "intents", "orders", "fills", "positions", "incidents")


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """One copied database."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What `backup.json` says."""

    format: int
    made_at: str
    revision: str
    account_scope: str | None
    last_close: str | None
    rows: Mapping[str, int]
    ledger: DatabaseCopy
    books: DatabaseCopy | None


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    ledger: Path
    books: Path | None
    kept: tuple[Path, ...]
    """The files that stood there before, under their new names."""
    backup: Backup


# ---- making ---------------------------------------------------------------------------------------------


def back_up(ledger: Path, books: Path | None, out: Path, *, wait_s: float) -> Backup:
    """Copy a ledger, and the exchange's books with it, into a new folder; a daemon may be writing.

    Args:
        ledger: The ledger's SQLite file.
        books: The exchange's books; None, or a file that is not there, for none.
        out: The folder to make; it must not exist.
        wait_s: Longest wait for the daemon's transaction to end.

    Raises:
        LedgerError: Nothing was made.
    """
    if out.exists() or out.is_symlink():
        raise LedgerError(f"{out} is there already and is not overwritten: name a new folder with --out")
    if not ledger.is_file():
        raise LedgerError(f"there is no ledger at {ledger}: run the daemon first, or correct ledger.url")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            made = _copy_both(ledger, books if books is not None and books.is_file() else None, partial, wait_s)
            (partial / MANIFEST).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
            _sync(partial / MANIFEST)
            _sync(partial)
            partial.rename(out)
            _sync(out.parent)
        except BaseException:  # whatever ends it, an interruption too: half a backup must not lie about
            shutil.rmtree(partial, ignore_errors=True)  # the first error is the one to tell
            raise
    except (OSError, sqlite3.Error) as error:
        raise _failed(f"the backup of {ledger} to {out} was not made", error) from error
    return made


def copy_before_migration(ledger: Path, revision: str) -> Path:
    """Copy a ledger beside itself before its schema is changed, and return the copy.

    Raises:
        LedgerError: It was not made, and without it nothing is migrated.
    """
    copy = ledger.with_name(f"{ledger.name}.revision-{revision}-{_stamp()}")
    incoming = ledger.with_name(f".{copy.name}")
    try:
        try:
            with _reading(ledger) as source:
                _copy(source, incoming)
            _check(incoming)
            os.link(incoming, copy)  # fails where the name is taken: nothing is overwritten
            _sync(copy.parent)
        finally:
            incoming.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise _failed(f"the ledger {ledger} was not migrated, because no copy of it could be made", error) from error
    return copy


def _copy_both(ledger: Path, books: Path | None, folder: Path, wait_s: float) -> Backup:
    made_at = datetime.now(UTC)
    with _pinned(ledger, books, wait_s) as (ledger_source, books_source):
        _copy(ledger_source, folder / LEDGER)
        if books_source is not None:
            _copy(books_source, folder / BOOKS)
    _check(folder / LEDGER)
    if books is not None:
        _check(folder / BOOKS)
    with _reading(folder / LEDGER, immutable=True) as copy:
        revision, scope, last_close, rows = _told(copy)
    return Backup(
        format=FORMAT,
        made_at=schema.iso(made_at),
        revision=revision,
        account_scope=scope,
        last_close=last_close,
        rows=rows,
        ledger=_described(folder / LEDGER),
        books=None if books is None else _described(folder / BOOKS),
    )


@contextmanager
def _pinned(
    ledger: Path, books: Path | None, wait_s: float
) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection | None]]:
    """Give connections whose questions are all answered from one instant between two commits of the ledger."""
    with ExitStack() as held:
        gate = held.enter_context(_reading(ledger, wait_s=wait_s))
        gate.execute("BEGIN IMMEDIATE")  # the daemon commits nothing from here on
        sources = []
        for path in (ledger, books):
            if path is None:
                continue
            source = held.enter_context(_reading(path, wait_s=wait_s))
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the snapshot begins with the first look
            sources.append(source)
        gate.execute("ROLLBACK")  # and goes on from here
        yield sources[0], sources[1] if books is not None else None


@contextmanager
def _reading(path: Path, *, wait_s: float = 5.0, immutable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database that is there; `immutable` for a copy that nobody writes, beside which nothing may be left."""
    mode = "mode=ro&immutable=1" if immutable else "mode=rw"
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None)) as connection:
        yield connection


def _copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy a database into one file of its own, without a write-ahead log beside it, durably."""
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    target.chmod(0o600)
    _sync(target)


# ---- checking -------------------------------------------------------------------------------------------


def read_backup(folder: Path) -> Backup:
    """Read a backup and verify all of it: hashes, the databases' own structure, rows that belong together.

    Raises:
        LedgerError: It is none, or it is damaged.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            content = json.loads(file.read(MANIFEST_BYTES_MAX))
        if content["format"] != FORMAT:
            raise LedgerError(
                f"the backup {folder} has format {content['format']!r}, this program knows {FORMAT}: "
                "restore it with the program that made it"
            )
        ledger, books = DatabaseCopy(**content.pop("ledger")), content.pop("books")
        found = Backup(**content, ledger=ledger, books=None if books is None else DatabaseCopy(**books))
        for copy in (found.ledger, found.books):
            if copy is None:
                continue
            if copy.file not in (LEDGER, BOOKS) or _described(folder / copy.file) != copy:
                raise LedgerError(f"the backup {folder} is damaged: {copy.file} is not what was written: use another")
            _check(folder / copy.file)
    except (OSError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, KeyError):
            error = ValueError(f"{MANIFEST} has no {error}")
        raise _failed(f"{folder} is not a backup that can be used", error, otherwise="use another") from error
    return found


def _check(path: Path) -> None:
    """Verify a copy.

    Raises:
        LedgerError: Its structure is damaged, or rows refer to rows that are not there.
    """
    with _reading(path, immutable=True) as copy:
        verdict = str(copy.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if verdict == "ok" and (orphan := copy.execute("PRAGMA foreign_key_check").fetchone()) is not None:
            verdict = f"a row of {orphan[0]} refers to a row of {orphan[2]} that is not there"
    if verdict != "ok":
        raise LedgerError(f"{path.name} is damaged ({verdict}): `tandem doctor` checks the original; use a backup")


def _told(ledger: sqlite3.Connection) -> tuple[str, str | None, str | None, dict[str, int]]:
    """Return a ledger's revision, whose it is, its newest close, and the rows of its tables."""
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables or not tables.issuperset(_COUNTED):
        raise LedgerError("the database is not a ledger of this program: correct ledger.url")
    scope = ledger.execute("SELECT value FROM state WHERE key = 'account_scope'").fetchone()
    revision = str(ledger.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    last_close = ledger.execute("SELECT max(close_time) FROM cycles").fetchone()[0]
    counts = {
        name: int(ledger.execute(f"SELECT count(*) FROM {name}").fetchone()[0])  # noqa: S608 - names are constants
        for name in _COUNTED
    }
    return revision, None if scope is None else str(json.loads(scope[0])["name"]), last_close, counts


def _described(path: Path) -> DatabaseCopy:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return DatabaseCopy(path.name, path.stat().st_size, digest.hexdigest())


# ---- putting back ---------------------------------------------------------------------------------------


def restore(ledger: Path, books: Path | None, source: Path, *, account_scope: str) -> Restored:
    """Put a backup in the place of a ledger and of its exchange's books; what stood there is kept beside it.

    Killed half-way, the ledger cannot be opened until it is restored again: see `store.open_ledger`.

    Args:
        ledger: The ledger's SQLite file; it need not exist.
        books: The exchange's books; None where the exchange is not ours to restore.
        source: The backup's folder.
        account_scope: Whose ledger it is: the settings' `account_scope`.

    Raises:
        LedgerError: A daemon or an exchange holds the files, or the backup cannot be used; nothing was changed.
    """
    backup = read_backup(source)
    if backup.account_scope is not None and backup.account_scope != account_scope:
        raise LedgerError(
            f"the backup {source} belongs to the account scope {backup.account_scope!r}, the settings say "
            f"{account_scope!r}: use that account's backup or settings"
        )
    if backup.books is not None and books is None:
        raise LedgerError(
            f"the backup {source} holds the exchange's books, and the settings name no exchange of this machine: "
            "say with --books where they belong"
        )
    target_books = books if backup.books is not None else None
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        if target_books is not None:
            target_books.parent.mkdir(parents=True, exist_ok=True)
        with _all_locked(ledger, target_books):
            for place in (ledger, target_books):
                if place is not None:
                    _give(lock_path(place), place)
            kept = _exchange_files(ledger, target_books, source)
    except OSError as error:
        raise _failed(f"{source} was not restored to {ledger}", error) from error
    return Restored(ledger, target_books, tuple(kept), backup)


@contextmanager
def _all_locked(ledger: Path, books: Path | None) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locked_file(ledger))
            if books is not None:
                held.enter_context(file_lock(lock_path(books)))
        except LedgerInUseError as error:
            raise LedgerError(f"ledger {ledger}: {error}: stop it before you restore") from None
        except FileLockedError as error:
            raise LedgerError(f"the books {books}: the exchange of {error} runs on them: stop it first") from None
        yield


def _exchange_files(ledger: Path, books: Path | None, source: Path) -> list[Path]:
    """Bring the copies close, then swap; a marker stands while neither the old nor the new is complete."""
    pairs = [(source / LEDGER, ledger), *([(source / BOOKS, books)] if books is not None else [])]
    for copy, place in pairs:
        incoming = place.with_name(f".{place.name}.incoming")
        shutil.copyfile(copy, incoming)
        incoming.chmod(0o600)
        _give(incoming, place)
        _sync(incoming)
    marker = Path(f"{ledger.absolute()}.restoring")
    if marker.exists():
        suffix = marker.read_text(encoding="ascii").strip()  # of the interrupted one: old files keep one name
    else:
        suffix = f".before-restore-{_stamp()}"
        marker.write_text(suffix, encoding="ascii")
        _sync(marker)
        _sync(marker.parent)
    kept = []
    for _, place in pairs:
        # the log belongs to the old file: it goes with it, under the name that SQLite looks for
        for tail in ("", "-wal"):
            old, aside = Path(f"{place}{tail}"), Path(f"{place}{suffix}{tail}")
            if old.exists() and not aside.exists():
                old.rename(aside)
            if aside.exists():
                kept.append(aside)
        Path(f"{place}-shm").unlink(missing_ok=True)
        place.with_name(f".{place.name}.incoming").replace(place)
        _sync(place.parent)
    marker.unlink()
    _sync(marker.parent)
    return kept


# ---- private --------------------------------------------------------------------------------------------


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")


def _give(path: Path, place: Path) -> None:
    """Let a file that root has made belong to the daemon's user: the owner of what it replaces, or of its folder."""
    if os.geteuid() == 0:
        owner = (place if place.exists() else place.parent).stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(what: str, error: Exception, *, otherwise: str = "`tandem doctor` checks the original") -> LedgerError:
    """Return what to say of an error, with the remedy that fits it, or `otherwise`."""
    text = str(error)
    if "locked" in text:
        remedy = "a program holds the database for long: try again"
    elif "full" in text or "No space" in text:
        remedy = "free some space"
    elif isinstance(error, OSError):
        text = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        remedy = "check the path and its permissions"
    else:
        remedy = otherwise
    return LedgerError(f"{what}: {text}: {remedy}")
