"""The DQN as a Strategy: a bundle's ONNX model on one thread of ONNX Runtime.

Contract of the model. Inputs: `features` float32 (B, F), `position` float32 (B, 1). Outputs: `q_flat` and
`q_long` (B,), and `q_short` (B,) where shorts were trained: the value of each target, given the position.
Optional: `exit_stop` and `exit_take_profit` (B,), log distances from the entry, infinite for none; any other
(B,) output becomes a number of the opinion's detail, but of quantiles (`..._q10` to `..._q90`) the median alone; an
`attention` (B, G) becomes one number per feature group. A model that can be explained has a third input, `explain`,
false where it is not given, and an output `attribution` (B, G), without rows while that is false: how much each group
moved the advantage of the target chosen, log equity.

Axes: B rows, F features, T targets, G feature groups.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.batch import BatchAnswers, exit_levels
from strategies.bundle import Bundle, BundleError
from strategies.features import FeatureSpec
from strategies.observation import ModelInputs, model_inputs, usable_rows, why_unusable
from strategies.strategy import Abstention, Observations, Opinion, Reason

Q_OUTPUTS: Mapping[int, str] = {-1: "q_short", 0: "q_flat", 1: "q_long"}
CANARY_TOLERANCE = 1e-5
"""Largest difference, absolute and relative, between the recorded and the served answer."""
NEAR_TIE = 1e-5
"""Relative gap between the best two values below which a batch leaves the choice to the very call that trades."""
ROWS_MAX = 512
"""Rows of one call of the model; larger batches are cut: what is computed on the way then stays near the processor."""
ROWS_STEP = 16
"""Calls are filled up to a multiple of this: the last bits of an answer then do not depend on how many were asked."""
EXPLAINED_MAX = 8
"""Rows of one question whose groups are weighed: each costs as much as some twenty answers."""
EXPLAIN_INPUT = "explain"
ATTRIBUTION_OUTPUT = "attribution"

_CANARY_ROWS = 4
_EXIT_OUTPUTS = ("exit_stop", "exit_take_profit")
_LEFT_OUT = re.compile(r".*_q(?!50$)[0-9.]+")
"""Quantiles other than the median: they stay in the model."""

Outputs = Mapping[str, NDArray[np.float32]]


class Model:
    """An ONNX model that keeps the contract, loaded on one thread with no memory arena."""

    def __init__(self, content: bytes, feature_spec: FeatureSpec, targets: Sequence[int]) -> None:
        """Load and check the model.

        Raises:
            BundleError: Not a model, or one with other inputs or without the outputs that `targets` need.
        """
        # read once, when it is loaded: from 1.29 on it otherwise sends the model's name and hashes to its makers
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort  # noqa: PLC0415 -- costs memory and start-up time; loaded only where a model runs

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        # weights outside of the file would escape the bundle's hashes: they are looked for where nothing can be
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise BundleError(
                f"the policy is not a model that ONNX Runtime reads ({error}): export it again"
            ) from error
        inputs = {one.name: (one.type, one.shape) for one in self._session.get_inputs()}
        expected = {"features": len(feature_spec.names), "position": 1}
        for name, width in expected.items():
            kind, shape = inputs.get(name, ("nothing", []))
            if kind != "tensor(float)" or len(shape) != 2 or shape[1] != width:
                raise BundleError(
                    f"the policy's input {name!r} is {kind} {shape}, not float32 (batch, {width}): "
                    "export it for the bundle's features"
                )
        if set(inputs) != set(expected):
            raise BundleError(f"the policy has inputs {', '.join(inputs)}: only features and position are given")
        self.explains = EXPLAIN_INPUT in {one.name for one in self._session.get_overridable_initializers()}
        named = [one.name for one in self._session.get_outputs()]
        self.outputs = tuple(name for name in named if not (self.explains and name == ATTRIBUTION_OUTPUT))
        lacking = [Q_OUTPUTS[target] for target in targets if Q_OUTPUTS[target] not in self.outputs]
        if lacking:
            raise BundleError(f"the policy lacks the outputs {', '.join(lacking)}: export a value for every target")

    def run(self, inputs: ModelInputs, names: Sequence[str] | None = None) -> Outputs:
        """Return outputs by name, all but the attribution where none are named; Q and exits are (B,).

        What is not asked for is not computed.
        """
        names = self.outputs if names is None else names
        rows = len(inputs["features"])
        parts = []
        for begin in range(0, rows, ROWS_MAX):
            part = slice(begin, begin + ROWS_MAX)
            feed = {"features": _filled(inputs["features"][part]), "position": _filled(inputs["position"][part])}
            parts.append(self._session.run(names, feed))
        if not parts:
            return {name: np.zeros(0, dtype=np.float32) for name in names}
        joined = {name: np.concatenate([np.asarray(part[k]) for part in parts])[:rows] for k, name in enumerate(names)}
        return {name: value.reshape(rows) if value.size == rows else value for name, value in joined.items()}

    def attribution(self, inputs: ModelInputs) -> NDArray[np.float32]:
        """Return how much each feature group moved each row's decision, (B, G), log equity; asked where `explains`."""
        feed = {
            "features": inputs["features"],
            "position": inputs["position"],
            EXPLAIN_INPUT: np.ones((), dtype=np.bool_),
        }
        (told_BG,) = self._session.run((ATTRIBUTION_OUTPUT,), feed)
        return np.asarray(told_BG, dtype=np.float32)


