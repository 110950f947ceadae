"""A budget shared out to the crops of an image, as the authors' codes do it; NumPy and graph side by side.

Of ``keep`` tokens each of C crops with candidates gets floor(keep / C), the first ones in the order of their numbers
one more until ``keep`` is shared out.  A crop with fewer candidates than that gives all it has, and what is left goes
to the best of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtprune.pruning import grids, ops
from trtprune.pruning.options import Option

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = [
    "CROPS",
    "NEVER",
    "Room",
    "Rooms",
    "listed_by_crop",
    "local_places",
    "needs_by_crop",
    "shares",
    "write_crop_ranks",
    "write_listed_by_crop",
    "write_local_places",
    "write_rooms",
    "write_selected",
]

CROPS = Option(
    "crops",
    "joint",
    "joint: the crops of an image compete for its budget; each: it is shared out to them, as the authors' code does",
    choices=("joint", "each"),
)
NEVER = -3.0e38
"""Score of a token that is no candidate: below every other."""


def needs_by_crop(needs: frozenset[str], options: Mapping[str, Any]) -> frozenset[str]:
    """``needs``, and the grid where the budget is shared out to the crops."""
    return needs | {"grid"} if options["crops"] == "each" else needs


def shares(grid: np.ndarray, keep: int, beside: int = 0) -> list[tuple[int, int]]:
    """The crops with candidates of int64 ``grid`` [N, 3], by number, and how many of ``keep`` tokens each gives.

    A crop gives at most its candidates and ``beside`` more rows.
    """
    import numpy as np

    numbers, sizes = np.unique(grid[grids.candidates(grid), 0], return_counts=True)
    share, more = divmod(keep, max(1, len(numbers)))
    return [
        (int(n), min(share + (place < more), int(size) + beside))
        for place, (n, size) in enumerate(zip(numbers, sizes, strict=True))
    ]


class Rooms:
    """The shares of the crops while a greedy selection fills them.

    Attributes:
        crop: int64 [N], the crop of each token; -1 for one that is no candidate.
        same: bool [N, N]: both tokens are candidates of the same crop.
    """

    def __init__(self, grid: np.ndarray, keep: int) -> None:
        import numpy as np

        self.crop = np.where(grids.candidates(grid), grid[:, 0], -1)
        self.same = (self.crop[:, None] == self.crop) & (self.crop >= 0)
        self._room = np.full(len(grid), -1, np.int64)
        for number, share in shares(grid, keep):
            self._room[self.crop == number] = share

    def best(self, scores: np.ndarray) -> int:
        """The token of highest score in a crop with room, or in any if there is none; of equals the first."""
        import numpy as np

        allowed = self._room >= min(1, self._room.max())
        best = int(np.argmax(np.where(allowed, scores, np.float32(NEVER))))
        self._room[self.same[best] & (self._room > 0)] -= 1
        return best

    def largest(self, values: np.ndarray) -> np.ndarray:
        """The largest of float32 ``values`` [N] in each token's crop; 0 for a token that is no candidate."""
        import numpy as np

        return np.where(self.same, values, np.float32(0)).max(axis=1)


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
    listed = [order[crop == number][:share] for number, share in shares(grid, keep)]
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
    quota = _write_shares(g, own, keep)
    start = op.Sub(op.CumSum(quota, one), quota)
    count = op.ReduceSum(quota, one, keepdims=1)

    rank = op.Sub(op.ReduceSum(op.Mul(own, op.CumSum(own, g.ints(2))), one, keepdims=0), one)
    bucket = op.Min(crop, g.ints(most_crops - 1))
    listed = op.And(op.Less(crop, g.ints(most_crops)), op.Less(rank, op.GatherElements(quota, bucket, axis=1)))
    other = op.Cast(op.Not(listed), to=int64)
    behind = op.Add(count, op.Sub(op.CumSum(other, one), one))
    where = op.Where(listed, op.Add(op.GatherElements(start, bucket, axis=1), rank), behind)
    return op.ScatterElements(op.Expand(zero, op.Shape(order)), where, order, axis=1), count


def _write_shares(g: Graph, own: ir.Value, keep: ir.Value, beside: int = 0) -> ir.Value:
    """:func:`shares` for the tokens of each crop, int64 0 or 1 [batch, crops, N]: int64 [batch, crops]."""
    import onnx_ir as ir

    op, zero, one = g.op, g.ints(0), g.ints(1)
    int64 = int(ir.DataType.INT64)
    size = op.ReduceSum(own, g.ints(2), keepdims=0)
    present = op.Cast(op.Greater(size, zero), to=int64)
    place = op.Sub(op.CumSum(present, one), present)
    crops = op.Max(op.ReduceSum(present, one, keepdims=1), one)
    more = op.Cast(op.Less(place, op.Mod(keep, crops)), to=int64)
    most = op.Add(size, g.ints(beside)) if beside else size
    return op.Min(op.Mul(op.Add(op.Div(keep, crops), more), present), most)


