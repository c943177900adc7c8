"""The best policy of a world: relative value iteration on a chain of information states, for the average reward.

A price taker's position does not move the state, so a problem is a Markov chain (N nodes), what a bar is expected to
grow the log equity at each node and position, and what a change of position costs. Bellman's equation for the
average reward (Puterman 1994, "Markov Decision Processes", ch. 8):

    g + V(s, p) = max_n [ growth(s, n) + cost(p, n) + sum_s' kernel(s, s') V(s', n) ]

Axes: N nodes, P positions held (-1, 0, 1 at index 0, 1, 2), the second P of a PP the position wanted, T bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

SPAN = 1e-13
"""Span of one Bellman step, in log equity per bar, at which the average reward is known."""
STEPS_MAX = 20_000
EVALUATE_EVERY = 50
"""Bellman steps between exact evaluations of the greedy policy, which shorten the way and cannot change its end."""
MASS = 1e-13
"""Change of a distribution in one step below which it is stationary."""
MASS_STEPS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Chain:
    """What can happen, to whatever is decided.

    Args:
        node_N: Information states, increasing.
        kernel_NN: Probability of each next node; rows sum to 1.
        growth_NP: Expected growth of log equity over the next bar at each position, before costs.
        cost_PP: Log equity paid (<= 0) for going from one position to another.
        allowed: Positions that may be held.
    """

    node_N: Float
    kernel_NN: Float
    growth_NP: Float
    cost_PP: Float
    allowed: tuple[int, ...]

    @property
    def forbidden_P(self) -> NDArray[np.bool_]:
        """Positions that may not be held."""
        return ~np.isin((-1, 0, 1), self.allowed)


@dataclass(frozen=True, slots=True)
class Occupation:
    """Where a policy spends its time, from a flat start.

    Args:
        gain: Average reward per bar, log equity.
        turnover: Sides traded per bar.
        exposure: Mean absolute position.
    """

    gain: float
    turnover: float
    exposure: float


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best policy of a chain.

    Args:
        chain: What was solved.
        gain: Average reward per bar, log equity.
        worth_NP: Growth and all that follows of *holding* each position from each node; forbidden ones are -inf.
        steps: Bellman steps that it took.
    """

    chain: Chain
    gain: float
    worth_NP: Float
    steps: int

    def values(self, state_T: Float) -> Float:
        """Return (T, P, P) values of every change of position, interpolated between nodes."""
        worth_TP = np.stack([np.interp(state_T, self.chain.node_N, column) for column in self.worth_NP.T], axis=1)
        value_TPP: Float = worth_TP[:, None, :] + self.chain.cost_PP
        return value_TPP

    def targets(self, state_T: Float) -> Int:
        """Return (P, T) best targets; among equals the position, then the smaller exposure."""
        return greedy(self.values(state_T))

    def regret(self, state_T: Float, before_T: Int, held_T: Int) -> Float:
        """Return (T,) what each decision gives away for ever, >= 0.

        Its mean along any path of decisions is what they fall short of `gain` (Kakade & Langford 2002, performance
        difference), with far less noise than the mean reward.
        """
        value_TP = self.values(state_T)[np.arange(len(state_T)), before_T + 1]
        shortfall_T: Float = value_TP.max(axis=1) - value_TP[np.arange(len(state_T)), held_T + 1]
        return shortfall_T

    def thresholds(self, position: int, other: int) -> Float:
        """Return the states at which the choice between staying at `position` and going to `other` turns."""
        gain_N = self._advantage(position, other)
        place = np.flatnonzero(np.diff(np.signbit(gain_N)))
        share = gain_N[place] / (gain_N[place] - gain_N[place + 1])
        crossing: Float = self.chain.node_N[place] + share * np.diff(self.chain.node_N)[place]
        return crossing

    def _advantage(self, position: int, other: int) -> Float:
        cost = self.chain.cost_PP[position + 1, other + 1]
        advantage_N: Float = self.worth_NP[:, other + 1] + cost - self.worth_NP[:, position + 1]
        return advantage_N


def greedy(value_TPP: Float) -> Int:
    """Return (P, T) targets of highest value; among equals the position held, then the smaller exposure."""
    stay = 2.0 * np.eye(3) + (0.0, 1.0, 0.0)
    best_TPP = value_TPP == value_TPP.max(axis=2, keepdims=True)
    target_PT: Int = np.where(best_TPP, stay, -1.0).argmax(axis=2).T.astype(np.int64) - 1
    return target_PT


