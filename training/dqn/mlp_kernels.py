"""The compiled learner's arithmetic: a batch of bars in, new weights out. `training.dqn.compiled_mlp` is its face.

Everything lies in flat float32 arrays, each matrix in rows of whole vectors (`training.instructions`). What the padding
holds is zero and stays zero: a padded unit has no weights, so it has no output, no gradient and no decay.

Axes: D layers, B bars of a batch, F features, N targets, P weights, R rows that may be drawn, U updates of a call.
Workspaces hold, one matrix after the other, the inputs and each layer's outputs, for 2B rows: the bars, then the bars
after them (B rounded up to whole blocks).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from training.instructions import LINE_BYTES, ROWS, WIDE, block_narrow, block_wide, prefetch
from training.machine_code import machine_code, next_below

TERMS, IN, OUT_TERMS, OUT, WEIGHT, BIAS, PLACE = range(7)
"""Columns of the layout: inputs, padded inputs, outputs, padded outputs, and where weights, biases and outputs lie."""
GAMMA, SCALE, HUBER, TAU, DECAY, CLIP, INPUT_CLIP, INPUT_L1, AVERAGE = range(9)
"""Numbers of the learner, float64."""
LOSS, NORM, CLIPPED = range(3)
"""Sums over the updates of a call."""

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's (Kingma & Ba 2015), and torch's defaults."""
DIVERGED = -1

_LANES = 64
_ZERO = np.float32(0.0)
_NO_FLOOR = np.float32(-math.inf)
_REWARD_LINES = 2 * 72 // LINE_BYTES + 1


@machine_code
def forward(layout_DK: Any, weight_P: Any, x: Any, x_at: int, work: Any, rows: int) -> None:
    """Write every layer's outputs of `rows` inputs at `x[x_at]` to `work`; ReLU after all but the last."""
    source, at = x, x_at
    for layer in range(layout_DK.shape[0]):
        terms, width, out = layout_DK[layer, TERMS], layout_DK[layer, IN], layout_DK[layer, OUT]
        w, b, to = layout_DK[layer, WEIGHT], layout_DK[layer, BIAS], layout_DK[layer, PLACE]
        floor = _NO_FLOOR if layer == layout_DK.shape[0] - 1 else _ZERO
        column = 0
        while column + WIDE <= out:
            for i in range(0, rows, ROWS):
                block_wide(work, to + i * out + column, out, source, at + i * width, width, 1,
                           weight_P, w + column, out, terms, weight_P, b + column, floor)  # fmt: skip
            column += WIDE
        if column < out:
            for i in range(0, rows, ROWS):
                block_narrow(work, to + i * out + column, out, source, at + i * width, width, 1,
                             weight_P, w + column, out, terms, weight_P, b + column, floor)  # fmt: skip
        source, at = work, to


@machine_code
def _product(
    out: Any, out_at: int, columns: int, rows: int, left: Any, left_at: int, left_row: int, left_term: int,
    right: Any, right_at: int, terms: int, zero_Z: Any,
) -> None:  # fmt: skip
    """Write a product of (rows, terms) and (terms, columns) matrices."""
    column = 0
    while column + WIDE <= columns:
        for i in range(0, rows, ROWS):
            block_wide(out, out_at + i * columns + column, columns, left, left_at + i * left_row, left_row, left_term,
                       right, right_at + column, columns, terms, zero_Z, 0, _NO_FLOOR)  # fmt: skip
        column += WIDE
    if column < columns:
        for i in range(0, rows, ROWS):
            block_narrow(out, out_at + i * columns + column, columns, left, left_at + i * left_row, left_row, left_term,
                         right, right_at + column, columns, terms, zero_Z, 0, _NO_FLOOR)  # fmt: skip


