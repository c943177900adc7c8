from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tandem_cli import tandem

from agent.commands.options import strategy_overrides
from agent.settings import ConfigurationError, load
from brokers.simulated.synthetic import SyntheticMarketSettings, generate

FUSED = "strategy:\n  mode: fused\ndaemon:\n  bar_store: null\n"


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    path = tmp_path / "fused.yaml"
    path.write_text(FUSED, encoding="utf-8")
    return path


def test_a_file_says_by_mode_which_minds_decide(fused: Path) -> None:
    assert load(fused).strategy.name == "fused"


@pytest.mark.parametrize("name", ["random", "dqn", "llm", "fused"])
def test_the_option_wins_over_the_mode_of_the_file(fused: Path, name: str) -> None:
    assert load(fused, strategy_overrides(name)).strategy.name == name


def test_two_names_in_one_file_are_a_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("strategy:\n  mode: fused\n  name: random\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="set one of them"):
        load(path)


def test_a_backtest_by_another_strategy_than_the_files_asks_no_model(fused: Path, tmp_path: Path) -> None:
    bars = tmp_path / "bars.csv"
    made = generate(SyntheticMarketSettings(symbols=("AAA",), bars=60))["AAA"]
    rows = zip(made.start_ns, made.open, made.high, made.low, made.close, made.volume, strict=True)
    lines = ["timestamp,open,high,low,close,volume,symbol"]
    lines += [",".join([_iso(start), *map(str, prices), "AAA"]) for start, *prices in rows]
    bars.write_text("\n".join(lines), encoding="utf-8")
    done = tandem(
        "backtest", "--config", fused, "--strategy", "flat", "--bars", bars, "--out", tmp_path / "o", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["strategy"] == "flat"


def _iso(start_ns: int) -> str:
    return datetime.fromtimestamp(start_ns / 1e9, UTC).isoformat()


@pytest.mark.slow
def test_a_daemon_by_another_strategy_than_the_files_asks_no_model(fused: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(fused), "--strategy", "flat", "--json"]
    command += ["--set", "exchange.synthetic.bars=300", "--set", "daemon.max_bars=2"]
    root = str(Path(__file__).resolve().parents[2])
    environ = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["closes"] == 2


@pytest.mark.parametrize("digest", ["123456789012", "001234567012"])
def test_a_digest_of_digits_alone_is_refused_unquoted_with_the_way_to_write_it(digest: str, tmp_path: Path) -> None:
    path = tmp_path / "llm.yaml"
    path.write_text(f"llm:\n  digest: {digest}\n", encoding="utf-8")
    for source in ((path, []), (None, [f"llm.digest={digest}"])):
        with pytest.raises(ConfigurationError, match="write it in quotes") as told:
            load(*source)
        assert "llm.digest" in str(told.value)


@pytest.mark.parametrize("digest", ["123456789012", "001234567012", "1234567890e5"])
def test_a_digest_of_digits_in_quotes_is_kept_as_it_is(digest: str, tmp_path: Path) -> None:
    path = tmp_path / "llm.yaml"
    path.write_text(f'llm:\n  digest: "{digest}"\n', encoding="utf-8")
    assert load(path).llm.digest == digest
    assert load(None, [f'llm.digest="{digest}"']).llm.digest == digest
