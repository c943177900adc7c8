"""Traces of causes: what the settings, the data and the course of a training say for and against each.

A weigher does not know the symptom. It returns by how much what it finds multiplies the odds of its cause, and what it
found.
"""

from __future__ import annotations

import math

from training.dqn.course import Course
from training.dqn.symptoms import WRONG_ERRORS

USUAL_LEARNING_RATE = 1e-3
"""Adam moves a weight by at most about this much an update; weights of our networks are of the order 0.1 to 1."""
INPUT_PULL_HIGH = 0.02
"""A weak predictor moves a loss of order one by a correlation of some percent, and its weight's gradient is of that
order."""
BARS_PER_FEATURE = 400.0
"""A predictor whose correlation with the next return is 0.05 explains 1/400 of its variance: with fewer bars for each
feature the fit has more of chance in it than of the predictor."""
OUTLIER_ALONE = 20.0
"""Largest bar over the 99.9 % quantile of all: about 8 in years of 5-minute bars of a volatile market."""
PASSES_MANY = 100.0
UNKNOWN = 0.5
"""Multiplies the odds of a cause that nothing is known about."""
UNLIKELY = 0.05
"""Multiplies the odds of a cause that the settings or the data speak against."""

Weighed = tuple[float, tuple[str, ...]]
"""By how much the traces multiply the odds, and the traces."""


def learning_rate_high(course: Course) -> Weighed:
    """Weigh the rate by what Adam does with it, and units that died on the way."""
    rate = course.learning_rate
    evidence = []
    multiplier = min(0.3, rate / USUAL_LEARNING_RATE)
    if rate >= 5.0 * USUAL_LEARNING_RATE:
        multiplier = 2.0 * rate / USUAL_LEARNING_RATE / 5.0
        evidence.append(
            f"learning_rate is {rate:g}: Adam moves each weight by up to that in one update, and weights are "
            "of the order 0.1 to 1"
        )
    dead_K = course.middle("dead_units")
    if evidence and len(course) > 2 and dead_K[-1] > dead_K[0] + 0.2:
        multiplier *= 2.0
        evidence.append(f"units died during the training: {dead_K[0]:.0%} at first, {dead_K[-1]:.0%} at the end")
    return multiplier, tuple(evidence)


def learning_rate_low(course: Course) -> Weighed:
    """Weigh how far the weights can have come."""
    rate = course.learning_rate
    moved = course.late(course.middle("target_gap")) / max(course.late(course.middle("q_abs_max")), 1e-12)
    multiplier, evidence = (UNLIKELY, []) if rate >= 0.1 * USUAL_LEARNING_RATE else (1.0, [])
    if rate <= 0.01 * USUAL_LEARNING_RATE:
        multiplier = 20.0
        evidence.append(
            f"learning_rate is {rate:g}: {course.updates_K[-1]} updates move a weight by at most "
            f"{rate * int(course.updates_K[-1]):.2g}"
        )
    if 0.0 < moved < 1e-3 and (course.target_rate or 0.0) < 0.5:
        multiplier *= 2.0
        evidence.append(f"online and target network differ by {moved:.1e} of the largest value: nothing moves")
    return multiplier, tuple(evidence)


def reward_scale(course: Course) -> Weighed:
    """Weigh the deviation of a bar's reward in the learner's unit."""
    scaled = course.fact("rewards", "scaled_deviation")
    if scaled is None:
        return UNKNOWN, ()
    off = max(scaled, 1.0 / scaled) if scaled > 0.0 else math.inf
    if off <= 3.0:
        return UNLIKELY, ()
    return off, (f"a bar's reward deviates by {scaled:.3g} in the learner's unit, where 1 is meant",)


def gamma_high(course: Course) -> Weighed:
    """Weigh the bars that a value adds up."""
    horizon = course.horizon_bars
    if horizon is None:
        return UNKNOWN, ()
    if horizon < 200.0:
        return UNLIKELY, ()
    return horizon / 100.0, (f"gamma is {course.number('gamma'):g}: values add up {horizon:.0f} bars",)


