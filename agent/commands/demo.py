"""`tandem demo`: offline, no account. Trains a small champion if there is none, then runs the real daemon.

Nothing is faked for the show: the champion is trained by `tandem train dqn` on the part of a synthetic market
that lies before the play, promoted into a registry slot, and served to the daemon, which trades it against
the exchange process over HTTP. No order is forced.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.commands.options import Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from agent.daemon import DaemonReport
    from agent.settings import Settings

SLOT = "demo"
HISTORY_BARS = 20_000
"""Bars before the play: training, and memory of the features."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for models, ledgers and books.")] = Path("var/demo"),
    bars: Annotated[int, typer.Option(min=20, max=20_000, help="Bars to play.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of market and training.")] = 7,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train a new champion even if there is one.")] = False,  # noqa: FBT002 - Typer's way to declare a flag
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,  # noqa: FBT002 - same
) -> None:
    """Offline, no account: train a small champion, run the daemon, tell what happened."""
    from rich.console import Console  # noqa: PLC0415 - loaded when the command runs, not for --help

    from agent.logs import configure  # noqa: PLC0415 - same

    configure(style="console", level="warning", secrets=[])
    console = Console(stderr=True)
    began = time.monotonic()
    folder = _new_run_folder(out)
    try:
        config = _write_config(out, folder, bars, seed, overrides or [])
        settings = _load(config)
        champion = _champion(settings, config, out, console, retrain=retrain)
    except BaseException:  # an interruption too: nothing has been played
        shutil.rmtree(folder, ignore_errors=True)  # the first error is the one to tell
        raise
    report = _play(settings, bars, console)
    page = _write_report(settings, folder)
    facts = _facts(settings, config, folder, champion, report, time.monotonic() - began)
    facts["report"] = str(page)
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _tell(facts)


def _new_run_folder(out: Path) -> Path:
    """Make the next `run-NNN`: an earlier demo's ledger is never touched."""
    numbers = [int(path.name[4:]) for path in out.glob("run-*") if path.name[4:].isdigit()]
    folder = out / f"run-{max(numbers, default=0) + 1:03d}"
    folder.mkdir(parents=True)
    return folder


def _write_config(out: Path, folder: Path, bars: int, seed: int, overrides: list[str]) -> Path:
    """Write the run's settings as a file, so that every other command can be pointed at it."""
    import yaml  # noqa: PLC0415 - loaded when the command runs

    from brokers.configuration import apply_overrides  # noqa: PLC0415 - same

    content: dict[str, Any] = {
        "account_scope": "demo",
        "symbols": ["ALFA", "BRAVO", "CHARLIE"],
        "period": "5m",
        "calendar": "24/7",
        "exchange": {
            "synthetic": {"bars": HISTORY_BARS + bars, "seed": seed, "edge": True},
            "books": str(folder / "exchange.sqlite"),
            "seed": seed,
        },
        "strategy": {"name": "dqn", "slot": SLOT, "models": str(out / "models"), "data_feed": "synthetic"},
        "sizing": {"max_fraction": 0.3},
        "ledger": {"url": f"sqlite:///{folder / 'tandem.sqlite'}"},
        "daemon": {"max_bars": bars, "bar_store": str(folder / "bars")},
        "training": {"seed": seed, "data_feed": "synthetic"},
    }
    content = apply_overrides(content, overrides)
    begins = _play_start(content)  # checks the settings first
    content["exchange"].setdefault("start", begins.isoformat())
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _play_start(content: dict[str, Any]) -> Any:
    """Return where the play begins: the end of the history, in bars of the synthetic market."""
    from agent.exchange import synthetic_settings  # noqa: PLC0415 - loaded when the command runs
    from agent.settings import Settings  # noqa: PLC0415 - same
    from brokers.configuration import validate  # noqa: PLC0415 - same

    settings = validate(Settings, content, source="the demo's settings")
    return synthetic_settings(settings).start + HISTORY_BARS * settings.bar_period


def _load(config: Path) -> Settings:
    from agent.settings import load  # noqa: PLC0415 - loaded when the command runs

    return load(config)