def solve(chain: Chain) -> Optimum:
    """Find the best average reward and what each position is worth.

    Raises:
        TrainingError: No convergence within `STEPS_MAX` Bellman steps.
    """
    growth_NP = np.where(chain.forbidden_P, -np.inf, chain.growth_NP)
    value_NP = np.zeros_like(growth_NP)
    for step in range(1, STEPS_MAX + 1):
        worth_NP = growth_NP + chain.kernel_NN @ value_NP
        value_NPP = worth_NP[:, None, :] + chain.cost_PP
        better_NP = value_NPP.max(axis=2)
        change_NP = better_NP - value_NP
        low, high = float(change_NP.min()), float(change_NP.max())
        if high - low < SPAN:
            return Optimum(chain, (low + high) / 2.0, worth_NP, step)
        value_NP = better_NP - better_NP[0, 1]
        if step % EVALUATE_EVERY == 0:
            value_NP = _relative_values(chain, greedy(value_NPP), value_NP)
    raise TrainingError(
        f"the optimum of {len(chain.node_N)} nodes is not known to {SPAN:g} after {STEPS_MAX} steps: the state moves "
        "too slowly, shorten its half-life or its regimes"
    )


def _relative_values(chain: Chain, target_PN: Int, fallback_NP: Float) -> Float:
    """Return the relative values of a fixed policy by one linear solve; `fallback_NP` where they are not unique."""
    nodes = len(chain.node_N)
    place_PN = target_PN + 1
    reward_PN = chain.growth_NP[np.arange(nodes), place_PN] + chain.cost_PP[np.arange(3)[:, None], place_PN]
    moves = np.zeros((3, nodes, 3, nodes))
    for held in range(3):
        moves[held, np.arange(nodes), place_PN[held]] = chain.kernel_NN
    size = 3 * nodes
    system = np.eye(size) - moves.reshape(size, size)
    system[:, nodes] = 1.0  # the value of (flat, first node) is the zero; its column carries the average reward
    try:
        solved = np.linalg.solve(system, reward_PN.ravel())
    except np.linalg.LinAlgError:
        return fallback_NP
    solved[nodes] = 0.0
    if not np.isfinite(solved).all() or np.abs(solved).max() > 1e6:
        return fallback_NP
    return np.asarray(solved.reshape(3, nodes).T, dtype=np.float64)


def occupation(chain: Chain, target_PN: Int) -> Occupation:
    """Evaluate a policy given by node exactly, by its stationary distribution from a flat start.

    Args:
        chain: The chain.
        target_PN: (P, N) targets by position held and node.

    Raises:
        TrainingError: The distribution does not settle.
    """
    nodes = len(chain.node_N)
    place_PN = target_PN + 1
    mass_PN = np.zeros((3, nodes))
    mass_PN[1] = stationary(chain.kernel_NN)
    arrives_PNP = (place_PN[:, :, None] == np.arange(3)).astype(np.float64)
    for _ in range(MASS_STEPS_MAX):
        decided_PN = np.einsum("pn,pnq->qn", mass_PN, arrives_PNP)
        # half of the step: a policy that alternates has no limit otherwise, and the stationary distribution is the same
        moved_PN = (mass_PN + decided_PN @ chain.kernel_NN) / 2.0
        settled = np.abs(moved_PN - mass_PN).max() < MASS
        mass_PN = moved_PN
        if settled:
            break
    else:
        raise TrainingError(f"a policy's distribution does not settle within {MASS_STEPS_MAX} steps")
    reward_PN = chain.growth_NP[np.arange(nodes), place_PN] + chain.cost_PP[np.arange(3)[:, None], place_PN]
    sides_PN = np.abs(target_PN - np.array([-1, 0, 1])[:, None])
    return Occupation(
        gain=float((mass_PN * reward_PN).sum()),
        turnover=float((mass_PN * sides_PN).sum()),
        exposure=float((mass_PN * np.abs(target_PN)).sum()),
    )


def stationary(kernel_NN: Float) -> Float:
    """Return the stationary distribution of an irreducible chain, (N,)."""
    nodes = len(kernel_NN)
    system = np.eye(nodes) - kernel_NN.T
    system[-1] = 1.0
    right = np.zeros(nodes)
    right[-1] = 1.0
    return np.asarray(np.linalg.solve(system, right), dtype=np.float64)
