"""Why a training goes wrong: the likely causes of each symptom, and what mends them.

Each symptom has causes with prior odds, which `training.dqn.traces` multiplies by what it finds for and against them.
Both were set on trainings that were broken on purpose (`tests/training/test_staged_trainings.py`). Odds are for
ranking alone; they are no probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from training.dqn import traces
from training.dqn.course import Course
from training.dqn.symptoms import Symptom
from training.dqn.traces import INPUT_PULL_HIGH, USUAL_LEARNING_RATE, Weighed

MULTIPLIER_MAX = 50.0
CAUSES_SHOWN_MAX = 4
ODDS_SHOWN_MIN = 0.05
"""Share of the best cause's odds below which another is not worth a line."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One likely cause.

    Args:
        name: Key, as in the documentation.
        title: In words.
        odds: Weight of the cause in its finding; they add up to one.
        evidence: What speaks for it.
        change: What to do; a `--set` where a setting mends it.
    """

    name: str
    title: str
    odds: float
    evidence: tuple[str, ...]
    change: str


def rank(symptom: Symptom, course: Course) -> tuple[Cause, ...]:
    """Return the likely causes of a symptom, the likeliest first."""
    weighed = []
    for name, prior in PRIORS[symptom.name].items():
        title, weigh, change = CAUSES[name]
        multiplier, evidence = weigh(course)
        weighed.append((prior * min(multiplier, MULTIPLIER_MAX), name, title, evidence, change))
    # sorted by odds alone: equal ones stay in the order of their symptom
    weighed.sort(key=lambda one: -one[0])
    total = sum(one[0] for one in weighed)
    return tuple(
        Cause(name, title, odds / total, evidence, change(course))
        for odds, name, title, evidence, change in weighed[:CAUSES_SHOWN_MAX]
        if odds >= ODDS_SHOWN_MIN * weighed[0][0]
    )


def _batch_change(course: Course) -> str:
    for name in ("batch_bars", "batch_size"):
        size = course.number(name)
        if size is not None:
            return _set(course, name, 4.0 * size)
    return "draw larger batches"


def _rate_change(course: Course) -> str:
    rate = course.learning_rate
    return _set(course, "learning_rate", min(USUAL_LEARNING_RATE, rate / 10.0))


def _gamma_change(course: Course) -> str:
    return _set(course, "gamma", 0.98)


def _fixed(name: str, value: float | str) -> Callable[[Course], str]:
    return lambda course: _set(course, name, value)


def _words(text: str) -> Callable[[Course], str]:
    return lambda _course: text


def _set(course: Course, name: str, value: float | str) -> str:
    """Return the option; in words where the training's settings have no such name."""
    text = value if isinstance(value, str) else f"{value:g}"
    found = course.path_of(name)
    return f"set {name.replace('_', ' ')} to {text}" if found is None else f"--set {found[0]}={text}"


def _decay_change(course: Course) -> str:
    decay = course.number("weight_decay") or 0.0
    return _set(course, "weight_decay", max(0.3, 10.0 * decay) if decay < 0.1 else 0.3)


def _held_change(course: Course) -> str:
    if (course.number("input_l1") or 0.0) > INPUT_PULL_HIGH:
        return _set(course, "input_l1", 3e-4)
    return _set(course, "weight_decay", 0.1)


def _passes_change(course: Course) -> str:
    return f"train on more bars or symbols; or fewer features and {_decay_change(course)}"


def _clip_change(course: Course) -> str:
    norm = course.late(course.middle("grad_norm"))
    return _set(course, "max_grad_norm", float(f"{2.0 * norm:.1g}") if norm > 0.0 else 1.0)


_FREE = "--set costs.fee_bps=0 --set costs.half_spread_bps=0 --set costs.impact=0"

