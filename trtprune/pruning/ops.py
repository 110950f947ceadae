"""Computations shared by methods, each once in NumPy and once as graph nodes, in the same order of operations.

The order matters: add, multiply, divide and square root are correctly rounded on both sides, so scores made of them
agree bit for bit, and ties with them, as long as the sums inside are exact or summed in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = [
    "BAR",
    "NORM_EPS",
    "ascending",
    "clean",
    "cosine",
    "descending",
    "f32",
    "iota",
    "norms",
    "scale_count",
    "top",
    "write_clean",
    "write_cosine",
    "write_norms",
    "write_products",
    "write_scale_count",
]

NORM_EPS = 1e-12
"""Lower bound of a norm, that of torch.nn.functional.normalize: a zero vector has cosine 0 with everything."""
LIMIT = 1e30
"""Scores are clipped to ±LIMIT so that sums of them stay finite …"""
NAN_SCORE = -2e30
"""… and NaN becomes this: after every number, -inf included."""
BAR = 1e30
"""Magnitude for the cosine of a token whose features are not finite, so that it comes last."""
_FINITE = 3.0e38


# -- NumPy ------------------------------------------------------------------------------------------------------


def descending(scores: np.ndarray) -> np.ndarray:
    """Indices of ``scores`` [N] from best to worst; equal scores in index order."""
    import numpy as np

    return np.argsort(-scores, kind="stable").astype(np.int64)


def clean(scores: np.ndarray) -> np.ndarray:
    """``scores`` as finite float32: NaN below everything else, infinities clipped."""
    import numpy as np

    scores = scores.astype(np.float32)
    return np.where(np.isnan(scores), np.float32(NAN_SCORE), np.clip(scores, -np.float32(LIMIT), np.float32(LIMIT)))


def norms(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 ``vectors`` [M, D] with bad rows zeroed, their norms [M] (≥ eps), and the good rows as bool [M].

    A row is bad when its norm is not finite.
    """
    import numpy as np

    length = np.sqrt(np.sum(vectors * vectors, axis=-1, dtype=np.float32))
    good = length < np.float32(_FINITE)
    return (
        np.where(good[:, None], vectors, np.float32(0)),
        np.where(good, np.maximum(length, np.float32(NORM_EPS)), np.float32(1)),
        good,
    )


def cosine(a: np.ndarray, a_norm: np.ndarray, b: np.ndarray, b_norm: np.ndarray) -> np.ndarray:
    """Cosines [P, Q] of float32 ``a`` [P, D] with ``b`` [Q, D].

    The vectors enter the product as they are and the result is divided by the norms: float16 and bfloat16 features
    then stay exact even where a backend multiplies float32 matrices in TF32, which rounds *normalised* features.
    """
    return (a @ b.T) / (a_norm[:, None] * b_norm[None, :])


def scale_count(numerator: int, denominator: int, count: int) -> int:
    """``floor(count * numerator / denominator)`` in whole numbers, as the graph computes it."""
    return count * numerator // denominator


# -- graph ------------------------------------------------------------------------------------------------------


def f32(g: Graph, number: float) -> ir.Value:
    """A float32 scalar constant."""
    import onnx_ir as ir

    return g.scalar(number, ir.DataType.FLOAT)


def top(g: Graph, scores: ir.Value, keep: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The ``keep`` (int64 [1]) largest of ``scores`` [batch, N], best first, and their indices int64.

    Of equal scores ONNX Runtime takes the lower index first, as the references do.  TensorRT promises no order.
    """
    from trtprune.graph.topk import top as write

    return write(g, g.op, scores, keep)


def ascending(g: Graph, indices: ir.Value, keep: ir.Value) -> ir.Value:
    """``indices`` [batch, keep] sorted."""
    import numpy as np

    from trtprune.graph.topk import top as write

    return write(g, g.op, indices, keep, largest=False, dtype=np.int64)[0]


def write_clean(g: Graph, scores: ir.Value) -> ir.Value:
    """:func:`clean` for [batch, N]."""
    import onnx_ir as ir

    op = g.op
    scores = g.cast(scores, ir.DataType.FLOAT)
    clipped = op.Min(op.Max(scores, f32(g, -LIMIT)), f32(g, LIMIT))
    return op.Where(op.IsNaN(scores), f32(g, NAN_SCORE), clipped)


def write_norms(g: Graph, vectors: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """:func:`norms` for [batch, M, D]: vectors float32, norms [batch, M, 1], good bool [batch, M, 1]."""
    import onnx_ir as ir

    op = g.op
    vectors = g.cast(vectors, ir.DataType.FLOAT)
    length = op.Sqrt(op.ReduceSum(op.Mul(vectors, vectors), g.ints(-1), keepdims=1))
    good = op.Less(length, f32(g, _FINITE))
    return (
        op.Where(good, vectors, f32(g, 0.0)),
        op.Where(good, op.Max(length, f32(g, NORM_EPS)), f32(g, 1.0)),
        good,
    )


def write_products(g: Graph, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a @ bᵀ`` of float32 [batch, P, D] and [batch, Q, D]: [batch, P, Q]."""
    op = g.op
    if g.lowering.products == "op":
        return op.MatMul(a, op.Transpose(b, perm=[0, 2, 1]))
    return op.ReduceSum(op.Mul(op.Unsqueeze(a, g.ints(2)), op.Unsqueeze(b, g.ints(1))), g.ints(-1), keepdims=0)


def write_cosine(g: Graph, a: ir.Value, a_norm: ir.Value, b: ir.Value, b_norm: ir.Value) -> ir.Value:
    """:func:`cosine` for [batch, P, D] and [batch, Q, D] with norms [batch, ·, 1]: [batch, P, Q]."""
    op = g.op
    dots = write_products(g, a, b)
    return op.Div(dots, op.Mul(a_norm, op.Transpose(b_norm, perm=[0, 2, 1])))


def write_scale_count(g: Graph, numerator: int, denominator: int, count: ir.Value) -> ir.Value:
    """:func:`scale_count` for int64 ``count`` ≥ 0."""
    return g.op.Div(g.op.Mul(count, g.ints(numerator)), g.ints(denominator))


def iota(g: Graph, count: ir.Value) -> ir.Value:
    """0, 1, …, count - 1 as int64, for int64 ``count`` [1]."""
    return g.op.Range(g.scalar(0, _int64()), g.op.Squeeze(count, g.ints(0)), g.scalar(1, _int64()))


def _int64() -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType.INT64
