"""Greedy selections as ONNX loops; :mod:`trtprune.pruning.greedy` has the same in NumPy.

:func:`maxmin_select` is a call that a TensorRT plugin can replace.  A small node costs ONNX Runtime less than a
microsecond per step of a loop, so the time of a step depends on the bytes it touches: matrices stay outside the loop,
a step reads one row of them, and its state is a few vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import build_function

from trtprune.graph.builder import DOMAIN, Graph
from trtprune.graph.ops import PLUGIN_ATTRIBUTES
from trtprune.graph.topk import top
from trtprune.pruning.crops import Room

__all__ = [
    "MODES",
    "TAKEN",
    "coverage_select",
    "determinant_select",
    "maxmin_select",
    "start_at",
    "take_in_turns",
    "write_loop",
]

TAKEN = 3.0e38
"""Closeness of a token that is already selected: above every other."""
MODES = ("maxmin", "meansim")
BLOCK = 32
"""Gains that a step of the lazy loop updates.  Measured with 576 tokens: 16 needs more steps and 64 more work per
step, both for about the same time."""
_GONE = -2.0
"""Gain of a token that is picked."""
_FLOAT, _INT, _BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def maxmin_select(g: Graph, similarity: ir.Value, close: ir.Value, steps: ir.Value, mode: str) -> ir.Value:
    """Pick ``steps`` times the token least close to those picked before; of equals the one with the lowest index.

    A call of the local function ``trtprune::MaxMinSelect``: a Loop with several launches per step, or the one-block
    kernel of ``plugins/`` if it is registered with TensorRT.

    Args:
        g: The graph.
        similarity: float32 [batch, N, N].
        close: float32 [batch, N], the closeness to the tokens picked before; :data:`TAKEN` for these tokens.
        steps: int64 [1], 0 ≤ steps.
        mode: Definition of closeness: ``maxmin``, the largest similarity to a picked token, or ``meansim``, the sum.

    Returns:
        ``close`` after the last step.  The picks follow from it alone, so nothing is collected during the loop, and
        0 steps leave no empty tensor.
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


def start_at(g: Graph, matrix: ir.Value, first: ir.Value, good: ir.Value, last: float) -> ir.Value:
    """The ``close`` [batch, N] of :func:`maxmin_select` after a first pick.

    Args:
        g: The graph.
        matrix: float32 [batch, N, N], the matrix for ``maxmin_select``.
        first: int64 [batch, 1].
        good: bool [batch, N].
        last: Closeness of tokens that are not good.
    """
    op = g.op
    close = op.Where(good, op.GatherND(matrix, first, batch_dims=1), g.scalar(last, _FLOAT))
    return op.Where(op.Equal(_places(g, good), first), g.scalar(TAKEN, _FLOAT), close)


State = tuple[str, ir.Value, ir.DataType, Sequence[int | str]]
"""A loop's state: name, start, dtype and dimensions."""


def write_loop(g: Graph, body: Any, trips: ir.Value, states: Sequence[State]) -> Any:
    """A Loop of at most ``trips`` times ``body(op, step, *states)``; each returns whether to go on, and the states."""

    def step(op: Any, step: ir.Value, go_on: ir.Value, *values: ir.Value) -> list[ir.Value]:
        go_on_out, *out = body(op, step, go_on, *values)
        return [go_on_out, *out]

    graph = g.builder.subgraph(
        step,
        [
            ir.val("step", _INT, []),
            ir.val("go_on", _BOOL, []),
            *(ir.val(f"{name}_in", dtype, ir.Shape(dims)) for name, _, dtype, dims in states),
        ],
        [
            ir.val("go_on_out", _BOOL, []),
            *(ir.val(f"{name}_out", dtype, ir.Shape(dims)) for name, _, dtype, dims in states),
        ],
        name="greedy_step",
    )
    start = [value for _, value, _, _ in states]
    out = g.op.Loop(g.op.Squeeze(trips), g.constant(np.array(True)), *start, body=graph, _outputs=len(states))
    return [out] if len(states) == 1 else out


def _places(g: Graph, scores: ir.Value) -> ir.Value:
    """0, 1, …, N - 1 for [batch, N]."""
    count = g.op.Squeeze(g.op.Shape(scores, start=1, end=2))
    return g.op.Range(g.scalar(0, _INT), count, g.scalar(1, _INT))


