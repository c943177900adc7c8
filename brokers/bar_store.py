"""The bar store: completed bars on disk, one Parquet file per (period, symbol, month), written whole, never appended.

Beside the history of each period lies one compacted file with the last `tail_bars` bars of every symbol, so a warm
start reads one file instead of one per symbol. The tail is a cache: a marker file stands while history and tail may
differ, and as long as it stands (a crash in between) reads go to the history and the next write rebuilds the tail.

    <root>/<period>/history/<symbol>/<YYYY-MM>.parquet
    <root>/<period>/tail.parquet, tail.dirty

Each file is a valid bars file (`brokers.bars`). One process writes; any number may read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import numpy as np

from brokers.bars import is_reserved, period_text
from brokers.calendar import TradingCalendar, period_to_ns
from brokers.domain import Bar, utc
from brokers.files import atomic_write, sync_folder, write_parquet
from brokers.series import BarSeries, from_ns, to_ns

if TYPE_CHECKING:
    import polars as pl

_VALUES = ("open", "high", "low", "close", "volume", "adj_factor")
_TIMES = ("timestamp", "open_time", "close_time")
_FIXED = ("symbol", *_TIMES, *_VALUES, "revision")
MISSING_SHOWN_MAX = 1_000


class BarStoreError(ValueError):
    """Bars that the store cannot take."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What a write did with the bars it was given.

    Args:
        added: Bars that were not there.
        revised: Bars that replaced one of a lower revision.
        unchanged: Bars of a revision that the store has already, or had surpassed; the stored one stays.
    """

    added: int
    revised: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Completeness:
    """How many of the bars that should exist do.

    Args:
        symbol: Canonical symbol.
        expected: Bar closes of the calendar in the span.
        present: Bars of those closes in the store.
        revised: Present bars that were corrected at least once.
        missing: Closes without a bar, oldest first, at most `MISSING_SHOWN_MAX`.
    """

    symbol: str
    expected: int
    present: int
    revised: int
    missing: tuple[datetime, ...]

    @property
    def fraction(self) -> float:
        """Present over expected; 1 where nothing was expected."""
        return self.present / self.expected if self.expected else 1.0


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far the store lies behind venue time.

    Args:
        symbol: Canonical symbol.
        last_close: Close of the newest bar; None where the store has none.
        missed: Bar closes after it up to now; None where the store has none.
    """

    symbol: str
    last_close: datetime | None
    missed: int | None


