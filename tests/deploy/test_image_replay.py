"""The image's own steps, run without a container engine: see replay_image.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TOOLS = ("unshare", "nsenter", "mount", "chroot", "setpriv", "useradd")
SCRIPT = Path(__file__).with_name("replay_image.py")
TRAINS = {"torch", "gymnasium", "stable_baselines3", "numba"}


def replayed(image: str, timeout: float) -> dict[str, Any]:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("layers are mounted by root, on Linux")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"there is no {', '.join(missing)}")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode != 0:  # noqa: S607 - util-linux
        pytest.skip("namespaces cannot be made here")
    # the folder has to be on a file system that can carry an overlay's upper layer, outside of pytest's closed one
    folder = Path(tempfile.mkdtemp(prefix="tandem-image-"))
    folder.chmod(0o755)
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--", sys.executable, str(SCRIPT), str(folder), image],  # noqa: S607 - util-linux
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    finally:
        shutil.rmtree(folder)
    if "wrong fs type" in done.stderr or "overlay: permission denied" in done.stderr:
        pytest.skip("overlay mounts are not allowed here")
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def daemon() -> dict[str, Any]:
    return replayed("daemon", 600)


def test_the_daemons_image_holds_nothing_that_trains(daemon: dict[str, Any]) -> None:
    assert "tandem_trader" in daemon["installed"]
    assert TRAINS & set(daemon["installed"]) == set()


def test_the_container_becomes_healthy_and_ready_on_a_read_only_root(daemon: dict[str, Any]) -> None:
    assert daemon["healthy_s"] < 60
    assert daemon["ready_s"] < 60


def test_the_container_runs_as_its_user_who_may_not_write_code(daemon: dict[str, Any]) -> None:
    assert (daemon["who"], daemon["code_writable"]) == ("10001", False)


def test_commands_in_the_container_see_its_daemon(daemon: dict[str, Any]) -> None:
    assert (daemon["status"], daemon["backup"]) == (0, 0)


def test_as_process_1_the_daemon_stops_on_sigterm_and_starts_again_on_its_volume(daemon: dict[str, Any]) -> None:
    for stop in ("stop", "again"):
        code, seconds = daemon[stop]
        assert (code, seconds < 10) == (0, True), daemon["log"]


def test_a_stop_while_the_container_starts_is_not_ignored(daemon: dict[str, Any]) -> None:
    code, seconds = daemon["early_stop"]
    assert code in (0, 143)
    assert seconds < 10


def test_the_daemon_and_its_exchange_are_all_that_runs_and_no_process_is_left_unreaped(daemon: dict[str, Any]) -> None:
    assert len(daemon["processes"]) == 2
    assert [name for state, name in daemon["processes"] if state == "Z"] == []


def test_state_is_in_the_volume(daemon: dict[str, Any]) -> None:
    assert {"tandem.sqlite", "exchange.sqlite", "backup"} <= set(daemon["volume"])


def test_the_training_image_has_what_trains(scale: Callable[[bool, bool], bool]) -> None:
    if not scale(True, False):  # noqa: FBT003 - at full length, and bounded
        pytest.skip("gigabytes are downloaded: only with TANDEM_FULL=1")
    found = replayed("training", 1_800)
    assert set(found["installed"]) >= TRAINS
    assert found["exit"] == 0, found["log"]