CAUSES: Mapping[str, tuple[str, Callable[[Course], Weighed], Callable[[Course], str]]] = {
    "learning_rate_high": ("the learning rate is too high", traces.learning_rate_high, _rate_change),
    "learning_rate_low": (
        "the learning rate is too low",
        traces.learning_rate_low,
        _fixed("learning_rate", USUAL_LEARNING_RATE),
    ),
    "reward_scale": ("rewards have another unit than meant", traces.reward_scale, _fixed("reward_scale", "null")),
    "gamma_high": ("the discount factor is too high", traces.gamma_high, _gamma_change),
    "gamma_low": ("the discount factor is too low", traces.gamma_low, _gamma_change),
    "target_fast": ("the target network moves too fast", traces.target_fast, _fixed("tau", 0.005)),
    "target_slow": ("the target network moves too slowly", traces.target_slow, _fixed("tau", 0.02)),
    "single_q": ("values are overestimated without double Q-learning", traces.single_q, _fixed("double", "true")),
    "no_clipping": ("gradients are not clipped", traces.no_clipping, _clip_change),
    "clipped_hard": ("gradients are clipped to almost nothing", traces.clipped_hard, _clip_change),
    "outliers": (
        "single bars stand alone",
        traces.outliers,
        _words("run tandem data check on the bars"),
    ),
    "heavy_rewards": ("few bars pay nearly everything", traces.heavy_rewards, _batch_change),
    "huber_small": ("the Huber loss cuts off what pays", traces.huber_small, _fixed("huber_delta", 5.0)),
    "few_bars": ("too few bars for so many features", traces.few_bars, _passes_change),
    "decay_low": ("weights are hardly held back", traces.decay_low, _decay_change),
    "held_at_zero": ("weights are held at zero", traces.held_at_zero, _held_change),
    "inputs": (
        "features are constant or saturated",
        traces.inputs,
        _words("look at the features named here: a column of the bars file may be empty or in another unit"),
    ),
    "start_dead": (
        "units are dead from the start",
        traces.start_dead,
        lambda course: f"normalise the inputs ({_set(course, 'input_clip', 5.0)}), and check the initial biases",
    ),
    "cost_high": (
        "costs are higher than what can be earned",
        traces.cost_high,
        _words(f"train once with {_FREE}: if it learns then, trade longer bars or cheaper; else nothing is there"),
    ),
    "cost_unknown": (
        "it learns at other costs than it is charged",
        traces.cost_unknown,
        _words("compare costs and training.capital_usd with those of the daemon and of the venue"),
    ),
    "no_signal": (
        "there is nothing to be learned",
        traces.no_signal,
        _words(f"train once with {_FREE}: if it learns nothing then either, add features or bars"),
    ),
    "unexplored": (
        "only what it does already is learned from",
        traces.unexplored,
        _fixed("replay", "market"),
    ),
    "exits_in_trunk": (
        "the exit head regresses to the mean",
        traces.exits_in_trunk,
        _words("use the quantile head, in units of volatility and with a gradient path of its own"),
    ),
    "reward_sign": (
        "rewards have the wrong sign, or belong to another bar",
        traces.reward_sign,
        _words("compare the reward of some bars with the change of equity over them, by hand"),
    ),
    "too_short": (
        "the training is too short",
        traces.too_short,
        _words("train longer: more updates or a larger budget"),
    ),
    "other_times": (
        "validation bars follow another law than training bars",
        traces.other_times,
        _words("validate walk-forward: tandem train evaluate"),
    ),
}
"""Title, weigher and change, by name."""

