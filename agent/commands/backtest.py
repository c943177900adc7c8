"""`tandem backtest`: recorded bars through the live cycle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.commands import complete
from agent.commands.errors import CommandError
from agent.commands.options import AsJson, ConfigFile, Overrides, strategy_overrides

if TYPE_CHECKING:
    from agent.replay import ReplayResult
    from agent.settings import Settings
    from brokers.series import BarSeries

LEDGER_FILE = "ledger.sqlite"
REPORT_FILE = "report.html"
_WAYS = {
    "fast": "fast replay: bars in which nothing could happen were passed over (--exact runs the live cycle on each)",
    "exact": "exact replay: the live cycle on every bar",
}


def backtest(
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    bars: Annotated[Path | None, typer.Option(help="Bars file, Parquet or CSV.", show_default="exchange.bars")] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Trading starts at this time; earlier bars are history.", show_default="first bar"),
    ] = None,
    end: Annotated[str | None, typer.Option(help="Bars end before this time.", show_default="last bar")] = None,
    symbols: Annotated[str | None, typer.Option(help="Symbols, separated by commas.", show_default="all")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="dqn, llm, fused or a baseline.",
            show_default="strategy.name of the file",
            autocompletion=complete.strategy,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Run the live cycle on every bar.")] = False,  # noqa: FBT002 - a flag on the command line is a named boolean
    keep_ledger: Annotated[  # noqa: FBT002 - as above
        bool,
        typer.Option("--keep-ledger", help=f"With --exact, which it implies: keep {LEDGER_FILE}, for status and why."),
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - as above
) -> None:
    """Replay recorded bars; write decisions, trades, equity, metrics and a report.

    Bars in which nothing can happen are passed over; all others take the live gate, sizing and exchange. A time without
    a zone is taken as UTC.
    """
    from agent.commands.operate import parse_time  # noqa: PLC0415 - paid by the command alone
    from agent.commands.screen import print_json  # noqa: PLC0415 - as above
    from agent.logs import configure  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    given = list(overrides or [])
    given += [] if bars is None else [f"exchange.bars={json.dumps(str(bars))}"]
    given += strategy_overrides(strategy)
    times = {"exchange.start": start, "exchange.end": end}
    given += [f"{key}={parse_time(text)[0].isoformat()}" for key, text in times.items() if text is not None]
    if symbols is not None:
        given.append(f"symbols={json.dumps([name.strip() for name in symbols.split(',')])}")
    settings = load(config, given)
    configure(level="warning")
    if settings.exchange.bars is None:
        raise CommandError("no bars: name a file with --bars, or in exchange.bars")
    metrics = _replay(settings, out, exact=exact, keep_ledger=keep_ledger)
    if as_json:
        print_json({"out": str(out), **metrics})
    else:
        _tell(metrics, settings, out)


def _replay(settings: Settings, out: Path, *, exact: bool, keep_ledger: bool) -> Mapping[str, Any]:
    from agent.exchange import load_series  # noqa: PLC0415 - Polars and the engine

    series = load_series(settings, period=settings.bar_period)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        metrics = None
        if not (exact or keep_ledger):
            metrics = _replay_fast(settings, series, out)
        return _replay_exact(settings, series, out, keep_ledger=keep_ledger) if metrics is None else metrics
    except BaseException:  # an interruption too: an empty folder tells nothing
        if is_new:
            with suppress(OSError):  # something was written: that stays
                out.rmdir()
        raise


def _replay_fast(settings: Settings, series: Mapping[str, BarSeries], out: Path) -> Mapping[str, Any] | None:
    """Replay without passing every bar; None where that is not possible, which is said."""
    from agent.fast_replay import NotFastError, fast_replay  # noqa: PLC0415 - Polars and the engine
    from agent.replay import write_result  # noqa: PLC0415 - as above
    from agent.report import write_report  # noqa: PLC0415 - as above
    from agent.report.sources import from_replay  # noqa: PLC0415 - as above

    try:
        with _progress() as progress:
            result = fast_replay(settings, series, progress=progress)
    except NotFastError as reason:
        typer.echo(f"running the live cycle on every bar, as with --exact: {reason}", err=True)
        return None
    _remove_ledger(out)  # it would tell of another replay
    write_result(result, out)
    write_report(out / REPORT_FILE, from_replay(settings, result, series))
    return result.metrics


def _replay_exact(
    settings: Settings, series: Mapping[str, BarSeries], out: Path, *, keep_ledger: bool
) -> Mapping[str, Any]:
    from agent.replay import replay, write_result  # noqa: PLC0415 - Polars and the engine

    with _ledger_file(out, keep=keep_ledger) as ledger_url:
        with _progress() as progress:
            result = replay(settings, series, ledger_url=ledger_url, explains=keep_ledger, progress=progress)
        write_result(result, out)
        _report(ledger_url, series, result, out)
    _tell_unrecorded(result)
    return result.metrics


def _tell_unrecorded(result: ReplayResult) -> None:
    """Say where the language model had no voice for lack of recorded answers: the result is that of the others."""
    from strategies.strategy import Reason  # noqa: PLC0415 - loaded by the replay

    sign = f'"abstained": "{Reason.LLM_NOT_RECORDED.value}"'
    silent = int(result.decisions["votes"].str.contains(sign, literal=True).sum())
    if silent:
        typer.echo(
            f"the language model abstained on {silent} of {result.decisions.height} decisions, whose answers were "
            f"never recorded ({Reason.LLM_NOT_RECORDED.value}): name what holds them in llm.recorded",
            err=True,
        )


def _report(ledger_url: str, series: Mapping[str, BarSeries], result: ReplayResult, out: Path) -> None:
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - loaded by the replay
    from agent.report import from_ledger, write_report  # noqa: PLC0415 - paid by the command alone

    ledger = open_ledger(ledger_url, create=False)
    try:
        data = from_ledger(ledger, series=series, decisions=result.decisions, equity=result.equity)
    finally:
        ledger.close()
    write_report(out / REPORT_FILE, data)


@contextmanager
def _ledger_file(out: Path, *, keep: bool) -> Iterator[str]:
    """Give the URL of the replay's ledger: a file in the folder, or one that is gone once the report is written."""
    if not keep:
        with TemporaryDirectory(prefix=".ledger-", dir=out) as folder:
            yield f"sqlite:///{(Path(folder) / LEDGER_FILE).resolve()}"
        return
    _remove_ledger(out)  # a replay never continues another one
    try:
        yield f"sqlite:///{(out / LEDGER_FILE).resolve()}"
    except BaseException:
        _remove_ledger(out)  # half of a replay explains nothing
        raise


