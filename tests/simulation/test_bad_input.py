"""Bad input and hostile surroundings: one screen with the remedy, exit code 1 or 2, and nothing half-written."""

from __future__ import annotations

import http.server
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_kit import (
    BOOKS,
    LEDGER,
    RUN,
    SMALL,
    Case,
    bars_csv,
    cell,
    column,
    damaged,
    environment,
    file,
    flipped,
    make_models,
    manifest,
    of,
    play,
    removed,
    served,
    sql,
    tandem,
    without,
    without_override,
)

EXCHANGE = ("exchange", "--config", "c.yaml")
OF_BOOKS = ("exchange", "--books", BOOKS, "--period", "5m", "--synthetic-bars", "1500")
DQN = ("run", *SMALL)
QUICK_LOCK = ("--set", "ledger.busy_timeout_s=0.2")
MISSPELT = "risk:\n  cooldwn_bars: 3\n"
DID_YOU_MEAN = ("unknown key 'risk.cooldwn_bars'", "did you mean 'cooldown_bars'?")

# ---- settings -----------------------------------------------------------------------------------------------------

SETTINGS = [
    Case("misspelt in the file", EXCHANGE, ("c.yaml", *DID_YOU_MEAN), file("c.yaml", MISSPELT), code=2),
    Case(
        "misspelt in --set",
        ("exchange", "--set", "risk.cooldwn_bars=3"),
        ("(from --set risk.cooldwn_bars)", *DID_YOU_MEAN[:1]),
        code=2,
    ),
    Case(
        "misspelt in the environment",
        ("exchange",),
        ("(from environment variable TANDEM__RISK__COOLDWN_BARS)", *DID_YOU_MEAN[:1]),
        code=2,
        env={"TANDEM__RISK__COOLDWN_BARS": "3"},
    ),
    Case(
        "wrong types",
        EXCHANGE,
        ("risk.cooldown_bars = 'three'", "exchange.port = -4", "period = '5x'", "symbols = 'A'", "write a list"),
        file("c.yaml", "risk: {cooldown_bars: three}\nexchange: {port: -4}\nsymbols: A\nperiod: 5x\n"),
        code=2,
    ),
    Case(
        "not finite",
        EXCHANGE,
        ("risk.drawdown_fraction = inf", "costs.fee_bps = nan", "finite"),
        file("c.yaml", "risk: {drawdown_fraction: .inf}\ncosts: {fee_bps: .nan}\n"),
        code=2,
    ),
    Case(
        "no YAML",
        EXCHANGE,
        ('"c.yaml", line 2', "not valid YAML"),
        file("c.yaml", "risk: [\n a: b: c\n"),
        code=2,
        slow=True,
    ),
    Case(
        "a section twice",
        EXCHANGE,
        ("the key 'risk' stands here a second time", "line 3"),
        file("c.yaml", "risk:\n  cooldown_bars: 3\nrisk:\n  cooldown_bars: 4\n"),
        code=2,
    ),
    Case("a list", EXCHANGE, ("c.yaml holds a list", "section:"), file("c.yaml", "- a\n"), code=2, slow=True),
    Case("no text", EXCHANGE, ("c.yaml is not UTF-8 text",), file("c.yaml", b"\xff\xfe\x00risk"), code=2, slow=True),
    Case("no file", EXCHANGE, ("c.yaml cannot be read", "No such file", "configs/"), code=2),
    Case("a folder", EXCHANGE, ("c.yaml cannot be read", "Is a directory"), file("c.yaml/x", ""), code=2, slow=True),
    Case(
        "hundred faults",
        EXCHANGE,
        ("unknown key 'k0'", "and 88 more"),
        file("c.yaml", "".join(f"k{i}: 1\n" for i in range(100))),
        code=2,
        slow=True,
    ),
    Case(
        "an override without value",
        ("exchange", "--set", "risk.cooldown_bars"),
        ("section.key=value",),
        code=2,
        slow=True,
    ),
    Case(
        "an override that is no YAML",
        ("exchange", "--set", "symbols=[A"),
        ("--set 'symbols=[A'", "not valid"),
        code=2,
        slow=True,
    ),
    Case("a period that fits no day", (*RUN, "--set", "period=7m"), ("period", "420 s", "5m or 1d")),
    Case(
        "a baseline's value",
        (*RUN, "--set", "strategy.params={lookback: x}"),
        ("momentum.lookback is 'x'", "give a number"),
        slow=True,
    ),
    Case("no such calendar", (*RUN, "--set", "calendar=XNYZ"), ("'XNYZ'", "did you mean", "XNYS"), slow=True),
    Case(
        "no such strategy", ("run", "--strategy", "momentumm"), ("'momentumm'", "did you mean 'momentum'?"), slow=True
    ),
    Case(
        "a time that is none",
        ("exchange", "--start", "yesterday"),
        ("'yesterday' is not a time", "2024-01-01"),
        code=2,
        slow=True,
    ),
]
SETTINGS_OF_ALL = [
    Case(f"misspelt for {' '.join(command)}", (*command, "--config", "c.yaml"), DID_YOU_MEAN, code=2)
    for command in (
        RUN,
        ("status",),
        ("why", "SYNTH"),
        ("halt", "reason"),
        ("resume",),
        ("models", "list"),
        ("config", "show"),
        ("backtest", "--bars", "none.csv", "--out", "out"),
    )
] + [
    Case(
        "misspelt for train",
        ("train", "dqn", "--out", "out", "--config", "t.yaml"),
        ("unknown key 'training.batchsize'", "did you mean 'batch_size'?"),
        file("t.yaml", "training:\n  batchsize: 3\n"),
        code=2,
    ),
]


