import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from agent.commands.data import app

HEADER = "timestamp,open,high,low,close,volume\n"
GOOD = "2024-01-01T00:00:00Z,10,12,9,11,5\n2024-01-01T00:05:00Z,11,12,10,11,4\n2024-01-01T00:10:00Z,11,13,11,12,7\n"

run = CliRunner()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ETHUSDT.csv"
    path.write_text(HEADER + GOOD)
    return path


def test_an_import_says_what_it_read_repaired_and_wrote(source: Path, tmp_path: Path) -> None:
    source.write_text(HEADER + GOOD + GOOD)
    out = tmp_path / "out.parquet"
    result = run.invoke(app, ["import", str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "3 bars of 5m, ETHUSDT" in result.stdout
    assert "3 duplicates dropped" in result.stdout
    assert pl.read_parquet(out)["close"].to_list() == [11.0, 11.0, 12.0]


def test_an_import_prints_json_and_nothing_else_on_stdout(source: Path, tmp_path: Path) -> None:
    arguments = ["import", str(source), "--out", str(tmp_path / "out.parquet"), "--period", "10m", "--json"]
    result = run.invoke(app, arguments)
    assert json.loads(result.stdout)["rows_written"] == 1


def test_a_faulty_source_fails_with_one_screen_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    source.write_text(HEADER + GOOD + "2024-01-01T00:15:00Z,11,13,11,,7\n")
    out = tmp_path / "out.parquet"
    result = run.invoke(app, ["import", str(source), "--out", str(out)])
    assert result.exit_code == 1
    assert "a price is not a finite number (1 row, first ETHUSDT at 2024-01-01T00:15:00Z" in result.stderr
    assert "Traceback" not in result.output
    assert not out.exists()


def test_a_full_disk_leaves_the_old_file_and_says_so(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")

    def files_of_at_most_16_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "]
    command[-1] += "from agent.commands.data import app; app()"
    done = subprocess.run(
        [*command, "import", str(source), "--out", str(out)],
        preexec_fn=files_of_at_most_16_bytes,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "nothing was written" in done.stderr
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ETHUSDT.csv", "out.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--period", "5x"], "--period: period '5x'"),
        (["--calendar", "XNYC"], "did you mean XNYS?"),
        (["--timezone", "Mars/Olympus"], "--timezone Mars/Olympus: no such zone"),
    ],
)
def test_a_wrong_option_exits_with_2_and_names_itself(
    source: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run.invoke(app, ["import", str(source), "--out", str(tmp_path / "out.parquet"), *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_check_exits_with_0_for_a_usable_file(source: Path) -> None:
    result = run.invoke(app, ["check", str(source)])
    assert result.exit_code == 0, result.output
    assert "ETHUSDT: 3 bars, 2024-01-01T00:00:00Z to 2024-01-01T00:10:00Z" in result.stdout
    assert result.stdout.endswith("\nusable\n")


def test_check_exits_with_1_for_a_faulty_file_and_lists_its_faults(source: Path) -> None:
    source.write_text(HEADER + GOOD.replace("Z", ""))
    result = run.invoke(app, ["check", str(source), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["usable"] is False
    assert [fault["kind"] for fault in report["faults"]] == ["timestamps have no time zone"]


def test_check_names_an_unreadable_file(tmp_path: Path) -> None:
    result = run.invoke(app, ["check", str(tmp_path / "gone.parquet")])
    assert result.exit_code == 1
    assert "no such file" in result.stderr


def test_check_reads_recorded_equities(market_data: Path) -> None:
    result = run.invoke(app, ["check", str(market_data / "us_equity_1h.parquet"), "--calendar", "XNYS"])
    assert result.exit_code == 0, result.output
    assert "split 7:1 at 2014-06-09T13:00:00Z" in result.stdout


def test_the_commands_load_nothing_heavy_before_they_run() -> None:
    code = (
        "import sys, agent.commands.data; print(sorted({'polars', 'numpy', 'pandas', 'structlog'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_symbol_that_a_terminal_would_obey_is_shown_spelt_out(tmp_path: Path) -> None:
    file = tmp_path / "bars.csv"
    rows = (f"2024-01-01T00:{minute:02}:00Z,\x1b[2JA,1,1,1,1,1" for minute in (0, 5, 10))
    file.write_text("timestamp,symbol,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    result = run.invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert r"'\x1b[2JA': 3 bars" in result.stdout