def _remove_ledger(out: Path) -> None:
    for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-shm"):
        (out / name).unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """Give what shows progress on stderr where somebody watches; nothing elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - paid by the command alone
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - as above

    columns = (TextColumn("replay"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("replay", total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def _tell(metrics: Mapping[str, Any], settings: Settings, out: Path) -> None:
    from agent.commands.screen import Screen, money  # noqa: PLC0415 - paid by the command alone

    screen = Screen()
    names = ", ".join(metrics["symbols"])
    screen.say(f"{metrics['strategy']} on {names}, {metrics['closes']} closes of {settings.period}")
    measured = metrics["performance"]
    rows = [("decisions", str(metrics["decisions"])), ("executions", str(metrics["trades"]))]
    if measured is not None:
        rows += [
            ("total return", _percent(measured["total_return"])),
            ("annual growth", _percent(measured["cagr"])),
            ("annual volatility", _percent(measured["volatility"])),
            ("Sharpe ratio", _with_error(measured["sharpe"], measured["sharpe_se"])),
            ("largest drawdown", f"{_percent(measured['max_drawdown'])}, {measured['max_drawdown_days']:.1f} days"),
            ("mean exposure", _percent(measured["exposure"])),
            ("annual turnover", f"{measured['turnover']:.1f} x equity"),
            ("round trips", f"{measured['round_trips']}, {_percent(measured['win_rate'])} with a profit"),
            ("fees", f"{money(measured['fees'])} USD"),
        ]
    else:
        rows.append(("not measured", str(metrics["not_measured"])))
    if metrics["incidents"]:
        rows.append(("incidents", ", ".join(f"{kind} {count}" for kind, count in metrics["incidents"].items())))
    screen.pairs(rows)
    screen.say(f"wrote {', '.join(sorted(path.name for path in out.iterdir() if not path.name.startswith('.')))}")
    screen.say(f"in {out}")
    screen.say(_WAYS[metrics["replay"]])


def _percent(fraction: float | None) -> str:
    return "not defined" if fraction is None else f"{fraction:.2%}"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f} (standard error)"