def _filled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows with the last one repeated up to a multiple of `ROWS_STEP`."""
    lacking = -len(values) % ROWS_STEP
    return np.concatenate([values, np.repeat(values[-1:], lacking, axis=0)]) if lacking else values


def record_canary(content: bytes, feature_spec: FeatureSpec, targets: Sequence[int]) -> dict[str, Any]:
    """Return inputs within the features' ranges and the model's answer on them, as JSON values.

    Raises:
        BundleError: The model breaks the contract, or answers with NaN.
    """
    rng = np.random.default_rng(0)
    low_F, high_F = feature_spec.ranges.T
    features = rng.uniform(low_F, high_F, (_CANARY_ROWS, len(low_F))) * 0.5
    positions = np.resize(np.array(sorted(targets)), _CANARY_ROWS)
    inputs = model_inputs(features, positions)
    answer = Model(content, feature_spec, targets).run(inputs)
    q = {Q_OUTPUTS[target]: answer[Q_OUTPUTS[target]] for target in sorted(targets)}
    if not all(np.isfinite(values).all() for values in q.values()):
        raise BundleError("the policy answers its canary with NaN or infinity: train it again")
    return {
        "features": [[float(x) for x in row] for row in inputs["features"]],
        "position": [float(x) for x in inputs["position"][:, 0]],
        "q": {name: [float(x) for x in values] for name, values in q.items()},
    }


def greedy_targets(
    q_BT: NDArray[np.floating], targets: Sequence[int], positions_B: NDArray[np.integer]
) -> NDArray[np.int8]:
    """Return each row's best target, (B,); the position where it is among the best, else the smaller exposure."""
    best_BT = q_BT == q_BT.max(axis=1, keepdims=True)
    values_T = np.array(targets, dtype=np.int8)
    preference_BT = 2 * (values_T[None, :] == positions_B[:, None]) + (values_T == 0)[None, :]
    chosen_B = np.where(best_BT, preference_BT, -1).argmax(axis=1)
    targets_B: NDArray[np.int8] = values_T[chosen_B]
    return targets_B


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A batch's answers as Python's own numbers, one entry a row: taken out of arrays one by one they cost ten times.

    Args:
        q: Value per target.
        finite: Whether all of them are numbers.
        targets: Best target.
        exits: Log distances of stop and take-profit; None where the model gives none.
        detail: Further numbers by name.
        attribution: By row of the batch, the numbers by feature group, where they were asked for.
    """

    q: list[list[float]]
    finite: list[bool]
    targets: list[int]
    exits: list[tuple[float, float]] | None
    detail: dict[str, list[float]]
    attribution: dict[int, dict[str, float]]


class BundlePolicy:
    """Serves one bundle: greedy over the targets that are allowed."""

    def __init__(self, bundle: Bundle, *, shorts: bool = True, name: str = "policy", explains: bool = True) -> None:
        """Load the model and let it answer its canary.

        Args:
            bundle: A verified bundle.
            shorts: True where -1 is an allowed target.
            name: Key of its vote in the ledger.
            explains: True where the weight of each feature group is told with the answers of `opinions`, for up to
                `EXPLAINED_MAX` rows of a question: those first whose target differs from the position.

        Raises:
            BundleError: The model does not keep the contract, answers the canary differently, or was trained with
                shorts where none are allowed: such a policy turns positions and has never learned to close them.
        """
        if not shorts and min(bundle.targets) < 0:
            raise BundleError(
                f"policy {bundle.id} was trained with shorts, and shorts are off: it never learned to go flat from a "
                "position; set strategy.shorts, or train one with training.shorts=false"
            )
        self.bundle = bundle
        self.targets = tuple(sorted(bundle.targets))
        self._name = name
        self._model = Model(bundle.read_policy(), bundle.feature_spec, bundle.targets)
        self._explains = explains and self._model.explains
        self.check_canary()

    @property
    def name(self) -> str:
        """Key of its vote."""
        return self._name

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features it reads."""
        return self.bundle.feature_spec

    def check_canary(self) -> None:
        """Compare the served answer with the recorded one.

        Raises:
            BundleError: They differ by more than `CANARY_TOLERANCE`.
        """
        canary = self.bundle.manifest["canary"]
        inputs = model_inputs(np.array(canary["features"]), np.array(canary["position"]))
        answer = self._model.run(inputs)
        for name, recorded in canary["q"].items():
            if not np.allclose(answer[name], recorded, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE):
                raise BundleError(
                    f"policy {self.bundle.id} answers {answer[name].tolist()} for {name}, its bundle recorded "
                    f"{recorded}: this ONNX Runtime computes differently; use the version that made it"
                )

    def q_values(self, features_BF: NDArray[np.floating], positions_B: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the value of each of `self.targets`, (B, T), for any number of rows at given positions."""
        return self._q(self._model.run(model_inputs(features_BF, positions_B)))

    def batch(
        self, symbol: str, close_ns_T: NDArray[np.int64], features_TF: NDArray[np.float64], position: int
    ) -> BatchAnswers:
        """Return the answers to many bars at one position; see `strategies.batch`."""
        del symbol, close_ns_T
        positions_T = np.full(len(features_TF), position, dtype=np.int8)
        outputs = self._model.run(model_inputs(features_TF, positions_T))
        q_TT = self._q(outputs)
        with np.errstate(invalid="ignore"):
            best_TT = np.sort(q_TT, axis=1)
            gap_T = best_TT[:, -1] - best_TT[:, -2] if len(self.targets) > 1 else np.full(len(q_TT), np.inf)
            near_T = ~(gap_T > NEAR_TIE * np.abs(q_TT).max(axis=1))
            targets_T = greedy_targets(q_TT, self.targets, positions_T)
        near_T |= ~np.isfinite(q_TT).all(axis=1)
        exits = self._exits(outputs)
        if exits is not None:
            near_T |= np.isnan(exits).any(axis=0)
        detail = self._detail_columns(outputs)
        for values in detail.values():
            near_T |= ~np.isfinite(values)
        return BatchAnswers(
            target_T=targets_T,
            near_T=near_T,
            reason=Reason.POLICY_GREEDY,
            q={target: q_TT[:, place].astype(np.float64) for place, target in enumerate(self.targets)},
            detail={name: values.astype(np.float64) for name, values in detail.items()},
            exits=exits,
        )

    async def opinions(self, observations: Observations) -> Sequence[Opinion | Abstention]:
        """Return one answer per symbol; see `Strategy.opinions`."""
        symbols, positions_S = observations.symbols, observations.positions_S
        rows = np.flatnonzero(usable_rows(observations.features_SF)).tolist()
        answers: list[Opinion | Abstention] = [
            Abstention(symbol, why_unusable(observations.features_SF[row])) for row, symbol in enumerate(symbols)
        ]
        if not len(rows):
            return answers
        inputs = model_inputs(observations.features_SF[rows], positions_S[rows])
        try:
            outputs = self._model.run(inputs)
            q_BT = self._q(outputs)
            targets_B = greedy_targets(q_BT, self.targets, positions_S[rows])
            attribution = self._attribution(inputs, targets_B != positions_S[rows]) if self._explains else {}
        except Exception as error:  # noqa: BLE001 -- a model that fails abstains with its words; the daemon goes on
            for row in rows:
                answers[row] = Abstention(symbols[row], Reason.MODEL_ERROR, f"{type(error).__name__}: {error}")
            return answers
        exits = self._exits(outputs)
        spoken = _Spoken(
            q=q_BT.astype(np.float64).tolist(),
            finite=usable_rows(q_BT).tolist(),
            targets=targets_B.tolist(),
            exits=None if exits is None else list(zip(*(levels.tolist() for levels in exits), strict=True)),
            detail={name: values.astype(np.float64).tolist() for name, values in self._detail_columns(outputs).items()},
            attribution=attribution,
        )
        for place, row in enumerate(rows):
            answers[row] = self._answer(symbols[row], spoken, place)
        return answers

    def _q(self, outputs: Outputs) -> NDArray[np.float32]:
        return np.stack([outputs[Q_OUTPUTS[target]] for target in self.targets], axis=1)

    def _answer(self, symbol: str, spoken: _Spoken, place: int) -> Opinion | Abstention:
        exits = None if spoken.exits is None else spoken.exits[place]
        q = spoken.q[place]
        if not spoken.finite[place] or (exits is not None and any(math.isnan(level) for level in exits)):
            return Abstention(symbol, Reason.MODEL_ERROR, f"Q {q}, exits {exits}: not numbers")
        return Opinion(
            symbol=symbol,
            target=spoken.targets[place],
            q=dict(zip(self.targets, q, strict=True)),
            reason=Reason.POLICY_GREEDY,
            exits=None if exits is None else exit_levels(*exits),
            detail={name: values[place] for name, values in spoken.detail.items()} | spoken.attribution.get(place, {}),
        )

    def _exits(self, outputs: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if not all(name in outputs for name in _EXIT_OUTPUTS):
            return None
        stop_B, take_profit_B = (outputs[name].astype(np.float64) for name in _EXIT_OUTPUTS)
        return stop_B, take_profit_B

    def _attribution(self, inputs: ModelInputs, moves_B: NDArray[np.bool_]) -> dict[int, dict[str, float]]:
        """Return the weight of every group by row, for as many rows as are explained: those first that move."""
        rows = np.argsort(~moves_B, kind="stable")[:EXPLAINED_MAX]
        asked: ModelInputs = {"features": inputs["features"][rows], "position": inputs["position"][rows]}
        names = [f"{ATTRIBUTION_OUTPUT}.{group}" for group in self.feature_spec.groups]
        told = self._model.attribution(asked).astype(np.float64).tolist()
        return {row: dict(zip(names, weights, strict=True)) for row, weights in zip(rows.tolist(), told, strict=True)}

    def _detail_columns(self, outputs: Outputs) -> dict[str, NDArray[np.float32]]:
        """Return the further numbers of an answer by name, each (B,)."""
        detail: dict[str, NDArray[np.float32]] = {}
        for name, values in outputs.items():
            if name in Q_OUTPUTS.values() or name in _EXIT_OUTPUTS or _LEFT_OUT.fullmatch(name):
                continue
            if values.ndim == 1:
                detail[name] = values
            elif name == "attention" and values.shape[1:] == (len(self.feature_spec.groups),):
                detail |= {f"attention.{group}": values[:, k] for k, group in enumerate(self.feature_spec.groups)}
        return detail
