"""`tandem train`: commands that make models. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.dqn.pipeline import Outcome
    from training.dqn.reference import OnProgress

app = typer.Typer(name="train", help="Train policies.", no_args_is_help=True)

_FAILED = 1
_WRONG_USAGE = 2


@app.callback()
def train() -> None:
    """Train policies."""


@app.command("dqn")
def dqn(
    out: Annotated[Path, typer.Option(help="Directory of the bundle; it must not exist yet.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; the daemon's will do.", show_default="defaults")
    ] = None,
    bars: Annotated[
        Path | None, typer.Option(help="Bars file, Parquet or CSV.", show_default="the exchange's market")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="default, attention, blog, tutorial, tuned or reference: which values to start from.",
            show_default="the file's",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="the file's")] = None,
    updates: Annotated[
        int | None, typer.Option(help="Gradient updates of each member.", show_default="the file's")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(help="Steps of the stable-baselines3 learner.", show_default="the file's")
    ] = None,
    budget_seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Stop learning after this time.", show_default="none")
    ] = None,
    symbols: Annotated[
        str | None, typer.Option(help="Symbols, separated by commas.", show_default="the file's")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="First bar, such as 2024-01-01 or 2024-01-01T09:30:00Z.", show_default="all")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Bars end before this.", show_default="all")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs.", show_default="none")] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints, history and report; goes on from it.", show_default="none"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the file; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Train one policy and write its bundle: split in time, train, export, check, validate."""
    _logs_to_stderr()
    with _one_screen():
        from training.data import load_market  # noqa: PLC0415 -- heavy: paid by this command alone
        from training.settings import load_training  # noqa: PLC0415 -- as above

        given = list(overrides or ())
        named = (
            ("training.preset", preset),
            ("training.seed", seed),
            ("training.dqn.updates", updates),
            ("training.timesteps", timesteps),
        )
        given += [f"{key}={value}" for key, value in named if value is not None]
        if symbols is not None:
            given.append(f"symbols={json.dumps([name.strip() for name in symbols.split(',')])}")
        configuration = load_training(config, given)
        market = load_market(configuration, bars=bars, start=_time("--start", start), end=_time("--end", end))

        from training.dqn.pipeline import train_policy  # noqa: PLC0415 -- torch, after everything was checked

        with _progress() as on_progress:
            outcome = train_policy(
                configuration,
                market,
                out,
                on_progress=on_progress,
                budget_s=budget_seconds,
                log_dir=tensorboard,
                run_dir=run,
                on_finding=lambda finding: typer.echo("\n".join(finding.lines()), err=True),
            )
    if as_json:
        typer.echo(json.dumps(_result(outcome), indent=2))
    else:
        _print(outcome)