def _champion(settings: Settings, config: Path, out: Path, console: Console, *, retrain: bool) -> dict[str, Any]:
    """Return the slot's champion; train and promote one where there is none."""
    from datetime import UTC, datetime  # noqa: PLC0415 - loaded when the command runs

    from strategies.bundle import Bundle, BundleError, Registry  # noqa: PLC0415 - same

    registry = Registry(settings.strategy.models)
    if not retrain:
        try:
            bundle = registry.load_slot(SLOT, data_feed=settings.strategy.data_feed)
        except BundleError:
            bundle = None
        if bundle is not None:
            console.print(f"champion: {bundle.id} (from an earlier demo)")
            return {"id": bundle.id, "trained_now": False, "metrics": bundle.manifest.get("metrics", {})}
    console.print("training a champion on the market's past (`tandem train dqn`)")
    fresh = out / "models" / f".training-{int(time.time() * 1000)}"
    try:
        _train(config, fresh)
        bundle = registry.add(Bundle.load(fresh, data_feed=settings.strategy.data_feed))
    finally:
        if fresh.exists():  # the registry has a copy of its own
            shutil.rmtree(fresh)
    registry.promote(SLOT, bundle.id, at=datetime.now(UTC), reason="demo: first champion")
    return {"id": bundle.id, "trained_now": True, "metrics": bundle.manifest.get("metrics", {})}


