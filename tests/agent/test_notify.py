"""What people are told, from the ledger to a real webhook: each kind once, in bounds, across failures and restarts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from tandem_cli import replayed
from webhook import Webhook, webhook

from agent import control
from agent.app import end_run
from agent.daily_summary import summary_of
from agent.delivery import AppriseSender, Message
from agent.ledger import schema
from agent.ledger.store import Ledger, open_ledger
from agent.metrics import Metrics
from agent.news import FILLS_READ_MAX, LATE, TOLD_FILLS_MAX, News, NewsDesk
from agent.notify import Notifications
from agent.redaction import Redactor
from agent.settings import NotificationSettings
from brokers.calendar import calendar

T0 = datetime(2024, 3, 4, 12, tzinfo=UTC)
ALL = ["fills", "halts", "incidents", "daily_summary", "start_stop"]
PASSWORD = "T0KEN9secret"  # noqa: S105 - what must not be told


@dataclass
class StandingClock:
    at: datetime = T0
    stepped: bool = True

    def now(self) -> datetime:
        return self.at

    async def advance(self, idle_until: datetime) -> datetime:
        self.at = idle_until
        return self.at


@dataclass
class House:
    """A ledger as a daemon writes it, and its notifications."""

    ledger: Ledger
    clock: StandingClock = field(default_factory=StandingClock)
    metrics: Metrics = field(default_factory=Metrics)
    system_s: float = 1_700_000_000.0
    runs: int = 0
    fills: int = 0

    def begin_run(self) -> int:
        texts = {"version": "1.0", "account_scope": "paper", "venue": "exchange", "strategy": "momentum"}
        row = {"started_at": T0, "started_venue_at": T0, "strategy_id": "m", "settings": {}, **texts}
        with self.ledger.transaction() as connection:
            connection.execute(schema.runs.insert(), row)
        self.runs += 1
        return self.runs

    def fill(self, count: int = 1, at: datetime | None = None) -> None:
        with self.ledger.transaction() as connection:
            for _ in range(count):
                self.fills += 1
                row = {"venue": "exchange", "exec_id": f"{self.fills:06d}", "client_id": "c", "symbol": "ETH"}
                money = {"qty": Decimal("0.50"), "price": Decimal(1800), "fee": Decimal("0.9")}
                when = at or T0 + timedelta(seconds=self.fills)
                self.ledger.upsert(
                    connection, schema.fills, [{**row, **money, "side": "buy", "leg": "entry", "at": when}]
                )
            self.ledger.set_state(connection, "last_execution", {"exec_id": f"{self.fills:06d}"})

    def incident(self, kind: str = "position_drift", detail: str = "the venue says 3, the ledger 2") -> None:
        with self.ledger.transaction() as connection:
            self.ledger.incident(connection, T0, kind, detail, "ETH")

    def close(self, at: datetime, equity: str, status: str = "done") -> None:
        money = {"equity": Decimal(equity), "cash": Decimal(equity), "peak": Decimal(110), "day_start": Decimal(100)}
        with self.ledger.transaction() as connection:
            row = {"close_time": at, "gross_exposure": 0.25, **money}
            self.ledger.upsert(connection, schema.equity, [row])
            cycle = {"close_time": at, "run_id": 1, "status": status, "symbols": 1, "decided_wall_ms": None}
            self.ledger.upsert(connection, schema.cycles, [cycle])

    def desk(self, trading_calendar: str = "24/7") -> NewsDesk:
        return NewsDesk(self.ledger, self.clock, calendar(trading_calendar), run_id=self.runs, decision_deadline_s=10.0)

    def notifications(self, urls: Sequence[str], sender: Any = None, **changes: Any) -> Notifications:
        chosen = NotificationSettings.model_validate({"events": ALL, "timeout_s": 2.0, "retry_s_max": 0.05, **changes})
        return Notifications(
            self.desk(),
            self.ledger,
            self.metrics,
            chosen,
            urls,
            sender or AppriseSender(chosen),
            scope="paper",
            now=lambda: self.system_s,
        )

    def counted(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value("tandem_notifications_total", {"outcome": outcome})
        return value or 0.0


class Written:
    """A sender that writes messages down; it refuses while `fault` is set. For what does not depend on the wire."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.messages: list[Message] = []
        self.attempts = 0

    async def send(self, url: str, message: Message) -> str | None:
        await asyncio.sleep(0)
        self.attempts += 1
        if self.fault is None:
            self.messages.append(message)
        return self.fault

    @property
    def titles(self) -> list[str]:
        return [message.title.partition(": ")[2] for message in self.messages]


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as served:
        yield served


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", redactor=Redactor([PASSWORD]))
    made = House(ledger)
    made.begin_run()
    yield made
    ledger.close()


