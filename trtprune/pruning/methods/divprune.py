"""DivPrune: a greedy choice of tokens that are far apart.

Paper: https://arxiv.org/abs/2503.02175 (CVPR 2025).  Code: vbdi/divprune@799e2d9, CC BY-NC 4.0: only facts about it
were used.

    D_ij = 1 - cos(v_i, v_j)                                 of the projected tokens
    s_0  = argmax_j min_{i ≠ j} D_ij                         the token farthest from its nearest neighbour
    s_k  = argmax_j min_{i ∈ S} D_ij                         max-min diversity, until ``keep`` are chosen

Here the cosines themselves are compared, in float32: 1 - cos orders the same and rounds once more.  The code relies on
D_jj = 0 to not choose a token twice, which fails when only duplicates of chosen tokens remain; here a chosen token is
excluded.

``center=true`` is Cen-Prune's form (2026): cosines of mean-centred features, and each distance times how rare the token
is, ``g_j · min_{i ∈ S} (1 - cos_ij)`` with g = min-max(-mean_{i ≠ j} of the uncentred cosines).  Its source gives no
rule for the first token; the same objective is taken, over all other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.greedy import LAST, TAKEN, least_close
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register
from trtprune.pruning.similarity import CENTER, cosines, rarity, write_cosines, write_rarity

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["DivPrune"]

_APART = -4.0
"""Closeness of a token that does not count as a neighbour: below any other."""


@register
class DivPrune(Method):
    """Max-min diversity."""

    name = "divprune"
    summary = "tokens as far from one another as possible; needs the image alone"
    paper = "https://arxiv.org/abs/2503.02175"
    source = "https://github.com/vbdi/divprune"
    cost = "N x N cosines, keep greedy steps over a row"
    options = (CENTER,)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        center = inputs["center"] == "true"
        close, good = cosines(image_features, center)
        if center:
            close = -(rarity(image_features, good) * (np.float32(1) - close))
        apart = ~good[:, None] | np.eye(len(good), dtype=bool)
        nearest = np.where(good, np.where(apart, np.float32(_APART), close).max(axis=0), np.float32(LAST))
        first = int(np.argmin(nearest))
        start = np.where(good, close[first], np.float32(LAST))
        start[first] = TAKEN
        return np.sort(np.array([first, *least_close(close, start, keep - 1)], dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        from trtprune.pruning.greedy_graph import maxmin_select, start_at

        op = g.op
        features, center = inputs["image_features"], options["center"] == "true"
        close, good = write_cosines(g, features, center)
        if center:
            rare = op.Unsqueeze(write_rarity(g, features, good), g.ints(1))
            close = op.Neg(op.Mul(rare, op.Sub(ops.f32(g, 1.0), close)))
        place = ops.iota(g, op.Shape(good, start=1, end=2))
        itself = op.Equal(place, op.Unsqueeze(place, g.ints(1)))
        apart = op.Or(op.Not(op.Unsqueeze(good, g.ints(2))), itself)
        nearest = op.ReduceMax(op.Where(apart, ops.f32(g, _APART), close), g.ints(1), keepdims=0)
        nearest = op.Where(good, nearest, ops.f32(g, LAST))
        first = op.ArgMin(nearest, axis=1, keepdims=1, select_last_index=0)
        return maxmin_select(g, close, start_at(g, close, first, good, LAST), op.Sub(keep, g.ints(1)), "maxmin")
