"""Bars to bundle: features → market table → split → DQN → ONNX, checked → validation → bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from brokers.series import from_ns
from strategies.bundle import Bundle, data_fingerprint, write_bundle
from strategies.features import FeatureSpec, default_spec, tutorial_spec
from strategies.observation import model_inputs
from strategies.policy import Q_OUTPUTS, Model, greedy_targets
from training.data import Market
from training.dqn.doctor import Finding
from training.dqn.ensemble import Ensemble, OnProgress, train_ensemble
from training.dqn.export import check_equal, export_onnx
from training.dqn.run import in_folder, note_exits
from training.dqn.served import Served
from training.errors import TrainingError
from training.exits.fit import TrainedExits, train_exits
from training.frames import training_frame
from training.market import Int, MarketTable, build_table
from training.settings import TrainingConfiguration, TrainingSettings
from training.validation import (
    Performance,
    Split,
    baselines,
    describe_span,
    performance,
    policy_targets,
    split_in_time,
)

MEASURED_TRAIN_BARS = 20_000
"""Training bars, the latest, on which the exported policy is measured beside the validation bars."""

ALGORITHMS = {"dqn": "all-action Double DQN, an ensemble", "stable_baselines3": "stable-baselines3 DQN"}


class AnyTrained(Protocol):
    """What any learner gives back."""

    @property
    def network(self) -> Served:
        """The exported face."""
        ...

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Every tensor, by name."""
        ...

    @property
    def reward_scale(self) -> float:
        """Learner's reward per log equity."""
        ...

    @property
    def updates(self) -> int:
        """Gradient updates."""
        ...

    @property
    def cpu_s(self) -> float:
        """Process time of learning, seconds."""
        ...

    @property
    def wall_s(self) -> float:
        """Wall time."""
        ...

    @property
    def exits(self) -> Mapping[str, Any] | None:
        """What an exit head says of itself; None without one."""
        ...

    @property
    def stopped_by_budget(self) -> bool:
        """Whether the time budget ended it."""
        ...

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of the training beside its settings; the same for the same run."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """A written bundle, and what its training cost (not part of it: the same run gives the same bundle)."""

    bundle: Bundle
    trained: AnyTrained


def feature_spec(market: Market, settings: TrainingSettings) -> FeatureSpec:
    """Return the features that the settings ask for."""
    if settings.features == "tutorial":
        return tutorial_spec()
    return default_spec(market.period, market.signals)


def market_table(market: Market, spec: FeatureSpec, configuration: TrainingConfiguration) -> MarketTable:
    """Compute the features of every symbol and build the table."""
    features = {symbol: training_frame(spec, bars, market.calendar) for symbol, bars in market.series.items()}
    return build_table(
        market.series, features, configuration.costs.model(), capital_usd=configuration.training.capital_usd
    )


def train_policy(
    configuration: TrainingConfiguration,
    market: Market,
    out: Path,
    *,
    on_progress: OnProgress | None = None,
    budget_s: float | None = None,
    log_dir: Path | None = None,
    run_dir: Path | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Outcome:
    """Train one policy and write its bundle.

    Args:
        configuration: Everything about it.
        market: Bars; the last `validation_fraction` of them is not trained on.
        out: The bundle's directory, which must not hold anything yet.
        on_progress: Called now and then with (steps done, steps planned).
        budget_s: Wall seconds after which learning stops; the run is then not repeatable.
        log_dir: Folder for TensorBoard event files.
        run_dir: Folder of checkpoints, history and report; the same call goes on with what stands there.
        on_finding: Called with each symptom when the training first shows it; with `run_dir` only.

    Raises:
        StoppedBySignalError: SIGTERM or SIGINT came; with `run_dir` only.
        TrainingError: Too few bars, or an export that does not equal the network.
        BundleError: The bundle cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} holds something already: name a directory that is not there yet")
    settings = configuration.training
    spec = feature_spec(market, settings)
    table = market_table(market, spec, configuration)
    split = split_in_time(table, validation_fraction=settings.validation_fraction, memory_bars=spec.memory_bars)

    def exits() -> TrainedExits:
        return train_exits(
            split.train,
            market.series,
            spec,
            settings.exits,
            configuration.costs.model(),
            capital_usd=settings.capital_usd,
            seed=settings.seed,
        )

    drive = None
    if log_dir is not None and run_dir is None and settings.learner == "dqn":
        raise TrainingError(f"{log_dir}: TensorBoard's files are written beside a run's history: give --run as well")
    if run_dir is not None:
        drive = in_folder(
            run_dir,
            configuration=configuration.model_dump(mode="json"),
            feature_names=spec.names,
            feature_hash=spec.hash,
            groups=len(spec.groups),
            data=data_fingerprint(market.series),
            on_progress=on_progress,
            on_finding=on_finding,
            budget_s=budget_s,
            log_dir=log_dir,
        )
    trained = learned(
        split.train,
        spec,
        settings,
        exits=None if settings.exits.head == "off" else exits,
        on_progress=on_progress,
        budget_s=budget_s,
        log_dir=log_dir,
        drive=drive,
    )
    if run_dir is not None and trained.exits is not None:
        note_exits(run_dir, trained.exits)
    policy = export_onnx(trained.network, len(spec.names))
    difference = check_equal(
        trained.network, policy, spec, table.features_TF[split.train.start_rows], seed=settings.seed
    )
    bundle = write_bundle(
        out,
        policy=policy,
        feature_spec=spec,
        data={
            "feed": settings.data_feed,
            "fingerprint": data_fingerprint(market.series),
            "source": market.source,
            "symbols": list(market.series),
            "period_s": market.period.total_seconds(),
            "calendar": market.calendar.id,
            "train": describe_span(split.train),
            "validation": describe_span(split.validation),
            "purged_bars": spec.memory_bars,
            "split_at": from_ns(split.boundary_ns).isoformat(),
        },
        training={
            "algorithm": ALGORITHMS[settings.learner],
            "costs": configuration.costs.model_dump(mode="json"),
            **settings.model_dump(mode="json"),
            "reward_scale": trained.reward_scale,
            **trained.described(),
            "stopped_by_budget": trained.stopped_by_budget,
        },
        seeds=[settings.seed],
        code_version=version("tandem-trader"),
        metrics={
            **measure(policy, spec, split, settings),
            **_captured(market, configuration),
            "onnx_difference": difference,
            **({} if trained.exits is None else {"exits": trained.exits}),
        },
        targets=sorted(trained.network.targets),
        weights=safetensors.torch.save(trained.weights),
    )
    return Outcome(bundle, trained)


