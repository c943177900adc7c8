from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEVER = ("torch", "gymnasium", "stable_baselines3", "numba", "transformers", "ollama", "httpx", "pandas", "alembic")
"""Packages of the trainer, of the language model and of other venues; Alembic serves older ledgers only."""

PROGRAM = """
import asyncio, json, sys
from agent.daemon import Daemon
from agent.logs import configure
from agent.settings import Settings

configure(style="json", level="warning", secrets=[])
report = asyncio.run(Daemon(Settings.model_validate(json.loads(sys.argv[1]))).run())
print(json.dumps({"closes": report.closes, "decisions": report.decisions, "modules": sorted(sys.modules)}))
"""


def _tiny_models() -> ModuleType:
    """Return the makers of tiny policies, which live with the tests of `strategies`."""
    path = ROOT / "tests" / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_for_imports", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packages_of_a_short_life(folder: Path, calendar: str) -> set[str]:
    """Run a daemon for three closes on the exchange, deciding by a bundle; return the packages it has imported."""
    _tiny_models().make_bundle(folder / "bundle")
    settings = {
        "symbols": ["AAA", "BBB"],
        "calendar": calendar,
        "asset_class": "crypto" if calendar == "24/7" else "us_equity",
        "strategy": {"bundle": str(folder / "bundle")},
        "exchange": {
            "synthetic": {"bars": 3_000},
            "start": "2024-01-05T15:00:00Z",
            "books": str(folder / "books.sqlite"),
        },
        "ledger": {"url": f"sqlite:///{folder / 'ledger.sqlite'}"},
        "daemon": {"max_bars": 3, "bar_store": str(folder / "bars")},
        "health": {"port": 0},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["closes"], seen["decisions"]) == (3, 6)
    return {name.partition(".")[0] for name in seen["modules"]}


def test_a_daemon_that_has_lived_has_imported_no_trainer_and_no_sessions(tmp_path: Path) -> None:
    packages = packages_of_a_short_life(tmp_path, "24/7")
    assert packages.isdisjoint({*NEVER, "exchange_calendars"})
    assert "onnxruntime" in packages  # the policy was served, so the look at the packages means something


@pytest.mark.slow
def test_a_daemon_on_exchange_sessions_has_imported_no_trainer(tmp_path: Path) -> None:
    packages = packages_of_a_short_life(tmp_path, "XNYS")
    assert packages.intersection(NEVER) <= {"pandas"}  # exchange_calendars stands on it
