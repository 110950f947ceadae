"""The numerical rank of an attention block, with operators that ONNX Runtime has.

SparseVLM's rank-adaptive ratio (https://arxiv.org/abs/2410.04417, section 3.3; first release of Gumpest/SparseVLMs)
takes ``torch.linalg.matrix_rank`` of the raters × visual tokens block: the number of singular values above
``max(R, N) · eps · sigma_max`` with float32's eps.  ONNX has no SVD.  This counts them without one:

    G = A Aᵀ (or Aᵀ A, whichever is smaller), in float64;  its eigenvalues are the squared singular values
    lambda_max by squaring G over and over: trace(G^(2^k))^(1 / 2^k) falls to it
    by Sylvester's law of inertia, G - tau · I has as many positive pivots as G has eigenvalues above tau

so the rank is the number of positive pivots of a symmetric elimination, one step per row.  The largest remaining
diagonal entry is the pivot, so that the elimination does not divide by almost 0.

The elimination needs float64: tau is about 5e-9 · lambda_max.  TensorRT has no float64; there the runtime
computes the rank on the host, with :func:`trtprune.runtime.rank.matrix_rank`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtprune.graph import Graph

__all__ = ["build_rank"]

SQUARINGS = 24
"""trace(G^(2^24))^(1 / 2^24) is within a factor of n^(1 / 2^24), 3e-7 for 200 rows, of the largest eigenvalue."""


def build_rank() -> Graph:
    """``attention`` float32 [raters, visual_tokens] → ``rank`` int64 [1]."""
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

    g = Graph("rank")
    op, f64, int64 = g.op, ir.DataType.DOUBLE, ir.DataType.INT64
    a = g.cast(g.input("attention", "float32", ["raters", "visual_tokens"]), f64)
    shape = op.Shape(a)
    size = op.Cast(op.ReduceMax(shape, g.ints(0), keepdims=0), to=int(f64))
    gram = op.MatMul(a, op.Transpose(a, perm=[1, 0]))
    rows = op.Squeeze(op.Shape(a, start=0, end=1), g.ints(0))
    index = op.Range(g.scalar(0, int64), rows, g.scalar(1, int64))
    eye = op.Equal(op.Unsqueeze(index, g.ints(0)), op.Unsqueeze(index, g.ints(1)))

    def number(value: float) -> ir.Value:
        return g.scalar(value, f64)

    zero, one = number(0.0), number(1.0)

    def trace(matrix: ir.Value) -> ir.Value:
        return op.ReduceSum(op.Where(eye, matrix, zero), g.ints(0, 1), keepdims=0)

    # log of the largest eigenvalue: each squared matrix is divided by its trace, which keeps it in range.
    tiny = number(1e-300)
    first = trace(gram)
    power, log = op.Div(gram, op.Max(first, tiny)), op.Log(op.Max(first, tiny))
    share = 1.0
    for _ in range(SQUARINGS):
        power = op.MatMul(power, power)
        step, share = trace(power), share / 2
        log = op.Add(log, op.Mul(op.Log(step), number(share)))
        power = op.Div(power, op.Max(step, tiny))
    largest = op.Exp(log)
    bound = op.Mul(size, number(float(np.finfo(np.float32).eps)))
    tau = op.Mul(op.Mul(bound, bound), largest)
    shifted = op.Sub(gram, op.Mul(op.Where(eye, one, zero), tau))

    def body(op: Any, step: ir.Value, go_on: ir.Value, m: ir.Value, left: ir.Value, found: ir.Value) -> list[Any]:
        # The pivot: the largest magnitude on the remaining diagonal.
        diagonal = op.ReduceSum(op.Where(eye, m, zero), g.ints(0), keepdims=0)
        size = op.Where(left, op.Abs(diagonal), number(-1.0))
        best = op.ArgMax(size, axis=0, keepdims=1)
        pivot = op.Gather(diagonal, best, axis=0)
        row = op.Gather(m, best, axis=0)
        safe = op.Where(op.Less(op.Abs(pivot), tiny), one, pivot)
        update = op.Div(op.MatMul(op.Transpose(row, perm=[1, 0]), row), safe)
        left = op.And(left, op.Not(op.Equal(index, best)))
        positive = op.Cast(op.Greater(pivot, zero), to=int(int64))
        return [
            op.Identity(go_on),
            op.Sub(m, update),
            left,
            op.Add(found, positive),
        ]

    square, line = ir.Shape(["raters", "raters"]), ir.Shape(["raters"])
    with g.scope("pivots"):
        graph = g.builder.subgraph(
            body,
            [
                ir.val("step", int64, []),
                ir.val("go_on", ir.DataType.BOOL, []),
                ir.val("matrix_in", f64, square),
                ir.val("left_in", ir.DataType.BOOL, line),
                ir.val("found_in", int64, ir.Shape([1])),
            ],
            [
                ir.val("go_on_out", ir.DataType.BOOL, []),
                ir.val("matrix_out", f64, square),
                ir.val("left_out", ir.DataType.BOOL, line),
                ir.val("found_out", int64, ir.Shape([1])),
            ],
            name="eliminate",
        )
    left = op.GreaterOrEqual(index, g.scalar(0, int64))
    _, _, found = op.Loop(rows, g.scalar(1, ir.DataType.BOOL), shifted, left, g.ints(0), body=graph, _outputs=3)
    # A block of zeros: tau is 0 and every pivot too.
    found = op.Where(op.Greater(first, zero), found, g.ints(0))
    g.output(found, "rank", "int64", [1])
    return g