@dataclass(frozen=True)
class _Coverage:
    """The inputs of the steps of :func:`coverage_select`, by its arguments' names.

    Attributes:
        place: int64 [N]: 0, 1, …, N - 1.
        block: int64 [1], gains that a step of the lazy loop updates.
    """

    g: Graph
    cover: ir.Value
    keep: ir.Value
    weight: ir.Value | None
    added: bool
    room: Room | None
    place: ir.Value
    block: ir.Value

    def gains(self, op: Any, rows: ir.Value, covered: ir.Value | None, weight: ir.Value | None) -> ir.Value:
        """The gain of each of ``rows`` [batch, M, R]: [batch, M]."""
        more = rows if covered is None else op.Sub(rows, op.Unsqueeze(covered, self.g.ints(1)))
        gain = op.ReduceSum(op.Relu(more), self.g.ints(-1), keepdims=0)
        return gain if weight is None else op.Add(gain, weight) if self.added else op.Mul(gain, weight)

    def every(
        self, op: Any, step: ir.Value, go_on: ir.Value, gain: ir.Value, covered: ir.Value, *rest: ir.Value
    ) -> list[ir.Value]:
        """A step that computes all gains."""
        g = self.g
        best = op.ArgMax(self._allowed(op, gain, rest), axis=1, keepdims=1, select_last_index=0)
        covered = op.Max(covered, op.GatherND(self.cover, best, batch_dims=1))
        gain = op.Where(op.Equal(self.place, best), g.scalar(_GONE, _FLOAT), gain)
        new = self.gains(op, self.cover, covered, self.weight)
        gain = op.Where(op.Less(gain, g.scalar(0.0, _FLOAT)), gain, new)
        return [op.Identity(go_on), gain, covered, *self._after(op, rest, best)]

    def lazy(
        self, op: Any, step: ir.Value, go_on: ir.Value, gain: ir.Value, covered: ir.Value, count: ir.Value,
        *rest: ir.Value,
    ) -> list[ir.Value]:  # fmt: skip
        """A step that brings a block of gains up to date, and picks if the best of all is one of these."""
        g, zero = self.g, self.g.scalar(0.0, _FLOAT)
        _, index = op.TopK(self._allowed(op, gain, rest), self.block, axis=-1, largest=1, sorted=1, _outputs=2)
        old = op.GatherElements(gain, index, axis=1)
        place_of = op.Unsqueeze(index, g.ints(2))
        mine = None if self.weight is None else op.GatherElements(self.weight, index, axis=1)
        new = self.gains(op, op.GatherND(self.cover, place_of, batch_dims=1), covered, mine)
        gain = op.ScatterElements(gain, index, op.Where(op.Less(old, zero), old, new), axis=1)
        best = op.ArgMax(self._allowed(op, gain, rest), axis=1, keepdims=1, select_last_index=0)
        fresh = op.ReduceMax(op.Cast(op.Equal(index, best), to=int(_FLOAT)), g.ints(1), keepdims=1)
        sure = op.And(op.Greater(fresh, zero), op.Less(count, self.keep))
        covered = op.Where(sure, op.Max(covered, op.GatherND(self.cover, best, batch_dims=1)), covered)
        gain = op.Where(op.And(sure, op.Equal(self.place, best)), g.scalar(_GONE, _FLOAT), gain)
        count = op.Add(count, op.Cast(sure, to=int(_INT)))
        fewest = op.Squeeze(op.ReduceMin(count, g.ints(0), keepdims=0), g.ints(0))
        rest = tuple(op.Where(sure, new, old) for old, new in zip(rest, self._after(op, rest, best), strict=True))
        return [op.Less(fewest, op.Squeeze(self.keep, g.ints(0))), gain, covered, count, *rest]

    def _allowed(self, op: Any, gain: ir.Value, rest: tuple[ir.Value, ...]) -> ir.Value:
        return gain if self.room is None else self.room.masked(self.g, op, gain, rest[0])

    def _after(self, op: Any, rest: tuple[ir.Value, ...], best: ir.Value) -> tuple[ir.Value, ...]:
        return () if self.room is None else (self.room.after(self.g, op, rest[0], best),)


