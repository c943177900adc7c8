"""The learner: what one update does to the networks of an ensemble, from the draw to the moved target network.

    draw bars → ask the online and the target network about the bars behind them → targets of every position and
    target → loss → gradient, clipped for each member → AdamW → target network and running mean of the weights move

Mnih et al. 2015 with the changes that `DqnSettings` names. Members share nothing but the market; they are stacked only
to be computed together. The same table, rows, settings and seeds give the same weights, in one go or in pieces.

Axes: E members, B bars, N positions that may be held, O values, W weights of a member, R rows that are asked about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.dqn.bars import Bars
from training.dqn.experience import Draw, make_experience
from training.dqn.losses import support, value_losses
from training.dqn.network import Answer, Flat, Network, batch_values, shaped
from training.dqn.settings import DqnSettings
from training.dqn.targets import Teacher
from training.market import Int

BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
ROWS_AT_ONCE = 8_192
"""Rows of one forward pass when values are asked for."""
WATCHED_ROWS = 2_048
"""Rows on which units, attention and target gap are looked at."""
TD_KEPT = 4_096
"""Last TD errors of each member that quantiles are told from."""


@dataclass(slots=True)
class Course:
    """What happened since the last look, (E,) each.

    Args:
        updates: Gradient updates.
        loss: Sum of the mean losses.
        norm: Sum of the gradients' norms before clipping.
        clipped: Updates whose gradient was clipped.
        td: Absolute TD errors of the last batches, (E, B) each.
    """

    updates: int
    loss: Tensor
    norm: Tensor
    clipped: Tensor
    td: list[Tensor] = field(default_factory=list)


class Learner:
    """Some members of an ensemble, on one device.

    Args:
        settings: Every switch.
        bars: The market.
        groups: Columns of each feature group.
        rows: Rows each member learns from.
        seeds: Of each member.
        gain_EF: Factor of every normalised column, by member; None: 1.
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
        self.settings = settings
        self.bars = bars
        gain_EF = torch.ones(len(seeds), bars.table.n_features) if gain_EF is None else gain_EF
        self.gain_E1F = gain_EF.to(bars.device).unsqueeze(1)
        self.network = Network(settings, groups, len(bars.positions))
        drawn = self.network.initial([torch.Generator().manual_seed(seed) for seed in seeds])
        self.network.membership_FG = self.network.membership_FG.to(bars.device)
        self.online = Flat(self.network, drawn, bars.device)
        self.target = Flat(self.network, drawn, bars.device)
        self.mean = Flat(self.network, drawn, bars.device)
        self._buffers = self._stacked_buffers(len(seeds))
        self._target_buffers = self._stacked_buffers(len(seeds))
        self._mean_buffers = self._stacked_buffers(len(seeds))
        self._moment_EW = torch.zeros_like(self.online.values_EW)
        self._square_EW = torch.zeros_like(self.online.values_EW)
        self._first = self.online.place(self.network.first)
        self._support_K = support(settings, bars.device)
        self._teacher = Teacher(self.network, bars, self._support_K)
        self.experience = make_experience(settings, bars.table, rows, seeds, n_targets=len(bars.positions))
        self.updates = 0
        self._course = self._fresh_course()

    def _stacked_buffers(self, members: int) -> dict[str, Tensor]:
        return {name: one.to(self.bars.device) for name, one in self.network.initial_buffers(members).items()}

    def _fresh_course(self) -> Course:
        zero = torch.zeros(len(self.online.values_EW), device=self.bars.device)
        return Course(0, zero, zero.clone(), zero.clone())

    def update(self, lr_E: Tensor) -> None:
        """Learn from one batch, each member at its own rate."""
        settings = self.settings
        progress = self.updates / settings.updates
        self.experience.advance(self._greedy, progress)
        draw = self.experience.draw(progress)
        row_EB = draw.row_EB.to(self.bars.device)
        with torch.no_grad():
            taught = self._teacher.teach(row_EB, self._ask_online, self._ask_target).value_EBOK
        leaves = self.online.learnable()
        answer = self.network.forward(leaves, self._buffers, self._observe(row_EB), learning=True)
        loss_EB, td_EB = self._compared(draw, answer, taught)
        loss_E = loss_EB.mean(dim=1)
        gradients = torch.autograd.grad(loss_E.sum(), list(leaves.values()))
        gradient_EW = torch.cat([one.flatten(1) for one in gradients], dim=1)
        with torch.no_grad():
            self._step(gradient_EW, lr_E)
            self._move()
        self._note(loss_E, td_EB)
        if draw.slots:
            self.experience.update(draw, td_EB.cpu().numpy())
        self.updates += 1

    def learn(self, rate_UE: Sequence[Sequence[float]]) -> None:
        """Take updates, each at its members' rates."""
        for rate_E in rate_UE:
            self.update(torch.tensor(rate_E, device=self.bars.device))

    def _observe(self, row_EB: Tensor) -> Tensor:
        """Return (E, B, F) columns as each member sees them."""
        return self.bars.observe(row_EB) * self.gain_E1F

    def _ask_online(self, row_EB: Tensor) -> Answer:
        return self.network.forward(self.online.views, self._buffers, self._observe(row_EB))

    def _ask_target(self, row_EB: Tensor) -> Answer:
        return self.network.forward(self.target.views, self._target_buffers, self._observe(row_EB))

    def _compared(self, draw: Draw, answer: Answer, taught_EBOK: Tensor) -> tuple[Tensor, Tensor]:
        """Return (E, B) losses and absolute TD errors: means over all values, or of the one that was acted out."""
        value_EBOK = answer.value_EBOK
        if draw.pair_EB is not None:
            pair_EB = draw.pair_EB.to(value_EBOK.device)
            if self.settings.value_heads == "post_decision":
                pair_EB = pair_EB % len(self.bars.positions)
            place = pair_EB[..., None, None]
            value_EBOK = value_EBOK.gather(2, place.expand(*pair_EB.shape, 1, value_EBOK.shape[-1]))
            taught_EBOK = taught_EBOK.gather(2, place.expand(*pair_EB.shape, 1, taught_EBOK.shape[-1]))
        loss_EB = value_losses(self.settings, value_EBOK, taught_EBOK).mean(dim=2)
        if draw.weight_EB is not None:
            loss_EB = loss_EB * draw.weight_EB.to(loss_EB.device)
        with torch.no_grad():
            mean_EBO = batch_values(self.network, Answer(value_EBOK), self._support_K)
            td_EB = (mean_EBO - taught_EBOK.mean(dim=-1)).abs().mean(dim=-1)
        return loss_EB, td_EB

    def _step(self, gradient_EW: Tensor, lr_E: Tensor) -> None:
        """AdamW (Loshchilov & Hutter 2019) on clipped gradients, with a pull of the first layer to zero."""
        settings = self.settings
        norm_E = gradient_EW.norm(dim=1)
        shrink_E = (settings.max_grad_norm / (norm_E + 1e-6)).clamp(max=1.0)
        self._course.norm += norm_E
        self._course.clipped += shrink_E < 1.0
        gradient_EW.mul_(shrink_E.unsqueeze(1))
        weights_EW = self.online.values_EW
        if settings.input_l1 > 0.0:
            gradient_EW[:, self._first] += settings.input_l1 * weights_EW[:, self._first].sign()
        step = self.updates + 1
        self._moment_EW.lerp_(gradient_EW, 1.0 - BETAS[0])
        self._square_EW.mul_(BETAS[1]).addcmul_(gradient_EW, gradient_EW, value=1.0 - BETAS[1])
        size_EW = self._square_EW.sqrt().mul_(1.0 / math.sqrt(1.0 - BETAS[1] ** step)).add_(ADAM_EPSILON)
        rate_E1 = lr_E.unsqueeze(1)
        weights_EW.mul_(1.0 - rate_E1 * settings.weight_decay)
        weights_EW.sub_(self._moment_EW / size_EW * (rate_E1 / (1.0 - BETAS[0] ** step)))

    def _move(self) -> None:
        """Move the target network and the running mean of the weights, buffers included."""
        settings = self.settings
        if (self.updates + 1) % settings.target_update_interval == 0:
            self.target.values_EW.lerp_(self.online.values_EW, settings.tau)
            for name, one in self._target_buffers.items():
                one.lerp_(self._buffers[name], settings.tau)
        rate = settings.weight_average
        # the first updates are a plain mean, so that the start is soon forgotten
        share = max(rate, 1.0 / (self.updates + 1)) if rate > 0.0 else 1.0
        self.mean.values_EW.lerp_(self.online.values_EW, share)
        for name, one in self._mean_buffers.items():
            one.lerp_(self._buffers[name], share)

    def _note(self, loss_E: Tensor, td_EB: Tensor) -> None:
        course = self._course
        course.updates += 1
        course.loss += loss_E.detach()
        course.td.append(td_EB)
        if len(course.td) * td_EB.shape[1] > TD_KEPT + td_EB.shape[1]:
            course.td.pop(0)

    def _greedy(self, row_EK: Tensor, held_EK: Tensor) -> Tensor:
        """Return places of the best targets of the online network, given places of the positions held."""
        with torch.no_grad():
            value_EKO = batch_values(self.network, self._ask_online(row_EK.to(self.bars.device)), self._support_K)
            q_EKNN = self.by_position(value_EKO)
            held = held_EK.to(q_EKNN.device)[..., None, None].expand(*held_EK.shape, 1, q_EKNN.shape[-1])
            return q_EKNN.gather(2, held).squeeze(2).argmax(dim=-1)

    def by_position(self, value_EBO: Tensor) -> Tensor:
        """Return (E, B, N, N) values of every position held and target, costs included, in the learner's unit."""
        count = len(self.bars.positions)
        if self.settings.value_heads == "free":
            return shaped(value_EBO, -1, (count, count))
        return value_EBO.unsqueeze(-2) + self.bars.expected_cost_NN

    def values(self, rows: Int, *, weights: Flat | None = None) -> Tensor:
        """Return (E, R, O) mean values of the running mean of the weights (or of others) at rows of the table."""
        weights = weights if weights is not None else self.mean
        buffers = self._buffers_of(weights)
        members = len(self.online.values_EW)
        found = []
        with torch.no_grad():
            for begin in range(0, len(rows), ROWS_AT_ONCE):
                row_R = torch.from_numpy(rows[begin : begin + ROWS_AT_ONCE])
                x_EBF = self._observe(row_R.to(self.bars.device).expand(members, -1))
                answer = self.network.forward(weights.views, buffers, x_EBF)
                found.append(batch_values(self.network, answer, self._support_K))
        return torch.cat(found, dim=1)

    def _buffers_of(self, weights: Flat) -> dict[str, Tensor]:
        if weights is self.target:
            return self._target_buffers
        return self._mean_buffers if weights is self.mean else self._buffers

    def look(self, rows: Int) -> dict[str, list[float] | None]:
        """Return what the doctor asks about each member since the last look; `rows` are some rows it learns from."""
        course = self._course
        self._course = self._fresh_course()
        count = max(1, course.updates)
        members = len(self.online.values_EW)
        td_EB = torch.cat(course.td, dim=1) if course.td else torch.zeros(members, 1)
        quantiles = torch.quantile(td_EB, torch.tensor([0.5, 0.9, 0.99], device=td_EB.device), dim=1)
        watched = rows[:WATCHED_ROWS]
        with torch.no_grad():
            x_EBF = self._observe(torch.from_numpy(watched).to(self.bars.device).expand(members, -1))
            answer = self.network.forward(self.online.views, self._buffers, x_EBF, watch=True)
        value_EBO = batch_values(self.network, answer, self._support_K)
        gap_E = (value_EBO - self.values(watched, weights=self.target)).square().mean(dim=(1, 2)).sqrt()
        fired_E = torch.cat([one.float() for one in answer.active], dim=1).mean(dim=1)
        entropy = None
        if answer.attention_EBG is not None:
            share = answer.attention_EBG.clamp(min=1e-12)
            entropy = (-(share * share.log()).sum(dim=-1)).mean(dim=1).tolist()
        return {
            "loss": (course.loss / count).tolist(),
            "grad_norm": (course.norm / count).tolist(),
            "grad_clipped": (course.clipped / count).tolist(),
            "td_p50": quantiles[0].tolist(),
            "td_p90": quantiles[1].tolist(),
            "td_p99": quantiles[2].tolist(),
            "q_abs_max": value_EBO.abs().amax(dim=(1, 2)).tolist(),
            "target_gap": gap_E.tolist(),
            "dead_units": (1.0 - fired_E).tolist(),
            "attention_entropy": entropy,
        }

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the exported weights by name, (E, ...), and the buffers."""
        named = {name: view.detach().cpu().clone() for name, view in self.mean.views.items()}
        return named, {name: one.cpu().clone() for name, one in self._mean_buffers.items()}

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        course = self._course
        return {
            "updates": self.updates,
            "online": self.online.values_EW,
            "target": self.target.values_EW,
            "mean": self.mean.values_EW,
            "moment": self._moment_EW,
            "square": self._square_EW,
            "buffers": dict(self._buffers),
            "target_buffers": dict(self._target_buffers),
            "mean_buffers": dict(self._mean_buffers),
            "experience": self.experience.state(),
            "course": {
                "updates": course.updates,
                "loss": course.loss,
                "norm": course.norm,
                "clipped": course.clipped,
                "td": list(course.td),
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for mine, kept in (
            (self.online.values_EW, "online"), (self.target.values_EW, "target"), (self.mean.values_EW, "mean"),
            (self._moment_EW, "moment"), (self._square_EW, "square"),
        ):  # fmt: skip
            mine.copy_(torch.as_tensor(state[kept]))
        for own, name in (
            (self._buffers, "buffers"), (self._target_buffers, "target_buffers"), (self._mean_buffers, "mean_buffers"),
        ):  # fmt: skip
            for key, one in own.items():
                one.copy_(torch.as_tensor(state[name][key]))
        self.experience.restore(state["experience"])
        self.updates = int(state["updates"])
        kept, device = state["course"], self.bars.device
        sums = {name: torch.as_tensor(kept[name]).to(device).clone() for name in ("loss", "norm", "clipped")}
        td = [torch.as_tensor(one).to(device).clone() for one in kept["td"]]
        self._course = Course(int(kept["updates"]), sums["loss"], sums["norm"], sums["clipped"], td)
