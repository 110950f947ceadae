"""The grid of patches pooled to ``keep`` rows: a baseline that merges instead of dropping.

The grid of each crop is cut into its share of ``keep`` cells (the rule is in :mod:`trtprune.pruning.grids`); a row is
the mean of the projected features in a cell.  ``kept_indices`` names the patch in the middle of each cell, what
``uniform`` keeps.  Features that are not finite are not in the mean, and a cell without finite features is a
row of zeros.
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
        return self._rows_of(keep, inputs["grid"])[0]

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        kept, cell = self._rows_of(keep, inputs["grid"])
        return kept, merging.means((cell[kept][:, None] == cell) & (cell >= 0), image_features)[0]

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        kept, cell = self._rows_of(keep, inputs["grid"])
        named = np.full(keep + 1, -1, np.int64)  # the last one is that of cell -1
        named[cell[kept]] = kept
        return named[cell]

    @staticmethod
    def _rows_of(keep: int, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The patch in the middle of each cell, ascending, and the cell of each token."""
        import numpy as np

        cell, middle = grids.cells(keep, grid)
        scores = np.where(grids.candidates(grid), middle, np.float32(-1))
        return np.sort(ops.descending(scores)[:keep]), cell

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        op, grid = g.op, inputs["grid"]
        cell, middle = grids.write_cells(g, keep, grid, options["most_crops"])
        chosen = op.Where(grids.write_candidates(g, grid), ops.f32(g, 0.0), ops.f32(g, -1.0))
        kept = ops.ascending(g, ops.top(g, op.Where(middle, ops.f32(g, 1.0), chosen), keep)[1], keep)
        own, other = op.Unsqueeze(op.GatherElements(cell, kept, axis=1), g.ints(2)), op.Unsqueeze(cell, g.ints(1))
        members = op.And(op.Equal(own, other), op.GreaterOrEqual(other, g.ints(0)))
        return kept, merging.write_means(g, members, inputs["image_features"])[0]
