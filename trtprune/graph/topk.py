"""The best of a list in order, also where a backend's TopK returns no more than some entries.

TensorRT's returns 3840; a longer list is put in order in pieces: the best entries, then, with these out of the way,
the best of the rest, and so on.  Of equal entries each piece takes what one TopK would take next, so that both give
the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from trtprune.graph.builder import Graph

__all__ = ["top"]

LOWEST = np.finfo(np.float32).min


def top(
    g: Graph, op: Any, values: ir.Value, count: ir.Value, *, largest: bool = True, dtype: type = np.float32
) -> tuple[ir.Value, ir.Value]:
    """The ``count`` largest, or smallest, of ``values`` [..., N] in order, and their places int64: [..., count].

    Args:
        g: The graph; its ``pieces`` say how the list is put in order.
        op: Its nodes, or those of a function or a loop's body.
        values: Of dtype ``dtype``, float32 or int64; NaN has no defined place, and with pieces an infinity none below
            the largest finite number.
        count: int64 [1], from 1 to N.
        largest: Whether the largest come first.
        dtype: The element type.
    """

    def constant(value: Any, kind: type) -> ir.Value:
        made: ir.Value = op.Constant(value=ir.tensor(np.array(value, kind)))
        return made

    pieces = g.pieces
    if pieces is None:
        found, places = op.TopK(values, count, axis=-1, largest=int(largest), sorted=1, _outputs=2)
        return found, places
    if dtype is np.float32:
        gone = constant(-np.inf if largest else np.inf, dtype)
        values = op.Max(values, constant(LOWEST, dtype)) if largest else op.Min(values, constant(-LOWEST, dtype))
    else:
        limits = np.iinfo(np.int64)
        gone = constant(limits.min if largest else limits.max, dtype)
    size = op.Min(count, constant([pieces.entries], np.int64))
    best: list[ir.Value] = []
    where: list[ir.Value] = []
    rest = values
    for piece in range(pieces.count):
        if piece:
            rest = op.ScatterElements(rest, where[-1], op.Expand(gone, op.Shape(where[-1])), axis=-1)
        found, places = op.TopK(rest, size, axis=-1, largest=int(largest), sorted=1, _outputs=2)
        best.append(found)
        where.append(places)
    begin, axis = constant([0], np.int64), constant([-1], np.int64)
    found, places = (op.Slice(op.Concat(*parts, axis=-1), begin, count, axis) for parts in (best, where))
    return found, places
