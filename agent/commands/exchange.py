"""`tandem exchange`: the Alpaca-compatible paper exchange for any client."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands.options import Overrides

if TYPE_CHECKING:
    from agent.settings import Settings
    from brokers.series import BarSeries

Text = str | None


def exchange(
    bars: Annotated[
        Path | None, typer.Option(help="Bars file to play (Parquet or CSV).", show_default="the synthetic market")
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 lets the system choose.", show_default="0")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    config: Annotated[Path | None, typer.Option(help="Configuration file.", show_default=False)] = None,
    calendar: Annotated[Text, typer.Option(help="24/7, or an exchange_calendars name.", show_default="24/7")] = None,
    period: Annotated[Text, typer.Option(help="Bar period, for example 5m.", show_default="as found")] = None,
    symbols: Annotated[Text, typer.Option(help="Comma-separated; all if not given.", show_default=False)] = None,
    start: Annotated[Text, typer.Option(help="Venue time of the start; earlier bars are history.")] = None,
    end: Annotated[Text, typer.Option(help="Bars from this time on are not played.")] = None,
    books: Annotated[Path | None, typer.Option(help="The exchange's books.", show_default="in memory")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of partial fills.", show_default="1")] = None,
    initial_cash: Annotated[Text, typer.Option(help="Cash of a new account.", show_default="100000")] = None,
    synthetic_bars: Annotated[int | None, typer.Option(help="Bars per symbol of the synthetic market.")] = None,
    synthetic_seed: Annotated[int | None, typer.Option(help="Seed of the synthetic market.")] = None,
    free_running: Annotated[
        float | None,
        typer.Option(help="Let time run by itself, at so many venue seconds per second.", show_default="stepped"),
    ] = None,
    key_id: Annotated[
        Text, typer.Option(envvar="TANDEM_EXCHANGE_KEY_ID", help="The only key let in.", show_default="any")
    ] = None,
    secret_key: Annotated[
        Text, typer.Option(envvar="TANDEM_EXCHANGE_SECRET_KEY", help="Its secret.", show_default="any")
    ] = None,
    answer_delay: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH=SECONDS: hold back a path's answers once the books are written; to test a client, repeatable."
        ),
    ] = None,
    overrides: Overrides = None,
    until_stdin_closes: Annotated[  # noqa: FBT002  a flag on the command line is a named boolean
        bool,
        typer.Option("--until-stdin-closes", help="End when standard input does: with the process that started it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,  # noqa: FBT002  a flag on the command line is a named boolean
) -> None:
    """Run the built-in paper exchange for any Alpaca client; stepped unless --free-running is given."""
    from agent.logs import configure  # noqa: PLC0415  heavy: paid by this command alone
    from agent.settings import load  # noqa: PLC0415  as above

    given = {
        "exchange.bars": bars,
        "exchange.port": port,
        "calendar": calendar,
        "period": period,
        "symbols": None if symbols is None else [name.strip() for name in symbols.split(",") if name.strip()],
        "exchange.start": _aware(start),
        "exchange.end": _aware(end),
        "exchange.books": books,
        "exchange.seed": seed,
        "exchange.initial_cash_usd": initial_cash,
        "exchange.synthetic.bars": synthetic_bars,
        "exchange.synthetic.seed": synthetic_seed,
    }
    spelled = [f"{key}={json.dumps(value, default=str)}" for key, value in given.items() if value is not None]
    settings = load(config, [*(overrides or []), *spelled])
    # logs go to stderr: the first line of stdout is the ready line
    configure(style=settings.log.format, level="warning")
    if until_stdin_closes:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    known_period = settings.bar_period if config is not None or period is not None or bars is None else None
    _serve(
        settings,
        host=host,
        period=known_period,
        books=settings.exchange.books if config is not None or books is not None else None,
        free_running=free_running,
        keys=(key_id, secret_key),
        answer_delay_s=_delays(answer_delay or []),
        as_json=as_json,
    )


def _serve(
    settings: Settings,
    *,
    host: str,
    period: timedelta | None,
    books: Path | None,
    free_running: float | None,
    keys: tuple[Text, Text],
    answer_delay_s: dict[str, float],
    as_json: bool,
) -> None:
    from agent.commands.errors import CommandError  # noqa: PLC0415  paid by this command alone
    from agent.exchange import load_series, make_engine  # noqa: PLC0415  as above
    from brokers.simulated.server import ServerOptions, serve  # noqa: PLC0415  as above
    from brokers.simulated.sqlite_books import SqliteBooks  # noqa: PLC0415  as above

    series = load_series(settings, period=period)
    if not series:
        raise CommandError("no bars to play: check exchange.bars, symbols and exchange.end")
    try:
        options = ServerOptions(
            host=host,
            port=settings.exchange.port,
            key_id=keys[0],
            secret_key=keys[1],
            acceleration=free_running,
            answer_delay_s=answer_delay_s,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    engine = make_engine(
        settings,
        series,
        period=period or _found_period(series),
        books=None if books is None else SqliteBooks(books),
    )

    def ready(url: str) -> None:
        now = engine.now.isoformat().replace("+00:00", "Z")
        facts = {
            "url": url,
            "now": now,
            "symbols": list(engine.feed.symbols),
            "books": None if books is None else str(books),
            "stepped": free_running is None,
        }
        played = f"{', '.join(engine.feed.symbols)} from {now}"
        typer.echo(json.dumps(facts) if as_json else f"exchange ready at {url} playing {played}")

    serve(engine, options, on_ready=ready)


def _end_with_stdin() -> None:
    """Stop this process when the one that started it is gone, however it ended: the pipe then closes."""
    # not sys.stdin: a thread that waits inside it holds its lock, and the interpreter then cannot end
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _delays(spelled: list[str]) -> dict[str, float]:
    """Read `/v2/orders=0.1` and the like."""
    from agent.settings import ConfigurationError  # noqa: PLC0415  paid by this command alone

    delays: dict[str, float] = {}
    for item in spelled:
        path, _, seconds = item.partition("=")
        if not path.startswith("/") or not seconds.replace(".", "", 1).isdecimal():
            raise ConfigurationError(f"--answer-delay {item!r}: write PATH=SECONDS, for example /v2/orders=0.1")
        delays[path] = float(seconds)
    return delays


def _found_period(series: dict[str, BarSeries]) -> timedelta:
    from brokers.bars import infer_period  # noqa: PLC0415  paid by this command alone

    return infer_period((bars.start_ns for bars in series.values()), "the bars file")


def _aware(text: Text) -> Text:
    """Read a date or time without zone as UTC, so that `--start 2024-01-01` works."""
    if text is None:
        return None
    from agent.settings import ConfigurationError  # noqa: PLC0415  paid by this command alone

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is not a time: write for example 2024-01-01 or 2024-01-01T12:00:00Z"
        raise ConfigurationError(msg) from None
    return (at.isoformat() + "+00:00") if at.tzinfo is None else at.isoformat()