def coverage_select(
    g: Graph,
    cover: ir.Value,
    keep: ir.Value,
    good: ir.Value,
    weight: ir.Value | None = None,
    *,
    added: bool = False,
    room: Room | None = None,
) -> ir.Value:
    """Pick ``keep`` times the token that adds most coverage: :func:`trtprune.pruning.greedy.most_covering`.

    The gain of a token, ``Σ_r max(0, cover[j, r] - covered[r])``, can only fall from step to step.  So a gain from an
    earlier step is an upper bound, and ``lowering.coverage == "lazy"`` (Minoux 1978) brings only the :data:`BLOCK`
    largest up to date: if the best of all is one of these, it is the pick; otherwise the next block follows.  Rounding
    keeps the bounds valid: a sum of smaller terms in the same order is not larger.

    Args:
        g: The graph.
        cover: float32 [batch, N, R].
        keep: int64 [1].
        good: bool [batch, N].
        weight: float32 [batch, N], ≥ 0; a factor of the gain, or a term where ``added``.
        added: See ``weight``.
        room: The shares of crops, if the budget is shared out to them.

    Returns:
        float32 [batch, N]: :data:`TAKEN` for what was picked, less for the others.
    """
    op = g.op
    block = op.Min(op.Shape(good, start=1, end=2), g.ints(BLOCK))
    steps = _Coverage(g, cover, keep, weight, added, room, _places(g, good), block)
    first = op.Where(good, steps.gains(op, cover, None, weight), g.scalar(-1.0, _FLOAT))
    nothing = op.Concat(op.Shape(cover, start=0, end=1), op.Shape(cover, start=2, end=3), axis=0)
    states = [
        ("gain", first, _FLOAT, ["batch", "visual_tokens"]),
        ("covered", op.Expand(g.scalar(0.0, _FLOAT), nothing), _FLOAT, ["batch", "covered_things"]),
    ]
    shares = [] if room is None else [("room", room.start, _INT, ["batch", "visual_tokens"])]
    if g.lowering.coverage == "lazy":
        none = op.Expand(g.scalar(0, _INT), op.Concat(op.Shape(good, start=0, end=1), g.ints(1), axis=0))
        states.append(("count", none, _INT, ["batch", "one"]))
        # A bound that no input reaches: each step without a pick brings a gain up to date that was not before.
        trips = op.Mul(keep, op.Shape(good, start=1, end=2))
        gain = write_loop(g, steps.lazy, trips, [*states, *shares])[0]
    else:
        gain = write_loop(g, steps.every, keep, [*states, *shares])[0]
    return op.Where(op.Less(gain, g.scalar(-1.5, _FLOAT)), g.scalar(TAKEN, _FLOAT), gain)


def take_in_turns(g: Graph, cost: ir.Value, first: ir.Value, quota: ir.Value) -> ir.Value:
    """An assignment in turns: each row of ``cost``, one after the other, takes the cheapest tokens that remain.

    Args:
        g: The graph.
        cost: float32 [batch, P, N].
        first: int64 [batch, F], tokens that are taken in advance, in order.
        quota: int64 [batch, P], number of tokens for each row, if so many remain.

    Returns:
        float32 [batch, N], the place of each token in the order; a large number for the others.
    """
    op = g.op
    late = g.scalar(1e9, _FLOAT)
    all_tokens = op.Shape(cost, start=2, end=3)
    shape = op.Concat(op.Shape(cost, start=0, end=1), all_tokens, axis=0)
    nothing = op.Expand(late, shape)
    place = op.Expand(op.Cast(_places(g, nothing), to=int(_FLOAT)), shape)
    before = op.Slice(place, g.ints(0), op.Shape(first, start=1, end=2), g.ints(1))
    order = op.ScatterElements(nothing, first, before, axis=1)
    width = op.Cast(all_tokens, to=int(_FLOAT))
    # All rows at once: inside a loop TensorRT's TopK takes no length that is known at run time only.
    _, sorted_tokens = top(g, op, cost, all_tokens, largest=False)
    one = g.scalar(1.0, _FLOAT)
    share = op.Cast(quota, to=int(_FLOAT))

    def body(op: Any, step: ir.Value, go_on: ir.Value, order: ir.Value) -> list[ir.Value]:
        free = op.Equal(order, late)
        index = op.Gather(sorted_tokens, step, axis=1)
        free_before = op.CumSum(
            op.Cast(op.GatherElements(op.Cast(free, to=int(_INT)), index, axis=1), to=int(_FLOAT)), g.scalar(1, _INT)
        )
        rank = op.ScatterElements(nothing, index, op.Sub(free_before, one), axis=1)
        mine = op.And(free, op.Less(rank, op.Gather(share, op.Unsqueeze(step, g.ints(0)), axis=1)))
        base = op.Mul(width, op.Cast(op.Add(step, g.scalar(1, _INT)), to=int(_FLOAT)))
        return [op.Identity(go_on), op.Where(mine, op.Add(base, rank), order)]

    return write_loop(g, body, op.Shape(cost, start=1, end=2), [("order", order, _FLOAT, ["batch", "visual_tokens"])])[
        0
    ]