def learned(
    table: MarketTable,
    spec: FeatureSpec,
    settings: TrainingSettings,
    *,
    exits: Callable[[], TrainedExits] | None = None,
    on_progress: OnProgress | None = None,
    budget_s: float | None = None,
    log_dir: Path | None = None,
    drive: Callable[[Ensemble], None] | None = None,
) -> AnyTrained:
    """Train with the learner that the settings name; arguments as of `train_policy`.

    Args:
        table: The training side.
        spec: Its features.
        settings: Learner, its values and the seed.
        exits: Trains the exit head; None for none. The library's learner has none.
        on_progress: Called now and then.
        budget_s: Wall seconds after which learning stops.
        log_dir: Folder for TensorBoard event files.
        drive: See `train_ensemble`.

    Raises:
        TrainingError: Too few rows, or prices that never move.
    """
    if settings.learner == "stable_baselines3":
        if drive is not None:
            raise TrainingError(
                "the learner stable_baselines3 keeps no checkpoints: leave out the run's folder, or set "
                "training.learner to dqn"
            )
        from training.dqn.reference import train_dqn  # noqa: PLC0415 -- the library is loaded where it trains

        return train_dqn(table, settings, on_progress=on_progress, budget_s=budget_s, log_dir=log_dir)
    return train_ensemble(
        table,
        settings.dqn,
        tuple(spec.group_slices.values()),
        seed=settings.seed,
        shorts=settings.shorts,
        reward_scale=settings.reward_scale,
        embargo_bars=spec.memory_bars,
        exits=exits,
        on_progress=on_progress,
        budget_s=budget_s,
        drive=drive,
    )


def measure(policy: bytes, spec: FeatureSpec, split: Split, settings: TrainingSettings) -> dict[str, Any]:
    """Return the exported policy's performance on both sides of the split, and the baselines' on validation.

    Of the training side the latest `MEASURED_TRAIN_BARS`, for comparison.

    The validation bars chose nothing: not the weights, not the hyperparameters.
    """
    targets = (-1, 0, 1) if settings.shorts else (0, 1)
    model = Model(policy, spec, targets)
    names = [Q_OUTPUTS[target] for target in targets]

    def greedy(features_BF: NDArray[Any], position_B: Int) -> Int:
        answer = model.run(model_inputs(features_BF, position_B), names)
        q_BT = np.stack([answer[name] for name in names], axis=1)
        return greedy_targets(q_BT, targets, position_B).astype(np.int64)

    def of_policy(table: MarketTable) -> Performance:
        return performance(table, policy_targets(table, greedy, shorts=settings.shorts))

    others = baselines(split.validation, shorts=settings.shorts, seed=settings.seed)
    return {
        "unit": "after-cost log return per bar at unit exposure, basis points; error: standard error by blocks",
        "validation": {
            "policy": asdict(of_policy(split.validation)),
            **{name: asdict(one) for name, one in others.items()},
        },
        "train": {"policy": asdict(of_policy(_latest(split.train, MEASURED_TRAIN_BARS)))},
    }


def _latest(table: MarketTable, bars: int) -> MarketTable:
    """Return the table with its latest steps alone, of all symbols together."""
    rows = table.start_rows
    if len(rows) <= bars:
        return table
    since = np.partition(table.close_ns_T[rows], len(rows) - bars)[len(rows) - bars]
    return table.where(table.close_ns_T >= since)


def _captured(market: Market, configuration: TrainingConfiguration) -> Mapping[str, Any]:
    """Return what the synthetic market's planted edge is worth, beside which the policy's mean can be put."""
    edge = market.edge(configuration)
    return {} if edge is None else {"planted_edge": asdict(edge)}