@dataclass(frozen=True)
class Room:
    """:class:`Rooms` as graph nodes; the number of picks that each token's crop has room for is a loop's state.

    Attributes:
        crop: int64 [batch, N], -1 for a token that is no candidate.
        chosen: bool [batch, N]: the candidates.
        own: int64 [batch, crops, N]: 1 for a candidate of the crop, else 0.
        quota: int64 [batch, crops], the shares.
        start: int64 [batch, N], the state before the first pick; -1 for a token that is no candidate.
    """

    crop: ir.Value
    chosen: ir.Value
    own: ir.Value
    quota: ir.Value
    start: ir.Value

    def of_token(self, g: Graph, table: ir.Value, op: Any = None) -> ir.Value:
        """Each token's entry of a table [batch, crops]: [batch, N]; that of crop 0 for a token of none.

        ``op`` makes the nodes of a loop's body, if it is there that the table is.
        """
        op = g.op if op is None else op
        return op.GatherElements(table, op.Max(self.crop, g.ints(0)), axis=1)

    def same(self, g: Graph) -> ir.Value:
        """Whether two tokens are candidates of the same crop: bool [batch, N, N]."""
        op = g.op
        one, two = g.ints(1), g.ints(2)
        return op.And(
            op.Equal(op.Unsqueeze(self.crop, two), op.Unsqueeze(self.crop, one)), op.Unsqueeze(self.chosen, two)
        )

    def masked(self, g: Graph, op: Any, scores: ir.Value, room: ir.Value) -> ir.Value:
        """``scores`` [batch, N], a very low one for a token that must not be the next pick."""
        one = g.ints(1)
        least = op.Min(op.ReduceMax(room, one, keepdims=1), one)
        return op.Where(op.GreaterOrEqual(room, least), scores, ops.f32(g, NEVER))

    def beside(self, op: Any, best: ir.Value) -> ir.Value:
        """Whether each token is in the crop of the candidate ``best`` int64 [batch, 1]: bool [batch, N]."""
        return op.Equal(self.crop, op.GatherElements(self.crop, best, axis=1))

    def after(self, g: Graph, op: Any, room: ir.Value, best: ir.Value) -> ir.Value:
        """``room`` when ``best`` int64 [batch, 1] is picked."""
        return op.Where(op.And(self.beside(op, best), op.Greater(room, g.ints(0))), op.Sub(room, g.ints(1)), room)

    def largest(self, g: Graph, values: ir.Value) -> ir.Value:
        """:meth:`Rooms.largest` for [batch, N]; any number for a token that is no candidate."""
        op, one, zero = g.op, g.ints(1), ops.f32(g, 0.0)
        own = op.Greater(self.own, g.ints(0))
        return self.of_token(g, op.ReduceMax(op.Where(own, op.Unsqueeze(values, one), zero), g.ints(2), keepdims=0))


def write_rooms(g: Graph, grid: ir.Value, keep: ir.Value, most_crops: int, beside: int = 0) -> Room:
    """:class:`Rooms` for int64 ``grid`` [batch, N, 3] of crops below ``most_crops`` and ``keep`` [1].

    ``beside`` is that of :func:`shares`.
    """
    import onnx_ir as ir

    op, one = g.op, g.ints(1)
    chosen = grids.write_candidates(g, grid)
    numbers = op.Squeeze(op.Slice(grid, g.ints(0), one, g.ints(2)), g.ints(2))
    crop = op.Where(chosen, numbers, g.ints(-1))
    own = op.Equal(op.Unsqueeze(crop, one), op.Unsqueeze(g.ints(*range(most_crops)), one))
    own = op.Cast(own, to=int(ir.DataType.INT64))
    quota = _write_shares(g, own, keep, beside)
    start = op.GatherElements(quota, op.Max(crop, g.ints(0)), axis=1)
    return Room(crop, chosen, own, quota, op.Where(chosen, start, g.ints(-1)))


def write_crop_ranks(g: Graph, op: Any, scores: ir.Value, own: ir.Value) -> ir.Value:
    """The rank of each token among those of its crop, the highest score first, of equals the first.

    Args:
        g: The graph.
        op: Its nodes, or those of a loop's body.
        scores: float32 [batch, N].
        own: int64 [batch, crops, N]: 1 for a token of the crop; a token of none has a rank without a meaning.

    Returns:
        int64 [batch, N].
    """
    from trtprune.graph.topk import top

    one, two = g.ints(1), g.ints(2)
    tokens = op.Shape(scores, start=1, end=2)
    _, order = top(g, op, scores, tokens)
    sorted_own = op.GatherElements(own, op.Expand(op.Unsqueeze(order, one), op.Shape(own)), axis=2)
    rank = op.Sub(op.ReduceSum(op.Mul(sorted_own, op.CumSum(sorted_own, two)), one, keepdims=0), one)
    return op.ScatterElements(rank, order, rank, axis=1)


def write_selected(g: Graph, order: ir.Value, keep: ir.Value) -> ir.Value:
    """Scores float32 [batch, N]: 1 for the first ``keep`` of ``order`` int64 [batch, N], 0 for the others."""
    op = g.op
    chosen = op.Slice(order, g.ints(0), keep, g.ints(1))
    one = op.Expand(ops.f32(g, 1.0), op.Shape(chosen))
    return op.ScatterElements(op.Expand(ops.f32(g, 0.0), op.Shape(order)), chosen, one, axis=1)


def write_local_places(g: Graph, grid: ir.Value, most_crops: int) -> ir.Value:
    """:func:`local_places` for int64 [batch, N, 3]: int64 [batch, N]."""
    op = g.op
    boxes = grids.write_boxes(g, grid, most_crops)
    width = boxes.of_token(op.Max(boxes.width, g.ints(1)))
    y, x = op.Sub(boxes.row, boxes.of_token(boxes.top)), op.Sub(boxes.column, boxes.of_token(boxes.left))
    return op.Where(boxes.chosen, op.Add(op.Add(op.Mul(y, width), x), boxes.crop), g.ints(0))
