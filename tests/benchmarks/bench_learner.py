"""The learner: CPU seconds of training to a known quality, time of an update, time of a prioritised draw.

    python tests/benchmarks/bench_learner.py [--updates] [--replay] [--rounds 7]
    python tests/benchmarks/bench_learner.py --time-to-quality [--seeds 3] [--budget 60] [--trainers ...]

Every round runs every case once, so that a busy machine slows all of them alike; times are of the process's CPU on one
thread, medians over the rounds.

Time to quality: one path of the mean-reverting world at its defaults, long or flat, a path and a learner for each seed.
Score: the fraction of the optimum by regret on an unseen path. A level is reached where two scores in a row are at it,
at the time of the first. The clock holds everything from the market table on (statistics of inputs, networks, training)
but not the scores, nor compiling; features and table are the same for all and not counted. Everybody sees the same
features: the default ones, whose longest memory of 768 bars caps what can be known of the mean (the ceiling is told),
or, with `--features long`, these and the distance from the mean of 3,072 bars.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from bench_kit import Figure, load, spread, tell
from numpy.typing import NDArray

from brokers.calendar import calendar
from strategies.features import FeatureSpec, compute_frame, default_spec
from strategies.features.spec import Group
from training.market import MarketTable, build_table
from training.markets.bench import LEAD_BARS, score
from training.markets.deciders import follow
from training.markets.mean_reverting import MeanReverting
from training.markets.world import PERIOD

LEVELS = (0.80, 0.90, 0.93, 0.95)
TRAINING_BARS = 500_000
SCORED_BARS = 30_000
SCALE = 100.0
"""Learner's reward per log equity: one over the deviation of a bar."""

Decide = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""(R, F) features to (2, R) targets, 0 or 1: from flat, from long."""


class Market:
    """One seed's training table, and the unseen path that scores."""

    def __init__(self, spec: FeatureSpec, seed: int) -> None:
        self.spec = spec
        self.world = MeanReverting(shorts=False)
        self.optimum = self.world.solve()
        self.cost_PN = self.world.cost_table()[1:, 1:]
        self._training = self.world.path(TRAINING_BARS, seed, "training")
        hours = calendar("24/7")
        features_TF = compute_frame(spec, self._training.series, hours)
        self.table = build_table(
            {"WORLD": self._training.series}, {"WORLD": features_TF}, self.world.costs(), capital_usd=1.0
        )
        self._unseen = self.world.path(LEAD_BARS + SCORED_BARS, 1_000 + seed)
        self.features_RF = compute_frame(spec, self._unseen.series, hours)[LEAD_BARS - 1 : -1].astype(np.float32)

    def captured(self, target_2R: NDArray[np.int64]) -> float:
        """Return the fraction of the optimum that (2, R) targets, from flat and from long, capture."""
        decisions = follow(np.stack([target_2R[0], target_2R[0], target_2R[1]]))
        return 1.0 - score(self.world, self.optimum, self._unseen, decisions).regret / self.optimum.gain

    def ceiling(self) -> float:
        """Return what the exact best rule captures where a ridge regression tells it the hidden deviation."""
        rows = self.table.start_rows
        train_RF = self.table.features_TF[rows].astype(np.float64)
        mean_F, deviation_F = train_RF.mean(axis=0), np.maximum(train_RF.std(axis=0), 1e-6)

        def design(features_RF: NDArray[Any]) -> NDArray[np.float64]:
            return np.column_stack(
                [np.clip((features_RF - mean_F) / deviation_F, -5.0, 5.0), np.ones(len(features_RF))]
            )

        x = design(train_RF)
        weight_F = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ self._training.state_T[rows])
        node_N = self.optimum.chain.node_N
        told_R = np.clip(design(self.features_RF) @ weight_F, node_N[0], node_N[-1])
        return self.captured(self.optimum.targets(told_R)[1:])


class Clock:
    """CPU time of a training, and its scores, which it does not count."""

    def __init__(self, market: Market, budget_s: float) -> None:
        self._market = market
        self._budget_s = budget_s
        self.points: list[tuple[float, float]] = []
        self._not_counted = 0.0
        self._began = time.process_time()

    def look(self, decide: Decide) -> bool:
        """Score; returns whether training is over: the highest level held twice, or the budget spent."""
        now = time.process_time()
        spent = now - self._began - self._not_counted
        self.points.append((spent, self._market.captured(decide(self._market.features_RF))))
        self._not_counted += time.process_time() - now
        done = len(self.points) > 1 and min(point[1] for point in self.points[-2:]) >= LEVELS[-1]
        return done or spent >= self._budget_s

    def reached(self, level: float) -> float | None:
        """Return the CPU seconds to a level that the next score still holds."""
        for (spent, one), (_, following) in zip(self.points, self.points[1:], strict=False):
            if min(one, following) >= level:
                return spent
        return None


