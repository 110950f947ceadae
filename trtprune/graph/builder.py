"""One ONNX graph under construction, with weights referenced in place.

The weights are ONNX external data pointing into the checkpoint's own ``.safetensors`` files, so building the graphs
of a model reads no weight and costs the same for 100 M and 13 B parameters.  The location written into the file is
``weights/<file>``, relative to the folder of the ``.onnx`` file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnxscript import GraphBuilder

from trtprune._version import __version__
from trtprune.errors import CheckpointError, shown
from trtprune.graph.lowering import Lowering, Pieces
from trtprune.graph.tensors import QUANTIZED_OPSET, QuantizedMatrix, TensorLocation

__all__ = ["DOMAIN", "DTYPES", "Graph", "TensorLocation"]

DOMAIN = "trtprune"
"""Domain of the local functions."""

DTYPES: dict[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}

# The spellings of the safetensors header that can be a weight of a graph.
_SAFETENSORS_DTYPES: dict[str, ir.DataType] = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F64": ir.DataType.DOUBLE,
}

# (bits, unsigned) → type of the integers.
_INTEGERS: dict[tuple[int, bool], ir.DataType] = {
    (8, False): ir.DataType.INT8,
    (8, True): ir.DataType.UINT8,
    (4, False): ir.DataType.INT4,
    (4, True): ir.DataType.UINT4,
}

_PRODUCER = "trtprune"


class _Builder(GraphBuilder):
    """onnxscript's builder, for calls whose arguments by position are inputs and those by name attributes.

    The hook below finds out which is which from the operator's signature, which it makes anew for every node: an eighth
    of the time of a large graph.
    """

    def _partition_inputs_attributes(
        self, schema: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        return args, kwargs


class Graph:
    """A graph being built.

    Args:
        name: Component name, e.g. ``"decoder"``.
        dtype: Compute dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        lowering: How attention, norms and rotary embeddings are written.
        tensors: Weight key → place on disk.  Keys may differ from the names in the file (see
            ``models.weights``); a graph without weights needs none.
        quantized: Weight key → integers and scales, for the matrices that :meth:`matrix` takes from there instead.
        pieces: How lists are put in order that are too long for one TopK of the backend; None: none is.

    ``op`` creates nodes: ``g.op.MatMul(a, b)``; Python numbers become constants of the other operand's type.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: str = "float32",
        lowering: Lowering | None = None,
        tensors: Mapping[str, TensorLocation] | None = None,
        quantized: Mapping[str, QuantizedMatrix] | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.name = name
        self.pieces = pieces
        self.dtype_name = dtype
        self.dtype = DTYPES[dtype]
        self.lowering = lowering or Lowering()
        self.tensors: Mapping[str, TensorLocation] = tensors or {}
        self.quantized: Mapping[str, QuantizedMatrix] = quantized or {}
        self.opset = max(self.lowering.opset, QUANTIZED_OPSET if self.quantized else 0)
        graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": self.opset})
        self.builder = _Builder(graph)
        self.op = self.builder.op
        self._weights: dict[tuple[str, ir.DataType | None], ir.Value] = {}
        self._memo: dict[Any, Any] = {}
        self.doc_string = ""
        """The file's doc string, for people."""
        self.metadata: dict[str, str] = {}
        """The file's ``metadata_props``, for programs."""

    # -- inputs, outputs ------------------------------------------------------------------------------------

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input; string dimensions are symbolic."""
        return self.builder.input(name, DTYPES[dtype], list(shape))

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare ``value`` as the graph output ``name``, cast to ``dtype`` if it has another type."""
        value = self.cast(value, DTYPES[dtype])
        graph = self.builder.graph
        if value.producer() is None or value in graph.outputs:
            value = self.op.Identity(value)
        value.name = name
        value.type = ir.TensorType(DTYPES[dtype])
        value.shape = ir.Shape(list(shape))
        graph.outputs.append(value)
        return value

    @property
    def inputs(self) -> list[ir.Value]:
        return list(self.builder.graph.inputs)

    @property
    def outputs(self) -> list[ir.Value]:
        return list(self.builder.graph.outputs)

    # -- weights and constants ------------------------------------------------------------------------------

    def has_weight(self, key: str) -> bool:
        return key in self.tensors

    def weight(self, key: str, *, dtype: ir.DataType | None = None, raw: bool = False) -> ir.Value:
        """The checkpoint tensor ``key`` as a value of the compute dtype (or ``dtype``).

        Nothing is read: the initializer is external data.  Where the checkpoint's dtype differs, a Cast follows it,
        which runtimes fold when they load the graph; ``raw`` leaves the Cast out (for tables that are gathered
        from, where casting the rows is cheaper than casting the table).

        Raises:
            CheckpointError: if the checkpoint has no such tensor or it is not floating point.
        """
        if raw:
            dtype = None
        elif dtype is None:
            dtype = self.dtype
        if (key, dtype) in self._weights:
            return self._weights[key, dtype]
        if dtype is not None:
            value = self.cast(self.weight(key, raw=True), dtype)
        else:
            value = self._initializer(key)
        self._weights[key, dtype] = value
        return value

    def matrix(self, key: str) -> ir.Value:
        """The checkpoint's matrix ``key`` [out, in] as a value [in, out] of the compute dtype.

        It stays [out, in] as stored, with a Transpose that runtimes fold when they load the graph; or it is
        dequantised, where it is one of ``quantized``.  Its rows then may have another order, see :meth:`in_order_of`.

        Raises:
            CheckpointError: as :meth:`weight`.
        """
        make = self._dequantized if key in self.quantized else self._transposed
        return self.memo(("matrix", key), lambda: make(key))

    def _transposed(self, key: str) -> ir.Value:
        # The Cast stands last: numbers of two bytes are turned in half of the time and memory of those of four.
        return self.cast(self.op.Transpose(self.weight(key, raw=True), perm=[1, 0]), self.dtype)

    def _dequantized(self, key: str) -> ir.Value:
        q = self.quantized[key]
        kind = _INTEGERS[q.bits, q.zeros is not None]
        scale_dtype = _SAFETENSORS_DTYPES[q.scales.dtype]
        inputs = list(self._integers(key))
        if q.zeros is not None:
            inputs.append(self._external(q.zeros, kind, q.scales.shape))
        if q.block is None:
            value = self.op.DequantizeLinear(*inputs, axis=1)
        else:
            value = self.op.DequantizeLinear(*inputs, axis=0, block_size=q.block)
        value.type, value.shape = ir.TensorType(scale_dtype), ir.Shape(q.shape)
        return self.cast(value, self.dtype)

    def integers(self, key: str) -> tuple[ir.Value, ir.Value]:
        """The integers [in, out] and the scales of the quantised matrix ``key``, the scales in the compute dtype."""
        integers, scales = self._integers(key)
        return integers, self.cast(scales, self.dtype)

    def _integers(self, key: str) -> tuple[ir.Value, ir.Value]:
        """Integers and scales as they are stored."""
        q = self.quantized[key]
        kind = _INTEGERS[q.bits, q.zeros is not None]
        return self.memo(
            ("integers", key),
            lambda: (
                self._external(q.integers, kind, q.shape),
                self._external(q.scales, _SAFETENSORS_DTYPES[q.scales.dtype], q.scales.shape),
            ),
        )

    def in_order_of(self, key: str, x: ir.Value) -> ir.Value:
        """``x`` [..., in] with its features in the order of the rows of :meth:`matrix`."""
        order = self.quantized[key].order if key in self.quantized else None
        if order is None:
            return x
        # Matrices that read the same features often share their order.
        index = self.memo(("order", order.name), lambda: self._external(order, ir.DataType.INT64, order.shape))
        return self.memo(("in order", x, order.name), lambda: self.op.Gather(x, index, axis=-1))

    def _initializer(self, key: str) -> ir.Value:
        info = self.tensors.get(key)
        if info is None:
            raise CheckpointError(
                f"the checkpoint has no tensor {key!r}, which the {self.name} graph needs",
                hint="is config.json that of these weights?",
            )
        stored = _SAFETENSORS_DTYPES.get(info.dtype)
        if stored is None:
            raise CheckpointError(
                f"tensor {shown(info.name)} in {info.file} has dtype {info.dtype}",
                hint=f"weights must be {', '.join(_SAFETENSORS_DTYPES)}; quantised checkpoints are not supported",
            )
        return self._external(info, stored, info.shape)

    def _external(self, info: TensorLocation, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        tensor = ir.ExternalTensor(
            f"weights/{info.file}", info.offset, info.nbytes, dtype, shape=ir.Shape(shape), name=info.name
        )
        return self.builder.initializer(tensor, info.name, qualify=False)

    def constant(self, array: np.ndarray | Sequence[Any], name: str | None = None) -> ir.Value:
        """A small constant stored in the graph itself."""
        array = np.asarray(array)
        if name is None:
            name = f"const_{len(self.builder.graph.initializers)}"
        return self.builder.initializer(ir.tensor(array, name=name), name, qualify=False)

    def scalar(self, number: float, dtype: ir.DataType | None = None) -> ir.Value:
        """A constant of the compute dtype (or ``dtype``) without dimensions; equal ones are shared."""
        dtype = dtype or self.dtype
        return self.memo(
            ("scalar", number, dtype),
            lambda: self.constant(np.asarray(number, dtype.numpy()), f"scalar_{number!r}_{dtype.short_name()}"),
        )

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector constant; equal ones are shared."""
        return self.memo(
            ("ints", numbers),
            lambda: self.constant(np.asarray(numbers, np.int64), "ints_" + "_".join(map(str, numbers))),
        )

    def memo(self, key: Any, make: Any) -> Any:
        """``make()`` the first time, the same value later: for values that several layers share."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` as ``dtype``; no node if its type is known to be that already."""
        if value.dtype == dtype:
            return value
        return self.op.Cast(value, to=int(dtype))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes and values inside the block with ``name``."""
        self.builder.push_module(name)
        try:
            yield
        finally:
            self.builder.pop_module()

    # -- result ---------------------------------------------------------------------------------------------

    def model(self) -> ir.Model:
        """The finished model.  Names become unique; nothing is copied, so do not add to the graph afterwards."""
        for node in self.builder.graph.all_nodes():
            for prop in [p for p in node.metadata_props if p.startswith("pkg.onnxscript")]:
                del node.metadata_props[prop]
        model = ir.Model(
            self.builder.graph,
            ir_version=12 if self.opset >= 24 else 10,
            producer_name=_PRODUCER,
            producer_version=__version__,
            doc_string=self.doc_string or None,
            metadata_props=dict(self.metadata),
            functions=list(self.builder.functions.values()),
        )
        if self.builder.functions:
            self.builder.graph.opset_imports.setdefault(DOMAIN, 1)
        # Sub-graphs traced by the builder can reuse outer names, which ONNX Runtime refuses.
        ir_passes.NameFixPass()(model)
        return model

    def to_bytes(self, *, inline: bool = False) -> bytes:
        """The serialised ONNX model; external weights stay where they are.

        Args:
            inline: Replace calls of local functions by their bodies, for readers without local functions.
        """
        proto = ir.to_proto(self.model())
        if inline and proto.functions:
            from onnx import inliner

            proto = inliner.inline_local_functions(proto)
        return proto.SerializeToString()

    def save(self, path: str | Path, *, inline: bool = False) -> None:
        """Write the ONNX file; no weight is written.  ``inline`` as in :meth:`to_bytes`."""
        Path(path).write_bytes(self.to_bytes(inline=inline))
