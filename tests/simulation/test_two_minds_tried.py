"""The section 'Try it' of docs/language-model.md, step by step, with real processes: stand-in, daemon, commands."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kill_kit import ROOT, free_port

BARS = 120
WAIT_S_MAX = 60.0

pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """Return the section's commands, without their comments."""
    page = (ROOT / "docs" / "language-model.md").read_text(encoding="utf-8")
    section = page.partition("## Try it\n")[2].partition("\n## ")[0]
    return [line[2:].partition("  #")[0].strip() for line in section.splitlines() if line.startswith("$ ")]


class Shell:
    """Runs the section's commands in a folder, with what keeps them from other runs: ports, and a shorter play."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.health_port = free_port()
        self.options: list[str] = []
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM__")} | {"NO_COLOR": "1"}
        (folder / "configs").symlink_to(ROOT / "configs")

    def command(self, text: str, *more: str) -> list[str]:
        words = shlex.split(text)
        assert words[0] == "tandem"
        return [sys.executable, "-m", "agent.cli", *words[1:], *self.options, *more]

    def run(self, text: str, *more: str) -> str:
        done = subprocess.run(
            self.command(text, *more),
            cwd=self.folder,
            env=self.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def beside(self, text: str, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside what follows; nothing of it is left."""
        with (self.folder / "beside.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(text, *more),
                cwd=self.folder,
                env=self.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
            return str(answer.read().decode())


def answered(metrics: str) -> float:
    found = re.search(r'^tandem_llm_total\{event="answered"\} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def scraped(shell: Shell, daemon: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
    """Return /metrics and /readyz once answers are counted."""
    deadline = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline and daemon.poll() is None:
        with suppress(OSError):
            metrics = shell.page("/metrics")
            if answered(metrics) >= 5:
                return metrics, json.loads(shell.page("/readyz"))
        time.sleep(0.02)
    pytest.fail(f"no answers were counted: {(shell.folder / 'beside.log').read_text()[-2000:]}")


def pooled(values: dict[str, float], said: dict[str, float]) -> dict[str, float]:
    """Return the manual's formula at weight 1 and the default temperature: p is as exp(Q / tau) * p_llm."""
    odds = {target: math.exp((q - max(values.values())) / 1e-3) * said[target] for target, q in values.items()}
    return {target: one / sum(odds.values()) for target, one in odds.items()}


def test_the_section_try_it_does_what_it_says(tmp_path: Path) -> None:
    train, promote, ollama, doctor, run, curl, why, status = commands()
    shell = Shell(tmp_path)
    shell.run(train, "--set", "training.dqn.updates=60")
    assert "slot llm serves" in shell.run(promote)
    assert curl.endswith(":8731/metrics")
    with shell.beside(ollama, "--port", "0", "--json") as standin:
        assert standin.stdout is not None
        url = json.loads(standin.stdout.readline())["url"]
        shell.options = ["--set", f"llm.host={url}", "--set", f"health.port={shell.health_port}"]
        found = json.loads(shell.run(doctor, "--json"))
        assert found["ok"]
        with shell.beside(run, "--set", f"daemon.max_bars={BARS}", "--json") as daemon:
            metrics, ready = scraped(shell, daemon)
            out, _ = daemon.communicate(timeout=WAIT_S_MAX)
            assert daemon.returncode == 0
        assert json.loads(out)["closes"] == BARS
        told = json.loads(shell.run(why, "--json"))
        counted = json.loads(shell.run(status, "--json"))["language_model"]
        screen = " ".join(shell.run(status).split())
    assert 'tandem_llm_total{event="llm_timeout"} 0.0' in metrics
    assert ready["ready"]
    assert ready["language_model"]["state"] == "ready"
    assert ready["language_model"]["model"] == "tandem"
    votes = told["votes"]
    assert set(votes) == {"fused", "policy", "llm"}
    assert votes["fused"]["detail"]["llm_weight"] == 1.0
    assert votes["llm"]["note"] == "by the numbers"
    assert votes["fused"]["p"] == pytest.approx(pooled(votes["policy"]["q"], votes["llm"]["p"]), abs=1e-5)
    assert (counted["voted"], counted["abstained"], counted["weight"]) == (BARS, {}, 1.0)
    assert f"language model voted on {BARS} of the last {BARS} decisions with weight 1" in screen
