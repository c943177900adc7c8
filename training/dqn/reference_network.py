"""What the Q-network's inputs and outputs look like: normalised features in, one value per target out."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from training.dqn.served import Served
from training.environment import action_targets

UNREACHED = 1.0
"""Log equity by which a target without an action is put below the others."""


class NormalisedInputs(BaseFeaturesExtractor):
    """Features to zero mean and unit deviation of the training rows, clipped; the position as it is.

    The statistics are buffers of the network, so that the exported file carries them.

    Args:
        observation_space: (F + 1,): features, position.
        mean: (F,) of the training rows.
        deviation: (F,) of the training rows, > 0.
        clip: Largest absolute normalised value.
    """

    def __init__(
        self, observation_space: spaces.Box, *, mean: NDArray[Any], deviation: NDArray[Any], clip: float
    ) -> None:
        super().__init__(observation_space, features_dim=int(observation_space.shape[0]))
        self.clip = clip
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.as_tensor(deviation, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return (B, F + 1)."""
        features = ((observations[:, :-1] - self.mean) / self.deviation).clamp(-self.clip, self.clip)
        return torch.cat([features, observations[:, -1:]], dim=1)


class TargetValues(Served):
    """The exported face: features (B, F) and position (B, 1) in, the value of each target out, each (B, 1).

    The value of a target is the largest over the actions that lead to it from the position (HOLD leads to the
    position itself). A target that no action reaches from there (flat, from a position, with shorts on) was never
    learned: it is put `UNREACHED` below the worst that was, so that it is never chosen. Values are in log equity.

    Args:
        q_net: (B, F + 1) to (B, 3) action values, in the learner's unit.
        reward_scale: The learner's unit per log equity.
        shorts: Whether SELL means short, and `q_short` is an output.
    """

    def __init__(self, q_net: nn.Module, *, reward_scale: float, shorts: bool) -> None:
        super().__init__()
        self.q_net = q_net
        self.reward_scale = reward_scale
        self.targets = (0, 1, -1) if shorts else (0, 1)
        self.leads_PA: torch.Tensor
        self.register_buffer("leads_PA", torch.from_numpy(action_targets(shorts=shorts)))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs in their order."""
        return ("q_flat", "q_long", "q_short")[: len(self.targets)]

    def forward(self, features: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return q_flat, q_long (and q_short)."""
        q_BA = self.q_net(torch.cat([features, position], dim=1)) / self.reward_scale
        leads_BA = self.leads_PA[position[:, 0].round().to(torch.int64) + 1]
        floor_BA = (q_BA.amin(dim=1, keepdim=True) - UNREACHED).expand_as(q_BA)
        return tuple(
            torch.where(leads_BA == target, q_BA, floor_BA).amax(dim=1, keepdim=True) for target in self.targets
        )
