from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from tandem_cli import tandem
from test_models_commands import tiny as tiny_models

from brokers.simulated.synthetic import SyntheticMarketSettings, generate

BARS = 400
SYMBOLS = ("AAA", "NO")


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "bars.parquet"
    series = generate(SyntheticMarketSettings(symbols=SYMBOLS, bars=BARS))
    frames = [
        pl.DataFrame(
            {
                "timestamp": pl.Series(one.start_ns).cast(pl.Datetime("ns", "UTC")),
                "symbol": [symbol] * len(one),
                **{name: getattr(one, name) for name in ("open", "high", "low", "close", "volume")},
            }
        )
        for symbol, one in series.items()
    ]
    pl.concat(frames).write_parquet(path)
    return path


def backtest(bars: Path, out: Path, *more: str) -> tuple[int, str, str]:
    done = tandem("backtest", "--bars", bars, "--out", out, "--strategy", "buy_and_hold", *more)
    return done.code, done.out, done.err


def test_a_backtest_writes_its_tables_and_tells_the_metrics(bars: Path, tmp_path: Path) -> None:
    code, out, err = backtest(bars, tmp_path / "run", "--exact")
    assert code == 0, err
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "decisions.parquet",
        "trades.parquet",
        "equity.parquet",
        "incidents.parquet",
        "metrics.json",
        "report.html",
    }
    assert "buy_and_hold on AAA, NO" in out
    for word in ("total return", "Sharpe ratio", "largest drawdown", "fees", "decisions.parquet"):
        assert word in out
    decisions = pl.read_parquet(tmp_path / "run" / "decisions.parquet")
    assert decisions.height == 2 * BARS


def test_json_is_the_metrics_file_and_nothing_else(bars: Path, tmp_path: Path) -> None:
    _, out, _ = backtest(bars, tmp_path / "run", "--exact", "--json")
    printed = json.loads(out)
    assert printed.pop("out") == str(tmp_path / "run")
    assert printed == json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_fast_and_exact_write_the_same_tables(bars: Path, tmp_path: Path) -> None:
    words = []
    for name, more in (("fast", ()), ("exact", ("--exact",))):
        code, out, err = backtest(bars, tmp_path / name, *more)
        assert code == 0, err
        words.append(out.strip().splitlines()[-1].split(":")[0])
    assert words == ["fast replay", "exact replay"]
    for table in ("decisions", "trades", "equity", "incidents"):
        fast, exact = (pl.read_parquet(tmp_path / name / f"{table}.parquet") for name in ("fast", "exact"))
        assert fast.equals(exact), table


def test_a_kept_ledger_is_that_of_the_live_cycle(bars: Path, tmp_path: Path) -> None:
    _, out, _ = backtest(bars, tmp_path / "run", "--keep-ledger", "--json")
    assert json.loads(out)["replay"] == "exact"
    _, out, _ = backtest(bars, tmp_path / "run", "--json")
    assert json.loads(out)["replay"] == "fast"
    assert not (tmp_path / "run" / "ledger.sqlite").exists(), "the ledger of another replay was left"


def test_start_makes_earlier_bars_history_and_end_cuts(bars: Path, tmp_path: Path) -> None:
    times = ("--start", "2024-01-01T20:00", "--end", "2024-01-02T00:00:00Z")
    code, _, err = backtest(bars, tmp_path / "run", "--exact", *times)
    assert code == 0, err
    decisions = pl.read_parquet(tmp_path / "run" / "decisions.parquet")
    assert decisions["close_time"].min() == datetime(2024, 1, 1, 20, 5, tzinfo=UTC)
    assert decisions["timestamp"].max() == datetime(2024, 1, 1, 23, 55, tzinfo=UTC)
    assert "warming_up" not in decisions["reason"].to_list()


def test_a_backtest_that_fails_leaves_no_empty_folder(bars: Path, tmp_path: Path) -> None:
    code, _, err = backtest(bars, tmp_path / "out", "--start", "2030-01-01")
    assert code == 1, err
    assert not (tmp_path / "out").exists()


def test_symbols_choose_also_those_that_look_like_other_words(bars: Path, tmp_path: Path) -> None:
    code, out, err = backtest(bars, tmp_path / "run", "--exact", "--symbols", "NO", "--json")
    assert code == 0, err
    assert json.loads(out)["symbols"] == ["NO"]


def test_a_symbol_that_the_file_does_not_hold_fails(bars: Path, tmp_path: Path) -> None:
    code, _, err = backtest(bars, tmp_path / "run", "--exact", "--symbols", "ZZZ")
    assert code == 1
    assert "ZZZ" in err
    assert "Traceback" not in err


def test_without_bars_it_says_how_to_name_them(tmp_path: Path) -> None:
    done = tandem("backtest", "--out", tmp_path / "run")
    assert done.code == 1
    assert "--bars" in done.err


def test_a_kept_ledger_answers_why_and_a_second_run_replaces_it(bars: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert backtest(bars, tmp_path / "run", "--exact", "--keep-ledger")[0] == 0
    option = ("--set", f"ledger.url=sqlite:///{tmp_path / 'run' / 'ledger.sqlite'}")
    found = tandem("why", "AAA", "--json", *option).json
    assert found["decided"]
    assert tandem("status", "--json", *option).json["run"]["run_id"] == 1


def test_the_same_backtest_twice_gives_the_same_equity(bars: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        backtest(bars, tmp_path / name, "--exact")
    frames = [pl.read_parquet(tmp_path / name / "equity.parquet") for name in ("one", "two")]
    assert frames[0].equals(frames[1])


def test_a_language_model_without_recorded_answers_is_told(bars: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.touch()
    bundle = tiny_models.make_bundle(tmp_path / "bundle")
    named = {"llm.model": "tandem", "llm.digest": "'0123456789ab'", "llm.recorded": answers, "symbols": "[AAA]"}
    named |= {"strategy.bundle": bundle.path}
    options = [part for key, value in named.items() for part in ("--set", f"{key}={value}")]
    done = tandem("backtest", "--bars", bars, "--out", tmp_path / "run", "--strategy", "llm", *options, "--json")
    assert done.code == 0, done.err
    count = done.json["decisions"]
    told = re.search(r"abstained on (\d+) of (\d+) decisions", done.err)
    assert told is not None
    assert 0 < int(told[1]) <= int(told[2]) == count
    assert "llm.recorded" in done.err
