from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.health import REQUESTS_MAX, HealthServer, HealthServerError, Probes, Readiness
from agent.metrics import Metrics


class HandClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get_json(port: int, path: str) -> tuple[int, dict[str, Any]]:
    status, body = get(port, path)
    return status, json.loads(body)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def probes(clock: HandClock) -> Probes:
    return Probes({"loop": 2.0, "scheduler": 5.0, "cycle": None}, monotonic=clock)


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def server(probes: Probes, readiness: Readiness) -> Iterator[HealthServer]:
    with HealthServer("127.0.0.1", 0, probes=probes, readiness=readiness, metrics=Metrics()) as running:
        yield running


@given(limit_s=st.floats(0.01, 1e6), waited_s=st.floats(0, 1e6))
def test_a_probe_is_stale_exactly_when_its_age_exceeds_its_limit(limit_s: float, waited_s: float) -> None:
    clock = HandClock()
    probes = Probes({"loop": limit_s}, monotonic=clock)
    began = clock.now_s
    clock.now_s += waited_s
    assert probes.stale() == (("loop",) if clock.now_s - began > limit_s else ())


def test_a_beat_makes_a_stale_probe_fresh(probes: Probes, clock: HandClock) -> None:
    clock.now_s += 2.5
    assert probes.stale() == ("loop",)
    probes.beat("loop")
    assert probes.stale() == ()


def test_a_probe_without_a_limit_is_reported_and_never_stale(probes: Probes, clock: HandClock) -> None:
    clock.now_s += 1e6
    assert "cycle" not in probes.stale()
    assert probes.ages()["cycle"] == 1e6


def test_an_expected_beat_is_late_only_after_the_time_it_was_given(probes: Probes, clock: HandClock) -> None:
    clock.now_s += 1.0
    probes.expect("cycle", within_s=300.0)
    clock.now_s += 300.0
    assert "cycle" not in probes.stale()
    clock.now_s += 1.0
    assert "cycle" in probes.stale()


def test_a_beat_of_an_unknown_probe_is_refused_by_name(probes: Probes) -> None:
    with pytest.raises(KeyError, match="no probe 'lop'; registered: cycle, loop, scheduler"):
        probes.beat("lop")


def test_healthz_names_the_stale_probe_and_its_age(server: HealthServer, probes: Probes, clock: HandClock) -> None:
    assert get_json(server.port, "/healthz")[0] == 200
    clock.now_s += 3.0
    status, body = get_json(server.port, "/healthz")
    assert status == 503
    assert body["stale"] == ["loop"]
    assert body["probes"]["loop"] == {"age_s": 3.0, "limit_s": 2.0}


def test_healthz_fails_while_the_loop_stands_although_the_server_answers() -> None:
    probes = Probes({"loop": 0.05})
    with HealthServer("127.0.0.1", 0, probes=probes, readiness=Readiness(), metrics=Metrics()) as server:
        time.sleep(0.1)  # nobody beats: the server's own thread must not count as progress
        assert get(server.port, "/healthz")[0] == 503


def test_readyz_is_refused_until_the_daemon_has_reconciled(server: HealthServer, readiness: Readiness) -> None:
    assert get_json(server.port, "/readyz") == (
        503,
        {"ready": False, "detail": "starting", "halted": False, "halt_reason": None},
    )
    readiness.set_ready()
    assert get(server.port, "/readyz")[0] == 200


def test_a_halted_daemon_is_ready_and_says_that_it_is_halted(server: HealthServer, readiness: Readiness) -> None:
    readiness.set_ready()
    readiness.set_halted("drawdown")
    status, body = get_json(server.port, "/readyz")
    assert status == 200
    assert (body["halted"], body["halt_reason"]) == (True, "drawdown")


@pytest.mark.parametrize("state", ["ready", "paused", "wrong_model"])
def test_readyz_tells_the_state_of_the_language_model_and_is_ready_without_it(state: str, readiness: Readiness) -> None:
    readiness.set_ready()
    with HealthServer(
        "127.0.0.1",
        0,
        probes=Probes({"loop": 60.0}),
        readiness=readiness,
        metrics=Metrics(),
        language_model=lambda: {"state": state, "failures": 3},
    ) as server:
        status, said = get_json(server.port, "/readyz")
        healthy, _ = get_json(server.port, "/healthz")
    assert (status, said["language_model"]["state"]) == (200, state)
    assert healthy == 200


def test_readyz_says_nothing_of_a_language_model_where_there_is_none(server: HealthServer) -> None:
    assert "language_model" not in get_json(server.port, "/readyz")[1]


def test_metrics_are_served_with_the_age_of_each_probe(server: HealthServer, clock: HandClock) -> None:
    clock.now_s += 1.5
    status, body = get(server.port, "/metrics")
    assert status == 200
    assert b'tandem_probe_age_seconds{probe="loop"} 1.5' in body


def test_an_unknown_page_is_answered_with_the_pages_there_are(server: HealthServer) -> None:
    status, body = get_json(server.port, "/")
    assert status == 404
    assert body["pages"] == ["/healthz", "/metrics", "/readyz"]


def test_a_head_request_gets_the_status_without_a_body(server: HealthServer) -> None:
    assert get(server.port, "/healthz", "HEAD") == (200, b"")


def test_a_writing_method_is_refused(server: HealthServer) -> None:
    assert get(server.port, "/healthz", "POST")[0] == 501


def test_a_taken_port_is_an_error_that_names_the_address_and_the_remedy(server: HealthServer) -> None:
    with pytest.raises(HealthServerError, match=rf"127\.0\.0\.1:{server.port}.*Set health\.port to a free port"):
        HealthServer("127.0.0.1", server.port, probes=Probes({}), readiness=Readiness(), metrics=Metrics())


def test_a_closed_server_frees_its_port() -> None:
    def serve(port: int) -> HealthServer:
        return HealthServer("127.0.0.1", port, probes=Probes({}), readiness=Readiness(), metrics=Metrics())

    first = serve(0)
    first.close()
    second = serve(first.port)
    second.close()


def test_silent_clients_hold_no_more_than_the_bounded_number_of_slots(server: HealthServer) -> None:
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(REQUESTS_MAX)]
    try:
        deadline = time.monotonic() + 5
        while threading.active_count() < before + REQUESTS_MAX and time.monotonic() < deadline:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as further:
            assert further.recv(100).startswith(b"HTTP/1.0 503")
    finally:
        for client in silent:
            client.close()
