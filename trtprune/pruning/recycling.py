"""Token recycling: pruned tokens, merged into a few vectors.

SparseVLM (https://arxiv.org/abs/2410.04417, section 3.4): of the removed tokens the best-rated ``tau`` are clustered by
density peaks (Rodriguez & Laio 2014, with k nearest neighbours) and each cluster becomes one vector.  As in the
authors' code (Gumpest/SparseVLMs, ``cluster_and_merge``), with one change: where two tokens are equally dense (with
C = 2, two that are each other's nearest always are), the code breaks the tie with random noise and this file in favour
of the better rated one, so that the same input gives the same output.

    d_ij  = |x_i - x_j| / sqrt(D)
    rho_i = exp(-mean of d_ij² over the C nearest j, i itself among them)
    delta_i = distance to the nearest denser token; the largest distance of all for the densest
    centres = the C tokens with the largest rho · delta;  every token goes to its nearest centre
    merged  = mean of each cluster (``reduce="sum"``: sum, the paper's equation 10)

M tokens take part, C = floor(theta · M) + 1 vectors come out.  Distances come from one product of the centred vectors;
the [M, M, D] differences of the authors' code would be gigabytes at the width of a 7B model.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from trtprune import schedules
from trtprune.pruning.ops import write_products

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["ASSIGN", "REDUCE", "cluster", "merge", "merged_counts", "share_of", "write_merge"]

ASSIGN = ("l2", "cosine")
"""A token's cluster: that of the nearest centre (code) or of the most similar one (paper)."""
REDUCE = ("mean", "sum")
"""The vector of a cluster: its mean (code) or its sum (paper)."""
THETA = 10
"""One vector for every ten recycled tokens (rounded down, plus one)."""
EPS = 1e-6
"""Added to the size of a cluster, as in the authors' code."""


def share_of(recycle: float) -> tuple[int, int]:
    """The share ``recycle`` as a fraction, numerator and denominator up to 10000."""
    tau = Fraction(str(recycle)).limit_denominator(10_000)
    return tau.numerator, tau.denominator


def merged_counts(removed: int, recycle: float) -> tuple[int, int]:
    """(M, C): the number of recycled tokens out of ``removed``, and the number of their vectors; (0, 0) if none."""
    return schedules.merged_counts(removed, share_of(recycle), THETA)


def _distances(vectors: np.ndarray) -> np.ndarray:
    """Pairwise distances [M, M] of float32 [M, D], over sqrt(D)."""
    import numpy as np

    centred: np.ndarray = vectors - vectors.mean(axis=0, keepdims=True, dtype=np.float32)
    square = np.asarray(np.sum(centred * centred, axis=1, dtype=np.float32))
    dots = centred @ centred.T
    # dots + dotsᵀ, not 2 · dots: a product need not be symmetric to the last bit, and of two tokens that are each
    # other's nearest the densities must tie.
    squared = square[:, None] + square[None, :] - (dots + dots.T)
    squared = np.where(np.eye(len(vectors), dtype=bool), np.float32(0), np.maximum(squared, np.float32(0)))
    return np.sqrt(squared) * np.float32(vectors.shape[1] ** -0.5)


def cluster(vectors: np.ndarray, count: int, assign: str = "l2") -> tuple[np.ndarray, np.ndarray]:
    """Density peaks.

    Args:
        vectors: float32 [M, D].
        count: C ≤ M.
        assign: One of :data:`ASSIGN`.

    Returns:
        Centres int64 [C], best first, and the cluster of each vector int64 [M].
    """
    import numpy as np

    distance = _distances(vectors)
    nearest = np.sort(distance, axis=1)[:, :count]
    density = np.exp(-np.mean(nearest * nearest, axis=1, dtype=np.float32))
    rank = np.arange(len(vectors))
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (rank[None] < rank[:, None]))
    delta = np.where(denser, distance, distance.max()).min(axis=1)
    centres = np.argsort(-(density * delta), kind="stable")[:count].astype(np.int64)
    if assign == "cosine":
        length = np.maximum(np.sqrt(np.sum(vectors * vectors, axis=1, dtype=np.float32)), np.float32(1e-12))
        apart = -(vectors[centres] @ vectors.T) / (length[centres][:, None] * length[None])
    else:
        apart = distance[centres]
    clusters = np.argmin(apart, axis=0).astype(np.int64)
    clusters[centres] = np.arange(count)
    return centres, clusters