@machine_code
def _backward(
    layout_DK: Any, weight_P: Any, work: Any, delta: Any, gradient_P: Any, flipped: Any, zero_Z: Any,
    bars: int, rows: int,
) -> None:  # fmt: skip
    """Turn the loss's derivatives by the outputs, in `delta`, into those by the weights, in `gradient_P`."""
    for layer in range(layout_DK.shape[0] - 1, -1, -1):
        width, out_terms, out = layout_DK[layer, IN], layout_DK[layer, OUT_TERMS], layout_DK[layer, OUT]
        w, b, here = layout_DK[layer, WEIGHT], layout_DK[layer, BIAS], layout_DK[layer, PLACE]
        before = 0 if layer == 0 else layout_DK[layer - 1, PLACE]
        _product(gradient_P, w, out, width, work, before, 1, width, delta, here, bars, zero_Z)
        bias_O = gradient_P[b : b + out]
        bias_O[:] = _ZERO
        for i in range(bars):
            row_O = delta[here + i * out : here + (i + 1) * out]
            for o in range(out):
                bias_O[o] += row_O[o]
        if layer == 0:
            return
        for o in range(out_terms):
            for i in range(width):
                flipped[o * width + i] = weight_P[w + i * out + o]
        _product(delta, before, width, rows, delta, here, out, 1, flipped, 0, out_terms, zero_Z)
        active, slope = work[before : before + rows * width], delta[before : before + rows * width]
        for i in range(rows * width):
            slope[i] = slope[i] if active[i] > _ZERO else _ZERO


@machine_code
def normalise(row: int, features: int, observation_TG: Any, unit_3F: Any, clip: Any, out: Any, at: int) -> None:
    """Write one row's features as clipped deviations times gains; `unit_3F`: mean, one over deviation, gain."""
    row_G = observation_TG[row]
    out_F = out[at : at + features]
    for f in range(features):
        z = (row_G[f] - unit_3F[0, f]) * unit_3F[1, f]
        z = min(z, clip)
        out_F[f] = max(z, -clip) * unit_3F[2, f]


@machine_code
def _paid(reward_TPN: Any, row: int, target: int) -> tuple[float, float]:
    """Return the overnight growth of the old position and the growth of the new one: A and B of a row at a target.

    The reward of old and new position is a sum, A[old] + C[|new - old|] + B[new], of which only sums can be read.
    """
    if target == 0:
        return 0.0, 0.0
    side = 1 + target
    both = reward_TPN[row, side, side]
    into, away = reward_TPN[row, 1, side], reward_TPN[row, side, 1]
    return 0.5 * (both + away - into), 0.5 * (both + into - away)


@machine_code
def _costs(reward_TPN: Any, row: int, shorts: bool) -> tuple[float, float]:  # noqa: FBT001 -- of a kernel
    """Return the log cost of a change by one and by two: C of a row."""
    one = 0.5 * (reward_TPN[row, 1, 2] + reward_TPN[row, 2, 1] - reward_TPN[row, 2, 2])
    two = reward_TPN[row, 0, 2] - _paid(reward_TPN, row, -1)[0] - _paid(reward_TPN, row, 1)[1] if shorts else 0.0
    return one, two


