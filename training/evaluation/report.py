"""What was played becomes numbers: pooled, per seed, per fold, per symbol, with intervals against every rival.

Pooled is per close: the mean over the symbols that have a bar there, an equal-weighted book of them. All means are in
basis points of log equity per bar; differences are the policy, averaged over its seeds, less the rival.

Axes: R scored rows, C closes, K series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.performance import YEAR_NS
from training.evaluation.bootstrap import Interval, intervals
from training.evaluation.ground import Ground
from training.evaluation.manifest import Luck
from training.evaluation.play import BASELINES, POLICY, REFITTED, Account, Played, Rows
from training.evaluation.settings import EvaluationSettings
from training.evaluation.skill import deflated_sharpe, luckiest_sharpe, sharpe, shifted_gains, timing_p_value
from training.market import Float

BPS = 1e4
NAIVE = ("flat", "buy_and_hold", "matched_random")
"""Rivals that know nothing: whoever has skill is better than all of them."""
SKILL_LEVEL = 0.05
"""A timing p-value above this is no evidence; so is a deflated Sharpe ratio below 1 - this."""


def pooled(value_R: Float, rows: Rows, chosen_R: NDArray[np.bool_] | None = None) -> Float:
    """Return the mean over symbols at each close, (C,), of all rows or of those chosen."""
    tick_R, count = rows.tick_R, rows.n_ticks
    if chosen_R is not None:
        tick_R, value_R = np.unique(tick_R[chosen_R], return_inverse=True)[1], value_R[chosen_R]
        count = int(tick_R.max()) + 1
    return np.bincount(tick_R, weights=value_R, minlength=count) / np.bincount(tick_R, minlength=count)


def sharpes(played: Played) -> list[float | None]:
    """Return the Sharpe ratio per close of each seed, pooled, after costs."""
    return [sharpe(pooled(account.growth[1], played.rows)) for account in played.by_seed]


def report(ground: Ground, played: Played, settings: EvaluationSettings, luck: Luck, *, seed: int) -> dict[str, Any]:
    """Return every number as JSON values.

    Args:
        ground: What it was judged on.
        played: What everybody did.
        settings: Resamples and confidence.
        luck: Trials on these data, this one included.
        seed: Of the resamples.
    """
    rows = played.rows
    everything, block = _compared(played, settings, seed)
    p_values = _timing(ground, played)
    value_C = pooled(played.accounts[POLICY].growth[1], rows)
    per_year = _closes_per_year(ground, rows)
    skill = {
        "timing_p_value": p_values["all"],
        "sharpe_annual": _annual(sharpe(value_C), per_year),
        "deflated_sharpe": deflated_sharpe(value_C, luck.trials, luck.deviation),
        "trials": luck.trials,
        "luckiest_sharpe_annual": _annual(
            luckiest_sharpe(luck.trials, luck.deviation or 1.0 / math.sqrt(len(value_C) - 1)), per_year
        ),
    }
    return {
        "unit": "basis points of log equity per bar; differences: policy less rival",
        "rows": len(rows),
        "closes": rows.n_ticks,
        "closes_per_year": per_year,
        "block_bars": block,
        "confidence": settings.confidence,
        "decisions_refitted_to_each_cost": list(REFITTED),
        "rules": {name: _rule(account, rows, per_year) for name, account in played.accounts.items()},
        "pooled": everything,
        "by_seed": {
            str(one): {
                **_against(account, played, None, settings, seed, block),
                "timing_p_value": p_values[str(one)],
                "sharpe_annual": _annual(sharpe(pooled(account.growth[1], rows)), per_year),
            }
            for one, account in zip(played.seeds, played.by_seed, strict=True)
        },
        "by_fold": {
            str(number): _against(played.accounts[POLICY], played, rows.fold_R == number, settings, seed, block)
            for number in np.unique(rows.fold_R).tolist()
        },
        "by_symbol": {
            symbol: _against(played.accounts[POLICY], played, rows.symbol_R == index, settings, seed, block)
            for index, symbol in enumerate(ground.table.symbols)
            if (rows.symbol_R == index).any()
        },
        "by_fold_and_seed": _grid(played),
        "ridge": {
            str(number): {
                "penalty": ridge.penalty,
                "correlation": ridge.correlation,
                "decay": ridge.decay,
                "band_bps": {str(k): band * BPS if math.isfinite(band) else None for k, band in ridge.bands.items()},
            }
            for number, ridge in played.ridges.items()
        },
        "skill": skill,
        "verdict": verdict(everything["1"]["differences"], skill),
    }


def verdict(differences: Mapping[str, Mapping[str, float]], skill: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the numbers at the configured costs are evidence for, null results in plain words."""
    found = {name: Interval(one["mean_bps"], one["low_bps"], one["high_bps"]) for name, one in differences.items()}
    beats = [name for name, one in found.items() if one.low > 0.0]
    loses = [name for name, one in found.items() if one.high < 0.0]
    open_ = [name for name, one in found.items() if name not in {*beats, *loses}]
    lines = []
    if open_:
        lines.append(f"no evidence of a difference to {_names(open_)}: the interval contains zero")
    if beats:
        lines.append(f"better than {_names(beats)}")
    if loses:
        lines.append(f"worse than {_names(loses)}")
    timing, deflated = skill["timing_p_value"], skill["deflated_sharpe"]
    if timing > SKILL_LEVEL:
        lines.append(f"no evidence of timing: {timing:.0%} of shifts in time gain as much")
    if deflated is None:
        lines.append("no Sharpe ratio: the policy's equity does not move")
    elif deflated < 1.0 - SKILL_LEVEL:
        lines.append(f"no evidence beyond luck: deflated Sharpe ratio {deflated:.2f} after {skill['trials']} trials")
    by_luck = timing > SKILL_LEVEL or deflated is None or deflated < 1.0 - SKILL_LEVEL
    skilled = not by_luck and set(NAIVE) <= set(beats)
    beyond = skilled and len(beats) == len(found)
    if beyond:
        headline = "evidence of skill, beyond every rival's"
    elif skilled:
        headline = f"evidence of skill, but not beyond {_names([*open_, *loses])}"
    else:
        headline = "no evidence of skill"
    return {
        "skill": skilled,
        "beyond_every_rival": beyond,
        "better_than": beats,
        "worse_than": loses,
        "undecided": open_,
        "lines": [headline, *lines],
    }


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _compared(played: Played, settings: EvaluationSettings, seed: int) -> tuple[dict[str, Any], float]:
    """Return every rule's mean and the differences at each cost, pooled, drawn together; and the block length."""
    accounts = played.accounts
    multiples = list(accounts[POLICY].growth)
    series = {
        (multiple, name): pooled(account.growth[multiple], played.rows)
        for multiple in multiples
        for name, account in accounts.items()
    }
    values = [series[key] for key in series]
    keys: list[tuple[int, str]] = [(m, name) for m in multiples for name in BASELINES]
    values += [series[m, POLICY] - series[m, name] for m, name in keys]
    measured = np.stack([series[1, POLICY], *(series[1, POLICY] - series[1, name] for name in BASELINES)])
    _, block = intervals(measured, resamples=1, confidence=settings.confidence, seed=seed)
    found, _ = intervals(
        np.stack(values), resamples=settings.resamples, confidence=settings.confidence, seed=seed, block=block
    )
    of_rule = dict(zip(series, found[: len(series)], strict=True))
    of_difference = dict(zip(keys, found[len(series) :], strict=True))
    return {
        str(multiple): {
            "means": {name: _bps(of_rule[multiple, name]) for name in accounts},
            "differences": {name: _bps(of_difference[multiple, name]) for name in BASELINES},
        }
        for multiple in multiples
    }, block


