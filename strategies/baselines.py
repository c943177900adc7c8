"""Rules to beat: flat, buy and hold, random, momentum, crossing averages, mean reversion, a forecast with its band.

Each is a Strategy with a small feature spec of its own. Long or flat unless `shorts` is on.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from brokers.series import Int, from_ns
from strategies.batch import BatchAnswers
from strategies.features import VOLATILITY_WINDOW, FeatureSpec, Group
from strategies.features.groups import TYPICAL_SIGMA
from strategies.observation import usable_rows, why_unusable
from strategies.strategy import Abstention, Observations, Opinion, Reason

_BPS = 1e-4
_WINDOWS = frozenset({"lookback", "window", "half_life", "fast", "slow"})
_WINDOW_BARS_MAX = 10_000
_NEAR = 1e-9
"""A score so close to a threshold may lie on the other side of it on another machine."""

Float = NDArray[np.float64]


class BaselineError(ValueError):
    """A baseline that does not exist, or parameters that it does not take."""


@dataclass(frozen=True, kw_only=True)
class Baseline(ABC):
    """A rule: one target per symbol from its features, its position and the close.

    Args:
        period: Bar period.
        shorts: True where -1 is an allowed target.
    """

    name: ClassVar[str]
    period: timedelta
    shorts: bool = False

    @cached_property
    def feature_spec(self) -> FeatureSpec:
        """The features it reads."""
        return FeatureSpec(self._groups(), self.period.total_seconds())

    @property
    def targets(self) -> tuple[int, ...]:
        """Allowed targets."""
        return (-1, 0, 1) if self.shorts else (0, 1)

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol; see `Strategy.opinions`."""
        answers: list[Opinion | Abstention] = []
        usable_S = usable_rows(observations.features_SF)
        for row, symbol in enumerate(observations.symbols):
            features_F = observations.features_SF[row]
            if not usable_S[row]:
                answers.append(Abstention(symbol, why_unusable(features_F)))
                continue
            position = int(observations.positions_S[row])
            target, detail = self._target(symbol, observations.close_time, features_F, position)
            answers.append(Opinion(symbol=symbol, target=target, reason=Reason.RULE, detail=detail))
        return answers

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position; see `strategies.batch`."""
        count = len(close_ns_T)
        target_T, detail = np.zeros(count, dtype=np.int8), dict[str, Float]()
        for row in np.flatnonzero(usable_rows(features_TF)).tolist():
            target, numbers = self._target(symbol, from_ns(close_ns_T[row]), features_TF[row], position)
            target_T[row] = target
            for name, number in numbers.items():
                if name not in detail:
                    detail[name] = np.full(count, np.nan)
                detail[name][row] = number
        return BatchAnswers(target_T, np.zeros(count, dtype=np.bool_), Reason.RULE, detail=detail)

    def _groups(self) -> tuple[Group, ...]:
        return (Group("returns", "returns", {"horizons": [1], "unit": VOLATILITY_WINDOW}),)

    @abstractmethod
    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        """Return the target and the numbers that explain it."""


@dataclass(frozen=True, kw_only=True)
class Flat(Baseline):
    """Never holds anything."""

    name = "flat"

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time, features_F, position
        return 0, {}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del symbol, features_TF, position
        count = len(close_ns_T)
        return BatchAnswers(np.full(count, 0, dtype=np.int8), np.zeros(count, dtype=np.bool_), Reason.RULE)


@dataclass(frozen=True, kw_only=True)
class BuyAndHold(Baseline):
    """Always long."""

    name = "buy_and_hold"

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time, features_F, position
        return 1, {}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del symbol, features_TF, position
        count = len(close_ns_T)
        return BatchAnswers(np.full(count, 1, dtype=np.int8), np.zeros(count, dtype=np.bool_), Reason.RULE)


@dataclass(frozen=True, kw_only=True)
class RandomFlips(Baseline):
    """Leaves its position at random; the draw hangs on (seed, symbol, close) alone, so a restart repeats it.

    Args:
        seed: Of the draws.
        flip_probability: Chance per bar to go to another target; 1 / it is the mean holding time in bars.
    """

    name = "random"
    seed: int = 0
    flip_probability: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a probability outside [0, 1]."""
        if not 0.0 <= self.flip_probability <= 1.0:
            raise BaselineError(f"random.flip_probability is {self.flip_probability}: give a number from 0 to 1")

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del features_F
        draw, pick = self._draw(symbol, close_time.timestamp())
        if draw >= self.flip_probability:
            # a position that may not be held is left at once
            return (position if position in self.targets else 0), {"draw": draw}
        others = [target for target in self.targets if target != position]
        return others[pick % len(others)], {"draw": draw}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del features_TF
        drawn = [self._draw(symbol, ns // 1_000 / 1e6) for ns in close_ns_T.tolist()]
        draw_T = np.array([draw for draw, _ in drawn], dtype=np.float64)
        others = [target for target in self.targets if target != position]
        target_T = np.full(len(drawn), position if position in self.targets else 0, dtype=np.int8)
        for row in np.flatnonzero(draw_T < self.flip_probability).tolist():
            target_T[row] = others[drawn[row][1] % len(others)]
        return BatchAnswers(target_T, np.zeros(len(drawn), dtype=np.bool_), Reason.RULE, detail={"draw": draw_T})

    def _draw(self, symbol: str, close_s: float) -> tuple[float, int]:
        """Return a number in [0, 1) and one that picks among targets, for a close in s since the epoch."""
        digest = hashlib.blake2b(f"{self.seed}|{symbol}|{close_s:.6f}".encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8]) / 2.0**64, int.from_bytes(digest[8:])


@dataclass(frozen=True, kw_only=True)
class Momentum(Baseline):
    """Follows the return of the last `lookback` bars, in volatilities.

    Args:
        lookback: Bars.
        enter: Score from which it goes with the move.
        leave: Score below which it lets go.
    """

    name = "momentum"
    lookback: int = 64
    enter: float = 0.5
    leave: float = 0.0

    def _groups(self) -> tuple[Group, ...]:
        return (Group("returns", "returns", {"horizons": [self.lookback], "unit": VOLATILITY_WINDOW}),)

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time
        score = float(features_F[0])
        return banded_target(score, position, self.enter, self.leave, shorts=self.shorts), {"score": score}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del symbol, close_ns_T
        return _banded_batch(features_TF[:, 0], position, self.enter, self.leave, shorts=self.shorts)


@dataclass(frozen=True, kw_only=True)
class MeanReversion(Baseline):
    """Buys below the mean of the last `window` closes and leaves once the price is back.

    Args:
        window: Bars of the mean.
        enter: Distance below the mean, in volatilities, from which it buys.
        leave: Distance below the mean under which it lets go.
    """

    name = "mean_reversion"
    window: int = 64
    enter: float = 1.5
    leave: float = 0.0

    def _groups(self) -> tuple[Group, ...]:
        params = {"means": [self.window], "slopes": [], "averages": [], "unit": VOLATILITY_WINDOW}
        return (Group("trend", "trend", params),)

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time
        score = -float(features_F[0])
        return banded_target(score, position, self.enter, self.leave, shorts=self.shorts), {"score": score}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del symbol, close_ns_T
        return _banded_batch(-features_TF[:, 0], position, self.enter, self.leave, shorts=self.shorts)


@dataclass(frozen=True, kw_only=True)
class AverageCross(Baseline):
    """Goes with the fast mean of log prices: above the slow one long, below it short or flat.

    Args:
        fast: Bars of the fast mean.
        slow: Bars of the slow mean.
    """

    name = "ma_cross"
    fast: int = 50
    slow: int = 200

    def __post_init__(self) -> None:
        """Refuse a fast mean that is not faster."""
        if not self.fast < self.slow:
            raise BaselineError(f"ma_cross.fast is {self.fast} and slow {self.slow}: give fast fewer bars than slow")

    def _groups(self) -> tuple[Group, ...]:
        return (Group("crossing", "crossing", {"pairs": [[self.fast, self.slow]], "unit": VOLATILITY_WINDOW}),)

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time
        score = float(features_F[0])
        below = -1 if self.shorts else 0
        kept = position if position in self.targets else 0
        return 1 if score > 0.0 else below if score < 0.0 else kept, {"score": score}

    def batch(self, symbol: str, close_ns_T: Int, features_TF: Float, position: int) -> BatchAnswers:
        """Return the answers to many bars at one position."""
        del symbol, close_ns_T, position
        score_T = features_TF[:, 0]
        above_T = score_T > 0.0
        target_T = np.where(above_T, 1, -1 if self.shorts else 0).astype(np.int8)
        return BatchAnswers(target_T, np.abs(score_T) < _NEAR, Reason.RULE, detail={"score": score_T})


@dataclass(frozen=True, kw_only=True)
class NoTradeBand(Baseline):
    """A forecast held against its costs: trades only where the forecast leaves a band around zero.

    The forecast of the next return is ic * volatility * score, where score is the distance from the mean of
    `window` closes in volatilities: against it (`reversion`) or with it (`momentum`). For a forecast that
    decays like an AR(1) and linear costs the optimum switches at one threshold (`no_trade_threshold`).

    Args:
        window: Bars of the mean.
        ic: Correlation of forecast and next return.
        half_life: Bars in which the forecast halves.
        cost_bps: Cost of one side, basis points.
        momentum: True to go with the distance instead of against it.
        band: Threshold in standard deviations of the forecast, in place of the computed one.
    """

    name = "no_trade_band"
    window: int = 64
    ic: float = 0.03
    half_life: float = 32.0
    cost_bps: float = 12.0
    momentum: bool = False
    band: float | None = None

    def _groups(self) -> tuple[Group, ...]:
        params = {"means": [self.window], "slopes": [], "averages": [], "unit": VOLATILITY_WINDOW}
        volatility = {"levels": [VOLATILITY_WINDOW], "ranges": [], "downside": 1, "tails": 1}
        return (Group("trend", "trend", params), Group("volatility", "volatility", volatility))

    def _target(
        self, symbol: str, close_time: datetime, features_F: NDArray[np.float64], position: int
    ) -> tuple[int, Mapping[str, float]]:
        del symbol, close_time
        distance, level = float(features_F[0]), float(features_F[1])
        score = distance if self.momentum else -distance
        band = self.band
        if band is None:
            sigma = math.exp(level) * TYPICAL_SIGMA
            band = no_trade_threshold(self.cost_bps * _BPS, self.ic * sigma, 0.5 ** (1.0 / self.half_life))
        target = banded_target(score, position, band, -band, shorts=self.shorts)
        return target, {"score": score, "band": band}


def banded_target(score: float, position: int, enter: float, leave: float, *, shorts: bool) -> int:
    """Return a target with hysteresis: in from `enter`, kept down to `leave`; mirrored for shorts."""
    if score >= enter:
        return 1
    if score <= -enter:
        return -1 if shorts else 0
    if position > 0 and score >= leave:
        return 1
    return -1 if shorts and position < 0 and score <= -leave else 0


def _banded_batch(score_T: Float, position: int, enter: float, leave: float, *, shorts: bool) -> BatchAnswers:
    """Return `banded_target` of many scores."""
    short = -1 if shorts else 0
    target_T = np.zeros(len(score_T), dtype=np.int8)
    if position > 0:
        target_T[score_T >= leave] = 1
    elif shorts and position < 0:
        target_T[score_T <= -leave] = -1
    target_T[score_T <= -enter] = short
    target_T[score_T >= enter] = 1
    near_T = (np.abs(np.abs(score_T) - abs(enter)) < _NEAR) | (np.abs(np.abs(score_T) - abs(leave)) < _NEAR)
    return BatchAnswers(target_T, near_T, Reason.RULE, detail={"score": score_T})


def no_trade_threshold(cost: float, forecast_sd: float, rho: float) -> float:
    """Return the threshold, in standard deviations of an AR(1) forecast, beyond which trading pays.

    q* = (3/2 cost beta^2)^(1/3) - 0.583 beta, with beta the standard deviation of the forecast's innovations:
    de Lataillade, Deremble, Potters & Bouchaud 2012, "Optimal Trading with Linear Costs", for small costs,
    with the correction of discrete time. Zero where it would be negative.
    """
    beta = forecast_sd * math.sqrt(1.0 - rho * rho)
    return max(0.0, math.cbrt(1.5 * cost * beta * beta) - 0.583 * beta) / forecast_sd


_CLASSES: Mapping[str, type[Baseline]] = {
    kind.name: kind for kind in (Flat, BuyAndHold, RandomFlips, Momentum, AverageCross, MeanReversion, NoTradeBand)
}

BASELINES: tuple[str, ...] = tuple(_CLASSES)
"""Names that `make_baseline` knows."""


def make_baseline(name: str, params: Mapping[str, Any], period: timedelta) -> Baseline:
    """Return a baseline by name.

    Raises:
        BaselineError: Unknown name or parameter, with the nearest that exists; a value that the parameter cannot have.
    """
    kind = _CLASSES.get(name)
    if kind is None:
        raise BaselineError(f"no baseline {name!r}: {_suggest(name, BASELINES)}")
    takes = {field.name: field.default for field in fields(kind) if field.name != "period"}
    for param, value in params.items():
        if param not in takes:
            raise BaselineError(f"baseline {name!r} has no parameter {param!r}: {_suggest(param, list(takes))}")
        _check_value(f"{name}.{param}", value, takes[param])
    return kind(period=period, **params)


def _check_value(name: str, value: object, default: object) -> None:
    """Refuse a value that is not of its default's kind, and a window that no bars fill."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise BaselineError(f"{name} is {value!r}: write true or false")
        return
    if value is None and default is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BaselineError(f"{name} is {value!r}: give a number")
    if isinstance(default, int) and not isinstance(value, int):
        raise BaselineError(f"{name} is {value!r}: give a whole number")
    if name.rpartition(".")[2] in _WINDOWS and not 2 <= value <= _WINDOW_BARS_MAX:
        raise BaselineError(f"{name} is {value!r}: give 2 to {_WINDOW_BARS_MAX} bars")


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
