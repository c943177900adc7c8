"""The training environment: steps per CPU second through each of its faces, and what its machine code costs at start.

    python tests/benchmarks/bench_environment.py [--bars 100000] [--rounds 7] [--against REVISION]

Every round times every case once, so that a busy machine slows all of them alike; medians of the rounds are told.
`--against` also times the environment of another commit, on the same market and actions. Episodes start at
random and last up to 1,000 bars; actions are random and drawn beforehand.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from bench_kit import ROOT, Figure, spread, tell

from brokers.calendar import calendar
from brokers.costs import CostModel
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.features import compute_frame, default_spec

GIT = shutil.which("git") or "git"
CAPITAL_USD = 45_000.0
SIZES = (16, 64, 256, 1024, 4096)
STEPS = 200_000
"""Steps of one case in one round, at least."""

COLD = """
import time
began = time.process_time()
import training.environment
numpy_s = time.process_time() - began
from training.compiled import warm_up
imported_s = time.process_time() - began - numpy_s
import numpy
from brokers.costs import CostModel
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from brokers.calendar import calendar
from training.market import build_table
series = generate(SyntheticMarketSettings(bars=50), calendar("24/7"))
table = build_table(series, {name: numpy.zeros((50, 2)) for name in series}, CostModel(), capital_usd=1.0)
began = time.process_time()
warm_up(table)
print(imported_s, time.process_time() - began)
"""

Case = Callable[[], int]
"""Takes steps; returns how many."""


@contextmanager
def other_commit(revision: str) -> Iterator[tuple[ModuleType, ModuleType]]:
    """Yield `market` and `environment` of another commit, imported under other names."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("market", "environment"):
            shown = subprocess.run(
                [GIT, "show", f"{revision}:training/{name}.py"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
            Path(folder, f"other_{name}.py").write_text(shown.replace("training.market", "other_market"))
        sys.path.insert(0, folder)
        try:
            yield importlib.import_module("other_market"), importlib.import_module("other_environment")
        finally:
            sys.path.remove(folder)


def gymnasium_face(env: Any, actions: list[int]) -> Case:
    """Return a case of single steps, as a learner takes them."""
    env.reset(seed=0)

    def play() -> int:
        step = env.step
        for action in actions:
            _, _, terminated, truncated, _ = step(action)
            if terminated or truncated:
                env.reset()
        return len(actions)

    return play


def plain(env: Any, symbol: str, first: int, actions: list[int]) -> Case:
    """Return a case of steps of the plain environment."""

    def play() -> int:
        env.start(symbol, first, 0)
        for action in actions:
            if env.step(action).truncated:
                env.start(symbol, first, 0)
        return len(actions)

    return play


def batched(batch: Any, *, observed: bool) -> Case:
    """Return a case of step, restart of what ended, and observation where it is wanted."""
    rng = np.random.default_rng(0)
    batch.reset(rng)
    action_KN = rng.integers(3, size=(max(STEPS // batch.n, 50), batch.n))

    def play() -> int:
        for action_N in action_KN:
            _, terminated_N, truncated_N = batch.step(action_N)
            over_N = terminated_N | truncated_N
            if over_N.any():
                batch.reset(rng, over_N)
            if observed:
                batch.observe()
        return action_KN.size

    return play


def advanced(batch: Any) -> Case:
    """Return a case of compiled steps with restarts and observations."""
    rng = np.random.default_rng(0)
    batch.reset(rng)
    action_KN = rng.integers(3, size=(max(STEPS // batch.n, 50), batch.n)).astype(np.int8)
    out = batch.observe()

    def play() -> int:
        for action_N in action_KN:
            batch.advance(action_N, rng, out)
        return action_KN.size

    return play


def played(batch: Any) -> Case:
    """Return a case of compiled steps, 64 a call, the observation being row and position."""
    rng = np.random.default_rng(0)
    batch.reset(rng)
    action_CKN = rng.integers(3, size=(max(STEPS // batch.n // 64, 2), 64, batch.n)).astype(np.int8)

    def play() -> int:
        for action_KN in action_CKN:
            batch.play(action_KN, rng)
        return action_CKN.size

    return play


def library_face(env: Any) -> Case:
    """Return a case of steps through the stable-baselines3 face."""
    env.seed(0)
    env.reset()
    action_KN = np.random.default_rng(0).integers(3, size=(max(STEPS // 10 // env.num_envs, 50), env.num_envs))

    def play() -> int:
        for action_N in action_KN:
            env.step(action_N)
        return action_KN.size

    return play


def cases(bars: int, others: tuple[ModuleType, ModuleType] | None) -> Iterator[tuple[str, str, Case]]:
    """Yield (name, aim, case)."""
    from training.compiled import CompiledBatch, warm_up  # noqa: PLC0415 - numba, as in a training
    from training.dqn.vec_env import MarketVecEnv  # noqa: PLC0415 - torch
    from training.environment import MarketBatch, TradingEnv  # noqa: PLC0415 - same
    from training.market import build_table  # noqa: PLC0415 - same
    from training.plain import PlainEnvironment  # noqa: PLC0415 - same

    hours, costs = calendar("24/7"), CostModel()
    series = generate(SyntheticMarketSettings(bars=bars), hours)
    spec = default_spec(SyntheticMarketSettings().period)
    features = {name: compute_frame(spec, one, hours) for name, one in series.items()}
    table = build_table(series, features, costs, capital_usd=CAPITAL_USD)
    warm_up(table)
    actions = np.random.default_rng(0).integers(3, size=STEPS // 2).tolist()

    first = int(table.start_rows[0])
    slow = PlainEnvironment(series, features, costs, capital_usd=CAPITAL_USD)
    yield f"plain, one episode, {table.n_features} features", "", plain(slow, table.symbols[0], first, actions[:3_000])
    if others is not None:
        table_then = others[0].build_table(series, features, costs, capital_usd=CAPITAL_USD)
        yield "Gymnasium face, other commit", "", gymnasium_face(others[1].TradingEnv(table_then), actions)
    yield "Gymnasium face", "0.7 M, 1 M", gymnasium_face(TradingEnv(table), actions)
    for n in SIZES:
        if others is not None:
            then = others[1].MarketBatch(table_then, n)
            yield f"NumPy core, other commit, N = {n}, observed", "", batched(then, observed=True)
        yield f"NumPy core, N = {n}, observed", "", batched(MarketBatch(table, n), observed=True)
        yield f"compiled core, N = {n}, observed", "50 M" if n >= 1024 else "", advanced(CompiledBatch(table, n))
        yield f"compiled core, N = {n}, step by step", "", batched(CompiledBatch(table, n), observed=False)
        yield f"compiled core, N = {n}, row and position", "50 M", played(CompiledBatch(table, n))
    for n in (16, 256):
        yield f"stable-baselines3 face, N = {n}, NumPy", "", library_face(MarketVecEnv(MarketBatch(table, n)))
        yield f"stable-baselines3 face, N = {n}, compiled", "", library_face(MarketVecEnv(CompiledBatch(table, n)))


def start_up(runs: int) -> Iterator[Figure]:
    """Yield what importing and compiling cost in a fresh process, without and with code kept on disk."""
    with tempfile.TemporaryDirectory() as folder:
        told: list[list[float]] = []
        for _ in range(runs + 1):
            done = subprocess.run(
                [sys.executable, "-c", COLD], cwd=ROOT, env=os.environ | {"NUMBA_CACHE_DIR": folder},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            told.append([float(number) for number in done.stdout.split()])
    yield Figure("import of the compiled core, CPU", spread([one[0] for one in told[1:]], scale=1e3, unit="ms"))
    yield Figure("kernels compiled once, CPU", f"{told[0][1]:.2f} s")
    yield Figure("kernels loaded from disk, CPU", spread([one[1] for one in told[1:]], scale=1e3, unit="ms"))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", metavar="REVISION", help="also time the environment of this commit")
    options = parser.parse_args()
    others = None
    if options.against is not None:
        with other_commit(options.against) as others:
            pass
    measured = list(cases(options.bars, others))
    rates: dict[str, list[float]] = {name: [] for name, _, _ in measured}
    for number in range(options.rounds + 1):
        for name, _, case in measured:
            began = time.process_time()
            steps = case()
            if number:  # the first round fills the caches and is not counted
                rates[name].append(steps / (time.process_time() - began))
    tell(
        f"Environment, steps per CPU second, {options.bars} bars",
        [Figure(name, spread(rates[name], scale=1e-6, unit="M"), aim) for name, aim, _ in measured],
    )
    tell("Start of the compiled core in a fresh process", start_up(3))


if __name__ == "__main__":
    main()
