"""`tandem data import` and `tandem data check`: bars files in, and what is in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from brokers.bar_report import BarsReport, SymbolReport

app = typer.Typer(name="data", help="Bars in: import, check.", no_args_is_help=True)

_FAILED = 1
_WRONG_USAGE = 2
_SHOWN_SYMBOLS = 20

Source = Annotated[Path, typer.Argument(help="Parquet or CSV file of bars.", show_default=False)]
Period = Annotated[str | None, typer.Option(help="Bar period, for example 5m, 1h, 1d.", show_default="as found")]
Calendar = Annotated[str, typer.Option(help="24/7, or an exchange_calendars name such as XNYS.")]
Symbol = Annotated[str | None, typer.Option(help="Name of a single-symbol file's symbol.", show_default="file name")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("import")
def import_(
    source: Source,
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    period: Annotated[str | None, typer.Option(help="Resample to this longer period.", show_default="keep")] = None,
    calendar: Calendar = "24/7",
    symbol: Symbol = None,
    keep_last: Annotated[  # noqa: FBT002  a flag on the command line is a named boolean
        bool, typer.Option("--keep-last", help="Of two different rows for one bar keep the later one.")
    ] = False,
    timezone: Annotated[
        str | None, typer.Option(help="Zone of timestamps that have none, for example UTC.", show_default="refuse")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  a flag on the command line is a named boolean
) -> None:
    """Make a clean bars file: sorted, without duplicates, perhaps of longer bars. Invents no values."""
    with _one_screen():
        from brokers.bar_import import import_bars  # noqa: PLC0415  heavy: paid by this command alone
        from brokers.calendar import calendar as calendar_by_name  # noqa: PLC0415  as above

        report = import_bars(
            source,
            out,
            calendar=calendar_by_name(calendar),
            period=_parse(period),
            symbol=symbol,
            keep_last=keep_last,
            timezone=_zone(timezone),
        )
    if as_json:
        _print_json(report.to_json())
        return
    repaired = [
        f"{count} {what}"
        for count, what in (
            (report.rows_moved, "rows put in order"),
            (report.exact_duplicates, "duplicates dropped"),
            (report.conflicts_replaced, "rows replaced by later ones"),
        )
        if count
    ]
    typer.echo(f"{report.destination}: {report.rows_written} bars of {report.period}, {', '.join(report.symbols[:10])}")
    typer.echo(f"read {report.rows_read} rows of {report.source}; {', '.join(repaired) or 'nothing to repair'}")
    if report.outside_sessions:
        fate = "kept: readers drop them" if period is None else "left out"
        typer.echo(f"{report.outside_sessions} rows lie outside the sessions of {calendar} ({fate})")


@app.command("check")
def check(
    file: Source,
    period: Period = None,
    calendar: Calendar = "24/7",
    symbol: Symbol = None,
    as_json: AsJson = False,  # noqa: FBT002  a flag on the command line is a named boolean
) -> None:
    """Report spans, gaps, outliers, splits and faults of a bars file; exit code 1 where it is not usable."""
    with _one_screen():
        from brokers.bar_report import check_bars  # noqa: PLC0415  heavy: paid by this command alone
        from brokers.calendar import calendar as calendar_by_name  # noqa: PLC0415  as above

        report = check_bars(file, calendar=calendar_by_name(calendar), period=_parse(period), symbol=symbol)
    if as_json:
        _print_json(report.to_json())
    else:
        _print_check(report)
    if not report.usable:
        raise typer.Exit(_FAILED)


@contextmanager
def _one_screen() -> Iterator[None]:
    """Turn what may go wrong into one message on stderr and an exit code: 2 for a wrong option, else 1."""
    from brokers.bar_faults import BarsError  # noqa: PLC0415  heavy: paid by these commands alone
    from brokers.calendar import CalendarError  # noqa: PLC0415  as above

    _logs_to_stderr()
    try:
        yield
    except BarsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_FAILED) from None
    except CalendarError as error:
        typer.echo(f"--calendar or --period: {error}", err=True)
        raise typer.Exit(_WRONG_USAGE) from None
    except OSError as error:
        typer.echo(f"{error.filename or 'the destination'}: {error.strerror or error}; nothing was written", err=True)
        raise typer.Exit(_FAILED) from None


def _logs_to_stderr() -> None:
    """Keep stdout for the result where nobody has configured logs; the report itself says what was dropped."""
    import structlog  # noqa: PLC0415  heavy: paid by these commands alone

    from agent.logs import configure  # noqa: PLC0415  as above

    if not structlog.is_configured():
        configure(level="warning")


def _zone(timezone: str | None) -> str | None:
    from zoneinfo import ZoneInfo  # noqa: PLC0415  paid by the one command that reads zones

    if timezone is None:
        return None
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        typer.echo(f"--timezone {timezone}: no such zone; for example UTC or America/New_York", err=True)
        raise typer.Exit(_WRONG_USAGE) from None
    return timezone


def _parse(period: str | None) -> timedelta | None:
    from brokers.domain import parse_period  # noqa: PLC0415  heavy: paid by these commands alone

    if period is None:
        return None
    try:
        return parse_period(period)
    except ValueError as error:
        typer.echo(f"--period: {error}", err=True)
        raise typer.Exit(_WRONG_USAGE) from None


def _print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _print_check(report: BarsReport) -> None:
    how = " (inferred)" if report.period_inferred else ""
    typer.echo(f"{report.source}: bars of {report.period or '?'}{how}, calendar {report.calendar}")
    if report.signals:
        typer.echo(f"signals: {', '.join(report.signals)}")
    if report.reserved:
        typer.echo(f"reserved, never features: {', '.join(report.reserved)}")
    for found in report.symbols[:_SHOWN_SYMBOLS]:
        typer.echo(_symbol_text(found))
    if len(report.symbols) > _SHOWN_SYMBOLS:
        typer.echo(f"… and {len(report.symbols) - _SHOWN_SYMBOLS} more symbols (--json lists all)")
    for fault in report.faults:
        typer.echo(f"fault: {fault}", err=True)
    typer.echo("usable" if report.usable else "not usable")


def _symbol_text(found: SymbolReport) -> str:
    name = found.symbol if found.symbol.isprintable() else ascii(found.symbol)  # a terminal would obey the rest
    lines = [f"{name}: {found.rows} bars, {found.first} to {found.last}"]
    if found.outside_sessions:
        lines.append(f"  {found.outside_sessions} rows outside sessions, which readers drop")
    if found.missing:
        gap = found.gaps[0]
        longest = f"longest {gap.first_close} to {gap.last_close} ({gap.bars} bars)"
        lines.append(f"  {found.missing} of {found.expected} bars missing in {found.gap_count} gaps, {longest}")
    if found.zero_volume:
        lines.append(f"  {found.zero_volume} bars without volume")
    if found.outliers:
        worst = found.outliers[0]
        lines.append(f"  {found.outlier_count} outliers, largest {worst.change:+.1%} at {worst.start}")
    lines += [f"  split {split.ratio:.4g}:1 at {split.start}" for split in found.splits]
    if found.dividends:
        lines.append(f"  {found.dividends} dividends")
    lines += [
        f"  looks like a {s.ratio:.4g}:1 split at {s.start}, unknown to adj_factor" for s in found.suspected_splits
    ]
    return "\n".join(lines)
