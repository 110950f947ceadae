"""HiPrune: anchors of an early layer with their neighbours, and for the rest what the last layer attends to.

Paper: https://arxiv.org/abs/2508.00553 ("HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models").  Code: https://github.com/Danielement321/HiPrune @ 6e83a12 (MIT).

    s, d    = attention each patch receives in the object layer and in the last used one: mean over heads and over all
              queries, CLS included
    anchors = the a = round(keep · alpha / 5) patches of largest s
    buffers = their neighbours j - 1, j + 1, j - columns, j + columns, clamped to 0..N-1
    selection = anchors and buffers, completed to keep by the largest d

Python's ``round`` (halves to even) is reproduced in whole numbers, alpha being read as a fraction with a denominator
up to 10000.  As in the code, a neighbour is a neighbour by index: at the right end of a row that is the first patch of
the next row, and clamping brings the first and last patch in.

``object_layer`` counts the tower's layers from 1.  Open in the sources: what happens when anchors and buffers exceed
the budget, possible from alpha = 0.5 or so, where the code stops with an error; here anchors come before buffers and
lower indices before higher ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["HiPrune"]

_ANCHOR, _BUFFER = 3.0e38, 2.0e38
"""Scores of anchors and buffers, above every attention."""


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
            "object_layer", 9, "layer of the vision tower, from 1, that anchors are taken from", minimum=1, maximum=128
        ),
        Option("alpha", 0.1, "fraction of the budget for anchors and their neighbours", minimum=0, maximum=1),
    )

    def tower_layer(self, options: Mapping[str, Any] | None = None) -> int | None:
        return int(self.validate_options(options)["object_layer"])

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        tokens, columns = len(image_features), inputs["grid"][1]
        count = round(Fraction(*_share(inputs["alpha"])) * keep)
        anchors = ops.descending(ops.clean(inputs["shallow_attention"]))[:count]
        steps = np.array([-1, 1, -columns, columns])
        scores = ops.clean(inputs["deep_attention"])
        scores[np.clip(anchors[:, None] + steps, 0, tokens - 1)] = _BUFFER
        scores[anchors] = _ANCHOR
        return np.sort(ops.descending(scores)[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        op = g.op
        p, q = _share(options["alpha"])
        columns = options["grid"][1]
        twice = op.Mul(keep, g.ints(2 * p))
        up = op.Div(op.Add(twice, g.ints(q)), g.ints(2 * q))
        # Halves to even: rounded up from a half to an odd number is one too many.
        half = op.Equal(op.Mul(op.Sub(op.Mul(up, g.ints(2)), g.ints(1)), g.ints(q)), twice)
        odd = op.Equal(op.Mod(up, g.ints(2)), g.ints(1))
        count = op.Where(op.And(half, odd), op.Sub(up, g.ints(1)), up)

        scores = ops.write_clean(g, inputs["deep_attention"])
        # No anchor at all is served by taking one that stays without effect: no dimension may become 0.
        _, anchors = ops.top(g, ops.write_clean(g, inputs["shallow_attention"]), op.Max(count, g.ints(1)))
        last = op.Sub(op.Shape(scores, start=1, end=2), g.ints(1))
        around = op.Concat(*(op.Add(anchors, g.ints(step)) for step in (-1, 1, -columns, columns)), axis=1)
        around = op.Min(op.Max(around, g.ints(0)), last)

        def mark(indices: ir.Value) -> ir.Value:
            one = op.Expand(ops.f32(g, 1.0), op.Shape(indices))
            marks = op.ScatterElements(op.Expand(ops.f32(g, 0.0), op.Shape(scores)), indices, one, axis=1)
            return op.And(op.Greater(marks, ops.f32(g, 0.5)), op.Greater(count, g.ints(0)))

        scores = op.Where(mark(around), ops.f32(g, _BUFFER), scores)
        return op.Where(mark(anchors), ops.f32(g, _ANCHOR), scores)
