"""`tandem run`: the daemon."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from agent.commands import complete
from agent.commands.options import ConfigFile, Overrides, strategy_overrides


def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    strategy: Annotated[
        str | None, typer.Option(help="Who decides: dqn, llm, fused or a baseline.", autocompletion=complete.strategy)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's summary as JSON at the end.")] = False,  # noqa: FBT002 - Typer's way to declare a flag
) -> None:
    """Run the daemon until it is told to stop."""
    import asyncio  # noqa: PLC0415 - loaded when the command runs, not for --help

    import structlog  # noqa: PLC0415 - same

    from agent.daemon import Daemon  # noqa: PLC0415 - same
    from agent.known_secrets import known_secrets  # noqa: PLC0415 - same
    from agent.logfile import LogFile  # noqa: PLC0415 - same
    from agent.logs import capture_uncaught, configure  # noqa: PLC0415 - same
    from agent.settings import load  # noqa: PLC0415 - same

    settings = load(config, [*(overrides or []), *strategy_overrides(strategy)])
    chosen_log = settings.log
    file = None
    if chosen_log.file is not None:
        file = LogFile(chosen_log.file, bytes_max=chosen_log.file_bytes_max, files_kept=chosen_log.files_kept)
    configure(style=chosen_log.format, level=chosen_log.level, secrets=known_secrets(settings), file=file)
    capture_uncaught()
    with asyncio.Runner() as runner:
        report = runner.run(Daemon(settings).run())
        structlog.get_logger("tandem.daemon").info("ended", reason=report.reason, closes=report.closes)
        if as_json:
            sys.stdout.write(json.dumps(asdict(report), default=str) + "\n")
        # worker threads may still wait for a silent venue: everything is committed, so they are abandoned
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