def merge(vectors: np.ndarray, count: int, assign: str = "l2", reduce: str = "mean") -> np.ndarray:
    """``count`` vectors [C, D] out of float32 ``vectors`` [M, D], best cluster first."""
    import numpy as np

    _, clusters = cluster(vectors, count, assign)
    member = (clusters[None] == np.arange(count)[:, None]).astype(np.float32)
    if reduce == "mean":
        member = member / (member.sum(axis=1, keepdims=True) + np.float32(EPS))
    return member @ vectors


def write_merge(g: Graph, vectors: ir.Value, count: ir.Value, assign: str = "l2", reduce: str = "mean") -> ir.Value:
    """:func:`merge` for float32 [batch, M, D] and int64 [1]: float32 [batch, C, D]."""
    import onnx_ir as ir

    from trtprune.graph.topk import top

    op, f32 = g.op, ir.DataType.FLOAT
    width = op.Cast(op.Shape(vectors, start=2, end=3), to=int(f32))
    centred = op.Sub(vectors, op.ReduceMean(vectors, g.ints(1), keepdims=1))
    square = op.ReduceSum(op.Mul(centred, centred), g.ints(2), keepdims=1)
    dots = write_products(g, centred, centred)
    dots = op.Add(dots, op.Transpose(dots, perm=[0, 2, 1]))
    squared = op.Sub(op.Add(square, op.Transpose(square, perm=[0, 2, 1])), dots)
    size = op.Squeeze(op.Shape(vectors, start=1, end=2), g.ints(0))
    rank = op.Range(g.scalar(0, ir.DataType.INT64), size, g.scalar(1, ir.DataType.INT64))
    row, column = op.Unsqueeze(rank, g.ints(1)), op.Unsqueeze(rank, g.ints(0))
    squared = op.Where(op.Equal(row, column), g.scalar(0.0, f32), op.Max(squared, g.scalar(0.0, f32)))
    distance = op.Div(op.Sqrt(squared), op.Sqrt(width))

    nearest, _ = top(g, op, distance, count, largest=False)
    density = op.Exp(op.Neg(op.ReduceMean(op.Mul(nearest, nearest), g.ints(2), keepdims=1)))  # [B, M, 1]
    other = op.Transpose(density, perm=[0, 2, 1])
    denser = op.Or(op.Greater(other, density), op.And(op.Equal(other, density), op.Less(column, row)))
    farthest = op.ReduceMax(distance, g.ints(1, 2), keepdims=1)
    delta = op.ReduceMin(op.Where(denser, distance, farthest), g.ints(2), keepdims=0)
    score = op.Mul(op.Squeeze(density, g.ints(2)), delta)
    _, centres = top(g, op, score, count)

    place = op.Unsqueeze(centres, g.ints(2))
    if assign == "cosine":
        length = op.Sqrt(op.ReduceSum(op.Mul(vectors, vectors), g.ints(2), keepdims=1))
        length = op.Max(length, g.scalar(1e-12, f32))
        chosen = op.GatherND(vectors, place, batch_dims=1)
        norms = op.Mul(op.GatherND(length, place, batch_dims=1), op.Transpose(length, perm=[0, 2, 1]))
        apart = op.Neg(op.Div(write_products(g, chosen, vectors), norms))
    else:
        apart = op.GatherND(distance, place, batch_dims=1)
    clusters = op.ArgMin(apart, axis=1, keepdims=0, select_last_index=0)  # [B, M]
    many = op.Squeeze(count, g.ints(0))
    numbers = op.Range(g.scalar(0, ir.DataType.INT64), many, g.scalar(1, ir.DataType.INT64))
    clusters = op.ScatterElements(clusters, centres, op.Expand(numbers, op.Shape(centres)), axis=1)
    member = op.Equal(op.Unsqueeze(clusters, g.ints(1)), op.Unsqueeze(numbers, g.ints(0, 2)))
    member = op.Cast(member, to=int(f32))
    if reduce == "mean":
        member = op.Div(member, op.Add(op.ReduceSum(member, g.ints(2), keepdims=1), g.scalar(EPS, f32)))
    return write_products(g, member, op.Transpose(vectors, perm=[0, 2, 1]))
