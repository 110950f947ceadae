"""The positions of an image's visual tokens, and the image cut into ``keep`` cells; NumPy and graph side by side.

A *grid* is int64 [N, 3]: crop, row and column of each visual token.  Rows and columns count over the plane that the
crop lies on, so that the tokens of a crop fill a rectangle of it.  A token with a row below 0 (a newline, a CLS token)
is never a candidate.

Cells are cut crop by crop, in the order of the crops' numbers, in whole numbers.  For S candidates in all, A of them in
front of a crop of R rows and C columns, the crop gets K = floor((A + R C) · keep / S) - floor(A · keep / S) cells:

    r       = the whole number nearest sqrt(K · R / C) (halves up), at least 1 and ceil(K / C), at most K
    band    = floor(y · r / R) of patch row y                       r bands of whole rows
    first_i = floor(i · K / r)                                      band i has first_{i+1} - first_i cells
    cell    = first_band + floor(x · cells_band / C) of column x

Cells are about square.  None is empty: K <= R C makes r <= R, so that every band has a row, r <= K gives it a cell, and
r >= K / C no more cells than columns.  With keep = S every patch is a cell.  A crop that gets no cell is in none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["MOST_CROPS", "candidates", "cells", "full_grid", "write_boxes", "write_candidates", "write_cells"]

MOST_CROPS = 64
"""Largest number of crops of an image, if the build has no smaller one."""


def full_grid(rows: int, columns: int) -> np.ndarray:
    """The grid of one crop with a visual token for each patch, row by row: int64 [rows · columns, 3]."""
    import numpy as np

    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return np.stack([np.zeros_like(y), y, x], axis=1)


def candidates(grid: np.ndarray) -> np.ndarray:
    """bool [N]: whether each token of a grid may be chosen."""
    chosen: np.ndarray = grid[:, 1] >= 0
    return chosen


def cells(keep: int, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each visual token, and whether the token is the cell's middle.

    Args:
        keep: Number of cells, at most that of candidates.
        grid: int64 [N, 3].

    Returns:
        int64 [N], 0 to keep - 1 or -1 for a token in none, and bool [N]: the patch in the middle of its cell, the upper
        left one of two or four.
    """
    import numpy as np

    crop, row, column = grid.T
    chosen = candidates(grid)
    cell, middle = np.full(len(grid), -1, np.int64), np.zeros(len(grid), np.bool_)
    tokens = [np.flatnonzero(chosen & (crop == number)) for number in np.unique(crop[chosen])]
    tops, lefts = ([int(axis[own].min()) for own in tokens] for axis in (row, column))
    heights = [int(row[own].max()) - top + 1 for own, top in zip(tokens, tops, strict=True)]
    widths = [int(column[own].max()) - left + 1 for own, left in zip(tokens, lefts, strict=True)]
    total, before = sum(h * w for h, w in zip(heights, widths, strict=True)), 0
    for own, top, left, height, width in zip(tokens, tops, lefts, heights, widths, strict=True):
        start = before * keep // total
        before += height * width
        count = before * keep // total - start
        if not count:
            continue
        bands = _bands(count, height, width)
        y, x = row[own] - top, column[own] - left
        band = y * bands // height
        first = band * count // bands
        across = (band + 1) * count // bands - first
        part = x * across // width
        cell[own] = start + first + part
        middle[own] = (y == _middle(band, height, bands)) & (x == _middle(part, width, across))
    return cell, middle