Trainer = Callable[[Market, int, Clock], None]
"""(market, seed, clock): trains, and looks at the clock now and then until it says that it is over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Values of the all-action MLP: chosen on paths 11 to 13, which are not among those that are timed."""

    hidden: tuple[int, ...] = (64, 64)
    batch_bars: int = 64
    updates: int = 5_000
    rate: float = 4e-3
    rate_end: float = 4e-4
    gamma: float = 0.98
    tau: float = 0.05
    huber_delta: float = 5.0
    grad_clip: float = 0.5
    input_l1: float = 1e-3
    weight_average: float = 2e-3
    every: int = 125
    """Updates between two scores."""

    def rates(self, begin: int) -> NDArray[np.float64]:
        """Return the learning rates up to the next score: linear, then constant."""
        update = np.minimum(begin + np.arange(self.every), self.updates) / self.updates
        return self.rate + (self.rate_end - self.rate) * update


def input_statistics(table: MarketTable, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means and deviations of the features, from every seventh row."""
    some_RF = table.features_TF[rows[::7]]
    return some_RF.mean(axis=0), np.maximum(some_RF.std(axis=0), 1e-6)


def greedy(value_RN: NDArray[np.floating], cost_PN: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the best targets from flat and from long of post-decision values."""
    best_PR: NDArray[np.int64] = (cost_PN[:, None, :] + value_RN).argmax(axis=2)
    return best_PR


def compiled(plan: Plan) -> Trainer:
    """Return the compiled learner; it decides by the running mean of its weights."""

    def train(market: Market, seed: int, clock: Clock) -> None:
        from training.dqn.compiled_mlp import CompiledMlp, drawable_rows  # noqa: PLC0415 - numba, where it is measured

        rows = drawable_rows(market.table)
        mean_F, deviation_F = input_statistics(market.table, rows)
        mlp = CompiledMlp(
            market.table, rows, hidden=plan.hidden, shorts=False, gamma=plan.gamma, scale=SCALE,
            cost_PN=market.cost_PN, mean_F=mean_F, deviation_F=deviation_F, tau=plan.tau,
            huber_delta=plan.huber_delta, grad_clip=plan.grad_clip, input_l1=plan.input_l1,
            weight_average=plan.weight_average, batch_bars=plan.batch_bars, seed=seed,
        )  # fmt: skip

        def decide(features_RF: NDArray[np.float32]) -> NDArray[np.int64]:
            observations = np.column_stack([features_RF, np.zeros(len(features_RF), dtype=np.float32)])
            return greedy(mlp.values_of(observations, np.arange(len(features_RF))), market.cost_PN * SCALE)

        while True:
            mlp.run(plan.every, plan.rates(mlp.updates))
            if clock.look(decide):
                return

    return train


def plain_torch(plan: Plan) -> Trainer:
    """Return the same mathematics by autograd: what the compiled kernel replaces."""

    def train(market: Market, seed: int, clock: Clock) -> None:
        import torch  # noqa: PLC0415 - where it is measured

        from training.dqn.compiled_mlp import drawable_rows  # noqa: PLC0415 - same

        table = market.table
        rows = drawable_rows(table)
        mean_F, deviation_F = (torch.from_numpy(one) for one in input_statistics(table, rows))
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        online, frozen, mean = (mlp_of(table.n_features, plan.hidden, 2) for _ in range(3))
        frozen.load_state_dict(online.state_dict())
        weights, first_layer = list(online.parameters()), online[0].weight
        optimiser = torch.optim.AdamW(online.parameters(), lr=plan.rate, weight_decay=0.0, fused=True)
        features_TF, reward_TPN = torch.from_numpy(table.features_TF), table.reward_TPN
        cost_NN = torch.from_numpy(market.cost_PN * SCALE).float()

        def seen(row_B: NDArray[np.int64]) -> Any:
            return ((features_TF[row_B] - mean_F) / deviation_F).clamp(-5.0, 5.0)

        def decide(features_RF: NDArray[np.float32]) -> NDArray[np.int64]:
            with torch.no_grad():
                value = mean(((torch.from_numpy(features_RF) - mean_F) / deviation_F).clamp(-5.0, 5.0))
            return greedy(value.numpy(), market.cost_PN * SCALE)

        for update in range(10**9):
            if update % plan.every == 0:
                rates = plan.rates(update)
            row_B = rows[rng.integers(len(rows), size=plan.batch_bars)]
            now, later = reward_TPN[row_B], reward_TPN[row_B + 1]
            grown = 0.5 * (now[:, 2, 2] + now[:, 1, 2] - now[:, 2, 1])
            kept = 0.5 * (later[:, 2, 2] + later[:, 2, 1] - later[:, 1, 2])
            cost = 0.5 * (later[:, 1, 2] + later[:, 2, 1] - later[:, 2, 2])
            with torch.no_grad():
                after = seen(row_B + 1)
                best_BN = (cost_NN + online(after)[:, None, :]).argmax(dim=2)
                value_BN = frozen(after).gather(1, best_BN)
            paid_BN = torch.from_numpy(np.stack([np.zeros_like(grown), grown + plan.gamma * kept], axis=1) * SCALE)
            moved_BN = torch.from_numpy(cost * SCALE)[:, None] * (best_BN != torch.arange(2))
            y_BN = (paid_BN + plan.gamma * moved_BN).float() + plan.gamma * value_BN
            loss = torch.nn.functional.huber_loss(online(seen(row_B)), y_BN, delta=plan.huber_delta)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            torch.nn.utils.clip_grad_norm_(weights, plan.grad_clip)
            with torch.no_grad():
                first_layer.grad += plan.input_l1 * first_layer.sign()
            optimiser.param_groups[0]["lr"] = rates[update % plan.every]
            optimiser.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(frozen.parameters()), weights, plan.tau)
                torch._foreach_lerp_(list(mean.parameters()), weights, max(plan.weight_average, 1.0 / (update + 1)))
            if (update + 1) % plan.every == 0 and clock.look(decide):
                return

    return train


