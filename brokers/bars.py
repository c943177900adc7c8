"""Bars files in: read, validate, and turn into one `BarSeries` per symbol.

A bars file is Parquet or CSV with `timestamp` (aware, bar start), `open high low close volume` and optionally
`symbol`. Reserved columns have fixed meanings and are never signals; every other numeric column is a signal.
Nothing is repaired here: a file with faults is refused with one error that lists them all, and
`brokers.bar_import.import_bars` (`tandem data import`) makes a clean file from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from brokers.bar_faults import IMPORT, PRICES, BarsError, Fault, find_faults, rfc3339
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.domain import utc
from brokers.series import BarSeries, Int, to_ns

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "PRICES",
    "REQUIRED",
    "BarsError",
    "Fault",
    "RawBars",
    "infer_period",
    "is_reserved",
    "load_bars",
    "period_text",
    "read_columns",
    "to_series",
]

log = structlog.get_logger(__name__)

REQUIRED = ("timestamp", *PRICES, "volume")
RESERVED = frozenset(
    {"symbol", "adj_factor", "adj_close", "vwap", "liquidity", "trade_count", "revision", "dividend", "split_ratio"}
)
"""Columns with fixed meanings beside the required ones; never features by themselves. So are `bid_*` and `ask_*`."""
RESERVED_PREFIXES = ("bid_", "ask_")

NAMES_SHOWN_MAX = 12
NAME_LENGTH_SHOWN_MAX = 40
_FIRST_YEAR, _LAST_YEAR = 1700, 2250
"""Nanoseconds since 1970 fit 64 bits from 1678 to 2262."""
SYMBOL_LENGTH_MAX = 64
_DUPLICATED = re.compile(r"(.+)_duplicated_\d+")
"""How Polars calls a column whose name the header of a CSV holds a second time."""
_AWARE = r"(Z|[+-]\d{2}:?\d{2})$"
STEPS_TO_JUDGE_MIN = 10
"""So many steps between bars say that a file is of a longer period than was named; fewer may be gaps."""
_DATE_ONLY = r"^\d{4}-\d{2}-\d{2}$"


@dataclass(slots=True)
class RawBars:
    """A file as read: columns of each symbol in file order, and what is wrong with the file so far.

    `columns[symbol]` holds `start_ns` (int64) and float64 arrays by column name.
    """

    source: str
    columns: dict[str, dict[str, NDArray[Any]]]
    signals: tuple[str, ...]
    reserved: tuple[str, ...]
    faults: list[Fault] = field(default_factory=list)


def load_bars(
    path: str | Path,
    *,
    period: timedelta | None,
    calendar: TradingCalendar,
    symbols: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    symbol: str | None = None,
) -> dict[str, BarSeries]:
    """Read and validate a bars file.

    Bars that no session of the calendar overlaps (pre- and post-market) are dropped with a logged count.

    Args:
        path: Parquet or CSV file.
        period: Bar period; None infers the most frequent difference between starts, and logs it.
        calendar: Sessions of the venue; gives each bar its open and close time.
        symbols: Which symbols to read; None for all.
        start: First bar start (inclusive), aware; None for the file's first.
        end: Bar starts end before this, aware; None for the file's last.
        symbol: Name of a single-symbol file's symbol; the file's stem if None.

    Raises:
        BarsError: The file is unusable; the message lists each kind of fault.
    """
    raw = read_columns(path, symbols=symbols, start=start, end=end, symbol=symbol)
    faults = [*raw.faults, *find_faults(raw.columns, raw.signals)]
    if faults:
        raise BarsError(raw.source, faults)
    if period is None:
        period = infer_period((c["start_ns"] for c in raw.columns.values()), raw.source)
        log.info("bars.period_inferred", source=raw.source, period_s=period.total_seconds())
    return to_series(raw, period, calendar)


def read_columns(
    path: str | Path,
    *,
    symbols: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    symbol: str | None = None,
    timezone: str | None = None,
) -> RawBars:
    """Read a bars file as it is, in file order; only what makes it unreadable raises.

    Args:
        path: Parquet or CSV file.
        symbols: Which symbols to read; None for all.
        start: First bar start (inclusive), aware.
        end: Bar starts end before this, aware.
        symbol: Name of a single-symbol file's symbol; the file's stem if None.
        timezone: Zone in which naive timestamps are read; None makes them a fault.

    Raises:
        BarsError: No such file, a column is missing or not numeric, or a symbol is not in it.
    """
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    source = Path(path)
    lazy = _scan(source)
    schema = lazy.collect_schema()
    faults = _structural_faults(schema)
    if faults:
        raise BarsError(str(source), faults)
    if "symbol" in schema and symbol is not None:
        msg = "omit it, or choose with `symbols`"
        raise BarsError(
            str(source), [Fault("a name was given to a file that names its symbols", "", "", symbol, 0, msg)]
        )
    numeric = [n for n, t in schema.items() if (t.is_numeric() or t == pl.Boolean) and n not in {*REQUIRED, "symbol"}]
    reserved = tuple(n for n in numeric if is_reserved(n))
    signals = tuple(n for n in numeric if not is_reserved(n))
    ignored = [n for n in schema if n not in {*REQUIRED, *numeric, "symbol"}]
    if ignored:
        log.info("bars.columns_ignored", source=str(source), columns=ignored, why="not numeric")
    name = pl.col("symbol").cast(pl.String) if "symbol" in schema else pl.lit(symbol or source.stem).alias("symbol")
    start_ns, naive = _start_ns(schema["timestamp"], timezone)
    columns = [pl.col(n).cast(pl.Float64, strict=False) for n in (*PRICES, "volume", *numeric)]
    text = pl.col("timestamp") if schema["timestamp"] == pl.String else pl.lit(None, dtype=pl.String)
    chosen = lazy.select(name, text.alias("_text"), start_ns.alias("start_ns"), *columns)
    if symbols is not None:
        chosen = chosen.filter(pl.col("symbol").is_in(list(symbols)))
    if start is not None:
        chosen = chosen.filter(pl.col("start_ns").is_null() | (pl.col("start_ns") >= to_ns(utc(start))))
    if end is not None:
        chosen = chosen.filter(pl.col("start_ns").is_null() | (pl.col("start_ns") < to_ns(utc(end))))
    try:
        frame = chosen.collect()
    except pl.exceptions.PolarsError as error:
        raise BarsError(str(source), [_unreadable(error)]) from error
    found = [*_symbol_faults(frame), *_timestamp_faults(frame, naive=naive)]
    frame = frame.drop_nulls(["start_ns", "symbol"])
    parts = frame.partition_by("symbol", as_dict=True, maintain_order=True)
    by_symbol = {str(key[0]): _to_numpy(part) for key, part in sorted(parts.items(), key=lambda item: str(item[0][0]))}
    if found and not by_symbol:
        raise BarsError(str(source), found)
    _check_presence(source, lazy.select(name), by_symbol, symbols)
    return RawBars(str(source), by_symbol, signals, reserved, found)


def is_reserved(column: str) -> bool:
    """Tell whether a column has a fixed meaning, so that it can never be a signal."""
    return column in RESERVED or column in REQUIRED or column.startswith(RESERVED_PREFIXES)


def infer_period(starts: Iterable[Int], source: str) -> timedelta:
    """Return the most frequent difference between neighbouring bar starts; the shortest of equals.

    Raises:
        BarsError: No symbol has two bars.
    """
    steps = [np.diff(np.sort(start_ns)) for start_ns in starts]
    differences = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
    values, counts = np.unique(differences[differences > 0], return_counts=True)
    if not len(values):
        fault = Fault("too few bars to infer the period", "", "", "no symbol has two", 0, "give the period, e.g. 5m")
        raise BarsError(source, [fault])
    return timedelta(microseconds=int(values[counts.argmax()]) // 1_000)


def period_text(period: timedelta) -> str:
    """Return a period as `brokers.domain.parse_period` reads it, in the largest unit that fits: `5m`, `1h`, `1d`."""
    seconds = round(period.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def to_series(raw: RawBars, period: timedelta, calendar: TradingCalendar) -> dict[str, BarSeries]:
    """Give validated bars their open and close times; drop those outside every session.

    Raises:
        BarsError: Bars do not lie on the period's clock grid, are of a longer period, or none lies inside a session.
    """
    period_ns = period_to_ns(period)
    series: dict[str, BarSeries] = {}
    off_grid, first_off, dropped = 0, ("", "", ""), 0
    for symbol, columns in raw.columns.items():
        start_ns = columns["start_ns"]
        open_ns, close_ns, keep = calendar.bounds_ns(start_ns, period_ns)
        wrong = keep & (calendar.starts_ns(open_ns, period_ns) != start_ns)
        if wrong.any():
            row = int(wrong.argmax())
            if not off_grid:
                expected = rfc3339(int(calendar.starts_ns(open_ns[row : row + 1], period_ns)[0]))
                first_off = (symbol, rfc3339(int(start_ns[row])), f"that bar starts at {expected}")
            off_grid += int(wrong.sum())
        dropped += int((~keep).sum())
        series[symbol] = _series(symbol, columns, raw.signals, (open_ns, close_ns), keep)
    if off_grid:
        remedy = f"check --period and --calendar, or {IMPORT} --period from finer bars"
        raise BarsError(
            raw.source, [Fault(f"bars are off the clock grid of {period_text(period)}", *first_off, off_grid, remedy)]
        )
    _refuse_longer_bars(raw, period)
    if dropped:
        log.info("bars.outside_sessions_dropped", source=raw.source, calendar=calendar.id, count=dropped)
    series = {symbol: bars for symbol, bars in series.items() if len(bars)}
    if not series:
        remedy = "check the calendar, the symbols and the dates"
        raise BarsError(raw.source, [Fault("no bar lies inside a session", "", "", calendar.id, dropped, remedy)])
    return series


def _refuse_longer_bars(raw: RawBars, period: timedelta) -> None:
    """Refuse hourly bars that are read as 5-minute ones: their starts lie on that grid, their closes would be wrong."""
    starts = [columns["start_ns"] for columns in raw.columns.values()]
    steps = np.concatenate([np.diff(start_ns) for start_ns in starts])
    if len(steps) < STEPS_TO_JUDGE_MIN or int(steps.min()) < 2 * period_to_ns(period):
        return
    own = period_text(infer_period(starts, raw.source))
    kind = f"no two bars are {period_text(period)} apart"
    remedy = f"name their own period: {own}"
    raise BarsError(raw.source, [Fault(kind, "", "", f"the most frequent step is {own}", 0, remedy)])


def _series(
    symbol: str,
    columns: Mapping[str, NDArray[Any]],
    signals: Sequence[str],
    bounds: tuple[Int, Int],
    keep: NDArray[np.bool_],
) -> BarSeries:
    body_high = np.maximum(columns["open"], columns["close"])
    body_low = np.minimum(columns["open"], columns["close"])
    return BarSeries(
        symbol=symbol,
        start_ns=columns["start_ns"][keep],
        close_ns=bounds[1][keep],
        open_ns=bounds[0][keep],
        open=columns["open"][keep],
        high=np.maximum(columns["high"], body_high)[keep],
        low=np.minimum(columns["low"], body_low)[keep],
        close=columns["close"][keep],
        volume=columns["volume"][keep],
        adj_factor=columns.get("adj_factor", np.ones(len(keep)))[keep],
        signals={name: columns[name][keep] for name in signals},
    )


def _scan(path: Path) -> pl.LazyFrame:
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    if path.is_dir():
        raise BarsError(str(path), [Fault("it is a folder", "", "", str(path), 0, "name a Parquet or CSV file in it")])
    if not path.is_file():
        fault = Fault("no such file", "", "", str(path), 0, "name a Parquet or CSV file")
        raise BarsError(str(path), [fault])
    suffix = path.suffix.lower()
    if suffix not in {".parquet", ".pq", ".csv"}:
        fault = Fault("unknown file type", "", "", suffix or "none", 0, "name a .parquet or .csv file")
        raise BarsError(str(path), [fault])
    try:
        lazy = pl.scan_csv(path, infer_schema_length=None) if suffix == ".csv" else pl.scan_parquet(path)
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BarsError(str(path), [_unreadable(error)]) from error
    return lazy


def _unreadable(error: Exception) -> Fault:
    if isinstance(error, PermissionError):
        return Fault("the file cannot be read", "", "", "permission denied", 0, "make it readable for this user")
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Fault("the file cannot be read", "", "", text, 0, "check that it is whole and of the type its name says")


def _names_text(names: Iterable[str]) -> str:
    """Return names that a file gave, made fit for one line: a damaged header may hold anything."""
    every = list(names)
    shown = [repr(name[:NAME_LENGTH_SHOWN_MAX])[1:-1] for name in every[:NAMES_SHOWN_MAX]]
    return ", ".join(shown) + (f" and {len(every) - len(shown)} more" if len(every) > len(shown) else "")


def _structural_faults(schema: Mapping[str, Any]) -> list[Fault]:
    """Return what is wrong with the columns themselves."""
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    faults = []
    missing = [name for name in REQUIRED if name not in schema]
    if missing:
        remedy = f"rename or add them; the file has {_names_text(schema) or 'none'}"
        faults.append(Fault("columns are missing", "", "", ", ".join(missing), 0, remedy))
    twice = [match[1] for name in schema if (match := _DUPLICATED.fullmatch(name)) and match[1] in schema]
    if twice:
        faults.append(Fault("columns have the same name", "", "", _names_text(twice), 0, "keep one of each"))
    texts = [n for n in (*PRICES, "volume") if n in schema and not (schema[n].is_numeric() or schema[n] == pl.String)]
    if texts:
        faults.append(
            Fault("columns are not numbers", "", "", ", ".join(texts), 0, "write plain numbers, empty for none")
        )
    stamp = schema.get("timestamp")
    if stamp is not None and not isinstance(stamp, pl.Datetime) and stamp not in {pl.String, pl.Date}:
        remedy = "write aware times, for example 2024-01-31T14:30:00Z; a bare number has no unit"
        faults.append(Fault("timestamps are not times", "", "", str(stamp), 0, remedy))
    return faults


def _start_ns(dtype: Any, timezone: str | None) -> tuple[pl.Expr, pl.Expr]:
    """Return (bar start in ns or null, is naive) as expressions on `timestamp` and its text."""
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    stamp = pl.col("timestamp")
    zone = timezone or "UTC"
    if dtype != pl.String:
        held = pl.when(stamp.dt.year().is_between(_FIRST_YEAR, _LAST_YEAR)).then(stamp)
        if dtype == pl.Date:
            return held.cast(pl.Datetime("ns")).dt.epoch("ns"), pl.lit(value=False)
        if dtype.time_zone is not None:
            return held.dt.epoch("ns"), pl.lit(value=False)
        return held.dt.replace_time_zone(zone).dt.epoch("ns"), pl.lit(timezone is None)
    text = stamp.str.strip_chars()
    # year first: whether 01/02/2024 is in January or February would be a guess
    year = text.str.extract(r"^(\d{4})").cast(pl.Int32, strict=False)
    text = pl.when(year.is_between(_FIRST_YEAR, _LAST_YEAR)).then(text)
    is_date = text.str.contains(_DATE_ONLY)
    is_aware = text.str.contains(_AWARE) & ~is_date
    aware = pl.when(is_aware).then(text).str.to_datetime(time_unit="ns", time_zone="UTC", strict=False)
    date = pl.when(is_date).then(text).str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ns"))
    local = pl.when(~is_aware & ~is_date).then(text).str.to_datetime(time_unit="ns", strict=False)
    parsed = pl.coalesce(aware.dt.epoch("ns"), date.dt.epoch("ns"), local.dt.replace_time_zone(zone).dt.epoch("ns"))
    kept_text = pl.col("_text").str.strip_chars()
    naive = ~kept_text.str.contains(_AWARE) & ~kept_text.str.contains(_DATE_ONLY) & pl.lit(timezone is None)
    return parsed, naive


def _symbol_faults(frame: pl.DataFrame) -> list[Fault]:
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    name = pl.col("symbol")
    found = []
    unnamed = frame.filter(name.is_null() | name.str.strip_chars().is_in(["", ".", ".."]))
    if len(unnamed):
        at = unnamed["start_ns"][0]
        where = "a row" if at is None else f"the bar at {rfc3339(at)}"
        remedy = "write the symbol into every row"
        found.append(Fault("a row names no symbol", "", "", where, len(unnamed), remedy))
    for symbol in frame["symbol"].drop_nulls().unique().sort().to_list():
        if symbol.strip() and not (symbol.isprintable() and len(symbol) <= SYMBOL_LENGTH_MAX):
            shown = ascii(symbol[:SYMBOL_LENGTH_MAX])
            remedy = f"write at most {SYMBOL_LENGTH_MAX} letters, digits and signs, nothing that a terminal obeys"
            rows = int((frame["symbol"] == symbol).sum())
            found.append(Fault("a symbol cannot be shown as it is", "", "", shown, rows, remedy))
    return found


def _timestamp_faults(frame: pl.DataFrame, *, naive: pl.Expr) -> list[Fault]:
    import polars as pl  # noqa: PLC0415  heavy: only who reads files pays for it

    faults = []
    unread = frame.filter(pl.col("start_ns").is_null())
    if len(unread):
        remedy = f"write aware times of {_FIRST_YEAR} to {_LAST_YEAR}, for example 2024-01-31T14:30:00Z"
        text = _names_text([str(unread["_text"][0] or "an empty row")])
        symbol = _names_text([str(unread["symbol"][0])])
        what = "empty, or not a time in that range"
        faults.append(Fault("a timestamp cannot be read", symbol, text, what, len(unread), remedy))
    unaware = frame.filter(pl.col("start_ns").is_not_null() & naive)
    if len(unaware):
        remedy = "write them in UTC with a zone (2024-01-31T14:30:00Z), or `tandem data import --timezone ZONE`"
        row = unaware.row(0, named=True)
        text = row["_text"] or rfc3339(row["start_ns"]).removesuffix("Z")
        fault = Fault("timestamps have no time zone", row["symbol"], text, "naive", len(unaware), remedy)
        faults.append(fault)
    return faults


def _check_presence(
    source: Path, names: pl.LazyFrame, found: Mapping[str, object], symbols: Sequence[str] | None
) -> None:
    absent = [name for name in symbols or () if name not in found]
    if not absent and found:
        return
    known = names.unique().collect()["symbol"].sort().to_list()
    has = _names_text(str(name) for name in known)
    if absent:
        fault = Fault("no bars of a symbol", ", ".join(absent), "", ", ".join(absent), 0, f"the file has {has}")
    else:
        fault = Fault("no bars", "", "", "none in this span", 0, f"the file has {has or 'no rows'}")
    raise BarsError(str(source), [fault])


def _to_numpy(part: pl.DataFrame) -> dict[str, NDArray[Any]]:

    numeric = part.drop("symbol", "_text")
    return {
        c.name: (c if c.name == "start_ns" else c.fill_null(float("nan"))).to_numpy() for c in numeric.iter_columns()
    }
