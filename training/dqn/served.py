"""The exported face of an ensemble: features and a position in, the value of every target out, and what explains it.

Axes: E members, B rows, F features, N positions that may be held, G feature groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.dqn.attribution import GroupAttribution, advantage, contrast
from training.dqn.bars import Bars
from training.dqn.losses import support
from training.dqn.network import Answer, Network, batch_values, shaped
from training.exits.network import ExitFace


class Served(nn.Module, ABC):
    """A network as it is exported: features (B, F) and position (B, 1) in, its named outputs out.

    Attributes:
        reward_scale: Learner's reward per log equity.
        targets: Positions that are valued, in the order of the first outputs.
    """

    reward_scale: float
    targets: tuple[int, ...]

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: a value for each of `targets`, then whatever explains them."""

    @property
    def explained(self) -> nn.Module | None:
        """Return what gives (B, G) from the same inputs, where it is asked for alone; None for nothing."""
        return None

    @abstractmethod
    def forward(self, features: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs, (B, 1) or (B, G)."""


class EnsembleValues(Served):
    """Mean values over the members, in log equity.

    Outputs, each (B, 1) but the last: `q_flat`, `q_long`, with shorts `q_short`; `spread`, the standard deviation over
    members of the advantage that decides (of the target chosen over the position held, or over the best other target
    where the position is kept); with attention
    `attention`, (B, G), the share that each group receives; those of the exit head, for the target that is chosen.

    Args:
        network: Shapes and forward pass.
        weights: Stacked, (E, ...).
        buffers: Of batch normalisation.
        bars: For the inputs' normalisation, the costs and the unit.
        gain_EF: Factor of every normalised column, by member.
        belief: Factor of every advantage over flat, in [0, 1].
        exits: Head of stop and take-profit, asked for the target that is chosen; None leaves them to the
            configuration.
    """

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        bars: Bars,
        gain_EF: Tensor,
        *,
        belief: float,
        exits: ExitFace | None = None,
    ) -> None:
        super().__init__()
        # of its own: an export leaves a stand-in for the membership behind
        self._network = Network(network.settings, network.groups, network.n_targets)
        self._names = tuple(weights)
        self._buffer_names = tuple(buffers)
        for name, one in (*weights.items(), *buffers.items()):
            self.register_buffer(_plain(name), one.detach().cpu())
        self.register_buffer("membership", network.membership_FG.cpu())
        self.register_buffer("mean_F", bars.mean_F.cpu())
        self.register_buffer("deviation_F", bars.deviation_F.cpu())
        self.register_buffer("gain_E1F", gain_EF.cpu().unsqueeze(1))
        self.register_buffer("cost_NN", bars.expected_cost_NN.cpu())
        self._clip = bars.input_clip
        self._support_K = support(network.settings, "cpu")
        self._members = next(iter(weights.values())).shape[0]
        self._positions = bars.positions
        self._flat = bars.positions.index(0)
        self.reward_scale = bars.reward_scale
        self.exits = exits
        self.belief = belief
        self.targets = (0, 1, -1)[: len(bars.positions)]
        self.shorts = len(bars.positions) > 2

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs in their order."""
        q = ("q_flat", "q_long", "q_short")[: len(self.targets)]
        explained = ("spread", "attention") if self._network.attends else ("spread",)
        return (*q, *explained, *(self.exits.output_names if self.exits is not None else ()))

    @property
    def explained(self) -> GroupAttribution:
        """Return what tells how much each feature group moved a decision."""
        return GroupAttribution(self)

    @property
    def groups_FG(self) -> Tensor:
        """1 where a feature belongs to a group, else 0."""
        return self.get_buffer("membership")

    @property
    def count(self) -> int:
        """N."""
        return len(self._positions)

    def normalised(self, features: Tensor) -> Tensor:
        """Return (B, F) in deviations from the mean of the training bars."""
        z_BF = (features - self.get_buffer("mean_F")) / self.get_buffer("deviation_F")
        return z_BF.clamp(-self._clip, self._clip)

    def held(self, position: Tensor) -> Tensor:
        """Return the places of positions (B, 1) among those that may be held, (B,)."""
        return position[:, 0].round().to(torch.int64) + self._flat

    def values(self, z_BF: Tensor, held_B: Tensor) -> tuple[Tensor, Answer]:
        """Return every member's value of every target, (E, B, N) in log equity, and what the network said."""
        buffers = dict(self.named_buffers())
        weights = {name: buffers[_plain(name)] for name in self._names}
        running = {name: buffers[_plain(name)] for name in self._buffer_names}
        network = self._network
        network.membership_FG = buffers["membership"]
        answer = network.forward(weights, running, z_BF.unsqueeze(0) * buffers["gain_E1F"])
        value_EBO = batch_values(network, answer, self._support_K)
        free = network.settings.value_heads == "free"
        pair_EBNN = shaped(value_EBO, -1, (self.count, self.count)) if free else self._with_costs(value_EBO)
        held_EB1N = held_B.reshape(1, -1, 1, 1).expand(self._members, -1, 1, self.count)
        return pair_EBNN.gather(2, held_EB1N).squeeze(2) / self.reward_scale, answer

    def forward(self, features: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of `output_names`."""
        held_B = self.held(position)
        q_EBN, answer = self.values(self.normalised(features), held_B)
        q_BN = q_EBN.mean(dim=0)
        chosen_B, other_B = contrast(q_BN, held_B)
        gain_EB = advantage(q_EBN, chosen_B, other_B)
        off_EB = gain_EB - gain_EB.mean(dim=0)
        spread_B = (off_EB * off_EB).mean(dim=0).sqrt()
        outputs = [q_BN[:, self._flat + target : self._flat + target + 1] for target in self.targets]
        outputs.append(spread_B.unsqueeze(1))
        if answer.attention_EBG is not None:
            outputs.append(answer.attention_EBG.mean(dim=0))
        if self.exits is not None:
            outputs.extend(one.unsqueeze(1) for one in self.exits(features, chosen_B - self._flat))
        return tuple(outputs)

    def _with_costs(self, value_EBN: Tensor) -> Tensor:
        """Return (E, B, N, N): shrunk advantages over flat, and the cost of getting to each target."""
        flat_EB1 = value_EBN[..., self._flat : self._flat + 1]
        believed_EBN = flat_EB1 + self.belief * (value_EBN - flat_EB1)
        return believed_EBN.unsqueeze(2) + self.get_buffer("cost_NN")


def _plain(name: str) -> str:
    """Return a name that a module accepts."""
    return "w_" + name.replace(".", "_")
