"""An even sample of the grid of patches: a baseline that looks at nothing.

The grid is cut into ``keep`` cells (the rule is in :mod:`trtprune.pruning.grids`) and the patch in the middle of each
is kept.  Nothing of the picture and nothing of the question plays a part, so a method that does not beat this one
earns nothing by its looking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import grids
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
    cost = "whole-number arithmetic on keep numbers"

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        return grids.middles(keep, inputs["grid"])

    def build(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        op = g.op
        batch = op.Shape(inputs["image_features"], start=0, end=1)
        indices = grids.write_middles(g, keep, options["grid"])
        return op.Expand(op.Unsqueeze(indices, g.ints(0)), op.Concat(batch, keep, axis=0))
