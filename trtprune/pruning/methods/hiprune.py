"""HiPrune: anchors of an early layer with their neighbours, completed by the tokens that the last layer attends to.

Paper: https://arxiv.org/abs/2508.00553 ("HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models").  Code: https://github.com/Danielement321/HiPrune @ 6e83a12 (MIT).

    s, d    = attention each patch receives in the object layer and in the last used one: mean over heads and over all
              queries, CLS included
    anchors = the a = round(keep · alpha / 5) patches of largest s
    buffers = their neighbours j - 1, j + 1, j - columns, j + columns, clamped to 0..P-1; j counts the P patches of a
              crop row by row
    selection = anchors and buffers, completed to keep by the largest d

Python's ``round`` (halves to even) is reproduced in whole numbers, alpha being read as a fraction with a denominator
up to 10000.  As in the code, a neighbour is a neighbour by index: at the right end of a row that is the first patch of
the next row, and clamping brings the first and last patch in.

``object_layer`` counts the tower's layers from 1: 9 in the authors' runs with LLaVA, 16 in those with Qwen2.5-VL, which
is the default with every packed tower.  The sources do not define the selection when anchors and buffers
exceed the budget, possible from about alpha = 0.5; the code stops with an error.  Here anchors come before buffers and
lower indices before higher ones.

Several crops of one image: the code gives each floor(keep / crops) tokens, with anchors and the rest of its own,
``crops=each``.  With ``joint`` the crops compete, and a neighbour is one in the same crop.  With ``each`` a is that of
a crop's share.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import grids, ops
from trtprune.pruning.crops import (
    CROPS,
    listed_by_crop,
    needs_by_crop,
    shares,
    write_crop_ranks,
    write_listed_by_crop,
    write_rooms,
    write_selected,
)
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["HiPrune"]

_ANCHOR, _BUFFER, _NEVER = 3.0e38, 2.0e38, -3.0e38
"""Scores of anchors and buffers, above every attention, and of tokens that are no candidates, below NaN."""


def _share(alpha: float) -> tuple[int, int]:
    """p, q with keep · alpha / 5 = keep · p / q."""
    ratio = Fraction(str(alpha)).limit_denominator(10_000) / 5
    return ratio.numerator, ratio.denominator


@register
class HiPrune(Method):
    """Anchors, their neighbours, and the patches of highest deep attention."""

    name = "hiprune"
    summary = "anchors of an early layer with their neighbours, then what the last layer attends to"
    paper = "https://arxiv.org/abs/2508.00553"
    source = "https://github.com/Danielement321/HiPrune @ 6e83a12"
    needs = frozenset({"shallow_attention", "deep_attention", "grid"})
    cost = "two TopK; the vision tower returns two columns of attention more"
    options = (
        Option(
            "object_layer",
            9,
            "layer of the vision tower, from 1, that anchors are taken from; by default 16 where it reads any size",
            minimum=1,
            maximum=128,
        ),
        Option("alpha", 0.1, "fraction of the budget for anchors and their neighbours", minimum=0, maximum=1),
        CROPS,
    )
    with_packed: ClassVar = {"object_layer": 16}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_crop(self.needs, options)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens if options["crops"] == "each" else keep

    def tower_layer(self, options: Mapping[str, Any] | None = None) -> int | None:
        return int(self.validate_options(options)["object_layer"])

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        grid = inputs["grid"]
        each = inputs["crops"] == "each"
        shallow, deep = (
            np.where(grids.candidates(grid), ops.clean(inputs[name]), np.float32(_NEVER))
            for name in ("shallow_attention", "deep_attention")
        )
        ratio, order = Fraction(*_share(inputs["alpha"])), ops.descending(shallow)
        anchors = order[: round(ratio * keep)]
        if each:
            crop = np.where(grids.candidates(grid), grid[:, 0], -1)[order]
            listed = [order[crop == number][: round(ratio * share)] for number, share in shares(grid, keep)]
            anchors = np.concatenate([np.zeros(0, np.int64), *listed])
        scores = np.where(_neighbours(grid, anchors), np.float32(_BUFFER), deep)
        scores[anchors] = _ANCHOR
        return np.sort((listed_by_crop(scores, grid, keep)[0] if each else ops.descending(scores))[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        import onnx_ir as ir

        op = g.op
        chosen = grids.write_candidates(g, inputs["grid"])
        shallow, scores = (
            op.Where(chosen, ops.write_clean(g, inputs[name]), ops.f32(g, _NEVER))
            for name in ("shallow_attention", "deep_attention")
        )
        if options["crops"] == "joint":
            # Without anchors, one is taken that has no effect: no dimension may become 0.
            count = _write_anchors(g, options["alpha"], keep)
            _, anchors = ops.top(g, shallow, op.Max(count, g.ints(1)))
            return _write_scores(g, inputs["grid"], scores, anchors, op.Greater(count, g.ints(0)))
        most_crops = options["most_crops"]
        room = write_rooms(g, inputs["grid"], keep, most_crops)
        count = room.of_token(g, _write_anchors(g, options["alpha"], room.quota))
        anchor = op.And(op.Less(write_crop_ranks(g, op, shallow, room.own), count), room.chosen)
        # As many as there can be: each crop's count is rounded up by a half at most.
        most = op.Add(_write_anchors(g, options["alpha"], keep), g.ints((most_crops + 3) // 2))
        most = op.Min(most, op.Shape(scores, start=1, end=2))
        marks, anchors = ops.top(g, op.Cast(anchor, to=int(ir.DataType.FLOAT)), most)
        scores = _write_scores(g, inputs["grid"], scores, anchors, op.Greater(marks, ops.f32(g, 0.5)))
        return write_selected(g, write_listed_by_crop(g, scores, inputs["grid"], keep, most_crops)[0], keep)


def _write_anchors(g: Graph, alpha: float, keep: ir.Value) -> ir.Value:
    """The number of anchors for each budget of int64 ``keep``."""
    op = g.op
    p, q = _share(alpha)
    twice = op.Mul(keep, g.ints(2 * p))
    up = op.Div(op.Add(twice, g.ints(q)), g.ints(2 * q))
    # Halves to even: rounded up from a half to an odd number is one too many.
    half = op.Equal(op.Mul(op.Sub(op.Mul(up, g.ints(2)), g.ints(1)), g.ints(q)), twice)
    odd = op.Equal(op.Mod(up, g.ints(2)), g.ints(1))
    return op.Where(op.And(half, odd), op.Sub(up, g.ints(1)), up)


def _write_scores(g: Graph, grid: ir.Value, scores: ir.Value, anchors: ir.Value, used: ir.Value) -> ir.Value:
    """``scores`` [batch, N], those of anchors and of their neighbours above all others.

    Args:
        g: The graph.
        grid: int64 [batch, N, 3].
        scores: float32 [batch, N].
        anchors: int64 [batch, A].
        used: bool, [1] or [batch, A]: whether they are anchors at all.
    """
    op = g.op
    one = op.Where(used, op.Expand(ops.f32(g, 1.0), op.Shape(anchors)), ops.f32(g, 0.0))
    marks = op.ScatterElements(op.Expand(ops.f32(g, 0.0), op.Shape(scores)), anchors, one, axis=1)
    around = _write_neighbours(g, grid, anchors, op.Greater(one, ops.f32(g, 0.5)))
    scores = op.Where(around, ops.f32(g, _BUFFER), scores)
    return op.Where(op.Greater(marks, ops.f32(g, 0.5)), ops.f32(g, _ANCHOR), scores)


def _neighbours(grid: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """bool [N]: the tokens beside, above and below the ``anchors`` int64 [A] in their crops, by index."""
    import numpy as np

    crop, row, column = grid.T
    if not len(anchors):
        return np.zeros(len(grid), np.bool_)
    same = (crop[anchors][:, None] == crop) & grids.candidates(grid)
    far = np.int64(1) << 30
    top, left = (np.where(same, axis, far).min(axis=1, keepdims=True) for axis in (row, column))
    bottom, right = (np.where(same, axis, -1).max(axis=1, keepdims=True) for axis in (row, column))
    width = right - left + 1
    place = (row - top) * width + column - left
    own = (row[anchors][:, None] - top) * width + column[anchors][:, None] - left
    last = (bottom - top + 1) * width - 1
    around = [np.clip(own + step, 0, last) == place for step in (-1, 1, -width, width)]
    return np.any(same & np.logical_or.reduce(around), axis=0)


def _write_neighbours(g: Graph, grid: ir.Value, anchors: ir.Value, used: ir.Value) -> ir.Value:
    """:func:`_neighbours` for int64 [batch, N, 3] and the ``used`` (bool) of [batch, A]: bool [batch, N]."""
    import onnx_ir as ir

    op = g.op
    zero, one = g.ints(0), g.ints(1)
    crop, row, column = (op.Squeeze(op.Slice(grid, g.ints(i), g.ints(i + 1), g.ints(2)), g.ints(2)) for i in range(3))
    mine = [op.Unsqueeze(op.GatherElements(axis, anchors, axis=1), g.ints(2)) for axis in (crop, row, column)]
    crops, rows, columns = (op.Unsqueeze(axis, one) for axis in (crop, row, column))
    same = op.And(op.Equal(mine[0], crops), op.Unsqueeze(op.GreaterOrEqual(row, zero), one))
    top, left = (op.ReduceMin(op.Where(same, x, g.ints(1 << 30)), g.ints(2), keepdims=1) for x in (rows, columns))
    bottom, right = (op.ReduceMax(op.Where(same, x, g.ints(-1)), g.ints(2), keepdims=1) for x in (rows, columns))
    width = op.Sub(op.Add(right, one), left)
    place = op.Sub(op.Add(op.Mul(op.Sub(rows, top), width), columns), left)
    own = op.Sub(op.Add(op.Mul(op.Sub(mine[1], top), width), mine[2]), left)
    last = op.Sub(op.Mul(op.Sub(op.Add(bottom, one), top), width), one)
    near = None
    for step in (g.ints(-1), one, op.Neg(width), width):
        hit = op.Equal(op.Min(op.Max(op.Add(own, step), zero), last), place)
        near = hit if near is None else op.Or(near, hit)
    assert near is not None
    near = op.And(near, op.Unsqueeze(used, g.ints(2)))
    hits = op.Cast(op.And(same, near), to=int(ir.DataType.FLOAT))
    return op.Greater(op.ReduceMax(hits, one, keepdims=0), ops.f32(g, 0.5))
