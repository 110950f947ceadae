"""Points of a graph with the same meaning in every lowering: the outputs of the model's modules.

Names of tensors differ between lowerings and dtypes; names of weights do not.  So a tensor is identified by its
weights: the result of the MatMul with ``…layers.3.self_attn.q_proj.weight`` is the point
``layers.3.self_attn.q_proj`` in every build, and the output of the module of that name in transformers.  The residual
stream is identified by the layer before it: ``layers.3``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["TensorPoint", "between", "find_points", "mark", "module_label"]

# Operators that keep a weight's identity: they move or unpack its numbers and do not mix them with data.
CARRIERS = ("Transpose", "Cast", "Identity", "DequantizeLinear", "Reshape", "Unsqueeze", "Squeeze")
# Operators that apply a module's weight; the sum with a table (position embeddings) is not a module's whole output.
APPLIERS = ("MatMul", "Gemm", "Conv", "Mul", "Gather", "LayerNormalization", "RMSNormalization")
LAYER = re.compile(r"(?:^|\.)(?:layers|layer)\.(\d+)(?:\.(.+))?$")


@dataclass(frozen=True)
class TensorPoint:
    """A tensor of one graph.

    Attributes:
        label: Its name in every graph of the model.
        tensor: Its name in this graph.
        index: Index of its node; nodes are in topological order.
        scope: The builder's scope: ``embeddings``, ``layers.3``, or empty.
        coarse: Whether it is the end of a scope, or outside of all.
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


def find_points(graph: onnx.GraphProto) -> list[TensorPoint]:
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
            # A MatMul with the embedding table is the output projection of a model with tied weights.
            tied = "embed_tokens" in module and node.op_type == "MatMul"
            label = "lm_head" if tied else module_label(module)
            if parameter == "weight" and node.op_type in APPLIERS:
                applied.add(label)
            if parameter == "weight" or (parameter == "bias" and label in applied):
                modules[label] = (index, node.output[0], scope)
    # hidden_states[0] of transformers is the input of the first layer, whatever the parts of the tower's embeddings.
    points = [TensorPoint(scope, tensor, index, scope, True) for scope, (index, tensor) in ends.items()]
    points += [
        TensorPoint(label, tensor, index, scope, not scope)
        for label, (index, tensor, scope) in modules.items()
        if label in applied
    ]
    return sorted(points, key=lambda point: (point.index, not point.coarse))


def between(
    ours: onnx.GraphProto, theirs: onnx.GraphProto, first: tuple[int, int], last: tuple[int, int]
) -> list[tuple[str, str]]:
    """Corresponding tensors of the nodes behind ``first`` and up to ``last`` (indices in either graph).

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
    """Makes tensors outputs of a model, always in float32 (NumPy has no bfloat16).

    Args:
        proto: The model, changed in place.
        tensors: Names of inner tensors.
        only: Whether the model's own outputs are dropped, so that only the tensors are computed.

    Returns:
        Tensor → name of its output.
    """
    import onnx

    shown = {name: f"probe/{name}" for name in dict.fromkeys(tensors)}
    if only:
        del proto.graph.output[:]
    for name, output in shown.items():
        proto.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
        # Without a shape, which runtimes infer.
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return shown


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _sources(graph: onnx.GraphProto) -> tuple[dict[str, str], list[bool]]:
    """The weight behind each value that is a weight, and for each node whether it computes on data."""
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
