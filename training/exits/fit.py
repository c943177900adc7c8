"""How the exit head is trained: its trunk by gradient, the value of brackets in closed form, quantiles conformally.

1. Time is cut into stretches, which go to two members in turn. On its own stretches a member's trunk learns quantiles
   of both excursions (pinball loss) and the gain of every bracket on both sides over having none (squared error). All
   bars teach it, whatever a policy would have done there.
2. On the *other* stretches the gains are fitted again to the trunk's features by least squares: noise that a trunk has
   learned is not there a second time (honest estimation: Athey & Imbens 2016, "Recursive partitioning for heterogeneous
   causal effects"). Standard errors hold although neighbouring labels share bars and symbols move together: bars count
   by blocks of time (Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models"). A bracket is
   chosen where its gain exceeds that error `caution` times.
3. On the last bars, from which nothing was learned, each quantile is multiplied by the factor that makes it hold there
   (split conformal prediction: Papadopoulos et al. 2002; Romano, Patterson & Candes 2019), and the chosen brackets are
   played: a side on which they lose there has no brackets.

Axes: as in `labels` and `network`; C blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brokers.costs import CostModel
from brokers.series import BarSeries
from strategies.features import FeatureSpec
from training.errors import TrainingError
from training.exits.calibration import calibrate, spread
from training.exits.network import (
    ExitFace,
    Inputs,
    NormalisedState,
    QuantileExits,
    QuantileMember,
    SigmoidExits,
    softplus_inverse,
)
from training.exits.rows import ROWS_MIN, ExitRows, exit_rows, level_columns, volatility_column
from training.exits.settings import ExitSettings
from training.market import Float, Float32, Int, MarketTable

MEMBERS = 2
STRETCHES = 12
"""Stretches of time that the members share, in turn."""
BLOCKS_MAX = 250
"""Most blocks of time behind a standard error."""
RIDGE = 1e-4
"""Added to the features' second moments, as a share of the rows: keeps silent units out."""
VALUE_WEIGHT = 1.0
"""Of the gains' squared error, beside the pinball loss."""
WEIGHT_DECAY = 1e-3
MAX_GRAD_NORM = 5.0
CHUNK_ROWS = 16_384
"""Rows of one pass where no gradient is needed."""
PARTS = 20
"""Parts of the held-out bars whose means give the error of their mean."""


@dataclass(frozen=True, slots=True)
class TrainedExits:
    """A trained head.

    Args:
        module: Features (B, F) and target (B,) in; `module.output_names` out, each (B,).
        metrics: What is known of it, JSON values, for the manifest.
        cpu_s: What it cost.
    """

    module: ExitFace
    metrics: Mapping[str, Any]
    cpu_s: float

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything learned, by name; `module.load_state_dict` takes it back to the last bit."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}


def train_exits(
    table: MarketTable,
    series: Mapping[str, BarSeries],
    spec: FeatureSpec,
    settings: ExitSettings,
    costs: CostModel,
    *,
    capital_usd: float,
    seed: int,
) -> TrainedExits:
    """Train the head on all bars of a table, both sides.

    Args:
        table: The training side of a split: nothing outside of its runs is looked at.
        series: The bars that the table was built from, all of them.
        spec: Features of the table.
        settings: Of the head; not `off`.
        costs: The shared cost model.
        capital_usd: Notional of one unit of position.
        seed: Of the weights and of the order of rows.

    Raises:
        TrainingError: Too few bars for the horizon, or features without volatility.
    """
    began = time.thread_time()
    rows = exit_rows(table, series, spec, settings, costs, capital_usd=capital_usd)
    trained = fit_exits(
        rows, settings, volatility_column=volatility_column(spec), level_F=level_columns(spec), seed=seed
    )
    return TrainedExits(trained.module, trained.metrics, time.thread_time() - began)