def tell(notifications: Notifications, until: Callable[[], bool]) -> None:
    """Let notifications run until something is true, then end them as a stop does."""

    async def life() -> None:
        notifications._closing = asyncio.Event()
        notifications.start()
        await wait_until(until)
        await notifications.finish(2.0)

    asyncio.run(life())


async def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.005)


def at_once() -> bool:
    return True


# ---- what is told ---------------------------------------------------------------------------------------


def test_a_start_a_fill_a_halt_an_incident_and_a_stop_reach_a_webhook(house: House, hook: Webhook) -> None:
    notifications = house.notifications([hook.url])

    async def life() -> None:
        notifications.start()
        house.fill()
        control.halt(house.ledger, f"the password {PASSWORD} leaked", T0)
        house.incident()
        end_run(house.ledger, 1, "signal")
        await notifications.finish(20.0)

    asyncio.run(life())
    assert sorted(hook.titles) == [
        "fill: BUY 0.5 ETH at 1,800 (entry)",
        "halt",
        "position drift ETH",
        "started",
        "stopped",
    ]
    assert {message["title"].partition(":")[0] for message in hook.taken} == {"tandem paper"}
    assert PASSWORD not in str(hook.taken)
    assert "the password [redacted] leaked" in str(hook.taken)
    assert house.counted("sent") == 5


def test_only_chosen_events_are_told_and_nothing_of_before_the_first_start(house: House) -> None:
    house.fill(3)
    house.incident("rejected")
    written = Written()
    notifications = house.notifications(["json://localhost/a"], written, events=["fills", "incidents"])

    async def life() -> None:
        notifications.start()
        house.fill()
        house.incident("order_lost")
        control.halt(house.ledger, "not chosen", T0)
        await notifications.finish(5.0)

    asyncio.run(life())
    assert written.titles == ["order lost ETH", "fill: BUY 0.5 ETH at 1,800 (entry)"]


def test_a_run_that_was_cut_off_is_told_with_the_next_start(house: House) -> None:
    written = Written()
    tell(house.notifications(["json://localhost/a"], written), at_once)
    house.begin_run()
    tell(house.notifications(["json://localhost/a"], written), at_once)
    assert written.titles == ["started", "started after a crash"]
    assert "run 1 before it was cut off" in written.messages[1].body


def test_a_stop_that_could_not_be_told_is_told_at_the_next_start(house: House) -> None:
    written = Written()
    written.fault = "silent"
    tell(house.notifications(["json://localhost/a"], written), lambda: written.attempts > 0)
    end_run(house.ledger, 1, "failed: the venue is gone")
    written.fault = None
    house.begin_run()
    tell(house.notifications(["json://localhost/a"], written), at_once)
    assert written.titles == ["started", "stopped by a failure", "started"]
    assert written.messages[1].level == "failure"


# ---- at least once --------------------------------------------------------------------------------------


def test_what_was_told_is_not_told_again_by_the_next_process(house: House) -> None:
    written = Written()
    for _ in range(3):
        tell(house.notifications(["json://localhost/a"], written, messages_max=100), at_once)
        house.fill(2)
    tell(house.notifications(["json://localhost/a"], written, messages_max=100), at_once)
    bodies = [message.body for message in written.messages]
    assert len(bodies) == len(set(bodies)) == 1 + house.fills


