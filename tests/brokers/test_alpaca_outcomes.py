"""Every way in which a submission or a question to an Alpaca-shaped venue can end."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, Reply, Seen, order_json, serving

from brokers.alpaca import LEGS_MISSING, AlpacaBroker, AlpacaClient, AlpacaSettings, inline
from brokers.alpaca.transport import IncompatibleSdkError, require_sdk
from brokers.domain import (
    AuthError,
    BrokerError,
    DuplicateClientIdError,
    Leg,
    Order,
    OrderRequest,
    OrderState,
    OutcomeUnknownError,
    RateLimitedError,
    RejectedError,
    Side,
    UnavailableError,
)

KEY, SECRET = "PKTESTKEYID123456", "s3cr3tS3cr3tS3cr3tS3cr3t"
ENTRY = OrderRequest("t1-abc", "SPY", Side.BUY, Decimal(2), take_profit=Decimal("120.50"), stop_loss=Decimal("99.1"))
PLAIN = OrderRequest("t1-abc", "SPY", Side.BUY, Decimal(2))
HTML = Reply(502, b"<html><h1>502 Bad Gateway</h1></html>", {"Content-Type": "text/html"})


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCA_API_KEY_ID", KEY)
    monkeypatch.setenv("APCA_API_SECRET_KEY", SECRET)


@pytest.fixture
def venue() -> Iterator[Loopback]:
    with serving(lambda seen: Reply(200, order_json(seen.body))) as server:
        yield server


def broker_at(venue: Loopback, **changes: Any) -> AlpacaBroker:
    settings = {"connect_timeout_s": 0.5, "read_timeout_s": 0.3, "outage_s_max": 0.2} | changes
    return AlpacaBroker(AlpacaSettings(url=venue.url, **settings), run=inline)


def submitted(venue: Loopback, request: OrderRequest = PLAIN, **changes: Any) -> Order:
    async def run() -> Order:
        broker = broker_at(venue, **changes)
        try:
            return await broker.submit(request)
        finally:
            await broker.close()

    return asyncio.run(run())


def asked(venue: Loopback, question: Callable[[AlpacaBroker], Any], **changes: Any) -> Any:
    async def run() -> Any:
        broker = broker_at(venue, **changes)
        try:
            return await question(broker)
        finally:
            await broker.close()

    return asyncio.run(run())


def test_an_accepted_order_comes_back_with_its_legs(venue: Loopback) -> None:
    order = submitted(venue, ENTRY)

    assert (order.client_id, order.state, order.qty, order.reason) == ("t1-abc", OrderState.ACCEPTED, Decimal(2), "")
    assert [(leg.leg, leg.parent_client_id, leg.state) for leg in order.legs] == [
        (Leg.TAKE_PROFIT, "t1-abc", OrderState.HELD),
        (Leg.STOP, "t1-abc", OrderState.HELD),
    ]


def test_an_entry_accepted_without_its_legs_is_an_order_that_says_so(venue: Loopback) -> None:
    venue.answer = lambda seen: Reply(200, order_json(seen.body, legs=None))

    order = submitted(venue, ENTRY)

    assert (order.state, order.reason) == (OrderState.ACCEPTED, LEGS_MISSING)


def test_an_unknown_status_in_the_answer_is_an_unknown_order_and_no_exception(venue: Loopback) -> None:
    venue.answer = lambda seen: Reply(200, order_json(seen.body, status="quantum", order_class="new_class"))

    order = submitted(venue)

    assert (order.state, order.client_id) == (OrderState.UNKNOWN, "t1-abc")


def test_a_venue_that_never_answers_times_out_with_the_outcome_unknown(venue: Loopback) -> None:
    venue.answer = lambda _: Reply(hang=True)
    began = time.monotonic()

    with pytest.raises(OutcomeUnknownError, match="t1-abc"):
        submitted(venue)

    assert time.monotonic() - began < 1.0


def test_an_answer_that_drips_byte_by_byte_ends_at_the_limit(venue: Loopback) -> None:
    venue.answer = lambda seen: Reply(200, order_json(seen.body), drip_s=0.05)
    began = time.monotonic()

    with pytest.raises(OutcomeUnknownError):
        submitted(venue)

    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "reply",
    [
        Reply(504, {"message": "timeout"}),
        Reply(500, {"code": 50010000, "message": "internal server error"}),
        Reply(503, b""),
        HTML,
        Reply(404, b"<html>not found</html>", {"Content-Type": "text/html"}),
        Reply(302, b"", {"Location": "/elsewhere"}),
        Reply(200, b"<html>welcome</html>"),
        Reply(200, b""),
        Reply(200, []),
        Reply(200, {"message": "fine"}),
        Reply(200, order_json(client_order_id="someone-else")),
        Reply(200, order_json(client_order_id="t1-abc", filled_qty="many")),
        Reply(200, order_json(client_order_id="t1-abc"), reset_after=20),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body)[:24]}-{reply.reset_after}",
)
def test_what_does_not_settle_a_submission_leaves_it_unknown_after_exactly_one_post(
    venue: Loopback, reply: Reply
) -> None:
    venue.answer = lambda _: reply

    with pytest.raises(OutcomeUnknownError):
        submitted(venue)

    assert len(venue.seen) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"code": 40310000, "message": "insufficient buying power"}),
        (422, {"code": 42210000, "message": "invalid crypto time_in_force"}),
        (422, {"code": 40010001, "message": "qty must be > 0"}),
        (400, {"message": "bad request"}),
        (404, {"code": 40410000, "message": "asset not found"}),
    ],
)
def test_a_definite_refusal_is_a_rejection_with_the_venues_code(
    venue: Loopback, status: int, body: dict[str, Any]
) -> None:
    venue.answer = lambda _: Reply(status, body)

    with pytest.raises(RejectedError) as caught:
        submitted(venue)

    assert caught.value.code == str(body.get("code", f"http_{status}"))
    assert type(caught.value) is RejectedError


def test_a_client_id_that_the_venue_knows_is_a_duplicate(venue: Loopback) -> None:
    venue.answer = lambda _: Reply(422, {"code": 40010001, "message": "client_order_id must be unique"})

    with pytest.raises(DuplicateClientIdError):
        submitted(venue)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"message": "unauthorized."}),
        (401, b"<html>who are you</html>"),
        (403, {"message": "forbidden."}),
        (403, {"code": 40110000, "message": "access key verification failed"}),
    ],
)
def test_refused_keys_are_an_auth_error_for_orders_and_questions(venue: Loopback, status: int, body: Any) -> None:
    venue.answer = lambda _: Reply(status, body)

    with pytest.raises(AuthError):
        submitted(venue)
    with pytest.raises(AuthError):
        asked(venue, lambda broker: broker.positions())


def test_a_rate_limit_says_when_to_ask_again_and_nothing_more_is_sent_before(venue: Loopback) -> None:
    reset = str(int(time.time()) + 30)
    venue.answer = lambda _: Reply(
        429, {"code": 42910000, "message": "rate limit exceeded"}, {"X-RateLimit-Reset": reset}
    )

    async def run() -> None:
        broker = broker_at(venue)
        for _ in range(2):
            with pytest.raises(RateLimitedError) as caught:
                await broker.submit(PLAIN)
            assert 25 < caught.value.retry_after_s <= 30
        with pytest.raises(UnavailableError):
            await broker.cancel("t1-abc")
        await broker.close()

    asyncio.run(run())

    assert len(venue.seen) == 1


def test_a_question_is_repeated_until_the_venue_is_back(venue: Loopback) -> None:
    replies = iter([HTML, Reply(503, b""), Reply(200, [])])
    venue.answer = lambda _: next(replies)

    assert asked(venue, lambda broker: broker.positions(), outage_s_max=5.0) == {}
    assert venue.count("GET") == 3


def test_a_question_waits_as_long_as_the_venue_asks(venue: Loopback) -> None:
    replies = iter([Reply(429, {"code": 42910000, "message": "slow"}, {"Retry-After": "1"}), Reply(200, [])])
    venue.answer = lambda _: next(replies)
    began = time.monotonic()

    asked(venue, lambda broker: broker.positions(), outage_s_max=5.0)

    assert 1.0 <= time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "question",
    [
        lambda broker: broker.positions(),
        lambda broker: broker.open_orders(),
        lambda broker: broker.fills(None),
        lambda broker: broker.account(),
        lambda broker: broker.order("t1-abc"),
        lambda broker: broker.instruments(["SPY"]),
        lambda broker: broker.cancel("t1-abc"),
    ],
    ids=["positions", "open_orders", "fills", "account", "order", "instruments", "cancel"],
)
@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        Reply(404, b"<html>gone</html>"),
        Reply(404, {"detail": "Not Found"}),
        Reply(200, b""),
        Reply(200, {"surprise": 1}),
        Reply(200, [{"surprise": 1}]),
        Reply(200, [1]),
        Reply(302, b"", {"Location": "/"}),
        Reply(hang=True),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body)[:24]}-{reply.hang}",
)
def test_a_failed_question_is_unavailable_and_never_empty(
    venue: Loopback, reply: Reply, question: Callable[[AlpacaBroker], Any]
) -> None:
    venue.answer = lambda _: reply

    with pytest.raises(UnavailableError):
        asked(venue, question)


def test_a_venue_that_is_not_there_is_unavailable(venue: Loopback) -> None:
    with serving(lambda _: Reply()) as gone:
        pass

    with pytest.raises(UnavailableError, match="no usable answer within"):
        asked(gone, lambda broker: broker.positions())
    with pytest.raises(OutcomeUnknownError):
        submitted(gone)


def test_an_order_is_absent_only_on_the_venues_own_not_found(venue: Loopback) -> None:
    venue.answer = lambda _: Reply(404, {"code": 40410000, "message": "order not found for t1-abc"})

    assert asked(venue, lambda broker: broker.order("t1-abc")) is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(204),
        Reply(404, {"code": 40410000, "message": "order not found"}),
        Reply(422, {"code": 42210000, "message": 'order is already in "filled" state'}),
    ],
    ids=["accepted", "unknown", "terminal"],
)
def test_a_cancellation_that_has_nothing_left_to_do_is_fine(venue: Loopback, reply: Reply) -> None:
    looks = iter(["accepted", "filled"])
    venue.answer = lambda seen: (
        reply if seen.method == "DELETE" else Reply(200, order_json(client_order_id="t1-abc", status=next(looks)))
    )

    asked(venue, lambda broker: broker.cancel("t1-abc"))

    assert venue.count("DELETE") == 1


def test_a_cancellation_that_the_venue_refuses_for_a_working_order_is_unavailable(venue: Loopback) -> None:
    venue.answer = lambda seen: (
        Reply(422, {"code": 42210000, "message": "order pending replacement"})
        if seen.method == "DELETE"
        else Reply(200, order_json(client_order_id="t1-abc"))
    )

    with pytest.raises(UnavailableError, match="not settled"):
        asked(venue, lambda broker: broker.cancel("t1-abc"))


def test_entries_leave_a_reserve_of_requests_to_exits(venue: Loopback) -> None:
    async def run() -> tuple[int, int]:
        broker = broker_at(venue, requests_per_minute=20)
        sent = {Leg.ENTRY: 0, Leg.CLOSE: 0}
        for leg in (Leg.ENTRY, Leg.CLOSE):
            for _ in range(20):
                try:
                    await broker.submit(OrderRequest("t1-abc", "SPY", Side.BUY, Decimal(1), leg=leg))
                except RateLimitedError:
                    break
                sent[leg] += 1
        await broker.close()
        return sent[Leg.ENTRY], sent[Leg.CLOSE]

    entries, exits = asyncio.run(run())

    assert (entries, exits) == (3, 3)


def test_one_connection_serves_call_after_call(venue: Loopback) -> None:
    async def run() -> None:
        broker = broker_at(venue)
        for _ in range(5):
            await broker.submit(PLAIN)
        await broker.close()

    asyncio.run(run())

    assert len({seen.port for seen in venue.seen}) == 1


def test_a_hanging_question_does_not_delay_an_order(venue: Loopback) -> None:
    venue.answer = lambda seen: Reply(hang=True) if seen.method == "GET" else Reply(200, order_json(seen.body))

    async def run() -> float:
        settings = AlpacaSettings(url=venue.url, read_timeout_s=1.0, outage_s_max=0.0)
        broker = AlpacaBroker(settings)
        question = asyncio.create_task(broker.positions())
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await broker.submit(PLAIN)
        took = time.monotonic() - began
        with pytest.raises(UnavailableError):
            await question
        await broker.close()
        return took

    assert asyncio.run(run()) < 0.5


def test_a_sdk_that_renamed_its_retry_switch_is_refused() -> None:
    class Renamed:
        _session = None
        _request = None
        _attempts = 3

    with pytest.raises(IncompatibleSdkError, match="_retry, _retry_codes"):
        require_sdk(Renamed())


@pytest.mark.parametrize(
    "url",
    [
        "https://api.alpaca.markets",
        "https://API.alpaca.markets.",
        "https://broker-api.alpaca.markets",
        "http://paper-api.alpaca.markets",
        "https://paper-api.alpaca.markets@evil.example",
        "https://paper-api.alpaca.markets.evil.example",
        "http://192.168.1.2:8000",
        "http://127.0.0.1.evil.example",
        "ftp://127.0.0.1",
        "https://paper-api.alpaca.markets/v2",
        "",
    ],
)
def test_a_host_that_is_not_paper_is_refused_before_any_key_is_read(url: str, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-key"

    with pytest.raises(AuthError) as caught:
        AlpacaClient(AlpacaSettings(url=url, key_id_file=missing, secret_key_file=missing))

    assert "no-such-key" not in str(caught.value)


def test_paper_and_loopback_are_allowed() -> None:
    assert AlpacaSettings().trading_url == "https://paper-api.alpaca.markets"
    assert AlpacaSettings().market_data_url == "https://data.alpaca.markets"
    assert AlpacaSettings(kind="exchange", url="http://[::1]:9/").market_data_url == "http://[::1]:9"


def test_missing_keys_are_named_and_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APCA_API_SECRET_KEY")

    with pytest.raises(AuthError, match="APCA_API_SECRET_KEY"):
        AlpacaClient(AlpacaSettings())


def test_keys_come_from_files_and_the_exchange_never_sees_those_of_the_environment(
    venue: Loopback, tmp_path: Path
) -> None:
    key, secret = tmp_path / "key", tmp_path / "secret"
    key.write_text("FILEKEY\n")
    secret.write_text("FILESECRET\n")

    submitted(venue, key_id_file=key, secret_key_file=secret)
    submitted(venue, kind="exchange")

    assert venue.seen[0].headers["APCA-API-KEY-ID"] == "FILEKEY"
    assert venue.seen[0].headers["APCA-API-SECRET-KEY"] == "FILESECRET"
    assert KEY not in str(venue.seen[1].headers)
    assert SECRET not in str(venue.seen[1].headers)


def everything_of(error: BaseException | None) -> str:
    """The locals of every frame outside the tests, of an error and of all that led to it."""
    parts: list[str] = []
    while error is not None:
        parts += [repr(error), str(error)]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "tests" not in Path(frame.f_code.co_filename).parts:
                parts += [repr(value) for value in frame.f_locals.values()]
        error = error.__cause__ or error.__context__
    return "".join(parts)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(401, {"message": f"unknown key {KEY} with {SECRET}"}),
        Reply(422, {"code": 1, "message": f"no {SECRET}"}),
        Reply(500, f"<pre>{SECRET} {KEY}</pre>".encode()),
        Reply(hang=True),
        Reply(200, b"not json", reset_after=3),
    ],
    ids=["401", "422", "500", "hang", "reset"],
)
def test_keys_never_reach_an_error_a_traceback_with_locals_or_a_log(
    venue: Loopback, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    venue.answer = lambda _: reply
    caplog.set_level(logging.DEBUG)

    for call in (lambda broker: broker.submit(PLAIN), lambda broker: broker.account()):
        with pytest.raises(BrokerError) as caught:
            asked(venue, call)
        shown = everything_of(caught.value) + caplog.text
        assert SECRET not in shown
        assert KEY not in shown


def test_keys_are_not_in_the_repr_of_any_part(venue: Loopback) -> None:
    broker = broker_at(venue)

    shown = repr([broker, broker.client, broker.client._transport, broker.client._transport._credentials])

    assert SECRET not in shown
    assert KEY not in shown


def test_what_goes_over_the_wire_is_seen_by_the_venue_as_paper_sees_it(venue: Loopback) -> None:
    submitted(venue, ENTRY)

    seen: Seen = venue.seen[0]
    assert (seen.method, seen.path) == ("POST", "/v2/orders")
    assert seen.body == {
        "symbol": "SPY",
        "qty": "2",
        "side": "buy",
        "type": "market",
        "time_in_force": "gtc",
        "client_order_id": "t1-abc",
        "order_class": "bracket",
        "take_profit": {"limit_price": "120.5"},
        "stop_loss": {"stop_price": "99.1"},
    }
