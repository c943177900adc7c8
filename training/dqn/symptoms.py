"""What can be seen to go wrong in the course of a training. Every threshold stands here with its reason.

References are absolute where rewards have unit deviation: whoever predicts nothing has TD errors whose 90 % quantile
is about one (between 0.8, where errors are means over the targets, of which flat pays nothing, and 1.6), and a policy
earns a small part of a deviation per bar. All others are relative to the training's own past. A symptom is no verdict
on its cause; see `training.dqn.causes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.dqn.course import Course, Float

Severity = Literal["error", "warning"]

SPIKE_FACTOR = 5.0
"""A loss so many times the median of the evaluations before: each is a mean over many batches, and stays within a
factor of two in trainings that go well, from the first one on."""
SPIKE_MEDIAN = 8
"""Evaluations that make this median, at most."""
GRADIENT_FIRST = 4
"""Evaluations whose gradients later ones are compared with."""
UNSETTLED_GROWTH = 1.2
"""Largest value at the end over that at two thirds of the training; one that has settled moves by a few percent."""
UNSETTLED_SIZE = 50.0
"""Largest value over the TD errors' 90 % quantile from which on growth matters: what tells one target from another is
then a few percent of what all have in common, and is lost in it."""
TAIL_RATIO = 4.0
"""TD errors' 99 % over their 90 % quantile: 1.8 where rewards are normal, 3.7 for Student's t with two degrees of
freedom, whose variance is infinite; a mean of so few extreme bars is not learned from batches."""
TD_LARGE = 5.0
"""Five times the TD errors' 90 % quantile of whoever predicts nothing."""
TD_SMALL = 0.1
"""A tenth of it: the next bar cannot be known so well, so either it was memorised or rewards have another unit."""
GAP_SLOW = 0.15
GAP_SLOW_SIZE = 0.1
"""Online minus target values (root mean square) over the largest value, and in deviations, in the last third: a target
that keeps up is within a few percent."""
GAP_NONE = 1e-9
"""No gap at any evaluation: the target is the online network, and each error feeds itself."""
GRADIENT_GROWTH = 20.0
"""Gradient norm of the last third over that of the first evaluations, where values did not grow alike."""
CLIPPED_SHARE = 0.98
CLIPPED_FACTOR = 10.0
"""Gradients always clipped, to a tenth of their length or less: their size no longer says anything, and one that is
due to an outlier weighs as much as any other."""
DEAD_SHARE = 0.5
"""Half of the hidden units answer to no training row: the network has half of its size. A random start has few."""
COLLAPSED_ENTROPY = 0.01
"""Nats: less than 0.2 % of the rows have another best target."""
FLIP_MEAN = 0.3
"""Mean change of the shares of the targets between evaluations, over the second half; a policy that settles moves by
some percent."""
ATTENTION_ONE = 0.1
ATTENTION_ALL = 0.9999
"""Entropy of the attention over that of even attention: it looks at one group alone, or weighs all alike."""
EXIT_SPREAD_MIN = 0.15
"""Deviation of stop distances over their mean: volatilities of bars differ by more than a factor of two, so distances
do; a head that regresses to the mean has about a tenth."""
OVERFIT_ERRORS = 3.0
OVERFIT_SHARE = 0.5
"""Training above validation by three standard errors of the difference, and by half of what training earns."""
CRASH_ERRORS = 2.0
CRASH_SHARE = 0.5
"""The last below the best by two standard errors of either, and by half: the same bars validate both, so most of
their noise is common."""
LEARNED_ERRORS = 2.0
"""Neither validation, at any evaluation, nor training at the end is above zero by so many standard errors."""
TURNOVER_MIN = 0.002
"""Sides per bar: who trades more seldom than every 500 bars, or loses, learned nothing; who trades and earns a little
may have learned something that the validation is too short to show."""
GROSS_ERRORS = 2.0
"""Earned before costs, lost after them, both by two standard errors."""
WRONG_ERRORS = 3.0
"""Before costs nobody loses by three standard errors who knows nothing: it must know something, the wrong way round."""

WATCHED_ROWS = 4096
"""Rows of each side that an evaluation looks at."""