@app.command("evaluate")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the results; it must not exist yet.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; the daemon's will do.", show_default="defaults")
    ] = None,
    bars: Annotated[
        Path | None, typer.Option(help="Bars file, Parquet or CSV.", show_default="the exchange's market")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Judge this bundle, on bars after its training.", show_default="train for every fold"),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Test windows.", show_default="the file's")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each fold.", show_default="the file's")] = None,
    window: Annotated[
        str | None, typer.Option(help="Training windows: expanding or rolling.", show_default="the file's")
    ] = None,
    symbols: Annotated[
        str | None, typer.Option(help="Symbols, separated by commas.", show_default="the file's")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="First bar, such as 2024-01-01 or 2024-01-01T09:30:00Z.", show_default="all")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Bars end before this.", show_default="all")] = None,
    trials: Annotated[
        Path | None, typer.Option(help="Count of all trials.", show_default="trials.jsonl beside the results")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the file; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Judge a policy on bars: walk-forward, rivals, intervals, leak controls. Exit code 1 where a leak is found."""
    _logs_to_stderr()
    with _one_screen():
        from training.data import load_market  # noqa: PLC0415 -- heavy: paid by this command alone
        from training.evaluation.command import evaluate as judge  # noqa: PLC0415 -- as above
        from training.evaluation.command import finished, learner  # noqa: PLC0415 -- as above
        from training.evaluation.settings import load_evaluation  # noqa: PLC0415 -- as above
        from training.evaluation.tables import print_result  # noqa: PLC0415 -- as above
        from training.settings import load_training  # noqa: PLC0415 -- as above

        given = list(overrides or ())
        named = (("folds", folds), ("seeds", seeds), ("window", window))
        given += [f"evaluation.{key}={value}" for key, value in named if value is not None]
        if symbols is not None:
            given.append(f"symbols={json.dumps([name.strip() for name in symbols.split(',')])}")
        settings, configuration = load_evaluation(config, given), load_training(config, given)
        market = load_market(configuration, bars=bars, start=_time("--start", start), end=_time("--end", end))
        candidate = learner(configuration, settings, market) if bundle is None else finished(bundle, market)
        with _progress("training") as on_trained:
            result = judge(configuration, settings, market, candidate, out, trials=trials, on_trained=on_trained)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        print_result(result)
    if not result.is_sound:
        leaks = ", ".join(control.name for control in result.controls if not control.passed)
        typer.echo(f"a leak was found ({leaks}): no number above is worth anything until it is mended", err=True)
        raise typer.Exit(_FAILED)


@app.command("bench")
def bench(
    worlds: Annotated[
        list[str] | None, typer.Option("--world", help="World to play in; repeatable.", show_default="all of them")
    ] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            help="Strategy, as name or name:param=value,...; repeatable.",
            show_default="all; with --train flat and random",
        ),
    ] = None,
    bundles: Annotated[
        list[Path] | None, typer.Option("--bundle", help="Folder of a model bundle; repeatable.", show_default="none")
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--train",
            help="Train and score a preset, as preset or preset:setting=value,...; repeatable.",
            show_default="none",
        ),
    ] = None,
    train_bars: Annotated[
        list[int] | None,
        typer.Option(min=2_000, max=10_000_000, help="Bars of a training; repeatable.", show_default="500000"),
    ] = None,
    train_seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Trainings of each preset, each on its own bars.")
    ] = 5,
    train_first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first training.")] = 1,
    ceiling: Annotated[bool, typer.Option("--ceiling", help="Add what features read linearly allow.")] = False,  # noqa: FBT002 -- Typer's flag
    bars: Annotated[int, typer.Option(min=100, max=1_000_000, help="Decisions on each path.")] = 20_000,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Paths, each of a seed of its own.")] = 16,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first path.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes.", show_default="one; with --train one a core"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="world.param=value; repeatable.", show_default="none")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Score strategies, bundles and presets by the share of the optimum that they capture where it is known."""
    _logs_to_stderr()
    with _one_screen(), _progress("scoring") as on_progress:
        from training.markets.suite import Trainings, load_worlds, run_bench  # noqa: PLC0415 -- heavy: this command's
        from training.markets.tables import print_report, result  # noqa: PLC0415 -- as above
        from training.markets.workers import cores  # noqa: PLC0415 -- as above

        chosen = load_worlds(overrides or ()).chosen(worlds or ())
        span = range(first_seed, first_seed + seeds)
        trainings = Trainings(
            recipes or (), train_bars or (500_000,), range(train_first_seed, train_first_seed + train_seeds)
        )
        reports = []
        for report in run_bench(
            chosen,
            strategies or (),
            bundles or (),
            bars=bars,
            seeds=span,
            trainings=trainings,
            ceiling=ceiling,
            processes=workers or min(cores(), max(len(trainings), 1)),
            on_progress=on_progress,
        ):
            reports.append(report)
            if not as_json:
                print_report(report, bars=bars, seeds=span)
    if as_json:
        typer.echo(
            json.dumps({"bars": bars, "seeds": list(span), "worlds": [result(one) for one in reports]}, indent=2)
        )


@app.command("world")
def world(
    name: Annotated[str, typer.Argument(help="World.", metavar="NAME")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; it must not exist yet.", show_default=False)],
    bars: Annotated[int, typer.Option(min=1, max=2_000_000, help="Bars.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the path.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="world.param=value; repeatable.", show_default="none")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Write bars of a world to train on, and the training's configuration beside them; the bench never plays them."""
    _logs_to_stderr()
    with _one_screen():
        from training.markets.suite import load_worlds, training_file, write_bars  # noqa: PLC0415 -- heavy

        (one,) = load_worlds(overrides or ()).chosen((name,))
        write_bars(one, one.path(bars, seed, "training").series, out)
    if as_json:
        written = {"bars": str(out), "config": str(training_file(out))}
        typer.echo(json.dumps({"world": name, "seed": seed, **written, "parameters": one.model_dump(mode="json")}))
    else:
        typer.echo(f"{bars} bars of {name}, seed {seed}, in {out}; its costs and shorts in {training_file(out)}")


@app.command("scenario")
def scenario(
    kind: Annotated[str, typer.Argument(help="bootstrap, regimes or volatility.", metavar="KIND")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; it must not exist yet.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; the daemon's will do.", show_default="defaults")
    ] = None,
    bars: Annotated[
        Path | None, typer.Option(help="Bars file, Parquet or CSV.", show_default="the exchange's market")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    block_bars: Annotated[float, typer.Option(min=1, help="Mean length of a block, bars.")] = 200,
    regime_bars: Annotated[
        str, typer.Option(help="Mean length of each regime of volatility, bars, calmest first.")
    ] = "400,100",
    regime_shares: Annotated[
        str, typer.Option(help="Share of the bars given that counts for each regime, calmest first.")
    ] = "0.7,0.3",
    window_bars: Annotated[int, typer.Option(min=1, help="Bars over which volatility is measured.")] = 100,
    factor: Annotated[float, typer.Option(min=0.01, max=100, help="Factor of the volatility.")] = 2.0,
    start: Annotated[
        str | None, typer.Option(help="First bar, such as 2024-01-01 or 2024-01-01T09:30:00Z.", show_default="all")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Bars end before this.", show_default="all")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the file; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Write bars that could have been: drawn again in blocks, in other regimes, or at another volatility."""
    _logs_to_stderr()
    with _one_screen():
        from brokers.configuration import ConfigurationError, did_you_mean  # noqa: PLC0415 -- heavy
        from training.data import load_market  # noqa: PLC0415 -- as above
        from training.scenario_files import KINDS, ScenarioOptions, make_scenario, write_scenario  # noqa: PLC0415 -- as above
        from training.settings import load_training  # noqa: PLC0415 -- as above

        chosen = next((one for one in KINDS if one == kind), None)
        if chosen is None:
            raise ConfigurationError(f"scenario {kind!r} does not exist{did_you_mean(kind, KINDS)}")
        options = ScenarioOptions(
            kind=chosen,
            seed=seed,
            block_bars=block_bars,
            regime_bars=_numbers("--regime-bars", regime_bars),
            source_shares=_numbers("--regime-shares", regime_shares),
            window_bars=window_bars,
            factor=factor,
        )
        configuration = load_training(config, list(overrides or ()))
        market = load_market(configuration, bars=bars, start=_time("--start", start), end=_time("--end", end))
        made, differences = make_scenario(market, options)
        write_scenario(made.series, out)
    if as_json:
        measures = [
            {"what": one.what, "source": one.source, "scenario": one.scenario, "allowed": one.allowed}
            for one in differences
        ]
        typer.echo(json.dumps({"bars": str(out), "kind": kind, "seed": seed, "measures": measures}, indent=2))
    else:
        count = sum(len(one) for one in made.series.values())
        typer.echo(
            f"{count} bars of {', '.join(made.series)} in {out}; all {len(differences)} measures of the gate pass"
        )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        typer.echo(f"{option} {text!r}: {error}; write 400,100", err=True)
        raise typer.Exit(_WRONG_USAGE) from None


@app.command("exits")
def exits(
    head: Annotated[bool, typer.Option("--head", help="Train the exit heads there, show their choices.")] = False,  # noqa: FBT002 -- Typer's flag
    trades: Annotated[
        int, typer.Option(min=500, max=200_000, help="With --head: trades of each world to learn.")
    ] = 60_000,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000, help="With --head: of trades and weights.")] = 1,
    error_bps: Annotated[
        float, typer.Option(min=0.2, help="With --head: largest standard error of a worth on fresh paths, bp.")
    ] = 0.5,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="world.param=value; repeatable.", show_default="none")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Show what every stop and take-profit is worth in four worlds that need four different ones, exactly."""
    _logs_to_stderr()
    with _one_screen():
        from training.markets.suite import load_exit_worlds  # noqa: PLC0415 -- heavy: paid by this command alone
        from training.markets.tables import exit_result, print_exits  # noqa: PLC0415 -- as above

        worlds = load_exit_worlds(overrides or ()).all()
        if head:
            from training.exits.bench import bench_heads  # noqa: PLC0415 -- torch
            from training.exits.tables import head_result, print_heads  # noqa: PLC0415 -- as above

            found = list(bench_heads(worlds, episodes=trades, seed=seed, error_bps=error_bps))
            if as_json:
                typer.echo(json.dumps([head_result(*one) for one in found], indent=2))
            else:
                print_heads(found)
            return
        tables = [(world, world.table()) for world in worlds]
        if as_json:
            typer.echo(json.dumps([exit_result(*one) for one in tables], indent=2))
        else:
            for one in tables:
                print_exits(*one)


@app.command("doctor")
def doctor(
    run: Annotated[Path, typer.Argument(help="Folder of a training, running or not.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Tell what goes wrong in a training, its likely causes by the evidence, and what to change."""
    _logs_to_stderr()
    with _one_screen():
        from training.dqn.doctor import as_result, as_text, diagnose, is_bad  # noqa: PLC0415 -- heavy

        findings = diagnose(run)
        typer.echo(json.dumps(as_result(run, findings), indent=2) if as_json else as_text(run, findings))
    if is_bad(findings):
        raise typer.Exit(_FAILED)


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a training, running or not.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="RUN/report.html")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,  # noqa: FBT002 -- Typer's flag
) -> None:
    """Write a training as one HTML page that loads nothing: findings, curves with their numbers, settings."""
    _logs_to_stderr()
    with _one_screen():
        from training.dqn.run_report import write_report  # noqa: PLC0415 -- heavy

        path = write_report(run, out)
        typer.echo(json.dumps({"report": str(path)}) if as_json else f"report in {path}")


def _time(option: str, text: str | None) -> Any:
    """Read an ISO date or time; a plain one is UTC."""
    from datetime import UTC, datetime  # noqa: PLC0415 -- beside its only use

    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        typer.echo(f"{option} {text!r}: {error}; write 2024-01-01 or 2024-01-01T09:30:00Z", err=True)
        raise typer.Exit(_WRONG_USAGE) from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def _logs_to_stderr() -> None:
    """Keep stdout for the result where nobody has configured logs."""
    import structlog  # noqa: PLC0415 -- heavy: paid by these commands alone

    if not structlog.is_configured():
        # looked up at each record, so that a stream replaced later is not written to after its end
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


@contextmanager
def _one_screen() -> Iterator[None]:
    """Turn what may go wrong into one message on stderr and an exit code: 2 for wrong settings, else 1."""
    from brokers.bars import BarsError  # noqa: PLC0415 -- heavy: paid by these commands alone
    from brokers.calendar import CalendarError  # noqa: PLC0415 -- as above
    from brokers.configuration import ConfigurationError  # noqa: PLC0415 -- as above
    from strategies.bundle import BundleError  # noqa: PLC0415 -- as above
    from training.errors import TrainingError  # noqa: PLC0415 -- as above

    try:
        yield
    except (ConfigurationError, CalendarError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_WRONG_USAGE) from None
    except (BarsError, BundleError, TrainingError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_FAILED) from None
    except ModuleNotFoundError as error:
        typer.echo(f"{error}: training needs the extra: pip install '.[train]' in the source folder", err=True)
        raise typer.Exit(_FAILED) from None


@contextmanager
def _progress(task_name: str = "training") -> Iterator[OnProgress]:
    """Show a progress bar on stderr, so that stdout holds the result alone."""
    from rich.console import Console  # noqa: PLC0415 -- heavy: paid by this command alone
    from rich.progress import Progress  # noqa: PLC0415 -- as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(task_name, total=None)

        def on_progress(done: int, planned: int) -> None:
            bar.update(task, completed=done, total=planned or None)

        yield on_progress


def _result(outcome: Outcome) -> dict[str, Any]:
    trained, bundle = outcome.trained, outcome.bundle
    return {
        "bundle": str(bundle.path),
        "id": bundle.id,
        "seed": bundle.manifest["seeds"][0],
        **trained.described(),
        "learning_cpu_s": round(trained.cpu_s, 3),
        "learning_wall_s": round(trained.wall_s, 3),
        "stopped_by_budget": trained.stopped_by_budget,
        "metrics": dict(bundle.manifest["metrics"]),
    }


def _print(outcome: Outcome) -> None:
    from rich.console import Console  # noqa: PLC0415 -- heavy: paid by this command alone
    from rich.table import Table  # noqa: PLC0415 -- as above

    manifest, trained = outcome.bundle.manifest, outcome.trained
    validation = manifest["metrics"]["validation"]
    span = manifest["data"]["validation"]
    table = Table(title=f"validation: {span['steps']} bars, {span['first_close']} to {span['last_close']}")
    table.add_column("rule")
    for name in ("bp per bar", "standard error", "sides per bar", "exposure"):
        table.add_column(name, justify="right")
    for name in ("policy", "flat", "buy_and_hold", "random"):
        one = validation[name]
        table.add_row(
            name.replace("_", " "),
            f"{one['mean_bps']:+.3f}",
            f"{one['error_bps']:.3f}",
            f"{one['turnover']:.4f}",
            f"{one['exposure']:.2f}",
        )
    console = Console()
    console.print(table)
    edge = manifest["metrics"].get("planted_edge")
    if edge is not None:
        console.print(
            f"planted edge after costs, size impact left out: {edge['visible_net_bps']:.2f} bp per bar by a simple "
            f"rule, {edge['known_net_bps']:.2f} with the deviation known"
        )
    console.print(
        f"{trained.updates} updates in {trained.cpu_s:.1f} CPU-s; bundle {outcome.bundle.id} in {outcome.bundle.path}",
        soft_wrap=True,
    )
