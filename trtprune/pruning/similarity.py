"""Cosines between the tokens of one image, plain or mean-centred, and scores that are combined with them.

Mean-centred features (Cen-Prune): tokens of one image share a large common part, so that their cosines crowd near 1;
without the mean the cosines use their whole range.  The paper also weights a token by how little it resembles the
others, :func:`rarity`; its mean cosine is one product with the sum of the unit vectors, no matrix.

A range of values no wider than rounding errors counts as 0: if all tokens are alike, or if there are two, their mean
cosines are equal in exact arithmetic.

Tokens whose features are not finite have cosine 0 with all others and are not in the mean.  A token that is only
rounding noise after centring counts as the zero vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.pruning import ops
from trtprune.pruning.options import Option

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["CENTER", "cosines", "min_max", "rarity", "write_cosines", "write_min_max", "write_rarity"]

CENTER = Option("center", "false", "take the image's mean off its features before cosines", choices=("false", "true"))
"""The option of the methods that compare an image's tokens with one another."""
_NOISE = 1e-5
"""Up to here a centred vector's length, relative to the token's own, and the range of mean cosines are rounding."""


# -- NumPy ------------------------------------------------------------------------------------------------------


def cosines(features: np.ndarray, center: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [N, N] of float32 ``features`` [N, D], and the finite tokens as bool [N]."""
    import numpy as np

    vectors, norm, good = ops.norms(features)
    if center:
        mean = vectors.sum(axis=0) / np.float32(max(good.sum(), 1))
        vectors = np.where(good[:, None], vectors - mean, np.float32(0))
        length = np.sqrt(np.sum(vectors * vectors, axis=-1, dtype=np.float32))
        clear = length > np.float32(_NOISE) * norm
        vectors, norm = np.where(clear[:, None], vectors, np.float32(0)), np.where(clear, length, np.float32(1))
    return ops.cosine(vectors, norm, vectors, norm), good


def rarity(features: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Cen-Prune's factor [N]: min-max of minus the mean (uncentred) cosine to the other tokens."""
    import numpy as np

    vectors, norm, _ = ops.norms(features)
    unit = vectors / norm[:, None]
    together = (unit * unit.sum(axis=0)).sum(axis=-1) - (unit * unit).sum(axis=-1)
    return min_max(-together.astype(np.float32) / np.float32(len(good)), good, least=_NOISE)


def min_max(
    values: np.ndarray, good: np.ndarray, above: float = 0.0, widen: float = 0.0, least: float = 0.0
) -> np.ndarray:
    """``(values - min + above) / (max - min + widen)`` over the ``good`` of [N]; 0 for bad ones.

    1 where the divisor is not above ``least``.  ``values`` must be finite.
    """
    import numpy as np

    low = np.where(good, values, np.float32(ops.BAR)).min()
    span = np.where(good, values, -np.float32(ops.BAR)).max() - low + np.float32(widen)
    wide = span > np.float32(least)
    scaled = (values - low + np.float32(above)) / (span if wide else np.float32(1))
    return np.where(good, scaled if wide else np.float32(1), np.float32(0)).astype(np.float32)


# -- graph ------------------------------------------------------------------------------------------------------


def write_cosines(g: Graph, features: ir.Value, center: bool = False) -> tuple[ir.Value, ir.Value]:
    """:func:`cosines` for [batch, N, D]: float32 [batch, N, N] and bool [batch, N]."""
    import onnx_ir as ir

    op = g.op
    vectors, norm, good = ops.write_norms(g, features)
    if center:
        zero, one = ops.f32(g, 0.0), ops.f32(g, 1.0)
        count = op.ReduceSum(op.Cast(good, to=int(ir.DataType.FLOAT)), g.ints(1), keepdims=1)
        mean = op.Div(op.ReduceSum(vectors, g.ints(1), keepdims=1), op.Max(count, one))
        vectors = op.Where(good, op.Sub(vectors, mean), zero)
        length = op.Sqrt(op.ReduceSum(op.Mul(vectors, vectors), g.ints(-1), keepdims=1))
        clear = op.Greater(length, op.Mul(norm, ops.f32(g, _NOISE)))
        vectors, norm = op.Where(clear, vectors, zero), op.Where(clear, length, one)
    return ops.write_cosine(g, vectors, norm, vectors, norm), op.Squeeze(good, g.ints(2))


def write_rarity(g: Graph, features: ir.Value, good: ir.Value) -> ir.Value:
    """:func:`rarity` for [batch, N, D] and bool [batch, N]: [batch, N]."""
    import onnx_ir as ir

    op = g.op
    vectors, norm, _ = ops.write_norms(g, features)
    unit = op.Div(vectors, norm)
    total = op.ReduceSum(unit, g.ints(1), keepdims=1)
    together = op.ReduceSum(op.Mul(unit, total), g.ints(-1), keepdims=0)
    own = op.ReduceSum(op.Mul(unit, unit), g.ints(-1), keepdims=0)
    count = op.Cast(op.Shape(good, start=1, end=2), to=int(ir.DataType.FLOAT))
    return write_min_max(g, op.Div(op.Neg(op.Sub(together, own)), count), good, least=_NOISE)


def write_min_max(
    g: Graph, values: ir.Value, good: ir.Value, above: float = 0.0, widen: float = 0.0, least: float = 0.0
) -> ir.Value:
    """:func:`min_max` for float32 and bool [batch, N]."""
    op = g.op
    zero, one = ops.f32(g, 0.0), ops.f32(g, 1.0)
    low = op.ReduceMin(op.Where(good, values, ops.f32(g, ops.BAR)), g.ints(1), keepdims=1)
    high = op.ReduceMax(op.Where(good, values, ops.f32(g, -ops.BAR)), g.ints(1), keepdims=1)
    span = op.Add(op.Sub(high, low), ops.f32(g, widen))
    wide = op.Greater(span, ops.f32(g, least))
    scaled = op.Div(op.Add(op.Sub(values, low), ops.f32(g, above)), op.Where(wide, span, one))
    return op.Where(good, op.Where(wide, scaled, one), zero)