def test_killed_while_sending_repeats_that_message_alone(house: House, hook: Webhook) -> None:
    async def killed() -> None:
        notifications = house.notifications([hook.url])
        notifications.start()
        await wait_until(lambda: bool(hook.taken))  # it was taken, and its answer is lost with the process
        for task in notifications._tasks:
            task.cancel()
        await asyncio.gather(*notifications._tasks, return_exceptions=True)

    asyncio.run(killed())
    house.incident()
    tell(house.notifications([hook.url]), lambda: len(hook.taken) >= 3)
    assert hook.titles == ["started", "started", "position drift ETH"]


def test_each_url_has_a_cursor_of_its_own_so_one_that_hangs_delays_no_other(house: House, hook: Webhook) -> None:
    with webhook() as silent:
        silent.behaviour = "hang"
        tell(house.notifications([silent.url, hook.url]), lambda: bool(hook.taken))
        assert hook.titles == ["started"]
        silent.behaviour = "ok"
        tell(house.notifications([silent.url, hook.url]), lambda: bool(silent.taken))
        assert (silent.titles, hook.titles) == (["started"], ["started"])


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5_000), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 6),
)
def test_every_fill_is_told_exactly_once_or_counted_however_they_come(
    batches: list[tuple[int, int, bool]], messages_max: int
) -> None:
    house = House(open_ledger("sqlite://"))
    house.begin_run()
    written = Written()
    at = T0
    tell(house.notifications(["json://localhost/a"], written, events=["fills"]), at_once)
    for count, gap_s, late in batches:
        at += timedelta(seconds=gap_s)
        house.fill(count, at - LATE / 2 if late and house.fills else at)
        house.system_s += 601.0
        tell(house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=messages_max), at_once)
    for _ in range(house.fills):
        house.system_s += 601.0
        tell(house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=messages_max), at_once)
        if sum(map(_events_in, written.titles)) >= house.fills:
            break
    house.ledger.close()
    assert sum(map(_events_in, written.titles)) == house.fills


def _events_in(title: str) -> int:
    return int(title.split()[1].replace(",", "")) if title.startswith("and ") else 1


def test_a_flood_of_fills_after_an_outage_is_read_in_bounds_and_counted_exactly(house: House) -> None:
    written = Written()
    tell(house.notifications(["json://localhost/a"], written, events=["fills"]), at_once)
    house.fill(FILLS_READ_MAX + TOLD_FILLS_MAX + 50)
    tell(house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=1), at_once)
    house.system_s += 601.0
    tell(house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=1), at_once)
    house.system_s += 601.0
    tell(house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=1), at_once)
    assert len(written.titles) == 2
    assert sum(map(_events_in, written.titles)) == house.fills
    state = house.ledger.rows(select(schema.state).where(schema.state.c.key.like("notifications.%")))
    assert max(len(str(row.value)) for row in state) < 20_000


def test_fills_of_one_instant_are_each_told_however_many_there_are() -> None:
    house = House(open_ledger("sqlite://"))
    house.begin_run()
    written = Written()
    tell(house.notifications(["json://localhost/a"], written, events=["fills"]), at_once)
    for count, at in ((TOLD_FILLS_MAX + 5, T0), (2, T0 + timedelta(seconds=1))):
        house.fill(count, at)
        telling = house.notifications(["json://localhost/a"], written, events=["fills"], messages_max=1_000)
        tell(telling, lambda: len(written.titles) >= house.fills)
        assert len(written.titles) == house.fills
    house.ledger.close()


def test_a_year_of_incidents_is_not_searched_for_halts_at_every_look(house: House) -> None:
    looks = Counter[str]()

    class Counting(NewsDesk):
        def news(self, kind: str, position: Any) -> News:
            looks[kind] += 1
            return super().news(kind, position)

    written = Written()
    notifications = house.notifications(["json://localhost/a"], written, events=["halts"])
    notifications._desk = Counting(house.ledger, house.clock, calendar("24/7"), run_id=1, decision_deadline_s=10.0)

    async def life() -> None:
        notifications.start()
        for _ in range(5):
            house.incident()
            await notifications._tell_next(notifications._targets[0])
        assert looks["halts"] == 1
        control.halt(house.ledger, "by hand", T0)
        await wait_until(lambda: written.titles == ["halt"])
        await notifications.finish(2.0)

    asyncio.run(life())