class BarStore:
    """Completed bars by symbol and period under one folder.

    Args:
        root: Folder of the store; made on the first write.
        tail_bars: Bars of each symbol in the compacted tail.
    """

    def __init__(self, root: str | Path, *, tail_bars: int = 1_200) -> None:
        self.root = Path(root)
        self.tail_bars = tail_bars

    def write_session(self, bars: Iterable[Bar], *, period: timedelta, calendar: TradingCalendar) -> WriteReport:
        """Merge completed bars, of any symbols, into the store; of two revisions of a bar the higher stays.

        Raises:
            BarStoreError: A bar lies outside every session, or carries a signal with a reserved name.
            OSError: The disk refused; each file is then either as before or as after.
        """
        return self.write_pieces([bars], period=period, calendar=calendar)

    def write_pieces(
        self, pieces: Iterable[Iterable[Bar]], *, period: timedelta, calendar: TradingCalendar
    ) -> WriteReport:
        """Do the same with many bars, of which one piece after the other is asked for and in memory.

        An error, the pieces' own included, leaves the pieces before it in the store.

        Raises:
            BarStoreError: See `write_session`.
            OSError: Likewise.
        """
        return self._write((_frames_of_bars(piece, period, calendar) for piece in pieces), period)

    def write_series(self, series: Mapping[str, BarSeries], *, period: timedelta, revision: int = 0) -> WriteReport:
        """Merge whole series (a backfill, an import) into the store, all as one revision."""
        return self._write([{s: _frame_of_series(part, revision) for s, part in series.items() if len(part)}], period)

    def read(
        self,
        symbol: str,
        period: timedelta,
        *,
        last_n: int | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> BarSeries:
        """Return stored bars with start <= bar.start < end, of those the last `last_n`; empty where none is stored."""
        if start is None and end is None and last_n is not None:
            return self.read_many([symbol], period, last_n)[symbol]
        frame = self._history(symbol, period, start, end)
        return _series(symbol, frame if last_n is None else frame.tail(last_n))

    def read_many(self, symbols: Sequence[str], period: timedelta, last_n: int) -> dict[str, BarSeries]:
        """Return the last `last_n` stored bars of each symbol; from one file where `last_n` <= `tail_bars`."""
        parts = self._tail(period, symbols) if last_n <= self.tail_bars else {}
        short = [symbol for symbol in symbols if symbol not in parts or len(parts[symbol]) < last_n]
        parts |= {symbol: self._last(symbol, period, last_n) for symbol in short}
        return {symbol: _series(symbol, parts[symbol].tail(last_n)) for symbol in symbols}

    def symbols(self, period: timedelta) -> list[str]:
        """Return the symbols that have bars of this period."""
        history = self._folder(period) / "history"
        return sorted(unquote(folder.name) for folder in history.iterdir()) if history.is_dir() else []

    def completeness(
        self, symbol: str, start: datetime, end: datetime, calendar: TradingCalendar, period: timedelta
    ) -> Completeness:
        """Compare stored bars with the closes that the calendar expects in start < close <= end."""
        _, _, expected = calendar.grid_ns(to_ns(utc(start)), to_ns(utc(end)), period_to_ns(period))
        margin = max(period, timedelta(days=1))
        frame = self._history(symbol, period, start - margin, end + margin)
        have = _ns(frame, "close_time")
        present = np.isin(expected, have)
        counted = np.isin(have, expected)
        missing = tuple(from_ns(ns) for ns in expected[~present][:MISSING_SHOWN_MAX])
        revised = int((frame["revision"].to_numpy()[counted] > 0).sum()) if len(frame) else 0
        return Completeness(symbol, len(expected), int(present.sum()), revised, missing)

    def staleness(self, symbol: str, now: datetime, calendar: TradingCalendar, period: timedelta) -> Staleness:
        """Return the newest bar's close and how many closes have passed since."""
        newest = self.read(symbol, period, last_n=1)
        if not len(newest):
            return Staleness(symbol, None, None)
        last_close = from_ns(newest.close_ns[-1])
        return Staleness(symbol, last_close, len(calendar.closes_between(last_close, now, period)))

    def _folder(self, period: timedelta) -> Path:
        return self.root / period_text(period)

    def _symbol_folder(self, symbol: str, period: timedelta) -> Path:
        name = quote(symbol, safe="")
        if name in {"", ".", ".."}:
            msg = f"symbol {symbol!r} cannot name a folder: give the instrument's name"
            raise BarStoreError(msg)
        return self._folder(period) / "history" / name

    def _write(self, pieces: Iterable[Mapping[str, pl.DataFrame]], period: timedelta) -> WriteReport:
        marker = self._folder(period) / "tail.dirty"
        was_dirty, changed = marker.exists(), set[str]()
        added = revised = total = 0
        for frames in pieces:
            folders = {symbol: self._symbol_folder(symbol, period) for symbol in frames}
            if folders and not changed:
                marker.parent.mkdir(parents=True, exist_ok=True)
                _remove_remains(marker.parent)
                with atomic_write(marker):
                    pass
            changed |= folders.keys()
            for symbol, folder in folders.items():
                folder.mkdir(parents=True, exist_ok=True)
                _remove_remains(folder)
                for month, part in _by_month(frames[symbol]):
                    path = folder / f"{month}.parquet"
                    merged, new, better = _merge(_read(path) if path.exists() else None, part)
                    added, revised, total = added + new, revised + better, total + len(part)
                    if new or better:
                        write_parquet(merged, path)
        if changed:
            self._rebuild_tail(period, set(self.symbols(period)) if was_dirty else changed)
            marker.unlink()
            sync_folder(marker.parent)
        return WriteReport(added, revised, total - added - revised)

    def _rebuild_tail(self, period: timedelta, changed: AbstractSet[str]) -> None:
        """Write the tail anew: changed symbols from their history, the others as they were."""
        import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

        path = self._folder(period) / "tail.parquet"
        symbols = self.symbols(period)
        known = _tail_parts(path, [symbol for symbol in symbols if symbol not in changed])
        parts = [known[symbol] if symbol in known else self._last(symbol, period, self.tail_bars) for symbol in symbols]
        write_parquet(pl.concat(parts, how="diagonal"), path, rows_per_group=self.tail_bars)

    def _tail(self, period: timedelta, symbols: Sequence[str]) -> dict[str, pl.DataFrame]:
        """Return the tail's rows by symbol; nothing where there is no tail to be trusted."""
        path = self._folder(period) / "tail.parquet"
        return {} if (path.parent / "tail.dirty").exists() else _tail_parts(path, symbols)

    def _last(self, symbol: str, period: timedelta, count: int) -> pl.DataFrame:
        """Return the last bars from the history, reading no more months than needed."""
        import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

        parts: list[pl.DataFrame] = []
        found = 0
        for path in sorted(self._symbol_folder(symbol, period).glob("*.parquet"), reverse=True):
            parts.append(_read(path))
            found += len(parts[-1])
            if found >= count:
                break
        return _copied(pl.concat(reversed(parts), how="diagonal").tail(count)) if parts else _empty()

    def _history(self, symbol: str, period: timedelta, start: datetime | None, end: datetime | None) -> pl.DataFrame:
        import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

        first = f"{utc(start):%Y-%m}" if start else ""
        last = f"{utc(end):%Y-%m}" if end else "9999-99"
        paths = [p for p in sorted(self._symbol_folder(symbol, period).glob("*.parquet")) if first <= p.stem <= last]
        if not paths:
            return _empty()
        frame = pl.concat([_read(path) for path in paths], how="diagonal")
        if start is not None:
            frame = frame.filter(pl.col("timestamp") >= utc(start))
        return frame if end is None else frame.filter(pl.col("timestamp") < utc(end))


def _tail_parts(path: Path, symbols: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Return a tail's rows by symbol, of those that it has."""
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    if not symbols or not path.exists():
        return {}
    frame = pl.scan_parquet(path).filter(pl.col("symbol").is_in(list(symbols))).collect()
    parts = frame.partition_by("symbol", as_dict=True, maintain_order=True)
    return {str(key[0]): _without_absent(part) for key, part in parts.items()}


def _copied(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows in memory of their own: the end of a month would keep the whole month."""
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    return frame.select(pl.all().gather(range(len(frame))))


def _remove_remains(folder: Path) -> None:
    """Remove what a killed write left beside its place: this process is the only writer."""
    for remains in folder.glob(".*.tmp"):
        remains.unlink()


def _merge(stored: pl.DataFrame | None, new: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Return (merged rows by time, bars added, bars replaced by a higher revision)."""
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    latest = new.sort("timestamp", "revision", maintain_order=True).unique("timestamp", keep="last").sort("timestamp")
    if stored is None:
        return latest, len(latest), 0
    known = stored.select("timestamp", pl.col("revision").alias("had"))
    both = latest.join(known, on="timestamp", how="left")
    wins = both.filter(pl.col("had").is_null() | (pl.col("revision") > pl.col("had"))).drop("had")
    added = both["had"].null_count()
    rest = stored.join(wins.select("timestamp"), on="timestamp", how="anti")
    return pl.concat([rest, wins], how="diagonal").sort("timestamp"), added, len(wins) - added


def _by_month(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    dated = frame.with_columns(pl.col("timestamp").dt.strftime("%Y-%m").alias("_month"))
    parts = dated.partition_by("_month", as_dict=True, maintain_order=True)
    return [(str(key[0]), part.drop("_month")) for key, part in parts.items()]


def _frames_of_bars(bars: Iterable[Bar], period: timedelta, calendar: TradingCalendar) -> dict[str, pl.DataFrame]:
    by_symbol: dict[str, list[Bar]] = {}
    for bar in bars:
        by_symbol.setdefault(bar.symbol, []).append(bar)
    return {symbol: _frame_of_bars(symbol, part, period, calendar) for symbol, part in by_symbol.items()}


def _frame_of_bars(symbol: str, bars: Sequence[Bar], period: timedelta, calendar: TradingCalendar) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    start_ns = np.array([to_ns(utc(bar.start)) for bar in bars], dtype=np.int64)
    open_ns, _, in_session = calendar.bounds_ns(start_ns, period_to_ns(period))
    if not in_session.all():
        bar = bars[int((~in_session).argmax())]
        msg = f"bar of {symbol} at {bar.start.isoformat()} lies outside every session of {calendar.id}: do not store it"
        raise BarStoreError(msg)
    signals = sorted({name for bar in bars for name in bar.signals})
    _check_signals(symbol, signals)
    columns: dict[str, object] = {
        "symbol": pl.Series([symbol] * len(bars), dtype=pl.String),
        "timestamp": _utc(start_ns),
        "open_time": _utc(open_ns),
        "close_time": _utc(np.array([to_ns(utc(bar.close_time)) for bar in bars], dtype=np.int64)),
    }
    for name in _VALUES:
        columns[name] = pl.Series([getattr(bar, name) for bar in bars], dtype=pl.Float64)
    columns["revision"] = pl.Series([bar.revision for bar in bars], dtype=pl.Int32)
    for name in signals:
        columns[name] = pl.Series([bar.signals.get(name) for bar in bars], dtype=pl.Float64)
    return pl.DataFrame(columns)


def _frame_of_series(series: BarSeries, revision: int) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    _check_signals(series.symbol, list(series.signals))
    return pl.DataFrame(
        {
            "symbol": pl.Series([series.symbol] * len(series), dtype=pl.String),
            "timestamp": _utc(series.start_ns),
            "open_time": _utc(series.open_ns),
            "close_time": _utc(series.close_ns),
            **{name: getattr(series, name) for name in _VALUES},
            "revision": pl.Series(np.full(len(series), revision), dtype=pl.Int32),
            **series.signals,
        }
    )


def _check_signals(symbol: str, signals: Iterable[str]) -> None:
    for name in signals:
        if is_reserved(name) or name in _FIXED:
            msg = f"signal {name!r} of {symbol} has a reserved name: rename it"
            raise BarStoreError(msg)


def _series(symbol: str, frame: pl.DataFrame) -> BarSeries:
    values = {name: frame[name].to_numpy() for name in _VALUES}
    signals = {c.name: c.fill_null(float("nan")).to_numpy() for c in frame.iter_columns() if c.name not in _FIXED}
    return BarSeries(
        symbol=symbol,
        start_ns=_ns(frame, "timestamp"),
        close_ns=_ns(frame, "close_time"),
        open_ns=_ns(frame, "open_time"),
        **values,
        signals=signals,
    )


def _ns(frame: pl.DataFrame, column: str) -> np.ndarray:
    return frame[column].to_physical().to_numpy().astype(np.int64, copy=False)


def _utc(ns: np.ndarray) -> pl.Series:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    return pl.Series(ns.astype(np.int64, copy=False)).cast(pl.Datetime("ns", "UTC"))


def _empty() -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    times = dict.fromkeys(_TIMES, pl.Datetime("ns", "UTC"))
    return pl.DataFrame(
        schema={"symbol": pl.String, **times, **dict.fromkeys(_VALUES, pl.Float64), "revision": pl.Int32}
    )


def _without_absent(part: pl.DataFrame) -> pl.DataFrame:
    """Drop signal columns that only other symbols have."""
    absent = [c.name for c in part.iter_columns() if c.name not in _FIXED and c.null_count() == len(c)]
    return part.drop(absent)


def _read(path: Path) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415  heavy: imported by the first read or write

    try:
        return pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        msg = f"{path} cannot be read ({str(error).splitlines()[0]}): move it away and fetch its bars again"
        raise BarStoreError(msg) from error
