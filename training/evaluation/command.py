"""`tandem train evaluate`, step by step: read, freeze the manifest, train, trade, control, compare, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brokers.files import write_parquet
from brokers.series import from_ns
from strategies.bundle import Bundle, data_fingerprint
from strategies.features import FeatureSpec
from strategies.policy import BundlePolicy
from training.data import Market
from training.errors import TrainingError
from training.evaluation.books import MULTIPLES
from training.evaluation.controls import Control, one_bar_lag, shuffled_returns, truncated_features
from training.evaluation.folds import Fold, walk_forward
from training.evaluation.ground import Ground, features_by, prepare
from training.evaluation.manifest import MANIFEST_FILE, TRIALS_FILE, Trials, sealed, write_json
from training.evaluation.play import BASELINES, OnTrained, Played, play
from training.evaluation.report import BPS, report, sharpes
from training.evaluation.settings import EvaluationSettings
from training.evaluation.trainers import Trainer, configured, of_bundle
from training.settings import TrainingConfiguration

if TYPE_CHECKING:
    import polars as pl

REPORT_FILE = "report.json"
DECISIONS_FILE = "decisions.parquet"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who is judged.

    Args:
        spec: Features that it reads.
        shorts: Whether it may hold -1.
        trainer: Gives its rule for each fold and seed.
        seeds: Of the trainings.
        says: What the manifest holds about it.
    """

    spec: FeatureSpec
    shorts: bool
    trainer: Trainer
    seeds: Sequence[int]
    says: Mapping[str, Any]


def learner(configuration: TrainingConfiguration, settings: EvaluationSettings, market: Market) -> Candidate:
    """Return the configured learner, trained anew for every fold and seed."""
    from training.dqn.pipeline import ALGORITHMS, feature_spec  # noqa: PLC0415 -- torch, where something is trained

    spec = feature_spec(market, configuration.training)
    first = configuration.training.seed
    return Candidate(
        spec=spec,
        shorts=configuration.training.shorts,
        trainer=configured(spec),
        seeds=tuple(range(first, first + settings.seeds)),
        says={"learner": ALGORITHMS[configuration.training.learner]},
    )


def finished(path: Path, market: Market) -> Candidate:
    """Return a bundle's policy, for bars that come after all that it was trained on.

    Raises:
        BundleError: The bundle cannot serve.
        TrainingError: Its bars are of another period or calendar, or the market's begin before its training ended.
    """
    bundle = Bundle.load(path)
    data = bundle.manifest["data"]
    period = timedelta(seconds=float(data["period_s"]))
    if period != market.period or data["calendar"] != market.calendar.id:
        raise TrainingError(
            f"policy {bundle.id} was trained on bars of {period}, calendar {data['calendar']}; these are of "
            f"{market.period}, calendar {market.calendar.id}: set period and calendar to the policy's"
        )
    trained = data["train"]
    ends = datetime.fromisoformat(data.get("split_at") or trained["last_close"])
    first, last = _span(market)
    if first < ends:
        raise TrainingError(
            f"policy {bundle.id} was trained on closes from {trained['first_close']} to {trained['last_close']}, and "
            f"the bars to judge it on close from {first.isoformat()} to {last.isoformat()}: they must begin after its "
            f"training; give later ones, with --start {ends.isoformat()}"
        )
    return Candidate(
        spec=bundle.feature_spec,
        shorts=min(bundle.targets) < 0,
        trainer=of_bundle(BundlePolicy(bundle)),
        seeds=(int(bundle.manifest["seeds"][0]),),
        says={"bundle": bundle.id, "trained_on": trained, "validated_on": data.get("validation")},
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What was found and where it was written."""

    folder: Path
    manifest: Mapping[str, Any]
    report: Mapping[str, Any]
    controls: Sequence[Control]

    @property
    def is_sound(self) -> bool:
        """Tell whether no control found a leak."""
        return all(control.passed for control in self.controls)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "out": str(self.folder),
            "manifest": self.manifest["hash"],
            **self.report,
            "controls": [asdict(control) for control in self.controls],
            "sound": self.is_sound,
        }


def evaluate(
    configuration: TrainingConfiguration,
    settings: EvaluationSettings,
    market: Market,
    candidate: Candidate,
    out: Path,
    *,
    trials: Path | None = None,
    on_trained: OnTrained | None = None,
) -> Result:
    """Judge a candidate and write manifest, report and decisions.

    Args:
        configuration: Costs, capital and training.
        settings: Folds, intervals, controls.
        market: Bars.
        candidate: Who is judged.
        out: Folder for the results, which must not hold anything yet.
        trials: The count of trials; None: beside `out`.
        on_trained: Called after each training.

    Raises:
        TrainingError: Too few bars, a folder that holds something, or a count of trials that cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} holds something already: name a directory that is not there yet")
    ground = prepare(
        market,
        configuration,
        memory_bars=candidate.spec.memory_bars,
        features_of=features_by(candidate.spec, market),
        shorts=candidate.shorts,
    )
    folds = walk_forward(ground.table, settings, memory_bars=ground.memory_bars)
    manifest = sealed(_manifest(configuration, settings, market, candidate, ground, folds))
    count = Trials(trials or out.parent / TRIALS_FILE)
    count.luck(manifest["data"]["fingerprint"])  # a count that cannot be read is told before hours of training
    write_json(out / MANIFEST_FILE, manifest)
    count.plan(manifest)
    seed = candidate.seeds[0]
    played = play(
        ground,
        folds,
        candidate.trainer,
        configuration.training,
        settings,
        seeds=candidate.seeds,
        on_trained=on_trained,
    )
    controls = (
        truncated_features(ground, settings, seed=seed),
        one_bar_lag(ground, played, settings, seed=seed),
        shuffled_returns(ground, configuration, candidate.trainer, settings, seed=seed),
    )
    count.score(manifest, sharpes(played))
    found = report(ground, played, settings, count.luck(manifest["data"]["fingerprint"]), seed=seed)
    result = Result(out, manifest, found, controls)
    write_json(out / REPORT_FILE, result.as_json())
    try:
        write_parquet(decisions(ground, played), out / DECISIONS_FILE)
    except OSError as error:
        raise TrainingError(
            f"{out / DECISIONS_FILE} cannot be written ({error.strerror or error}): name a folder of yours"
        ) from error
    return result