# ---- limits ---------------------------------------------------------------------------------------------


def test_beyond_the_limit_of_an_interval_the_rest_is_one_message(house: House) -> None:
    written = Written()
    house_of = ["json://localhost/a"]
    limits = {"events": ["incidents"], "messages_max": 3, "interval_s": 600.0}
    tell(house.notifications(house_of, written, **limits), at_once)
    for number in range(40):
        house.incident("order_lost", f"order {number}")
    tell(house.notifications(house_of, written, **limits), at_once)
    assert written.titles == ["order lost ETH"] * 3
    house.system_s += 599.0
    tell(house.notifications(house_of, written, **limits), at_once)
    assert len(written.titles) == 3
    house.system_s += 2.0
    tell(house.notifications(house_of, written, **limits), at_once)
    assert written.titles[3:] == ["and 37 more (incidents)"]
    assert "order 3" in written.messages[3].body
    assert "... and 27 more" in written.messages[3].body


def test_a_flood_of_one_kind_silences_no_other(house: House) -> None:
    written = Written()
    notifications = house.notifications(["json://localhost/a"], written, messages_max=1)
    house_events = house.fills

    async def life() -> None:
        notifications.start()
        house.fill(50)
        control.halt(house.ledger, "by hand", T0)
        await notifications.finish(5.0)

    asyncio.run(life())
    assert house_events == 0
    assert sorted(written.titles) == ["fill: BUY 0.5 ETH at 1,800 (entry)", "halt", "started"]


# ---- failures -------------------------------------------------------------------------------------------


def test_an_outage_is_logged_once_retried_and_over_with_the_first_delivery(
    house: House, hook: Webhook, capsys: pytest.CaptureFixture[str]
) -> None:
    from agent.logs import configure  # noqa: PLC0415 - the stream of this test

    configure(level="info", secrets=[PASSWORD])
    hook.behaviour = 500

    async def life() -> None:
        notifications = house.notifications([hook.url])
        notifications.start()
        await wait_until(lambda: len(hook.asked) >= 3)
        hook.behaviour = "ok"
        await wait_until(lambda: bool(hook.taken))
        await notifications.finish(5.0)

    asyncio.run(life())
    told = capsys.readouterr().err
    configure(level="critical")
    assert told.count("a notification was not delivered") == 1
    assert told.count("notifications are delivered again") == 1
    assert PASSWORD not in told
    assert hook.titles == ["started"]
    assert house.counted("failed") >= 3


def test_what_cannot_be_delivered_for_too_long_is_dropped_counted_and_confessed(house: House) -> None:
    written = Written()
    written.fault = "gone"
    limits = {"events": ["incidents", "start_stop"], "give_up_after_s": 0.01}
    tell(house.notifications(["json://localhost/a"], written, **limits), lambda: house.counted("dropped") >= 1)
    written.fault = None
    house.incident()
    tell(house.notifications(["json://localhost/a"], written, **limits), at_once)
    assert written.titles == ["position drift ETH"]
    assert written.messages[0].body.startswith("1 events before this could not be delivered")


@pytest.mark.parametrize("behaviour", ["hang", "dribble"])
def test_the_end_waits_for_nobody_who_hangs(house: House, hook: Webhook, behaviour: str) -> None:
    hook.behaviour = behaviour

    async def life() -> float:
        notifications = house.notifications([hook.url], timeout_s=60.0)
        notifications.start()
        await wait_until(lambda: bool(hook.asked))
        began = time.monotonic()
        await notifications.finish(0.5)
        return time.monotonic() - began

    assert asyncio.run(life()) < 10.0  # the webhook hangs for a minute


def test_the_loop_is_never_held_up_while_a_webhook_hangs(house: House, hook: Webhook) -> None:
    hook.behaviour = "hang"

    async def life() -> float:
        notifications = house.notifications([hook.url], timeout_s=60.0)
        notifications.start()
        longest = 0.0
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - began)
        await notifications.finish(0.0)
        return longest

    assert asyncio.run(life()) < 5.0  # the webhook hangs for a minute


