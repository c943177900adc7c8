"""The exit heads that are exported. Each has its own trunk: no other loss moves its features.

`QuantileExits` values every bracket by the state and takes the one that is worth most beyond its own error; it tells
quantiles of the excursions beside it. `SigmoidExits` is the head of the tutorials.

Axes: B rows, F features, D features of the trunk (the first is one), S sides (long, short), K brackets (stop slowest,
none first on both axes), V = S * K values, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from strategies.features.groups import TYPICAL_SIGMA
from training.exits.settings import ExitSettings
from training.market import Float

DIRECTIONS = ("favourable", "adverse")


@dataclass(frozen=True, slots=True)
class Inputs:
    """How features are seen.

    Args:
        volatility_column: The feature that is the logarithm of one bar's volatility over `TYPICAL_SIGMA`.
        level_F: True where a feature is such a logarithm: it is seen relative to `volatility_column`.
        mean_F: Of the training rows, after that.
        deviation_F: Likewise, > 0.
        clip: Largest absolute normalised value.
    """

    volatility_column: int
    level_F: NDArray[np.bool_]
    mean_F: Float
    deviation_F: Float
    clip: float


class NormalisedState(nn.Module):
    """Features without the size of volatility, normalised and clipped.

    What is learned is in volatilities, so its size is no news but the name of an era: a head that sees it predicts the
    unrest of past years for the calm ones that follow.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.clip = inputs.clip
        self.column = inputs.volatility_column
        self.level: torch.Tensor
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        for name, values in (("level", inputs.level_F), ("mean", inputs.mean_F), ("deviation", inputs.deviation_F)):
            self.register_buffer(name, torch.as_tensor(np.asarray(values), dtype=torch.float32))

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        """Return (B, F)."""
        relative_BF = features_BF - self.level * features_BF[:, self.column : self.column + 1]
        return ((relative_BF - self.mean) / self.deviation).clamp(-self.clip, self.clip)


class Trunk(nn.Module):
    """ReLU layers, then one of hyperbolic tangents; a column of ones stands before what comes out.

    What comes out is bounded, so states beyond those learned from get values like the nearest, not straight lines.

    Args:
        widths: Of the input and of every layer.
        generator: Draws the weights.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(drawn_linear(a, b, generator) for a, b in pairwise(widths))
        self.width = widths[-1] + 1

    def forward(self, z_BF: torch.Tensor) -> torch.Tensor:
        """Return (B, D) of normalised features."""
        *before, last = self.layers
        for layer in before:
            z_BF = torch.relu(layer(z_BF))
        return torch.cat([torch.ones_like(z_BF[:, :1]), torch.tanh(last(z_BF))], dim=1)


def drawn_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer whose weights come from `generator` alone."""
    layer = nn.Linear(inputs, outputs, bias=True)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class ExitFace(nn.Module):
    """The exported face: features (B, F) and targets (B,) in, `output_names` out, each (B,)."""

    output_names: tuple[str, ...]

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.state_of = NormalisedState(inputs)

    def sigma(self, features_BF: torch.Tensor) -> torch.Tensor:
        """Return the volatility of one bar, (B,)."""
        return features_BF[:, self.state_of.column].exp() * TYPICAL_SIGMA


