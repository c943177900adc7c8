"""Shared by every test: one numeric thread, hypothesis profiles, recorded data, and no process left behind."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from postgres_server import PostgresServer

# Read once, when numpy or torch is first imported: none of the imports above does.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

ROOT = Path(__file__).resolve().parent.parent
FULL = os.environ.get("TANDEM_FULL") == "1"
"""True for `make test-all`: every proof at its full length. Otherwise each is bounded to what CI can afford."""

Size = TypeVar("Size")

# A busy machine is slow to generate examples, which says nothing about the code: no deadline, no too_slow check.
settings.register_profile(
    "bounded",
    max_examples=60,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "full", max_examples=500, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full" if FULL else "bounded"))


@pytest.fixture(scope="session")
def scale() -> Callable[[Size, Size], Size]:
    """Return `scale(full, bounded)`: the first under TANDEM_FULL=1, else the second. For sizes of slow proofs."""
    return lambda full, bounded: full if FULL else bounded


def _folder(variable: str, fallback: str, what: str) -> Path:
    named = os.environ.get(variable)
    folder = Path(named) if named else ROOT.parent.joinpath("shared", fallback)
    if not folder.is_dir():
        pytest.skip(f"no {what} in {folder}: set {variable} to their folder")
    return folder


@pytest.fixture(scope="session")
def market_data() -> Path:
    """Return the folder of recorded market data; skips where there is none."""
    return _folder("TANDEM_MARKET_DATA", "data", "recorded bars")


@pytest.fixture(scope="session")
def api_specs() -> Path:
    """Return the folder of the venues' published OpenAPI files; skips where there is none."""
    return _folder("TANDEM_API_SPECS", "specs", "OpenAPI files")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL server of this run's own; skips where none is installed."""
    from postgres_server import PostgresServer, why_not  # noqa: PLC0415 - it lies beside the tests that use it

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _children() -> dict[int, psutil.Process]:
    tracker = multiprocessing.resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]  # lives for the run
    return {child.pid: child for child in psutil.Process().children() if child.pid != tracker}


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process running, and end that process. Sockets: ResourceWarning is an error."""
    before = _children()
    yield
    left = [child for pid, child in _children().items() if pid not in before]
    if not left:
        return
    names = [f"{child.pid} ({' '.join(_command(child))[:200]})" for child in left]
    for child in left:
        child.kill()
        child.wait(5)
    pytest.fail(f"left running: {', '.join(names)}")


def _command(child: psutil.Process) -> list[str]:
    try:
        return child.cmdline()
    except psutil.Error:
        return ["already gone"]
