from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from tandem_cli import tandem

from agent.health import HealthServer, Probes, Readiness
from agent.logs import configure
from agent.metrics import Metrics


@pytest.fixture
def probes() -> Probes:
    return Probes({"loop": 60.0})


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def server(probes: Probes, readiness: Readiness) -> Iterator[HealthServer]:
    configure(level="critical")  # the server shares this process's stdout
    with HealthServer("127.0.0.1", 0, probes=probes, readiness=readiness, metrics=Metrics()) as made:
        yield made


def url(server: HealthServer, page: str = "") -> str:
    return f"http://127.0.0.1:{server.port}{page}"


def test_a_daemon_that_makes_progress_is_exit_code_0(server: HealthServer) -> None:
    assert tandem("health", "--url", url(server)).code == 0


def test_a_daemon_that_stands_is_exit_code_1_and_named(server: HealthServer, probes: Probes) -> None:
    probes.expect("loop", 0.0)
    done = tandem("health", "--url", url(server), "--json")
    assert (done.code, done.json["status"], done.json["answer"]["stale"]) == (1, 503, ["loop"])


def test_ready_asks_whether_it_decides(server: HealthServer, readiness: Readiness) -> None:
    before = tandem("health", "--url", url(server), "--ready").code
    readiness.set_ready()
    assert (before, tandem("health", "--url", url(server), "--ready").code) == (1, 0)


def test_a_page_of_the_url_is_asked_as_it_is(server: HealthServer) -> None:
    done = tandem("health", "--url", url(server, "/metrics"))
    assert (done.code, "tandem_ready" in done.out) == (0, True)


def test_the_settings_say_where_the_daemon_listens(server: HealthServer) -> None:
    where = ("--set", f"health.port={server.port}", "--set", "health.host=0.0.0.0")
    assert tandem("health", *where).code == 0


def test_nobody_there_is_exit_code_1_with_what_to_look_at() -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = tandem("health", "--url", f"http://127.0.0.1:{port}")
    assert (done.code, f"no answer from 127.0.0.1:{port}" in done.err) == (1, True)


def test_one_who_never_answers_is_given_up_on() -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = tandem("health", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2")
    assert (done.code, "no answer" in done.err) == (1, True)


@pytest.mark.parametrize("wrong", ["127.0.0.1:8730", "https://127.0.0.1:8730", "http://127.0.0.1", "http://[::1"])
def test_what_is_no_address_is_wrong_usage(wrong: str) -> None:
    assert tandem("health", "--url", wrong).code == 2


def test_without_a_port_there_is_nobody_to_ask() -> None:
    done = tandem("health")
    assert (done.code, "health.port" in done.err) == (1, True)