@machine_code
def compute_gradient(
    row_B: Any, features: int, observation_TG: Any, reward_TPN: Any, unit_3F: Any, number_K: Any,
    cost_NN: Any, layout_DK: Any, weight_P: Any, target_P: Any, work: Any, target_work: Any, delta: Any,
    gradient_P: Any, flipped: Any, zero_Z: Any, y_BN: Any, td_BN: Any,
) -> Any:  # fmt: skip
    """Write the targets, TD errors and gradient of one batch of bars; returns the mean Huber loss."""
    bars, targets = td_BN.shape
    rows = (bars + ROWS - 1) // ROWS * ROWS
    width, out = layout_DK[0, IN], layout_DK[-1, OUT]
    clip = np.float32(number_K[INPUT_CLIP])
    row_bytes = observation_TG.strides[0]
    for i in range(bars):
        for byte in range(0, 2 * row_bytes, LINE_BYTES):
            prefetch(observation_TG, row_B[i], byte)
        for line in range(_REWARD_LINES):
            prefetch(reward_TPN, row_B[i], line * LINE_BYTES)
    for i in range(bars):
        normalise(row_B[i], features, observation_TG, unit_3F, clip, work, i * width)
        normalise(row_B[i] + 1, features, observation_TG, unit_3F, clip, work, (rows + i) * width)
    forward(layout_DK, weight_P, work, 0, work, 2 * rows)
    forward(layout_DK, target_P, work, rows * width, target_work, rows)

    gamma, scale, huber = number_K[GAMMA], number_K[SCALE], np.float32(number_K[HUBER])
    shorts = targets == 3
    first = -1 if shorts else 0
    share = np.float32(1.0 / (bars * targets))
    here = layout_DK[-1, PLACE]
    loss = 0.0
    for i in range(bars):
        value = here + i * out
        later = here + (rows + i) * out
        one, two = _costs(reward_TPN, row_B[i] + 1, shorts)
        for n in range(targets):
            best, best_q = 0, cost_NN[n, 0] + work[later]
            for m in range(1, targets):
                q = cost_NN[n, m] + work[later + m]
                if q > best_q:
                    best, best_q = m, q
            moved = abs(n - best)
            cost = 0.0 if moved == 0 else (one if moved == 1 else two)
            grown = _paid(reward_TPN, row_B[i], first + n)[1] + gamma * _paid(reward_TPN, row_B[i] + 1, first + n)[0]
            paid = (grown + gamma * cost) * scale
            y_BN[i, n] = np.float32(paid + gamma * np.float64(target_work[here + i * out + best]))
            td = work[value + n] - y_BN[i, n]
            td_BN[i, n] = td
            slope = huber if td > huber else (max(td, -huber))
            delta[value + n] = slope * share
            loss += np.float64(slope * (td - np.float32(0.5) * slope))
    _backward(layout_DK, weight_P, work, delta, gradient_P, flipped, zero_Z, bars, rows)
    return loss / (bars * targets)


@machine_code
def _norm(gradient_P: Any, lane_L: Any) -> float:
    """Return the root of the sum of squares, summed in `_LANES` parts."""
    lane_L[:] = _ZERO
    whole = gradient_P.shape[0] // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        part_L = gradient_P[begin : begin + _LANES]
        for lane in range(_LANES):
            lane_L[lane] += part_L[lane] * part_L[lane]
    total = 0.0
    for lane in range(_LANES):
        total += np.float64(lane_L[lane])
    for p in range(whole, gradient_P.shape[0]):
        total += np.float64(gradient_P[p]) ** 2
    return math.sqrt(total)


@machine_code
def apply_gradient(
    gradient_P: Any, norm: float, step: int, rate: float, number_K: Any, first_layer: int,
    weight_P: Any, target_P: Any, mean_P: Any, first_P: Any, second_P: Any,
) -> None:  # fmt: skip
    """Take one AdamW step with a clipped gradient (Loshchilov & Hutter 2019), then move target network and mean.

    The weights of the first layer, `first_layer` of them, are pulled to zero by a constant besides.
    """
    shrink = np.float32(min(1.0, number_K[CLIP] / (norm + 1e-6)))
    pull = np.float32(number_K[INPUT_L1])
    for p in range(gradient_P.shape[0]):
        gradient_P[p] *= shrink
    if pull > _ZERO:
        for p in range(first_layer):
            weight = weight_P[p]
            gradient_P[p] += pull if weight > _ZERO else (-pull if weight < _ZERO else _ZERO)
    keep = np.float32(1.0 - rate * number_K[DECAY])
    length = np.float32(rate / (1.0 - BETA_1**step))
    root = np.float32(1.0 / math.sqrt(1.0 - BETA_2**step))
    tau, epsilon = np.float32(number_K[TAU]), np.float32(EPSILON)
    # the first updates are a plain mean, so that the start is soon forgotten
    share = np.float32(max(number_K[AVERAGE], 1.0 / step) if number_K[AVERAGE] > 0.0 else 1.0)
    beta_1, rest_1 = np.float32(BETA_1), np.float32(1.0 - BETA_1)
    beta_2, rest_2 = np.float32(BETA_2), np.float32(1.0 - BETA_2)
    for p in range(gradient_P.shape[0]):
        g = gradient_P[p]
        first = beta_1 * first_P[p] + rest_1 * g
        second = beta_2 * second_P[p] + rest_2 * (g * g)
        weight = weight_P[p] * keep - length * first / (np.sqrt(second) * root + epsilon)
        first_P[p] = first
        second_P[p] = second
        weight_P[p] = weight
        target_P[p] += tau * (weight - target_P[p])
    for p in range(gradient_P.shape[0]):
        mean_P[p] += share * (weight_P[p] - mean_P[p])


