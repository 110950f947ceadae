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

Patches whose features are not finite are merged into nothing.  One whose key is not finite, or zero, has cosine 0 with
every target and goes to the first one that no other is closer than.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import merging, ops
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["VisionZip"]


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
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean", "cls_token": "drop"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        needs = needs_by_saliency(self.needs, options)
        return needs if options["cls_token"] == "keep" else needs - {"cls_feature"}

    def _parts(self, image_features: np.ndarray, keep: int, inputs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """Dominant patches, targets and others, each ascending."""
        import numpy as np

        a, b, c = merging.half_up(inputs["contextual"])
        merged = min((a * keep + b) // c, keep - 1)
        dominant = keep - merged - (inputs["cls_token"] == "keep")
        order = ops.descending(ops.clean(saliency(inputs)))
        rest = np.sort(order[dominant:])
        at = np.arange(merged) * max(1, len(rest) // max(1, merged))
        return np.sort(order[:dominant]), rest[at], np.delete(rest, at)

    def _named(self, dominant: np.ndarray, targets: np.ndarray, inputs: Mapping[str, Any]) -> np.ndarray:
        import numpy as np

        cls = np.full(int(inputs["cls_token"] == "keep"), -1, np.int64)
        return np.sort(np.concatenate([cls, dominant, targets]))

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        dominant, targets, _ = self._parts(image_features, keep, inputs)
        return self._named(dominant, targets, inputs)

    @staticmethod
    def _nearest(targets: np.ndarray, others: np.ndarray, inputs: Mapping[str, Any]) -> np.ndarray:
        """Which of the targets each of the others goes to."""
        key, norm, _ = ops.norms(inputs["vision_keys"])
        nearest: np.ndarray = ops.cosine(key[targets], norm[targets], key[others], norm[others]).argmax(axis=0)
        return nearest

    def assign(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        dominant, targets, others = self._parts(image_features, keep, inputs)
        found = np.full(len(image_features), -1, np.int64)
        found[dominant], found[targets] = dominant, targets
        if len(targets):
            _, _, good = ops.norms(image_features[others])
            found[others] = np.where(good, targets[self._nearest(targets, others, inputs)], -1)
        return found

    def merge(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        dominant, targets, others = self._parts(image_features, keep, inputs)
        rows = [image_features[dominant], image_features[targets]]
        if inputs["cls_token"] == "keep":
            rows.insert(0, inputs["cls_feature"][None])
        if len(targets):
            nearest = self._nearest(targets, others, inputs)
            mean, count = merging.means(nearest == np.arange(len(targets))[:, None], image_features[others])
            rows[-1] = rows[-1] + mean if inputs["merge"] == "sum" else (rows[-1] + mean * count) / (count + 1)
        return self._named(dominant, targets, inputs), np.concatenate(rows)

    def build_merged(
        self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any
    ) -> tuple[ir.Value, ir.Value]:
        import onnx_ir as ir

        op = g.op
        one, zero = g.ints(1), g.ints(0)
        features = g.cast(inputs["image_features"], ir.DataType.FLOAT)
        cls = options["cls_token"] == "keep"
        a, b, c = merging.half_up(options["contextual"])
        merged = op.Min(op.Div(op.Add(op.Mul(keep, g.ints(a)), g.ints(b)), g.ints(c)), op.Sub(keep, one))
        dominant = op.Sub(op.Sub(keep, merged), g.ints(int(cls)))
        # No dimension may become 0: without contextual rows there is one target, with nobody to go to it.
        some = op.Max(merged, one)

        tokens = op.Shape(features, start=1, end=2)
        place = ops.iota(g, tokens)
        _, order = ops.top(g, ops.write_clean(g, saliency(inputs, options)), tokens)
        ahead = op.Where(op.Less(place, dominant), ops.f32(g, 0.0), ops.f32(g, 1.0))
        zeros = op.Expand(ops.f32(g, 0.0), op.Shape(order))
        rest = op.ScatterElements(zeros, order, op.Expand(ahead, op.Shape(order)), axis=1)
        position = op.Cast(op.CumSum(rest, one, exclusive=1), to=int(ir.DataType.INT64))
        in_rest = op.Greater(rest, ops.f32(g, 0.5))
        step = op.Max(op.Div(op.Sub(tokens, dominant), some), one)
        on_step = op.And(op.Equal(op.Mod(position, step), zero), op.Less(op.Div(position, step), merged))
        target = op.And(in_rest, on_step)

        # Output order by one number a token: -1 is CLS, + N a target, + 2N what is no row.
        number = op.Add(place, op.Where(target, tokens, op.Where(in_rest, op.Add(tokens, tokens), zero)))
        if cls:
            front = op.Expand(g.ints(-1), op.Concat(op.Shape(features, start=0, end=1), one, axis=0))
            number = op.Concat(front, number, axis=1)
        number = ops.ascending(g, number, keep)
        token = op.Mod(op.Max(number, zero), tokens)
        rows = merging.write_gather(g, features, token)
        named = token
        if cls:
            is_cls = op.Less(number, zero)
            row = op.Unsqueeze(g.cast(inputs["cls_feature"], ir.DataType.FLOAT), one)
            rows = op.Where(op.Unsqueeze(is_cls, g.ints(2)), row, rows)
            named = op.Where(is_cls, g.ints(-1), token)

        key, norm, _ = ops.write_norms(g, inputs["vision_keys"])
        targets = op.Slice(token, op.Sub(keep, some), keep, one)
        cosine = ops.write_cosine(
            g, merging.write_gather(g, key, targets), merging.write_gather(g, norm, targets), key, norm
        )
        nearest = op.ArgMax(cosine, axis=1, keepdims=1, select_last_index=0)
        other = op.And(op.And(in_rest, op.Not(target)), op.Greater(merged, zero))
        members = op.And(op.Equal(nearest, op.Unsqueeze(ops.iota(g, some), one)), op.Unsqueeze(other, one))
        mean, count = merging.write_means(g, members, features)
        if options["merge"] == "mean":
            mean = op.Mul(mean, count)
        row_of = op.Max(op.Sub(ops.iota(g, keep), op.Sub(keep, some)), zero)
        added = op.Gather(mean, row_of, axis=1)
        is_target = op.Unsqueeze(op.GreaterOrEqual(number, tokens), g.ints(2))
        changed = op.Add(rows, added)
        if options["merge"] == "mean":
            changed = op.Div(changed, op.Add(op.Gather(count, row_of, axis=1), ops.f32(g, 1.0)))
        return ops.ascending(g, named, keep), op.Where(is_target, changed, rows)
