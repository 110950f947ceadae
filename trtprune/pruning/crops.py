"""A budget shared out to the crops of an image, as the authors' codes do it; NumPy and graph side by side.

Of ``keep`` tokens each of C crops with candidates gets floor(keep / C), the first ones in the order of their numbers
one more until ``keep`` is shared out.  A crop with fewer candidates than that gives all it has, and what is left goes
to the best of all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.pruning import grids, ops
from trtprune.pruning.options import Option

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["CROPS", "NEVER", "listed_by_crop", "local_places", "write_listed_by_crop", "write_local_places"]

CROPS = Option(
    "crops",
    "joint",
    "joint: the crops of an image compete for its budget; each: it is shared out to them, as the authors' code does",
    choices=("joint", "each"),
)
NEVER = -3.0e38
"""Score of a token that is no candidate: below every other."""


def listed_by_crop(scores: np.ndarray, grid: np.ndarray, keep: int) -> tuple[np.ndarray, int]:
    """All tokens in the order in which a budget that is shared out takes them.

    Args:
        scores: float32 [N], finite or ``NAN_SCORE``.
        grid: int64 [N, 3].
        keep: The budget.

    Returns:
        int64 [N]: crop by crop the best of each, best first, then all others, best first; and how many the first are.
    """
    import numpy as np

    chosen = grids.candidates(grid)
    order = ops.descending(np.where(chosen, scores, np.float32(NEVER)))
    crop = np.where(chosen, grid[:, 0], -1)[order]
    numbers = np.unique(crop[crop >= 0])
    share, more = divmod(keep, max(1, len(numbers)))
    listed = [order[crop == number][: share + (place < more)] for place, number in enumerate(numbers)]
    first = np.concatenate([np.zeros(0, np.int64), *listed])
    return np.concatenate([first, order[~np.isin(order, first)]]), len(first)


def local_places(grid: np.ndarray) -> np.ndarray:
    """The number of each candidate in its crop, row by row, plus the crop's number: int64 [N], 0 for other tokens."""
    import numpy as np

    crop, row, column = grid.T
    chosen, places = grids.candidates(grid), np.zeros(len(grid), np.int64)
    for number in np.unique(crop[chosen]):
        own = chosen & (crop == number)
        y, x = row[own] - row[own].min(), column[own] - column[own].min()
        places[own] = y * (x.max() + 1) + x + number
    return places


def write_listed_by_crop(
    g: Graph, scores: ir.Value, grid: ir.Value, keep: ir.Value, most_crops: int
) -> tuple[ir.Value, ir.Value]:
    """:func:`listed_by_crop` for [batch, N], [batch, N, 3] and [1]: int64 [batch, N] and [batch, 1]."""
    import onnx_ir as ir

    op, int64 = g.op, int(ir.DataType.INT64)
    zero, one = g.ints(0), g.ints(1)
    chosen = grids.write_candidates(g, grid)
    tokens = op.Shape(scores, start=1, end=2)
    _, order = ops.top(g, op.Where(chosen, scores, ops.f32(g, NEVER)), tokens)
    numbers = op.Squeeze(op.Slice(grid, zero, one, g.ints(2)), g.ints(2))
    crop = op.GatherElements(op.Where(chosen, numbers, g.ints(most_crops)), order, axis=1)
    own = op.Cast(op.Equal(op.Unsqueeze(crop, one), op.Unsqueeze(g.ints(*range(most_crops)), one)), to=int64)
    size = op.ReduceSum(own, g.ints(2), keepdims=0)
    present = op.Cast(op.Greater(size, zero), to=int64)
    place = op.Sub(op.CumSum(present, one), present)
    crops = op.Max(op.ReduceSum(present, one, keepdims=1), one)
    more = op.Cast(op.Less(place, op.Mod(keep, crops)), to=int64)
    quota = op.Min(op.Mul(op.Add(op.Div(keep, crops), more), present), size)
    start = op.Sub(op.CumSum(quota, one), quota)
    count = op.ReduceSum(quota, one, keepdims=1)

    rank = op.Sub(op.ReduceSum(op.Mul(own, op.CumSum(own, g.ints(2))), one, keepdims=0), one)
    bucket = op.Min(crop, g.ints(most_crops - 1))
    listed = op.And(op.Less(crop, g.ints(most_crops)), op.Less(rank, op.GatherElements(quota, bucket, axis=1)))
    other = op.Cast(op.Not(listed), to=int64)
    behind = op.Add(count, op.Sub(op.CumSum(other, one), one))
    where = op.Where(listed, op.Add(op.GatherElements(start, bucket, axis=1), rank), behind)
    return op.ScatterElements(op.Expand(zero, op.Shape(order)), where, order, axis=1), count


def write_local_places(g: Graph, grid: ir.Value, most_crops: int) -> ir.Value:
    """:func:`local_places` for int64 [batch, N, 3]: int64 [batch, N]."""
    op = g.op
    boxes = grids.write_boxes(g, grid, most_crops)
    width = boxes.of_token(op.Max(boxes.width, g.ints(1)))
    y, x = op.Sub(boxes.row, boxes.of_token(boxes.top)), op.Sub(boxes.column, boxes.of_token(boxes.left))
    return op.Where(boxes.chosen, op.Add(op.Add(op.Mul(y, width), x), boxes.crop), g.ints(0))
