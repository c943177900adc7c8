"""The all-action Double DQN of an MLP, many updates to a call, without an interpreter in between.

From one bar every position and target is a known transition, so one bar gives one TD target for each target n, held
from this bar's close on (post-decision values G; `Q[p, n] = cost[p, n] + G[n]`):

    y[n] = (B_n(t) + gamma A_n(t + 1)) scale + gamma (C_|n - m|(t + 1) scale + G_target[m](t + 1))
    m    = argmax over m of  cost[n, m] scale + G_online[m](t + 1)

A, B, C are the growth of the old position overnight, of the new one after the open, and the log cost of the change,
which the reward table splits into. Bars are drawn evenly; the loss is Huber's, averaged over bars and targets; then
gradient-norm clip, AdamW (decay on every weight, as torch) and a soft move of the target network.

The kernel does not hold the interpreter's lock: members of an ensemble train side by side in threads. Memory of a
member is its weights; the table is shared.

Axes: T, F of the market table; R rows that may be drawn; P, N positions and targets (0, 1), with shorts (-1, 0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.dqn import mlp_kernels as kernels
from training.errors import TrainingError
from training.instructions import NARROW, ROWS
from training.machine_code import generator
from training.market import Float, Float32, Int, MarketTable

TD_KEPT = 4_096
"""TD errors of a call's last bars, from which quantiles are told."""

By = Literal["online", "target", "mean"]
"""Which weights: those that learn, the slow ones that teach, or their running mean, which is what should be used."""

_STATE: tuple[str, ...] = ("online", "target", "mean", "first", "second")