def test_a_ledger_that_cannot_be_written_repeats_nothing_in_this_process(house: House, tmp_path: Path) -> None:
    written = Written()
    notifications = house.notifications(["json://localhost/a"], written, events=["start_stop"])
    path = tmp_path / "ledger.sqlite"

    async def life() -> None:
        notifications.start()
        path.rename(tmp_path / "moved")
        await asyncio.sleep(0.2)
        (tmp_path / "moved").rename(path)
        await notifications.finish(1.0)

    asyncio.run(life())
    assert written.titles == ["started"]


# ---- the daily summary ----------------------------------------------------------------------------------


def told_summaries(house: House, written: Written) -> list[str]:
    tell(house.notifications(["json://localhost/a"], written, events=["daily_summary"]), at_once)
    return written.titles


def test_the_summary_comes_once_when_the_last_close_of_the_day_is_done(house: House) -> None:
    written = Written()
    assert told_summaries(house, written) == []
    end = datetime(2024, 3, 5, tzinfo=UTC)
    house.close(end - timedelta(hours=1), "101")
    house.clock.at = end
    house.close(end, "102.5", status="decided")
    assert told_summaries(house, written) == []
    house.close(end, "102.5")
    assert told_summaries(house, written) == ["summary of 2024-03-04"]
    assert "equity 102.50 USD, profit +2.50 USD (+2.50%)" in written.messages[0].body
    house.clock.at = end + timedelta(hours=2)
    house.close(house.clock.at, "103")
    assert told_summaries(house, written) == ["summary of 2024-03-04"]


def test_a_last_close_that_nobody_decided_holds_the_summary_up_for_minutes_only(house: House) -> None:
    written = Written()
    told_summaries(house, written)
    end = datetime(2024, 3, 5, tzinfo=UTC)
    house.close(end - timedelta(hours=1), "101")
    house.clock.at = end + timedelta(seconds=30)
    assert told_summaries(house, written) == []
    house.clock.at = end + timedelta(minutes=3)
    assert told_summaries(house, written) == ["summary of 2024-03-04"]


def test_days_without_a_daemon_have_no_summary_and_the_day_before_them_has(house: House) -> None:
    written = Written()
    told_summaries(house, written)
    house.close(T0 + timedelta(hours=1), "101")
    house.clock.at = T0 + timedelta(days=5)
    house.close(house.clock.at, "104")
    assert told_summaries(house, written) == ["summary of 2024-03-04"]
    house.clock.at = T0 + timedelta(days=6)
    assert told_summaries(house, written)[1:] == ["summary of 2024-03-09"]
    assert "profit +3.00 USD" in written.messages[1].body


def test_sessions_end_when_the_exchange_closes(house: House) -> None:
    desk = house.desk("XNYS")
    friday = datetime(2024, 3, 8, 21, tzinfo=UTC)
    house.close(friday, "101")
    house.clock.at = friday + timedelta(minutes=1)
    news = desk.news("daily_summary", T0.isoformat())
    assert [event.title for event in news.events] == ["summary of 2024-03-08"]
    assert datetime.fromisoformat(news.after_all) == friday


def test_the_summary_says_what_the_ledger_holds_of_a_real_day(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    result = replayed(path, bars=500)
    with ExitStack() as held:
        ledger = open_ledger(f"sqlite:///{path}")
        held.callback(ledger.close)
        rows = ledger.rows(select(schema.equity).order_by(schema.equity.c.close_time))
        text = summary_of(ledger, rows[0].close_time - timedelta(days=1), rows[-1].close_time)
        fills = ledger.rows(select(schema.fills))
        fees = sum((row.fee for row in fills), Decimal(0))
        assert f"equity {rows[-1].equity:,.2f} USD" in text
        assert f"trades: {len(fills)} fills" in text
        assert f"fees {fees:,.2f} USD" in text
        assert "abstentions: " in text
        assert len(text.splitlines()) == 4
    assert len(fills) == result.metrics["trades"] > 0