EVALUATIONS_MIN = 5
"""Evaluations before a course is judged; single values that cannot be right are told at once."""
PROGRESS_MIN = 0.5
"""Share of the planned updates before the end of a course is judged by its state."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something seen.

    Args:
        name: Key, as in the documentation.
        title: In words.
        severity: `error`: the result is worthless. `warning`: it is less than it could be.
        since_update: Updates at the first evaluation that shows it.
        evidence: The numbers, as sentences.
    """

    name: str
    title: str
    severity: Severity
    since_update: int
    evidence: tuple[str, ...]


Seen = tuple[int, tuple[str, ...]]
"""Index of the first evaluation that shows it, and the numbers."""


def see(course: Course) -> list[Symptom]:
    """Return what is to be seen, the worst first."""
    broken = _not_finite(course)
    if broken is not None:
        title, severity, _ = SYMPTOMS["not_finite"]
        found = [Symptom("not_finite", title, severity, int(course.updates_K[broken[0]]), broken[1])]
        if broken[0] == 0:
            return found
        return [*found, *see(Course(course.records[: broken[0]], course.facts))]
    found = []
    for name, (title, severity, look) in SYMPTOMS.items():
        seen = look(course)
        if seen is not None:
            found.append(Symptom(name, title, severity, int(course.updates_K[seen[0]]), seen[1]))
    return sorted(found, key=lambda one: one.severity != "error")


def _not_finite(course: Course) -> Seen | None:
    for k, record in enumerate(course.records):
        for name in ("loss", "q_abs_max", "td_p50", "td_p99", "grad_norm", "target_gap"):
            bad = [value for value in record[name] if not math.isfinite(value)]
            if bad:
                return k, (f"{name} is {bad[0]} in {len(bad)} of {len(record[name])} members",)
    return None


def _loss_spike(course: Course) -> Seen | None:
    loss_KE = course.members("loss")
    for k in range(1, len(course)):
        usual_E = np.median(loss_KE[max(0, k - SPIKE_MEDIAN) : k], axis=0)
        ratio_E = loss_KE[k] / np.maximum(usual_E, 1e-12)
        if ratio_E.max() > SPIKE_FACTOR:
            e = int(ratio_E.argmax())
            return k, (f"loss {loss_KE[k, e]:.3g}, {ratio_E[e]:.1f} times its median before ({usual_E[e]:.3g})",)
    return None


def _q_beyond_bound(course: Course) -> Seen | None:
    q_KE = course.members("q_abs_max")
    for k, record in enumerate(course.records):
        if q_KE[k].max() > record["q_bound"]:
            return k, (f"largest value {q_KE[k].max():.3g}, discounted rewards cannot exceed {record['q_bound']:.3g}",)
    return None


def _q_unsettled(course: Course) -> Seen | None:
    q_K, td_K = course.middle("q_abs_max"), course.middle("td_p90")
    if len(course) < 2 * EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    before = len(course) * 2 // 3
    growth = float(np.mean(q_K[-2:])) / max(float(np.mean(q_K[before - 1 : before + 1])), 1e-12)
    size = float(q_K[-1]) / max(course.late(td_K), 1e-12)
    if growth <= UNSETTLED_GROWTH or size <= UNSETTLED_SIZE:
        return None
    return before, (
        f"the largest value grew by a factor of {growth:.2f} in the last third, to {q_K[-1]:.3g}",
        f"it is {size:.0f} times the TD errors' 90 % quantile",
    )


