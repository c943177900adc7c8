from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import logs

SECRET = 'sk-"live"\\8f3a/7c+2b=ü'  # noqa: S105  # invented, with what JSON, repr and URLs spell differently
Style = Literal["console", "json"]


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    structlog.reset_defaults()
    for handler in [h for h in root.handlers if isinstance(h, logs._RedactingHandler)]:
        root.removeHandler(handler)
    root.setLevel(level)


def configured(style: Style = "json", *, level: str = "debug", secrets: tuple[str, ...] = (SECRET,)) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(style=style, level=level, secrets=secrets, stream=stream)
    return stream


def only_record(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def refuse() -> None:
    raise ValueError(f"401 for {SECRET}") from RuntimeError(SECRET)


def spill(log: structlog.stdlib.BoundLogger) -> None:
    """Say the secret in every way that a careless line could."""

    class Account:
        def __repr__(self) -> str:
            return f"Account(key={SECRET!r})"

    log.info(SECRET)
    log.info("value", anything=SECRET, nested={"list": [{"deep": (SECRET,)}], SECRET: 1}, raw=SECRET.encode())
    log.info("object", account=Account())
    log.info("position %s", SECRET)
    log.bind(bound=SECRET).warning("bound")
    logging.getLogger("library").error("refused: %s", SECRET, extra={"more": {"k": SECRET}})
    try:
        refuse()
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_configured_secret_never_appears(style: Style) -> None:
    stream = configured(style)
    spill(structlog.stdlib.get_logger("test"))
    text = stream.getvalue()
    assert text.count(logs.REDACTED) >= 12
    for spelling in (SECRET, json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1], "8f3a/7c"):
        assert spelling not in text


@given(middle=st.text(max_size=40), style=st.sampled_from(["console", "json"]))
def test_no_secret_of_any_alphabet_gets_through(middle: str, style: Style) -> None:
    secret = f"Zq9{middle}9qZ"
    stream = configured(style, secrets=(secret,))
    structlog.stdlib.get_logger("test").error(
        "failed: %s", secret, value=secret, nested=[secret.encode()], exc_info=KeyError(secret, ValueError(secret))
    )
    assert "Zq9" not in stream.getvalue()


@pytest.mark.parametrize(
    "key", ["secret_key", "api_key", "APCA_API_KEY_ID", "password", "Authorization", "private-key", "session_token"]
)
def test_a_value_under_a_secret_looking_key_is_redacted_without_being_configured(key: str) -> None:
    stream = configured(secrets=())
    structlog.stdlib.get_logger().info("settings", nested={key: "plain-value"})
    assert only_record(stream)["nested"] == {key: logs.REDACTED}


@pytest.mark.parametrize("key", ["symbol", "secret_key_file", "prompt_tokens", "client_id", "key"])
def test_a_harmless_key_keeps_its_value(key: str) -> None:
    stream = configured(secrets=())
    structlog.stdlib.get_logger().info("settings", nested={key: "plain-value"})
    assert only_record(stream)["nested"] == {key: "plain-value"}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("postgresql://trader:hunter2@db/tandem", "postgresql://[redacted]@db/tandem"),
        (
            "postgresql:///tandem?user=a&password=hunter2&port=5",
            "postgresql:///tandem?user=a&password=[redacted]&port=5",
        ),
        (
            '{"url": "postgresql://db/tandem?sslpassword=hunter2"}',
            '{"url": "postgresql://db/tandem?sslpassword=[redacted]"}',
        ),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer [redacted]"),
    ],
)
def test_credentials_in_urls_and_headers_are_redacted_without_being_configured(said: str, kept: str) -> None:
    assert logs.Redactor().text(said) == kept


def test_a_secret_of_digits_is_redacted_where_it_is_a_number() -> None:
    stream = configured(secrets=("48151623",))
    structlog.stdlib.get_logger().info("pin", value=48151623)
    assert only_record(stream)["value"] == logs.REDACTED


