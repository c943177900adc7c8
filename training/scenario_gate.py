"""Does a scenario still move like its source? Memory of returns, memory of their size, and tails are compared.

The stylised facts that are compared (Cont 2001, "Empirical properties of asset returns"): returns are almost
uncorrelated, their sizes are correlated over long times, and their tails are heavy (tail index about 3 to 5). A
scenario that lost one of them teaches a policy a market that there is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brokers.series import BarSeries
from training.errors import TrainingError
from training.market import Float
from training.scenarios import Scenario, log_returns

RETURN_LAGS = 5
SIZE_LAGS = 20
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.75, 0.95, 0.99, 0.999)
TAIL_SHARE = 0.025
"""Share of the returns at each end that the tail index is estimated from."""
BEYOND_MIN = 10
"""A quantile with fewer returns beyond it is not compared."""
RETURNS_MIN = 1_000
"""Fewer returns prove nothing about a tail."""


class ScenarioError(TrainingError):
    """A scenario does not move like its source."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far a scenario may be from its source, in each measure: `absolute + relative * |source|`.

    Fewer returns scatter more: `sampling / sqrt(n)` is added to every relative tolerance and to that of `returns`,
    n being the smaller number of returns. With the values below a series of ten thousand bars that lost one property
    fails, and most draws of a heavy-tailed, clustered one pass. A rare regime is the likeliest to be refused for the
    luck of its draw: another seed, or more bars, mend that.

    Args:
        deviation: Standard deviation, relative.
        returns: Autocorrelation of returns at lags 1 to `RETURN_LAGS`, absolute.
        sizes: Mean autocorrelation of absolute returns over lags 1 to `SIZE_LAGS`, absolute.
        sizes_relative: The same, relative: blocks forget, a block of 200 bars a twentieth over 20 lags.
        quantile: Quantiles in standard deviations of the source, absolute.
        quantile_relative: The same, relative; twice as much at 0.1 % and 99.9 %.
        tail_relative: Hill's tail index of either end.
        sampling: See above.
    """

    deviation: float = 0.16
    returns: float = 0.03
    sizes: float = 0.02
    sizes_relative: float = 0.3
    quantile: float = 0.03
    quantile_relative: float = 0.12
    tail_relative: float = 0.27
    sampling: float = 5.0

    def widened(self, count: int) -> Tolerances:
        """Return what is allowed of `count` returns."""
        more = self.sampling / float(np.sqrt(count))
        return replace(
            self,
            deviation=self.deviation + more,
            returns=self.returns + more,
            sizes_relative=self.sizes_relative + more,
            quantile_relative=self.quantile_relative + more,
            tail_relative=self.tail_relative + more,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared, of one series of returns.

    Args:
        count: Number of returns.
        deviation: Standard deviation.
        returns_L: Autocorrelation of returns, lags 1 to `RETURN_LAGS`.
        sizes: Mean autocorrelation of absolute returns, lags 1 to `SIZE_LAGS`.
        quantile_Q: Quantiles about the mean, in the unit of the returns.
        tail_lower: Hill's index of the falls (Hill 1975), larger is thinner.
        tail_upper: Of the rises.
    """

    count: int
    deviation: float
    returns_L: Float
    sizes: float
    quantile_Q: Float
    tail_lower: float
    tail_upper: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of one scenario beside its source's."""

    what: str
    source: float
    scenario: float
    allowed: float

    @property
    def passes(self) -> bool:
        """Tell whether the difference is allowed; what is no number is not."""
        return abs(self.scenario - self.source) <= self.allowed

    def __str__(self) -> str:
        allowed = f"allowed difference {self.allowed:.2g}"
        return f"{self.what} is {self.scenario:.4g}, the source's {self.source:.4g} ({allowed})"


def facts(return_T: Float, among_T: NDArray[np.bool_] | None = None) -> Facts:
    """Measure returns; with `among_T` only those, and pairs of which both are among them.

    Raises:
        ScenarioError: Too few returns, or such as do not move.
    """
    among_T = np.ones(len(return_T), dtype=np.bool_) if among_T is None else among_T
    chosen = return_T[among_T]
    if len(chosen) < RETURNS_MIN:
        raise ScenarioError(f"{len(chosen)} returns: give at least {RETURNS_MIN} to compare tails and memory")
    deviation = float(chosen.std())
    if not 0.0 < deviation < np.inf:
        raise ScenarioError(f"the returns' standard deviation is {deviation}: a market that does not move has no facts")
    about = return_T - chosen.mean()
    sizes = np.abs(about)
    return Facts(
        count=len(chosen),
        deviation=deviation,
        returns_L=_autocorrelation(about, among_T, RETURN_LAGS),
        sizes=float(_autocorrelation(sizes - sizes[among_T].mean(), among_T, SIZE_LAGS).mean()),
        quantile_Q=np.quantile(about[among_T], QUANTILES),
        tail_lower=_hill(-about[among_T]),
        tail_upper=_hill(about[among_T]),
    )


