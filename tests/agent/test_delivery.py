"""One message on its way to a webhook that takes it, refuses it, hangs, dribbles, floods or points elsewhere."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from webhook import Webhook, webhook

from agent.apprise_process import MEMORY_BYTES_MAX
from agent.delivery import AppriseSender, Message, NotificationError, check_urls, notification_urls
from agent.settings import NotificationSettings

MESSAGE = Message("tandem paper: started", "run 1 started", "warning")


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as served:
        yield served


def chosen(**changes: Any) -> NotificationSettings:
    return NotificationSettings.model_validate({"timeout_s": 1.0, **changes})


def send(url: str, **changes: Any) -> str | None:
    return asyncio.run(AppriseSender(chosen(**changes)).send(url, MESSAGE))


def check(*urls: str, **changes: Any) -> None:
    asyncio.run(check_urls(chosen(**changes), urls))


def test_a_message_arrives_as_it_was_written(hook: Webhook) -> None:
    assert send(hook.url) is None
    (taken,) = hook.taken
    assert (taken["title"], taken["message"], taken["type"]) == (MESSAGE.title, MESSAGE.body, MESSAGE.level)


def test_a_message_of_a_daemon_that_is_larger_than_its_sender_may_be_arrives(hook: Webhook) -> None:
    held = bytearray(MEMORY_BYTES_MAX + 64 * 1024 * 1024)
    held[:: resource.getpagesize()] = b"x" * len(range(0, len(held), resource.getpagesize()))  # touched, so resident
    assert send(hook.url) is None
    assert len(hook.taken) == len(held[:1])


@pytest.mark.parametrize("status", [301, 404, 429, 500, 503])
def test_a_refused_message_is_a_fault_in_words_without_the_url(hook: Webhook, status: int) -> None:
    hook.behaviour = status
    fault = send(hook.url)
    assert fault is not None
    assert str(status) in fault
    assert "T0KEN9secret" not in fault


@pytest.mark.parametrize("behaviour", ["hang", "dribble", "flood"])
def test_an_answer_that_never_ends_is_a_fault_within_the_time(hook: Webhook, behaviour: str) -> None:
    hook.behaviour = behaviour
    began = time.monotonic()
    assert send(hook.url) is not None
    assert time.monotonic() - began < 8  # one second for the sending; the rest is a busy machine's start of a process


def test_a_redirect_is_not_followed_to_a_host_that_nobody_named(hook: Webhook) -> None:
    with webhook() as elsewhere:
        hook.behaviour = f"redirect http://127.0.0.1:{elsewhere.server.server_port}/stolen"
        assert "307" in str(send(f"{hook.url}?redirect=yes"))
        assert elsewhere.asked == []


def test_a_webhook_that_is_not_there_is_a_fault() -> None:
    assert send("json://127.0.0.1:9/x") is not None


def test_a_cancelled_sending_leaves_no_process_behind(hook: Webhook) -> None:
    hook.behaviour = "hang"

    async def cancel_it() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AppriseSender(chosen(timeout_s=60)).send(hook.url, MESSAGE), 1.0)

    asyncio.run(cancel_it())  # every test fails that leaves a child behind


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("json://alerts.example.org/T0KEN9secret", "plain text"),
        ("jsons://alerts.example.org/T0KEN9secret?verify=no", "certificate"),
        ("mailto://user:T0KEN9secret@example.org", "mailtos"),
        ("jsonn://localhost/T0KEN9secret", "Apprise"),
    ],
)
def test_a_url_that_exposes_messages_or_is_unknown_is_refused_at_the_start(url: str, word: str) -> None:
    with pytest.raises(NotificationError, match=word) as refused:
        check("json://localhost:8080/fine", url)
    assert "#2" in str(refused.value)
    assert "T0KEN9secret" not in str(refused.value)


def test_plain_text_is_allowed_on_this_machine_to_trusted_hosts_and_never_needed_with_tls() -> None:
    urls = ("json://127.0.0.1:1/a", "json://[::1]:1/a", "jsons://example.org/a", "json://alerts.lan/a")
    check(*urls, trusted_hosts=["alerts.lan"])


def test_urls_come_from_a_file_with_comments_or_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# my phone\n\njson://localhost/a\n  jsons://example.org/b  \n")
    assert notification_urls(chosen(urls_file=file), {}) == ["json://localhost/a", "jsons://example.org/b"]
    variable = {"TANDEM_NOTIFICATION_URLS": "json://localhost/a json://localhost/b"}
    assert notification_urls(chosen(), variable) == ["json://localhost/a", "json://localhost/b"]
    assert notification_urls(chosen(), {}) == []


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "cannot be read"), (b"\xff\xfe", "UTF-8"), (b"T0KEN9secret\n", "entry 1"), (b"# none\n", "no URL")],
)
def test_a_file_that_holds_no_urls_is_refused_without_showing_it(
    content: bytes | None, word: str, tmp_path: Path
) -> None:
    file = tmp_path / "urls"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NotificationError, match=word) as refused:
        notification_urls(chosen(urls_file=file), {})
    assert "T0KEN9secret" not in str(refused.value)


def test_more_urls_than_are_served_are_refused() -> None:
    many = " ".join(f"json://localhost/{number}" for number in range(11))
    with pytest.raises(NotificationError, match="at most 10"):
        notification_urls(chosen(), {"TANDEM_NOTIFICATION_URLS": many})