def gamma_low(course: Course) -> Weighed:
    """Weigh the bars that a cost is set against."""
    horizon = course.horizon_bars
    if horizon is None:
        return UNKNOWN, ()
    if horizon >= 10.0:
        return UNLIKELY, ()
    return 20.0 / horizon, (
        f"gamma is {course.number('gamma'):g}: a trade's cost is weighed against {horizon:.1f} bars",
    )


def target_fast(course: Course) -> Weighed:
    """Weigh the share of the way that the target goes in one update."""
    rate = course.target_rate
    if rate is None:
        return UNKNOWN, ()
    if rate < 0.2:
        return UNLIKELY, ()
    return (20.0 if rate >= 0.5 else 4.0), (
        (
            f"tau {course.number('tau'):g} every {course.number('target_update_interval') or 1:g} updates: "
            "the target follows the network it is to steady"
        ),
    )


def target_slow(course: Course) -> Weighed:
    """Weigh how often the target was renewed in the whole training."""
    rate = course.target_rate
    if rate is None:
        return UNKNOWN, ()
    sweeps = rate * float(course.updates_K[-1])
    if sweeps >= 10.0:
        return UNLIKELY, ()
    return 30.0 / (1.0 + sweeps), (
        (
            f"tau {course.number('tau'):g} every {course.number('target_update_interval') or 1:g} updates: in "
            f"{course.updates_K[-1]} updates the target was renewed {sweeps:.2g} times"
        ),
    )


def single_q(course: Course) -> Weighed:
    """Weigh whether one network both chooses and values."""
    double = course.setting("double")
    if double is None:
        return 0.2, ()
    if double:
        return UNLIKELY, ()
    return 3.0, ("double is off: the largest of noisy values is taken for the best one's value",)


def no_clipping(course: Course) -> Weighed:
    """Weigh whether the limit was ever reached."""
    limit = course.number("max_grad_norm")
    if limit is None:
        return UNKNOWN, ()
    norm_KE = course.members("grad_norm")
    usual, largest = float(course.middle("grad_norm").mean()), float(norm_KE.max())
    if limit < 20.0 * max(usual, 1e-12) or course.members("grad_clipped").max() > 0.0:
        return 0.3, ()
    return 3.0, (f"max_grad_norm is {limit:g} and never reached: gradients are {usual:.3g}, up to {largest:.3g}",)


def clipped_hard(course: Course) -> Weighed:
    """Weigh the gradients against the limit."""
    limit = course.number("max_grad_norm")
    if limit is None:
        return UNKNOWN, ()
    norm = course.late(course.middle("grad_norm"))
    if norm < 10.0 * limit:
        return UNLIKELY, ()
    return norm / limit / 5.0, (f"max_grad_norm is {limit:g}, gradients have a norm of {norm:.3g}",)


def outliers(course: Course) -> Weighed:
    """Weigh the largest reward of a bar."""
    alone, largest = course.fact("rewards", "largest_over_tail"), course.fact("rewards", "largest_deviations")
    if alone is None:
        return UNKNOWN, ()
    if alone < OUTLIER_ALONE:
        return 0.1, ()
    return alone / 4.0, (
        f"one bar pays {largest:.0f} deviations, {alone:.0f} times what all but a thousandth of the bars stay below",
    )


def heavy_rewards(course: Course) -> Weighed:
    """Weigh the third and fourth moment of the rewards."""
    skew, kurtosis = course.fact("rewards", "skew"), course.fact("rewards", "kurtosis")
    if skew is None or kurtosis is None:
        return UNKNOWN, ()
    if kurtosis < 10.0 and abs(skew) < 2.0:
        return 0.1, ()
    return max(kurtosis / 10.0, abs(skew)), (
        f"a bar's reward has a skew of {skew:+.1f} and an excess kurtosis of {kurtosis:.0f}: few bars pay most of it",
    )


