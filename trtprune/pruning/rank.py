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
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["build_rank"]

SQUARINGS = 24
"""trace(G^(2^24))^(1 / 2^24) is within a factor of n^(1 / 2^24), 3e-7 for 200 rows, of the largest eigenvalue."""
TINY = 1e-300
"""The divisor that stands for 0."""


def build_rank() -> Graph:
    """The graph: ``attention`` float32 [raters, visual_tokens] → ``rank`` int64 [1]."""
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

    g = Graph("rank")
    op, f64, int64 = g.op, ir.DataType.DOUBLE, ir.DataType.INT64
    a = g.cast(g.input("attention", "float32", ["raters", "visual_tokens"]), f64)
    size = op.Cast(op.ReduceMax(op.Shape(a), g.ints(0), keepdims=0), to=int(f64))
    gram = op.MatMul(a, op.Transpose(a, perm=[1, 0]))
    rows = op.Squeeze(op.Shape(a, start=0, end=1), g.ints(0))
    index = op.Range(g.scalar(0, int64), rows, g.scalar(1, int64))
    eye = op.Equal(op.Unsqueeze(index, g.ints(0)), op.Unsqueeze(index, g.ints(1)))
    total, largest = _write_largest(g, gram, eye)
    bound = op.Mul(size, g.scalar(float(np.finfo(np.float32).eps), f64))
    tau = op.Mul(op.Mul(bound, bound), largest)
    unit = op.Where(eye, g.scalar(1.0, f64), g.scalar(0.0, f64))
    found = _write_positive_pivots(g, op.Sub(gram, op.Mul(unit, tau)), eye, index, rows)
    # A block of zeros: tau is 0 and every pivot too.
    found = op.Where(op.Greater(total, g.scalar(0.0, f64)), found, g.ints(0))
    g.output(found, "rank", "int64", [1])
    return g


def _write_largest(g: Graph, gram: ir.Value, eye: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The trace of a matrix float64 [n, n] without a negative eigenvalue, and its largest eigenvalue.

    ``eye`` is bool [n, n], true on the diagonal.
    """
    import onnx_ir as ir

    op, f64 = g.op, ir.DataType.DOUBLE

    def trace(matrix: ir.Value) -> ir.Value:
        return op.ReduceSum(op.Where(eye, matrix, g.scalar(0.0, f64)), g.ints(0, 1), keepdims=0)

    # The logarithm: each squared matrix is divided by its trace, which keeps it in range.
    tiny = g.scalar(TINY, f64)
    first = trace(gram)
    power, log = op.Div(gram, op.Max(first, tiny)), op.Log(op.Max(first, tiny))
    share = 1.0
    for _ in range(SQUARINGS):
        power = op.MatMul(power, power)
        step, share = trace(power), share / 2
        log = op.Add(log, op.Mul(op.Log(step), g.scalar(share, f64)))
        power = op.Div(power, op.Max(step, tiny))
    return first, op.Exp(log)


def _write_positive_pivots(g: Graph, matrix: ir.Value, eye: ir.Value, index: ir.Value, rows: ir.Value) -> ir.Value:
    """The number of positive pivots, int64 [1], of a symmetric matrix float64 [n, n].

    Args:
        g: The graph.
        matrix: The matrix.
        eye: bool [n, n], true on the diagonal.
        index: int64 [n], 0, 1, …
        rows: n, an int64 scalar.
    """
    import onnx_ir as ir

    op, f64, int64, boolean = g.op, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.BOOL
    zero, one, tiny = (g.scalar(value, f64) for value in (0.0, 1.0, TINY))

    def body(op: Any, step: ir.Value, go_on: ir.Value, m: ir.Value, left: ir.Value, found: ir.Value) -> list[Any]:
        # The pivot: the largest magnitude on the remaining diagonal.
        diagonal = op.ReduceSum(op.Where(eye, m, zero), g.ints(0), keepdims=0)
        size = op.Where(left, op.Abs(diagonal), g.scalar(-1.0, f64))
        best = op.ArgMax(size, axis=0, keepdims=1)
        pivot = op.Gather(diagonal, best, axis=0)
        row = op.Gather(m, best, axis=0)
        safe = op.Where(op.Less(op.Abs(pivot), tiny), one, pivot)
        update = op.Div(op.MatMul(op.Transpose(row, perm=[1, 0]), row), safe)
        left = op.And(left, op.Not(op.Equal(index, best)))
        positive = op.Cast(op.Greater(pivot, zero), to=int(int64))
        return [op.Identity(go_on), op.Sub(m, update), left, op.Add(found, positive)]

    square, line = ir.Shape(["raters", "raters"]), ir.Shape(["raters"])
    states = {"matrix": (f64, square), "left": (boolean, line), "found": (int64, ir.Shape([1]))}
    with g.scope("pivots"):
        graph = g.builder.subgraph(
            body,
            [
                ir.val("step", int64, []),
                ir.val("go_on", boolean, []),
                *(ir.val(f"{name}_in", kind, shape) for name, (kind, shape) in states.items()),
            ],
            [
                ir.val("go_on_out", boolean, []),
                *(ir.val(f"{name}_out", kind, shape) for name, (kind, shape) in states.items()),
            ],
            name="eliminate",
        )
    left = op.GreaterOrEqual(index, g.scalar(0, int64))
    _, _, found = op.Loop(rows, g.scalar(1, boolean), matrix, left, g.ints(0), body=graph, _outputs=3)
    count: ir.Value = found
    return count