def _against(
    account: Account,
    played: Played,
    chosen_R: NDArray[np.bool_] | None,
    settings: EvaluationSettings,
    seed: int,
    block: float,
) -> dict[str, Any]:
    """Return one account on some of the rows at the configured costs: its mean, and its difference to every rival."""
    own_C = pooled(account.growth[1], played.rows, chosen_R)
    rivals = {name: pooled(played.accounts[name].growth[1], played.rows, chosen_R) for name in BASELINES}
    values = np.stack([own_C, *(own_C - one for one in rivals.values())])
    found, _ = intervals(values, resamples=settings.resamples, confidence=settings.confidence, seed=seed, block=block)
    part = np.s_[:] if chosen_R is None else chosen_R
    return {
        "closes": len(own_C),
        **_bps(found[0]),
        "turnover": float(account.turnover_R[part].mean()),
        "exposure": float(account.exposure_R[part].mean()),
        "rivals_mean_bps": {name: float(one.mean()) * BPS for name, one in rivals.items()},
        "differences": {name: _bps(one) for name, one in zip(rivals, found[1:], strict=True)},
    }


def _rule(account: Account, rows: Rows, per_year: float) -> dict[str, Any]:
    """Return how a rule traded, its Sharpe ratio and its deepest fall; the last where it is one track."""
    value_C = pooled(account.growth[1], rows)
    equity_C = np.concatenate([[0.0], np.cumsum(value_C)])
    fall = float(np.max(np.maximum.accumulate(equity_C) - equity_C))
    return {
        "turnover": float(account.turnover_R.mean()),
        "exposure": float(account.exposure_R.mean()),
        "averaged": account.averaged,
        "sharpe_annual": _annual(sharpe(value_C), per_year),
        "max_drawdown": -math.expm1(-fall) if account.averaged == 1 else None,
    }


def _grid(played: Played) -> list[dict[str, Any]]:
    """Return the mean of every policy that was trained, in its own fold."""
    rows = played.rows
    return [
        {
            "fold": number,
            "seed": seed,
            "mean_bps": float(pooled(account.growth[1], rows, rows.fold_R == number).mean()) * BPS,
            "turnover": float(account.turnover_R[rows.fold_R == number].mean()),
            "exposure": float(account.exposure_R[rows.fold_R == number].mean()),
        }
        for number in np.unique(rows.fold_R).tolist()
        for seed, account in zip(played.seeds, played.by_seed, strict=True)
    ]


def _timing(ground: Ground, played: Played) -> dict[str, float]:
    """Return the p-value of the timing of all seeds together and of each."""
    rows = played.rows
    found = {}
    for name, held in (
        ("all", played.held_SR),
        *((str(seed), held_R[None]) for seed, held_R in zip(played.seeds, played.held_SR, strict=True)),
    ):
        by_symbol = []
        for symbol in np.unique(rows.symbol_R).tolist():
            own = np.flatnonzero(rows.symbol_R == symbol)
            gain = {position: ground.books.position_gain(rows.row_R[own], position) for position in (-1, 1)}
            by_symbol.append(shifted_gains(held[:, own], gain))
        found[name] = timing_p_value(by_symbol)
    return found


def _closes_per_year(ground: Ground, rows: Rows) -> float:
    closes = ground.table.close_ns_T[rows.row_R]
    return rows.n_ticks / max(float(closes.max() - closes.min()) / YEAR_NS, 1e-9)


def _annual(ratio: float | None, per_year: float) -> float | None:
    return None if ratio is None else ratio * math.sqrt(per_year)


def _bps(interval: Interval) -> dict[str, float]:
    return {f"{name}_bps": value for name, value in asdict(interval.times(BPS)).items()}