def huber_small(course: Course) -> Weighed:
    """Weigh the loss's turning point, with the skew of what it sees."""
    delta, skew = course.number("huber_delta"), course.fact("rewards", "skew")
    if delta is None:
        return 0.2, ()
    if delta >= 3.0 or (skew is not None and abs(skew) < 1.0):
        return UNLIKELY, ()
    words = "" if skew is None else f"; their skew is {skew:+.1f}"
    return 6.0 * min(5.0, 1.0 / max(delta, 0.05)) * min(3.0, abs(skew or 1.0)), (
        (
            f"huber_delta is {delta:g} deviations: the values of skewed rewards go to their median, not to "
            f"their mean{words}"
        ),
    )


def few_bars(course: Course) -> Weighed:
    """Weigh the bars against the features, and how often each was seen."""
    bars, features = course.fact("data", "train_bars"), course.fact("data", "features")
    if not bars or not features:
        return UNKNOWN, ()
    enough = BARS_PER_FEATURE * features
    evidence = []
    multiplier = min(1.0, enough / bars)
    if bars < enough:
        multiplier = 2.0 * enough / bars
        evidence.append(
            f"{bars:.0f} training bars for {features:.0f} features: {enough:.0f} are the least for a weak predictor"
        )
    passes = course.records[-1]["bars_seen"] / bars
    if passes > PASSES_MANY:
        multiplier *= 1.5
        evidence.append(f"each bar was seen {passes:.0f} times")
    return multiplier, tuple(evidence)


def decay_low(course: Course) -> Weighed:
    """Weigh how little the weights are held back."""
    decay = course.number("weight_decay")
    if decay is None:
        return UNKNOWN, ()
    if decay >= 0.1:
        return UNLIKELY, ()
    return 2.0, (f"weight_decay is {decay:g}: weights grow as large as the training rows ask for",)


def held_at_zero(course: Course) -> Weighed:
    """Weigh how much they are."""
    decay, pull = course.number("weight_decay"), course.number("input_l1") or 0.0
    if decay is None:
        return UNKNOWN, ()
    evidence = []
    if decay > 1.0:
        bound = 1.0 / decay
        evidence.append(f"weight_decay is {decay:g}: AdamW lets no weight stay above {bound:.2g}")
    if pull > INPUT_PULL_HIGH:
        evidence.append(f"input_l1 is {pull:g}: gradients of that size are needed to keep an input's weight")
    if not evidence:
        return UNLIKELY, ()
    evidence.append(f"the largest value is {course.middle('q_abs_max')[-1]:.2g}")
    return max(3.0 * decay, 200.0 * pull), tuple(evidence)


def inputs(course: Course) -> Weighed:
    """Weigh the features that tell nothing."""
    constant, saturated = course.names("inputs", "constant"), course.names("inputs", "saturated")
    features = course.fact("data", "features")
    if constant is None or saturated is None or not features:
        return UNKNOWN, ()
    bad = [*constant, *saturated]
    if not bad:
        return UNLIKELY, ()
    share = len(bad) / features
    shown = ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")
    return (40.0 if share > 0.9 else 10.0 * share + 0.5), (
        f"{len(bad)} of {features:.0f} features tell nothing (constant, or at one end of their range): {shown}",
    )


def start_dead(course: Course) -> Weighed:
    """Weigh the units that were dead when it began."""
    dead = float(course.middle("dead_units")[0])
    if dead <= 0.4:
        return 0.1, ()
    rate = course.learning_rate
    if float(course.middle("dead_units")[-1]) > dead + 0.1:
        return 0.5, (f"{dead:.0%} were dead at the first evaluation, and more at the end",)
    if rate >= 10.0 * USUAL_LEARNING_RATE:
        return 1.0, (f"{dead:.0%} were dead at the first evaluation",)
    return 10.0, (f"{dead:.0%} were dead at the first evaluation already",)


