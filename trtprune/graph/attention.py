"""Attention, its mask, rotary embedding and the KV-cache write, each in the forms of :class:`Lowering`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtprune.graph.builder import Graph
from trtprune.graph.lowering import Form

__all__ = ["attention", "cache_mask", "cache_write", "mean_attention", "mean_query_row", "query_row", "rotary"]


def rotary(g: Graph, x: ir.Value, cos: ir.Value, sin: ir.Value, head_dim: int) -> ir.Value:
    """Rotate the two halves of each head: ``(a, b) → (a·cos − b·sin, b·cos + a·sin)``.

    Args:
        x: [B, heads, S, head_dim].
        cos: [B, S, head_dim / 2], as is ``sin``.
    """
    op = g.op
    if g.lowering.rotary == "op":
        return op.RotaryEmbedding(x, cos, sin)
    cos, sin = (g.memo(("heads axis", id(t)), lambda t=t: op.Unsqueeze(t, g.ints(1))) for t in (cos, sin))
    a, b = op.Split(x, g.ints(head_dim // 2, head_dim // 2), axis=-1, _outputs=2)
    return op.Concat(op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(b, cos), op.Mul(a, sin)), axis=-1)


def cache_mask(
    g: Graph, positions: ir.Value, capacity: ir.Value, window: int | None, form: Form | None = None
) -> ir.Value:
    """The cache slots that each query attends to: slot ``j`` for ``position - window < j ≤ position``.

    Args:
        positions: int64 [B, S], the cache slot of each query.
        capacity: int64 [1], slots in the cache.
        window: Length of a sliding window, or None.
        form: Form of the attention that takes the mask; None: the decoder's.

    Returns:
        The ``mask`` of :func:`attention`, [B, 1, S, capacity]: boolean, True = attend, for the operator;
        0 / lowest number of the dtype of the scores, to be added, for primitives.
    """
    op, int64 = g.op, ir.DataType.INT64
    slots = g.memo(
        "cache slots",
        lambda: op.Range(g.scalar(0, int64), op.Squeeze(capacity, g.ints(0)), g.scalar(1, int64)),
    )
    positions = op.Unsqueeze(positions, g.ints(1, 3))
    mask = op.LessOrEqual(slots, positions)
    if window is not None:
        mask = op.And(mask, op.Greater(slots, op.Sub(positions, g.scalar(window, int64))))
    form = form or g.lowering.attention
    if form.startswith("op"):
        return mask
    dtype = ir.DataType.FLOAT if form.endswith("float32") else g.dtype
    lowest = float(np.finfo(np.float16).min) if dtype == ir.DataType.FLOAT16 else float(np.finfo(np.float32).min)
    if dtype == ir.DataType.BFLOAT16:
        lowest = -3.0e38  # float32's lowest rounds to -inf in bfloat16
    return op.Where(mask, g.scalar(0.0, dtype), g.scalar(lowest, dtype))


def cache_write(g: Graph, cache: ir.Value, new: ir.Value, write_index: ir.Value, slots: ir.Value) -> ir.Value:
    """The cache with ``new`` written at each row's ``write_index``.

    Args:
        cache: [B, Hkv, capacity, head_dim].
        new: [B, Hkv, S, head_dim]; ``write_index[b] + S`` must not exceed the capacity.
        write_index: int64 [B].
        slots: int64 [B, S] = ``write_index[b] + s`` (for the primitive form).
    """
    op = g.op
    if g.lowering.cache == "op":
        return op.TensorScatter(cache, new, write_index, axis=2)
    index = op.Expand(op.Unsqueeze(slots, g.ints(1, 3)), op.Shape(new))
    return op.ScatterElements(cache, index, new, axis=2)


def attention(
    g: Graph,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    mask: ir.Value | None = None,
    form: Form,
) -> ir.Value:
    """Softmax attention; query head ``h`` reads key/value head ``h // (heads / kv_heads)``.

    Args:
        q: [B, heads, Sq, head_dim], not yet scaled.
        k: [B, kv_heads, Sk, head_dim], as is ``v``.
        mask: From :func:`cache_mask`, or None for full attention.
        form: Operator or primitives, in the compute dtype or between casts to float32 (chosen separately
            for tower and decoder).

    Returns:
        [B, heads, Sq, head_dim].
    """
    op = g.op
    dtype = ir.DataType.FLOAT if form.endswith("float32") else g.dtype
    if dtype != g.dtype:
        q, k, v = (op.Cast(x, to=int(dtype)) for x in (q, k, v))
    # Scaling q here and scale=1 below keeps the operator from scaling the whole key cache at each step.
    q = op.Mul(q, g.scalar(head_dim**-0.5, dtype))
    if form.startswith("primitives"):
        y = _primitives(g, q, k, v, mask, heads, kv_heads, head_dim, dtype)
    else:
        y = op.Attention(q, k, v, mask, scale=1.0) if mask is not None else op.Attention(q, k, v, scale=1.0)
    return y if dtype == g.dtype else op.Cast(y, to=int(g.dtype))


def _primitives(
    g: Graph,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: ir.DataType,
) -> ir.Value:
    """:func:`attention` written out, ``q`` scaled, all of ``dtype``."""
    op = g.op
    group = heads // kv_heads
    if group > 1:  # the query heads of one group side by side, so that keys and values are not repeated
        q = op.Reshape(q, g.ints(0, kv_heads, -1, head_dim))
    scores = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    if mask is not None:
        if group > 1:
            # [B, kv_heads, group·Sq, Sk]: repeating the mask along the rows is cheaper than a fifth dimension
            mask = g.memo(
                ("grouped mask", id(mask), group),
                lambda mask=mask: op.Concat(*([mask] * group), axis=2),
            )
        scores = op.Add(scores, mask)
    if dtype == ir.DataType.FLOAT:
        probabilities = op.Softmax(scores, axis=-1)
    else:
        probabilities = g.cast(op.Softmax(g.cast(scores, ir.DataType.FLOAT), axis=-1), dtype)
    out = op.MatMul(probabilities, v)
    return op.Reshape(out, g.ints(0, heads, -1, head_dim)) if group > 1 else out


def query_row(g: Graph, q: ir.Value, k: ir.Value, *, row: int, head_dim: int) -> ir.Value:
    """One query's attention row, the mean over heads, float32 [B, Sk]; no other row is computed.

    Args:
        q: [B, heads, S, head_dim], not yet scaled; ``k`` likewise.
        row: The query, e.g. 0 for the CLS token.
    """
    return _row(g, g.op.Slice(q, g.ints(row), g.ints(row + 1), g.ints(2)), k, head_dim)


def mean_query_row(g: Graph, q: ir.Value, k: ir.Value, *, head_dim: int) -> ir.Value:
    """The attention row of the mean of all queries, the mean over heads, float32 [B, Sk].

    Args:
        q: [B, heads, S, head_dim], not yet scaled; ``k`` likewise.
    """
    # Summed in float32: half precision would lose the small ones of some hundred queries.
    mean = g.op.ReduceMean(g.cast(q, ir.DataType.FLOAT), g.ints(2), keepdims=1)
    return _row(g, g.cast(mean, g.dtype), k, head_dim)


def _row(g: Graph, query: ir.Value, k: ir.Value, head_dim: int) -> ir.Value:
    """The attention of one query [B, heads, 1, head_dim], not yet scaled; the mean over heads, float32 [B, Sk]."""
    op = g.op
    query = op.Mul(query, g.scalar(head_dim**-0.5))
    scores = op.MatMul(query, op.Transpose(k, perm=[0, 1, 3, 2]))
    weights = op.Softmax(g.cast(scores, ir.DataType.FLOAT), axis=-1)
    return op.ReduceMean(weights, g.ints(1, 2), keepdims=0)


def mean_attention(g: Graph, q: ir.Value, k: ir.Value, *, head_dim: int) -> ir.Value:
    """The attention each key receives: the mean over heads and all queries, float32 [B, Sk].

    In primitives, with [B, heads, S, Sk] in memory: an attention operator returns no weights.

    Args:
        q: [B, heads, S, head_dim], not yet scaled; ``k`` likewise.
    """
    op, scale = g.op, head_dim**-0.5
    if g.lowering.products == "op":
        # The scale stands behind the product, not before it as in the layer's own attention: TensorRT-RTX 1.7, which
        # writes that one out in float32, makes one product of the two and then fails on it (Myelin, utils.cpp:3613).
        q, k = g.cast(q, ir.DataType.FLOAT), g.cast(k, ir.DataType.FLOAT)
        scores = op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), g.scalar(scale, ir.DataType.FLOAT))
    else:  # no float32 products (TensorRT-RTX on Turing): rounded like those of the layer itself
        scores = op.MatMul(op.Mul(q, g.scalar(scale)), op.Transpose(k, perm=[0, 1, 3, 2]))
        scores = g.cast(scores, ir.DataType.FLOAT)
    return op.ReduceMean(op.Softmax(scores, axis=-1), g.ints(1, 2), keepdims=0)
