"""`tandem ledger`: copy it, put a copy back, bring it up to date."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands.errors import CommandError
from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from agent.settings import Settings

app = typer.Typer(name="ledger", help="The ledger: backup, restore, migrate.", no_args_is_help=True)

Books = Annotated[
    Path | None,
    typer.Option(help="The exchange's books.", show_default="exchange.books, where the daemon starts its own exchange"),
]


@app.command("backup")
def backup(
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.", show_default=False)],
    books: Books = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Copy the ledger and the exchange's books into a new folder, verified; the daemon may go on meanwhile."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.ledger.backup import back_up  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    settings = load(config, overrides or [])
    if books is not None and not books.is_file():
        raise CommandError(f"there are no books at {books}: correct --books")
    found = books or _own_books(settings)
    made = back_up(_file(settings), found, out, wait_s=settings.ledger.busy_timeout_s)
    if as_json:
        print_json({"backup": str(out), **asdict(made)})
        return
    size = made.ledger.bytes + (made.books.bytes if made.books is not None else 0)
    what = "ledger and exchange books" if made.books is not None else "ledger"
    typer.echo(
        f"{what} copied to {out}: {size:,} bytes, verified; up to the close {made.last_close or 'none yet'}, "
        f"{made.rows['orders']} orders, {made.rows['fills']} fills"
    )


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(help="Folder that `tandem ledger backup` made.", show_default=False)],
    books: Books = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Verify a backup and put it in the ledger's place; refused while a daemon runs. What stood there is kept."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.ledger import backup as backups  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    settings = load(config, overrides or [])
    done = backups.restore(_file(settings), books or _own_books(settings), source, account_scope=settings.account_scope)
    if as_json:
        print_json(
            {
                "ledger": str(done.ledger),
                "books": None if done.books is None else str(done.books),
                "kept": [str(path) for path in done.kept],
                "backup": asdict(done.backup),
            }
        )
        return
    typer.echo(f"{done.ledger} is the backup of {done.backup.made_at}, up to the close {done.backup.last_close}")
    if done.books is not None:
        typer.echo(f"{done.books} is the exchange of the same instant")
    for path in done.kept:
        typer.echo(f"kept: {path}")


@app.command("migrate")
def migrate(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Bring the ledger of an older program up to date, a copy of it first. The daemon's start does the same."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.ledger import schema  # noqa: PLC0415 - as above
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    settings = load(config, overrides or [])
    if settings.ledger.url.startswith("sqlite") and not _file(settings).is_file():
        raise CommandError(f"there is no ledger at {_file(settings)}: run the daemon first, or correct ledger.url")
    ledger = open_ledger(
        settings.ledger.url,
        busy_timeout_s=settings.ledger.busy_timeout_s,
        free_bytes_min=settings.ledger.free_bytes_min,
        exclusive=True,
    )
    ledger.close()
    done = ledger.migrated
    if as_json:
        copy = None if done is None or done.copy is None else str(done.copy)
        before = schema.REVISION if done is None else done.before
        print_json({"changed": done is not None, "before": before, "after": schema.REVISION, "copy": copy})
    elif done is None:
        typer.echo(f"nothing to do: the ledger is at revision {schema.REVISION}, the newest")
    else:
        typer.echo(f"migrated from revision {done.before} to {done.after}; as it was before: {done.copy or 'no copy'}")


def _file(settings: Settings) -> Path:
    """Return the ledger's SQLite file.

    Raises:
        CommandError: The ledger is none.
    """
    from sqlalchemy import make_url  # noqa: PLC0415 - paid by these commands alone
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - as above

    from agent.ledger.store import shown_url  # noqa: PLC0415 - as above

    try:
        url = make_url(settings.ledger.url)
    except ArgumentError:
        # neither the value nor SQLAlchemy's words: either may hold a password
        raise CommandError("ledger.url is not a database URL: write for example sqlite:///var/tandem.sqlite") from None
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise CommandError(
            f"ledger {shown_url(url)} is not a SQLite file: use its server's own tools (pg_dump and pg_restore)"
        )
    return Path(str(url.database))


def _own_books(settings: Settings) -> Path | None:
    """Return the books of the exchange that the daemon starts for itself; None where it trades elsewhere."""
    own = settings.venue.kind == "exchange" and settings.venue.url is None
    return settings.exchange.books if own else None
