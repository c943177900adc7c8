"""What a network is taught: the temporal-difference targets of every position and target of a bar at once.

The price is exogenous, so from one bar each of them is a known transition (Huang 2018, arXiv 1807.02787); no
exploration is needed. The value behind the transition is the target network's, never the realised maximum, which
would know the future.

Post-decision heads learn G[n], the value of holding n from a bar's fill to the next one (Powell 2011, "Approximate
Dynamic Programming", section 4.6; the position is charged what it costs to get there beside the network):

    y[n] = B[t, n] + gamma (A[t+1, n] + max_m (C[t+1, |n-m|] + G[m](t+1)))

Free heads learn Q[p, n] itself, on whole rewards. A shaped reward adds gamma Phi(t+1, n) - Phi(t, p), which moves
Q[p, n] by -Phi(t, p) and no choice (Ng, Harada & Russell 1999); Phi is what a position gained of late.

Axes: E members, B bars, N positions (first the one held, then the one gone to), K atoms, O values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.dqn.bars import Bars
from training.dqn.network import Answer, Network, batch_values, shaped
from training.dqn.settings import DqnSettings

LOG_POLICY_MIN = -1.0
"""Munchausen: the log policy's share in the reward is clipped here (Vieillard et al. 2020, appendix B)."""

Ask = Callable[[Tensor], Answer]
"""Rows (E, B) to a network's answer."""


@dataclass(frozen=True, slots=True)
class Taught:
    """Targets.

    Args:
        value_EBOK: Of each value of the network; with K = 1 unless quantiles are learned.
    """

    value_EBOK: Tensor


