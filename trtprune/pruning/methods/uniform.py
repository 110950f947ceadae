"""An even sample of the grid of patches: a baseline that ignores the content.

The grid of each crop is cut into its share of ``keep`` cells (the rule is in :mod:`trtprune.pruning.grids`) and the
patch in the middle of each is kept.  Neither the image nor the question is used, so a method has to beat this one to be
worth its cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import grids, ops
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Uniform"]


@register
class Uniform(Method):
    """The middle patch of each of ``keep`` cells of the grid."""

    name = "uniform"
    summary = "an even sample of the grid, the same for every picture"
    needs = frozenset({"grid"})
    cost = "whole-number arithmetic on N numbers and one TopK"

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        _, middle = grids.cells(keep, inputs["grid"])
        return np.sort(ops.descending(np.where(grids.candidates(inputs["grid"]), middle, np.float32(-1)))[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        op, grid = g.op, inputs["grid"]
        _, middle = grids.write_cells(g, keep, grid, options["most_crops"])
        chosen = op.Where(grids.write_candidates(g, grid), ops.f32(g, 0.0), ops.f32(g, -1.0))
        return op.Where(middle, ops.f32(g, 1.0), chosen)
