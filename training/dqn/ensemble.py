"""From a market table to a trained ensemble: folds, learning rates, evaluations, checkpoints, and what is believed.

Every member leaves out another block of time, and is watched on it while it learns. Members are spread over threads;
torch and the compiled learner let go of the interpreter while they compute.

Axes: E members, R rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from training.dqn.bars import Bars, blocks_in_time, earliest, latest, learnable_rows, left_out
from training.dqn.belief import FACTORS, Belief, Paid, believe, pay
from training.dqn.compiled_learner import CompiledLearner, why_not_compiled
from training.dqn.learner import Learner
from training.dqn.relevance import relevance
from training.dqn.served import EnsembleValues
from training.dqn.settings import DqnSettings
from training.errors import TrainingError
from training.exits.fit import TrainedExits
from training.market import Int, MarketTable

OnProgress = Callable[[int, int], None]
"""(updates done, updates planned)."""

AnyLearner = Learner | CompiledLearner

FOLDS_MIN = 5
"""Blocks of time of which each member leaves out one, at the least."""
WARM_UP_UPDATES = 50
"""Over which the learning rate rises."""
WATCHED_ROWS = 2_048
"""Rows of each member's own block, and as many that it learns from, at every evaluation."""
BELIEF_ROWS = 40_000
"""Rows of each member's own block that decide what is believed, at the end."""
EMBARGO_SHARE = 0.1
"""Rows on either side of a block that nobody learns from: the features' memory, at most this share of the block."""


@dataclass(frozen=True, slots=True)
class Member:
    """Who learns from what.

    Args:
        seed: Of weights and draws.
        rows: Rows it learns from.
        own: Rows it leaves out, a block of time.
    """

    seed: int
    rows: Int
    own: Int


