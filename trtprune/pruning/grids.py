"""A grid of patches cut into exactly ``keep`` cells, for any ``keep``; in whole numbers, NumPy and graph side by side.

For R rows, C columns and K cells:

    r       = the whole number nearest sqrt(K · R / C) (halves up), at least 1 and ceil(K / C), at most R and K
    band    = floor(y · r / R) of patch row y                       r bands of whole rows
    first_i = floor(i · K / r)                                      band i has first_{i+1} - first_i cells
    cell    = first_band + floor(x · cells_band / C) of column x

Cells are about square.  None is empty: r <= R gives every band a row, r <= K a cell, and r >= K / C no more cells than
columns.  With K = R · C every patch is a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune.pruning import ops

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["cells", "middles", "write_cells", "write_middles"]


def _bands(keep: int, grid: tuple[int, int]) -> int:
    rows, columns = grid
    near = sum((2 * m - 1) ** 2 * columns <= 4 * keep * rows for m in range(1, rows + 1))  # (m - 1/2)^2 <= K R / C
    return max(1, min(near, keep), -(-keep // columns))


def cells(keep: int, grid: tuple[int, int]) -> np.ndarray:
    """int64 [N]: the cell, 0 to keep - 1, of each patch."""
    import numpy as np

    y, x = np.divmod(np.arange(grid[0] * grid[1], dtype=np.int64), grid[1])
    bands = _bands(keep, grid)
    band = y * bands // grid[0]
    first = band * keep // bands
    return first + x * ((band + 1) * keep // bands - first) // grid[1]


def middles(keep: int, grid: tuple[int, int]) -> np.ndarray:
    """int64 [keep]: the patch in the middle of each cell, the upper left one of two or four; ascending."""
    import numpy as np

    rows, columns = grid
    bands = _bands(keep, grid)
    cell = np.arange(keep, dtype=np.int64)
    band = ((cell + 1) * bands - 1) // keep
    first = band * keep // bands
    count = (band + 1) * keep // bands - first
    y = _middle(band, rows, bands)
    return y * columns + _middle(cell - first, columns, count)


def _middle(part: Any, size: int, parts: Any) -> Any:
    """The middle, rounded down, of the ``part``-th stretch where floor(z · parts / size) is the same."""
    first = (part * size + parts - 1) // parts
    last = ((part + 1) * size + parts - 1) // parts - 1
    return (first + last) // 2


def _write_bands(g: Graph, keep: ir.Value, grid: tuple[int, int]) -> ir.Value:
    """int64 [1]."""
    import onnx_ir as ir

    op = g.op
    rows, columns = grid
    odd = op.Add(op.Mul(ops.iota(g, g.ints(rows)), g.ints(2)), g.ints(1))
    bounds = op.Mul(op.Mul(odd, odd), g.ints(columns))
    within = op.Cast(op.LessOrEqual(bounds, op.Mul(keep, g.ints(4 * rows))), to=int(ir.DataType.INT64))
    near = op.ReduceSum(within, g.ints(0), keepdims=1)
    least = op.Div(op.Add(keep, g.ints(columns - 1)), g.ints(columns))
    return op.Max(op.Max(op.Min(near, keep), least), g.ints(1))


def write_cells(g: Graph, keep: ir.Value, grid: tuple[int, int]) -> ir.Value:
    """:func:`cells` for int64 ``keep`` [1]."""
    op = g.op
    rows, columns = grid
    bands = _write_bands(g, keep, grid)
    place = ops.iota(g, g.ints(rows * columns))
    band = op.Div(op.Mul(op.Div(place, g.ints(columns)), bands), g.ints(rows))
    first = op.Div(op.Mul(band, keep), bands)
    count = op.Sub(op.Div(op.Mul(op.Add(band, g.ints(1)), keep), bands), first)
    return op.Add(first, op.Div(op.Mul(op.Mod(place, g.ints(columns)), count), g.ints(columns)))


def write_middles(g: Graph, keep: ir.Value, grid: tuple[int, int]) -> ir.Value:
    """:func:`middles` for int64 ``keep`` [1]."""
    op = g.op
    rows, columns = grid
    one = g.ints(1)
    bands = _write_bands(g, keep, grid)

    def middle(part: ir.Value, size: int, parts: ir.Value) -> ir.Value:
        def start(part: ir.Value) -> ir.Value:
            return op.Div(op.Sub(op.Add(op.Mul(part, g.ints(size)), parts), one), parts)

        return op.Div(op.Sub(op.Add(start(part), start(op.Add(part, one))), one), g.ints(2))

    cell = ops.iota(g, keep)
    band = op.Div(op.Sub(op.Mul(op.Add(cell, one), bands), one), keep)
    first = op.Div(op.Mul(band, keep), bands)
    count = op.Sub(op.Div(op.Mul(op.Add(band, one), keep), bands), first)
    y = middle(band, rows, bands)
    return op.Add(op.Mul(y, g.ints(columns)), middle(op.Sub(cell, first), columns, count))