def fit_exits(
    rows: ExitRows,
    settings: ExitSettings,
    *,
    volatility_column: int,
    level_F: NDArray[np.bool_],
    seed: int,
) -> TrainedExits:
    """Train the head on labelled rows, in the order of time; see `train_exits`."""
    if settings.head == "off":
        raise TrainingError("training.exits.head is off: there is no exit head to train")
    began = time.thread_time()
    learned, held_out = _split(rows, settings)
    generator = torch.Generator().manual_seed(seed)
    if settings.head == "sigmoid_mse":
        level_F = np.zeros_like(level_F)  # the tutorials' head sees its features as they are
    inputs = _inputs(rows.features_RF[learned], volatility_column, level_F, settings.input_clip)
    with torch.no_grad():
        z_RF = NormalisedState(inputs)(torch.from_numpy(rows.features_RF))
    metrics: dict[str, Any] = {
        "head": settings.head,
        "horizon_bars": settings.horizon_bars,
        "learned_bars": len(learned),
        "held_out_bars": len(held_out),
    }
    face: ExitFace
    if settings.head == "sigmoid_mse":
        face = SigmoidExits(inputs, settings, generator=generator)
        reach_R2 = np.stack([rows.labels.above_R, rows.labels.below_R], axis=1)
        _teach_sigmoids(face, z_RF[learned], reach_R2[learned], settings, generator)
        with torch.no_grad():
            told_R2 = face.excursions(z_RF[held_out]).numpy()
        metrics |= spread(told_R2, reach_R2[held_out])
    else:
        face = QuantileExits(inputs, settings, members=MEMBERS, generator=generator)
        metrics |= _fit_quantiles(face, z_RF, rows, learned, held_out, settings, generator)
    return TrainedExits(face.eval(), metrics, time.thread_time() - began)


def _split(rows: ExitRows, settings: ExitSettings) -> tuple[Int, Int]:
    """Return the places that are learned from, and the last ones, none of whose labels share a bar with the first."""
    begin = int(len(rows) * (1.0 - settings.calibration_fraction))
    boundary = rows.decided_R[begin]
    learned = np.flatnonzero(rows.known_R <= boundary)
    held_out = np.flatnonzero(rows.decided_R > boundary)
    for name, part in (("learn from", learned), ("calibrate on", held_out)):
        if len(part) < ROWS_MIN // 10:
            raise TrainingError(
                f"exits have {len(part)} bars to {name}: give more bars, shorten training.exits.horizon_bars, or set "
                "training.exits.head=off"
            )
    return learned, held_out


def _inputs(features_RF: Float32, column: int, level_F: NDArray[np.bool_], clip: float) -> Inputs:
    relative_RF = features_RF - level_F * features_RF[:, column : column + 1]
    deviation_F = relative_RF.std(axis=0, dtype=np.float64)
    return Inputs(
        volatility_column=column,
        level_F=level_F,
        mean_F=relative_RF.mean(axis=0, dtype=np.float64),
        deviation_F=np.where(deviation_F > 1e-6, deviation_F, 1.0),
        clip=clip,
    )


