"""From a trained Q-network to the bytes of `policy.onnx`, and the proof that both say the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from strategies.features import FeatureSpec
from strategies.observation import model_inputs
from strategies.policy import ATTRIBUTION_OUTPUT, Q_OUTPUTS, Model
from training.dqn.onnx_branch import with_branch
from training.dqn.served import Served
from training.errors import TrainingError

TOLERANCE = 1e-5
"""Largest difference of ONNX Runtime and torch, in the learner's unit, per unit of 1 + |value|."""

CHECKED_ROWS = 1_000
"""Random observations compared, and as many real ones where there are so many; each in every position."""


def export_onnx(network: Served, n_features: int) -> bytes:
    """Return one self-contained ONNX model with a free batch axis.

    Inputs `features` (B, F) and `position` (B, 1); outputs `q_flat`, `q_long` (and `q_short`), each (B, 1), in log
    equity, and what else the network names; all float32. Where the network can be explained, also the input `explain`,
    false by default, and the output `attribution`, (B, G) where that is true.

    Raises:
        TrainingError: The exporter gave nothing.
    """
    model = _exported(network.eval(), n_features, network.output_names)
    explained = network.explained
    if explained is not None:
        model = with_branch(model, _exported(explained.eval(), n_features, (ATTRIBUTION_OUTPUT,)), ATTRIBUTION_OUTPUT)
    return bytes(model.SerializeToString(deterministic=True))


def _exported(network: torch.nn.Module, n_features: int, outputs: Sequence[str]) -> onnx.ModelProto:
    free = {0: torch.export.Dim.DYNAMIC}
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, n_features), torch.zeros(2, 1)),
            input_names=("features", "position"),
            output_names=outputs,
            dynamic_shapes=(free, free),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise TrainingError("the ONNX exporter returned no program: check the versions of torch and onnxscript")
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces with paths of the machine that exported
    model: onnx.ModelProto = program.model_proto
    return model


def check_equal(
    network: Served, policy: bytes, spec: FeatureSpec, features_TF: NDArray[np.float32], *, seed: int
) -> float:
    """Compare ONNX Runtime with torch on random and on real observations, in every position.

    Args:
        network: The torch side.
        policy: The ONNX model.
        spec: Features of the model.
        features_TF: Real observations, from which rows are drawn.
        seed: Of the draws.

    Returns:
        The largest difference relative to 1 + |value|, in the learner's unit.

    Raises:
        TrainingError: It exceeds `TOLERANCE`, or is not a number.
    """
    rng = np.random.default_rng(seed)
    low_F, high_F = spec.ranges.T
    drawn = rng.uniform(low_F, high_F, size=(CHECKED_ROWS, len(low_F)))
    real = features_TF[rng.permutation(len(features_TF))[:CHECKED_ROWS]]
    features = np.concatenate([drawn, real])
    model = Model(policy, spec, network.targets)
    worst = 0.0
    for position in sorted(network.targets):
        inputs = model_inputs(features, np.full(len(features), position))
        answer = model.run(inputs)
        served_TB = np.stack([answer[Q_OUTPUTS[target]] for target in network.targets])
        with torch.no_grad():
            outputs = network(torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["position"]))
            outputs = outputs[: len(network.targets)]
        trained_TB = torch.cat(outputs, dim=1).numpy().T
        unit = network.reward_scale
        worst = max(worst, float((np.abs(served_TB - trained_TB) * unit / (1.0 + np.abs(trained_TB) * unit)).max()))
    if not worst <= TOLERANCE:
        raise TrainingError(f"ONNX Runtime differs from torch by {worst:.2e}, at most {TOLERANCE:g} is allowed")
    return worst


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence two known messages of the exporter about itself; anything else is seen."""
    # torchvision's operators are in no network of ours
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch's own use of a name that torch deprecates
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)