class QuantileMember(nn.Module):
    """One of the estimates that are averaged: what one part of the bars taught its trunk, and the others its values.

    Args:
        widths: Of the input and of the trunk's layers.
        quantiles: Q.
        brackets: K.
        generator: Draws the weights.
    """

    def __init__(self, widths: Sequence[int], *, quantiles: int, brackets: int, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = Trunk(widths, generator)
        self.quantiles, self.brackets = quantiles, brackets
        self.excursion = drawn_linear(self.trunk.width - 1, 2 * quantiles, generator)
        self.gain_DV: torch.Tensor
        self.error_DVD: torch.Tensor
        self.register_buffer("gain_DV", torch.zeros(self.trunk.width, 2 * brackets))
        self.register_buffer("error_DVD", torch.zeros(self.trunk.width, 2 * brackets * self.trunk.width))

    def excursions(self, trunk_BD: torch.Tensor) -> torch.Tensor:
        """Return (B, 2, Q): quantiles of the furthest high above and of the furthest low below."""
        raw_B2Q = self.excursion(trunk_BD[:, 1:]).reshape(-1, 2, self.quantiles)
        return nn.functional.softplus(raw_B2Q).cumsum(dim=2)

    def gains(self, trunk_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, S, K) what each bracket is expected to add to none, and the variance of that estimate."""
        gain_BSK = (trunk_BD @ self.gain_DV).reshape(-1, 2, self.brackets)
        spread_BSKD = (trunk_BD @ self.error_DVD).reshape(-1, 2, self.brackets, self.trunk.width)
        return gain_BSK, (spread_BSKD * spread_BSKD).sum(dim=3)


class QuantileExits(ExitFace):
    """Brackets by expected value, and quantiles of excursions, all in volatilities.

    Its outputs for a target of 1 and of -1 are those of the side; a target of 0 has no exits, and the long side's
    quantiles. `exit_stop` and `exit_take_profit` are log distances from the close decided on, infinite for none;
    `exit_gain` is what the chosen bracket is expected to add to having none, `exit_gain_error` its standard error, both
    in log return of a trade after costs; the quantiles are log distances.

    Args:
        inputs: How features are seen.
        settings: Levels, quantiles, horizon, caution and widths.
        members: Estimates that are averaged.
        generator: Draws the weights.
    """

    def __init__(self, inputs: Inputs, settings: ExitSettings, *, members: int, generator: torch.Generator) -> None:
        super().__init__(inputs)
        levels, quantiles = settings.levels, settings.quantiles
        self.quantiles = tuple(quantiles)
        self.scale = math.sqrt(settings.horizon_bars)
        self.caution = settings.caution
        widths = (len(inputs.mean_F), *settings.hidden)
        brackets = (len(levels) + 1) ** 2
        self.members = nn.ModuleList(
            QuantileMember(widths, quantiles=len(quantiles), brackets=brackets, generator=generator)
            for _ in range(members)
        )
        grid = torch.tensor([math.inf, *levels])
        self.stop_K: torch.Tensor
        self.take_K: torch.Tensor
        self.conformal_2Q: torch.Tensor
        self.believed_S: torch.Tensor
        self.register_buffer("stop_K", grid.repeat_interleave(len(grid)))
        self.register_buffer("take_K", grid.repeat(len(grid)))
        self.register_buffer("conformal_2Q", torch.ones(2, len(quantiles)))
        self.register_buffer("believed_S", torch.ones(2))
        self.output_names = (
            "exit_stop",
            "exit_take_profit",
            "exit_gain",
            "exit_gain_error",
            *(f"{way}_q{100 * share:g}" for way in DIRECTIONS for share in quantiles),
        )

    @property
    def estimates(self) -> tuple[QuantileMember, ...]:
        """Return the members."""
        return cast("tuple[QuantileMember, ...]", tuple(self.members))

    def estimate(self, z_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (B, 2, Q) quantiles before recalibration, (B, S, K) gains and their standard errors, all averaged."""
        parts = []
        for member in self.estimates:
            trunk_BD = member.trunk(z_BF)
            parts.append((member.excursions(trunk_BD), *member.gains(trunk_BD)))
        excursions, gains, variances = (torch.stack(part) for part in zip(*parts, strict=True))
        # the members' values come from different bars
        error_BSK = variances.sum(dim=0).sqrt() / len(parts)
        return excursions.mean(dim=0), gains.mean(dim=0), error_BSK

    def recalibrated(self, excursions_B2Q: torch.Tensor) -> torch.Tensor:
        """Return quantiles times their conformal factors, still increasing."""
        scaled = (excursions_B2Q * self.conformal_2Q).unbind(dim=2)
        increasing = [scaled[0]]
        for one in scaled[1:]:
            increasing.append(torch.maximum(increasing[-1], one))
        return torch.stack(increasing, dim=2)

    def choose(self, gain_BSK: torch.Tensor, error_BSK: torch.Tensor) -> torch.Tensor:
        """Return (B, S) the bracket whose gain is largest beyond `caution` errors; the first, none, if no gain is."""
        sure_BSK = gain_BSK * self.believed_S[:, None] - self.caution * error_BSK
        none_first = torch.cat([torch.zeros_like(sure_BSK[:, :, :1]), sure_BSK[:, :, 1:]], dim=2)
        return none_first.argmax(dim=2)

    def forward(self, features_BF: torch.Tensor, target_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return `output_names`, each (B,)."""
        excursions_B2Q, gain_BSK, error_BSK = self.estimate(self.state_of(features_BF))
        sigma_B = self.sigma(features_BF)
        scale_B = sigma_B * self.scale
        side_B1 = (target_B < 0).to(torch.int64)[:, None]
        place_BS = self.choose(gain_BSK, error_BSK)
        gain_BS = gain_BSK.gather(2, place_BS[:, :, None])[:, :, 0]
        error_BS = error_BSK.gather(2, place_BS[:, :, None])[:, :, 0]
        # the first bracket is the one without exits
        place_B = torch.where(target_B == 0, torch.zeros_like(side_B1[:, 0]), place_BS.gather(1, side_B1)[:, 0])
        is_none_B = place_B == 0
        nothing_B = torch.zeros_like(sigma_B)
        quantile_B2Q = self.recalibrated(excursions_B2Q) * scale_B[:, None, None]
        flipped_B2Q = torch.where(side_B1[:, :, None] == 1, quantile_B2Q.flip(1), quantile_B2Q)
        return (
            self.stop_K[place_B] * sigma_B,
            self.take_K[place_B] * sigma_B,
            torch.where(is_none_B, nothing_B, gain_BS.gather(1, side_B1)[:, 0] * scale_B),
            torch.where(is_none_B, nothing_B, error_BS.gather(1, side_B1)[:, 0] * scale_B),
            *flipped_B2Q.flatten(1).unbind(dim=1),
        )


class SigmoidExits(ExitFace):
    """One sigmoid a level, scaled to a range of log distances: what is fitted to excursions by squared error.

    Args:
        inputs: How features are seen.
        settings: Widths and range.
        generator: Draws the weights.
    """

    def __init__(self, inputs: Inputs, settings: ExitSettings, *, generator: torch.Generator) -> None:
        super().__init__(inputs)
        self.trunk = Trunk((len(inputs.mean_F), *settings.hidden), generator)
        self.low, self.width = settings.sigmoid_range[0], settings.sigmoid_range[1] - settings.sigmoid_range[0]
        self.excursion = drawn_linear(self.trunk.width - 1, 2, generator)
        self.output_names = ("exit_stop", "exit_take_profit")

    def excursions(self, z_BF: torch.Tensor) -> torch.Tensor:
        """Return (B, 2): the expected furthest high above and low below, log distances."""
        share_B2: torch.Tensor = self.excursion(self.trunk(z_BF)[:, 1:]).sigmoid()
        return self.low + self.width * share_B2

    def forward(self, features_BF: torch.Tensor, target_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return `exit_stop` and `exit_take_profit`, each (B,)."""
        above_B, below_B = self.excursions(self.state_of(features_BF)).unbind(dim=1)
        is_short_B, is_flat_B = target_B < 0, target_B == 0
        none_B = torch.full_like(above_B, math.inf)
        stop_B = torch.where(is_short_B, above_B, below_B)
        take_B = torch.where(is_short_B, below_B, above_B)
        return torch.where(is_flat_B, none_B, stop_B), torch.where(is_flat_B, none_B, take_B)


def softplus_inverse(values: Float) -> Float:
    """Return the x whose softplus is `values`, which are positive."""
    inverse: Float = np.log(np.expm1(np.maximum(values, 1e-6)))
    return inverse