def _fit_quantiles(
    face: QuantileExits,
    z_RF: torch.Tensor,
    rows: ExitRows,
    learned: Int,
    held_out: Int,
    settings: ExitSettings,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Train every member, then test and calibrate their average; returns what was found."""
    scale_R = (rows.sigma_R * math.sqrt(settings.horizon_bars)).astype(np.float32)
    reach_R2 = np.stack([rows.labels.above_R, rows.labels.below_R], axis=1) / scale_R[:, None]
    for number, member in enumerate(face.estimates):
        own, other = _stretches(rows, learned, number)
        _teach(member, z_RF[own], reach_R2[own], _gains(rows, own, scale_R), settings, generator)
        with torch.no_grad():
            trunk_RD = member.trunk(z_RF[other]).numpy().astype(np.float64)
        _value(member, trunk_RD, _gains(rows, other, scale_R), _blocks(rows.decided_R[other], rows.known_R[other]))
    excursion_R2Q, place_RS = _answers(face, z_RF[held_out])
    unit_R1 = scale_R[held_out, None]
    middle_R2 = excursion_R2Q[:, :, len(settings.quantiles) // 2]
    return {
        **spread(middle_R2 * unit_R1, reach_R2[held_out] * unit_R1),
        "quantiles": calibrate(face, excursion_R2Q, reach_R2[held_out]),
        "brackets": _believe(face, place_RS, _gains(rows, held_out, np.ones_like(scale_R))),
    }


def _gains(rows: ExitRows, place_r: Int, unit_R: Float32) -> Float32:
    """Return (r, V) what brackets added to no exits at some rows, in `unit_R`; the first of each side is zero."""
    gain_rSK = rows.labels.value_RSK[place_r]
    gain_rSK -= gain_rSK[:, :, :1].copy()
    gain_rSK /= unit_R[place_r, None, None]
    return gain_rSK.reshape(len(place_r), -1)


def _stretches(rows: ExitRows, learned: Int, member: int) -> tuple[Int, Int]:
    """Return a member's rows, and the rows that tell its values; no label is in both."""
    decided_R, known_R = rows.decided_R[learned], rows.known_R[learned]
    times = np.unique(decided_R)
    edges = times[(np.arange(1, STRETCHES) * len(times)) // STRETCHES]
    stretch_R = np.searchsorted(edges, decided_R, side="right")
    # a label that ends in the next stretch belongs to neither
    is_whole_R = np.searchsorted(edges, known_R, side="left") == stretch_R
    is_own_R = stretch_R % MEMBERS == member
    return learned[is_own_R & is_whole_R], learned[~is_own_R & is_whole_R]


def _teach(
    member: QuantileMember,
    z_RF: torch.Tensor,
    reach_R2: Float32,
    gain_RV: Float32,
    settings: ExitSettings,
    generator: torch.Generator,
) -> None:
    """Train a trunk and its quantiles by gradient."""
    share_Q = np.array(settings.quantiles)
    steps_2Q = np.diff(np.quantile(reach_R2, share_Q, axis=0).T, axis=1, prepend=0.0)
    with torch.no_grad():
        member.excursion.weight.mul_(0.1)
        member.excursion.bias.copy_(torch.from_numpy(softplus_inverse(np.maximum(steps_2Q, 1e-3)).ravel()))
    gain_head = nn.Linear(member.trunk.width, gain_RV.shape[1], bias=False)
    nn.init.zeros_(gain_head.weight)
    spread_V = gain_RV.std(axis=0)
    weight_V = torch.from_numpy(np.where(spread_V > 1e-6, 1.0 / np.maximum(spread_V, 1e-6), 0.0).astype(np.float32))
    targets_R2, gains_RV = torch.from_numpy(reach_R2), torch.from_numpy(gain_RV)
    shares = torch.from_numpy(share_Q.astype(np.float32))
    parameters = [*member.parameters(), *gain_head.parameters()]
    for batch, optimiser in _batches(parameters, len(z_RF), settings, generator):
        trunk_BD = member.trunk(z_RF[batch])
        short_of_B2Q = targets_R2[batch][:, :, None] - member.excursions(trunk_BD)
        pinball = torch.maximum(shares * short_of_B2Q, (shares - 1.0) * short_of_B2Q).mean()
        miss_BV = gain_head(trunk_BD) - gains_RV[batch] * weight_V
        _step(pinball + VALUE_WEIGHT * miss_BV.square().mean(), parameters, optimiser)


def _teach_sigmoids(
    face: SigmoidExits, z_RF: torch.Tensor, reach_R2: Float32, settings: ExitSettings, generator: torch.Generator
) -> None:
    """Train the tutorials' head: squared error of log distances, in per cent."""
    targets_R2, parameters = torch.from_numpy(reach_R2), list(face.parameters())
    for batch, optimiser in _batches(parameters, len(z_RF), settings, generator):
        miss_B2 = 100.0 * (face.excursions(z_RF[batch]) - targets_R2[batch])
        _step(miss_B2.square().mean(), parameters, optimiser)


def _step(loss: torch.Tensor, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own method has no types
    nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimiser.step()


def _batches(
    parameters: list[nn.Parameter], rows: int, settings: ExitSettings, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.optim.Optimizer]]:
    """Yield batches of rows in drawn order, with the optimiser at the learning rate of the moment."""
    size = min(settings.batch_size, rows)
    updates = max(1, round(settings.epochs * rows / size))
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, foreach=True)
    order, place = torch.randperm(rows, generator=generator), 0
    for update in range(updates):
        if place + size > rows:
            order, place = torch.randperm(rows, generator=generator), 0
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * update / updates))
        yield order[place : place + size], optimiser
        place += size


