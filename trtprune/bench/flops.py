"""Floating-point operations of a graph, counted from the shapes of a run.

Products are counted (MatMul, Gemm, Conv, Attention): two operations per multiply-and-add.  All else is ignored: at the
width of a language model it is less than a thousandth, and differs between runtimes.  Attention counts as an operator
that ignores the mask: all queries against all keys.

Shapes come from ONNX's own inference over the graph with its symbolic dimensions replaced by numbers; where a shape
depends on arithmetic it cannot follow (how many tokens a pruner recycles), the graph is run once in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.errors import EngineDirError

if TYPE_CHECKING:
    from trtprune.engine_dir import EngineDir

__all__ = ["COUNTS", "Counted", "count_chain", "count_flops", "count_products"]

Shape = tuple[int, ...]
COUNTED = ("Attention", "Conv", "Gemm", "MatMul")
COUNTS = ("keep", "recycled", "merged")
"""Inputs with values that are shapes."""


@dataclass(frozen=True)
class Counted:
    """A graph with numbers instead of its symbolic dimensions.

    Attributes:
        model: The ``onnx.ModelProto``, local functions inlined.
        shapes: Shapes of its tensors; None if unknown.
        kinds: Element types of its tensors, ONNX's numbers.
        products: Each product's node, and its number of operations.
    """

    model: Any
    shapes: dict[str, Shape | None]
    kinds: dict[str, int]
    products: list[tuple[Any, int]]

    @property
    def flops(self) -> int:
        """Operations of the whole graph."""
        return sum(count for _, count in self.products)


def count_flops(model: Any, dims: Mapping[str, int], root: Path | None = None) -> dict[str, int]:
    """Operations by operator type; arguments and errors as for :func:`count_products`."""
    found: dict[str, int] = dict.fromkeys(COUNTED, 0)
    for node, count in count_products(model, dims, root).products:
        found[node.op_type] += count
    return {kind: count for kind, count in found.items() if count}


def count_products(model: Any, dims: Mapping[str, int], root: Path | None = None) -> Counted:
    """The products of a graph, and the operations of each.

    Args:
        model: ``onnx.ModelProto``, which is not changed.
        dims: A number for each symbolic dimension of its inputs, and for ``keep``, ``recycled`` and ``merged``.
        root: The folder of its ``.onnx`` file, needed only if the graph must be run.

    Raises:
        EngineDirError: for a dimension without a number, or a product whose shapes cannot be inferred.
    """
    import onnx
    from onnx import inliner, shape_inference

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    values = _shape_inputs(fixed, dims)
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                if dim.dim_param not in dims:
                    raise EngineDirError(f"{fixed.graph.name}: no number for dimension '{dim.dim_param}'")
                dim.dim_value = dims[dim.dim_param]
    for value in [*fixed.graph.output, *fixed.graph.value_info]:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    for tensor in values:
        fixed.graph.initializer.append(tensor)
    fixed = inliner.inline_local_functions(fixed)
    fixed = shape_inference.infer_shapes(fixed, data_prop=True)
    typed = [*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info]
    shapes = {v.name: _shape(v) for v in typed} | {t.name: tuple(t.dims) for t in fixed.graph.initializer}
    kinds = {v.name: v.type.tensor_type.elem_type for v in typed}
    kinds |= {t.name: t.data_type for t in fixed.graph.initializer}
    products = [node for node in fixed.graph.node if node.op_type in COUNTED]
    unknown = {name for node in products for name in _operands(node) if shapes.get(name) is None}
    if unknown:
        shapes |= _run(fixed, sorted(unknown), shapes, root)
    return Counted(fixed, shapes, kinds, [(node, _node(node, shapes)) for node in products])


def count_chain(made: EngineDir, dims: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Operations of components of an engine directory.

    Args:
        made: The directory.
        dims: Component → numbers for its symbolic dimensions.
    """
    paths = {name: made.path(made.component(name).onnx) for name in dims}
    return {name: sum(count_flops(_read(paths[name]), d, paths[name].parent).values()) for name, d in dims.items()}


def _read(path: Path) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _shape_inputs(model: Any, dims: Mapping[str, int]) -> list[Any]:
    """``keep`` and similar inputs as constants, because their values are shapes."""
    import numpy as np
    from onnx import numpy_helper

    found = []
    for value in list(model.graph.input):
        if value.name in COUNTS:
            if value.name not in dims:
                raise EngineDirError(f"{model.graph.name}: no number for '{value.name}'")
            found.append(numpy_helper.from_array(np.array([dims[value.name]], np.int64), value.name))
            model.graph.input.remove(value)
    return found


def _shape(value: Any) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return None if -1 in shape else shape


def _operands(node: Any) -> list[str]:
    """The tensors whose shapes decide the operations of a product."""
    return [*node.input[: 3 if node.op_type == "Attention" else 2], node.output[0]]


def _run(model: Any, names: Sequence[str], shapes: Mapping[str, Shape | None], root: Path | None) -> dict[str, Shape]:
    """The shapes of tensors, from running the graph on random inputs."""
    import numpy as np
    import onnx

    from trtprune.backends.external import located  # before onnxruntime: its package disables usage reports
    import onnxruntime as ort  # isort: skip

    for name in names:
        if name not in {value.name for value in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    rng, feeds = np.random.default_rng(0), {}
    given = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in given:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            # Zeros are valid indices and positions; other inputs are any numbers.
            size = shapes[value.name] or ()
            array = np.zeros(size, kind) if kind.kind in "iub" else rng.random(size).astype(kind)
            feeds[value.name] = array
    try:
        content = model.SerializeToString()
        if root is not None:
            content, folder = located(content, root)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found = session.run(list(names), feeds)
    except Exception as error:
        why = str(error).strip().splitlines()[0]
        raise EngineDirError(f"{model.graph.name}: shapes are not known, and it does not run: {why}") from None
    return {name: tuple(array.shape) for name, array in zip(names, found, strict=True)}


def _node(node: Any, shapes: Mapping[str, Shape | None]) -> int:
    taken = [shapes.get(name) or () for name in _operands(node)]
    first, second, out = taken[0], taken[1], taken[-1]
    if node.op_type == "Attention":  # q [B, H, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv]
        batch, heads, queries, width = first
        return 2 * batch * heads * queries * second[2] * (width + taken[2][3])
    if node.op_type == "Conv":  # w [M, C / group, …]
        return 2 * math.prod(out) * math.prod(second[1:])
    inner = first[-1]
    if node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = first[0]
    return 2 * math.prod(out) * inner
