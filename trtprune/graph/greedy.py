"""Greedy selection of tokens that are unlike each other, as a call that a TensorRT plugin can take over."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript._internal.builder import build_function

from trtprune.graph.builder import DOMAIN, Graph
from trtprune.graph.ops import PLUGIN_ATTRIBUTES

__all__ = ["MODES", "TAKEN", "maxmin_select"]

TAKEN = 3.0e38
"""Closeness of a token that is already selected: above every other."""
MODES = ("maxmin", "meansim")


def maxmin_select(g: Graph, similarity: ir.Value, close: ir.Value, steps: ir.Value, mode: str) -> ir.Value:
    """Pick, ``steps`` times, the token least close to those picked before; the lowest index of equals.

    A call of the local function ``trtprune::MaxMinSelect``: a Loop, which costs several launches a step, or the
    one-block kernel of ``plugins/`` where TensorRT has it registered.

    Args:
        g: The graph.
        similarity: float32 [batch, N, N].
        close: float32 [batch, N], the closeness to what was picked before; :data:`TAKEN` for that itself.
        steps: int64 [1], 0 ≤ steps.
        mode: How closeness goes on: ``maxmin``, the largest similarity to a picked token, or ``meansim``, their sum.

    Returns:
        ``close`` after the last step.  It alone says what was picked, so nothing is collected on the way, and no
        step at all leaves no tensor without elements behind.
    """

    def body(op: Any, similarity: ir.Value, close: ir.Value, steps: ir.Value) -> ir.Value:
        taken = op.Constant(value=ir.tensor(np.float32(TAKEN)))
        zero, one = (op.Constant(value=ir.tensor(np.int64(n))) for n in (0, 1))
        place = op.Range(zero, op.Squeeze(op.Shape(close, start=1, end=2)), one)

        def step(op: Any, step: ir.Value, go_on: ir.Value, close: ir.Value) -> list[ir.Value]:
            best = op.ArgMin(close, axis=1, keepdims=1, select_last_index=0)
            row = op.GatherND(similarity, best, batch_dims=1)
            closer = op.Max(close, row) if mode == "maxmin" else op.Add(close, row)
            return [op.Identity(go_on), op.Where(op.Equal(place, best), taken, closer)]

        state = ir.Shape(["batch", "visual_tokens"])
        graph = op.builder.subgraph(
            step,
            [
                ir.val("step", ir.DataType.INT64, []),
                ir.val("go_on", ir.DataType.BOOL, []),
                ir.val("close_in", ir.DataType.FLOAT, state),
            ],
            [ir.val("go_on_out", ir.DataType.BOOL, []), ir.val("close_out", ir.DataType.FLOAT, state)],
            name="pick_least_close",
        )
        return op.Loop(op.Squeeze(steps), op.Constant(value=ir.tensor(np.bool_(True))), close, body=graph)

    function = g.memo(
        ("MaxMinSelect", mode),
        lambda: build_function(
            body,
            [ir.Value(name=n) for n in ("similarity", "close", "steps")],
            domain=DOMAIN,
            name="MaxMinSelect",
            opset_imports={"": g.lowering.opset},
        ),
    )
    named = {key: PLUGIN_ATTRIBUTES[key] for key in ("plugin_namespace", "plugin_version")}
    result = g.builder.call(function, similarity, close, steps, mode=mode, **named)
    result.type, result.shape = close.type, close.shape
    return result
