"""How much each feature group moved a decision: the advantage of the chosen target, with and without the group.

A group is absent where its normalised features are zero, their mean over the training bars. Of each group two effects
are averaged: what it adds alone to nothing, and what is lost when it alone is taken from all of them. These are the
first and the last term of Shapley's sum over the orders in which groups can come (Shapley 1953); the orders between
them would take 2^G passes, these take 2 G + 2, stacked into one. What groups do only together is split between them,
so the attributions need not add up to the advantage.

The advantage is that of the target chosen over the position held; where the position is kept, over the best of the
other targets. Costs are in it, the same in every pass, and belong to no group.

Axes: B rows, F features, G groups, N positions that may be held, V = 2 G + 2 variants: all groups, none, each alone,
each missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.dqn.served import EnsembleValues


class GroupAttribution(nn.Module):
    """Features (B, F) and positions (B, 1) in, log equity by group (B, G) out.

    Args:
        values: What is explained: the mean of the members, as it is served.
    """

    def __init__(self, values: EnsembleValues) -> None:
        super().__init__()
        self.values = values
        present_GF = values.groups_FG.t()
        everything_1F = torch.ones(1, present_GF.shape[1])
        self.groups = len(present_GF)
        mask_VF = torch.cat([everything_1F, 0.0 * everything_1F, present_GF, 1.0 - present_GF])
        self.register_buffer("mask_V1F", mask_VF.unsqueeze(1))

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Return (B, G)."""
        z_BF, held_B = self.values.normalised(features), self.values.held(position)
        variants, count = 2 * self.groups + 2, self.values.count
        z_WF = (self.get_buffer("mask_V1F") * z_BF).flatten(0, 1)  # W = V * B
        q_EWN, _ = self.values.values(z_WF, held_B.unsqueeze(0).expand(variants, -1).flatten())
        q_VBN = q_EWN.mean(dim=0).reshape(variants, -1, count)
        advantage_VB = advantage(q_VBN, *contrast(q_VBN[0], held_B))
        alone_GB, missing_GB = advantage_VB[2 : self.groups + 2], advantage_VB[self.groups + 2 :]
        return (0.5 * (alone_GB - advantage_VB[1:2] + advantage_VB[0:1] - missing_GB)).t()


def contrast(q_BN: Tensor, held_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the target chosen and of the one it is compared with, (B,); a tie keeps the position."""
    held_B1 = held_B.unsqueeze(1)
    others_BN = q_BN.scatter(1, held_B1, -torch.inf)
    best_B1 = others_BN.argmax(dim=1, keepdim=True)
    moves_B1 = q_BN.gather(1, best_B1) > q_BN.gather(1, held_B1)
    return torch.where(moves_B1, best_B1, held_B1)[:, 0], torch.where(moves_B1, held_B1, best_B1)[:, 0]


def advantage(q_VBN: Tensor, chosen_B: Tensor, other_B: Tensor) -> Tensor:
    """Return (V, B): what one target is worth beyond another."""
    places_VB2 = torch.stack([chosen_B, other_B], dim=1).unsqueeze(0).expand(q_VBN.shape[0], -1, -1)
    value_VB2 = q_VBN.gather(2, places_VB2)
    return value_VB2[:, :, 0] - value_VB2[:, :, 1]


def deletion_curves(values: EnsembleValues, features: Tensor, position: Tensor, order_BG: Tensor) -> Tensor:
    """Return the advantage that is left after each group that is taken away, (B, G + 1): at first all are there.

    Args:
        values: Whose advantage is looked at; the targets stay those chosen with all groups.
        features: (B, F).
        position: (B, 1).
        order_BG: int64: groups of each row in the order in which they go.
    """
    z_BF, held_B = values.normalised(features), values.held(position)
    present_BG = torch.ones(order_BG.shape)
    pair = contrast(values.values(z_BF, held_B)[0].mean(dim=0), held_B)
    left = []
    for step in range(order_BG.shape[1] + 1):
        if step:
            present_BG = present_BG.scatter(1, order_BG[:, step - 1 : step], 0.0)
        q_BN = values.values(z_BF * (present_BG @ values.groups_FG.t()), held_B)[0].mean(dim=0)
        left.append(advantage(q_BN.unsqueeze(0), *pair)[0])
    return torch.stack(left, dim=1)
