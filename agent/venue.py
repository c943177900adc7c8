"""Connecting to the configured venue; where it is the built-in exchange without a URL, starting its process.

A running daemon speaks to every venue over the wire, through the same adapter: one live path, not two.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.app import Venue
from agent.minds import StartError
from agent.settings import Settings

if TYPE_CHECKING:
    from brokers.alpaca import AlpacaBroker, AlpacaSettings

log = structlog.get_logger("tandem.venue")

READY_WAIT_S_MAX = 60.0
"""Longest wait for the exchange process to listen."""
STOP_WAIT_S_MAX = 3.0
"""Longest wait for it to end."""
LAST_WORDS_LINES_MAX = 15
"""Lines that are repeated of an exchange process that did not start."""


@asynccontextmanager
async def open_venue(settings: Settings) -> AsyncIterator[Venue]:
    """Give the connected venue; an exchange process that was started for it ends with the block.

    Raises:
        StartError: The exchange process did not start.
        AuthError, UnavailableError: The venue cannot be used.
    """
    own = settings.venue.kind == "exchange" and settings.venue.url is None
    exchange = await ExchangeProcess.start(settings) if own else None
    try:
        broker = make_broker(settings, exchange.url if exchange is not None else settings.venue.url)
        try:
            await broker.connect()
            yield Venue(broker=broker, data=broker, clock=broker.clock)
        finally:
            await broker.close()
    finally:
        if exchange is not None:
            await exchange.stop()


def check_venue(settings: Settings) -> None:
    """Refuse a venue that may not be spoken to, or whose keys are missing, before anything is opened.

    Raises:
        AuthError: Naming the host or the key's source, and the remedy.
    """
    from brokers.alpaca.settings import load_credentials  # noqa: PLC0415 - only the configured venue is loaded

    if settings.venue.kind == "alpaca" or settings.venue.url is not None:
        load_credentials(_adapter_settings(settings, settings.venue.url))


def make_broker(settings: Settings, url: str | None) -> AlpacaBroker:
    """Return the adapter of the configured venue, not yet connected."""
    from brokers.alpaca import AlpacaBroker  # noqa: PLC0415 - only the configured venue is loaded

    return AlpacaBroker(_adapter_settings(settings, url))


def _adapter_settings(settings: Settings, url: str | None) -> AlpacaSettings:
    from brokers.alpaca.settings import AlpacaSettings  # noqa: PLC0415 - only the configured venue is loaded

    venue = settings.venue
    return AlpacaSettings(
        kind=venue.kind,
        url=url,
        key_id_file=venue.key_id_file,
        secret_key_file=venue.secret_key_file,
        connect_timeout_s=venue.connect_timeout_s,
        read_timeout_s=venue.read_timeout_s,
        outage_s_max=venue.outage_s_max,
        feed=settings.strategy.data_feed if venue.kind == "alpaca" else "recorded",
        shorting=settings.strategy.shorts,
    )


class ExchangeProcess:
    """The built-in exchange as a child process. It ends when this process does, however that dies."""

    def __init__(self, process: subprocess.Popen[str], url: str, words: _Words) -> None:
        self.process = process
        self.url = url
        self.words = words

    @classmethod
    async def start(cls, settings: Settings) -> ExchangeProcess:
        """Start it and wait until it listens.

        Raises:
            StartError: It ended instead; the message is its own.
        """
        command = [sys.executable, "-m", "agent.cli", "exchange", *exchange_arguments(settings)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - starting returns at once; our own command line, no shell
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        words = _Words(process)
        try:
            line = await asyncio.wait_for(asyncio.to_thread(_first_line, process), READY_WAIT_S_MAX)
        except TimeoutError:
            words.kill(process)
            raise StartError(f"the exchange process did not listen within {READY_WAIT_S_MAX:g} s") from None
        except BaseException:  # stopped by a signal while it waited
            words.kill(process)
            raise
        if line is None:
            code, told = await asyncio.to_thread(process.wait), words.last()
            words.kill(process)
            raise StartError(f"the exchange process ended with code {code}: {told}")
        url = str(json.loads(line)["url"])
        log.info("exchange started", url=url, pid=process.pid)
        return cls(process, url, words)

    async def stop(self) -> None:
        """End it: its books are committed before every answer, so it can be stopped at any time."""
        if self.process.poll() is not None:
            log.error("the exchange process has ended by itself", code=self.process.poll(), words=self.words.last())
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.terminate()
        try:
            await asyncio.to_thread(self.process.wait, STOP_WAIT_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
        self.words.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def exchange_arguments(settings: Settings) -> list[str]:
    """Return the command line of `tandem exchange` for these settings."""
    exchange = settings.exchange
    arguments = [
        *("--port", str(exchange.port)),
        *("--calendar", settings.calendar),
        *("--period", settings.period),
        *("--books", str(Path(exchange.books))),
        *("--seed", str(exchange.seed)),
        *("--initial-cash", format(exchange.initial_cash_usd, "f")),
        "--json",
        "--until-stdin-closes",
    ]
    if exchange.bars is not None:
        arguments += ["--bars", str(exchange.bars)]
    if settings.symbols:
        arguments += ["--symbols", ",".join(settings.symbols)]
    if exchange.start is not None:
        arguments += ["--start", exchange.start.isoformat()]
    if exchange.end is not None:
        arguments += ["--end", exchange.end.isoformat()]
    overrides = {
        "exchange.partial_fill_probability": exchange.partial_fill_probability,
        "exchange.leverage": exchange.leverage,
        "exchange.rule_set": exchange.rule_set,
        "exchange.synthetic.bars": exchange.synthetic.bars,
        "exchange.synthetic.seed": exchange.synthetic.seed,
        "exchange.synthetic.edge": str(exchange.synthetic.edge).lower(),
        "strategy.shorts": str(settings.strategy.shorts).lower(),
        "daemon.decision_deadline_s": settings.daemon.decision_deadline_s,
        "costs.fee_bps": settings.costs.fee_bps,
        "costs.half_spread_bps": settings.costs.half_spread_bps,
        "costs.impact": settings.costs.impact,
        "costs.latency_bars": settings.costs.latency_bars,
    }
    for key, value in overrides.items():
        arguments += ["--set", f"{key}={value}"]
    return arguments


class _Words:
    """What a process writes to stderr: read all the time, so that it never waits for a reader; the end is kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._stream = process.stderr
        self._lines: deque[str] = deque(maxlen=200)
        self._reader = threading.Thread(target=self._read, name="exchange stderr", daemon=True)
        self._reader.start()

    def last(self) -> str:
        """Return the end of it, once the process has ended."""
        self._reader.join(STOP_WAIT_S_MAX)
        return _told(list(self._lines))

    def kill(self, process: subprocess.Popen[str]) -> None:
        """End a process that is not ready yet: it holds nothing that could be lost."""
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: the system frees it when it can
            process.wait(STOP_WAIT_S_MAX)
        self.close()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def close(self) -> None:
        """Wait for the end and let go of the stream."""
        self._reader.join(STOP_WAIT_S_MAX)
        if self._stream is not None:
            self._stream.close()

    def _read(self) -> None:
        for line in self._stream or ():
            self._lines.append(line.rstrip())


def _told(lines: list[str]) -> str:
    """Return a process's error, without the log lines before it."""
    lines = lines or ["it wrote nothing"]
    begins = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    is_told = begins and not lines[-1].startswith("error: this is a fault of the program")
    words = lines[begins[-1] :] if is_told else lines
    return "\n".join(words[-LAST_WORDS_LINES_MAX:]).removeprefix("error: ")


def _first_line(process: subprocess.Popen[str]) -> str | None:
    if process.stdout is None:
        return None
    line = process.stdout.readline()
    return line if line.strip() else None
