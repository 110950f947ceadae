"""Points of a graph that mean the same in every way it is written: the outputs of the model's modules.

Names of tensors differ from one lowering or dtype to the next; names of weights do not.  So a tensor is known by the
weights it was made with: the result of the MatMul with ``…layers.3.self_attn.q_proj.weight`` is the point
``layers.3.self_attn.q_proj`` in every build, and the output of the module of that name in transformers.  The residual
stream is known by the layer it leaves: ``layers.3``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["Point", "between", "find_points", "mark", "module_label"]

# A weight keeps its identity through these; they move or unpack numbers and mix them with no data.
CARRIERS = ("Transpose", "Cast", "Identity", "DequantizeLinear", "Reshape", "Unsqueeze", "Squeeze")
# A module is what applies its weight; an added table (position embeddings) is not the module's whole output.
APPLIERS = ("MatMul", "Gemm", "Conv", "Mul", "Gather", "LayerNormalization", "RMSNormalization")
LAYER = re.compile(r"(?:^|\.)(?:layers|layer)\.(\d+)(?:\.(.+))?$")


@dataclass(frozen=True)
class Point:
    """A tensor of one graph.

    Attributes:
        label: What it is, in every graph of the model.
        tensor: Its name in this graph.
        index: Of the node that makes it; nodes are in topological order.
        scope: Of the builder: ``embeddings``, ``layers.3``, or empty.
        coarse: Whether it ends a scope, or lies outside of all.
    """

    label: str
    tensor: str
    index: int
    scope: str
    coarse: bool


def module_label(path: str) -> str:
    """``model.vision_tower.encoder.layers.3.mlp.fc1`` → ``layers.3.mlp.fc1``; outside of layers the last name."""
    found = LAYER.search(path)
    if found is None:
        return path.rpartition(".")[2]
    return f"layers.{found[1]}" + (f".{found[2]}" if found[2] else "")


def find_points(graph: onnx.GraphProto) -> list[Point]:
    """The points of a graph in topological order."""
    weights, data = _sources(graph)
    ends: dict[str, tuple[int, str]] = {}
    modules: dict[str, tuple[int, str, str]] = {}
    applied: set[str] = set()
    for index, node in enumerate(graph.node):
        if not data[index]:
            continue
        scope = _scope(node.name)
        if scope:
            ends[scope] = (index, node.output[0])
        for name in node.input:
            if name not in weights:
                continue
            module, _, parameter = weights[name].rpartition(".")
            # The embedding table read by a MatMul is the output projection of a model with tied weights.
            tied = "embed_tokens" in module and node.op_type == "MatMul"
            label = "lm_head" if tied else module_label(module)
            if parameter == "weight" and node.op_type in APPLIERS:
                applied.add(label)
            if parameter == "weight" or (parameter == "bias" and label in applied):
                modules[label] = (index, node.output[0], scope)
    # hidden_states[0] of transformers is the input of the first layer, whatever the tower's embeddings consist of.
    points = [Point(scope, tensor, index, scope, True) for scope, (index, tensor) in ends.items()]
    points += [
        Point(label, tensor, index, scope, not scope)
        for label, (index, tensor, scope) in modules.items()
        if label in applied
    ]
    return sorted(points, key=lambda point: (point.index, not point.coarse))


def between(
    ours: onnx.GraphProto, theirs: onnx.GraphProto, first: tuple[int, int], last: tuple[int, int]
) -> list[tuple[str, str]]:
    """Tensors that correspond, among the nodes behind ``first`` and up to ``last`` (indices in either graph).

    Operators are matched in order, so that graphs that differ by an edit still match around it.

    Returns:
        Pairs of names, in topological order of ``ours``.
    """
    left = _computing(ours, first[0] + 1, last[0] + 1)
    right = _computing(theirs, first[1] + 1, last[1] + 1)
    matcher = difflib.SequenceMatcher(
        None, [node.op_type for node in left], [node.op_type for node in right], autojunk=False
    )
    pairs = []
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            pairs.append((left[block.a + i].output[0], right[block.b + i].output[0]))
    return pairs


def mark(proto: onnx.ModelProto, tensors: Iterable[str], *, only: bool = True) -> dict[str, str]:
    """Makes tensors outputs of a model, in float32 whatever they are (NumPy has no bfloat16).

    Args:
        proto: Changed in place.
        tensors: Names of inner tensors.
        only: Drop the model's own outputs, so that what the tensors do not need is not computed.

    Returns:
        Tensor → name of the output that shows it.
    """
    import onnx

    shown = {name: f"probe/{name}" for name in dict.fromkeys(tensors)}
    if only:
        del proto.graph.output[:]
    for name, output in shown.items():
        proto.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
        # Without a shape: runtimes infer it.
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return shown


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _sources(graph: onnx.GraphProto) -> tuple[dict[str, str], list[bool]]:
    """The weight behind each value that is one, and for each node whether it computes on data."""
    constants = {tensor.name for tensor in graph.initializer}
    weights = {name: name for name in constants}
    data = []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        constant = bool(inputs) and all(name in constants for name in inputs)
        data.append(not constant and node.op_type not in ("Constant", "Shape"))
        if constant or node.op_type == "Constant":
            constants.update(node.output)
        if constant and node.op_type in CARRIERS and inputs[0] in weights:
            weights[node.output[0]] = weights[inputs[0]]
    return weights, data


def _computing(graph: onnx.GraphProto, first: int, stop: int) -> Sequence[onnx.NodeProto]:
    _, data = _sources(graph)
    return [graph.node[i] for i in range(first, stop) if data[i] and graph.node[i].op_type != "Cast"]