def cost_high(course: Course) -> Weighed:
    """Weigh what a side costs against what a bar moves."""
    side = course.fact("rewards", "side_cost_deviations")
    if side is None:
        return UNKNOWN, ()
    if side < 0.25:
        return 0.2, ()
    return 8.0 * side, (
        f"one side costs {side:.2g} deviations of a bar: a trade must earn {2 * side:.2g} to be worth it",
    )


def cost_unknown(course: Course) -> Weighed:
    """Weigh what is paid for trading against what it earns."""
    gross_K = course.gross_bps_K
    if gross_K is None:
        return UNKNOWN, ()
    gross, net = course.late(gross_K), course.late(course.mean("validation_bps"))
    if gross <= 0.0 or gross - net < 0.8 * gross:
        return 0.2, ()
    return 2.0 * (gross - net) / gross, (f"it pays {gross - net:.2f} bp per bar for trades that earn {gross:.2f}",)


def no_signal(course: Course) -> Weighed:
    """Weigh whether the loss fell at all."""
    loss_K = course.middle("loss")
    if len(course) > 2 and float(loss_K[-1]) > 0.95 * float(loss_K[0]):
        return 1.0, (f"the loss is {loss_K[-1]:.3g} and was {loss_K[0]:.3g} at the first evaluation",)
    return 0.7, ()


def unexplored(course: Course) -> Weighed:
    """Weigh what the replay holds beside what the policy does."""
    replay = course.setting("replay")
    if replay is None:
        return 0.1, ()
    if replay != "transitions":
        return 0.01, ()
    epsilon = course.records[-1]["epsilon"]
    if epsilon is None:
        epsilon = course.number("exploration_final") or course.number("exploration_final_eps")
    if epsilon is not None and epsilon > 0.05:
        return 3.0, (f"replay is transitions: other targets are learned from {epsilon:.0%} of the bars alone",)
    return 30.0, (
        "replay is transitions and nothing is explored"
        + ("" if epsilon is None else f" (epsilon {epsilon:g})")
        + ": what was never done is never learned",
    )


def exits_in_trunk(course: Course) -> Weighed:
    """Weigh the kind of exit head."""
    kind = str(course.setting("head") or course.setting("exit_head") or "")
    if "sigmoid" in kind or "mse" in kind:
        return 10.0, (f"the exit head is {kind}: squared errors are least at the mean of all excursions",)
    return (UNKNOWN if not kind else 0.2), ()


def reward_sign(course: Course) -> Weighed:
    """Weigh what is lost before costs."""
    gross_K = course.gross_bps_K
    if gross_K is None:
        return UNKNOWN, ()
    gross, error = course.late(gross_K), max(course.late(course.mean("validation_error_bps")), 1e-12)
    error /= math.sqrt(len(course.records[0]["loss"]))
    if gross > -WRONG_ERRORS * error:
        return UNLIKELY, ()
    return 5.0, (f"validation before costs is {gross:+.2f} bp per bar, {-gross / error:.0f} errors below zero",)


def too_short(course: Course) -> Weighed:
    """Weigh the bars seen, and whether validation still rises."""
    bars = course.fact("data", "train_bars")
    seen = course.records[-1]["bars_seen"]
    if bars and seen < bars:
        return 5.0, (f"{seen} bars were drawn from {bars:.0f}: most were never seen",)
    value_K = course.mean("validation_bps")
    error = max(course.late(course.mean("validation_error_bps")), 1e-12)
    if len(course) > 4 and value_K[-1] > value_K[len(course) // 2] + 3.0 * error:
        return 2.0, (
            f"validation still rises: {value_K[len(course) // 2]:+.2f} bp at half time, {value_K[-1]:+.2f} now",
        )
    return 0.2, ()


def other_times(course: Course) -> Weighed:
    """Weigh nothing: what no number tells keeps its prior odds."""
    del course
    return 1.0, ()
