"""`tandem doctor`: is this machine, with these settings, ready to run a daemon?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from agent.commands.errors import FAILED
from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from agent.commands.checks import Check


def doctor(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Check the installation, settings, ledger, bars, model and venue, each with its remedy; exit code 1 on a failure.

    Nothing is traded and nothing is changed. The venue is asked only where a URL or keys are configured.
    """
    from agent.commands.checks import Check, check_all, check_installation  # noqa: PLC0415 - paid by the command alone
    from agent.logs import configure  # noqa: PLC0415 - as above
    from agent.settings import ConfigurationError, load  # noqa: PLC0415 - as above

    configure(level="error")
    try:
        settings = load(config, overrides or [])
    except ConfigurationError as error:
        found = [*check_installation(), Check("settings", "fail", str(error), "correct the keys named")]
    else:
        found = check_all(settings)
    tell(found, as_json=as_json)


def tell(found: Sequence[Check], *, as_json: bool) -> None:
    """Write the findings.

    Raises:
        Exit: With code 1 where one of them is a failure.
    """
    from agent.commands.screen import Screen, print_json  # noqa: PLC0415 - paid by the command alone

    counts = {status: sum(check.status == status for check in found) for status in ("ok", "warn", "fail")}
    if as_json:
        print_json({"ok": not counts["fail"], "checks": [asdict(check) for check in found]})
    else:
        screen = Screen()
        rows = [
            (check.status.upper(), check.name, check.detail + (f"; {check.remedy}" if check.remedy else ""))
            for check in found
        ]
        screen.table(("", "check", "found"), rows)
        screen.say(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
    if counts["fail"]:
        raise typer.Exit(FAILED)
