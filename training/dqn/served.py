"""The exported face of an ensemble: features and a position in, the value of every target out, and what explains it.

Axes: E members, B rows, F features, N positions that may be held, G feature groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.dqn.bars import Bars
from training.dqn.losses import support
from training.dqn.network import Network, batch_values, shaped
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

    @abstractmethod
    def forward(self, features: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs, (B, 1) or (B, G)."""


class EnsembleValues(Served):
    """Mean values over the members, in log equity.

    Outputs, each (B, 1) but the last: `q_flat`, `q_long`, with shorts `q_short`; `spread`, the standard deviation over
    members of the advantage that decides (of the best target over the position held, by the mean); with attention
    `attention`, (B, G), the share that each group receives; those of the exit head, for the target that is chosen.

    Args:
        network: Shapes and forward pass.
        weights: Stacked, (E, ...).
        buffers: Of batch normalisation.
        bars: For the inputs' normalisation, the costs and the unit.
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

    def forward(self, features: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of `output_names`."""
        buffers = dict(self.named_buffers())
        x_BF = ((features - buffers["mean_F"]) / buffers["deviation_F"]).clamp(-self._clip, self._clip)
        weights = {name: buffers[_plain(name)] for name in self._names}
        running = {name: buffers[_plain(name)] for name in self._buffer_names}
        network = self._network
        network.membership_FG = buffers["membership"]
        answer = network.forward(weights, running, x_BF.unsqueeze(0).expand(self._members, -1, -1))
        value_EBO = batch_values(network, answer, self._support_K)
        count = len(self._positions)
        free = network.settings.value_heads == "free"
        pair_EBNN = shaped(value_EBO, -1, (count, count)) if free else self._with_costs(value_EBO)
        held_B = position[:, 0].round().to(torch.int64) + self._flat
        held_EB1N = held_B.reshape(1, -1, 1, 1).expand(self._members, -1, 1, count)
        q_EBN = pair_EBNN.gather(2, held_EB1N).squeeze(2) / self.reward_scale
        q_BN = q_EBN.mean(dim=0)
        held_B1 = held_B.unsqueeze(1)
        best_EB = q_EBN.gather(2, q_BN.argmax(dim=1, keepdim=True).unsqueeze(0).expand(self._members, -1, 1))
        gain_EB = (best_EB - q_EBN.gather(2, held_B1.unsqueeze(0).expand(self._members, -1, 1))).squeeze(2)
        spread_B = (gain_EB - gain_EB.mean(dim=0)).square().mean(dim=0).sqrt()
        outputs = [q_BN[:, self._flat + target : self._flat + target + 1] for target in self.targets]
        outputs.append(spread_B.unsqueeze(1))
        if answer.attention_EBG is not None:
            outputs.append(answer.attention_EBG.mean(dim=0))
        if self.exits is not None:
            best_B = torch.where(q_BN.gather(1, held_B1)[:, 0] >= q_BN.amax(dim=1), held_B, q_BN.argmax(dim=1))
            outputs.extend(one.unsqueeze(1) for one in self.exits(features, best_B - self._flat))
        return tuple(outputs)

    def _with_costs(self, value_EBN: Tensor) -> Tensor:
        """Return (E, B, N, N): shrunk advantages over flat, and the cost of getting to each target."""
        flat_EB1 = value_EBN[..., self._flat : self._flat + 1]
        believed_EBN = flat_EB1 + self.belief * (value_EBN - flat_EB1)
        return believed_EBN.unsqueeze(2) + self.get_buffer("cost_NN")


def _plain(name: str) -> str:
    """Return a name that a module accepts."""
    return "w_" + name.replace(".", "_")
