"""Facts of an ONNX file that need no weights: its operators, and the files of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import EngineDirError

if TYPE_CHECKING:
    import onnx

__all__ = ["count_operators", "graph_digest", "read_graph", "weight_locations"]


def read_graph(path: Path) -> onnx.ModelProto:
    """The model in ``path``, without its weights.

    Raises:
        EngineDirError: if it cannot be read.
    """
    import onnx

    try:
        # Whatever its name: onnx has other forms for other endings.
        return onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise EngineDirError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check the file's permissions"
        ) from None
    except Exception:  # protobuf's own classes; its words depend on its version
        raise EngineDirError(f"{path}: not a readable ONNX graph", hint="build it again") from None


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """The number of uses of each operator, in the graph, its functions and the bodies of loops."""
    counts: dict[str, int] = {}
    for node in _nodes(model):
        name = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def weight_locations(model: onnx.ModelProto) -> set[str]:
    """The files of a model's tensors, relative to the folder of its ``.onnx`` file."""
    import onnx

    external = onnx.TensorProto.EXTERNAL
    found = set()
    for tensor in _tensors(model):
        # Some readers use the one, some the other.
        if tensor.data_location == external or tensor.external_data:
            found |= {_text(entry.value) for entry in tensor.external_data if _text(entry.key) == "location"}
    return found


def _text(value: str | bytes) -> str:
    """A text of a graph; protobuf gives bytes for one that is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def graph_digest(path: Path) -> str:
    """A digest of a graph's computation: of all but its doc string, its producer and its origin.

    Raises:
        EngineDirError: if the file cannot be read.
    """
    model = read_graph(path)
    for name in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(name)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """The graph, functions, and the bodies inside them."""
    stack: list[Any] = [model.graph, *model.functions]
    for info in model.training_info:
        stack += [info.initialization, info.algorithm]
    while stack:
        graph = stack.pop()
        yield graph
        for attribute in _attributes(graph):
            if attribute.HasField("g"):
                stack.append(attribute.g)
            stack.extend(attribute.graphs)


def _attributes(graph: Any) -> Iterator[onnx.AttributeProto]:
    """Those of the nodes, and the defaults of a function's own."""
    yield from getattr(graph, "attribute_proto", ())
    for node in graph.node:
        yield from node.attribute


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())  # a function has no initializers
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in _attributes(graph):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*sparse_tensors, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