class Teacher:
    """Computes targets.

    Args:
        network: Whose values.
        bars: The market.
        support_K: Centres of a histogram's bins; None where means or quantiles are learned.
    """

    def __init__(self, network: Network, bars: Bars, support_K: Tensor | None) -> None:
        self._network = network
        self._settings: DqnSettings = network.settings
        self._bars = bars
        self._support_K = support_K
        self._free = self._settings.value_heads == "free"
        self._potential_TN: Tensor | None = None
        if self._settings.reward == "shaped":
            held_N = torch.tensor(bars.positions, dtype=torch.float32, device=bars.device)
            gained_T = recent_gains(bars, self._settings.shaping_bars)
            self._potential_TN = self._settings.shaping_weight * gained_T.unsqueeze(-1) * held_N

    def teach(self, row_EB: Tensor, online: Ask, target: Ask) -> Taught:
        """Return the targets of every value at every row."""
        gamma = self._settings.gamma
        last_EB = row_EB + self._settings.n_step
        paid_EBN, held_EBN, discount = self._followed(row_EB, online)
        later = target(last_EB)
        later_EBNN = self._values_by_position(batch_values(self._network, later, self._support_K))
        if self._settings.munchausen > 0.0:
            return Taught(self._munchausen(row_EB, paid_EBN, later_EBNN, target).unsqueeze(-1))
        cost_EBNN = torch.zeros_like(later_EBNN) if self._free else self._bars.cost(last_EB)
        choosing_EBNN = later_EBNN
        if self._settings.double:
            choosing_EBNN = self._values_by_position(batch_values(self._network, online(last_EB), self._support_K))
        choice_EBN = self._choice(choosing_EBNN)
        if self._settings.value_loss == "quantile":
            atoms_EBNK = self._chosen_atoms(later, choice_EBN)
            if not self._free:
                atoms_EBNK = atoms_EBNK + _picked(cost_EBNN, choice_EBN).unsqueeze(-1)
            value_EBNK = paid_EBN.unsqueeze(-1) + gamma * atoms_EBNK
        else:
            behind_EBN = _picked(later_EBNN + cost_EBNN, choice_EBN)
            if self._settings.n_step > 1:
                behind_EBN = behind_EBN.gather(-1, held_EBN)
            value_EBNK = (paid_EBN + discount * behind_EBN).unsqueeze(-1)
        if not self._free:
            return Taught(value_EBNK)
        return Taught((self._first(row_EB).unsqueeze(-1) + value_EBNK.unsqueeze(2)).flatten(2, 3))

    def _first(self, row_EB: Tensor) -> Tensor:
        """Return what free heads earn before they hold: the old position's overnight growth, the cost of the change."""
        old_EBN = self._bars.overnight_TN[row_EB]
        if self._potential_TN is not None:
            old_EBN = old_EBN - self._potential_TN[row_EB]
        return old_EBN.unsqueeze(-1) + self._bars.cost(row_EB)

    def _choice(self, value_EBNN: Tensor) -> Tensor:
        """Return the best target of each position held; what a change will cost is in the values of free heads."""
        return (value_EBNN if self._free else value_EBNN + self._bars.expected_cost_NN).argmax(dim=-1)

    def _followed(self, row_EB: Tensor, online: Ask) -> tuple[Tensor, Tensor, float]:
        """Return what each target earns up to the row that is asked, what is held by then, and its discount.

        Between the first bar and the last one the online network's own choices are followed: on a recorded path their
        rewards are known, so that nothing is biased towards another policy.
        """
        bars, gamma = self._bars, self._settings.gamma
        paid_EBN = self._earned(row_EB)
        count = len(bars.positions)
        held_EBN = torch.arange(count, device=row_EB.device).expand(*row_EB.shape, count)
        discount = gamma
        for step in range(1, self._settings.n_step):
            at_EB = row_EB + step
            values_EBNN = self._values_by_position(batch_values(self._network, online(at_EB), self._support_K))
            choice_EBN = self._choice(values_EBNN)
            first_EBNN = self._first(at_EB) if self._free else bars.cost(at_EB)
            step_EBN = _picked(first_EBNN, choice_EBN) + self._earned(at_EB).gather(-1, choice_EBN)
            paid_EBN = paid_EBN + discount * step_EBN.gather(-1, held_EBN)
            held_EBN = choice_EBN.gather(-1, held_EBN)
            discount *= gamma
        return paid_EBN, held_EBN, discount

    def _earned(self, row_EB: Tensor) -> Tensor:
        """Return what holding each target earns until the next decision, (E, B, N).

        The overnight growth after it belongs to it where values are post-decision, to the next reward where they are
        free; a potential behind it does either way.
        """
        behind_TN = self._potential_TN if self._free else self._bars.overnight_TN
        held_EBN = self._bars.intrabar_TN[row_EB]
        return held_EBN if behind_TN is None else held_EBN + self._settings.gamma * behind_TN[row_EB + 1]

    def _values_by_position(self, value_EBO: Tensor) -> Tensor:
        """Return (E, B, N, N): post-decision values are the same whatever was held."""
        count = self._network.n_targets
        if self._free:
            return shaped(value_EBO, -1, (count, count))
        return value_EBO.unsqueeze(-2).expand(*value_EBO.shape[:-1], count, count)

    def _chosen_atoms(self, later: Answer, choice_EBN: Tensor) -> Tensor:
        count = self._network.n_targets
        atoms = later.value_EBOK
        place_EBN = choice_EBN
        if self._free:
            place_EBN = choice_EBN + count * torch.arange(count, device=choice_EBN.device)
        return atoms.gather(2, place_EBN.unsqueeze(-1).expand(*place_EBN.shape, atoms.shape[-1]))

    def _munchausen(self, row_EB: Tensor, paid_EBN: Tensor, later_EBNN: Tensor, target: Ask) -> Tensor:
        """Return (E, B, O) soft targets with the log policy in the reward (Vieillard et al. 2020, equation 4)."""
        settings = self._settings
        warmth = settings.munchausen_temperature
        log_later_EBNN = torch.log_softmax(later_EBNN / warmth, dim=-1)
        behind_EBN = (log_later_EBNN.exp() * (later_EBNN - warmth * log_later_EBNN)).sum(dim=-1)
        now_EBNN = self._values_by_position(batch_values(self._network, target(row_EB), self._support_K))
        log_now_EBNN = warmth * torch.log_softmax(now_EBNN / warmth, dim=-1)
        gained_EBN = paid_EBN + settings.gamma * behind_EBN
        praise_EBNN = settings.munchausen * log_now_EBNN.clamp(LOG_POLICY_MIN, 0.0)
        return (self._first(row_EB) + praise_EBNN + gained_EBN.unsqueeze(2)).flatten(2)


def recent_gains(bars: Bars, count: int) -> Tensor:
    """Return (T,): what a long position gained in the last `count` bars that are known at each row, of its run alone.

    In the learner's unit. With a latency the latest rows' bars are not over yet; at the beginning of a run fewer are
    summed.
    """
    table = bars.table
    gain_T = (bars.overnight_TN[:, -1] + bars.intrabar_TN[:, -1]).cpu().numpy().astype(np.float64)
    # rows without a step are NaN; they end runs, and no difference of sums reaches over one
    sum_T = np.concatenate([[0.0], np.cumsum(np.where(np.isnan(gain_T), 0.0, gain_T))])
    at_T = np.arange(len(table))
    begins_T = np.concatenate([[True], table.run_end_T[1:] != table.run_end_T[:-1]])
    first_T = np.maximum.accumulate(np.where(begins_T, at_T, 0))
    end_T = np.maximum(at_T + 1 - table.latency_bars, first_T)
    gained_T = sum_T[end_T] - sum_T[np.maximum(end_T - count, first_T)]
    return torch.from_numpy(gained_T.astype(np.float32)).to(bars.device)


def _picked(value_EBNN: Tensor, choice_EBN: Tensor) -> Tensor:
    """Return each position's value of its own choice, (E, B, N)."""
    return value_EBNN.gather(-1, choice_EBN.unsqueeze(-1)).squeeze(-1)