def _bands(count: int, height: int, width: int) -> int:
    # The largest m with (m - 1/2)^2 <= count · height / width.
    near = (math.isqrt(4 * count * height // width) + 1) // 2
    return max(1, min(near, count), -(-count // width))


def _middle(part: Any, size: Any, parts: Any) -> Any:
    """The middle, rounded down, of the ``part``-th stretch where floor(z · parts / size) is the same."""
    first = (part * size + parts - 1) // parts
    last = ((part + 1) * size + parts - 1) // parts - 1
    return (first + last) // 2


# -- graph ------------------------------------------------------------------------------------------------------


def write_candidates(g: Graph, grid: ir.Value) -> ir.Value:
    """:func:`candidates` of int64 [batch, N, 3]: bool [batch, N]."""
    return g.op.GreaterOrEqual(_column(g, grid, 1), g.ints(0))


def _column(g: Graph, grid: ir.Value, axis: int) -> ir.Value:
    """Crop (0), row (1) or column (2) of each token, int64 [batch, N]."""
    return g.op.Squeeze(g.op.Slice(grid, g.ints(axis), g.ints(axis + 1), g.ints(2)), g.ints(2))


@dataclass(frozen=True)
class Boxes:
    """The rectangles that the crops' candidates fill.

    Attributes:
        crop, row, column: The place of each token, int64 [batch, N].
        chosen: bool [batch, N]: the candidates.
        top, left, height, width: The box of each crop, int64 [batch, crops]; height and width are 0 for one without
            tokens.
        of_token: A table [batch, crops] → each token's entry, [batch, N].
    """

    crop: ir.Value
    row: ir.Value
    column: ir.Value
    chosen: ir.Value
    top: ir.Value
    left: ir.Value
    height: ir.Value
    width: ir.Value
    of_token: Callable[[ir.Value], ir.Value]


def write_boxes(g: Graph, grid: ir.Value, most_crops: int) -> Boxes:
    """The boxes of int64 ``grid`` [batch, N, 3] of crops below ``most_crops``."""
    op = g.op
    zero, one = g.ints(0), g.ints(1)
    crop, row, column = (_column(g, grid, axis) for axis in range(3))
    chosen = op.GreaterOrEqual(row, zero)
    number = op.Unsqueeze(g.ints(*range(most_crops)), one)
    own = op.And(op.Equal(op.Unsqueeze(crop, one), number), op.Unsqueeze(chosen, one))  # [batch, crops, N]

    def extent(axis: ir.Value) -> tuple[ir.Value, ir.Value]:
        places = op.Unsqueeze(axis, one)
        start = op.ReduceMin(op.Where(own, places, g.ints(1 << 30)), g.ints(2), keepdims=0)
        stop = op.ReduceMax(op.Where(own, places, g.ints(-1)), g.ints(2), keepdims=0)
        return start, op.Max(op.Sub(op.Add(stop, one), start), zero)

    place = op.Max(crop, zero)
    (top, height), (left, width) = extent(row), extent(column)
    return Boxes(
        crop, row, column, chosen, top, left, height, width, lambda table: op.GatherElements(table, place, axis=1)
    )


def write_cells(g: Graph, keep: ir.Value, grid: ir.Value, most_crops: int) -> tuple[ir.Value, ir.Value]:
    """:func:`cells` for int64 ``keep`` [1] and ``grid`` [batch, N, 3] of crops below ``most_crops``."""
    op = g.op
    zero, one = g.ints(0), g.ints(1)
    boxes = write_boxes(g, grid, most_crops)
    height, width, of_token = boxes.height, boxes.width, boxes.of_token
    behind = op.CumSum(op.Mul(height, width), one)
    total = op.Max(op.ReduceMax(behind, one, keepdims=1), one)
    start = op.Div(op.Mul(op.Sub(behind, op.Mul(height, width)), keep), total)
    count = op.Sub(op.Div(op.Mul(behind, keep), total), start)
    bands = _write_bands(g, count, height, width)
    tall, wide, cut, many = (of_token(op.Max(table, one)) for table in (height, width, bands, count))
    y, x = op.Sub(boxes.row, of_token(boxes.top)), op.Sub(boxes.column, of_token(boxes.left))
    band = op.Div(op.Mul(y, cut), tall)
    first = op.Div(op.Mul(band, many), cut)
    across = op.Max(op.Sub(op.Div(op.Mul(op.Add(band, one), many), cut), first), one)
    part = op.Div(op.Mul(x, across), wide)

    def middle(part: ir.Value, size: ir.Value, parts: ir.Value) -> ir.Value:
        def begin(part: ir.Value) -> ir.Value:
            return op.Div(op.Sub(op.Add(op.Mul(part, size), parts), one), parts)

        return op.Div(op.Sub(op.Add(begin(part), begin(op.Add(part, one))), one), g.ints(2))

    inside = op.And(boxes.chosen, op.Greater(of_token(count), zero))
    central = op.And(op.Equal(y, middle(band, tall, cut)), op.Equal(x, middle(part, wide, across)))
    cell = op.Add(op.Add(of_token(start), first), part)
    return op.Where(inside, cell, g.ints(-1)), op.And(inside, central)


def _write_bands(g: Graph, count: ir.Value, height: ir.Value, width: ir.Value) -> ir.Value:
    """Bands of each crop, int64 [batch, crops]."""
    import onnx_ir as ir

    op, one = g.op, g.ints(1)
    width = op.Max(width, one)
    square = op.Div(op.Mul(op.Mul(count, height), g.ints(4)), width)
    root = op.Cast(op.Sqrt(op.Cast(square, to=int(ir.DataType.FLOAT))), to=int(ir.DataType.INT64))
    # float32 can be one off where the number is large.
    root = op.Where(op.Greater(op.Mul(root, root), square), op.Sub(root, one), root)
    more = op.Add(root, one)
    root = op.Where(op.LessOrEqual(op.Mul(more, more), square), more, root)
    near = op.Div(op.Add(root, one), g.ints(2))
    least = op.Div(op.Sub(op.Add(count, width), one), width)
    return op.Max(op.Max(op.Min(near, count), least), one)
