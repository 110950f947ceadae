"""The grid of patches pooled to ``keep`` rows: a baseline that merges instead of dropping.

The grid is cut into ``keep`` cells (the rule is in :mod:`trtprune.pruning.grids`); row i is the mean of the projected
features in cell i.  ``kept_indices`` names the patch in the middle of each cell, what ``uniform`` keeps.  Features that
are not finite are left out of the mean, and a cell of nothing else is a row of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.pruning import grids, merging, ops
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Downsample"]


@register
class Downsample(Method):
    """The mean of each of ``keep`` cells of the grid."""

    name = "downsample"
    summary = "the grid pooled to fewer, larger cells"
    needs = frozenset({"grid"})
    cost = "one keep x N x D product"
    merges = True

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        return grids.middles(keep, inputs["grid"])

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        members = grids.cells(keep, inputs["grid"]) == np.arange(keep)[:, None]
        return self.select(image_features, keep=keep, **inputs), merging.means(members, image_features)[0]

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        return grids.middles(keep, inputs["grid"])[grids.cells(keep, inputs["grid"])]

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        op = g.op
        features = inputs["image_features"]
        batch = op.Shape(features, start=0, end=1)
        indices = grids.write_middles(g, keep, options["grid"])
        cells = grids.write_cells(g, keep, options["grid"])
        members = op.Unsqueeze(op.Equal(op.Unsqueeze(ops.iota(g, keep), g.ints(1)), cells), g.ints(0))
        rows, _ = merging.write_means(g, members, features)
        return op.Expand(op.Unsqueeze(indices, g.ints(0)), op.Concat(batch, keep, axis=0)), rows
