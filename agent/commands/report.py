"""`tandem report`: a ledger, or what a backtest wrote, becomes one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from agent.report import Figures, ReportData


def report(
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    ledger: Annotated[
        str | None, typer.Option(help="URL of a ledger, instead of the one that the settings name.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder that a backtest wrote, instead of a ledger.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Write a tearsheet: one HTML file that loads nothing, for a browser, a phone or a printer.

    Reads the ledger of a daemon, running or not, or the folder of a backtest.
    """
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.report import write_report  # noqa: PLC0415 - as above

    if run is not None and (ledger is not None or config is not None or overrides):
        raise typer.BadParameter("--run reads a folder by itself: leave --ledger, --config and --set out")
    if out.is_dir():
        raise typer.BadParameter(f"--out {out} is a folder: name a file, for example {out / 'report.html'}")
    data = _read(run, ledger, config, overrides)
    found = write_report(out, data)
    if as_json:
        print_json({"out": str(out), "bytes": out.stat().st_size, **found.summary()})
    else:
        _tell(found, data, out)


def _read(run: Path | None, ledger_url: str | None, config: Path | None, overrides: list[str] | None) -> ReportData:
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: paid by the command alone
    from agent.report import from_folder, from_ledger  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    if run is not None:
        return from_folder(run)
    settings = load(config, overrides or [])
    named = ledger_url if ledger_url is not None else settings.ledger.url
    # the bar store of unnamed settings may be that of another market
    bar_store = None if config is None and not overrides else settings.daemon.bar_store
    opened = open_ledger(named, busy_timeout_s=settings.ledger.busy_timeout_s, create=False)
    try:
        return from_ledger(opened, bar_store=bar_store)
    finally:
        opened.close()


def _tell(found: Figures, data: ReportData, out: Path) -> None:
    from agent.report import NotMeasured  # noqa: PLC0415 - loaded by now
    from agent.report.wording import percent  # noqa: PLC0415 - as above

    typer.echo(f"{data.strategy} on {', '.join(data.symbols)}, {len(found.close_ns_T)} closes")
    for name, measured in (("this run", found.performance), ("buy and hold", found.benchmark_performance)):
        if isinstance(measured, NotMeasured):
            typer.echo(f"  {name}: not measured: {measured.reason}")
        else:
            fall = percent(measured.max_drawdown)
            typer.echo(f"  {name}: {percent(measured.total_return, sign=True)}, largest drawdown {fall}")
    typer.echo(f"wrote {out} ({out.stat().st_size:,} bytes)")
