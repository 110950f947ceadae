"""VisPruner: half of the budget by CLS attention, the other half what is left when near-duplicates are removed.

Paper: https://arxiv.org/abs/2412.01818 ("Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
Pruning in VLMs").  Code: https://github.com/Theia-4869/VisPruner @ aefa01a.

    order by CLS attention; the first n_i = floor(important · keep) are kept
    the others, R of them, stay in that order; while R > n_d = keep - n_i:
        even and odd positions are two halves; r = min(8, R - n_d)
        a token of the even half scores its largest cosine to a token of the odd half (vision features)
        the r highest scores are removed; new order: the even half by descending score, then the odd half

The order after each round decides who is compared with whom in the next, so rounds cannot be joined; both forms run
them one by one.

What the sources leave open:

* Where R is odd, or r larger than the even half, the code stops with an error (it never happens for 576 tokens and the
  paper's budgets).  Here an odd R makes the even half one longer, and r is at most that half.
* The order of equal attentions or scores: by index, and by position in the last order.

Features that are not finite have cosine 0 with all others and are the first to go whenever they are on the even side.

The graph keeps a state of fixed size, the order of all N places with only the first R of them in use, because
TensorRT's loops do not change shapes.

Several crops of one image: in the code each crop has a budget and rounds of its own, ``crops=each``; with ``joint`` all
tokens are one list.  With ``each`` a round of the graph is one of all crops together, so that there are as many rounds
as the crop with most of them has.  The state is an order in which each crop has places of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import grids, ops
from trtprune.pruning.crops import CROPS, NEVER, Room, needs_by_crop, shares, write_crop_ranks, write_rooms
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["VisPruner"]

_AT_ONCE = 8
_UNUSED, _KEPT = -3.0e38, 3.0e38


def _share(important: float) -> tuple[int, int]:
    ratio = Fraction(str(important)).limit_denominator(10_000)
    return ratio.numerator, ratio.denominator


def _of_list(order: np.ndarray, keep: int, inputs: Mapping[str, Any]) -> np.ndarray:
    """The ``keep`` tokens chosen of the tokens ``order``, those of highest attention first."""
    import numpy as np

    important = ops.scale_count(*_share(inputs["important"]), keep)
    kept, residual, diverse = order[:important], order[important:], keep - important
    vectors, norm, good = ops.norms(inputs["vision_features"])
    while diverse and len(residual) > diverse:
        even, odd = residual[::2], residual[1::2]
        removed = min(_AT_ONCE, len(residual) - diverse, len(even))
        nearest = ops.cosine(vectors[even], norm[even], vectors[odd], norm[odd]).max(axis=1)
        by_score = ops.descending(np.where(good[even], nearest, np.float32(ops.BAR)))
        residual = np.concatenate([even[by_score[removed:]], odd])
    return np.concatenate([kept, residual[:diverse]])


@register
class VisPruner(Method):
    """The most attended tokens, and the others thinned out until they are unlike each other."""

    name = "vispruner"
    summary = "half by CLS attention, half what remains of the others without near-duplicates"
    paper = "https://arxiv.org/abs/2412.01818"
    source = "https://github.com/Theia-4869/VisPruner @ aefa01a"
    needs = frozenset({"cls_attention", "vision_features"})
    cost = "N x N cosines and (N - keep)/8 rounds over up to N/2 x N of them"
    options = (
        Option("important", 0.5, "fraction of the budget chosen by CLS attention", minimum=0, maximum=1),
        CROPS,
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_crop(needs_by_saliency(self.needs, options), options)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        attention = ops.clean(saliency(inputs))
        if inputs["crops"] == "joint":
            return np.sort(_of_list(ops.descending(attention), keep, inputs))
        grid = inputs["grid"]
        chosen = grids.candidates(grid)
        scores = np.where(chosen, attention, np.float32(NEVER))
        order = ops.descending(attention)
        for number, share in shares(grid, keep):
            scores[_of_list(order[(chosen & (grid[:, 0] == number))[order]], share, inputs)] = np.float32(_KEPT)
        return np.sort(ops.descending(scores)[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        if options["crops"] == "each":
            room = write_rooms(g, inputs["grid"], keep, options["most_crops"])
            return _write_by_crop(g, inputs, room, options)
        op = g.op
        one, zero = g.ints(1), g.ints(0)
        important = ops.write_scale_count(g, *_share(options["important"]), keep)
        diverse = op.Sub(keep, important)
        attention = ops.write_clean(g, saliency(inputs, options))
        tokens = op.Shape(attention, start=1, end=2)
        _, order = ops.top(g, attention, tokens)
        place = ops.iota(g, tokens)
        start = op.Min(op.Add(place, important), op.Sub(tokens, one))
        residual = self._thin_out(
            g, inputs["vision_features"], op.Gather(order, start, axis=1), op.Sub(tokens, important), diverse
        )
        # 1 for what is kept.  Places that are not in use repeat a kept token, so that none is marked by mistake.
        first = op.Where(op.Greater(important, zero), order, residual)
        first = op.Slice(first, zero, one, one)
        marks = op.Expand(ops.f32(g, 0.0), op.Shape(attention))
        each = op.Expand(ops.f32(g, 1.0), op.Shape(attention))
        for ranked, used in ((order, important), (residual, diverse)):
            marks = op.ScatterElements(marks, op.Where(op.Less(place, used), ranked, first), each, axis=1)
        return marks

    @staticmethod
    def _thin_out(g: Graph, features: ir.Value, residual: ir.Value, count: ir.Value, diverse: ir.Value) -> ir.Value:
        """``residual`` [batch, N], of which ``count`` are in use, after the rounds; then ``diverse`` are in use."""
        import onnx_ir as ir

        from trtprune.graph.topk import top
        from trtprune.pruning.greedy_graph import State, write_loop

        op = g.op
        zero, one, two, eight = (g.ints(n) for n in (0, 1, 2, _AT_ONCE))
        vectors, norm, good = ops.write_norms(g, features)
        cosine = ops.write_cosine(g, vectors, norm, vectors, norm)
        cosine = op.Where(good, cosine, ops.f32(g, ops.BAR))  # the rows of such a token, not its column
        tokens = op.Shape(residual, start=1, end=2)
        place = ops.iota(g, tokens)
        # Of N places, the odd ones are N // 2, but never none.
        half = op.Div(op.Add(tokens, one), two)
        evens = op.Mul(ops.iota(g, half), two)
        odds = op.Min(op.Add(evens, one), op.Sub(tokens, one))
        hidden = op.Expand(ops.f32(g, _UNUSED), op.Shape(residual))
        assert features.shape is not None
        counts = g.lowering.loop_order == "count" and not isinstance(features.shape[1], int)
        seats = ops.iota(g, half)
        earlier = op.Less(op.Unsqueeze(seats, zero), op.Unsqueeze(seats, one))
        shown = op.Expand(ops.f32(g, 0.0), op.Concat(op.Shape(residual, start=0, end=1), half, axis=0))
        # Below 16 tokens, half of them can be fewer than 8: three rounds more, which do nothing if not needed.
        extra = op.Where(op.Less(diverse, eight), g.ints(3), zero)
        rounds = op.Add(op.Div(op.Add(op.Sub(count, diverse), g.ints(_AT_ONCE - 1)), eight), extra)
        rounds = op.Where(op.Greater(diverse, zero), rounds, zero)

        def body(op: Any, step: ir.Value, go_on: ir.Value, order: ir.Value, count: ir.Value) -> list[ir.Value]:
            upper = op.Div(op.Add(count, one), two)
            removed = op.Min(op.Min(eight, op.Sub(count, diverse)), upper)
            even, odd = op.Gather(order, evens, axis=1), op.Gather(order, odds, axis=1)
            # Only columns of the odd half count.  A place that is not in use repeats the first odd one.
            used = op.Where(op.Less(op.Add(evens, one), count), odd, op.Slice(odd, zero, one, one))
            columns = op.Unsqueeze(op.ScatterElements(hidden, used, shown, axis=1), one)
            rows = op.GatherND(cosine, op.Unsqueeze(even, two), batch_dims=1)
            nearest = op.ReduceMax(op.Add(rows, columns), two, keepdims=0)
            scores = op.Where(op.Less(evens, count), nearest, ops.f32(g, _UNUSED))
            if counts:
                mine, others = op.Unsqueeze(scores, two), op.Unsqueeze(scores, one)
                before = op.Or(op.Greater(others, mine), op.And(op.Equal(others, mine), earlier))
                rank = op.ReduceSum(op.Cast(before, to=int(ir.DataType.INT64)), two, keepdims=0)
                by_score = op.ScatterElements(rank, rank, op.Expand(seats, op.Shape(rank)), axis=1)
            else:
                _, by_score = top(g, op, scores, half)
            both = op.Concat(op.GatherElements(even, by_score, axis=1), odd, axis=1)
            left = op.Sub(upper, removed)
            source = op.Add(place, op.Where(op.Less(place, left), removed, op.Sub(half, left)))
            order = op.Gather(both, op.Min(source, op.Sub(op.Add(half, half), one)), axis=1)
            return [op.Identity(go_on), order, op.Sub(count, removed)]

        int64 = ir.DataType.INT64
        states: list[State] = [("order", residual, int64, ["batch", "visual_tokens"]), ("count", count, int64, [1])]
        return write_loop(g, body, rounds, states)[0]


def _write_by_crop(g: Graph, inputs: Mapping[str, ir.Value], room: Room, options: Mapping[str, Any]) -> ir.Value:
    """Scores [batch, N] whose ``keep`` largest are the selection with ``crops=each``."""
    import onnx_ir as ir

    op = g.op
    zero, one, two = (g.ints(n) for n in (0, 1, 2))
    attention = op.Where(room.chosen, ops.write_clean(g, saliency(inputs, options)), ops.f32(g, NEVER))
    important = ops.write_scale_count(g, *_share(options["important"]), room.quota)
    diverse = op.Sub(room.quota, important)
    size = op.ReduceSum(room.own, two, keepdims=0)
    first = op.Sub(op.CumSum(size, one), size)
    rank = write_crop_ranks(g, op, attention, room.own)
    # Places of a crop: what the rounds thin out, then its important tokens; behind all crops, tokens of none.
    among = room.of_token(g, important)
    inside = op.Sub(rank, among)
    inside = op.Where(op.Less(inside, zero), op.Add(room.of_token(g, size), inside), inside)
    none = op.Cast(op.Not(room.chosen), to=int(ir.DataType.INT64))
    behind = op.Sub(op.Add(op.ReduceSum(size, one, keepdims=1), op.CumSum(none, one)), none)
    place = op.Where(room.chosen, op.Add(room.of_token(g, first), inside), behind)
    tokens = op.Shape(attention, start=1, end=2)
    order = op.ScatterElements(place, place, op.Expand(ops.iota(g, tokens), op.Shape(place)), axis=1)

    crop = op.GatherElements(room.crop, order, axis=1)
    listed = Room(
        crop,
        op.GreaterOrEqual(crop, zero),
        op.GatherElements(room.own, op.Expand(op.Unsqueeze(order, one), op.Shape(room.own)), axis=2),
        room.quota,
        room.start,
    )
    order = _write_rounds(g, inputs["vision_features"], room.same(g), listed, order, (size, important, diverse, first))
    local = op.Sub(ops.iota(g, tokens), listed.of_token(g, first))
    kept = op.Or(
        op.Less(local, listed.of_token(g, diverse)),
        op.GreaterOrEqual(local, listed.of_token(g, op.Sub(size, important))),
    )
    marks = op.Where(op.And(kept, listed.chosen), ops.f32(g, _KEPT), op.GatherElements(attention, order, axis=1))
    return op.ScatterElements(marks, order, marks, axis=1)


def _write_rounds(
    g: Graph, features: ir.Value, same: ir.Value, listed: Room, order: ir.Value, tables: tuple[ir.Value, ...]
) -> ir.Value:
    """``order`` int64 [batch, N] when in each crop's places the first ``diverse`` tokens are those that stay.

    Args:
        g: The graph.
        features: [batch, N, C].
        same: bool [batch, N, N]: tokens of one crop.
        listed: The crops of the places of ``order``.
        order: int64 [batch, N], the token at each place.
        tables: Size, important tokens, diverse tokens and first place of each crop, int64 [batch, crops].
    """
    import onnx_ir as ir

    from trtprune.pruning.greedy_graph import write_loop

    op = g.op
    zero, one, two, eight = (g.ints(n) for n in (0, 1, 2, _AT_ONCE))
    low = ops.f32(g, _UNUSED)
    size, important, diverse, first = tables
    vectors, norm, good = ops.write_norms(g, features)
    cosine = op.Where(same, op.Where(good, ops.write_cosine(g, vectors, norm, vectors, norm), ops.f32(g, ops.BAR)), low)
    place = ops.iota(g, op.Shape(order, start=1, end=2))
    start = listed.of_token(g, first)
    local = op.Sub(place, start)
    upper_half = op.Equal(op.Mod(local, two), zero)
    ranks = _even_ranks(g, listed, features)
    least = op.Where(op.Greater(diverse, zero), diverse, op.Sub(size, important))

    def body(op: Any, step: ir.Value, go_on: ir.Value, order: ir.Value, count: ir.Value) -> list[ir.Value]:
        upper = op.Div(op.Add(count, one), two)
        removed = op.Min(op.Min(eight, op.Sub(count, least)), upper)
        taken = listed.of_token(g, removed, op)
        left = listed.of_token(g, op.Sub(upper, removed), op)
        used = op.And(op.Less(local, listed.of_token(g, count, op)), listed.chosen)
        even, odd = op.And(used, upper_half), op.And(used, op.Not(upper_half))
        column = op.ScatterElements(hidden, order, op.Where(odd, ops.f32(g, 0.0), low), axis=1)
        nearest = op.ReduceMax(op.Add(cosine, op.Unsqueeze(column, one)), two, keepdims=0)
        scores = op.Where(even, op.GatherElements(nearest, order, axis=1), low)
        rank = ranks(op, scores, even)
        behind = op.Sub(op.Add(listed.of_token(g, count, op), rank), taken)
        there = op.Where(op.Less(rank, taken), behind, op.Sub(rank, taken))
        there = op.Where(even, there, op.Add(left, op.Div(local, two)))
        there = op.Where(used, op.Add(start, there), place)
        count = op.Sub(count, removed)
        more = op.ReduceMax(op.Sub(count, least), g.ints(0, 1), keepdims=0)
        order = op.ScatterElements(order, there, order, axis=1)
        return [op.Greater(more, g.scalar(0, ir.DataType.INT64)), order, count]

    hidden = op.Expand(low, op.Shape(order))
    # More rounds than any crop needs; the last ones, of fewer than 16 tokens, take half of them at least.
    rounds = op.Add(op.Div(op.Shape(order, start=1, end=2), eight), g.ints(5))
    count = op.Sub(size, important)
    states = [
        ("order", order, ir.DataType.INT64, ["batch", "visual_tokens"]),
        ("count", count, ir.DataType.INT64, ["batch", "crops"]),
    ]
    return write_loop(g, body, rounds, states)[0]


def _even_ranks(g: Graph, listed: Room, features: ir.Value) -> Callable[..., ir.Value]:
    """A round's ranks of the ``even`` tokens of each crop by their scores: (op, scores, even) → [batch, N]."""
    import onnx_ir as ir

    one, two = g.ints(1), g.ints(2)
    int64 = int(ir.DataType.INT64)
    assert features.shape is not None
    if g.lowering.loop_order == "sort" or isinstance(features.shape[1], int):

        def by_order(op: Any, scores: ir.Value, even: ir.Value) -> ir.Value:
            return write_crop_ranks(g, op, scores, op.Mul(listed.own, op.Unsqueeze(op.Cast(even, to=int64), one)))

        return by_order
    place = ops.iota(g, g.op.Shape(listed.crop, start=1, end=2))
    earlier = g.op.Less(g.op.Unsqueeze(place, g.ints(0)), g.op.Unsqueeze(place, one))
    same = listed.same(g)

    def by_count(op: Any, scores: ir.Value, even: ir.Value) -> ir.Value:
        mine, others = op.Unsqueeze(scores, two), op.Unsqueeze(scores, one)
        before = op.Or(op.Greater(others, mine), op.And(op.Equal(others, mine), earlier))
        before = op.And(op.And(before, same), op.Unsqueeze(even, one))
        return op.ReduceSum(op.Cast(before, to=int64), two, keepdims=0)

    return by_count
