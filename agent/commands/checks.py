"""The checks of `tandem doctor` and `tandem config check`: each says ok, warn or fail, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from agent.settings import Settings

DISTRIBUTION = "tandem-trader"
LOCK_WAIT_S = 1.0
"""How long the ledger's write lock is waited for."""
QUICK_CHECK_BYTES_MAX = 200_000_000
"""Largest SQLite ledger whose pages are checked; a larger one would take long."""
SKEW_S_WARN, SKEW_S_FAIL = 1.0, 5.0
CHECK_WAIT_S_MAX = 10.0
"""Longest wait for the venue."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `remedy` is empty where nothing has to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def check_settings(settings: Settings) -> list[Check]:
    """Check what the settings name, without touching ledger or venue."""
    return _run(settings, (_calendar, _host, _bars, _strategy, _notifications))


def check_all(settings: Settings) -> list[Check]:
    """Check the machine, the settings and everything that they name."""
    from agent.commands.llm_checks import check_language_model  # noqa: PLC0415 - they are made of checks themselves

    what_is_named = (_calendar, _host, _ledger, _bar_store, _log_file, _bars, _strategy)
    everything = (*what_is_named, check_language_model, _venue, _ports, _notifications)
    return [*_python(), *_packages(), Check("settings", "ok", "read and valid"), *_run(settings, everything)]


def check_installation() -> list[Check]:
    """Check Python and the packages: what can be said where the settings cannot be read."""
    return [*_python(), *_packages()]


def _run(settings: Settings, checks: Sequence[Callable[[Settings], Iterable[Check]]]) -> list[Check]:
    found: list[Check] = []
    for check in checks:
        try:
            found += check(settings)
        except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, and the others still count
            name = check.__name__.strip("_").replace("_", " ")
            found.append(
                Check(name, "fail", f"{type(error).__name__}: {error}", "report this: the check itself failed")
            )
    return found


def _python() -> Iterable[Check]:
    yield Check("python", "ok", f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}")


def _packages() -> Iterable[Check]:
    try:
        wanted = requires(DISTRIBUTION) or []
        told = f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        yield Check("packages", "warn", f"{DISTRIBUTION} runs from source", "run `make setup` to install it")
        return
    missing = []
    for requirement in wanted:
        if "extra ==" in requirement:
            continue
        name = requirement.split(";")[0].strip()
        for sign in "<>=!~[ ":
            name = name.split(sign)[0]
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "run `make setup` again")
    else:
        yield Check("packages", "ok", f"{told}, every package it needs is there")


def _calendar(settings: Settings) -> Iterable[Check]:
    from brokers.calendar import CalendarError, calendar  # noqa: PLC0415 - NumPy, and for sessions a large library

    try:
        upcoming = calendar(settings.calendar).next_close(datetime.now(UTC), settings.bar_period)
    except CalendarError as error:
        yield Check("calendar", "fail", str(error), "correct calendar or period")
        return
    yield Check(
        "calendar", "ok", f"{settings.calendar}, bars of {settings.period}, next close {upcoming:%Y-%m-%d %H:%M} UTC"
    )


def _host(settings: Settings) -> Iterable[Check]:
    from brokers.alpaca.settings import AlpacaSettings, is_loopback  # noqa: PLC0415 - only where it is checked
    from brokers.domain import AuthError  # noqa: PLC0415 - as above

    venue = settings.venue
    if venue.kind == "exchange" and venue.url is None:
        yield Check("paper only", "ok", "the daemon starts an exchange of its own on loopback")
        return
    try:
        url = AlpacaSettings(kind=venue.kind, url=venue.url).trading_url
    except AuthError as error:
        yield Check("paper only", "fail", str(error), "name a paper host in venue.url, or leave it out")
        return
    where = "on this machine" if is_loopback(url) else "a paper host"
    yield Check("paper only", "ok", f"{url} is {where}")


def _ledger(settings: Settings) -> Iterable[Check]:
    from sqlalchemy import make_url  # noqa: PLC0415 - SQLAlchemy, for this check alone

    from agent.ledger.store import LedgerError, open_ledger, shown_url  # noqa: PLC0415 - as above

    chosen = settings.ledger
    url = make_url(chosen.url)
    shown = shown_url(url)
    path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if path is not None:
        folder = _nearest(path.parent)
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Check("ledger folder", "fail", f"{folder} cannot be written", "give this user write access to it")
            return
        if free < chosen.free_bytes_min:
            detail = f"{free:,} bytes free in {folder}, {chosen.free_bytes_min:,} wanted"
            yield Check("ledger folder", "fail", detail, "free some space, or lower ledger.free_bytes_min")
        else:
            yield Check("ledger folder", "ok", f"{folder} can be written, {free / 1e9:,.1f} GB free")
        if not path.exists():
            yield Check("ledger", "ok", f"{shown} does not exist yet and will be made at the first start")
            return
    try:
        ledger = open_ledger(chosen.url, busy_timeout_s=min(LOCK_WAIT_S, chosen.busy_timeout_s), create=False)
    except LedgerError as error:
        yield Check("ledger", "fail", str(error), "see the message")
        return
    try:
        with ledger.transaction() as connection:  # takes the write lock, changes nothing
            if path is not None and path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
                verdict = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
                if verdict != "ok":
                    yield Check("ledger", "fail", f"{shown} is damaged: {verdict}", "restore a backup")
                    return
        yield Check("ledger", "ok", f"{shown} opens, can be written, and nothing holds its lock")
        scope = ledger.get_state("account_scope")
        if scope is not None and scope["name"] != settings.account_scope:
            detail = f"the ledger belongs to {scope['name']!r}, the settings say {settings.account_scope!r}"
            yield Check("account scope", "fail", detail, "use the ledger's account_scope, or another ledger.url")
        halt = ledger.get_state("halt") or {}
        if halt.get("halted"):
            detail = f"since {halt.get('at')} by {halt.get('by')}: {halt.get('reason')}"
            yield Check("halt", "warn", f"entries are halted {detail}", "`tandem resume` ends it")
    except LedgerError as error:
        yield Check("ledger", "fail", str(error), "see the message")
    finally:
        ledger.close()


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _bar_store(settings: Settings) -> Iterable[Check]:
    root = settings.daemon.bar_store
    if root is None:
        yield Check("bar store", "ok", "none: bars are kept in the ledger alone")
        return
    if not root.exists():
        folder = _nearest(root)
        if os.access(folder, os.W_OK):
            yield Check("bar store", "ok", f"{root} does not exist yet and will be made")
        else:
            yield Check("bar store", "fail", f"{folder} cannot be written", "give this user write access to it")
        return
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        yield Check("bar store", "fail", f"{root} is not a folder that can be written", "correct daemon.bar_store")
        return
    from brokers.bar_store import BarStore  # noqa: PLC0415 - Polars, for this check alone

    symbols = BarStore(root).symbols(settings.bar_period)
    yield Check("bar store", "ok", f"{root} holds bars of {len(symbols)} symbols with period {settings.period}")


def _log_file(settings: Settings) -> Iterable[Check]:
    path = settings.log.file
    if path is None:
        return
    place = path if path.exists() else _nearest(path.parent)
    if path.is_dir() or (place != path and not place.is_dir()):
        yield Check("log file", "fail", f"{place} is {'a' if path.is_dir() else 'no'} folder", "correct log.file")
    elif not os.access(place, os.W_OK):
        yield Check("log file", "fail", f"{place} cannot be written", "give this user write access to it")
    else:
        yield Check("log file", "ok", f"{path} {'can be written' if place == path else 'will be made'}")


def _bars(settings: Settings) -> Iterable[Check]:
    bars = settings.exchange.bars
    if settings.venue.kind != "exchange" or settings.venue.url is not None:
        return
    if bars is None:
        yield Check("exchange bars", "ok", "the synthetic market")
    elif bars.is_file() and os.access(bars, os.R_OK):
        yield Check("exchange bars", "ok", f"{bars}, {bars.stat().st_size / 1e6:,.1f} MB")
    else:
        yield Check("exchange bars", "fail", f"{bars} cannot be read", "correct exchange.bars; see `tandem data check`")


def _strategy(settings: Settings) -> Iterable[Check]:
    from agent.app import make_strategy  # noqa: PLC0415 - loads the model
    from agent.minds import StartError  # noqa: PLC0415 - see above

    chosen = settings.strategy
    try:
        strategy, pinned = make_strategy(settings)
    except StartError as error:
        remedy = "train one (`tandem train dqn`, `tandem models promote`), or choose a baseline: strategy.name"
        yield Check("strategy", "fail", str(error), remedy if chosen.name == "dqn" else "correct what it names")
        return
    is_trained = chosen.name in {"dqn", "llm", "fused"}
    what = "hashes verified, canary answered" if is_trained else "a baseline"
    yield Check("strategy", "ok", f"{strategy.name} ({pinned}): {what}")


def _venue(settings: Settings) -> Iterable[Check]:
    import asyncio  # noqa: PLC0415 - for this check alone

    from brokers.domain import BrokerError  # noqa: PLC0415 - as above

    venue = settings.venue
    if venue.kind == "exchange" and venue.url is None:
        yield Check("venue", "ok", "the built-in exchange, started with the daemon")
        yield Check(
            "clock", "ok", f"venue time is the exchange's own; system time {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        )
        return
    if venue.kind == "alpaca" and not _has_keys(settings):
        remedy = "set APCA_API_KEY_ID and APCA_API_SECRET_KEY, or venue.key_id_file and venue.secret_key_file"
        yield Check("venue", "warn", "no keys: Alpaca was not asked, and the clock was not compared", remedy)
        return
    try:
        detail, skew_s = asyncio.run(_ask_venue(settings))
    except BrokerError as error:
        yield Check("venue", "fail", str(error), "check network, host and keys")
        return
    yield Check("venue", "ok", detail)
    if skew_s is None:
        yield Check("clock", "ok", "venue time is the exchange's own")
        return
    status: Literal["ok", "warn", "fail"] = "ok"
    if abs(skew_s) > SKEW_S_WARN:
        status = "fail" if abs(skew_s) > SKEW_S_FAIL else "warn"
    remedy = "" if status == "ok" else "let NTP set the system clock"
    yield Check("clock", status, f"the venue's clock is {skew_s:+.2f} s from the system's", remedy)


def _has_keys(settings: Settings) -> bool:
    from brokers.alpaca.settings import KEY_ID_VARIABLE, SECRET_KEY_VARIABLE  # noqa: PLC0415 - as above

    venue = settings.venue
    key_id = venue.key_id_file is not None or bool(os.environ.get(KEY_ID_VARIABLE))
    return key_id and (venue.secret_key_file is not None or bool(os.environ.get(SECRET_KEY_VARIABLE)))


async def _ask_venue(settings: Settings) -> tuple[str, float | None]:
    """Connect and read the account; returns what was found, and the venue's time less the system's in seconds."""
    from agent.venue import make_broker  # noqa: PLC0415 - the configured adapter

    bounded = settings.venue.model_copy(update={"outage_s_max": min(settings.venue.outage_s_max, CHECK_WAIT_S_MAX)})
    broker = make_broker(settings.model_copy(update={"venue": bounded}), settings.venue.url)
    try:
        await broker.connect()
        account = await broker.account()
        skew_s = None if broker.clock.stepped else (await broker.skew()).total_seconds()
        now = broker.clock.now()
    finally:
        await broker.close()
    return f"answers; venue time {now:%Y-%m-%d %H:%M:%S} UTC, equity {account.equity:,.2f} USD", skew_s


def _ports(settings: Settings) -> Iterable[Check]:
    health, exchange = settings.health, settings.exchange
    wanted = [("health.port", health.host, health.port)]
    if settings.venue.kind == "exchange" and settings.venue.url is None:
        wanted.append(("exchange.port", "127.0.0.1", exchange.port))
    for name, host, port in wanted:
        if not port:
            told = "no health server" if port is None else "chosen by the system"
            yield Check(name, "ok", told)
            continue
        error = _bind_error(host, port)
        if error is None:
            yield Check(name, "ok", f"{host}:{port} is free")
        else:
            remedy = "nothing to do if that is the running daemon; otherwise choose another port"
            yield Check(name, "warn", f"{host}:{port} cannot be bound: {error}", remedy)


def _notifications(settings: Settings) -> Iterable[Check]:
    import asyncio  # noqa: PLC0415 - for this check alone

    from agent.delivery import NotificationError, check_urls, labels, notification_urls  # noqa: PLC0415 - as above

    chosen = settings.notifications
    try:
        urls = notification_urls(chosen)
        unchecked = asyncio.run(check_urls(chosen, urls))
    except NotificationError as error:
        yield Check("notifications", "fail", str(error), "correct the URL; `tandem notify test` tries it")
        return
    told = f"{', '.join(labels(urls))}: {', '.join(chosen.events)}" if urls else "none configured"
    if unchecked is not None:
        yield Check("notifications", "warn", f"{told}; not checked: {unchecked}", "try again on a less busy machine")
        return
    yield Check("notifications", "ok", told)


def _bind_error(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