def _blocks(decided_R: Int, known_R: Int) -> Int:
    """Return for each row its block of time: at least four horizons long, and at most `BLOCKS_MAX` of them."""
    times = np.unique(decided_R)
    in_horizon = np.searchsorted(times, known_R[0]) - np.searchsorted(times, decided_R[0])
    count = int(np.clip(len(times) // max(4 * int(in_horizon), 1), 2, BLOCKS_MAX))
    return np.searchsorted(times, decided_R) * count // len(times)


def _value(member: QuantileMember, trunk_RD: Float, gain_RV: Float32, block_R: Int) -> None:
    """Fit the gains on the trunk's features by least squares, with errors by blocks of time."""
    width = trunk_RD.shape[1]
    ridge_DD = RIDGE * len(trunk_RD) * np.diag([0.0] + [1.0] * (width - 1))
    inverse_DD = np.linalg.inv(trunk_RD.T @ trunk_RD + ridge_DD)
    weight_DV = inverse_DD @ (trunk_RD.T @ gain_RV)
    edges = [*np.flatnonzero(np.diff(block_R, prepend=-1)).tolist(), len(block_R)]
    score_CDV = np.stack(
        [
            trunk_RD[begin:end].T @ (gain_RV[begin:end] - trunk_RD[begin:end] @ weight_DV)
            for begin, end in pairwise(edges)
        ]
    )
    blocks = len(score_CDV)
    moved_VDC = np.moveaxis(np.einsum("de,cev->cdv", inverse_DD, score_CDV), (0, 1, 2), (2, 1, 0))
    covariance_VDD = moved_VDC @ moved_VDC.transpose(0, 2, 1) * (blocks / max(blocks - 1, 1))
    size_VD, axis_VDD = np.linalg.eigh(covariance_VDD)
    root_VDD = axis_VDD * np.sqrt(np.maximum(size_VD, 0.0))[:, None, :]
    member.gain_DV.copy_(torch.from_numpy(weight_DV))
    member.error_DVD.copy_(torch.from_numpy(np.moveaxis(root_VDD, 1, 0).reshape(width, -1)))


def _answers(face: QuantileExits, z_RF: torch.Tensor) -> tuple[Float32, Int]:
    """Return (R, 2, Q) quantiles before recalibration and (R, S) the chosen brackets."""
    parts = []
    with torch.no_grad():
        for at in range(0, len(z_RF), CHUNK_ROWS):
            excursions, gain, error = face.estimate(z_RF[at : at + CHUNK_ROWS])
            parts.append((excursions, face.choose(gain, error)))
    return torch.cat([part[0] for part in parts]).numpy(), torch.cat([part[1] for part in parts]).numpy()


def _believe(face: QuantileExits, place_RS: Int, gain_RV: Float32) -> dict[str, Any]:
    """Play the chosen brackets on bars that taught nothing; a side on which they lose gets none."""
    gain_RSK = gain_RV.reshape(len(gain_RV), 2, -1)
    found: dict[str, Any] = {}
    for side, name in enumerate(("long", "short")):
        gain_R = np.take_along_axis(gain_RSK[:, side], place_RS[:, side, None], axis=1)[:, 0].astype(np.float64)
        parts = [part.mean() for part in np.array_split(gain_R, PARTS)]
        mean = float(gain_R.mean())
        if mean < 0.0:
            face.believed_S[side] = 0.0
        common, count = np.unique(place_RS[:, side], return_counts=True)
        found[name] = {
            "held_out_gain_bps": mean * 1e4,
            "held_out_gain_error_bps": float(np.std(parts, ddof=1) / math.sqrt(PARTS)) * 1e4,
            "is_used": mean >= 0.0,
            "share_with_exits": float((place_RS[:, side] > 0).mean()),
            "most_chosen": [
                [
                    _level(face.stop_K[common[place]]),
                    _level(face.take_K[common[place]]),
                    int(count[place]) / len(gain_R),
                ]
                for place in np.argsort(-count, kind="stable")[:3]
            ],
        }
    return found


def _level(level: torch.Tensor) -> float | None:
    return None if torch.isinf(level) else float(level)
