"""Building blocks of more than one node: linear layers, norms, activations, top-k gather.

All functions take the :class:`Graph` first and return a value of the compute dtype unless they say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import build_function

from trtprune.errors import CheckpointError
from trtprune.graph.builder import DOMAIN, Graph
from trtprune.graph.int8 import int8_product
from trtprune.graph.topk import top

__all__ = [
    "ACTIVATIONS",
    "PLUGIN_ATTRIBUTES",
    "activation",
    "columns",
    "layer_norm",
    "linear",
    "merge_heads",
    "product",
    "rms_norm",
    "split_heads",
    "topk_gather",
]


PLUGIN_ATTRIBUTES: dict[str, Any] = {
    "plugin_namespace": DOMAIN,
    "plugin_version": "1",
    "tensorrt_plugin_shape_input_indices": [2],
}
"""Attributes of ``TopKGather`` for TensorRT's parser: the plugin to take if it is registered (otherwise the function's
body), and that ``keep`` is an input whose value decides a shape.  Other readers ignore them."""


def linear(g: Graph, x: ir.Value, key: str, *, bias: bool) -> ir.Value:
    """``x @ W.T (+ b)`` with ``{key}.weight`` [out, in] and ``{key}.bias`` [out] of the checkpoint.

    The weight may be quantised, see :meth:`Graph.matrix`.
    """
    y = product(g, x, f"{key}.weight")
    return g.op.Add(y, g.weight(f"{key}.bias")) if bias else y


def product(g: Graph, x: ir.Value, key: str, *, exact: bool = False) -> ir.Value:
    """``x @ W.T`` with the checkpoint's matrix ``key`` [out, in], in whatever form it is stored.

    Args:
        exact: Whether ``x`` is not rounded, whatever the lowering says of activations.
    """
    x = g.in_order_of(key, x)
    quantized = g.quantized.get(key)
    if g.lowering.activations == "int8" and not exact and quantized is not None and quantized.int8_by_channel:
        return int8_product(g, x, key)
    return g.op.MatMul(x, g.matrix(key))


def split_heads(g: Graph, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """[B, S, heads * head_dim] → [B, heads, S, head_dim]."""
    return g.op.Transpose(g.op.Reshape(x, g.ints(0, 0, heads, head_dim)), perm=[0, 2, 1, 3])


def merge_heads(g: Graph, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """[B, heads, S, head_dim] → [B, S, heads * head_dim]."""
    return g.op.Reshape(g.op.Transpose(x, perm=[0, 2, 1, 3]), g.ints(0, 0, heads * head_dim))


def layer_norm(g: Graph, x: ir.Value, key: str, *, eps: float) -> ir.Value:
    """LayerNorm over the last axis with ``{key}.weight`` and ``{key}.bias``; the reduction is float32."""
    weight, bias = g.weight(f"{key}.weight"), g.weight(f"{key}.bias")
    op = g.op
    if g.lowering.norm == "op":
        return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps, stash_type=1)
    x = g.cast(x, ir.DataType.FLOAT)
    centred = op.Sub(x, op.ReduceMean(x, g.ints(-1), keepdims=1))
    variance = op.ReduceMean(op.Mul(centred, centred), g.ints(-1), keepdims=1)
    normed = op.Div(centred, op.Sqrt(op.Add(variance, g.scalar(eps, ir.DataType.FLOAT))))
    return op.Add(op.Mul(g.cast(normed, g.dtype), weight), bias)


def rms_norm(g: Graph, x: ir.Value, key: str, *, eps: float) -> ir.Value:
    """RMSNorm over the last axis with ``{key}.weight``.

    As in transformers the reduction is float32 and the result is cast back before the weight is applied.
    """
    weight = g.weight(f"{key}.weight")
    op = g.op
    if g.lowering.norm == "op":
        return op.RMSNormalization(x, weight, axis=-1, epsilon=eps, stash_type=1)
    x = g.cast(x, ir.DataType.FLOAT)
    variance = op.ReduceMean(op.Mul(x, x), g.ints(-1), keepdims=1)
    normed = op.Div(x, op.Sqrt(op.Add(variance, g.scalar(eps, ir.DataType.FLOAT))))
    return op.Mul(g.cast(normed, g.dtype), weight)


def _gelu(g: Graph, x: ir.Value) -> ir.Value:
    return g.op.Gelu(x)


def _gelu_tanh(g: Graph, x: ir.Value) -> ir.Value:
    return g.op.Gelu(x, approximate="tanh")


def _gelu_new(g: Graph, x: ir.Value) -> ir.Value:
    # The formula of gelu_pytorch_tanh written out, separately because transformers computes it this way.
    cube = g.op.Mul(g.op.Mul(x, x), x)
    inner = g.op.Add(x, g.op.Mul(cube, g.scalar(0.044715)))
    tanh = g.op.Tanh(g.op.Mul(inner, g.scalar(math.sqrt(2.0 / math.pi))))
    return g.op.Mul(g.op.Mul(x, g.scalar(0.5)), g.op.Add(tanh, g.scalar(1.0)))


def _quick_gelu(g: Graph, x: ir.Value) -> ir.Value:
    return g.op.Mul(x, g.op.Sigmoid(g.op.Mul(x, g.scalar(1.702))))


def _silu(g: Graph, x: ir.Value) -> ir.Value:
    return g.op.Mul(x, g.op.Sigmoid(x))


ACTIVATIONS: dict[str, Callable[[Graph, ir.Value], ir.Value]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": lambda g, x: g.op.Relu(x),
    "silu": _silu,
    "swish": _silu,
}
"""transformers' activation names (``ACT2FN``) that have a graph."""