def _manifest(
    configuration: TrainingConfiguration,
    settings: EvaluationSettings,
    market: Market,
    candidate: Candidate,
    ground: Ground,
    folds: Sequence[Fold],
) -> dict[str, Any]:
    """Return all that decides what will be found."""
    first, last = _span(market)
    return {
        "format": 1,
        "code_version": version("tandem-trader"),
        "data": {
            "fingerprint": data_fingerprint(market.series),
            "source": market.source,
            "bars": {symbol: len(bars) for symbol, bars in market.series.items()},
            "period_s": market.period.total_seconds(),
            "calendar": market.calendar.id,
            "first_close": first.isoformat(),
            "last_close": last.isoformat(),
        },
        "features": {"hash": candidate.spec.hash, "memory_bars": ground.memory_bars},
        "policy": dict(candidate.says),
        "shorts": candidate.shorts,
        "seeds": list(candidate.seeds),
        "costs": configuration.costs.model_dump(mode="json"),
        "cost_multiples": list(MULTIPLES),
        "training": configuration.training.model_dump(mode="json"),
        "evaluation": settings.model_dump(mode="json"),
        "rivals": list(BASELINES),
        "folds": [fold.describe(ground.table) for fold in folds],
    }


def decisions(ground: Ground, played: Played) -> pl.DataFrame:
    """Return one row per scored bar and seed: what was wanted, held and earned at the configured costs."""
    import polars as pl  # noqa: PLC0415 -- heavy: loaded only where a file is written

    rows, table = played.rows, ground.table
    start_T = np.concatenate([bars.start_ns for bars in ground.market.series.values()])
    names = np.array(table.symbols)
    frames = []
    for seed, held_R, account in zip(played.seeds, played.held_SR, played.by_seed, strict=True):
        before_R = np.roll(held_R, 1)
        before_R[rows.begins_R] = 0
        change_R = np.sign(held_R - before_R)
        frames.append(
            pl.DataFrame(
                {
                    "timestamp": pl.Series(start_T[rows.row_R]).cast(pl.Datetime("ns", "UTC")),
                    "close_time": pl.Series(table.close_ns_T[rows.row_R]).cast(pl.Datetime("ns", "UTC")),
                    "symbol": names[rows.symbol_R],
                    "fold": rows.fold_R.astype(np.int32),
                    "seed": np.full(len(rows), seed, dtype=np.int64),
                    "action": np.array(["SELL", "HOLD", "BUY"])[change_R + 1],
                    "target": held_R,
                    "position": before_R,
                    "growth_bps": account.growth[1] * BPS,
                }
            )
        )
    return pl.concat(frames)


def _span(market: Market) -> tuple[datetime, datetime]:
    """Return the first and the last close of any symbol."""
    closes = [bars.close_ns for bars in market.series.values()]
    return from_ns(min(int(one[0]) for one in closes)), from_ns(max(int(one[-1]) for one in closes))
