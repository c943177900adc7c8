"""The guard around the command line: what a user can mend becomes one screen, everything else a traceback.

Error types are recognised by name, so that no command pays for importing the rooms of another.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_STDERR = 2
"""Number of the last standard stream."""
_INTERRUPTED = 130
"""What the command-line parser makes of Ctrl-C."""

USER_ERRORS = frozenset(
    {
        "AuthError",
        "BarStoreError",
        "BarsError",
        "BaselineError",
        "BooksError",
        "BrokerError",
        "BundleError",
        "CalendarError",
        "CommandError",
        "ConfigurationError",
        "DecisionError",
        "FeatureError",
        "FeedError",
        "HealthServerError",
        "LedgerError",
        "PerformanceError",
        "PromotionError",
        "RejectedError",
        "ReportError",
        "ServerError",
        "SizingError",
        "StartError",
        "TrainingError",
        "UnavailableError",
    }
)
"""Class names (of the error or of a base) whose message names the thing, the value and the remedy."""


class CommandError(Exception):
    """A command cannot do what was asked; the message says why and what to do."""


def run_guarded(app: Any) -> int:
    """Run a Typer app and return the exit code: 0 done, 1 failed, 2 wrong usage."""
    mend_streams()
    try:
        result = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last guard: told in one screen or as a traceback
        return _told(error)
    if result == _INTERRUPTED:
        sys.stderr.write("interrupted\n")
        return FAILED
    return int(result) if isinstance(result, int) and not isinstance(result, bool) else DONE


def mend_streams() -> None:
    """Let results and errors be written wherever the process was started.

    A stream that was closed becomes the null device: a database must not get its number. What a terminal's
    encoding cannot show is escaped.
    """
    free = os.open(os.devnull, os.O_RDWR)
    while free <= _STDERR:
        free = os.open(os.devnull, os.O_RDWR)
    os.close(free)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _told(error: Exception) -> int:
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # usage errors of the command-line parser
        error.show()
        return int(error.exit_code)
    if type(error).__name__ in {"Exit", "Abort"}:
        return int(getattr(error, "exit_code", FAILED))
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & USER_ERRORS:
        sys.stderr.write(f"error: {error}\n")
        return WRONG_USAGE if "ConfigurationError" in names else FAILED
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(f"error: {error.strerror or error}{where}: check the path, its permissions and free space\n")
        return FAILED
    traceback.print_exception(error)
    sys.stderr.write("error: this is a fault of the program; the lines above say where\n")
    return FAILED
