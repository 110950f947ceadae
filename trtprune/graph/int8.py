"""Products of 8-bit integers: rows of activations with a scale each, by int8 matrices with a scale an output channel.

A scale for the whole tensor would be one operator less, but a single large row (a prompt's first tokens have features
hundreds of times as large as the others') takes the resolution of all rows away.

The rows are stored unsigned about 128, not signed: processors multiply unsigned by signed bytes.  They run over ±127
and are symmetric, so the zero point is the same number for all of them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtprune.graph.builder import Graph

__all__ = ["int8_product"]

ZERO = 128
LIMIT = 127
LEAST_SCALE = 1e-30
"""The scale of a row of zeros; any positive number does."""


def int8_product(g: Graph, x: ir.Value, key: str) -> ir.Value:
    """``x @ W.T`` of features [..., in], rounded row by row, and the int8 matrix ``key``.

    With s = max |row| / 127 of each row and the matrix' integers W and scales c:
    ``(round(x / s) @ W) * c * s``, the sum in int32, without another rounding.
    """
    op = g.op
    integers, scales = g.integers(key)
    rows, steps = g.memo(("int8 rows", x), lambda: _int8_rows(g, x))
    total = op.MatMulInteger(rows, integers, _zero(g))
    return op.Mul(op.Mul(op.Cast(total, to=int(g.dtype)), scales), steps)


def _int8_rows(g: Graph, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """uint8 [..., in] about 128 and the scales [..., 1]; matrices that read the same features share them."""
    op = g.op
    largest = op.ReduceMax(op.Abs(x), g.ints(-1), keepdims=1)
    steps = op.Max(op.Mul(largest, g.scalar(1 / LIMIT)), g.scalar(LEAST_SCALE))
    return op.QuantizeLinear(op.Div(x, steps), g.scalar(1.0), _zero(g)), steps


def _zero(g: Graph) -> ir.Value:
    return g.memo("int8 zero", lambda: g.constant(np.asarray(ZERO, np.uint8), "int8_zero"))