@dataclass(frozen=True, slots=True)
class TrainedEnsemble:
    """What came out.

    Args:
        network: The exported face.
        weights: Every tensor, by name, members along the first axis.
        reward_scale: Learner's reward per log equity.
        updates: Of each member.
        bars_seen: Bars drawn by each member.
        belief: What bars that were left out bear out.
        records: Evaluations, oldest first; see `training.dqn.history`.
        exits: What the exit head says of itself; None without one.
        cpu_s: CPU time of learning, seconds, of all threads.
        wall_s: Wall time.
        stopped_by_budget: True where the time budget ended it.
    """

    network: EnsembleValues
    weights: dict[str, torch.Tensor]
    reward_scale: float
    updates: int
    bars_seen: int
    belief: Belief
    records: list[dict[str, Any]]
    exits: Mapping[str, Any] | None
    cpu_s: float
    wall_s: float
    stopped_by_budget: bool

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of the training."""
        belief = self.belief
        return {
            "updates": self.updates,
            "bars_seen": self.bars_seen,
            "belief": {
                "factor": belief.factor,
                "left_out_bps": belief.mean_bps,
                "left_out_error_bps": belief.error_bps,
                "by_factor_bps": {str(factor): mean for factor, mean in belief.by_factor_bps.items()},
            },
        }


@dataclass(slots=True)
class Rates:
    """Learning rates of every member, and what `plateau` remembers."""

    factor_E: list[float]
    best_E: list[float]
    waited_E: list[int] = field(default_factory=list)


def members_of(table: MarketTable, settings: DqnSettings, seed: int, *, embargo_bars: int) -> list[Member]:
    """Give every member its seed, its rows and the block of time that it leaves out.

    Raises:
        TrainingError: Too few rows.
    """
    rows = learnable_rows(table, settings.n_step)
    count = max(settings.members, FOLDS_MIN)
    if len(rows) < 10 * count:
        raise TrainingError(
            f"{len(rows)} bars with complete features to learn from: at least {10 * count} are needed, give more bars"
        )
    blocks = blocks_in_time(table, rows, count)
    if not all(len(block) for block in blocks):
        closes = len(np.unique(table.close_ns_T[rows]))
        raise TrainingError(f"bars of {closes} closes cannot be cut into {count} blocks of time: give a longer span")
    members = []
    for place in range(settings.members):
        # a single member leaves out the newest block
        own = blocks[count - 1 - place]
        # a target reaches `n_step` bars ahead, whatever the features remember
        embargo = max(settings.n_step, min(embargo_bars, int(len(own) * EMBARGO_SHARE) // len(table.symbols)))
        members.append(Member(seed + 1_000 * place, left_out(table, rows, own, embargo), own))
    return members


class Ensemble:
    """A training that can be stepped, stopped, saved and gone on with.

    Args:
        table: Training rows only.
        settings: Of the learner.
        groups: Columns of each feature group.
        seed: First member's; the others' follow from it.
        shorts: Whether -1 may be held.
        reward_scale: Learner's reward per log equity; None: by the bars' deviation.
        embargo_bars: The features' memory.
    """

    def __init__(
        self,
        table: MarketTable,
        settings: DqnSettings,
        groups: Sequence[slice],
        *,
        seed: int,
        shorts: bool,
        reward_scale: float | None,
        embargo_bars: int,
    ) -> None:
        torch.set_num_threads(1)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise TrainingError("training.dqn.device is cuda and torch sees no such device: set it to cpu")
        self.table, self.settings = table, settings
        self.members = members_of(table, settings, seed, embargo_bars=embargo_bars)
        everything = np.unique(np.concatenate([one.rows for one in self.members]))
        self.bars = Bars(
            table,
            everything,
            shorts=shorts,
            reward_scale=reward_scale,
            input_clip=settings.input_clip,
            device=settings.device,
        )
        groups_of_members = self._spread()
        self.gain_EF = self._gains()
        kind = Learner if why_not_compiled(settings) is not None else CompiledLearner
        self.learners: list[AnyLearner] = [
            kind(
                settings,
                self.bars,
                groups,
                [self.members[k].rows for k in places],
                [self.members[k].seed for k in places],
                self.gain_EF[places],
            )
            for places in groups_of_members
        ]
        self._places = groups_of_members
        count = settings.members
        self._rates = Rates([1.0] * count, [-math.inf] * count, [0] * count)
        self.records: list[dict[str, Any]] = []
        self.updates = 0
        self.cpu_s = 0.0

    def _spread(self) -> list[list[int]]:
        """Return the members of each thread."""
        count = self.settings.members
        threads = 1 if self.settings.device == "cuda" else min(self.settings.threads, count)
        return [list(map(int, places)) for places in np.array_split(np.arange(count), threads)]

    def _gains(self) -> torch.Tensor:
        """Return each member's factor of every column, (E, F), from the rows that it learns from."""
        floor = self.settings.relevance_floor
        gain_EF = torch.ones(len(self.members), self.table.n_features)
        if floor == 1.0:
            return gain_EF
        everything = learnable_rows(self.table, self.settings.n_step)
        # moments add up: a member's are those of all rows without the few that it leaves out
        total = self.bars.moments(everything)
        for place, member in enumerate(self.members):
            without = np.setdiff1d(everything, member.rows, assume_unique=True)
            told_F = relevance(total - self.bars.moments(without))
            gain_EF[place] = torch.from_numpy(floor + (1.0 - floor) * told_F)
        return gain_EF

    @property
    def done(self) -> bool:
        """Whether every update was made."""
        return self.updates >= self.settings.updates

    def next_stop(self, checkpoint_updates: int | None = None) -> int:
        """Return the update of the next evaluation or checkpoint."""
        each = max(1, math.ceil(self.settings.updates / self.settings.evaluations))
        stops = [self.settings.updates, (self.updates // each + 1) * each]
        if checkpoint_updates:
            stops.append((self.updates // checkpoint_updates + 1) * checkpoint_updates)
        return min(stops)

    def run(self, until: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Learn up to an update; evaluate where one is due. All members stop at the same update.

        Args:
            until: Update to stop after.
            interrupted: Asked between pieces of some updates; learning then stops early.
        """
        # the library counts threads for each thread that calls it
        with ThreadPoolExecutor(len(self.learners), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while self.updates < until and not interrupted():
                piece = min(until - self.updates, _PIECE_UPDATES)
                rates = [self._rate(self.updates + k) for k in range(piece)]
                jobs = [
                    pool.submit(_timed, learner, [[rate[e] for e in places] for rate in rates])
                    for learner, places in zip(self.learners, self._places, strict=True)
                ]
                for job in jobs:
                    self.cpu_s += job.result()
                self.updates += piece
        if self._evaluation_due():
            self.evaluate()

    def _evaluation_due(self) -> bool:
        each = max(1, math.ceil(self.settings.updates / self.settings.evaluations))
        return self.updates > 0 and (self.updates % each == 0 or self.done) and not self._evaluated()

    def _evaluated(self) -> bool:
        return bool(self.records) and self.records[-1]["update"] == self.updates

    def _rate(self, update: int) -> list[float]:
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (update + 1) / WARM_UP_UPDATES)
        if settings.lr_schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * update / settings.updates))
        return [rate * factor for factor in self._rates.factor_E]

    def evaluate(self) -> dict[str, Any]:
        """Look at every member on bars that it left out, and on as many that it learned from; keep the record."""
        looks: list[dict[str, Any]] = []
        validation, training = [], []
        for learner, places in zip(self.learners, self._places, strict=True):
            looks.append(learner.look(self.members[places[0]].rows))
            for column, place in enumerate(places):
                member = self.members[place]
                validation.append(self._paid(learner, column, earliest(self.table, member.own, WATCHED_ROWS)))
                training.append(self._paid(learner, column, latest(self.table, member.rows, WATCHED_ROWS)))
        joined = {name: _joined([look[name] for look in looks]) for name in looks[0]}
        record = {
            "update": self.updates,
            "bars_seen": self.updates * self.settings.batch_bars,
            "cpu_s": self.cpu_s,
            "lr": self._rate(max(0, self.updates - 1)),
            "epsilon": self.learners[0].experience.epsilon,
            "beta": self._beta(),
            "q_bound": self._bound(),
            **joined,
            "action_share": [{str(k): v for k, v in one.target_shares.items()} for one in training],
            "train_bps": [one.mean_bps for one in training],
            "validation_bps": [one.mean_bps for one in validation],
            "validation_error_bps": [one.error_bps for one in validation],
            "turnover": [one.turnover for one in validation],
            "exit_spread": None,
        }
        self.records.append(record)
        self._plateau([one.mean_bps for one in validation])
        return record

    def _beta(self) -> float | None:
        if not self.settings.prioritised:
            return None
        beta = self.settings.priority_beta
        return beta + (1.0 - beta) * min(1.0, self.updates / self.settings.updates)

    def _bound(self) -> float:
        """Return the largest value that the rewards allow: the largest mean absolute bar, for ever."""
        long_R = self.bars.intrabar_TN[torch.from_numpy(self.members[0].rows), -1]
        return float(long_R.abs().mean()) / (1.0 - self.settings.gamma)

    def _plateau(self, validation_bps: Sequence[float]) -> None:
        if self.settings.lr_schedule != "plateau":
            return
        rates = self._rates
        for place, value in enumerate(validation_bps):
            rates.waited_E[place] += 1
            if value > rates.best_E[place]:
                rates.best_E[place], rates.waited_E[place] = value, 0
            elif rates.waited_E[place] >= self.settings.lr_patience:
                rates.factor_E[place] *= 0.5
                rates.waited_E[place] = 0

    def _paid(self, learner: AnyLearner, column: int, rows: Int, factor: float = 1.0) -> Paid:
        value_RO = learner.values(rows)[column].cpu().numpy()
        return self._follow(value_RO, rows, factor)

    def _follow(self, value_RO: Any, rows: Int, factor: float) -> Paid:
        positions = self.bars.positions
        flat = positions.index(0)
        if self.settings.value_heads == "free":
            pair_RNN = value_RO.reshape(len(rows), len(positions), len(positions))
            return pay(self.table, rows, pair_RNN, np.zeros((1, 1)), positions)
        believed_RN = value_RO[:, flat : flat + 1] + factor * (value_RO - value_RO[:, flat : flat + 1])
        return pay(self.table, rows, believed_RN, self.bars.expected_cost_NN.cpu().numpy(), positions)

    def believed(self) -> Belief:
        """Choose how much of the advantages is believed, from bars that were left out."""
        if self.settings.value_heads == "free" or not self.settings.belief:
            paid = [self._paid(learner, column, rows) for learner, column, rows in self._own_rows()]
            log_R = np.concatenate([one.log_R for one in paid])
            one = Paid(log_R, 0.0, {})
            return Belief(1.0, one.mean_bps, one.error_bps, {1.0: one.mean_bps})
        by_factor: list[list[Paid]] = [[] for _ in FACTORS]
        for learner, column, rows in self._own_rows():
            value_RO = learner.values(rows)[column].cpu().numpy()
            for place, factor in enumerate(FACTORS):
                by_factor[place].append(self._follow(value_RO, rows, factor))
        return believe(by_factor)

    def _own_rows(self) -> Iterator[tuple[AnyLearner, int, Int]]:
        for learner, places in zip(self.learners, self._places, strict=True):
            for column, place in enumerate(places):
                yield learner, column, earliest(self.table, self.members[place].own, BELIEF_ROWS)

    def finished(self, *, wall_s: float, stopped_by_budget: bool, exits: TrainedExits | None = None) -> TrainedEnsemble:
        """Return the trained ensemble, with its exit head where there is one."""
        belief = self.believed()
        parts = [learner.weights() for learner in self.learners]
        weights = {name: torch.cat([one[0][name] for one in parts]) for name in parts[0][0]}
        buffers = {name: torch.cat([one[1][name] for one in parts]) for name in parts[0][1]}
        network = EnsembleValues(
            self.learners[0].network,
            weights,
            buffers,
            self.bars,
            self.gain_EF,
            belief=belief.factor,
            exits=None if exits is None else exits.module,
        ).eval()
        return TrainedEnsemble(
            network=network,
            weights={**weights, **buffers, **({} if exits is None else _prefixed("exits", exits.state()))},
            exits=None if exits is None else exits.metrics,
            reward_scale=self.bars.reward_scale,
            updates=self.updates,
            bars_seen=self.updates * self.settings.batch_bars,
            belief=belief,
            records=self.records,
            cpu_s=self.cpu_s,
            wall_s=wall_s,
            stopped_by_budget=stopped_by_budget,
        )

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        return {
            "updates": self.updates,
            "cpu_s": self.cpu_s,
            "rates": {
                "factor": self._rates.factor_E,
                "best": self._rates.best_E,
                "waited": self._rates.waited_E,
            },
            "learners": [learner.state() for learner in self.learners],
        }

    def restore(self, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a state; `records` are those of the updates before it."""
        self.updates, self.cpu_s = int(state["updates"]), float(state["cpu_s"])
        rates = state["rates"]
        self._rates = Rates(list(rates["factor"]), list(rates["best"]), [int(one) for one in rates["waited"]])
        self.records = [dict(one) for one in records]
        for learner, kept in zip(self.learners, state["learners"], strict=True):
            learner.restore(kept)


_PIECE_UPDATES = 20
"""Updates between two looks at whether learning shall stop."""


def _timed(learner: AnyLearner, rates: Sequence[Sequence[float]]) -> float:
    """Take updates; return what they cost this thread, CPU seconds."""
    begun = time.thread_time()
    learner.learn(rates)
    return time.thread_time() - begun


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _joined(parts: Sequence[list[float] | None]) -> list[float] | None:
    if any(part is None for part in parts):
        return None
    return [value for part in parts if part is not None for value in part]


def train_ensemble(
    table: MarketTable,
    settings: DqnSettings,
    groups: Sequence[slice],
    *,
    seed: int,
    shorts: bool,
    reward_scale: float | None = None,
    embargo_bars: int = 0,
    exits: Callable[[], TrainedExits] | None = None,
    on_progress: OnProgress | None = None,
    budget_s: float | None = None,
    drive: Callable[[Ensemble], None] | None = None,
) -> TrainedEnsemble:
    """Train from beginning to end; arguments as of `Ensemble`.

    Args:
        table: Training rows only.
        settings: Of the learner.
        groups: Columns of each feature group.
        seed: First member's.
        shorts: Whether -1 may be held.
        reward_scale: Learner's reward per log equity; None: by the bars' deviation.
        embargo_bars: The features' memory.
        exits: Trains the exit head, beside the ensemble; None for none.
        on_progress: Called now and then.
        budget_s: Wall seconds after which learning stops; the run is then not repeatable.
        drive: Takes it to its end instead, as `training.dqn.run.in_folder` does; it then minds progress and budget.

    Raises:
        TrainingError: Too few rows, or a device that is not there.
    """
    begun = time.monotonic()
    ensemble = Ensemble(
        table, settings, groups, seed=seed, shorts=shorts, reward_scale=reward_scale, embargo_bars=embargo_bars
    )

    def late() -> bool:
        return budget_s is not None and time.monotonic() - begun >= budget_s

    # the exit head learns from the same bars and from nothing else, beside the ensemble
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        beside = None if exits is None else pool.submit(exits)
        if drive is not None:
            drive(ensemble)
        while drive is None and not ensemble.done and not late():
            ensemble.run(ensemble.next_stop(), late)
            if on_progress is not None:
                on_progress(ensemble.updates, settings.updates)
        trained_exits = None if beside is None else beside.result()
    return ensemble.finished(wall_s=time.monotonic() - begun, stopped_by_budget=not ensemble.done, exits=trained_exits)
