"""What the benchmarks share: settings, an untrained bundle of the default shape, timing, and a table of results.

Each `bench_*.py` beside this file runs by itself (`python tests/benchmarks/bench_cycle.py --help`); `make bench`
runs them all. Numbers that stand in docs/experiments.md come from here. Times are CPU seconds where CPU is said.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = 64
"""Units of each of the two hidden layers: the shape that `tandem train dqn` makes by default."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a benchmark's table; `aim` says what was asked for, empty where nothing was."""

    what: str
    value: str
    aim: str = ""


def tell(title: str, figures: Iterable[Figure]) -> None:
    """Print a table."""
    rows = list(figures)
    widths = [max(len(getattr(row, name)) for row in rows) for name in ("what", "value")]
    sys.stdout.write(f"\n{title} (Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load()})\n")
    for row in rows:
        aim = f"   (aim: {row.aim})" if row.aim else ""
        sys.stdout.write(f"  {row.what:<{widths[0]}}   {row.value:>{widths[1]}}{aim}\n")
    sys.stdout.flush()


def load() -> str:
    """Return the machine's load over the last minute, which says how far to trust a wall time."""
    return f"{os.getloadavg()[0]:.1f}"


def spread(values: Sequence[float], *, scale: float = 1.0, unit: str = "") -> str:
    """Return `median [least, most] unit`."""
    least, middle, most = (scale * x for x in (min(values), median(values), max(values)))
    return f"{middle:.3g} [{least:.3g}, {most:.3g}] {unit}".rstrip()


def children_cpu_s(run: Callable[[], object]) -> float:
    """Return the CPU seconds, user and system, of the processes that `run` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def command_cpu_s(command: Sequence[str], runs: int) -> tuple[list[float], list[float]]:
    """Return CPU and wall seconds of a command, run after one warm-up run that is not counted."""
    cpu, wall = [], []
    for number in range(runs + 1):
        began = time.perf_counter()
        spent = children_cpu_s(lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True))
        if number:
            cpu.append(spent)
            wall.append(time.perf_counter() - began)
    return cpu, wall


def names(count: int) -> list[str]:
    """Return symbols `S0000`, `S0001`, ..."""
    return [f"S{number:04d}" for number in range(count)]


def untrained_bundle(folder: Path, period: timedelta, *, seed: int = 0) -> Path:
    """Write a bundle on the default features whose policy has the trained one's shape and random weights.

    It costs what a trained one costs and trades far more often.
    """
    import numpy as np  # noqa: PLC0415 - each benchmark loads what it measures, no more
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - same

    from strategies.bundle import write_bundle  # noqa: PLC0415 - same
    from strategies.features import default_spec  # noqa: PLC0415 - same

    spec = default_spec(period)
    width = len(spec.names)
    rng = np.random.default_rng(seed)
    sizes = (width + 1, HIDDEN, HIDDEN, 2)
    nodes: list[Any] = [helper.make_node("Concat", ["features", "position"], ["x0"], axis=1)]
    weights: list[Any] = []
    for layer, (inward, outward) in enumerate(pairwise(sizes)):
        weights += [
            numpy_helper.from_array(rng.normal(0.0, inward**-0.5, (inward, outward)).astype(np.float32), f"w{layer}"),
            numpy_helper.from_array(np.zeros(outward, dtype=np.float32), f"b{layer}"),
        ]
        nodes.append(helper.make_node("Gemm", [f"x{layer}", f"w{layer}", f"b{layer}"], [f"y{layer}"]))
        nodes.append(helper.make_node("Relu" if layer < 2 else "Identity", [f"y{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("Split", ["x3"], ["q_flat", "q_long"], axis=1, num_outputs=2))
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "policy",
        [
            helper.make_tensor_value_info("features", floats, ["batch", width]),
            helper.make_tensor_value_info("position", floats, ["batch", 1]),
        ],
        [helper.make_tensor_value_info(name, floats, ["batch", 1]) for name in ("q_flat", "q_long")],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    bundle = write_bundle(
        folder,
        policy=model.SerializeToString(),
        feature_spec=spec,
        data={"feed": "synthetic", "fingerprint": "0" * 64},
        training={"algorithm": "none"},
        seeds=[seed],
        code_version="benchmark",
        metrics={},
    )
    return bundle.policy_path.parent
