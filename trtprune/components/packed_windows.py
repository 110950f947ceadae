"""The attention windows of a packed tower: an image's visual tokens, gathered into windows of one length and back.

The arrays come from :func:`trtprune.runtime.images.packed.window_arrays`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtprune.graph import Graph
from trtprune.tensor_names import WINDOW_INDEX, WINDOW_PLACES

__all__ = ["Windows"]

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Windows:
    """The windows of an image.

    Attributes:
        length: Patches of a window, with those of empty slots.
        unit: Patches of a visual token.
        index: int64 [windows · slots], the visual token of each slot, 0 for an empty one.
        places: int64 [N], the slot of each visual token.
        taken: bool [windows, 1, 1, length], whether there is a patch.
        mask: That of the windows' attention.
    """

    length: int
    unit: int
    index: ir.Value
    places: ir.Value
    taken: ir.Value
    mask: ir.Value

    @classmethod
    def inputs(cls, g: Graph, slots: int, unit: int) -> Windows:
        """The graph's inputs ``window_index`` and ``window_places``, and what layers make of them once.

        Args:
            slots: Visual tokens of a whole window.
            unit: Patches of a visual token.
        """
        op, int64, length = g.op, ir.DataType.INT64, slots * unit
        window_index = g.input(WINDOW_INDEX, "int64", ["windows", slots])
        places = g.input(WINDOW_PLACES, "int64", ["visual_tokens"])
        index = op.Reshape(op.Max(window_index, g.scalar(0, int64)), g.ints(-1))
        # A slot stands for all patches of its token: [windows, slots, unit] → [windows, 1, 1, length].
        taken = op.GreaterOrEqual(op.Unsqueeze(window_index, g.ints(2)), g.scalar(0, int64))
        taken = op.Expand(taken, g.ints(1, 1, unit))
        taken = op.Reshape(taken, g.ints(-1, 1, 1, length))
        form = g.lowering.vision_attention
        if form.startswith("primitives"):
            half = g.dtype == ir.DataType.FLOAT16 and not form.endswith("float32")
            lowest = float(np.finfo(np.float16).min) if half else -3.0e38
            dtype = _FLOAT if form.endswith("float32") else g.dtype
            mask = op.Where(taken, g.scalar(0.0, dtype), g.scalar(lowest, dtype))
        else:  # ONNX Runtime's operator takes a row for each query
            mask = op.Expand(taken, g.ints(1, 1, length, 1))
        return cls(length, unit, index, places, taken, mask)

    def split(self, g: Graph, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """[1, heads, patches, head_dim] → [windows, heads, length, head_dim]."""
        op = g.op
        tokens = op.Reshape(x, g.ints(heads, -1, self.unit * head_dim))
        slots = op.Gather(tokens, self.index, axis=1)
        windows = op.Reshape(slots, g.ints(heads, -1, self.length, head_dim))
        return op.Transpose(windows, perm=[1, 0, 2, 3])

    def join(self, g: Graph, y: ir.Value, width: int) -> ir.Value:
        """[windows, length, width] → [1, patches, width]."""
        op = g.op
        slots = op.Reshape(y, g.ints(-1, self.unit * width))
        return op.Reshape(op.Gather(slots, self.places, axis=0), g.ints(1, -1, width))

    def received(self, g: Graph, q: ir.Value, k: ir.Value, head_dim: int) -> ir.Value:
        """What each patch receives, the mean over heads and all queries of the image, those of other windows included:
        float32 [1, patches] of queries and keys [windows, heads, length, head_dim]."""
        op = g.op
        scores = op.Mul(
            op.MatMul(g.cast(q, _FLOAT), op.Transpose(g.cast(k, _FLOAT), perm=[0, 1, 3, 2])),
            g.scalar(head_dim**-0.5, _FLOAT),
        )
        weights = op.Softmax(op.Where(self.taken, scores, g.scalar(-3.0e38, _FLOAT)), axis=-1)
        # Queries of empty slots are none of the image's.
        asking = op.Transpose(g.cast(self.taken, _FLOAT), perm=[0, 1, 3, 2])
        sums = op.ReduceSum(op.ReduceMean(op.Mul(weights, asking), g.ints(1), keepdims=0), g.ints(1), keepdims=0)
        patches = op.Gather(op.Reshape(sums, g.ints(-1, self.unit)), self.places, axis=0)
        row = op.Reshape(patches, g.ints(1, -1))
        return op.Div(row, g.cast(op.Shape(row, start=1, end=2), _FLOAT))