PRIORS: Mapping[str, Mapping[str, float]] = {
    "not_finite": {"learning_rate_high": 1.0, "reward_scale": 0.7, "outliers": 0.7, "target_fast": 0.3,
                   "gamma_high": 0.3, "no_clipping": 0.5, "inputs": 0.2},
    "q_beyond_bound": {"learning_rate_high": 1.0, "target_fast": 0.7, "gamma_high": 0.7, "single_q": 0.5,
                       "no_clipping": 0.3, "reward_scale": 0.2},
    "wrong_way": {"reward_sign": 1.0, "other_times": 0.3, "few_bars": 0.2},
    "loss_spike": {"learning_rate_high": 1.0, "outliers": 0.8, "no_clipping": 0.5, "target_fast": 0.3,
                   "reward_scale": 0.3},
    "gradient_explodes": {"learning_rate_high": 1.0, "no_clipping": 0.5, "outliers": 0.7, "reward_scale": 0.4,
                          "target_fast": 0.3},
    "q_unsettled": {"gamma_high": 1.0, "target_fast": 0.5, "single_q": 0.3, "learning_rate_high": 0.5,
                    "reward_scale": 0.3, "too_short": 0.3},
    "td_large": {"reward_scale": 1.0, "learning_rate_high": 0.7, "outliers": 0.3, "target_fast": 0.2,
                 "gamma_high": 0.3},
    "td_small": {"few_bars": 1.0, "reward_scale": 0.8, "heavy_rewards": 0.5, "decay_low": 0.3},
    "td_tails": {"outliers": 1.0, "heavy_rewards": 1.0, "huber_small": 0.5, "reward_scale": 0.3, "few_bars": 0.2},
    "target_slow": {"target_slow": 1.0, "learning_rate_high": 0.7, "held_at_zero": 0.3, "start_dead": 0.3},
    "target_none": {"target_fast": 1.0},
    "always_clipped": {"clipped_hard": 1.0, "reward_scale": 0.7, "learning_rate_high": 0.3, "outliers": 0.3},
    "dead_units": {"learning_rate_high": 1.0, "start_dead": 1.0, "no_signal": 0.8, "inputs": 0.5, "held_at_zero": 0.3,
                   "reward_scale": 0.2},
    "collapse": {"cost_high": 1.0, "no_signal": 0.7, "unexplored": 0.7, "huber_small": 0.5, "held_at_zero": 0.6,
                 "learning_rate_high": 0.6, "start_dead": 0.6, "inputs": 0.6, "gamma_low": 0.4, "reward_scale": 0.2,
                 "learning_rate_low": 0.3, "too_short": 0.3},
    "flips": {"learning_rate_high": 1.0, "inputs": 0.6, "outliers": 0.3, "start_dead": 0.5, "few_bars": 0.3,
              "no_signal": 0.3, "held_at_zero": 0.2, "target_fast": 0.2},
    "attention": {"learning_rate_high": 0.7, "held_at_zero": 0.7, "too_short": 0.5, "no_signal": 0.5, "inputs": 0.5},
    "exit_spread": {"exits_in_trunk": 1.0, "held_at_zero": 0.5, "learning_rate_high": 0.3, "too_short": 0.3,
                    "inputs": 0.3},
    "overfit": {"few_bars": 1.0, "outliers": 0.4, "decay_low": 0.5, "other_times": 0.4, "reward_sign": 0.3,
                "no_signal": 0.2},
    "crash": {"learning_rate_high": 1.0, "few_bars": 0.7, "outliers": 0.4, "decay_low": 0.4, "gamma_high": 0.4,
              "target_fast": 0.3, "other_times": 0.1},
    "overtrades": {"cost_unknown": 0.7, "gamma_low": 1.0, "few_bars": 0.7, "cost_high": 0.3, "learning_rate_high": 0.6,
                   "decay_low": 0.3,
                   "no_signal": 0.2, "too_short": 0.3},
    "nothing_learned": {"no_signal": 0.7, "cost_high": 1.0, "held_at_zero": 0.7, "learning_rate_low": 0.7,
                        "learning_rate_high": 0.7, "inputs": 0.7, "start_dead": 0.6, "unexplored": 0.5,
                        "huber_small": 0.5, "gamma_low": 0.5, "target_slow": 0.3, "too_short": 0.4,
                        "reward_scale": 0.3, "few_bars": 0.2},
}  # fmt: skip
"""Odds of each cause given the symptom alone."""