def _write_diagonal(
    g: Graph, similarity: ir.Value, factor: ir.Value, good: ir.Value, residual: float, room: Room | None
) -> tuple[ir.Value, ir.Value]:
    """The kernel's diagonal before the first pick, and the value at which an element of it counts as 0: [batch, N]."""
    op, zero = g.op, g.scalar(0.0, _FLOAT)
    place = _places(g, good)
    own = op.Unsqueeze(op.Expand(op.Unsqueeze(place, g.ints(0)), op.Shape(good)), g.ints(2))
    diagonal = op.Squeeze(op.GatherElements(similarity, own, axis=2), g.ints(2))
    first = op.Where(good, op.Max(op.Mul(op.Mul(factor, diagonal), factor), zero), zero)
    largest = op.ReduceMax(first, g.ints(1), keepdims=1) if room is None else room.largest(g, first)
    floor = op.Mul(op.Sqrt(op.Mul(first, largest)), g.scalar(residual, _FLOAT))
    left = op.Where(good, op.Where(op.Greater(first, floor), first, zero), g.scalar(-1.0, _FLOAT))
    return left, floor


def _write_product(g: Graph, op: Any, column: ir.Value, rows: ir.Value) -> ir.Value:
    """``columnᵀ @ rows`` of [batch, K, 1] and [batch, K, N] in a loop's body: [batch, N]."""
    if g.lowering.products == "op":
        return op.Squeeze(op.MatMul(op.Transpose(column, perm=[0, 2, 1]), rows), g.ints(1))
    return op.ReduceSum(op.Mul(column, rows), g.ints(1), keepdims=0)


def determinant_select(
    g: Graph,
    similarity: ir.Value,
    factor: ir.Value,
    keep: ir.Value,
    good: ir.Value,
    residual: float,
    room: Room | None = None,
) -> ir.Value:
    """The greedy determinant of :func:`trtprune.pruning.greedy.determinant`.

    Args:
        g: The graph.
        similarity: float32 [batch, N, N].
        factor: float32 [batch, N].
        keep: int64 [1].
        good: bool [batch, N].
        residual: ``RESIDUAL`` of the reference.
        room: The shares of crops, if the budget is shared out to them.

    Returns:
        float32 [batch, N]: :data:`TAKEN` for what was picked, less for the others.
    """
    op, zero, one = g.op, g.scalar(0.0, _FLOAT), g.scalar(1.0, _FLOAT)
    place = _places(g, good)
    left, floor = _write_diagonal(g, similarity, factor, good, residual, room)
    batch = op.Shape(good, start=0, end=1)
    rows = op.Expand(zero, op.Concat(batch, keep, op.Shape(good, start=1, end=2), axis=0))
    image = op.Unsqueeze(op.Range(g.scalar(0, _INT), op.Squeeze(batch), g.scalar(1, _INT)), g.ints(1))
    one_row = op.Concat(batch, keep, g.ints(1), axis=0)

    def body(
        op: Any, step: ir.Value, go_on: ir.Value, left: ir.Value, rows: ir.Value, *rest: ir.Value
    ) -> list[ir.Value]:
        allowed = left if room is None else room.masked(g, op, left, rest[0])
        best = op.ArgMax(allowed, axis=1, keepdims=1, select_last_index=0)
        pivot = op.ReduceMax(allowed, g.ints(1), keepdims=1)
        column = op.GatherElements(rows, op.Expand(op.Unsqueeze(best, g.ints(2)), one_row), axis=2)
        before = _write_product(g, op, column, rows)
        near = op.GatherND(similarity, best, batch_dims=1)
        if room is not None:
            near = op.Where(room.beside(op, best), near, zero)
        row = op.Mul(op.Mul(near, factor), op.GatherElements(factor, best, axis=1))
        scale = op.Div(one, op.Sqrt(op.Max(pivot, g.scalar(1e-37, _FLOAT))))
        row = op.Mul(op.Sub(row, before), op.Where(op.Greater(pivot, zero), scale, zero))
        less = op.Sub(left, op.Mul(row, row))
        left = op.Where(op.Greater(less, floor), less, op.Min(left, zero))
        left = op.Where(op.Equal(place, best), g.scalar(-2.0, _FLOAT), left)
        where = op.Concat(image, op.Expand(op.Reshape(step, g.ints(1, 1)), op.Shape(image)), axis=1)
        rest = () if room is None else (room.after(g, op, rest[0], best),)
        return [op.Identity(go_on), left, op.ScatterND(rows, where, row), *rest]

    states = [
        ("left", left, _FLOAT, ["batch", "visual_tokens"]),
        ("rows", rows, _FLOAT, ["batch", "keep", "visual_tokens"]),
    ]
    if room is not None:
        states.append(("room", room.start, _INT, ["batch", "visual_tokens"]))
    left = write_loop(g, body, keep, states)[0]
    return op.Where(op.Less(left, g.scalar(-1.5, _FLOAT)), g.scalar(TAKEN, _FLOAT), left)