def test_a_record_carries_utc_time_level_and_logger() -> None:
    stream = configured()
    before = datetime.now(UTC)
    structlog.stdlib.get_logger("tandem.desk").warning("late", symbol="SPY", qty=Decimal("1.5"))
    record = only_record(stream)
    assert record["timestamp"].endswith("Z")
    assert abs((datetime.fromisoformat(record["timestamp"]) - before).total_seconds()) < 5
    assert (record["level"], record["logger"], record["event"]) == ("warning", "tandem.desk", "late")
    assert (record["symbol"], record["qty"]) == ("SPY", "1.5")


def test_records_of_the_standard_library_take_the_same_way() -> None:
    stream = configured()
    logging.getLogger("apscheduler.scheduler").warning("missed by %ss", 3)
    record = only_record(stream)
    assert (record["event"], record["level"], record["logger"]) == ("missed by 3s", "warning", "apscheduler.scheduler")


def test_a_record_below_the_level_is_not_written() -> None:
    stream = configured(level="warning")
    structlog.stdlib.get_logger().info("detail")
    logging.getLogger("library").info("detail")
    assert stream.getvalue() == ""


def test_a_later_configuration_replaces_the_earlier_one() -> None:
    log = structlog.stdlib.get_logger("made early")
    first = configured()
    second = configured()
    log.info("once")
    assert first.getvalue() == ""
    assert only_record(second)["event"] == "once"


@pytest.mark.parametrize("style", ["console", "json"])
def test_outside_words_cannot_forge_a_line(style: Style) -> None:
    stream = configured(style)
    structlog.stdlib.get_logger().info("venue says", reason="no\n2030-01-01T00:00:00Z [critical] halted \x1b[31m")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b[31m" not in stream.getvalue()


def test_a_huge_record_is_cut_and_keeps_its_event() -> None:
    stream = configured()
    structlog.stdlib.get_logger().info("answer", body="x" * 1_000_000, rows=[{"k": "y" * 1_000}] * 10_000)
    assert len(stream.getvalue()) < 3 * logs.RECORD_LENGTH_MAX
    record = only_record(stream)
    assert record["event"] == "answer"
    assert "characters cut" in record["body"]


def test_a_secret_that_lies_across_the_cut_leaves_no_half() -> None:
    secret = "A1b2C3d4" * 16
    stream = configured(secrets=(secret,))
    padding = "." * (logs.TEXT_LENGTH_MAX // 2 - 64)
    structlog.stdlib.get_logger().info("answer", body=padding + secret + "." * logs.TEXT_LENGTH_MAX)
    assert "A1b2" not in stream.getvalue()


def test_a_value_that_contains_itself_is_cut() -> None:
    stream = configured()
    endless: list[Any] = []
    endless.append(endless)
    structlog.stdlib.get_logger().info("loop", value=endless)
    assert "[cut]" in stream.getvalue()


def test_an_object_whose_text_fails_does_not_lose_the_record() -> None:
    class Broken:
        def __str__(self) -> str:
            raise OSError(SECRET)

    stream = configured()
    structlog.stdlib.get_logger().info("object", value=Broken())
    assert only_record(stream)["value"] == "<Broken whose text failed: OSError>"


UNCAUGHT = """
import sys, threading
from agent import logs
logs.configure(style="json", secrets=["sk-hidden-0123"])
logs.capture_uncaught()
def fail():
    raise ValueError("thread with sk-hidden-0123")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise ValueError("main with sk-hidden-0123")
"""


def test_an_uncaught_exception_is_logged_without_the_secret() -> None:
    done = subprocess.run(  # the hooks are the interpreter's: they need one of their own
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "sk-hidden" not in done.stdout + done.stderr
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [r["event"] for r in records] == ["uncaught exception"] * 2
    assert all(re.search(r"ValueError: \w+ with \[redacted\]", r["exception"]) for r in records)


def test_a_record_that_cannot_be_written_is_reported_without_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    stream = configured()
    stream.close()
    logging.getLogger("library").error("refused: %s", SECRET)
    said = capsys.readouterr().err
    assert said == "a log record of library could not be written: ValueError\n"
