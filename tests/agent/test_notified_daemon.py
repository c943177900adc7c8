"""The daemon as a process with a real webhook: what arrives, what a hang costs, what a kill loses."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from tandem_cli import tandem
from webhook import Webhook, webhook

ROOT = Path(__file__).resolve().parents[2]
STOP_S_MAX = 5.0


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as served:
        yield served


class Life:
    """One daemon on the built-in exchange, which decides so many bars."""

    def __init__(self, folder: Path, hook: Webhook, *overrides: str, bars: int = 100_000) -> None:
        urls = folder / "urls"
        urls.write_text(f"{hook.url}\n")
        given = [
            f"notifications.urls_file={urls}",
            "notifications.events=[fills, halts, incidents, daily_summary, start_stop]",
            "notifications.messages_max=1000",
            "notifications.timeout_s=3",
            f"daemon.max_bars={bars}",
            "symbols=[AAA]",
            "strategy.name=random",
            "strategy.params={flip_probability: 0.5}",
            "exchange.synthetic.bars=6000",
            "exchange.start=2024-01-08T00:00:00Z",
            f"exchange.books={folder / 'books.sqlite'}",
            f"ledger.url=sqlite:///{folder / 'ledger.sqlite'}",
            "daemon.bar_store=null",
            "log.format=json",
            *overrides,
        ]
        command = [sys.executable, "-m", "agent.cli", "run", *(part for key in given for part in ("--set", key))]
        self.log = folder / "log"
        self.ledger = folder / "ledger.sqlite"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def wait_for_closes(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.count("cycles") < count:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def count(self, table: str) -> int:
        if not self.ledger.exists():
            return 0
        with closing(sqlite3.connect(self.ledger, timeout=10)) as connection:
            try:
                return int(connection.execute(f"select count(*) from {table}").fetchone()[0])  # noqa: S608 - a constant
            except sqlite3.OperationalError:
                return 0  # it is being made

    def ask(self, question: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.ledger, timeout=10)) as connection:
            return connection.execute(question).fetchall()

    def end(self, number: signal.Signals) -> float:
        """Send a signal; returns the seconds until the process was gone."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        took_s = time.monotonic() - began
        psutil.wait_procs(children, timeout=20)  # the exchange, and what was sending, end with it
        assert not any(child.is_running() for child in children)
        return took_s


def test_a_run_tells_its_start_its_fills_and_its_end(hook: Webhook, tmp_path: Path) -> None:
    life = Life(tmp_path, hook, "notifications.messages_max=2", "notifications.events=[fills, start_stop]")
    hook.wait_for(3)
    assert life.end(signal.SIGTERM) < STOP_S_MAX
    assert hook.titles[0] == "started"
    assert all(title.startswith("fill: ") for title in hook.titles[1:3])
    assert hook.titles[3:] in (["stopped"], [])  # told if that took less than two seconds, otherwise by the next run
    log = life.log.read_text()
    assert "T0KEN9secret" not in log
    assert b"T0KEN9secret" not in life.ledger.read_bytes()


@pytest.mark.parametrize("behaviour", ["hang", "dribble", "500"])
@pytest.mark.slow
def test_a_webhook_that_misbehaves_delays_neither_the_closes_nor_the_stop(
    hook: Webhook, behaviour: str, tmp_path: Path
) -> None:
    hook.behaviour = behaviour
    life = Life(tmp_path, hook, "notifications.timeout_s=60")
    life.wait_for_closes(60)
    assert hook.asked
    assert life.end(signal.SIGTERM) < STOP_S_MAX
    assert life.process.returncode == 0
    assert life.ask("select end_reason from runs") == [("signal",)]


@pytest.mark.slow
def test_killed_in_the_middle_of_a_message_nothing_is_lost_or_told_twice(hook: Webhook, tmp_path: Path) -> None:
    life = Life(tmp_path, hook)
    hook.wait_for(3)
    hook.behaviour = "hang"
    asked = len(hook.asked)
    while len(hook.asked) == asked:
        time.sleep(0.005)
    life.end(signal.SIGKILL)
    hook.behaviour = "ok"
    for _ in range(5):
        life = Life(tmp_path, hook, "notifications.messages_max=1", "notifications.interval_s=0.1", bars=1)
        assert life.process.wait(90) == 0, life.log.read_text()[-3000:]
        if fills_told(hook) == life.count("fills"):
            break
    assert fills_told(hook) == life.count("fills") > 3
    assert "started after a crash" in hook.titles


