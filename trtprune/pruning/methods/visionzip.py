"""VisionZip: the tokens the CLS token attends to most, and the others merged into a few.

Paper: https://arxiv.org/abs/2412.04467 ("VisionZip: Longer is Better but Not Necessary in Vision Language Models").
Code: https://github.com/dvlab-research/VisionZip @ 3151f6d.

    contextual = n_c = round(contextual · keep);   dominant = keep - n_c, the CLS token itself being one of them
    dominant tokens: CLS, and the dominant - 1 patches of largest CLS attention
    the rest, n patches in image order: every step-th is a target, step = max(1, n // n_c), the first n_c of these
    each other patch goes to the target whose key has the largest cosine to its own (k = mean over heads)
    row of a target = its features + the mean of the features of those that went to it
    output: CLS, dominant patches in image order, targets in image order

What the sources leave open, or where this differs:

* ``contextual`` (0.15625 = 5/32): the published splits 54 + 10, 108 + 20 and 162 + 30 of 64, 128 and 192.  For other
  budgets nothing is published: the share is rounded to the nearest whole number, halves up, and leaves at least one
  dominant row; below 4 tokens no row is contextual and nothing is merged.
* ``cls_token``: ``keep`` as the code, which spends a row on the projected CLS token (index -1 in ``kept_indices``), or
  ``drop``, which spends it on a patch.  With ``keep`` and keep = N, one patch is merged although all would fit.
* The code merges before the projector, this after it.
* ``merge``: the code *adds* the mean, so that a contextual row is about twice as long as others; ``sum`` (default) is
  that, ``mean`` the mean of a target and all that went to it.

Several crops of one image: in the code each has a budget, a CLS token and contextual rows of its own, ``crops=each``;
with ``joint`` all patches are one list, and the CLS token is that of the whole image.  With ``each`` the formulas hold
within a crop for its share of the budget; a patch is merged into a target of its own crop.  What a crop that is too
small leaves of its share goes to the most attended other patches, as far as crops have more than their contextual rows.
The rows of a crop's CLS token have the indices -C … -1 for the C crops in order.  The code puts the rows into another
order (those of the whole image, dominant patches of all tiles, their CLS tokens, their targets).

Patches whose features are not finite are merged into nothing.  One whose key is not finite, or zero, has cosine 0 with
every target and goes to the first one that no other is closer than.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import grids, merging, ops
from trtprune.pruning.crops import CROPS, NEVER, needs_by_crop, shares, write_crop_ranks, write_rooms
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["VisionZip"]


@dataclass(frozen=True)
class _Parts:
    """The parts of an image's patches, each int64 and ascending.

    Attributes:
        dominant, targets: Patches with a row.
        others: Patches that are merged.
        cls: The index of each CLS row.
    """

    dominant: np.ndarray
    targets: np.ndarray
    others: np.ndarray
    cls: np.ndarray

    @property
    def named(self) -> np.ndarray:
        """The indices of all rows, ascending."""
        import numpy as np

        return np.sort(np.concatenate([self.cls, self.dominant, self.targets]))


def _counts(keep: int, options: Mapping[str, Any]) -> tuple[int, int]:
    """Dominant patches and contextual rows of ``keep`` rows, the CLS token left out."""
    a, b, c = merging.half_up(options["contextual"])
    merged = min((a * keep + b) // c, keep - 1)
    return keep - merged - (options["cls_token"] == "keep"), merged


def _rest(rest: np.ndarray, merged: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and others of the patches ``rest`` that are not dominant."""
    import numpy as np

    at = np.arange(merged) * max(1, len(rest) // max(1, merged))
    return rest[at], np.delete(rest, at)


def _joint(keep: int, inputs: Mapping[str, Any]) -> _Parts:
    import numpy as np

    dominant, merged = _counts(keep, inputs)
    order = ops.descending(ops.clean(saliency(inputs)))
    targets, others = _rest(np.sort(order[dominant:]), merged)
    cls = np.full(int(inputs["cls_token"] == "keep"), -1, np.int64)
    return _Parts(np.sort(order[:dominant]), targets, others if merged else others[:0], cls)


def _by_crop(keep: int, inputs: Mapping[str, Any]) -> _Parts:
    import numpy as np

    grid, cls = inputs["grid"], inputs["cls_token"] == "keep"
    crop = np.where(grids.candidates(grid), grid[:, 0], -1)
    order = ops.descending(ops.clean(saliency(inputs)))
    quotas = dict(shares(grid, keep, beside=int(cls)))
    counts = {number: _counts(share, inputs) if share else (0, 0) for number, share in quotas.items()}
    chosen, free = np.zeros(len(grid), bool), np.zeros(len(grid), bool)
    for number, (dominant, merged) in counts.items():
        own = order[crop[order] == number]
        chosen[own[:dominant]] = True
        free[own[dominant : len(own) - merged]] = True
    chosen[order[free[order]][: keep - sum(quotas.values())]] = True
    none = np.zeros(0, np.int64)
    parts = [_rest(np.flatnonzero((crop == n) & ~chosen), merged) for n, (_, merged) in counts.items() if merged]
    targets, others = (np.sort(np.concatenate([none, *(part[i] for part in parts)])) for i in (0, 1))
    rows = np.array([n - len(inputs["cls_feature"]) for n, share in quotas.items() if share]) if cls else none
    return _Parts(np.flatnonzero(chosen), targets, others, rows)


@register
class VisionZip(Method):
    """Dominant tokens by CLS attention, the others merged by their keys."""

    name = "visionzip"
    summary = "highest CLS attention, and all other tokens merged into a few by their attention keys"
    paper = "https://arxiv.org/abs/2412.04467"
    source = "https://github.com/dvlab-research/VisionZip @ 3151f6d"
    needs = frozenset({"cls_attention", "vision_keys", "cls_feature"})
    cost = "two TopK and two keep/6 x N products"
    merges = True
    options = (
        Option("contextual", 0.15625, "fraction of the budget for merged tokens", minimum=0, maximum=1),
        Option("cls_token", "keep", "whether one of the rows is the projected CLS token", choices=("keep", "drop")),
        Option("merge", "sum", "a merged row: target plus mean of the merged, or mean of all", choices=("sum", "mean")),
        CROPS,
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean", "cls_token": "drop"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        needs = needs_by_crop(needs_by_saliency(self.needs, options), options)
        return needs if options["cls_token"] == "keep" else needs - {"cls_feature"}

    def of_each_crop(self, options: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"cls_feature"} if options["crops"] == "each" else ()) & self.needs_of(options)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        return self._parts(keep, inputs).named

    @staticmethod
    def _parts(keep: int, inputs: Mapping[str, Any]) -> _Parts:
        return _by_crop(keep, inputs) if inputs["crops"] == "each" else _joint(keep, inputs)

    @staticmethod
    def _nearest(parts: _Parts, inputs: Mapping[str, Any]) -> np.ndarray:
        """Which of the targets each of the others goes to, one of its own crop with ``crops=each``."""
        import numpy as np

        key, norm, _ = ops.norms(inputs["vision_keys"])
        targets, others = parts.targets, parts.others
        cosine = ops.cosine(key[targets], norm[targets], key[others], norm[others])
        if inputs["crops"] == "each":
            crop = inputs["grid"][:, 0]
            cosine = np.where(crop[targets][:, None] == crop[others], cosine, np.float32(NEVER))
        nearest: np.ndarray = cosine.argmax(axis=0)
        return nearest

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        parts = self._parts(keep, inputs)
        found = np.full(len(image_features), -1, np.int64)
        for kept in (parts.dominant, parts.targets):
            found[kept] = kept
        if len(parts.others):
            _, _, good = ops.norms(image_features[parts.others])
            found[parts.others] = np.where(good, parts.targets[self._nearest(parts, inputs)], -1)
        return found

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        parts = self._parts(keep, inputs)
        cls = np.atleast_2d(inputs["cls_feature"])[parts.cls] if len(parts.cls) else image_features[:0]
        merged = image_features[parts.targets]
        if len(parts.targets):
            members = self._nearest(parts, inputs) == np.arange(len(parts.targets))[:, None]
            mean, count = merging.means(members, image_features[parts.others])
            merged = merged + mean if inputs["merge"] == "sum" else (merged + mean * count) / (count + 1)
        return parts.named, np.concatenate([cls, image_features[parts.dominant], merged])

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        found = (_write_by_crop if options["crops"] == "each" else _write_joint)(g, inputs, keep, options)
        return _write_rows(g, inputs, keep, found, options)


@dataclass(frozen=True)
class _Found:
    """:class:`_Parts` in a graph, by one number for each row there can be.

    Attributes:
        number: int64 [batch, P]: -C … -1 for the CLS rows of C crops, the place of a dominant patch, that of a target
            + N, and at least 2N for what is no row; exactly ``keep`` are smaller.
        other: bool [batch, N]: patches that are merged.
        targets: int64 [1], at least 1 and at least the number of targets.
        crop: int64 [batch, N], the crop of each patch with ``crops=each``; otherwise None.
    """

    number: ir.Value
    other: ir.Value
    targets: ir.Value
    crop: ir.Value | None


def _write_counts(g: Graph, keep: ir.Value, options: Mapping[str, Any]) -> tuple[ir.Value, ir.Value]:
    """:func:`_counts` for any shape of int64; none of either where ``keep`` is 0."""
    op, zero = g.op, g.ints(0)
    a, b, c = merging.half_up(options["contextual"])
    merged = op.Div(op.Add(op.Mul(keep, g.ints(a)), g.ints(b)), g.ints(c))
    merged = op.Max(op.Min(merged, op.Sub(keep, g.ints(1))), zero)
    return op.Max(op.Sub(op.Sub(keep, merged), g.ints(int(options["cls_token"] == "keep"))), zero), merged


def _write_joint(g: Graph, inputs: Mapping[str, ir.Value], keep: ir.Value, options: Mapping[str, Any]) -> _Found:
    op = g.op
    one, zero = g.ints(1), g.ints(0)
    dominant, merged = _write_counts(g, keep, options)
    # No dimension may become 0: without contextual rows there is one target, with nobody to go to it.
    some = op.Max(merged, one)
    tokens = op.Shape(inputs["vision_keys"], start=1, end=2)
    place = ops.iota(g, tokens)
    _, order = ops.top(g, ops.write_clean(g, saliency(inputs, options)), tokens)
    behind = _as_int(g, op.Not(op.Less(place, dominant)))
    rest = op.ScatterElements(order, order, op.Expand(behind, op.Shape(order)), axis=1)
    position = op.Sub(op.CumSum(rest, one), rest)
    in_rest = op.Greater(rest, zero)
    step = op.Max(op.Div(op.Sub(tokens, dominant), some), one)
    target = op.And(in_rest, _on_step(g, position, step, merged))
    number = op.Add(place, op.Where(target, tokens, op.Where(in_rest, op.Add(tokens, tokens), zero)))
    if options["cls_token"] == "keep":
        front = op.Expand(g.ints(-1), op.Concat(op.Shape(order, start=0, end=1), one, axis=0))
        number = op.Concat(front, number, axis=1)
    other = op.And(op.And(in_rest, op.Not(target)), op.Greater(merged, zero))
    return _Found(number, other, some, None)


def _write_by_crop(g: Graph, inputs: Mapping[str, ir.Value], keep: ir.Value, options: Mapping[str, Any]) -> _Found:
    op = g.op
    zero, one, two = (g.ints(n) for n in (0, 1, 2))
    cls = options["cls_token"] == "keep"
    room = write_rooms(g, inputs["grid"], keep, options["most_crops"], beside=int(cls))
    dominant, merged = _write_counts(g, room.quota, options)
    tokens = op.Shape(inputs["vision_keys"], start=1, end=2)
    place = ops.iota(g, tokens)

    attention = op.Where(room.chosen, ops.write_clean(g, saliency(inputs, options)), ops.f32(g, NEVER))
    rank = write_crop_ranks(g, op, attention, room.own)
    size = op.ReduceSum(room.own, two, keepdims=0)
    in_front = op.Less(rank, room.of_token(g, dominant))
    free = op.And(op.Not(in_front), op.Less(rank, room.of_token(g, op.Sub(size, merged))))
    free = op.And(room.chosen, free)
    _, order = ops.top(g, op.Where(free, attention, ops.f32(g, NEVER)), tokens)
    spare = op.Less(place, op.Sub(keep, op.ReduceSum(room.quota, one, keepdims=1)))
    more = op.Greater(op.ScatterElements(order, order, op.Expand(_as_int(g, spare), op.Shape(order)), axis=1), zero)
    chosen = op.And(room.chosen, op.Or(in_front, more))

    in_rest = op.And(room.chosen, op.Not(chosen))
    rest = op.Mul(room.own, op.Unsqueeze(_as_int(g, in_rest), one))
    position = op.Sub(op.ReduceSum(op.Mul(rest, op.CumSum(rest, two)), one, keepdims=0), _as_int(g, in_rest))
    step = op.Max(op.Div(op.ReduceSum(rest, two, keepdims=0), op.Max(merged, one)), one)
    of_token = room.of_token(g, merged)
    target = op.And(in_rest, _on_step(g, position, room.of_token(g, step), of_token))
    kind = op.Where(target, tokens, op.Where(chosen, zero, op.Add(tokens, tokens)))
    number = op.Add(place, kind)
    a, b, c = merging.half_up(options["contextual"])
    crops: ir.Value = g.ints(options["most_crops"])
    if cls:
        crops = op.Shape(inputs["cls_feature"], start=1, end=2)
        present = op.Greater(op.Slice(room.quota, zero, crops, one), zero)
        front = op.Where(present, op.Sub(ops.iota(g, crops), crops), op.Mul(tokens, g.ints(3)))
        number = op.Concat(front, number, axis=1)
    # Halves of several crops can be rounded up.
    some = op.Div(op.Add(op.Mul(keep, g.ints(a)), op.Mul(crops, g.ints(b))), g.ints(c))
    some = op.Max(op.Min(some, keep), one)
    return _Found(number, op.And(op.And(in_rest, op.Not(target)), op.Greater(of_token, zero)), some, room.crop)


def _as_int(g: Graph, mask: ir.Value) -> ir.Value:
    import onnx_ir as ir

    return g.op.Cast(mask, to=int(ir.DataType.INT64))


def _on_step(g: Graph, position: ir.Value, step: ir.Value, merged: ir.Value) -> ir.Value:
    """Whether a place among the patches that are not dominant is a target's."""
    op = g.op
    return op.And(op.Equal(op.Mod(position, step), g.ints(0)), op.Less(op.Div(position, step), merged))


def _write_rows(
    g: Graph, inputs: Mapping[str, ir.Value], keep: ir.Value, found: _Found, options: Mapping[str, Any]
) -> tuple[ir.Value, ir.Value]:
    """The indices of all rows int64 [batch, keep], ascending, and the rows float32 [batch, keep, D]."""
    import onnx_ir as ir

    op, one, zero, some = g.op, g.ints(1), g.ints(0), found.targets
    features = g.cast(inputs["image_features"], ir.DataType.FLOAT)
    tokens = op.Shape(features, start=1, end=2)
    number = ops.ascending(g, found.number, keep)
    token = op.Mod(op.Max(number, zero), tokens)
    rows, named = merging.write_gather(g, features, token), token
    if options["cls_token"] == "keep":
        is_cls, cls = op.Less(number, zero), g.cast(inputs["cls_feature"], ir.DataType.FLOAT)
        if options["crops"] == "each":
            at = op.Max(op.Add(number, op.Shape(cls, start=1, end=2)), zero)
            cls = merging.write_gather(g, cls, op.Where(is_cls, at, zero))
        else:
            cls = op.Unsqueeze(cls, one)
        rows = op.Where(op.Unsqueeze(is_cls, g.ints(2)), cls, rows)
        named = op.Where(is_cls, number, token)

    key, norm, _ = ops.write_norms(g, inputs["vision_keys"])
    last = op.Sub(keep, some)
    targets = op.Slice(token, last, keep, one)
    cosine = ops.write_cosine(
        g, merging.write_gather(g, key, targets), merging.write_gather(g, norm, targets), key, norm
    )
    is_target = op.GreaterOrEqual(number, tokens)
    if found.crop is not None:
        same = op.Equal(
            op.Unsqueeze(op.GatherElements(found.crop, targets, axis=1), g.ints(2)), op.Unsqueeze(found.crop, one)
        )
        same = op.And(same, op.Unsqueeze(op.Slice(is_target, last, keep, one), g.ints(2)))
        cosine = op.Where(same, cosine, ops.f32(g, NEVER))
    nearest = op.ArgMax(cosine, axis=1, keepdims=1, select_last_index=0)
    members = op.And(op.Equal(nearest, op.Unsqueeze(ops.iota(g, some), one)), op.Unsqueeze(found.other, one))
    mean, count = merging.write_means(g, members, features)
    if options["merge"] == "mean":
        mean = op.Mul(mean, count)
    row_of = op.Max(op.Sub(ops.iota(g, keep), last), zero)
    changed = op.Add(rows, op.Gather(mean, row_of, axis=1))
    if options["merge"] == "mean":
        changed = op.Div(changed, op.Add(op.Gather(count, row_of, axis=1), ops.f32(g, 1.0)))
    return ops.ascending(g, named, keep), op.Where(op.Unsqueeze(is_target, g.ints(2)), changed, rows)
