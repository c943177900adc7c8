"""A seeded market that needs no file: volatility regimes, clustering, heavy tails, sessions, and an edge planted in it.

Log price = m + x per bar. m is a random walk; x is the planted edge, a deviation that reverts to zero:
    x' = phi x + deviation_sd sqrt(1 - phi^2) v eps,   phi = 2^(-1 / half_life)
    m' = m + walk_sd v z  (+ an overnight gap before a session's first bar)
    v^2 = regime^2 h,   h' = (1 - a - b) + a h z^2 + b h,   z ~ Student t(5), eps ~ N(0, 1)
v has unit mean square: `regime` is a two-state Markov chain common to all symbols, h is GARCH(1,1) (Bollerslev 1986).
High and low are the extremes of a Brownian bridge from open to close (Glasserman 2003, section 6.4).

Each kind of noise has its own stream keyed by (seed, symbol), drawn in time order, so a longer market begins
with the shorter one bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np

from brokers.calendar import CONTINUOUS, TradingCalendar, calendar, period_to_ns
from brokers.costs import CostModel
from brokers.domain import utc
from brokers.series import BarSeries, Float, Int, to_ns

GARCH_ARCH = 0.08
GARCH_PERSISTENCE = 0.88
TAIL_DEGREES = 5.0
PRICE_DECIMALS = 6
MARKET_STREAM = "*market*"

_EDGE_BARS = 150_000
_BANDS_SD = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class SyntheticMarketSettings:
    """What market to make.

    Args:
        seed: Everything random follows from it.
        symbols: Names; each has its own path, regimes are common.
        bars: Bars per symbol.
        period: Bar period.
        calendar: Calendar id.
        start: First bar starts at or after this, aware.
        price: Price before the first bar, quote currency.
        half_life_bars: Bars in which the planted deviation halves.
        deviation_sd: Stationary standard deviation of the planted deviation, log price; 0 plants nothing.
        walk_sd: Mean standard deviation per bar of the random walk, log price.
        gap_sd: Standard deviation of the overnight gap, log price; only for calendars with sessions.
        calm: Volatility multiplier of the calm regime, in (0, 1); the volatile one follows from unit mean square.
        calm_bars: Mean length of the calm regime.
        volatile_bars: Mean length of the volatile regime.
        volume: Median volume per bar, units.
        splits: (bar index, ratio) pairs; from that bar on raw prices are divided by the ratio.
        reveal: Add the deviation itself as the signal `deviation` (for tests and ceilings).
    """

    seed: int = 7
    symbols: tuple[str, ...] = ("SYNTH",)
    bars: int = 20_000
    period: timedelta = timedelta(minutes=5)
    calendar: str = "24/7"
    start: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    price: float = 100.0
    half_life_bars: float = 12.0
    deviation_sd: float = 0.01
    walk_sd: float = 0.0008
    gap_sd: float = 0.004
    calm: float = 0.6
    calm_bars: float = 400.0
    volatile_bars: float = 100.0
    volume: float = 100_000.0
    splits: tuple[tuple[int, float], ...] = ()
    reveal: bool = False

    def __post_init__(self) -> None:
        """Refuse a market that cannot be made."""
        utc(self.start)
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            msg = f"synthetic.symbols is {self.symbols}: name at least one symbol, none twice"
            raise ValueError(msg)
        positive = ("bars", "price", "half_life_bars", "walk_sd", "volume")
        for name in positive:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"synthetic.{name} is {getattr(self, name)}: give a positive number")
        for name in ("deviation_sd", "gap_sd"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"synthetic.{name} is {getattr(self, name)}: give a number of at least 0")
        for name in ("calm_bars", "volatile_bars"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"synthetic.{name} is {getattr(self, name)}: a regime lasts at least 1 bar")
        if not 0 < self.calm < 1:
            raise ValueError(f"synthetic.calm is {self.calm}: give a multiplier between 0 and 1")
        for index, ratio in self.splits:
            if index < 1 or not (math.isfinite(ratio) and ratio > 0):
                msg = f"synthetic.splits has ({index}, {ratio}): give an index of at least 1 and a positive ratio"
                raise ValueError(msg)

    @property
    def phi(self) -> float:
        """What remains of the deviation after one bar."""
        return float(2.0 ** (-1.0 / self.half_life_bars))


@dataclass(frozen=True, slots=True)
class PlantedEdge:
    """What the planted edge is worth, per bar and unit exposure, in basis points of log equity.

    Gross is (1 - phi) E|x|, which the sign rule earns on the known deviation; E|x| and the net values are means over
    `simulated_bars` bars of another seed, net with fills at the next open.

    Args:
        half_life_bars: Bars in which the deviation halves.
        deviation_sd: Standard deviation of the deviation, log price.
        gross_long_short_bps: Sign rule on the known deviation without costs: (1 - phi) E|x|.
        gross_long_flat_bps: The same without shorts: half of it.
        cost_bps: Cost of each side that the net values pay.
        band_sd: Buy below minus this many sd of the deviation, sell above plus as many.
        known_net_bps: Long/flat band rule on the known deviation, after costs.
        window_bars: Moving mean of the visible rule.
        visible_net_bps: Long/flat band rule on the close's distance from its moving mean, after costs.
        turnover: Sides traded per bar by the visible rule.
        error_bps: Standard error of the visible rule's value.
        simulated_bars: Bars behind the net values.
    """

    half_life_bars: float
    deviation_sd: float
    gross_long_short_bps: float
    gross_long_flat_bps: float
    cost_bps: float
    band_sd: float
    known_net_bps: float
    window_bars: int
    visible_net_bps: float
    turnover: float
    error_bps: float
    simulated_bars: int

    def __str__(self) -> str:
        """Say it in a few lines."""
        return (
            f"planted edge: log price deviates from its mean by {self.deviation_sd:.2%} (sd) and reverts with a "
            f"half-life of {self.half_life_bars:g} bars\n"
            f"  before costs, deviation known: {self.gross_long_short_bps:.2f} bp/bar long and short, "
            f"{self.gross_long_flat_bps:.2f} bp/bar long and flat\n"
            f"  after {self.cost_bps:g} bp a side, long and flat: {self.known_net_bps:.2f} bp/bar with the deviation "
            f"known (band {self.band_sd:g} sd), {self.visible_net_bps:.2f} ± {self.error_bps:.2f} bp/bar from the "
            f"distance to the {self.window_bars}-bar mean ({self.turnover:.3f} sides a bar)"
        )


def generate(settings: SyntheticMarketSettings, trading: TradingCalendar | None = None) -> dict[str, BarSeries]:
    """Return the market's bars by symbol; the same settings always give the same bits."""
    trading = trading or calendar(settings.calendar)
    bounds = _grid(settings, trading)
    days = trading.session_ids(bounds[0])
    first_of_session = np.diff(days, prepend=days[:1]) > 0
    if trading.id == CONTINUOUS:
        first_of_session[:] = False  # UTC days of a market that never closes have no gap between them
    regime = _regime(settings)
    return {symbol: _series(settings, symbol, bounds, first_of_session, regime) for symbol in settings.symbols}


