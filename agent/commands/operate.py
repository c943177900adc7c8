"""`tandem status`, `why`, `halt` and `resume`: they speak to the ledger alone, whether the daemon lives or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands.errors import CommandError
from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from agent.ledger.store import Ledger
    from agent.settings import Settings


def status(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Show on one screen: the daemon, halt, account, positions and their exits, orders, last decisions, incidents."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.commands.status_screen import show_status  # noqa: PLC0415 - as above
    from agent.overview import overview  # noqa: PLC0415 - as above

    now = datetime.now(UTC)
    with _ledger(config, overrides) as (_, ledger), ledger.snapshot():
        found = overview(ledger, now)
    if as_json:
        print_json(found)
    else:
        show_status(found, now)


def why(
    symbol: Annotated[str, typer.Argument(help="Symbol, as in the ledger.", show_default=False)],
    time: Annotated[
        str | None,
        typer.Argument(help="The bar's close, or any instant of the bar: 2024-03-01T14:30.", show_default="last close"),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Explain a bar, traded or not: votes, gate, size, exits, orders, fills and costs.

    A time without a zone is taken as UTC.
    """
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.commands.why_screen import show_explanation  # noqa: PLC0415 - as above
    from agent.explain import ExplainError, explain  # noqa: PLC0415 - as above

    at, assumed = parse_time(time) if time is not None else (None, False)
    with _ledger(config, overrides) as (settings, ledger), ledger.snapshot():
        try:
            found = explain(ledger, symbol, at, settings.daemon.bar_store)
        except ExplainError as error:
            raise CommandError(str(error)) from error
    if as_json:
        print_json({"asked": at, "utc_assumed": assumed, **found})
    else:
        show_explanation(found, asked=at, utc_assumed=assumed)


def halt(
    reason: Annotated[str, typer.Argument(help="Why; shown by status and in the ledger.")] = "by hand",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Stop entries from the next close on, until `tandem resume`; exits and reductions go on."""
    from agent import control  # noqa: PLC0415 - paid by the command alone
    from agent.commands.screen import halted, print_json  # noqa: PLC0415 - as above

    with _ledger(config, overrides) as (_, ledger):
        changed, standing = control.halt(ledger, reason, datetime.now(UTC))
    if as_json:
        print_json({"changed": changed, **standing})
        return
    said = "halted: no entries from the next close on" if changed else "already halted"
    typer.echo(f"{said} ({halted(standing)})")


def resume(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """End a halt, and forget pauses of symbols and streaks of refused orders."""
    from agent import control  # noqa: PLC0415 - paid by the command alone
    from agent.commands.screen import print_json  # noqa: PLC0415 - as above

    with _ledger(config, overrides) as (_, ledger):
        changed, ended = control.resume(ledger, datetime.now(UTC))
    if as_json:
        print_json({"changed": changed, **ended})
        return
    if not changed:
        typer.echo("nothing to resume: not halted, no symbol paused, no streak of refused orders")
        return
    typer.echo(f"resumed: {control.ended_text(ended)}; entries are allowed from the next close on")


def parse_time(text: str) -> tuple[datetime, bool]:
    """Return an aware UTC time, and whether UTC was assumed because the text names no zone.

    Raises:
        BadParameter: Not an ISO time.
    """
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as 2024-03-01T14:30 or 2024-03-01T14:30:00Z") from None
    assumed = at.tzinfo is None
    return (at.replace(tzinfo=UTC) if assumed else at.astimezone(UTC)), assumed


@contextmanager
def _ledger(config: Path | None, overrides: list[str] | None) -> Iterator[tuple[Settings, Ledger]]:
    """Open the ledger that the settings name; it must be there."""
    from agent.known_secrets import redactor_of  # noqa: PLC0415 - paid by these commands alone
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: as above
    from agent.settings import load  # noqa: PLC0415 - as above

    settings = load(config, overrides or [])
    ledger = open_ledger(
        settings.ledger.url,
        busy_timeout_s=settings.ledger.busy_timeout_s,
        create=False,
        redactor=redactor_of(settings),
    )
    try:
        yield settings, ledger
    finally:
        ledger.close()