@pytest.mark.parametrize("case", of(SETTINGS))
def test_settings_that_cannot_be_used(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", of(SETTINGS_OF_ALL))
def test_every_command_refuses_a_misspelt_key(case: Case, tmp_path: Path) -> None:
    file("c.yaml", MISSPELT)(tmp_path)
    check(case, tmp_path)


# ---- bars ---------------------------------------------------------------------------------------------------------

CHECK = ("data", "check", "bars.csv")
FIRST = "first bars at 2024-01-01T01:25:00Z"
BARS = [
    Case("NaN", CHECK, ("not a finite number", FIRST, "close=nan"), bars_csv(cell("close", "NaN"))),
    Case("infinite", CHECK, ("not a finite number", FIRST, "high=inf"), bars_csv(cell("high", "inf")), slow=True),
    Case("words", CHECK, ("not a finite number", FIRST), bars_csv(cell("close", "n/a")), slow=True),
    Case("duplicates", CHECK, ("the same start", "tandem data import"), bars_csv(lambda rows: rows[:9] + rows[8:])),
    Case("unsorted", CHECK, ("not sorted", "tandem data import"), bars_csv(lambda rows: rows[::-1])),
    Case(
        "naive",
        CHECK,
        ("no time zone", "--timezone"),
        bars_csv(column("timestamp", lambda row: row["timestamp"].removesuffix("+00:00"))),
    ),
    Case("negative price", CHECK, ("zero or negative", FIRST, "low=-3"), bars_csv(cell("low", "-3"))),
    Case("price of another world", CHECK, ("too large", "1e+12"), bars_csv(cell("high", "1e300")), slow=True),
    Case(
        "no such year",
        CHECK,
        ("cannot be read", "9024"),
        bars_csv(cell("timestamp", "9024-01-01T00:00:00Z")),
        slow=True,
    ),
    Case(
        "a day that may be a month",
        CHECK,
        ("cannot be read",),
        bars_csv(cell("timestamp", "01/02/2024 00:00Z")),
        slow=True,
    ),
    Case(
        "no symbol",
        CHECK,
        ("names no symbol (1 row", "2024-01-01T01:25:00Z"),
        bars_csv(lambda rows: cell("symbol", "")(column("symbol", lambda _: "A")(rows))),
        slow=True,
    ),
    Case("no column", CHECK, ("columns are missing: close",), bars_csv(without("close"))),
    Case("empty", CHECK, ("cannot be read", "empty"), file("bars.csv", "")),
    Case("no rows", CHECK, ("no bars",), file("bars.csv", "timestamp,open,high,low,close,volume\n"), slow=True),
    Case(
        "a huge garbage header",
        CHECK,
        ("columns are missing",),
        file("bars.csv", b"\x01\x02,\xc3\xa4" * 50_000),
        slow=True,
    ),
    Case(
        "a column twice",
        CHECK,
        ("same name: close",),
        file("bars.csv", "timestamp,open,high,low,close,volume,close\n"),
        slow=True,
    ),
    Case(
        "not Parquet",
        ("data", "check", "x.parquet"),
        ("cannot be read", "whole"),
        file("x.parquet", b"\x01" * 9_000),
        slow=True,
    ),
    Case("a folder", ("data", "check", "x.parquet"), ("it is a folder",), file("x.parquet/y", ""), slow=True),
]
BARS_OF_ALL = [
    Case(
        f"NaN for {command[0]}",
        command,
        ("not a finite number", FIRST),
        bars_csv(cell("close", "NaN")),
        may_change=left,
    )
    for command, left in (
        (("exchange", "--bars", "bars.csv"), ()),
        (("data", "import", "bars.csv", "--out", "out.parquet"), ()),
        (("backtest", "--bars", "bars.csv", "--out", "out", "--strategy", "momentum", "--set", "period=5m"), ()),
        (("train", "dqn", "--bars", "bars.csv", "--out", "out", "--set", "period=5m"), ()),
        ((*RUN, "--set", "exchange.bars=bars.csv"), (LEDGER, "var")),
    )
]


@pytest.mark.parametrize("case", of(BARS))
def test_bars_that_cannot_be_used(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", of(BARS_OF_ALL))
def test_every_command_refuses_bars_with_a_hole(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# ---- bundles and slots ------------------------------------------------------------------------------------------

SLOT = "models/slots/default.json"
BUNDLES = [
    Case(
        "a flipped byte",
        DQN,
        ("policy.onnx has hash", "changed or damaged", "restore"),
        served("policy.onnx", flipped),
    ),
    Case("an edited manifest", DQN, ("was changed after it was written", "restore"), manifest(seeds=[7])),
    Case("a missing file", DQN, ("lacks policy.onnx", "restore"), served("policy.onnx", removed), slow=True),
    Case("another feature spec", (*DQN, "--set", "strategy.bundle=hourly"), ("bars of 3600 s", "period is 5m")),
    Case("another feed", (*DQN, "--set", "strategy.bundle=elsewhere"), ("'another-feed'", "'recorded'", "train on")),
    Case(
        "no bundle",
        (*DQN, "--set", "strategy.bundle=nowhere"),
        ("nowhere is not a bundle", "give its directory"),
        slow=True,
    ),
    Case("an empty slot", DQN, ("no slot 'default'", "tandem models promote"), removed(SLOT)),
    Case("a slot of garbage", DQN, (SLOT, "is damaged", "move it away"), file(SLOT, b"\xff" * 5_000), slow=True),
    Case(
        "a slot that names no id",
        ("models", "list"),
        (SLOT, "'../../good' is not an id"),
        file(SLOT, '{"policy": "../../good"}'),
        slow=True,
    ),
    Case("no history", ("models", "rollback"), ("has named nothing but", "promote another")),
    Case(
        "a damaged bundle",
        ("models", "promote", "policy"),
        ("has hash", "restore"),
        flipped("policy/policy.onnx"),
        slow=True,
    ),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.mark.parametrize("case", of(BUNDLES))
def test_bundles_and_slots_that_cannot_be_used(case: Case, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    check(case, tmp_path)


def test_a_model_that_is_served_reports_to_nobody(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "work")
    (tmp_path / "home").mkdir()
    quiet = {"HOME": str(tmp_path / "home"), "CI": "", "XDG_CACHE_HOME": ""}
    done = tandem(tmp_path / "work", "models", "promote", "policy", env=quiet)
    assert done.code == 0, done.err
    assert list((tmp_path / "home").iterdir()) == []


# ---- ledger and books -------------------------------------------------------------------------------------------

LEDGERS = [
    Case("garbage", RUN, ("not a SQLite database", LEDGER), file(LEDGER, b"\x07" * 9_000)),
    Case(
        "a newer program's",
        RUN,
        ("revision '0099' is not known", "run the newer program"),
        sql(LEDGER, "UPDATE alembic_version SET version_num = '0099'"),
    ),
    Case("damaged pages", RUN, ("damaged: restore a backup", LEDGER), damaged(LEDGER), slow=True),
    Case(
        "the exchange's books",
        (*RUN, "--set", f"ledger.url=sqlite:///{BOOKS}"),
        ("tables of something else",),
        slow=True,
    ),
    Case("no URL", (*RUN, "--set", "ledger.url=geheim"), ("ledger.url is not a database URL", "sqlite:///"), slow=True),
    Case(
        "no ledger", ("status",), ("there is no ledger at var/tandem.sqlite", "run the daemon first"), removed(LEDGER)
    ),
    Case(
        "another account",
        (*RUN, "--set", "account_scope=other"),
        ("belongs to account_scope 'paper'", "another ledger.url"),
        may_change=(BOOKS,),
        slow=True,
    ),
    Case(
        "books that were lost",
        RUN,
        ("venue time is 2024-01-01T00:00:00+00:00", "has decided the close 2024-01-01T00:10:00+00:00"),
        removed(BOOKS),
        may_change=(BOOKS,),
        slow=True,
    ),
    Case("books of another seed", (*OF_BOOKS, "--seed", "9"), ("seed was 1, is 9", "go back to it")),
    Case("books of garbage", OF_BOOKS, ("not a database", "give another one"), file(BOOKS, b"\x07" * 9_000), slow=True),
    Case(
        "the ledger as books",
        ("exchange", "--books", LEDGER),
        ("database of something else", "give another file"),
        slow=True,
    ),
    Case(
        "newer books",
        OF_BOOKS,
        ("have schema 77", "start new books"),
        sql(BOOKS, "PRAGMA user_version = 77"),
        slow=True,
    ),
]
MAY_TOUCH = (f"{LEDGER}-wal", f"{LEDGER}.lock", f"{BOOKS}-wal", f"{BOOKS}.lock")
"""What opening a database leaves even where it is refused: SQLite's own log and the lock's file."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    play(folder)
    return folder


@pytest.fixture
def home(played: Path, tmp_path: Path) -> Path:
    """A folder in which a daemon ran once."""
    shutil.copytree(played, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("case", of(LEDGERS))
def test_ledgers_and_books_that_cannot_be_used(case: Case, home: Path) -> None:
    check(case, home, MAY_TOUCH)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("halt", "reason", *QUICK_LOCK), id="halt"),
        pytest.param((*RUN, *QUICK_LOCK), id="run", marks=pytest.mark.slow),
    ],
)
def test_a_ledger_that_another_program_writes(command: tuple[str, ...], home: Path) -> None:
    other = sqlite3.connect(home / LEDGER, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = tandem(home, *command)
    other.close()
    done.check_screen(1, ("another process holds it", LEDGER), (*MAY_TOUCH, BOOKS))


def test_books_that_another_exchange_uses(home: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", *OF_BOOKS]
    with subprocess.Popen(command, cwd=home, env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert "exchange ready" in other.stdout.readline()
        done = tandem(home, *OF_BOOKS)
        other.terminate()
    done.check_screen(1, ("locked by process", "another exchange process uses them"), MAY_TOUCH)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(RUN, ("is no folder that this user may write in", "daemon.bar_store"), id="run"),
        pytest.param(("halt", "reason"), (LEDGER, "writable for this user"), id="halt"),
        pytest.param(
            (*RUN, "--set", "daemon.bar_store=null"),
            (LEDGER, "writable for this user"),
            id="run without bar store",
            marks=pytest.mark.slow,
        ),
        pytest.param(OF_BOOKS, (BOOKS, "writable"), id="exchange", marks=pytest.mark.slow),
    ],
)
def test_a_folder_that_may_not_be_written(command: tuple[str, ...], words: tuple[str, ...], home: Path) -> None:
    before = without_override()
    if not before:
        pytest.skip("root cannot be bound by permissions here: setpriv is missing or not allowed")
    (home / "var").chmod(0o555)
    for path in (home / "var").iterdir():
        path.chmod(0o444 if path.is_file() else 0o555)
    done = tandem(home, *command, before=before)
    (home / "var").chmod(0o755)
    done.check_screen(1, words)


# ---- ports, venues ----------------------------------------------------------------------------------------------


class _Page(http.server.BaseHTTPRequestHandler):
    """Answers every question with a page for people."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def website() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_port_of_the_exchange_is_taken(taken: int, tmp_path: Path) -> None:
    done = tandem(tmp_path, "exchange", "--port", str(taken))
    done.check_screen(1, (f"127.0.0.1:{taken}", "Address already in use", "another address or port"))


@pytest.mark.slow
def test_the_port_of_the_exchange_that_a_daemon_starts_is_taken(taken: int, tmp_path: Path) -> None:
    done = tandem(tmp_path, *RUN, "--set", f"exchange.port={taken}")
    done.check_screen(1, (f"127.0.0.1:{taken}", "Address already in use", "exchange.port"), ("var",))


def test_the_port_of_the_health_server_is_taken(taken: int, tmp_path: Path) -> None:
    done = tandem(tmp_path, *RUN, "--set", f"health.port={taken}")
    done.check_screen(1, (f"127.0.0.1:{taken}", "Address already in use", "health.port"), ("var",))


@pytest.mark.slow
def test_a_website_is_not_a_venue(website: str, tmp_path: Path) -> None:
    done = tandem(tmp_path, *RUN, "--set", f"venue.url={website}")
    done.check_screen(1, (website, "<html>welcome</html>", "check venue.url"), ("var",))


VENUE = ("run", "--strategy", "momentum", "--set", "symbols=[SPY]", "--set", "venue.kind=alpaca")
VENUES = [
    Case("live trading", (*VENUE, "--set", "venue.url=https://api.alpaca.markets"), ("paper trading alone",)),
    Case("another host", (*RUN, "--set", "venue.url=https://example.com"), ("'example.com' is refused",), slow=True),
    Case(
        "plain HTTP", (*VENUE, "--set", "venue.url=http://paper-api.alpaca.markets"), ("plain HTTP stays on loopback",)
    ),
    Case(
        "no URL",
        (*RUN, "--set", "venue.url=exchange"),
        ("'exchange' names no host", "http://127.0.0.1:8080"),
        slow=True,
    ),
    Case("no keys", VENUE, ("APCA_API_KEY_ID is empty",)),
    Case(
        "no key file", (*VENUE, "--set", "venue.key_id_file=key"), ("file key cannot be read (No such file",), slow=True
    ),
]


@pytest.mark.parametrize("case", of(VENUES))
def test_venues_that_may_not_be_spoken_to(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
def test_nobody_listens_at_the_venue(taken: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = tandem(tmp_path, *RUN, "--set", f"venue.url={url}", "--set", "venue.outage_s_max=0.1")
    done.check_screen(1, (url, "Connection refused", "check that it runs there"), ("var",))


# ---- the disk -----------------------------------------------------------------------------------------------------

LIMIT = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
os.execv(sys.argv[1], sys.argv[1:])
"""
LIMITED = (sys.executable, "-c", LIMIT)
"""Starts a program whose files end at 8 KiB, as on a disk that is full."""
BACKTEST = ("backtest", "--bars", "bars.csv", "--out", "out", "--strategy", "momentum", "--set", "period=5m")


def test_an_import_onto_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    bars_csv()(tmp_path)
    file("out.parquet", "old")(tmp_path)
    done = tandem(tmp_path, "data", "import", "bars.csv", "--out", "out.parquet", before=LIMITED)
    done.check_screen(1, ("out.parquet", "File too large", "nothing was written"))


@pytest.mark.slow
def test_a_backtest_onto_a_full_disk_leaves_no_result(tmp_path: Path) -> None:
    bars_csv()(tmp_path)
    done = tandem(tmp_path, *BACKTEST, "--keep-ledger", before=LIMITED)
    done.check_screen(1, ("ledger.sqlite", "check the disk and its free space"))
    assert not (tmp_path / "out").exists()


def test_too_little_space_for_the_ledger(tmp_path: Path) -> None:
    done = tandem(tmp_path, *RUN, "--set", f"ledger.free_bytes_min={2**60}")
    done.check_screen(1, ("bytes are free for the ledger", "ledger.free_bytes_min"), ("var",))
    assert list((tmp_path / "var").iterdir()) == []


FULL_IN_THE_MIDDLE = """
mount -t tmpfs -o size=700k tmpfs full || exit 77
"$@" --set ledger.url=sqlite:///full/ledger.sqlite --set ledger.free_bytes_min=0
echo "code $?" >&2
mount -o remount,size=50m full
"$@" --set ledger.url=sqlite:///full/ledger.sqlite --set daemon.max_bars=5
echo "code $?" >&2
"""


@pytest.mark.slow
def test_a_disk_that_fills_during_a_run_ends_it_and_the_next_one_goes_on(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    command = [sys.executable, "-m", "agent.cli", "run", "--strategy", "momentum", "--set", "log.level=warning"]
    shell = ["unshare", "--mount", "sh", "-c", FULL_IN_THE_MIDDLE, "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: a small disk cannot be mounted")
    done = subprocess.run(
        [*shell, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    if "code" not in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    first, _, rest = done.stderr.partition("code 1\n")
    assert "the disk is full: free some space and start again" in first
    assert "Traceback" not in done.stderr
    assert rest.endswith("code 0\n"), done.stderr


# ---- two at once, and the terminal ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_daemons_on_one_ledger(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "run", "--strategy", "flat", "--set", "health.port=0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        while "ready" not in first.stderr.readline():
            assert first.poll() is None
        reader = threading.Thread(target=first.stderr.read)
        reader.start()
        second = tandem(tmp_path, *RUN, "--set", "exchange.books=var/others.sqlite")
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        reader.join()
    assert f"process {first.pid} runs on it: stop it" in second.err
    assert second.code == 1
    assert not (tmp_path / "var" / "others.sqlite").exists()
    time.sleep(1.0)  # its exchange ends with it
    third = tandem(tmp_path, "run", "--strategy", "flat", "--set", "daemon.max_bars=3")
    assert third.code == 0, third.err


@pytest.mark.parametrize(
    "redirection", [">&-", "| head -n 1", *(pytest.param(c, marks=pytest.mark.slow) for c in ("2>&-", "<&-"))]
)
def test_closed_streams_end_no_command_with_a_traceback(redirection: str, home: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "agent.cli", "status"],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_terminal_that_shows_ascii_alone_is_enough(home: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
    assert tandem(home, "halt", "Größe \u20ac", env=env).code == 0
    assert tandem(home, "status", env=env).code == 0


@pytest.mark.slow
def test_no_home_is_needed(home: Path) -> None:
    kept = {name: value for name, value in environment().items() if name not in {"HOME", "USER", "LOGNAME"}}
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "resume"], cwd=home, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check(case: Case, folder: Path, may_change: tuple[str, ...] = ()) -> None:
    if case.prepare is not None:
        case.prepare(folder)
    done = tandem(folder, *case.command, env=case.env)
    done.check_screen(case.code, case.words, (*case.may_change, *may_change))