@machine_code
def train(
    row_R: Any, rate_U: Any, generator_1: Any, step_1: Any, sum_K: Any, kept_td_S: Any,
    features: int, observation_TG: Any, reward_TPN: Any, unit_3F: Any, number_K: Any,
    cost_NN: Any, layout_DK: Any, weight_P: Any, target_P: Any, mean_P: Any, first_P: Any, second_P: Any,
    work: Any, target_work: Any, delta: Any, gradient_P: Any, flipped: Any, zero_Z: Any,
    row_B: Any, y_BN: Any, td_BN: Any, lane_L: Any,
) -> int:  # fmt: skip
    """Take one update for each learning rate; returns how many |TD| were written, or `DIVERGED`."""
    bars, targets = td_BN.shape
    written = 0
    for u in range(rate_U.shape[0]):
        for i in range(bars):
            row_B[i] = row_R[next_below(generator_1, row_R.shape[0])]
        loss = compute_gradient(
            row_B, features, observation_TG, reward_TPN, unit_3F, number_K, cost_NN, layout_DK,
            weight_P, target_P, work, target_work, delta, gradient_P, flipped, zero_Z, y_BN, td_BN,
        )  # fmt: skip
        norm = _norm(gradient_P, lane_L)
        if not math.isfinite(norm):
            return DIVERGED
        step_1[0] += 1
        apply_gradient(
            gradient_P, norm, step_1[0], rate_U[u], number_K, layout_DK[0, BIAS],
            weight_P, target_P, mean_P, first_P, second_P,
        )  # fmt: skip
        sum_K[LOSS] += loss
        sum_K[NORM] += norm
        sum_K[CLIPPED] += norm > number_K[CLIP]
        for i in range(bars):
            for n in range(targets):
                kept_td_S[written % kept_td_S.shape[0]] = abs(td_BN[i, n])
                written += 1
    return written


@machine_code
def evaluate(
    row_R: Any, features: int, observation_TG: Any, unit_3F: Any, number_K: Any, layout_DK: Any,
    weight_P: Any, work: Any, room: int, value_RN: Any, active_H: Any,
) -> None:  # fmt: skip
    """Write the values of rows, `room` at a time, and which hidden units were ever more than zero."""
    width, out, here = layout_DK[0, IN], layout_DK[-1, OUT], layout_DK[-1, PLACE]
    clip = np.float32(number_K[INPUT_CLIP])
    for begin in range(0, row_R.shape[0], room):
        count = min(room, row_R.shape[0] - begin)
        for i in range(count):
            normalise(row_R[begin + i], features, observation_TG, unit_3F, clip, work, i * width)
        forward(layout_DK, weight_P, work, 0, work, (count + ROWS - 1) // ROWS * ROWS)
        for i in range(count):
            for n in range(value_RN.shape[1]):
                value_RN[begin + i, n] = work[here + i * out + n]
        unit = 0
        for layer in range(layout_DK.shape[0] - 1):
            units, step, at = layout_DK[layer, OUT_TERMS], layout_DK[layer, OUT], layout_DK[layer, PLACE]
            for i in range(count):
                for h in range(units):
                    active_H[unit + h] |= work[at + i * step + h] > _ZERO
            unit += units
