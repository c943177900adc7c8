"""Logs: structlog for people (console) or machines (JSON lines), through one redacting, bounded, final stage.

Records of the standard library (APScheduler, uvicorn, the venue's client) take the same way. Redaction works on the
rendered line as well as on the values in it, so a secret inside an exception's text, a nested mapping, a key or a
library's message is replaced like any other. Logs go to stderr, and to a file where one is named; stdout belongs to
results.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from agent.logfile import LogFile
from agent.redaction import REDACTED, Redactor, is_secret_name

__all__ = ["REDACTED", "Redactor", "capture_uncaught", "configure", "is_secret_name"]

TEXT_LENGTH_MAX = 2_000
"""Characters of one value."""
TRACE_LENGTH_MAX = 8_000
"""Characters of one exception's text: its beginning and its end are kept."""
RECORD_LENGTH_MAX = 16_000
"""Characters of all values of one record together."""
DEPTH_MAX = 6
"""Nesting of mappings and sequences."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_EXCEPTION_KEYS = frozenset({"exception", "stack"})


def configure(
    *,
    style: Literal["console", "json"] = "console",
    level: str = "info",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    file: LogFile | None = None,
) -> Redactor:
    """Configure structlog and the standard library's root logger; replaces an earlier configuration.

    Args:
        style: `console` for people, `json` for one JSON object a line.
        level: Least level that is written (`debug`, `info`, `warning`, `error`).
        secrets: Values that must never appear.
        stream: Where to write; stderr where None.
        file: Where to write as well.

    Returns:
        The redactor, for other ways out of the process.
    """
    redactor = Redactor(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]

    def formatter(*, colours: bool) -> logging.Formatter:
        renderer: Processor
        if style == "json":
            renderer = structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False)
        else:
            renderer = structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _Bounded(redactor), renderer],
        )

    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _RedactingHandler)]:
        root.removeHandler(old)
        old.close()
    handler = _RedactingHandler(stream, redactor)
    handler.setFormatter(formatter(colours=(sys.stderr if stream is None else stream).isatty()))
    root.addHandler(handler)
    if file is not None:
        in_file = _FileHandler(file, redactor)
        in_file.setFormatter(formatter(colours=False))
        root.addHandler(in_file)
    root.setLevel(level.upper())
    for noisy in ("alembic", "apscheduler", "httpcore", "httpx", "uvicorn.access", "urllib3", "websockets"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # module-level loggers must follow a later configuration (another level, secrets that are read later)
        cache_logger_on_first_use=False,
    )
    return redactor


def capture_uncaught() -> None:
    """Log uncaught exceptions of the main and of other threads, and warnings, instead of printing them raw."""
    log = structlog.stdlib.get_logger("uncaught")

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            log.warning("interrupted")
            return
        log.critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or issubclass(args.exc_type, SystemExit):
            return
        thread = args.thread.name if args.thread is not None else "unknown"
        log.critical("uncaught exception", thread=thread, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            log.error(
                "exception that could not be raised", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
            )

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
    logging.captureWarnings(capture=True)


class _Bounded:
    """Last processor before the renderer: redacts and cuts every key and value of one record."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def __call__(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        walk = _Walk(self._redactor)
        first = ("timestamp", "level", "logger", "event")  # what must survive when the record is too long
        ordered = [key for key in first if key in event_dict] + [key for key in event_dict if key not in first]
        return {walk.line(str(key)): walk.field(str(key), event_dict[key]) for key in ordered}


class _Walk:
    """Walks one record, with one budget of characters for all of it."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._left = RECORD_LENGTH_MAX

    def field(self, key: str, value: Any, depth: int = 0) -> Any:
        if value is not None and is_secret_name(key):
            return REDACTED
        if depth == 0 and key in _EXCEPTION_KEYS:
            return self._cut(_escape(self._redactor.text(str(value))), TRACE_LENGTH_MAX)
        return self.value(value, depth)

    def value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            shown = self._redactor.text(repr(value))
            return value if shown == repr(value) else shown  # a secret may be all digits
        if self._left <= 0 or depth > DEPTH_MAX:
            return "[cut]"
        if isinstance(value, Mapping):
            return {
                self.line(str(key)): self.field(str(key), item, depth + 1) for key, item in self._some(value.items())
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in self._some(value)]
        return self.line(_text(value))

    def line(self, text: str) -> str:
        """Return redacted text on one line: outside words cannot forge a second record."""
        return self._cut(_escape(self._redactor.text(text)).replace("\n", "\\n"), TEXT_LENGTH_MAX)

    def _some(self, items: Iterable[Any]) -> Iterable[Any]:
        for item in items:
            if self._left <= 0:
                return
            self._left -= 1  # empty items cost something too
            yield item

    def _cut(self, text: str, length_max: int) -> str:
        length = min(length_max, max(self._left, 0))
        self._left -= min(len(text), length)
        if len(text) <= length:
            return text
        half = length // 2
        return f"{text[:half]} [... {len(text) - 2 * half} characters cut ...] {text[len(text) - half :]}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  # logging an object must not fail because its __str__ does
        return f"<{type(value).__name__} whose text failed: {type(error).__name__}>"


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


class _RedactingHandler(logging.StreamHandler[TextIO]):
    """Redacts the rendered line once more, and reports its own failures without the record's content."""

    def __init__(self, stream: TextIO | None, redactor: Redactor) -> None:
        super().__init__(stream)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[0]
        kind = error.__name__ if error is not None else "unknown error"
        try:
            sys.stderr.write(f"a log record of {record.name} could not be written: {kind}\n")
        except (OSError, ValueError):
            return  # stderr itself is gone: there is nowhere left to say it


class _FileHandler(_RedactingHandler):
    """Writes to a file that may be renamed under it; a record that cannot be written is told on stderr."""

    def __init__(self, file: LogFile, redactor: Redactor) -> None:
        super().__init__(file.current(), redactor)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream = self._file.current()
        except OSError:
            self.handleError(record)
            return
        super().emit(record)

    def close(self) -> None:
        self._file.close()
        super().close()
