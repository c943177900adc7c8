"""The command line in this process, and a ledger that a real replay wrote."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from agent.cli import app
from agent.commands.errors import run_guarded
from agent.logs import configure
from agent.replay import ReplayResult, replay
from agent.settings import Settings
from brokers.simulated.synthetic import SyntheticMarketSettings, generate


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def tandem(*arguments: str | Path) -> Done:
    """Run `tandem ...` in this process, through the same guard as the real one."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["tandem", *map(str, arguments)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        code = run_guarded(app)
    return Done(code, out.getvalue(), err.getvalue())


def replay_settings(**changes: Mapping[str, Any] | Any) -> Settings:
    """A restless strategy with tight exits: within a few hundred bars everything happens."""
    content: dict[str, Any] = {
        "strategy": {"name": "random", "params": {"flip_probability": 0.2}, "shorts": True},
        "exits": {"stop_volatility": 1.5, "take_profit_volatility": 2.0},
        "daemon": {"bar_store": None},
        "risk": {"daily_loss_fraction": 0.03},
    }
    return Settings.model_validate({**content, **changes})


def replayed(ledger: Path, *, bars: int = 500, settings: Settings | None = None) -> ReplayResult:
    """Replay the synthetic market into a ledger file."""
    configure(level="critical")
    series = generate(SyntheticMarketSettings(symbols=("AAA", "BBB"), bars=bars))
    return replay(settings or replay_settings(), series, ledger_url=f"sqlite:///{ledger}")