def compare(source: Facts, scenario: Facts, tolerances: Tolerances, *, factor: float = 1.0) -> tuple[Difference, ...]:
    """Return every measure of both; `factor` is the scenario's intended volatility over the source's."""
    of = tolerances.widened(min(source.count, scenario.count))
    found = [
        Difference("standard deviation", factor * source.deviation, scenario.deviation,
                   of.deviation * factor * source.deviation),
        Difference("mean autocorrelation of absolute returns", source.sizes, scenario.sizes,
                   of.sizes + of.sizes_relative * abs(source.sizes)),
        Difference("tail index of falls", source.tail_lower, scenario.tail_lower, of.tail_relative * source.tail_lower),
        Difference("tail index of rises", source.tail_upper, scenario.tail_upper, of.tail_relative * source.tail_upper),
    ]  # fmt: skip
    for lag, (before, after) in enumerate(zip(source.returns_L, scenario.returns_L, strict=True), start=1):
        found.append(Difference(f"autocorrelation of returns at lag {lag}", float(before), float(after), of.returns))
    unit = factor * source.deviation
    for level, before, after in zip(
        QUANTILES, source.quantile_Q / source.deviation, scenario.quantile_Q / unit, strict=True
    ):
        relative = of.quantile_relative * (1 if 0.01 <= level <= 0.99 else 2)
        allowed = of.quantile + relative * abs(float(before))
        found.append(Difference(f"quantile {level:.1%} in deviations", float(before), float(after), allowed))
    return tuple(found)


def check(
    source: Mapping[str, BarSeries],
    scenario: Scenario,
    *,
    tolerances: Tolerances | None = None,
    factor: float = 1.0,
) -> tuple[Difference, ...]:
    """Compare every symbol of a scenario with its source, within each regime where there are several.

    Args:
        source: What the scenario was made of.
        scenario: The scenario.
        tolerances: None for the stated ones.
        factor: Intended volatility of the scenario over the source's.

    Raises:
        ScenarioError: A symbol does not move like its source; the message holds every measure that differs.
    """
    found = tuple(_differences(source, scenario, tolerances or Tolerances(), factor))
    wrong = [str(one) for one in found if not one.passes]
    if wrong:
        raise ScenarioError(
            f"the scenario does not move like its source ({len(wrong)} of {len(found)} measures): {'; '.join(wrong)}. "
            "Take another seed, longer blocks or more bars"
        )
    return found


def _differences(
    source: Mapping[str, BarSeries], scenario: Scenario, tolerances: Tolerances, factor: float
) -> Iterator[Difference]:
    for name, bars in source.items():
        before, after = log_returns(bars), log_returns(scenario.series[name])
        for regime in np.unique(scenario.regime_T):
            several = f", regime {regime}" if len(np.unique(scenario.regime_T)) > 1 else ""
            known = facts(before, scenario.source_regime_T[1:] == regime)
            made = facts(after, scenario.regime_T[1:] == regime)
            for one in compare(known, made, tolerances, factor=factor):
                yield Difference(f"{name}{several}: {one.what}", one.source, one.scenario, one.allowed)


def _autocorrelation(about_T: Float, among_T: NDArray[np.bool_], lags: int) -> Float:
    """Return autocorrelations at lags 1 to `lags` of values about their mean."""
    variance = float((about_T[among_T] ** 2).mean())
    found = np.empty(lags)
    for lag in range(1, lags + 1):
        pairs = among_T[lag:] & among_T[:-lag]
        found[lag - 1] = float((about_T[lag:] * about_T[:-lag])[pairs].mean()) / variance
    return found


def _hill(value_T: Float) -> float:
    """Return Hill's estimate of the tail index of the largest values."""
    count = int(TAIL_SHARE * len(value_T))
    largest = np.sort(value_T)[-count - 1 :]
    return 1.0 / float(np.log(largest[1:] / largest[0]).mean())