def learner(**changed: Any) -> Trainer:
    """Return one member of what `tandem train dqn` trains, at its defaults but for what is changed."""

    def train(market: Market, seed: int, clock: Clock) -> None:
        import torch  # noqa: PLC0415 - where it is measured

        from training.dqn.bars import Bars, learnable_rows  # noqa: PLC0415 - same
        from training.dqn.compiled_learner import CompiledLearner, why_not_compiled  # noqa: PLC0415 - same
        from training.dqn.ensemble import WARM_UP_UPDATES  # noqa: PLC0415 - same
        from training.dqn.learner import Learner  # noqa: PLC0415 - same
        from training.dqn.network import batch_values  # noqa: PLC0415 - same
        from training.dqn.relevance import relevance  # noqa: PLC0415 - same
        from training.dqn.settings import DqnSettings  # noqa: PLC0415 - same

        torch.set_num_threads(1)
        settings = DqnSettings(members=1, **changed)
        rows = learnable_rows(market.table)
        bars = Bars(market.table, rows, shorts=False, reward_scale=None, input_clip=settings.input_clip)
        floor = settings.relevance_floor
        gain_EF = torch.from_numpy(floor + (1.0 - floor) * relevance(bars.moments(rows))).float()[None]
        kind = Learner if why_not_compiled(settings) else CompiledLearner
        one = kind(settings, bars, list(market.spec.group_slices.values()), [rows], [seed], gain_EF)

        def decide(features_RF: NDArray[np.float32]) -> NDArray[np.int64]:
            weights, buffers = one.weights()
            with torch.no_grad():
                parts = [
                    batch_values(one.network, one.network.forward(weights, buffers, bars.normalised(part)[None]), None)[
                        0
                    ]
                    for part in torch.from_numpy(features_RF).split(8_192)
                ]
            return greedy(torch.cat(parts).numpy(), bars.expected_cost_NN.numpy())

        for begin in range(0, settings.updates, 50):
            update_U = np.arange(begin, begin + 50)
            rate_U = settings.learning_rate * np.minimum(1.0, (update_U + 1) / WARM_UP_UPDATES)
            rate_U *= 0.5 * (1.0 + np.cos(np.pi * update_U / settings.updates))
            if isinstance(one, CompiledLearner):
                one.learn(rate_U[:, None])
            else:
                for rate in rate_U:
                    one.update(torch.tensor([rate]))
            if clock.look(decide):
                return

    return train