@lru_cache(maxsize=16)
def planted_edge(settings: SyntheticMarketSettings, costs: CostModel | None = None) -> PlantedEdge:
    """Return what the edge is worth before costs and, for a simple rule, after `costs` (size impact left out)."""
    costs = costs or CostModel()
    cost = (costs.fee_bps + costs.half_spread_bps) * 1e-4
    world = replace(settings, seed=settings.seed + 1, symbols=("EDGE",), bars=_EDGE_BARS, splits=(), reveal=True)
    series = generate(world)["EDGE"]
    log_close, log_open = np.log(series.close), np.log(series.open)
    window = max(2, round(5 * settings.half_life_bars))
    total = np.concatenate([[0.0], np.cumsum(log_close)])
    count = np.minimum(np.arange(1, len(log_close) + 1), window)
    mean = (total[1:] - total[np.arange(1, len(log_close) + 1) - count]) / count
    deviation_sd = settings.deviation_sd
    known = [(_band_rule(series.signals["deviation"], b * deviation_sd, log_open, cost), b) for b in _BANDS_SD]
    band = max(known, key=lambda item: float(item[0][0].mean()))[1]
    known_net = max(float(rewards.mean()) for (rewards, _), _ in known)
    rewards, turnover = _band_rule(log_close - mean, band * deviation_sd, log_open, cost)
    blocks = rewards[: len(rewards) // 500 * 500].reshape(-1, 500).mean(axis=1)
    gross = (1.0 - settings.phi) * float(np.abs(series.signals["deviation"]).mean()) * 1e4
    return PlantedEdge(
        half_life_bars=settings.half_life_bars,
        deviation_sd=deviation_sd,
        gross_long_short_bps=gross,
        gross_long_flat_bps=gross / 2.0,
        cost_bps=cost * 1e4,
        band_sd=band,
        known_net_bps=known_net * 1e4,
        window_bars=window,
        visible_net_bps=float(rewards.mean()) * 1e4,
        turnover=turnover,
        error_bps=float(blocks.std(ddof=1) / math.sqrt(len(blocks))) * 1e4,
        simulated_bars=_EDGE_BARS,
    )


def _band_rule(distance: Float, band: float, log_open: Float, cost: float) -> tuple[Float, float]:
    """Return (log reward per bar, sides per bar) of: long below -band, flat above +band, else as before.

    A distance known at a bar's close is traded at the next bar's open.
    """
    wish = np.where(distance < -band, 1, np.where(distance > band, 0, -1))
    decided = np.maximum.accumulate(np.where(wish >= 0, np.arange(len(wish)), 0))
    held = np.where(wish[decided] == 1, 1.0, 0.0)
    moves = np.diff(log_open)[1:]
    sides = np.abs(np.diff(held[:-2], prepend=0.0))
    return held[:-2] * moves + sides * math.log1p(-cost), float(sides.mean())


def _grid(settings: SyntheticMarketSettings, trading: TradingCalendar) -> tuple[Int, Int, Int]:
    """Return (start, open, close) of the first `bars` bars that start at or after `settings.start`."""
    period_ns, begin = period_to_ns(settings.period), to_ns(settings.start)
    span = settings.bars * period_ns + 10 * 86_400_000_000_000
    while True:
        start, opens, closes = trading.grid_ns(begin, begin + span, period_ns)
        late = int(np.searchsorted(start, begin))
        if len(start) - late >= settings.bars:
            part = np.s_[late : late + settings.bars]
            return start[part], opens[part], closes[part]
        span *= 2


def _stream(settings: SyntheticMarketSettings, symbol: str, kind: str) -> np.random.Generator:
    """Return the random stream of one kind of noise of one symbol."""
    digest = hashlib.blake2b(f"{settings.seed}|{symbol}|{kind}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


def _regime(settings: SyntheticMarketSettings) -> Float:
    """Return the volatility multiplier of each bar: a two-state Markov chain with unit mean square."""
    leave = (1.0 / settings.calm_bars, 1.0 / settings.volatile_bars)
    share = settings.volatile_bars / (settings.calm_bars + settings.volatile_bars)
    volatile = math.sqrt((1.0 - (1.0 - share) * settings.calm**2) / share)
    draws = _stream(settings, MARKET_STREAM, "regime").random(settings.bars).tolist()
    state, states = 0, []
    for draw in draws:
        state = 1 - state if draw < leave[state] else state
        states.append(state)
    return np.where(np.array(states) == 1, volatile, settings.calm)


def _volatility(settings: SyntheticMarketSettings, symbol: str, regime: Float) -> tuple[Float, Float]:
    """Return (v, z): the volatility multiplier of each bar and the walk's unit-variance Student draws."""
    scale = math.sqrt((TAIL_DEGREES - 2.0) / TAIL_DEGREES)
    z = _stream(settings, symbol, "walk").standard_t(TAIL_DEGREES, settings.bars) * scale
    floor = 1.0 - GARCH_ARCH - GARCH_PERSISTENCE
    h, hs = 1.0, []
    for square in (z * z).tolist():
        hs.append(h)
        h = floor + GARCH_ARCH * h * square + GARCH_PERSISTENCE * h
    return regime * np.sqrt(np.array(hs)), z


def _deviation(settings: SyntheticMarketSettings, symbol: str, v: Float) -> Float:
    """Return the planted deviation of each bar's close, started from its stationary law."""
    stream = _stream(settings, symbol, "deviation")
    phi = settings.phi
    x = settings.deviation_sd * float(stream.standard_normal())
    kicks = settings.deviation_sd * math.sqrt(1.0 - phi * phi) * v * stream.standard_normal(settings.bars)
    xs = []
    for kick in kicks.tolist():
        x = phi * x + kick
        xs.append(x)
    return np.array(xs)


def _series(
    settings: SyntheticMarketSettings,
    symbol: str,
    bounds: tuple[Int, Int, Int],
    first_of_session: np.ndarray,
    regime: Float,
) -> BarSeries:
    """Return one symbol's bars."""
    bars = settings.bars
    v, z = _volatility(settings, symbol, regime)
    x = _deviation(settings, symbol, v)
    gap_scale = settings.gap_sd * math.sqrt((TAIL_DEGREES - 2.0) / TAIL_DEGREES)
    gap = _stream(settings, symbol, "gap").standard_t(TAIL_DEGREES, bars) * gap_scale * first_of_session
    log_close = math.log(settings.price) + np.cumsum(settings.walk_sd * v * z + gap) + x
    bar_sd = v * math.sqrt(settings.walk_sd**2 + settings.deviation_sd**2 * (1.0 - settings.phi**2))
    tick = _stream(settings, symbol, "open").standard_normal(bars) * 0.02 * bar_sd
    before = np.concatenate([[math.log(settings.price)], log_close[:-1]])
    log_open = before + gap + tick
    uniform = 1.0 - _stream(settings, symbol, "range").random((bars, 2))
    reach = np.sqrt((log_close - log_open)[:, None] ** 2 - 2.0 * bar_sd[:, None] ** 2 * np.log(uniform))
    middle = log_open + log_close
    move = np.abs(log_close - log_open) / bar_sd
    noise = _stream(settings, symbol, "volume").standard_normal(bars) * 0.35
    ratio = np.ones(bars)
    for index, split in settings.splits:
        ratio[index:] *= split
    signals = {"deviation": x} if settings.reveal else {}
    start, opens, closes = bounds
    return BarSeries(
        symbol=symbol,
        start_ns=start,
        close_ns=closes,
        open_ns=opens,
        open=np.round(np.exp(log_open) / ratio, PRICE_DECIMALS),
        high=np.round(np.exp((middle + reach[:, 0]) / 2.0) / ratio, PRICE_DECIMALS),
        low=np.round(np.exp((middle - reach[:, 1]) / 2.0) / ratio, PRICE_DECIMALS),
        close=np.round(np.exp(log_close) / ratio, PRICE_DECIMALS),
        volume=np.round(settings.volume * np.exp(np.log(v) + 0.25 * (move - 0.8) + noise) * ratio, 2),
        adj_factor=ratio,
        signals=signals,
    )