def _td_tails(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN:
        return None
    p90_K, p99_K = course.middle("td_p90"), course.middle("td_p99")
    ratio_K = p99_K / np.maximum(p90_K, 1e-12)
    if course.late(ratio_K) <= TAIL_RATIO:
        return None
    return int((ratio_K > TAIL_RATIO).argmax()), (
        f"TD errors' 99 % quantile {p99_K[-1]:.3g} is {ratio_K[-1]:.1f} times their 90 % quantile",
    )


def _td_large(course: Course) -> Seen | None:
    p90_K = course.middle("td_p90")
    if len(course) < 2 or not p90_K[-2:].min() > TD_LARGE:
        return None
    return int((p90_K > TD_LARGE).argmax()), (
        f"TD errors' 90 % quantile {p90_K[-1]:.3g}; predicting nothing gives about 1 where rewards have unit deviation",
    )


def _td_small(course: Course) -> Seen | None:
    p90_K = course.middle("td_p90")
    if len(course) < EVALUATIONS_MIN or not course.late(p90_K) < TD_SMALL:
        return None
    return int((p90_K < TD_SMALL).argmax()), (
        f"TD errors' 90 % quantile {p90_K[-1]:.3g}; predicting nothing gives about 1 where rewards have unit deviation",
    )


def _target_slow(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    gap_K, q_K = course.middle("target_gap"), course.middle("q_abs_max")
    share_K = gap_K / np.maximum(q_K, 1e-12)
    if course.late(share_K) <= GAP_SLOW or course.late(gap_K) <= GAP_SLOW_SIZE:
        return None
    return int((share_K > GAP_SLOW).argmax()), (
        f"the target network is {gap_K[-1]:.3g} away (root mean square), {share_K[-1]:.0%} of the largest value",
    )


def _target_none(course: Course) -> Seen | None:
    interval = course.number("target_update_interval") or 1.0
    if len(course) < EVALUATIONS_MIN or interval > 1.0 or course.members("target_gap").max() > GAP_NONE:
        return None
    if course.number("learning_rate") == 0.0:
        return None
    return 0, (f"the target network equals the online network at all {len(course)} evaluations",)


def _gradient_explodes(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN:
        return None
    norm_KE, q_KE = course.members("grad_norm"), course.members("q_abs_max")
    usual_E = np.median(norm_KE[:GRADIENT_FIRST], axis=0)
    grown_KE = norm_KE / np.maximum(usual_E, 1e-12)
    # gradients are as large as the values: a growth that both share has its own symptom
    own_KE = grown_KE / np.maximum(1.0, q_KE / np.maximum(np.median(q_KE[:GRADIENT_FIRST], axis=0), 1e-12))
    if own_KE[GRADIENT_FIRST:].max() <= GRADIENT_GROWTH:
        return None
    k, e = np.unravel_index(int(np.where(own_KE > GRADIENT_GROWTH, 1, 0).argmax()), own_KE.shape)
    return int(k), (f"gradient norm {norm_KE[k, e]:.3g}, {grown_KE[k, e]:.0f} times that of the first evaluations",)


def _always_clipped(course: Course) -> Seen | None:
    limit = course.number("max_grad_norm")
    if len(course) < EVALUATIONS_MIN or limit is None:
        return None
    share, norm = course.late(course.middle("grad_clipped")), course.late(course.middle("grad_norm"))
    if share < CLIPPED_SHARE or norm < CLIPPED_FACTOR * limit:
        return None
    return int((course.middle("grad_clipped") >= CLIPPED_SHARE).argmax()), (
        f"{share:.0%} of the gradients are clipped, of a mean norm of {norm:.3g} to {limit:.3g}",
    )


def _dead_units(course: Course) -> Seen | None:
    dead_K = course.middle("dead_units")
    if len(course) < 2 or not dead_K[-2:].min() > DEAD_SHARE:
        return None
    return int((dead_K > DEAD_SHARE).argmax()), (
        f"{dead_K[-1]:.0%} of the hidden units answer to no training row, {dead_K[0]:.0%} at the first evaluation",
    )


def _collapse(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    entropy_K = course.action_entropy_K
    if not entropy_K[-2:].max() < COLLAPSED_ENTROPY:
        return None
    share = float(np.median(course.largest_share_KE[-1]))
    target = max(course.records[-1]["action_share"][0].items(), key=lambda one: one[1])[0]
    name = {"0": "flat", "1": "long", "-1": "short"}[target]
    return int((entropy_K < COLLAPSED_ENTROPY).argmax()), (
        f"{name} is the best target of {share:.2%} of the training rows; entropy {entropy_K[-1]:.4f} nats",
        f"{course.late(course.mean('turnover')):.2g} sides per bar",
    )


def _flips(course: Course) -> Seen | None:
    if len(course) < 2 * EVALUATIONS_MIN:
        return None
    moved_K = np.abs(np.diff(course.shares_KEN, axis=0)).max(axis=2).mean(axis=1)
    late = moved_K[len(moved_K) // 2 :]
    if late.mean() <= FLIP_MEAN:
        return None
    return int((moved_K > FLIP_MEAN).argmax()) + 1, (
        (
            f"from one evaluation to the next {late.mean():.0%} of the rows change their best target, at most "
            f"{late.max():.0%}"
        ),
    )


def _attention(course: Course) -> Seen | None:
    groups = course.fact("data", "groups")
    if course.records[-1]["attention_entropy"] is None or groups is None or groups < 2:
        return None
    if len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    share_K = course.middle("attention_entropy") / math.log(groups)
    last = float(share_K[-1])
    if ATTENTION_ONE <= last <= ATTENTION_ALL:
        return None
    where = "one of" if last < ATTENTION_ONE else "evenly at"
    wrong_K = (share_K < ATTENTION_ONE) | (share_K > ATTENTION_ALL)
    return int(wrong_K.argmax()), (
        f"attention looks at {where} {groups:.0f} groups: its entropy is {last:.2%} of even attention's",
    )


def _exit_spread(course: Course) -> Seen | None:
    spread = course.records[-1]["exit_spread"]
    if spread is None:  # a head that is trained beside the values is judged once, at its end
        spread = course.fact("exits", "exit_spread")
    if spread is None or course.progress < PROGRESS_MIN or spread >= EXIT_SPREAD_MIN:
        return None
    first = next(
        (k for k, one in enumerate(course.records) if (one["exit_spread"] or math.inf) < EXIT_SPREAD_MIN),
        len(course) - 1,
    )
    return first, (f"stop distances deviate by {spread:.1%} of their mean",)


def _overfit(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    train_K, other_K, error_K = course.mean("train_bps"), course.mean("validation_bps"), _error(course)
    gap_K = train_K - other_K
    least_K = np.maximum(_gap_error(course), _least_error(course))
    wrong_K = (gap_K > OVERFIT_ERRORS * least_K) & (least_K > 0.0) & (gap_K > OVERFIT_SHARE * train_K) & (train_K > 0.0)
    if not wrong_K[-2:].all():
        return None
    errors = gap_K[-1] / least_K[-1]
    return int(wrong_K.argmax()), (
        f"training {train_K[-1]:+.2f} bp per bar, validation {other_K[-1]:+.2f} with an error of {error_K[-1]:.2f}",
        f"the gap is {errors:.1f} errors of a difference; it was {gap_K[0]:+.2f} bp at first",
    )


def _crash(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN:
        return None
    value_K, error_K = course.mean("validation_bps"), _error(course)
    best = int(value_K.argmax())
    last = float(value_K[-2:].mean())
    fall = float(value_K[best]) - last
    error = max(float(error_K[best]), float(error_K[-1]))
    if value_K[best] <= CRASH_ERRORS * error or fall <= max(CRASH_ERRORS * error, CRASH_SHARE * float(value_K[best])):
        return None
    fallen_K = np.arange(len(course)) > best
    fallen_K &= value_K < (1.0 - CRASH_SHARE) * value_K[best]
    return int(fallen_K.argmax()), (
        (
            f"validation was {value_K[best]:+.2f} bp per bar at update {course.updates_K[best]} and is {last:+.2f}, "
            f"{fall / max(error, 1e-12):.1f} errors below"
        ),
    )


def _nothing_learned(course: Course) -> Seen | None:
    if len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN or _wrong_way(course) is not None:
        return None
    value_K, train_K = course.mean("validation_bps"), course.mean("train_bps")
    error_K = np.maximum(_error(course), _least_error(course))
    error = course.late(error_K)
    ever = bool((value_K > LEARNED_ERRORS * np.maximum(error_K, 1e-12)).any())
    ever |= course.late(value_K) > 0.0 and course.late(course.mean("turnover")) > TURNOVER_MIN
    if (
        ever
        or course.late(train_K) > LEARNED_ERRORS * max(course.late(_train_error(course)), error, 1e-12)
        or _overtrades(course) is not None
    ):
        return None
    return 0, (
        (
            f"validation {course.late(value_K):+.3f} bp per bar with an error of {error:.3f}, training "
            f"{course.late(train_K):+.3f}"
        ),
        f"{course.late(course.mean('turnover')):.2g} sides per bar",
    )


def _overtrades(course: Course) -> Seen | None:
    gross_K = course.gross_bps_K
    if gross_K is None or len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    net_K, error_K = course.mean("validation_bps"), _error(course)
    net, gross, error = course.late(net_K), course.late(gross_K), max(course.late(error_K), 1e-12)
    if net > -GROSS_ERRORS * error or gross < GROSS_ERRORS * error:
        return None
    return int(((net_K < 0.0) & (gross_K > 0.0)).argmax()), (
        f"validation earns {gross:+.2f} bp per bar before costs and {net:+.2f} after, with an error of {error:.2f}",
        f"{course.late(course.mean('turnover')):.3f} sides per bar",
    )


def _wrong_way(course: Course) -> Seen | None:
    gross_K = course.gross_bps_K
    if gross_K is None or len(course) < EVALUATIONS_MIN or course.progress < PROGRESS_MIN:
        return None
    error = max(course.late(_error(course)), 1e-12)
    gross = course.late(gross_K)
    if gross > -WRONG_ERRORS * error:
        return None
    return int((gross_K < 0.0).argmax()), (
        f"validation loses {-gross:.2f} bp per bar before any cost, {-gross / error:.1f} standard errors below zero",
        f"training {course.late(course.mean('train_bps')):+.2f} bp per bar",
    )


def _gap_error(course: Course) -> Float:
    """Return (K,) the standard error of training minus validation."""
    return np.asarray(np.sqrt(np.square(_error(course)) + np.square(_train_error(course))))


def _train_error(course: Course) -> Float:
    """Return (K,) the standard error of what training rows earn; the members are asked on much the same ones."""
    deviation, bars = course.fact("rewards", "deviation_bps"), course.fact("data", "train_bars")
    if not deviation or not bars:
        return np.asarray(np.sqrt(np.square(course.members("validation_error_bps")).mean(axis=1)))
    held_K = np.array(
        [np.mean([1.0 - one.get("0", 0.0) for one in record["action_share"]]) for record in course.records]
    )
    return np.asarray(deviation * np.sqrt(held_K / min(bars, WATCHED_ROWS)))


def _least_error(course: Course) -> float:
    """Return a tenth of the standard error of a mean at full exposure: less is that of a policy that never trades."""
    deviation, bars = course.fact("rewards", "deviation_bps"), course.fact("data", "validation_bars")
    return 0.1 * deviation / math.sqrt(min(bars, WATCHED_ROWS)) if deviation and bars else 0.0


def _error(course: Course) -> Float:
    """Return (K,) the standard error of the members' mean: each is validated on bars of its own."""
    error_KE = course.members("validation_error_bps")
    return np.asarray(np.sqrt(np.square(error_KE).sum(axis=1)) / error_KE.shape[1])


Look = Callable[[Course], Seen | None]

SYMPTOMS: Mapping[str, tuple[str, Severity, Look]] = {
    "not_finite": ("a metric is no number", "error", _not_finite),
    "q_beyond_bound": ("values are larger than any reward could make them", "error", _q_beyond_bound),
    "wrong_way": ("it loses before costs: what it knows is the wrong way round", "error", _wrong_way),
    "loss_spike": ("the loss jumps", "warning", _loss_spike),
    "gradient_explodes": ("gradients explode", "warning", _gradient_explodes),
    "q_unsettled": ("values still grow, and drown what tells targets apart", "warning", _q_unsettled),
    "td_large": ("TD errors are larger than those of predicting nothing", "warning", _td_large),
    "td_small": ("TD errors are smaller than any market allows", "warning", _td_small),
    "td_tails": ("TD errors have heavy tails", "warning", _td_tails),
    "target_slow": ("the target network lags behind", "warning", _target_slow),
    "target_none": ("there is no target network to speak of", "warning", _target_none),
    "always_clipped": ("every gradient is clipped", "warning", _always_clipped),
    "dead_units": ("hidden units are dead", "warning", _dead_units),
    "collapse": ("it always wants the same target", "warning", _collapse),
    "flips": ("it wants something else at every evaluation", "warning", _flips),
    "attention": ("attention tells no group from another, or looks at one alone", "warning", _attention),
    "exit_spread": ("all exits are alike", "warning", _exit_spread),
    "overfit": ("it earns on training rows and not on others", "warning", _overfit),
    "crash": ("it was good and is no longer", "warning", _crash),
    "overtrades": ("it earns before costs and loses after them", "warning", _overtrades),
    "nothing_learned": ("it earns nothing anywhere", "warning", _nothing_learned),
}
"""Title, severity and what looks for it, by name."""
