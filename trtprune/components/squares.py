"""Squares of patches that become one visual token each, and what belongs to them.

The patches of a square lie side by side in one row of the projector's input, row by row (``pixel_shuffle`` of
transformers' InternVL and Idefics3, which are the same permutation: space to depth).  What a pruning method reads of a
patch, its attention or its key, is the mean over the square, so that there is one value a visual token.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtprune.graph import Graph

__all__ = ["Squares"]


@dataclass(frozen=True)
class Squares:
    """Squares of ``side`` × ``side`` patches on a grid of ``rows`` × ``columns`` patches, multiples of the side."""

    rows: int
    columns: int
    side: int

    @property
    def count(self) -> int:
        """Squares of a crop."""
        return (self.rows // self.side) * (self.columns // self.side)

    def rows_of(self, g: Graph, features: ir.Value, width: int) -> ir.Value:
        """[B, patches, width] → [B, squares, side² · width], the patches of a square row by row."""
        op, side = g.op, self.side
        # Neighbours in a row of patches lie side by side already.
        x = op.Reshape(features, g.ints(-1, side, self.columns // side, side * width))
        x = op.Transpose(x, perm=[0, 2, 1, 3])
        return op.Reshape(x, g.ints(-1, self.count, side * side * width))

    def means(self, g: Graph, values: ir.Value, width: int = 0) -> ir.Value:
        """The mean over each square of float32 [B, patches] (or [B, patches, width]): [B, squares] (…)."""
        op, side = g.op, self.side
        tail = [width] if width else []
        x = op.Reshape(values, g.ints(-1, side, self.columns // side, side, *tail))
        x = op.ReduceMean(x, g.ints(1, 3), keepdims=0)
        return op.Reshape(x, g.ints(-1, self.count, *tail))
