"""Making things bad for the real command line, and telling what it did: its exit code, its words, what it left."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet
from onnx import TensorProto, helper, numpy_helper

from strategies.bundle import Bundle, Registry, write_bundle
from strategies.features import FeatureSpec, Group

SCREEN_LINES = 25
LEDGER = "var/tandem.sqlite"
BOOKS = "var/exchange.sqlite"
SMALL = ("--set", "exchange.synthetic.bars=1500", "--set", "daemon.max_bars=3")
RUN = ("run", "--strategy", "momentum", *SMALL)
T0 = datetime(2024, 1, 1, tzinfo=UTC)
BARS = 300

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Done:
    code: int
    err: str
    changed: tuple[str, ...]
    """Files that are new, gone or different."""

    def check_screen(self, code: int, words: Sequence[str], may_change: Sequence[str] = ()) -> None:
        """One screen on stderr with the words in it, the exit code, and nothing left behind."""
        assert "Traceback" not in self.err, self.err
        assert "fault of the program" not in self.err, self.err
        assert self.code == code, self.err
        told = self.err.splitlines()
        assert 0 < len(told) <= SCREEN_LINES, self.err
        assert max(map(len, told)) < 1_000, self.err
        missing = [word for word in words if word not in self.err]
        assert not missing, f"{missing} not in: {self.err}"
        assert [name for name in self.changed if not name.startswith(tuple(may_change))] == []


@dataclass(frozen=True)
class Case:
    """A command, what is wrong, and what must be said.

    `may_change` names what a refused command may leave: whole files of its own, never half of one.
    """

    name: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    prepare: Prepare | None = None
    code: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    may_change: tuple[str, ...] = ()
    slow: bool = False


def of(cases: Sequence[Case]) -> list[ParameterSet]:
    """Return cases as parameters: the command and the fault are the test's name, slow ones are marked."""
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in cases]


def tandem(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    timeout_s: float = 60.0,
) -> Done:
    """Run the real command in a folder; `before` is a program that starts it."""
    seen = contents(folder)
    done = subprocess.run(
        [*before, sys.executable, "-m", "agent.cli", *arguments],
        cwd=folder,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    after = contents(folder)
    changed = sorted(name for name in seen.keys() | after.keys() if seen.get(name) != after.get(name))
    return Done(done.returncode, done.stderr, tuple(changed))


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings and keys of its owner."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TANDEM__", "APCA_"))}
    return kept | dict(more or {})