def activation(g: Graph, x: ir.Value, name: str) -> ir.Value:
    """Apply the activation that transformers calls ``name``.

    Raises:
        CheckpointError: for a name outside :data:`ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise CheckpointError(f"unsupported activation {name!r}", hint=f"supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name](g, x)


def columns(g: Graph, x: ir.Value, begin: int, stop: int) -> ir.Value:
    """Columns ``begin`` to ``stop`` of the last axis."""
    return g.op.Slice(x, g.ints(begin), g.ints(stop), g.ints(-1))


def topk_gather(g: Graph, scores: ir.Value, features: ir.Value, keep: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The ``keep`` best-scored rows of ``features``, in their original order.

    A call of the local function ``trtprune::TopKGather``: runtimes inline its body, and the plugin of that name
    (``plugins/``) takes its place where TensorRT has it registered.

    Args:
        scores: float [batch, N]; equal scores are taken in index order, +0 equals -0, and NaN counts as -inf.
        features: [batch, N, D].
        keep: int64 [1], 1 ≤ keep ≤ N.

    Returns:
        features [batch, keep, D] and their indices int64 [batch, keep], ascending.
    """

    def body(op: Any, scores: ir.Value, features: ir.Value, keep: ir.Value) -> list[ir.Value]:
        # float32 holds every float16 and bfloat16 exactly, so one body serves all three.
        scores = op.Cast(scores, to=int(ir.DataType.FLOAT))
        lowest = op.Constant(value=ir.tensor(-np.inf, dtype=ir.DataType.FLOAT))
        _, best = top(g, op, op.Where(op.IsNaN(scores), lowest, scores), keep)
        indices, _ = top(g, op, best, keep, largest=False, dtype=np.int64)
        return [op.GatherND(features, op.Unsqueeze(indices, [-1]), batch_dims=1), indices]

    function = g.memo(
        "TopKGather",
        lambda: build_function(
            body,
            [ir.Value(name=n) for n in ("scores", "features", "keep")],
            domain=DOMAIN,
            name="TopKGather",
            opset_imports={"": g.lowering.opset},
        ),
    )
    kept, indices = g.builder.call(function, scores, features, keep, **PLUGIN_ATTRIBUTES)
    kept.type, indices.type = features.type, ir.TensorType(ir.DataType.INT64)
    return kept, indices
