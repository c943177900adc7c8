"""The Q-networks of an ensemble, stacked: one tensor per weight with the members along its first axis.

A forward pass of all members is a handful of batched matrix products, on the CPU and on a GPU alike. Inputs are
normalised features; the position is no input: a value belongs to a target (post-decision) or to a pair of position
and target (free heads), and all of them come out at once.

Attention: every feature group becomes one token (a linear embedding of its own features), tokens look at one another
(Vaswani et al. 2017, pre-normalised, one block), and hidden layers read all tokens.

Axes: E members, B rows, F features, G groups, D numbers of a token, O values (targets, or positions * targets),
K atoms of each value (one for a mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.dqn.settings import DqnSettings

Weights = Mapping[str, Tensor]

NORM_EPSILON = 1e-5
BATCH_NORM_RATE = 0.05
"""Share of each batch in the running statistics of batch normalisation."""
OUTPUT_GAIN = 0.1
"""Initial weights of the last layer, against those of the others: values begin near zero."""


@dataclass(slots=True)
class Answer:
    """What a forward pass gives.

    Args:
        value_EBOK: Atoms of every value.
        attention_EBG: Mean attention that each group receives, over queries and heads; None without attention.
        active: Per hidden layer, (E, width): whether a unit fired on any row; only where asked for.
    """

    value_EBOK: Tensor
    attention_EBG: Tensor | None = None
    active: list[Tensor] = field(default_factory=list)


class Network:
    """Shapes, initial weights and the forward pass; the weights themselves are the caller's.

    Args:
        settings: Kind, widths, norm, heads.
        groups: Columns of each feature group, in order, together all of them.
        n_targets: Positions that may be held, N.
    """

    def __init__(self, settings: DqnSettings, groups: Sequence[slice], n_targets: int) -> None:
        self.settings = settings
        self.groups = tuple(groups)
        self.n_features = self.groups[-1].stop
        self.n_targets = n_targets
        self.n_values = n_targets if settings.value_heads == "post_decision" else n_targets**2
        self.n_atoms = settings.atoms if settings.value_loss in {"quantile", "categorical"} else 1
        membership_FG = torch.zeros(self.n_features, len(self.groups))
        for place, columns in enumerate(self.groups):
            membership_FG[columns, place] = 1.0
        self.membership_FG = membership_FG

    @property
    def attends(self) -> bool:
        """Whether groups are tokens."""
        return self.settings.network == "attention"

    @property
    def first(self) -> str:
        """Name of the weight that reads the features."""
        return "embed.weight" if self.attends else "hidden.0.weight"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one member's every weight, in their order."""
        width, groups = self.settings.group_width, len(self.groups)
        shapes: dict[str, tuple[int, ...]] = {}
        reads = self.n_features
        if self.attends:
            shapes["embed.weight"] = (self.n_features, width)
            shapes["embed.bias"] = (groups, width)
            shapes["attend.weight"] = (width, 3 * width)
            shapes["attend.bias"] = (1, 3 * width)
            shapes["mix.weight"] = (width, width)
            shapes["mix.bias"] = (1, width)
            reads = groups * width
        for layer, hidden in enumerate(self.settings.hidden):
            shapes[f"hidden.{layer}.weight"] = (reads, hidden)
            shapes[f"hidden.{layer}.bias"] = (1, hidden)
            if self.settings.norm != "none":
                shapes[f"norm.{layer}.scale"] = (1, hidden)
                shapes[f"norm.{layer}.shift"] = (1, hidden)
            reads = hidden
        outputs = self.n_values + (self._common_values if self.settings.dueling else 0)
        shapes["values.weight"] = (reads, outputs * self.n_atoms)
        shapes["values.bias"] = (1, outputs * self.n_atoms)
        return shapes

    @property
    def _common_values(self) -> int:
        """Values that dueling adds: one for all targets, of each position where values belong to positions."""
        return 1 if self.settings.value_heads == "post_decision" else self.n_targets

    def initial(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw the weights of one member from each generator: uniform, of variance 1 / inputs; biases zero."""
        return {
            name: torch.stack([self._drawn(name, shape, generator) for generator in generators])
            for name, shape in self.shapes().items()
        }

    def _drawn(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith(".scale"):
            return torch.ones(shape)
        if not name.endswith(".weight"):
            return torch.zeros(shape)
        fan_in = torch.full((1, 1), float(shape[0]))
        if name == "embed.weight":  # a token reads its own group's features only
            fan_in = (self.membership_FG @ self.membership_FG.sum(dim=0)).unsqueeze(1)
        gain = OUTPUT_GAIN if name == "values.weight" else math.sqrt(3.0)
        return (torch.rand(shape, generator=generator) * 2.0 - 1.0) * gain / fan_in.sqrt()

    def initial_buffers(self, members: int) -> dict[str, Tensor]:
        """Return running means and variances of batch normalisation; nothing without it."""
        if self.settings.norm != "batch":
            return {}
        buffers = {}
        for layer, width in enumerate(self.settings.hidden):
            buffers[f"norm.{layer}.mean"] = torch.zeros(members, 1, width)
            buffers[f"norm.{layer}.variance"] = torch.ones(members, 1, width)
        return buffers

    def forward(
        self,
        weights: Weights,
        buffers: Mapping[str, Tensor],
        x_EBF: Tensor,
        *,
        learning: bool = False,
        watch: bool = False,
    ) -> Answer:
        """Return every value of every row.

        Args:
            weights: Stacked, as `initial` gives them.
            buffers: Of batch normalisation; moved in place where `learning`.
            x_EBF: Normalised features.
            learning: Normalise by the batch instead of by the running statistics.
            watch: Tell which hidden units fired.
        """
        attention_EBG = None
        hidden_EBH = x_EBF
        if self.attends:
            hidden_EBH, attention_EBG = self._attend(weights, x_EBF)
        active = []
        for layer in range(len(self.settings.hidden)):
            hidden_EBH = torch.baddbmm(weights[f"hidden.{layer}.bias"], hidden_EBH, weights[f"hidden.{layer}.weight"])
            hidden_EBH = torch.relu(self._normalised(weights, buffers, hidden_EBH, layer, learning=learning))
            if watch:
                active.append((hidden_EBH > 0.0).any(dim=1))
        out_EBV = torch.baddbmm(weights["values.bias"], hidden_EBH, weights["values.weight"])
        members, rows, _ = out_EBV.shape
        value_EBOK = out_EBV.reshape(members, rows, -1, self.n_atoms)
        return Answer(self._duelled(value_EBOK) if self.settings.dueling else value_EBOK, attention_EBG, active)

    def _attend(self, weights: Weights, x_EBF: Tensor) -> tuple[Tensor, Tensor]:
        """Return (E, B, G * D) tokens after one block of self-attention, and the attention each group receives."""
        members, rows, _ = x_EBF.shape
        groups, width, heads = len(self.groups), self.settings.group_width, self.settings.heads
        each = width // heads
        embed_EFV = (weights["embed.weight"].unsqueeze(2) * self.membership_FG.unsqueeze(-1)).flatten(2)
        token_EBV = torch.relu(torch.baddbmm(weights["embed.bias"].flatten(1).unsqueeze(1), x_EBF, embed_EFV))
        token_ERD = token_EBV.reshape(members, rows * groups, width)
        seen_ERD = nn.functional.layer_norm(token_ERD, (width,), eps=NORM_EPSILON)
        projected = torch.baddbmm(weights["attend.bias"], seen_ERD, weights["attend.weight"])
        query, key, value = projected.reshape(members * rows, groups, 3, heads, each).permute(2, 0, 3, 1, 4)
        share = _softmax(query @ key.transpose(-1, -2) / math.sqrt(each))
        mixed_ERD = (share @ value).transpose(1, 2).reshape(members, rows * groups, width)
        token_ERD = token_ERD + torch.baddbmm(weights["mix.bias"], mixed_ERD, weights["mix.weight"])
        attention_EBG = share.detach().mean(dim=(1, 2)).reshape(members, rows, groups)
        return token_ERD.reshape(members, rows, groups * width), attention_EBG

    def _normalised(
        self, weights: Weights, buffers: Mapping[str, Tensor], x_EBH: Tensor, layer: int, *, learning: bool
    ) -> Tensor:
        norm = self.settings.norm
        if norm == "none":
            return x_EBH
        if norm == "layer":
            x_EBH = nn.functional.layer_norm(x_EBH, x_EBH.shape[-1:], eps=NORM_EPSILON)
        else:
            mean, variance = buffers[f"norm.{layer}.mean"], buffers[f"norm.{layer}.variance"]
            if learning:
                batch_variance, batch_mean = torch.var_mean(x_EBH, dim=1, keepdim=True, correction=0)
                mean.lerp_(batch_mean.detach(), BATCH_NORM_RATE)
                variance.lerp_(batch_variance.detach(), BATCH_NORM_RATE)
                mean, variance = batch_mean, batch_variance
            x_EBH = (x_EBH - mean) * torch.rsqrt(variance + NORM_EPSILON)
        return x_EBH * weights[f"norm.{layer}.scale"] + weights[f"norm.{layer}.shift"]

    def _duelled(self, raw_EBOK: Tensor) -> Tensor:
        """Return common value plus advantage, whose mean over targets is zero (Wang et al. 2016, equation 9)."""
        advantage, common = torch.split(raw_EBOK, [self.n_values, self._common_values], dim=2)
        pairs = shaped(advantage, 2, (self._common_values, self.n_targets))
        value_EBOK: Tensor = (pairs - pairs.mean(dim=3, keepdim=True) + common.unsqueeze(3)).flatten(2, 3)
        return value_EBOK


class Flat:
    """All weights of a network as one (E, W) tensor, and views of it by name: optimisers act on the one.

    Args:
        network: Whose weights.
        weights: Initial ones.
        device: Where they live.
    """

    def __init__(self, network: Network, weights: Weights, device: str) -> None:
        self._shapes = network.shapes()
        members = next(iter(weights.values())).shape[0]
        self.values_EW = torch.cat([weights[name].reshape(members, -1) for name in self._shapes], dim=1).to(device)
        self.views = self._views(self.values_EW)

    def _views(self, values_EW: Tensor) -> dict[str, Tensor]:
        views, begin = {}, 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            views[name] = shaped(values_EW[:, begin : begin + size], 1, shape)
            begin += size
        return views

    def place(self, name: str) -> slice:
        """Return where one weight stands along W."""
        begin = 0
        for other, shape in self._shapes.items():
            if other == name:
                return slice(begin, begin + math.prod(shape))
            begin += math.prod(shape)
        raise KeyError(name)

    def learnable(self) -> dict[str, Tensor]:
        """Return the views as leaves of a graph, sharing their memory."""
        return {name: view.detach().requires_grad_() for name, view in self.views.items()}


def _softmax(score: Tensor) -> Tensor:
    """Return the softmax over the last axis: over a handful of tokens the library's own takes three times as long."""
    weight = torch.exp(score - score.detach().amax(dim=-1, keepdim=True))
    return weight / weight.sum(dim=-1, keepdim=True)


def shaped(value: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return one axis as several."""
    after = value.shape[dim + 1 :] if dim >= 0 else ()
    before = value.shape[: dim if dim >= 0 else -1]
    return value.reshape(*before, *sizes, *after)


def batch_values(network: Network, answer: Answer, support_K: Tensor | None) -> Tensor:
    """Return (E, B, O) means of the values: of quantiles their mean, of a histogram its expectation."""
    if network.n_atoms == 1:
        return answer.value_EBOK[..., 0]
    if support_K is None:
        return answer.value_EBOK.mean(dim=-1)
    probability = torch.softmax(answer.value_EBOK, dim=-1)
    return (probability * support_K).sum(dim=-1)


def described(network: Network) -> dict[str, Any]:
    """Return what a manifest says of the network."""
    weights = sum(math.prod(shape) for shape in network.shapes().values())
    return {"kind": network.settings.network, "weights": weights, "groups": len(network.groups)}