def mlp_of(inputs: int, hidden: Sequence[int], outputs: int) -> Any:
    """Return a torch MLP."""
    from torch import nn  # noqa: PLC0415 - where it is measured

    widths = (inputs, *hidden)
    layers = [part for i, o in zip(widths, hidden, strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def stable_baselines(values: Mapping[str, Any], *, normalised: bool) -> Trainer:
    """Return stable-baselines3's DQN with settings of `training.settings`; exploration falls as in 100,000 steps."""

    def train(market: Market, seed: int, clock: Clock) -> None:
        import torch  # noqa: PLC0415 - where it is measured
        from stable_baselines3 import DQN  # noqa: PLC0415 - same
        from stable_baselines3.common.callbacks import BaseCallback  # noqa: PLC0415 - same

        from training.dqn.reference_network import NormalisedInputs  # noqa: PLC0415 - same
        from training.dqn.vec_env import MarketVecEnv  # noqa: PLC0415 - same
        from training.environment import MarketBatch, action_targets  # noqa: PLC0415 - same

        torch.set_num_threads(1)
        given = dict(values)
        steps, hidden, n_envs = given.pop("timesteps"), list(given.pop("hidden")), given.pop("n_envs")
        fall_steps, rate_end = given.pop("exploration_fraction") * steps, given.pop("learning_rate_end")
        endless = 10**9
        rate = given.pop("learning_rate")
        policy: dict[str, Any] = {"net_arch": hidden}
        if normalised:
            mean_F, deviation_F = input_statistics(market.table, market.table.start_rows)
            policy["features_extractor_class"] = NormalisedInputs
            policy["features_extractor_kwargs"] = {"mean": mean_F, "deviation": deviation_F, "clip": 5.0}
        environment = MarketVecEnv(
            MarketBatch(market.table, n_envs, episode_bars=1_000, start_position="random"), reward_scale=SCALE
        )
        model = DQN(
            "MlpPolicy", environment, policy_kwargs=policy, seed=seed, device="cpu",
            exploration_fraction=fall_steps / endless,
            learning_rate=lambda left: rate * max(rate_end, 1.0 - (1.0 - rate_end) * (1.0 - left) * endless / steps),
            **given,
        )  # fmt: skip
        leads_PA = action_targets(shorts=False)

        def decide(features_RF: NDArray[np.float32]) -> NDArray[np.int64]:
            chosen = []
            for position in (0, 1):
                column = np.full((len(features_RF), 1), position, dtype=np.float32)
                with torch.no_grad():
                    q_RA = model.q_net(torch.from_numpy(np.hstack([features_RF, column])))
                chosen.append(leads_PA[position + 1, q_RA.argmax(dim=1).numpy()])
            return np.stack(chosen)

        class Look(BaseCallback):
            def _on_step(self) -> bool:
                return not (self.num_timesteps % 2_000 < n_envs and clock.look(decide))

        model.learn(endless, callback=Look(), log_interval=endless)

    return train


TUNED: Mapping[str, Any] = {
    "learning_rate": 1e-3,
    "learning_rate_end": 0.1,
    "timesteps": 2_000_000,
    "buffer_size": 1_000_000,
    "batch_size": 512,
    "gamma": 0.98,
    "exploration_fraction": 0.1,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.1,
    "learning_starts": 256,
    "target_update_interval": 64,
    "tau": 0.1,
    "train_freq": 1,
    "gradient_steps": 1,
    "n_envs": 64,
    "hidden": (64, 64),
    "max_grad_norm": 10.0,
}
"""The best of 14 on path 11: learning rates, batches, buffers, episodes at once, updates a step, target rules, inputs.

What mattered was to see a transition no more than some eight times (16 episodes, four updates of 256 a step: 64 times,
0.80 of the optimum after a minute), and inputs as they are (normalised: 0.95 after 12 s instead of 5)."""


def tutorial_values() -> dict[str, Any]:
    """Return the tutorial's values as stable-baselines3 takes them."""
    from training.settings import PRESETS  # noqa: PLC0415 - pydantic, where it is used

    return {name: PRESETS["tutorial"][name] for name in TUNED}


def trainers() -> dict[str, Trainer]:
    """Return everybody who can be timed; another learner is one more line here."""
    return {
        "stable-baselines3, the tutorial's values": stable_baselines(tutorial_values(), normalised=False),
        "stable-baselines3, tuned": stable_baselines(TUNED, normalised=False),
        "`tandem train dqn`, one member: attention, torch": learner(network="attention"),
        "`tandem train dqn`, one member: its default, compiled": learner(),
        "all-action, plain torch, 64 x 64": plain_torch(Plan()),
        "all-action, compiled, 64 x 64": compiled(Plan()),
        "all-action, compiled, 64 x 64, no pull of the inputs": compiled(Plan(input_l1=0.0)),
        "all-action, compiled, 32 x 32": compiled(Plan(hidden=(32, 32))),
    }


def time_to_quality(chosen: Sequence[str], seeds: int, budget_s: float, features: str) -> None:
    """Time every trainer on every seed, one seed after the other, and print medians and their ratios."""
    spec = long_spec() if features == "long" else default_spec(PERIOD)
    everybody = {name: one for name, one in trainers().items() if not chosen or any(part in name for part in chosen)}
    taken: dict[str, list[list[float | None]]] = {name: [] for name in everybody}
    best: dict[str, list[float]] = {name: [] for name in everybody}
    ceilings = []
    for seed in range(1, seeds + 1):
        market = Market(spec, seed)
        ceilings.append(market.ceiling())
        if seed == 1:
            for train in everybody.values():
                train(market, 0, Clock(market, 0.0))  # imports, and compiles or loads what was compiled
        for name, train in everybody.items():
            clock = Clock(market, budget_s)
            train(market, seed, clock)
            taken[name].append([clock.reached(level) for level in LEVELS])
            best[name].append(max(point[1] for point in clock.points))
            sys.stdout.write(f"seed {seed}, {name}: {taken[name][-1]} s, best {best[name][-1]:.3f}, load {load()}\n")
            sys.stdout.flush()
    tell(
        f"CPU seconds to {', '.join(map(str, LEVELS))} of the optimum, {features} features, {seeds} seeds; "
        f"their ceiling {spread(ceilings)}",
        [
            Figure(
                name,
                "  ".join(_cell(column, budget_s) for column in zip(*rows, strict=True))
                + f"  best {spread(best[name])}",
            )
            for name, rows in taken.items()
        ],
    )


def _cell(taken: Sequence[float | None], budget_s: float) -> str:
    """Return a level's median, or in how many runs it was not reached within the budget."""
    reached = [one for one in taken if one is not None]
    missed = len(taken) - len(reached)
    middle = median([one if one is not None else float("inf") for one in taken])
    if middle == float("inf"):
        return f"not reached in {budget_s:g} s ({missed} of {len(taken)})"
    return f"{middle:.3g} s" + (f" ({missed} of {len(taken)} not reached)" if missed else "")


def long_spec() -> FeatureSpec:
    """Return the default features and the distance from a mean that is nearly the true one."""
    plain = default_spec(PERIOD)
    far = Group("far", "trend", {"means": [3_072], "slopes": [], "averages": [], "unit": 64})
    return FeatureSpec((*plain.definitions, far), plain.period_s)


class NumpyTree:
    """The usual sum tree, vectorised: what the prioritised draw is compared with."""

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << (capacity - 1).bit_length()
        self._sum = np.zeros(2 * self._leaves)

    def update(self, slot_B: NDArray[np.int64], td_B: NDArray[np.floating]) -> None:
        """Set priorities and the sums above them."""
        node_B = slot_B + self._leaves
        self._sum[node_B] = (np.minimum(np.abs(td_B), 1.0) + 0.01) ** 0.6
        while node_B[0] > 1:
            node_B = np.unique(node_B >> 1)
            self._sum[node_B] = self._sum[2 * node_B] + self._sum[2 * node_B + 1]

    def sample(self, rng: np.random.Generator, size: int, beta: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw slots and their weights."""
        left_B = rng.random(size) * self._sum[1]
        node_B = np.ones(size, dtype=np.int64)
        while node_B[0] < self._leaves:
            node_B *= 2
            below_B = self._sum[node_B]
            right_B = left_B >= below_B
            left_B -= below_B * right_B
            node_B += right_B
        weight_B = self._sum[node_B] ** -beta
        return node_B - self._leaves, weight_B / weight_B.max()


def replay(rounds: int) -> None:
    """Print what a draw of 64 and its update cost."""
    from training.dqn.prioritised import PrioritisedSlots  # noqa: PLC0415 - numba, where it is measured

    rng = np.random.default_rng(0)
    td_KB = rng.normal(0.0, 0.5, (2_000, 64)).astype(np.float32)
    cases: dict[str, Callable[[], None]] = {}
    for capacity in (10_000, 100_000, 1_000_000):
        ours, tree = PrioritisedSlots(capacity), NumpyTree(capacity)
        every = ours.append(capacity)
        errors = rng.normal(0.0, 0.5, capacity).astype(np.float32)
        ours.update(every, errors)
        tree.update(every, errors)

        def rejection(ours: PrioritisedSlots = ours) -> None:
            for td_B in td_KB:
                ours.update(ours.sample(64, 0.5)[0], td_B)

        def numpy_tree(tree: NumpyTree = tree) -> None:
            for td_B in td_KB:
                tree.update(tree.sample(rng, 64, 0.5)[0], td_B)

        def uniform(capacity: int = capacity) -> None:
            for _ in td_KB:
                rng.integers(capacity, size=64)

        cases |= {
            f"prioritised, rejection, {capacity:,} slots": rejection,
            f"prioritised, NumPy sum tree, {capacity:,} slots": numpy_tree,
            f"uniform, {capacity:,} slots": uniform,
        }
    tell(
        "Draw of 64 slots, weights and update, CPU", _timed(cases, rounds, len(td_KB), aims={"rejection, 1,0": "5 us"})
    )


def updates(rounds: int) -> None:
    """Print what one update costs, compiled and by autograd."""
    import torch  # noqa: PLC0415 - where it is measured

    from training.dqn.compiled_mlp import CompiledMlp, drawable_rows  # noqa: PLC0415 - same

    torch.set_num_threads(1)
    market = Market(default_spec(PERIOD), 1)
    rows = drawable_rows(market.table)
    mean_F, deviation_F = input_statistics(market.table, rows)
    cases: dict[str, Callable[[], None]] = {}
    count = 200
    for bars in (64, 128, 256, 512):
        mlp = CompiledMlp(
            market.table, rows, hidden=(64, 64), shorts=False, gamma=0.98, scale=SCALE, cost_PN=market.cost_PN,
            mean_F=mean_F, deviation_F=deviation_F, batch_bars=bars,
        )  # fmt: skip
        cases[f"compiled, {bars} bars"] = lambda mlp=mlp: mlp.run(count, 1e-3)  # type: ignore[misc]  # a default
        cases[f"torch autograd, {bars} bars"] = _torch_updates(market, bars, count)
    tell("One update of 50 - 64 - 64 - 2, CPU", _timed(cases, rounds, count, aims={"compiled, 64 b": "30 to 60 us"}))


class _Enough(Clock):
    """A clock that ends a training at its first look."""

    def look(self, decide: Decide) -> bool:
        del decide
        return True


def _torch_updates(market: Market, bars: int, count: int) -> Callable[[], None]:
    train = plain_torch(Plan(batch_bars=bars, every=count))
    return lambda: train(market, 1, _Enough(market, 0.0))


def _timed(
    cases: Mapping[str, Callable[[], object]], rounds: int, count: int, aims: Mapping[str, str]
) -> Iterator[Figure]:
    """Run every case once a round; yield microseconds of CPU, by `count`."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            began = time.process_time()
            case()
            if number:  # the first round compiles and fills the caches
                spent[name].append((time.process_time() - began) / count)
    for name, times in spent.items():
        aim = next((aim for part, aim in aims.items() if part in name), "")
        yield Figure(name, spread(times, scale=1e6, unit="us"), aim)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", action="store_true", help="the prioritised draw alone")
    parser.add_argument("--updates", action="store_true", help="one update alone")
    parser.add_argument("--time-to-quality", action="store_true", help="CPU seconds to a known quality (minutes)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=60.0, help="CPU seconds after which a training is given up")
    parser.add_argument("--features", choices=("default", "long"), default="default")
    parser.add_argument("--trainers", nargs="*", default=[], help="only those whose names contain one of these")
    options = parser.parse_args()
    everything = not (options.replay or options.updates or options.time_to_quality)
    if options.replay or everything:
        replay(options.rounds)
    if options.updates or everything:
        updates(options.rounds)
    if options.time_to_quality:
        time_to_quality(options.trainers, options.seeds, options.budget, options.features)


if __name__ == "__main__":
    main()
