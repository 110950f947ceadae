"""Attention of a few rows only, beside a fused attention: the input of a prune point inside the decoder."""

from __future__ import annotations

import onnx_ir as ir

from trtprune.graph.builder import Graph

__all__ = ["rater_attention"]


def rater_attention(
    g: Graph,
    q: ir.Value,
    k: ir.Value,
    index: ir.Value,
    *,
    group: int,
    head_dim: int,
    window: int | None,
    gathered: bool = False,
) -> ir.Value:
    """Softmax weights of some rows' queries for the tokens of the same call; O(R · S), not O(S²).

    Args:
        q: [B, heads, S, head_dim], rotated, not yet scaled.
        k: [B, heads / group, S, head_dim], rotated.
        index: int64 [B, R], the numbers of these rows, from 0 to S - 1.
        group: Number of query heads per key head.
        window: Length of a sliding window, or None.
        gathered: Whether ``q`` has only the R rows, [B, heads, R, head_dim].

    Returns:
        float32 [B, heads, R, S]; row ``r`` has weights for tokens up to ``index[r]`` and 0 behind.
    """
    op, int64 = g.op, ir.DataType.INT64
    rows = q
    if not gathered:
        rows = op.GatherND(op.Transpose(q, perm=[0, 2, 1, 3]), op.Unsqueeze(index, g.ints(-1)), batch_dims=1)
        rows = op.Transpose(rows, perm=[0, 2, 1, 3])
    rows = op.Mul(rows, g.scalar(head_dim**-0.5))
    if group > 1:  # [B, kv_heads, group · R, head_dim]: the heads of a group read the same keys
        rows = op.Reshape(rows, op.Concat(g.ints(0), op.Shape(k, start=1, end=2), g.ints(-1, head_dim), axis=0))
    scores = g.cast(op.MatMul(rows, op.Transpose(k, perm=[0, 1, 3, 2])), ir.DataType.FLOAT)
    if group > 1:
        tail = op.Concat(op.Shape(index, start=1, end=2), op.Shape(k, start=2, end=3), axis=0)
        scores = op.Reshape(scores, op.Concat(g.ints(0), op.Shape(q, start=1, end=2), tail, axis=0))
    length = op.Squeeze(op.Shape(k, start=2, end=3), g.ints(0))
    slots = op.Range(g.scalar(0, int64), length, g.scalar(1, int64))
    place = op.Unsqueeze(index, g.ints(1, 3))
    seen = op.LessOrEqual(slots, place)
    if window is not None:
        seen = op.And(seen, op.Greater(slots, op.Sub(place, g.scalar(window, int64))))
    scores = op.Where(seen, scores, g.scalar(-3.0e38, ir.DataType.FLOAT))
    return op.Softmax(scores, axis=-1)
