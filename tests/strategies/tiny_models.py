"""Tiny ONNX policies: linear in the features and the position, with known weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from strategies.bundle import Bundle, write_bundle
from strategies.features import FeatureSpec, Group

SPEC = FeatureSpec((Group("returns", "returns", {"horizons": [1, 4, 16], "unit": 16}),), 300.0)
WIDTH = len(SPEC.names)


def linear_model(
    weights: Mapping[str, np.ndarray], biases: Mapping[str, float] | None = None, width: int = WIDTH
) -> bytes:
    """One output per entry: features @ weights[:width] + position * weights[width] + bias, shape (batch,)."""
    nodes, initialisers, outputs = [], [], []
    nodes.append(helper.make_node("Concat", ["features", "position"], ["x"], axis=1))
    for name, weight in weights.items():
        columns = np.asarray(weight, dtype=np.float32).reshape(width + 1, -1)
        bias = np.full(columns.shape[1], (biases or {}).get(name, 0.0), dtype=np.float32)
        initialisers += [numpy_helper.from_array(columns, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
        nodes.append(helper.make_node("Gemm", ["x", f"{name}.w", f"{name}.b"], [f"{name}.y"]))
        if columns.shape[1] == 1:
            initialisers.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), f"{name}.shape"))
            nodes.append(helper.make_node("Reshape", [f"{name}.y", f"{name}.shape"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]))
        else:
            nodes.append(helper.make_node("Identity", [f"{name}.y"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns.shape[1]]))
    return _serialised(nodes, outputs, initialisers, width)


def _serialised(nodes: list[Any], outputs: list[Any], initialisers: list[Any], width: int) -> bytes:
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width]),
        helper.make_tensor_value_info("position", TensorProto.FLOAT, ["batch", 1]),
    ]
    graph = helper.make_graph(nodes, "policy", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


def first_feature(sign: float = 1.0) -> np.ndarray:
    """Weights that pass the first feature on."""
    weight = np.zeros(WIDTH + 1)
    weight[0] = sign
    return weight


def momentum_model(**more: np.ndarray) -> bytes:
    """Long is worth the first feature, flat nothing."""
    return linear_model({"q_flat": np.zeros(WIDTH + 1), "q_long": first_feature(), **more})


def logarithm_model() -> bytes:
    """Long is worth log(first feature + 100): NaN below -100, as a broken model's overflow would be."""
    constants = {
        "begin": np.array([0, 0], np.int64),
        "end": np.array([2**31 - 1, 1], np.int64),
        "flat": np.array([-1], np.int64),
        "hundred": np.array(100.0, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["features", "begin", "end"], ["first"]),
        helper.make_node("Add", ["first", "hundred"], ["shifted"]),
        helper.make_node("Log", ["shifted"], ["log"]),
        helper.make_node("Reshape", ["log", "flat"], ["q_long"]),
        helper.make_node("Reshape", ["position", "flat"], ["q_flat"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("q_flat", "q_long")]
    return _serialised(
        nodes, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()], WIDTH
    )


def make_bundle(directory: Path, policy: bytes | None = None, **changes: object) -> Bundle:
    arguments = {
        "policy": policy or momentum_model(),
        "feature_spec": SPEC,
        "data": {"feed": "recorded", "fingerprint": "0" * 64},
        "training": {"algorithm": "none"},
        "seeds": [1],
        "code_version": "test",
        "metrics": {},
        **changes,
    }
    return write_bundle(directory, **arguments)  # type: ignore[arg-type]  # a test may pass anything


def model_with_weights_outside(location: str) -> tuple[bytes, bytes]:
    """Return (a model whose long value reads its weights from the file `location`, the content of that file)."""
    shape = (WIDTH, 64)  # ONNX Runtime refuses small weights outside of a file for a reason of its own
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    content = np.ones(shape, dtype=np.float32).tobytes()
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        weights.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["weighted"]),
        helper.make_node("ReduceMax", ["weighted"], ["q_long"], axes=[1]),
        helper.make_node("Identity", ["position"], ["q_flat"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("q_long", "q_flat")]
    return _serialised(nodes, outputs, [weights], WIDTH), content
