"""The positions of a packed tower's patches: their places in the image, rotary angles, and a resampled table.

A table of learned positions is a square, which is resampled to the grid of an image: the corners of the two coincide,
and between its entries the table is bilinear, as in ``get_vision_interpolation_indices_and_weights`` of transformers
5.23 with ``align_corners``.  The grid's sides are in the patches' places, so that a graph needs no input for them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtprune.graph import Graph

__all__ = ["patch_angles", "patch_places", "resampled_positions"]

_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def patch_places(g: Graph, positions: ir.Value, merge: int) -> ir.Value:
    """Row and column of each patch in merge order, float32 [1, patches, 2], of those of the visual tokens.

    Args:
        positions: int64 [N, 2].
        merge: Patches on a side of a visual token.
    """
    op = g.op
    inside = np.stack(np.divmod(np.arange(merge**2, dtype=np.int64), merge), axis=1)
    first = op.Mul(op.Unsqueeze(positions, g.ints(1)), g.scalar(merge, _INT64))
    patches = g.cast(op.Add(first, g.constant(inside[None], "patches_of_token")), _FLOAT)  # [N, unit, 2]
    return op.Reshape(patches, g.ints(1, -1, 2))


def patch_angles(g: Graph, places: ir.Value, head_dim: int, theta: float) -> tuple[ir.Value, ir.Value]:
    """cos and sin float32 [1, patches, head_dim / 2] of the patches' rotary embedding.

    Args:
        places: float32 [1, patches, 2], row and column of each patch.
        head_dim: Width of a head, a multiple of 4: each axis has a quarter as many frequencies.
        theta: Base of the frequencies.
    """
    op, quarter = g.op, head_dim // 4
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2)
    inv_freq = (1.0 / np.power(np.float32(theta), exponent)).astype(np.float32)
    angles = op.Mul(op.Unsqueeze(places, g.ints(3)), g.constant(inv_freq, "inv_freq"))  # [1, patches, 2, quarter]
    angles = op.Reshape(angles, g.ints(1, -1, 2 * quarter))
    return op.Cos(angles), op.Sin(angles)


def resampled_positions(g: Graph, places: ir.Value, table: ir.Value, side: int) -> ir.Value:
    """The position embedding of each patch, of the model's dtype and summed in float32: [1, patches, C].

    Args:
        g: The graph.
        places: float32 [1, patches, 2], the row and column of each patch of an image, its last ones among them.
        table: [side², C], row by row.
        side: Entries on a side of the table.
    """
    op = g.op
    last = op.ReduceMax(places, g.ints(1), keepdims=1)
    # A grid of one row has the table's first; the order of the operations is transformers', for equal rounding.
    scaled = op.Div(op.Mul(places, g.scalar(side - 1, _FLOAT)), op.Max(last, g.scalar(1.0, _FLOAT)))
    floor = op.Floor(scaled)
    behind = op.Sub(scaled, floor)
    first = op.Cast(floor, to=_INT64)
    second = op.Min(op.Add(first, g.scalar(1, _INT64)), g.scalar(side - 1, _INT64))
    weights = [op.Sub(g.scalar(1.0, _FLOAT), behind), behind]
    rows, columns = zip(*(op.Split(tap, g.ints(1, 1), axis=2, _outputs=2) for tap in (first, second)), strict=True)
    shares = [op.Split(weight, g.ints(1, 1), axis=2, _outputs=2) for weight in weights]
    total: ir.Value | None = None
    for row, (down, _) in zip(rows, shares, strict=True):
        for column, (_, across) in zip(columns, shares, strict=True):
            index = op.Squeeze(op.Add(op.Mul(row, g.scalar(side, _INT64)), column), g.ints(2))
            part = op.Mul(g.cast(op.Gather(table, index, axis=0), _FLOAT), op.Mul(down, across))
            total = part if total is None else op.Add(total, part)
    assert total is not None
    return g.cast(total, g.dtype)
