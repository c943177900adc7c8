"""A Q-learner of a hundred lines for tests of what watches learners: real trainings in a second or two.

Post-decision values of the targets flat and long, double Q-learning on all positions of a bar, Huber loss, AdamW,
soft target; on a world's bars with the state behind them as one of the features. Rewards have unit deviation. Every
part that can go wrong can be made to.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from training.market import MarketTable, build_table
from training.markets.mean_reverting import MeanReverting
from training.markets.world import World
from training.validation import performance, policy_targets


@dataclass(frozen=True)
class Tiny:
    """What can be set; the values are those of a training that goes well."""

    seed: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    gamma: float = 0.95
    tau: float = 0.02
    target_update_interval: int = 1
    double: bool = True
    max_grad_norm: float = 10.0
    huber_delta: float = 5.0
    batch_size: int = 128
    hidden: tuple[int, ...] = (32,)
    replay: str = "market"
    exploration_final_eps: float = 0.1
    reward_factor: float = 1.0
    """Mistake: rewards are this many deviations."""
    cost_factor: float = 1.0
    """Mistake: costs in learning are so many times those in the evaluation."""
    sign: float = 1.0
    """Mistake: what the market pays is learned with this sign."""
    bias: float = 0.0
    """Mistake: every hidden unit begins with this bias."""
    flat_bonus: float = 0.0
    """Mistake: the network begins in the belief that being flat is worth so much more."""
    broken_features: float = 0.0
    """Mistake: this share of the features never changes."""
    updates: int = 1_500
    evaluations: int = 15


def tables(
    world: World, train_bars: int, validation_bars: int, *, noise_features: int = 8, seed: int = 1
) -> tuple[MarketTable, MarketTable]:
    """Two independent paths of a world, their hidden state (in deviations) as feature 0 and noise beside it."""
    made = []
    for bars, purpose in ((train_bars, "training"), (validation_bars, "evaluation")):
        path = world.path(bars, seed, purpose)
        rng = np.random.default_rng(seed + bars)
        known = path.state_T.std() > 0.0
        state_T = path.state_T / path.state_T.std() if known else rng.normal(size=bars)
        features = np.column_stack([state_T, rng.normal(size=(bars, noise_features))])
        features[0] = np.nan
        made.append(
            build_table(
                {path.series.symbol: path.series}, {path.series.symbol: features}, world.costs(), capital_usd=10_000.0
            )
        )
    return made[0], made[1]


def network(n_features: int, tiny: Tiny) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = n_features
    for units in tiny.hidden:
        linear = nn.Linear(width, units)
        with torch.no_grad():
            linear.bias += tiny.bias
        layers += [linear, nn.ReLU()]
        width = units
    last = nn.Linear(width, 2)
    with torch.no_grad():
        last.bias[0] += tiny.flat_bonus
    return nn.Sequential(*layers, last)


def paying(table: MarketTable, grow_T: np.ndarray, *, side: float) -> MarketTable:
    """The table of a market that pays a long position `grow_T` of log equity, and takes `side` for each trade."""
    held = np.array([-1.0, 0.0, 1.0])
    reward_TPN = grow_T[:, None, None] * held - side * np.abs(held - held[:, None])
    reward_TPN[np.isnan(table.reward_TPN)] = np.nan
    return replace(table, reward_TPN=reward_TPN)


def train(train_table: MarketTable, validation_table: MarketTable, tiny: Tiny) -> list[dict[str, Any]]:  # noqa: PLR0915  # from top to bottom
    """Return the records of one training."""
    torch.manual_seed(tiny.seed)
    rng = np.random.default_rng(tiny.seed)
    reward_TPN = train_table.reward_TPN[:, 1:, 1:]
    rows = train_table.start_rows
    rows = rows[np.isin(rows + 1, rows)]
    scale = tiny.reward_factor / reward_TPN[rows, 1, 1].std()
    grow = torch.from_numpy(((reward_TPN[:, 1, 1] + reward_TPN[:, 0, 1] - reward_TPN[:, 1, 0]) / 2 * scale).copy())
    night = torch.from_numpy(((reward_TPN[:, 1, 1] + reward_TPN[:, 1, 0] - reward_TPN[:, 0, 1]) / 2 * scale).copy())
    cost = float(np.mean((reward_TPN[rows, 1, 0] + reward_TPN[rows, 0, 1] - reward_TPN[rows, 1, 1]) / 2))
    cost_PN = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) * cost * scale * tiny.cost_factor
    zero = torch.zeros_like(grow)
    grow_TN = torch.stack([zero, grow], 1).float() * tiny.sign
    night_TN = torch.stack([zero, night], 1).float() * tiny.sign
    input_TF = train_table.features_TF.copy()
    broken = np.arange(input_TF.shape[1]) < tiny.broken_features * input_TF.shape[1]
    input_TF[:, broken] = 3.0
    features_TF = torch.from_numpy(input_TF)

    online = network(features_TF.shape[1], tiny)
    target = copy.deepcopy(online)
    adam = torch.optim.AdamW(online.parameters(), lr=tiny.learning_rate, weight_decay=tiny.weight_decay)
    bound = float(np.abs(reward_TPN[rows]).max() * scale / (1.0 - tiny.gamma))
    records, began = [], time.process_time()
    losses, norms = [], []
    for update in range(1, tiny.updates + 1):
        row = torch.from_numpy(rng.choice(rows, tiny.batch_size))
        g_BN = online(features_TF[row])
        with torch.no_grad():
            next_BM = target(features_TF[row + 1])
            chosen_BM = online(features_TF[row + 1]) if tiny.double else next_BM
            best_BN = (cost_PN[None] + chosen_BM[:, None, :]).argmax(2)
            value_BN = torch.gather((cost_PN[None] + next_BM[:, None, :]), 2, best_BN[:, :, None])[:, :, 0]
            y_BN = grow_TN[row] + tiny.gamma * (night_TN[row + 1] + value_BN)
        td_BN = g_BN - y_BN
        loss_BN = nn.functional.huber_loss(g_BN, y_BN, reduction="none", delta=tiny.huber_delta)
        if tiny.replay == "transitions":  # learns only what it would do, but for a share of exploration
            explored = torch.from_numpy(rng.random(tiny.batch_size) < tiny.exploration_final_eps)
            drawn = torch.from_numpy(rng.integers(2, size=tiny.batch_size))
            done = torch.where(explored, drawn, (cost_PN[0] + g_BN.detach()).argmax(1))
            loss = loss_BN[torch.arange(tiny.batch_size), done].mean()
        else:
            loss = loss_BN.mean()
        adam.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(online.parameters(), tiny.max_grad_norm)))
        losses.append(loss.item())
        adam.step()
        if update % tiny.target_update_interval == 0:
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.lerp_(fast, tiny.tau)
        if update % (tiny.updates // tiny.evaluations) == 0:
            with torch.no_grad():
                all_RN = online(features_TF[rows])
                gap = float((all_RN - target(features_TF[rows])).square().mean().sqrt())
                hidden = features_TF[rows]
                dead = []
                for layer in online[:-1]:
                    hidden = layer(hidden)
                    if isinstance(layer, nn.ReLU):
                        dead.append((hidden <= 0).all(0).float().mean().item())
            td = td_BN.detach().abs().double()
            shares = np.bincount((cost_PN[0] + all_RN).argmax(1).numpy(), minlength=2) / len(rows)
            own = _performance(train_table, online, cost_PN, broken)
            other = _performance(validation_table, online, cost_PN, broken)
            records.append(
                {
                    "update": update,
                    "bars_seen": update * tiny.batch_size,
                    "cpu_s": time.process_time() - began,
                    "lr": [tiny.learning_rate],
                    "epsilon": tiny.exploration_final_eps if tiny.replay == "transitions" else None,
                    "beta": None,
                    "loss": [float(np.mean(losses))],
                    **{
                        f"td_p{n}": [float(torch.quantile(td, n / 100)) if td.isfinite().all() else np.nan]
                        for n in (50, 90, 99)
                    },
                    "q_abs_max": [float(all_RN.abs().max())],
                    "q_bound": bound,
                    "target_gap": [gap],
                    "grad_norm": [float(np.mean(norms))],
                    "grad_clipped": [float(np.mean(np.array(norms) > tiny.max_grad_norm))],
                    "dead_units": [float(np.mean(dead))],
                    "action_share": [{"0": float(shares[0]), "1": float(shares[1])}],
                    "attention_entropy": None,
                    "train_bps": [own.mean_bps],
                    "validation_bps": [other.mean_bps],
                    "validation_error_bps": [other.error_bps],
                    "turnover": [other.turnover],
                    "exit_spread": None,
                }
            )
            losses, norms = [], []
    return records


def _performance(table: MarketTable, online: nn.Module, cost_PN: torch.Tensor, broken: np.ndarray) -> Any:
    def greedy(features_BF: np.ndarray, position_B: np.ndarray) -> np.ndarray:
        seen = features_BF.copy()
        seen[:, broken] = 3.0
        with torch.no_grad():
            q_BN = cost_PN[torch.from_numpy(position_B)] + online(torch.from_numpy(seen))
        return q_BN.argmax(1).numpy()

    return performance(table, policy_targets(table, greedy, shorts=False))


def settings_of(tiny: Tiny) -> dict[str, Any]:
    """The settings as a configuration tells them; mistakes are not in it."""
    mistakes = {
        "reward_factor",
        "cost_factor",
        "sign",
        "bias",
        "flat_bonus",
        "broken_features",
        "updates",
        "evaluations",
    }
    return {name: value for name, value in asdict(tiny).items() if name not in mistakes}


def small_world() -> MeanReverting:
    return MeanReverting(shorts=False, half_life=5.0, cost_bps=10.0)
