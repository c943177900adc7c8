"""Where a bar's close stands in its day, session and week; from the calendar alone, known beforehand."""

from __future__ import annotations

import math

import numpy as np

from brokers.calendar import DAY_NS, TradingCalendar
from brokers.series import Int
from strategies.features.columns import Float

CLOCK_COLUMNS = ("time_sin", "time_cos", "week_sin", "week_cos", "progress")


def clock_columns(calendar: TradingCalendar, session_T: Int, close_ns_T: Int) -> dict[str, Float]:
    """Return the clock columns of bars, by session (days since the epoch) and close.

    `time_*` is the time since the session's open on a circle of 24 hours, so daylight saving does not move
    it and 24/7 venues get the time of day, UTC; `week_*` is the session's weekday on a circle of 7;
    `progress` is the share of the session that has passed at the close, in (0, 1].
    """
    open_ns_T, end_ns_T, _ = calendar.bounds_ns(session_T * DAY_NS, DAY_NS)
    elapsed_T = (close_ns_T - open_ns_T).astype(np.float64)
    angle_T = elapsed_T * (2.0 * math.pi / DAY_NS)
    # 1970-01-01 was a Thursday
    weekday_T = ((session_T + 3) % 7).astype(np.float64) * (2.0 * math.pi / 7.0)
    return {
        "time_sin": np.sin(angle_T),
        "time_cos": np.cos(angle_T),
        "week_sin": np.sin(weekday_T),
        "week_cos": np.cos(weekday_T),
        "progress": elapsed_T / (end_ns_T - open_ns_T),
    }
