import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brokers.calendar import CalendarError, SessionCalendar, TradingCalendar, calendar, period_to_ns
from brokers.series import from_ns, to_ns

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
PERIODS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, DAY)

calendars = st.sampled_from(["24/7", "XNYS", "XTKS", "XBOM", "CMES"]).map(calendar)
instants = st.datetimes(datetime(1999, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  made aware
periods = st.sampled_from(PERIODS)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_an_hourly_bar_that_starts_before_the_session_opens_with_the_session() -> None:
    nyse = calendar("XNYS")
    assert nyse.open_of(at("2017-11-22 14:00"), HOUR) == at("2017-11-22 14:30")
    assert nyse.close_of(at("2017-11-22 14:00"), HOUR) == at("2017-11-22 15:00")


def test_the_last_bar_of_a_half_day_closes_with_the_session() -> None:
    nyse = calendar("XNYS")  # the day after Thanksgiving closes at 13:00 New York
    assert nyse.close_of(at("2017-11-24 16:00"), 4 * HOUR) == at("2017-11-24 18:00")
    assert nyse.close_of(at("2017-11-24 00:00"), DAY) == at("2017-11-24 18:00")


def test_a_bar_after_a_half_days_close_is_no_bar() -> None:
    with pytest.raises(CalendarError, match=r"2017-11-24T18:00.*outside every session of calendar XNYS: drop it"):
        calendar("XNYS").close_of(at("2017-11-24 18:00"), HOUR)


def test_a_session_follows_new_york_through_the_change_of_clocks() -> None:
    nyse = calendar("XNYS")
    assert nyse.next_session_open(at("2024-03-08 21:00")) == at("2024-03-11 13:30")
    assert nyse.next_session_open(at("2024-03-07 21:00")) == at("2024-03-08 14:30")
    assert nyse.next_close(at("2024-11-01 20:00"), HOUR) == at("2024-11-04 15:00")


def test_four_hour_bars_keep_to_the_local_clock_through_the_change_of_clocks() -> None:
    nyse = calendar("XNYS")
    winter = nyse.closes_between(at("2024-03-08 00:00"), at("2024-03-09 00:00"), 4 * HOUR)
    summer = nyse.closes_between(at("2024-03-11 00:00"), at("2024-03-12 00:00"), 4 * HOUR)
    assert winter == [at("2024-03-08 17:00"), at("2024-03-08 21:00")]
    assert summer == [at("2024-03-11 16:00"), at("2024-03-11 20:00")]


def test_the_next_close_after_a_long_weekend_is_in_the_next_session() -> None:
    nyse = calendar("XNYS")
    assert nyse.next_close(at("2023-12-29 21:00"), HOUR) == at("2024-01-02 15:00")
    assert nyse.next_close(at("2023-12-29 21:00"), DAY) == at("2024-01-02 21:00")
    assert nyse.next_close(at("2001-09-10 20:00"), DAY) == at("2001-09-17 20:00")


def test_a_daily_bar_carries_midnight_utc_of_its_session() -> None:
    nyse = calendar("XNYS")
    start = at("2024-07-03 00:00")
    assert nyse.open_of(start, DAY) == at("2024-07-03 13:30")
    assert nyse.close_of(start, DAY) == at("2024-07-03 17:00")
    assert nyse.start_of(at("2024-07-03 17:00"), DAY) == start


def test_a_session_that_opens_on_the_day_before_belongs_to_its_own_date() -> None:
    futures = calendar("CMES")
    sunday_evening = np.array([to_ns(at("2024-01-07 23:30"))], dtype=np.int64)
    assert futures.session_ids(sunday_evening)[0] == (date(2024, 1, 8) - date(1970, 1, 1)).days


def test_open_and_closed_times_are_told_apart_at_their_edges() -> None:
    nyse = calendar("XNYS")
    opened, closed = at("2024-01-02 14:30"), at("2024-01-02 21:00")
    assert [nyse.is_open(t) for t in (opened - MINUTE, opened, closed - MINUTE, closed)] == [False, True, True, False]
    assert nyse.session_close_after(opened - HOUR) == closed
    assert nyse.session_close_after(closed) == at("2024-01-03 21:00")


def test_crypto_sessions_are_utc_days() -> None:
    always = calendar("24/7")
    assert always.is_open(at("2024-02-29 23:59"))
    assert always.session_close_after(at("2024-02-29 00:00")) == at("2024-03-01 00:00")
    assert always.next_close(at("2024-02-29 23:55"), 5 * MINUTE) == at("2024-03-01 00:00")


def test_a_calendar_answers_beyond_its_loaded_range_in_both_directions() -> None:
    narrow = calendar("XNYS", date(2024, 1, 1), date(2024, 2, 1))
    assert narrow.next_close(at("2024-02-01 21:00"), HOUR) == at("2024-02-02 15:00")
    assert narrow.next_close(at("2040-01-03 16:10"), HOUR) == at("2040-01-03 17:00")
    assert narrow.close_of(at("1999-11-26 17:00"), HOUR) == at("1999-11-26 18:00")


def test_a_clock_that_runs_over_the_end_of_the_range_never_stops() -> None:
    narrow = SessionCalendar("XNYS", date(2023, 12, 1), date(2023, 12, 29))
    wide = calendar("XNYS")
    now, seen = at("2023-12-20 00:00"), []
    for _ in range(1_500):
        now = narrow.next_close(now, DAY)
        seen.append(now)
    assert seen == wide.closes_between(at("2023-12-20 00:00"), now, DAY)


def test_a_time_that_the_library_does_not_know_is_an_error_that_says_so() -> None:
    with pytest.raises(CalendarError, match=r"XSHG knows its sessions from .* upgrade exchange_calendars"):
        calendar("XSHG").next_close(at("2090-01-01 00:00"), HOUR)


def test_an_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(CalendarError, match="'XNYC': did you mean XNYS"):
        calendar("XNYC")


@pytest.mark.parametrize("name", ["24/7", "XNYS"])
def test_a_period_that_does_not_fit_a_day_is_refused(name: str) -> None:
    with pytest.raises(CalendarError, match=r"period of 420 s .* choose for example 5m"):
        calendar(name).next_close(at("2024-01-02 15:00"), timedelta(minutes=7))


def test_a_naive_time_is_refused_with_its_remedy() -> None:
    with pytest.raises(ValueError, match=r"naive time .*\+00:00"):
        calendar("XNYS").is_open(datetime(2024, 1, 2))  # noqa: DTZ001  the fault under test


def test_the_continuous_calendar_does_not_import_the_session_library() -> None:
    code = (
        "import sys; from brokers.calendar import calendar; calendar('24/7'); "
        "print(sorted({'exchange_calendars', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(calendars, instants, periods)
def test_the_next_close_is_the_first_of_the_closes_that_follow(
    trading: TradingCalendar, instant: datetime, period: timedelta
) -> None:
    following = trading.next_close(instant, period)
    assert trading.closes_between(instant, following, period) == [following]


@given(calendars, instants, periods)
def test_the_previous_close_is_the_last_of_the_closes_before(
    trading: TradingCalendar, instant: datetime, period: timedelta
) -> None:
    previous = trading.previous_close(instant, period)
    assert previous <= instant < trading.next_close(previous, period)
    assert trading.closes_between(previous, instant, period) == []


@given(calendars, instants, periods)
def test_scalar_and_vectorised_faces_agree_on_every_bar_of_a_fortnight(
    trading: TradingCalendar, begin: datetime, period: timedelta
) -> None:
    begin_ns, end_ns, period_ns = to_ns(begin), to_ns(begin + timedelta(days=14)), period_to_ns(period)
    start_ns, open_ns, close_ns = trading.grid_ns(begin_ns, end_ns, period_ns)
    assume(np.all(np.diff(start_ns) > 0))  # two sessions inside one bar share its start: documented
    step = max(1, len(start_ns) // 40)
    for start, opened, close in zip(start_ns[::step], open_ns[::step], close_ns[::step], strict=True):
        assert trading.open_of(from_ns(start), period) == from_ns(opened)
        assert trading.close_of(from_ns(start), period) == from_ns(close)
        assert trading.next_close(from_ns(opened), period) == from_ns(close)
        assert trading.start_of(from_ns(close), period) == from_ns(start)
    assert np.array_equal(trading.starts_ns(open_ns, period_ns), start_ns)
    assert np.all(np.diff(close_ns) > 0)
    assert np.all(close_ns - open_ns <= period_ns)


@given(calendars.filter(lambda c: c.id != "24/7"), instants, periods)
def test_no_bar_reaches_over_the_close_of_its_session(
    trading: TradingCalendar, begin: datetime, period: timedelta
) -> None:
    _, open_ns, close_ns = trading.grid_ns(to_ns(begin), to_ns(begin + timedelta(days=9)), period_to_ns(period))
    for opened, close in zip(open_ns, close_ns, strict=True):
        assert from_ns(close) <= trading.session_close_after(from_ns(opened))
        assert trading.is_open(from_ns(opened))


@given(instants)
def test_every_new_york_session_has_exactly_one_daily_close(instant: datetime) -> None:
    nyse = calendar("XNYS")
    opens = nyse.next_session_open(instant)
    assert nyse.closes_between(opens, nyse.session_close_after(opens), DAY) == [nyse.session_close_after(opens)]
