"""The shared part of methods that merge tokens: means of rows, once in NumPy and once as graph nodes.

A row of features that is not finite is in no mean: it would make the whole mean NaN, and in a matrix product every
other mean as well.  The mean of no rows is 0.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from trtprune.pruning import ops

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["half_up", "means", "write_gather", "write_means"]


def half_up(share: float) -> tuple[int, int, int]:
    """a, b, c with round(share · K) = (a · K + b) // c, halves up; ``share`` as a fraction of at most 10000ths."""
    ratio = Fraction(str(share)).limit_denominator(10_000)
    return 2 * ratio.numerator, ratio.denominator, 2 * ratio.denominator


def means(members: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [P, D] and numbers [P, 1] of bool ``members`` [P, M] of float32 ``rows`` [M, D]."""
    import numpy as np

    safe, _, good = ops.norms(rows)
    weights = (members & good).astype(np.float32)
    count = weights.sum(axis=1, keepdims=True, dtype=np.float32)
    return (weights @ safe) / np.maximum(count, np.float32(1)), count


def write_means(g: Graph, members: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """:func:`means` for bool [batch, P, M] and [batch, M, D]: float32 [batch, P, D] and [batch, P, 1]."""
    import onnx_ir as ir

    op = g.op
    safe, _, good = ops.write_norms(g, rows)
    weights = op.Cast(op.And(members, op.Transpose(good, perm=[0, 2, 1])), to=int(ir.DataType.FLOAT))
    count = op.ReduceSum(weights, g.ints(2), keepdims=1)
    if g.lowering.products == "op":
        total = op.MatMul(weights, safe)
    else:
        total = op.ReduceSum(
            op.Mul(op.Unsqueeze(weights, g.ints(3)), op.Unsqueeze(safe, g.ints(1))), g.ints(2), keepdims=0
        )
    return op.Div(total, op.Max(count, ops.f32(g, 1.0))), count


def write_gather(g: Graph, rows: ir.Value, indices: ir.Value) -> ir.Value:
    """Rows [batch, P, D] of [batch, M, D] by int64 [batch, P]."""
    return g.op.GatherND(rows, g.op.Unsqueeze(indices, g.ints(-1)), batch_dims=1)