def contents(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder, by path; None for folders. SQLite's shared memory holds nothing that lasts."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }


def file(name: str, content: str | bytes) -> Prepare:
    """Write a file."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def flipped(name: str, at: int = 200) -> Prepare:
    """Flip one bit of a file."""

    def prepare(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return prepare


def removed(name: str) -> Prepare:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def sql(name: str, *statements: str) -> Prepare:
    """Change a database behind the program's back."""

    def prepare(folder: Path) -> None:
        connection = sqlite3.connect(folder / name)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return prepare


def damaged(name: str) -> Prepare:
    """Overwrite every page of a database but the first one."""

    def prepare(folder: Path) -> None:
        sql(name, "PRAGMA wal_checkpoint(TRUNCATE)")(folder)
        size = (folder / name).stat().st_size
        with (folder / name).open("r+b") as handle:
            handle.seek(4096)
            handle.write(b"\xa5" * (size - 4096))

    return prepare


# ---- bars ---------------------------------------------------------------------------------------------------

Row = dict[str, str]


def bars_csv(change: Callable[[list[Row]], list[Row]] = lambda rows: rows) -> Prepare:
    """Write `bars.csv`: 5-minute bars, changed."""

    def prepare(folder: Path) -> None:
        rows = change(rows_of_bars())
        with (folder / "bars.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return prepare


def rows_of_bars() -> list[Row]:
    draws = np.random.default_rng(3).normal(0.0, 1e-3, BARS)
    closes = 100.0 * np.exp(np.cumsum(draws))
    rows, before = [], 100.0
    for index, close in enumerate(closes):
        prices = {"open": before, "high": max(before, close), "low": min(before, close), "close": close}
        stamp = (T0 + timedelta(minutes=5 * index)).isoformat()
        rows.append({"timestamp": stamp, **{k: f"{v:.6f}" for k, v in prices.items()}, "volume": "1000"})
        before = round(float(close), 6)
    return rows


def cell(column: str, value: str, row: int = 17) -> Callable[[list[Row]], list[Row]]:
    """Change one value."""

    def change(rows: list[Row]) -> list[Row]:
        rows[row][column] = value
        return rows

    return change


def column(name: str, value: Callable[[Row], str]) -> Callable[[list[Row]], list[Row]]:
    """Add or change one column."""
    return lambda rows: [row | {name: value(row)} for row in rows]


def without(name: str) -> Callable[[list[Row]], list[Row]]:
    """Drop one column."""
    return lambda rows: [{key: value for key, value in row.items() if key != name} for row in rows]


# ---- folders that other runs left -------------------------------------------------------------------------------


def play(folder: Path) -> None:
    """A daemon's run of three bars: a ledger and books."""
    done = tandem(folder, *RUN)
    assert done.code == 0, done.err


def make_models(folder: Path) -> str:
    """A registry with one policy in the slot `default`; returns its id. Others lie beside it as bundles."""
    registry = Registry(folder / "models")
    bundle = registry.add(linear_bundle(folder / "good", 300.0, "recorded"))
    registry.promote("default", bundle.id, at=T0, reason="first")
    linear_bundle(folder / "hourly", 3_600.0, "recorded")
    linear_bundle(folder / "elsewhere", 300.0, "another-feed")
    policy = folder / "policy"
    shutil.copytree(folder / "models" / "policy" / bundle.id, policy)
    return bundle.id


def linear_bundle(folder: Path, period_s: float, feed: str) -> Bundle:
    """Write a bundle whose policy holds long what the first feature is worth, and flat nothing."""
    spec = FeatureSpec((Group("returns", "returns", {"horizons": [1, 4], "unit": 16}),), period_s)
    width = len(spec.names)
    return write_bundle(
        folder,
        policy=_linear_policy(width),
        feature_spec=spec,
        data={"feed": feed, "fingerprint": "none"},
        training={},
        seeds=[1],
        code_version="test",
        metrics={},
    )


def _linear_policy(width: int) -> bytes:
    """Long is worth the first feature, flat nothing."""
    weights = np.zeros((width + 1, 1), dtype=np.float32)
    flat, long = weights, weights.copy()
    long[0] = 1.0
    nodes = [helper.make_node("Concat", ["features", "position"], ["x"], axis=1)]
    for name in ("q_flat", "q_long"):
        nodes.append(helper.make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"]))
        nodes.append(helper.make_node("Reshape", [f"{name}.y", "shape"], [name]))
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "policy",
        [
            helper.make_tensor_value_info("features", floats, ["batch", width]),
            helper.make_tensor_value_info("position", floats, ["batch", 1]),
        ],
        [helper.make_tensor_value_info(name, floats, ["batch"]) for name in ("q_flat", "q_long")],
        [
            numpy_helper.from_array(flat, "q_flat.w"),
            numpy_helper.from_array(long, "q_long.w"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


def manifest(**changes: object) -> Prepare:
    """Edit the served policy's manifest."""

    def prepare(folder: Path) -> None:
        (path,) = (folder / "models" / "policy").glob("*/manifest.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return prepare


def served(name: str, prepare: Callable[[str], Prepare]) -> Prepare:
    """Do something to a file of the served policy."""

    def run(folder: Path) -> None:
        (path,) = (folder / "models" / "policy").glob(f"*/{name}")
        prepare(str(path.relative_to(folder)))(folder)

    return run


def without_override() -> list[str]:
    """Return what starts a program that permissions bind: nothing for a user, fewer capabilities for root.

    Empty where root cannot be bound.
    """
    if os.geteuid() != 0:
        return ["env"]
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None:
        return []
    usable = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if usable else []