@dataclass(frozen=True, slots=True)
class Updates:
    """What a call did.

    Args:
        updates: Gradient steps.
        loss: Mean Huber loss (the learner's reward unit).
        grad_norm: Mean norm before clipping.
        grad_clipped: Share of steps whose gradient was clipped.
        td_S: Absolute TD errors of the call's last bars.
    """

    updates: int
    loss: float
    grad_norm: float
    grad_clipped: float
    td_S: Float32


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the doctor asks of the networks, on given rows.

    Args:
        q_abs_max: Largest absolute value of a target.
        target_gap: Root mean square of online minus target values.
        dead_units: Share of hidden units that are zero on every row.
    """

    q_abs_max: float
    target_gap: float
    dead_units: float


class CompiledMlp:
    """One member: an MLP over the market table and everything its training needs.

    Args:
        table: The market.
        rows: Rows that bars are drawn from: rows t with a step to t + 1 and a step from there on.
        hidden: Widths of the ReLU layers.
        shorts: Targets are (-1, 0, 1) instead of (0, 1).
        gamma: Discount of one bar.
        scale: Learner's reward per log equity.
        cost_PN: Mean log cost of each change of position, <= 0, by which values are compared.
        huber_delta: TD error (reward unit) from which on the loss is linear.
        tau: Share of the way that the target network moves in each update; 1 is a copy.
        weight_decay: Decoupled, per unit of learning rate.
        input_l1: Pull of the first layer's weights to zero, added to the clipped gradient.
        weight_average: Rate of the running mean of the weights (at first a plain mean); 0: the mean is the last ones.
        grad_clip: Largest norm of a gradient.
        batch_bars: Bars of one update.
        seed: Of weights and draws.
        mean_F: Means of the features over the training rows.
        deviation_F: Their standard deviations, > 0.
        gain_F: Factor of each normalised and clipped feature; None: one.
        input_clip: Normalised features are clipped to it.

    Raises:
        TrainingError: Arguments out of bounds, or rows that no bar can be drawn from.
    """

    def __init__(
        self,
        table: MarketTable,
        rows: Int,
        *,
        hidden: Sequence[int],
        shorts: bool,
        gamma: float,
        scale: float,
        cost_PN: Float,
        mean_F: NDArray[np.floating],
        deviation_F: NDArray[np.floating],
        gain_F: NDArray[np.floating] | None = None,
        huber_delta: float = 1.0,
        tau: float = 0.005,
        weight_decay: float = 0.0,
        input_l1: float = 0.0,
        weight_average: float = 0.0,
        grad_clip: float = 0.5,
        batch_bars: int = 64,
        seed: int = 0,
        input_clip: float = 5.0,
    ) -> None:
        self.targets = (-1, 0, 1) if shorts else (0, 1)
        self.hidden = tuple(int(width) for width in hidden)
        n, features = len(self.targets), table.n_features
        positive = {"scale": scale, "huber_delta": huber_delta, "grad_clip": grad_clip, "input_clip": input_clip}
        for name, value in positive.items():
            if not value > 0.0:
                raise TrainingError(f"{name} is {value}: give a positive number")
        below = {
            "gamma": (gamma, 1.0),
            "weight_decay": (weight_decay, math.inf),
            "input_l1": (input_l1, math.inf),
            "weight_average": (weight_average, 1.0),
        }
        for name, (value, high) in below.items():
            if not 0.0 <= value < high:
                raise TrainingError(f"{name} is {value}: give at least 0 and less than {high:g}")
        if not 0.0 < tau <= 1.0:
            raise TrainingError(f"tau is {tau}: give more than 0 (never moves) and at most 1 (a copy)")
        if batch_bars < 1 or not self.hidden or min(self.hidden) < 1:
            raise TrainingError(f"{batch_bars} bars for hidden layers {self.hidden}: give at least one of each")
        gain_F = np.ones(features) if gain_F is None else gain_F
        shaped = {
            "cost_PN": (cost_PN, (n, n)),
            "mean_F": (mean_F, (features,)),
            "deviation_F": (deviation_F, (features,)),
            "gain_F": (gain_F, (features,)),
        }
        for name, (array, shape) in shaped.items():
            if array.shape != shape or not np.isfinite(array).all():
                raise TrainingError(f"{name} is {array.shape} with numbers {array!r}: give finite ones, {shape}")
        if not (np.asarray(deviation_F) > 0.0).all():
            raise TrainingError("deviation_F holds a zero: divide what does not move by a small number instead")
        self.rows = _drawable(table, rows)
        self.gamma, self.scale = gamma, scale
        self._table = table
        self._features = features
        self._unit_3F = np.stack([mean_F, 1.0 / np.asarray(deviation_F, dtype=np.float64), gain_F]).astype(np.float32)
        self._number_K = np.array(
            [gamma, scale, huber_delta, tau, weight_decay, grad_clip, input_clip, input_l1, weight_average]
        )
        self._cost_NN = np.ascontiguousarray(cost_PN * scale, dtype=np.float32)
        self._layout_DK, size = _layout((features, *self.hidden, n), batch_bars)
        self._online_P, self._target_P, self._mean_P, self._first_P, self._second_P, self._gradient_P = np.zeros(
            (6, size), dtype=np.float32
        )
        self._step_1: Int = np.zeros(1, dtype=np.int64)
        self._generator_1 = generator("compiled_mlp", seed)
        self._make_workspace(batch_bars)
        self.load(_fresh_weights((features, *self.hidden, n), seed))

    @property
    def updates(self) -> int:
        """Return the updates taken so far."""
        return int(self._step_1[0])

    def run(self, updates: int, lr: float | Float) -> Updates:
        """Take updates; cut into calls in any way, they are the same updates.

        Args:
            updates: How many.
            lr: Learning rate, or one for each update.

        Raises:
            TrainingError: No updates, a learning rate out of bounds, or a gradient that is not a number.
        """
        rate_U = np.broadcast_to(np.asarray(lr, dtype=np.float64), (updates,)) if np.ndim(lr) == 0 else np.asarray(lr)
        rate_U = np.ascontiguousarray(rate_U, dtype=np.float64)
        if updates < 1 or rate_U.shape != (updates,) or not (np.isfinite(rate_U) & (rate_U >= 0.0)).all():
            raise TrainingError(
                f"{updates} updates with learning rates {lr!r}: give at least one update, and one finite rate >= 0 or "
                "as many as updates"
            )
        sum_K = np.zeros(3)
        kept_td_S = np.empty(TD_KEPT, dtype=np.float32)
        arguments = (
            self.rows, rate_U, self._generator_1, self._step_1, sum_K, kept_td_S, *self._batch_arguments,
            self._mean_P, self._first_P, self._second_P, *self._scratch, self._row_B, self._y_BN,
            self._td_BN, self._lane_L,
        )  # fmt: skip
        written = kernels.train(*arguments)
        if written == kernels.DIVERGED:
            raise TrainingError(
                f"the gradient of update {self.updates + 1} is not a number: lower the learning rate, or look for "
                "features or rewards that are not finite"
            )
        loss, norm, clipped = (sum_K / updates).tolist()
        return Updates(updates, loss, norm, clipped, kept_td_S[: min(written, TD_KEPT)].copy())

    def values(self, rows: Int, *, by: By = "mean") -> Float32:
        """Return G of rows in the learner's unit, (R, N)."""
        return self._evaluate(self._table.observations_TG, rows, by)[0]

    def values_of(self, observations_TG: Float32, rows: Int, *, by: By = "mean") -> Float32:
        """Return G of rows of another table's observations with the same columns, (R, N).

        Raises:
            TrainingError: Other columns, or rows that are not there.
        """
        return self._evaluate(observations_TG, rows, by)[0]

    def inspect(self, rows: Int) -> Inspection:
        """Return what the doctor asks of the networks, on rows."""
        target_RN, _ = self._evaluate(self._table.observations_TG, rows, "target")
        online_RN, active_H = self._evaluate(self._table.observations_TG, rows, "online")
        return Inspection(
            q_abs_max=float(np.abs(online_RN).max()),
            target_gap=float(np.sqrt(np.square(online_RN - target_RN, dtype=np.float64).mean())),
            dead_units=float(1.0 - active_H.mean()),
        )

    def gradient(self, row_B: Int) -> tuple[float, dict[str, Float32]]:
        """Return the mean loss on these bars, and its gradient by the names of `weights`, before clipping.

        Raises:
            TrainingError: Not `batch_bars` rows, or rows that no bar can be drawn from.
        """
        if row_B.shape != self._row_B.shape or not np.isin(row_B, self.rows).all():
            raise TrainingError(f"{row_B.shape} rows for a batch of {len(self._row_B)}: give as many of the drawable")
        arguments = (row_B, *self._batch_arguments, *self._scratch, self._y_BN, self._td_BN)
        loss = kernels.compute_gradient(*arguments)
        return float(loss), self._named(self._gradient_P)

    def weights(self, *, of: By = "mean") -> dict[str, Float32]:
        """Return the weights as `torch.nn.Sequential(Linear, ReLU, ..., Linear)` names and shapes them."""
        return self._named(self._flat(of))

    def load(self, weights: Mapping[str, NDArray[np.floating]]) -> None:
        """Start anew from these weights: both networks are set to them, the optimiser forgets.

        Raises:
            TrainingError: Other names or shapes.
        """
        self._unnamed(weights, self._online_P)
        self._target_P[:] = self._online_P
        self._mean_P[:] = self._online_P
        self._first_P[:] = 0.0
        self._second_P[:] = 0.0
        self._step_1[:] = 0

    def state(self) -> dict[str, Any]:
        """Return everything that later updates depend on, as arrays of its own: nothing of this processor's layout."""
        return {
            **{part: self._named(getattr(self, f"_{part}_P")) for part in _STATE},
            "step": self._step_1.copy(),
            "generator": self._generator_1.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, to the last bit.

        Raises:
            TrainingError: The state of another network.
        """
        for part in _STATE:
            self._unnamed(state[part], getattr(self, f"_{part}_P"))
        self._step_1[:] = state["step"]
        self._generator_1[:] = state["generator"]

    def _evaluate(self, observations_TG: Float32, rows: Int, by: By) -> tuple[Float32, NDArray[np.bool_]]:
        """Return (R, N) values of rows, and which hidden units are more than zero on any of them."""
        if observations_TG.dtype != np.float32 or observations_TG.shape[1:] != (self._features + 1,):
            raise TrainingError(
                f"observations are {observations_TG.dtype} {observations_TG.shape}: give float32 with "
                f"{self._features} features and a position"
            )
        if not len(rows) or rows.min() < 0 or rows.max() >= len(observations_TG):
            raise TrainingError(f"rows {rows!r} of {len(observations_TG)}: give at least one, and only those there are")
        value_RN = np.empty((len(rows), len(self.targets)), dtype=np.float32)
        active_H = np.zeros(sum(self.hidden), dtype=np.bool_)
        kernels.evaluate(
            np.ascontiguousarray(rows, dtype=np.int64), self._features, np.ascontiguousarray(observations_TG),
            self._unit_3F, self._number_K, self._layout_DK,
            self._flat(by), self._work, self._room, value_RN, active_H,
        )  # fmt: skip
        return value_RN, active_H

    @property
    def _batch_arguments(self) -> tuple[Any, ...]:
        return (
            self._features, self._table.observations_TG, self._table.reward_TPN, self._unit_3F, self._number_K,
            self._cost_NN, self._layout_DK, self._online_P, self._target_P,
        )  # fmt: skip

    @property
    def _scratch(self) -> tuple[Any, ...]:
        return self._work, self._target_work, self._delta, self._gradient_P, self._flipped, self._zero_Z

    def _make_workspace(self, batch_bars: int) -> None:
        """Allocate what one batch is computed in; nothing of it outlives an update."""
        rows, n = _whole(batch_bars, ROWS), len(self.targets)
        self._room = 2 * rows
        floats = int(self._layout_DK[-1, kernels.PLACE] + 2 * rows * self._layout_DK[-1, kernels.OUT])
        self._work, self._target_work, self._delta = np.zeros((3, floats), dtype=np.float32)
        self._zero_Z = np.zeros(int(self._layout_DK[:, [kernels.IN, kernels.OUT]].max()), dtype=np.float32)
        self._flipped = np.zeros(
            int((self._layout_DK[:, kernels.IN] * self._layout_DK[:, kernels.OUT_TERMS]).max()), dtype=np.float32
        )
        self._row_B: Int = np.zeros(batch_bars, dtype=np.int64)
        self._y_BN, self._td_BN = np.zeros((2, batch_bars, n), dtype=np.float32)
        self._lane_L = np.zeros(64, dtype=np.float32)

    def _flat(self, name: By) -> Float32:
        flat_P: Float32 = getattr(self, f"_{name}_P")
        return flat_P

    def _views(self, flat_P: Float32) -> dict[str, Float32]:
        """Return the parts of a flat vector that are no padding, as torch names and shapes them."""
        views: dict[str, Float32] = {}
        for layer, (terms, width, out_terms, out, w, b, _) in enumerate(self._layout_DK.tolist()):
            views[f"{2 * layer}.weight"] = flat_P[w : w + width * out].reshape(width, out)[:terms, :out_terms].T
            views[f"{2 * layer}.bias"] = flat_P[b : b + out_terms]
        return views

    def _named(self, flat_P: Float32) -> dict[str, Float32]:
        return {name: np.array(view, order="C") for name, view in self._views(flat_P).items()}

    def _unnamed(self, named: Mapping[str, NDArray[np.floating]], flat_P: Float32) -> None:
        views = self._views(flat_P)
        shapes = {name: tuple(view.shape) for name, view in views.items()}
        given = {name: tuple(array.shape) for name, array in named.items()}
        if given != shapes:
            raise TrainingError(f"weights are {given}, this network has {shapes}: give those of the same network")
        for name, view in views.items():
            view[...] = named[name]


def _whole(count: int, unit: int) -> int:
    """Return `count` rounded up to whole units."""
    return -(-count // unit) * unit


def _layout(widths: Sequence[int], batch_bars: int) -> tuple[Int, int]:
    """Return where each layer's weights and outputs lie, (D, 7), and how many weights there are with padding."""
    rows = 2 * _whole(batch_bars, ROWS)
    layout = np.zeros((len(widths) - 1, 7), dtype=np.int64)
    width, weight, place = _whole(widths[0], ROWS), 0, 0
    for layer, (terms, out_terms) in enumerate(pairwise(widths)):
        out = _whole(out_terms, NARROW)
        place += rows * width
        layout[layer] = terms, width, out_terms, out, weight, weight + width * out, place
        weight += (width + 1) * out
        width = out
    return layout, weight


def _fresh_weights(widths: Sequence[int], seed: int) -> dict[str, Float32]:
    """Return weights evenly within +-1 / sqrt(inputs), as torch's linear layers begin."""
    rng = np.random.default_rng([seed, 0xC0])
    weights: dict[str, Float32] = {}
    for layer, (terms, out) in enumerate(pairwise(widths)):
        bound = 1.0 / math.sqrt(terms)
        weights[f"{2 * layer}.weight"] = rng.uniform(-bound, bound, (out, terms)).astype(np.float32)
        weights[f"{2 * layer}.bias"] = rng.uniform(-bound, bound, out).astype(np.float32)
    return weights


def _drawable(table: MarketTable, rows: Int) -> Int:
    """Return the rows as the kernels read them; refuse those whose target cannot be computed."""
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    if rows.ndim != 1 or not 1 <= len(rows) < 2**31:
        raise TrainingError(f"rows are {rows.shape}: give at least one row that bars are drawn from")
    if rows.min() < 0 or rows.max() + 1 >= len(table):
        raise TrainingError(f"rows reach from {rows.min()} to {rows.max()} in a table of {len(table)}")
    starts_T = np.arange(len(table)) < table.run_end_T
    lacking = np.flatnonzero(~(starts_T[rows] & starts_T[rows + 1]))
    if len(lacking):
        raise TrainingError(
            f"row {rows[lacking[0]]} and {len(lacking) - 1} others have no step, or none after it: draw from "
            "table.start_rows whose next row is one too"
        )
    return rows


def drawable_rows(table: MarketTable) -> Int:
    """Return the rows of steps that are followed by a step: each gives targets for every position."""
    starts = table.start_rows
    return starts[:-1][np.diff(starts) == 1] if len(starts) else starts
