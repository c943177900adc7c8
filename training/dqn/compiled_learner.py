"""The learner of an MLP in machine code: stands where `training.dqn.learner.Learner` stands, twenty times as fast.

It learns what `Learner` learns from bars drawn evenly, by the same mathematics (`training.dqn.compiled_mlp`), with
weights of the same names and shapes and the same beginning; its draws are its own, so that the same seed gives other
weights than with torch.

Axes: E members, R rows, O values, U updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.dqn.bars import Bars
from training.dqn.compiled_mlp import TD_KEPT, CompiledMlp, Updates
from training.dqn.learner import WATCHED_ROWS
from training.dqn.network import Network
from training.dqn.settings import DqnSettings
from training.errors import TrainingError
from training.market import Float32, Int


def why_not_compiled(settings: DqnSettings) -> str | None:
    """Return the first setting that only torch knows; None where the compiled learner serves."""
    wanted: Mapping[str, tuple[object, ...]] = {
        "network": ("mlp",),
        "norm": ("none",),
        "value_heads": ("post_decision",),
        "dueling": (False,),
        "value_loss": ("huber", "mse"),
        "double": (True,),
        "n_step": (1,),
        "munchausen": (0.0,),
        "target_update_interval": (1,),
        "replay": ("market",),
        "prioritised": (False,),
        "reward": ("log_equity",),
        "device": ("cpu",),
    }
    for name, served in wanted.items():
        value = getattr(settings, name)
        if value not in served:
            return f"{name}: {value}"
    return None


@dataclass(frozen=True, slots=True)
class EvenDraws:
    """What the learner draws from: the table, nobody acts."""

    epsilon: float | None = None


class CompiledLearner:
    """Some members of an ensemble; arguments and face are those of `Learner`.

    Args:
        settings: Every switch.
        bars: The market.
        groups: Columns of each feature group.
        rows: Rows each member learns from.
        seeds: Of each member.
        gain_EF: Factor of every normalised column, by member; None: 1.

    Raises:
        TrainingError: A setting that only torch knows.
    """

    def __init__(
        self,
        settings: DqnSettings,
        bars: Bars,
        groups: Sequence[slice],
        rows: Sequence[Int],
        seeds: Sequence[int],
        gain_EF: Tensor | None = None,
    ) -> None:
        reason = why_not_compiled(settings)
        if reason is not None:
            raise TrainingError(f"the compiled learner does not know training.dqn.{reason}: torch's learner does")
        self.settings = settings
        self.bars = bars
        self.network = Network(settings, groups, len(bars.positions))
        self.experience = EvenDraws()
        gain_EF = torch.ones(len(seeds), bars.table.n_features) if gain_EF is None else gain_EF
        self.members = [
            CompiledMlp(
                bars.table,
                one,
                hidden=settings.hidden,
                shorts=len(bars.positions) == 3,
                gamma=settings.gamma,
                scale=bars.reward_scale,
                cost_PN=bars.expected_cost_NN.double().numpy() / bars.reward_scale,
                mean_F=bars.mean_F.numpy(),
                deviation_F=bars.deviation_F.numpy(),
                gain_F=gain_F.numpy(),
                huber_delta=math.inf if settings.value_loss == "mse" else settings.huber_delta,
                tau=settings.tau,
                weight_decay=settings.weight_decay,
                input_l1=settings.input_l1,
                weight_average=settings.weight_average,
                grad_clip=settings.max_grad_norm,
                batch_bars=settings.batch_bars,
                seed=seed,
                input_clip=bars.input_clip,
            )
            for one, seed, gain_F in zip(rows, seeds, gain_EF, strict=True)
        ]
        for mlp, seed in zip(self.members, seeds, strict=True):
            mlp.load(self._plain(self.network.initial([torch.Generator().manual_seed(seed)])))
        self._since_look: list[list[Updates]] = [[] for _ in self.members]

    @property
    def updates(self) -> int:
        """Return the updates of each member."""
        return self.members[0].updates

    def update(self, lr_E: Tensor) -> None:
        """Learn from one batch, each member at its own rate."""
        self.learn([lr_E.tolist()])

    def learn(self, rate_UE: Sequence[Sequence[float]]) -> None:
        """Take updates without coming back in between, each at its members' rates."""
        rates = np.asarray(rate_UE, dtype=np.float64)
        for mlp, done, rate_U in zip(self.members, self._since_look, rates.T, strict=True):
            done.append(mlp.run(len(rate_U), rate_U))
            _shorten(done)

    def values(self, rows: Int) -> Tensor:
        """Return (E, R, O) values of the running mean of the weights at rows of the table."""
        return torch.from_numpy(np.stack([mlp.values(rows) for mlp in self.members]))

    def look(self, rows: Int) -> dict[str, list[float] | None]:
        """Return what the doctor asks about each member since the last look; `rows` are some rows it learns from."""
        since = [_joined(done) for done in self._since_look]
        self._since_look = [[] for _ in self.members]
        td_E = [np.quantile(one.td_S, (0.5, 0.9, 0.99)).tolist() if len(one.td_S) else [0.0] * 3 for one in since]
        seen = [mlp.inspect(rows[:WATCHED_ROWS]) for mlp in self.members]
        return {
            "loss": [one.loss for one in since],
            "grad_norm": [one.grad_norm for one in since],
            "grad_clipped": [one.grad_clipped for one in since],
            "td_p50": [one[0] for one in td_E],
            "td_p90": [one[1] for one in td_E],
            "td_p99": [one[2] for one in td_E],
            "q_abs_max": [one.q_abs_max for one in seen],
            "target_gap": [one.target_gap for one in seen],
            "dead_units": [one.dead_units for one in seen],
            "attention_entropy": None,
        }

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the exported weights by name, (E, ...), and the buffers, of which there are none."""
        named = [mlp.weights() for mlp in self.members]
        stacked = {}
        for name, theirs in self._names().items():
            parts = [one[theirs] for one in named]
            stacked[name] = torch.from_numpy(np.stack([one.T if one.ndim == 2 else one[None] for one in parts]))
        return stacked, {}

    def _names(self) -> dict[str, str]:
        """Return the compiled name of each weight of the network."""
        layers = [*(f"hidden.{layer}" for layer in range(len(self.settings.hidden))), "values"]
        return {f"{ours}.{part}": f"{2 * k}.{part}" for k, ours in enumerate(layers) for part in ("weight", "bias")}

    def _plain(self, weights: Mapping[str, Tensor]) -> dict[str, Float32]:
        """Return the only member's weights as the compiled network names and shapes them."""
        return {
            theirs: weights[ours][0].numpy().T if ours.endswith("weight") else weights[ours][0, 0].numpy()
            for ours, theirs in self._names().items()
        }

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        return {
            "members": [mlp.state() for mlp in self.members],
            "since_look": [
                {
                    "updates": one.updates,
                    "loss": one.loss,
                    "grad_norm": one.grad_norm,
                    "grad_clipped": one.grad_clipped,
                    "td": one.td_S,
                }
                for one in map(_joined, self._since_look)
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for mlp, kept in zip(self.members, state["members"], strict=True):
            mlp.restore(kept)
        self._since_look = [
            [Updates(one["updates"], one["loss"], one["grad_norm"], one["grad_clipped"], np.asarray(one["td"]))]
            if one["updates"]
            else []
            for one in state["since_look"]
        ]


def _joined(done: Sequence[Updates]) -> Updates:
    """Return calls as one: means over their updates, the last TD errors."""
    count = sum(one.updates for one in done)
    if not count:
        return Updates(0, 0.0, 0.0, 0.0, np.zeros(0, dtype=np.float32))
    loss, norm, clipped = (
        sum(getattr(one, name) * one.updates for one in done) / count for name in ("loss", "grad_norm", "grad_clipped")
    )
    td_S = np.concatenate([one.td_S for one in done])[-TD_KEPT:]
    return Updates(count, loss, norm, clipped, td_S)


def _shorten(done: list[Updates]) -> None:
    """Keep no more calls than are needed."""
    if len(done) > 1:
        done[:] = [_joined(done)]