def fills_told(hook: Webhook) -> int:
    """Count the fills that the webhook was told of, one by one or folded into one message."""
    single = sum(title.startswith("fill: ") for title in hook.titles)
    return single + sum(int(t.split()[1].replace(",", "")) for t in hook.titles if t.endswith("more (fills)"))


def test_the_test_command_sends_to_every_url_and_fails_where_one_does_not_take_it(
    hook: Webhook, tmp_path: Path
) -> None:
    urls = tmp_path / "urls"
    urls.write_text(f"{hook.url}\n{hook.url}2\n")
    option = ("--set", f"notifications.urls_file={urls}")
    done = tandem("notify", "test", "--json", *option)
    assert done.code == 0, done.err
    assert done.json == {
        "ok": True,
        "targets": [{"url": f"json#{n}", "delivered": True, "error": None} for n in (1, 2)],
    }
    assert hook.titles == ["test", "test"]
    hook.behaviour = 503
    done = tandem("notify", "test", *option)
    assert done.code == 1
    assert "FAILED" in done.out
    assert "T0KEN9secret" not in done.out + done.err


def test_the_test_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_NOTIFICATION_URLS", raising=False)
    done = tandem("notify", "test")
    assert done.code == 1
    assert "notifications.urls_file" in done.err
    assert "TANDEM_NOTIFICATION_URLS" in done.err


def test_a_daemon_refuses_a_url_in_plain_text_before_it_opens_anything(tmp_path: Path) -> None:
    environment = os.environ | {"TANDEM_NOTIFICATION_URLS": "json://alerts.example.org/T0KEN9secret"}
    command = [sys.executable, "-m", "agent.cli", "run", "--strategy", "momentum", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # repetition does not mend it: systemd does not start it again
    assert "plain text" in done.stderr
    assert "T0KEN9secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_process_that_trades_never_imports_apprise() -> None:
    code = "import agent.daemon, agent.notify, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"apprise", "markdown", "oauthlib"}.isdisjoint(name.partition(".")[0] for name in json.loads(done.stdout))


class TellingVenue(BaseHTTPRequestHandler):
    """Stands before a real exchange and refuses every order, in words that hold what it should not know."""

    exchange = ""

    def do_GET(self) -> None:
        self.pass_on()

    def do_DELETE(self) -> None:
        self.pass_on()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/v2/orders"):
            words = {"code": 42210000, "message": "refused for T0KEN9secret and https://bot:hunter2secret@venue/"}
            self.reply(422, json.dumps(words).encode())
            return
        self.pass_on(body)

    def pass_on(self, body: bytes | None = None) -> None:
        request = urllib.request.Request(f"{self.exchange}{self.path}", data=body, method=self.command)  # noqa: S310 - loopback
        for name in ("APCA-API-KEY-ID", "APCA-API-SECRET-KEY", "Content-Type"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
                self.reply(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self.reply(error.code, error.read())

    def reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def telling_venue(folder: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "agent.cli",
        "exchange",
        "--json",
        "--until-stdin-closes",
        "--synthetic-bars",
        "3000",
    ]
    command += ["--symbols", "AAA", "--start", "2024-01-08", "--books", str(folder / "books.sqlite")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as exchange:
        assert exchange.stdout is not None
        TellingVenue.exchange = json.loads(exchange.stdout.readline())["url"]
        server = ThreadingHTTPServer(("127.0.0.1", 0), TellingVenue)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            exchange.terminate()


def test_a_secret_in_the_venues_words_reaches_neither_ledger_nor_log_nor_messages(
    hook: Webhook, tmp_path: Path
) -> None:
    with telling_venue(tmp_path) as url:
        life = Life(tmp_path, hook, f"venue.url={url}", "notifications.events=[incidents]", bars=12)
        assert life.process.wait(60) == 0, life.log.read_text()[-3000:]
    refused = life.ask("select detail from incidents where kind = 'rejected'")
    assert refused
    assert "refused for [redacted] and https://[redacted]@venue/" in str(refused[0])
    written = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))
    for told in (written.decode(errors="replace"), life.log.read_text()):
        assert "[redacted]" in told
        assert "T0KEN9secret" not in told
        assert "hunter2secret" not in told
    assert "secret" not in str(hook.taken)
