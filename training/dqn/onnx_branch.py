"""One ONNX model with a part that is computed only where it is asked for.

ONNX Runtime computes every node of a graph, whatever outputs are fetched. So the part stands in an `If` behind an
input that need not be given: a bool, false where nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper

from strategies.policy import EXPLAIN_INPUT
from training.errors import TrainingError

_PREFIX = f"{EXPLAIN_INPUT}."


def with_branch(main: onnx.ModelProto, part: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return `main` with one more output, that of `part`; without rows where it is not asked for.

    Args:
        main: Changed in place.
        part: Has the inputs of `main` and one output, (B, G) float32; weights that both hold are stored once.
        output: Name of the new output.
    """
    graph, branch = main.graph, part.graph
    renamed = _stored_once(graph, branch.initializer)
    kept = {one.name for one in graph.input}
    names = {name for node in branch.node for name in node.output} | {one.name for one in branch.initializer}
    renamed |= {name: _PREFIX + name for name in names - kept - renamed.keys()}
    for node in branch.node:
        _rename(node, renamed)
    for tensor in branch.initializer:
        if renamed[tensor.name].startswith(_PREFIX):
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = renamed[tensor.name]
    (told,) = branch.output
    groups = told.type.tensor_type.shape.dim[1].dim_value
    asked = helper.make_graph(list(branch.node), _PREFIX + "asked", [], [_rows(renamed[told.name], groups)])
    nothing = f"{_PREFIX}nothing"
    empty = helper.make_node("Constant", [], [nothing], value=_empty(groups))
    silent = helper.make_graph([empty], _PREFIX + "silent", [], [_rows(nothing, groups)])
    graph.input.append(helper.make_tensor_value_info(EXPLAIN_INPUT, TensorProto.BOOL, []))
    # an input that is also stored has a default
    graph.initializer.append(helper.make_tensor(EXPLAIN_INPUT, TensorProto.BOOL, [], [False]))
    graph.node.append(helper.make_node("If", [EXPLAIN_INPUT], [output], then_branch=asked, else_branch=silent))
    graph.output.append(_rows(output, groups))
    onnx.checker.check_model(main)
    return main


def _stored_once(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> dict[str, str]:
    """Return the names under which a graph stores the same tensors already."""
    stored = {_content(one): one.name for one in graph.initializer}
    return {one.name: stored[_content(one)] for one in tensors if _content(one) in stored}


def _content(tensor: onnx.TensorProto) -> bytes:
    unnamed = onnx.TensorProto()
    unnamed.CopyFrom(tensor)
    for field in ("name", "doc_string", "metadata_props"):
        unnamed.ClearField(field)
    return bytes(unnamed.SerializeToString(deterministic=True))


def _rename(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    node.name = _PREFIX + (node.name or node.output[0])
    node.input[:] = [renamed.get(name, name) for name in node.input]
    node.output[:] = [renamed.get(name, name) for name in node.output]
    if any(attribute.HasField("g") for attribute in node.attribute):
        raise TrainingError(
            f"node {node.name} of the explanation holds a graph of its own, which cannot be renamed: check the "
            "versions of torch and onnxscript"
        )


def _rows(name: str, groups: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, groups])


def _empty(groups: int) -> onnx.TensorProto:
    return helper.make_tensor("none", TensorProto.FLOAT, [0, groups], [])