def _train(config: Path, target: Path) -> None:
    """Run `tandem train dqn` as the command it is: the daemon's package never imports the trainer's."""
    import subprocess  # noqa: PLC0415 - loaded when the command runs

    from agent.commands.errors import CommandError  # noqa: PLC0415 - same

    command = [sys.executable, "-m", "agent.cli", "train", "dqn", "--config", str(config), "--out", str(target)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - our own command line, no shell
    if done.returncode:
        raise CommandError(
            f"training ended with code {done.returncode}: see the lines above; "
            "it needs the `train` extra (in the source folder: pip install '.[train]')"
        )


def _play(settings: Settings, bars: int, console: Console) -> DaemonReport:
    import asyncio  # noqa: PLC0415 - loaded when the command runs

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from agent.daemon import Daemon  # noqa: PLC0415 - same

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("daemon: bars decided", total=bars)
        return asyncio.run(Daemon(settings, progress=lambda _parts, _report: progress.advance(task)).run())


def _write_report(settings: Settings, folder: Path) -> Path:
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - loaded when the command runs
    from agent.report import from_ledger, write_report  # noqa: PLC0415 - same

    ledger = open_ledger(settings.ledger.url, create=False)
    try:
        data = from_ledger(ledger, bar_store=settings.daemon.bar_store)
    finally:
        ledger.close()
    write_report(folder / "report.html", data)
    return folder / "report.html"


def _facts(
    settings: Settings, config: Path, folder: Path, champion: dict[str, Any], report: DaemonReport, seconds: float
) -> dict[str, Any]:
    """Read what happened from the ledger: the demo tells nothing that the ledger does not hold."""
    from sqlalchemy import func, select  # noqa: PLC0415 - loaded when the command runs

    from agent.ledger import schema  # noqa: PLC0415 - same
    from agent.ledger.store import open_ledger  # noqa: PLC0415 - same
    from strategies.strategy import Reason  # noqa: PLC0415 - same

    ledger = open_ledger(settings.ledger.url, create=False)
    try:
        actions = ledger.rows(
            select(schema.decisions.c.action, func.count().label("n")).group_by(schema.decisions.c.action)
        )
        outcomes = ledger.rows(
            select(schema.decisions.c.outcome, func.count().label("n")).group_by(schema.decisions.c.outcome)
        )
        legs = ledger.rows(select(schema.fills.c.leg, func.count().label("n")).group_by(schema.fills.c.leg))
        orders = ledger.rows(select(schema.orders.c.state).where(schema.orders.c.parent_client_id.is_(None)))
        costs = ledger.rows(select(schema.costs.c.predicted_fraction, schema.costs.c.realised_fraction))
        incidents = ledger.rows(select(schema.incidents.c.kind))
        first_bar = ledger.first(select(schema.decisions).order_by(schema.decisions.c.close_time).limit(1))
        traded = ledger.first(
            select(schema.decisions)
            .where(schema.decisions.c.outcome == Reason.TRADED.value)
            .order_by(schema.decisions.c.close_time)
        )
        hold = _buy_and_hold(ledger)
    finally:
        ledger.close()
    pairs = [(row.predicted_fraction, row.realised_fraction) for row in costs]
    known = [(p, r) for p, r in pairs if p is not None and r is not None]
    start, end = report.equity_start_usd, report.equity_end_usd
    change = float(end / start - 1) if start is not None and end is not None else None
    shown = traded if traded is not None else first_bar
    return {
        "champion": champion,
        "bars": report.closes,
        "decisions": {row.action: row.n for row in actions},
        "outcomes": {row.outcome: row.n for row in outcomes},
        "orders": len(orders),
        "orders_forced": 0,
        "fills": {row.leg: row.n for row in legs},
        "incidents": sorted({row.kind for row in incidents}),
        "equity_start_usd": None if start is None else float(start),
        "equity_end_usd": None if end is None else float(end),
        "return": change,
        "buy_and_hold_return": hold,
        "cost_bps": {
            "predicted": _mean_bps([p for p, _ in known]),
            "realised": _mean_bps([r for _, r in known]),
        },
        "ready_s": round(report.ready_s, 3),
        "cycle_s_median": round(report.cycle_s_median, 5),
        "seconds": round(seconds, 1),
        "config": str(config),
        "ledger": settings.ledger.url,
        "folder": str(folder),
        "example": None if shown is None else {"symbol": shown.symbol, "close_time": shown.close_time.isoformat()},
    }


def _mean_bps(fractions: list[float]) -> float | None:
    return round(1e4 * sum(fractions) / len(fractions), 3) if fractions else None


def _buy_and_hold(ledger: Any) -> float | None:
    """Return the mean return of the symbols over the play, before costs; None where nothing was seen."""
    from sqlalchemy import select  # noqa: PLC0415 - loaded when the command runs

    from agent.ledger import schema  # noqa: PLC0415 - same

    prices: dict[str, list[float]] = {}
    question = select(schema.decisions.c.symbol, schema.decisions.c.reference_price)
    for row in ledger.rows(question.order_by(schema.decisions.c.close_time)):
        if row.reference_price is not None:
            prices.setdefault(row.symbol, []).append(row.reference_price)
    if not prices:
        return None
    return sum(seen[-1] / seen[0] - 1 for seen in prices.values()) / len(prices)


def _edge(planted: dict[str, float] | None) -> str:
    """Say what the market's planted edge is worth, and what of it prices show."""
    if not planted:
        return "none"
    known, visible = planted["known_net_bps"], planted["visible_net_bps"]
    return f"{known:.2f} bp per bar after costs for who knows it, {visible:.2f} by a rule on the visible price"


def _tell(facts: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - loaded when the command runs
    from rich.table import Table  # noqa: PLC0415 - same

    console = Console()
    table = Table(title="What the daemon did", show_header=False)
    validation = facts["champion"]["metrics"].get("validation", {}).get("policy", {})
    made = "trained now" if facts["champion"]["trained_now"] else "from an earlier demo"
    rows = [
        ("champion", f"{facts['champion']['id']} ({made})"),
        ("its validation", f"{validation.get('mean_bps', float('nan')):.2f} bp per bar after costs, flat is 0"),
        ("planted edge", _edge(facts["champion"]["metrics"].get("planted_edge"))),
        ("bars decided", f"{facts['bars']:,}"),
        ("decisions", ", ".join(f"{name} {count:,}" for name, count in sorted(facts["decisions"].items()))),
        ("orders", f"{facts['orders']} (forced: {facts['orders_forced']})"),
        ("fills", ", ".join(f"{name} {count}" for name, count in sorted(facts["fills"].items())) or "none"),
        ("return", f"{facts['return']:+.2%}; buy and hold {facts['buy_and_hold_return']:+.2%}"),
        (
            "cost per side",
            f"{facts['cost_bps']['realised']} bp realised, {facts['cost_bps']['predicted']} bp predicted",
        ),
        ("incidents", ", ".join(facts["incidents"]) or "none"),
        ("start to ready", f"{facts['ready_s']} s"),
        ("decision cycle", f"{1000 * facts['cycle_s_median']:.1f} ms (median)"),
        ("took", f"{facts['seconds']} s"),
    ]
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)
    example = facts["example"]
    where = f"tandem status -c {facts['config']}"
    if example is not None:
        where += f"   and   tandem why {example['symbol']} {example['close_time']} -c {facts['config']}"
    sys.stdout.write(f"look further: {where}\nas a page: {facts['report']}\n")
