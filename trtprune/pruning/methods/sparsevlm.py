"""SparseVLM: text tokens that resemble the image rate its tokens, at three depths of the decoder.

Paper: https://arxiv.org/abs/2410.04417.  Code: Gumpest/SparseVLMs (Apache-2.0); where the two differ, the code's way is
the default and the paper's an option.

    raters    m = mean over visual tokens of softmax over text (V Tᵀ), from the input embeddings;
              the text tokens behind the image with m > mean(m)                     (``rater=ge``: ≥, the paper)
    scores    mean over heads and raters of the pruning layer's attention to each visual token
    keep      the best of them, in their order; the pruning layer itself still reads all
    recycling the best-rated 30 % of the removed become a tenth as many vectors, put behind the kept tokens
              (see ``recycling``; ``assign=cosine`` and ``reduce=sum`` are the paper's)

``version=2.0`` is the repository's SparseVLM+: attention is divided by what rotary embedding alone gives at that
distance, only the ``heads`` heads with the most attention between raters and image count, nothing is recycled, and
tokens keep their positions.

Budget.  ``keep`` is the average over the layers as the authors count it.  For 576 tokens, 32 layers and 192, 128, 96 or
64 the counts are the code's tables; any other case takes the same three points at the same share of the depth, the
ratio of the counts interpolated between the tables, and the level that brings the average nearest to ``keep``.

``ratio=rank`` decides the counts at run time, as the first release did: ``rank(A) · scale + bias`` tokens stay, A being
the raters × visual tokens block of the attention, behind layers 2, 6, 15 and 19 of 32.  With ``scale=budget`` the scale
is chosen for each image so that the average over the layers is ``keep``; the ranks decide each point's share.
``scale=published`` are the constants of the first release's scripts, whose average depends on the prompt.

The code cuts behind layers 2, 6 and 15 for any depth; ``layers=published`` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trtprune.arguments import arg
from trtprune.errors import BudgetError, InputError
from trtprune.pruning import ops, recycling
from trtprune.pruning.base import LayerAccess
from trtprune.pruning.in_llm import InLlmMethod
from trtprune.pruning.ops import write_products
from trtprune.pruning.options import Option
from trtprune.pruning.points import check_points, parse_schedule, scale_points
from trtprune.pruning.registry import register
from trtprune.schedules import ScheduleInfo

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["TABLES", "SparseVlm"]

POINTS, RANK_POINTS = (2, 6, 15), (2, 6, 15, 19)
TABLES: dict[str, dict[int, tuple[int, ...]]] = {
    "1.0": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Tokens kept at the three points of a 32-layer decoder with 576 visual tokens (``score.py`` of the code)."""
TABLE_TOKENS, TABLE_LAYERS = 576, 32
RANK_SCALE = {192: (13.5, 0.0), 128: (9.0, 6.0), 64: (0.8, 0.0)}
"""Scale and bias of the first release's scripts."""


@register
class SparseVlm(InLlmMethod):
    """Text-rated pruning inside the decoder, with token recycling."""

    name = "sparsevlm"
    summary = "text tokens rate the visual ones at three depths of the decoder; removed ones are recycled"
    cost = "the raters' attention rows, one TopK and a clustering of the removed tokens at each point"
    paper = "https://arxiv.org/abs/2410.04417"
    source = "https://github.com/Gumpest/SparseVLMs"
    needs = frozenset({"text_embeds"})
    point_needs = frozenset({"rater_attention", "rater_index", "position_ids"})
    without_merging: ClassVar[Mapping[str, Any]] = {"recycle": 0.0}
    options = (
        Option("version", "1.0", "2.0 is SparseVLM+", choices=("1.0", "2.0")),
        Option("schedule", "auto", "LAYER:TOKENS,… instead of the budget's own", pattern=r"auto|[0-9:,]+"),
        Option("ratio", "table", "rank: each point keeps rank(attention) x scale + bias", choices=("table", "rank")),
        Option(
            "scale",
            "budget",
            "with ratio=rank: budget meets --keep; published (or 0) is the first release's; a number",
            pattern=r"budget|published|[0-9]{1,5}(\.[0-9]{0,17})?(e[+-]?[0-9]{1,2})?",
        ),
        Option("bias", 0.0, "with ratio=rank and a number as scale", minimum=-1e4, maximum=1e4),
        Option(
            "layers", "scaled", "published: cuts behind layers 2, 6, 15 at any depth", choices=("scaled", "published")
        ),
        Option("recycle", 0.3, "share of the removed tokens that is merged", minimum=0, maximum=1),
        Option("rater", "gt", "raters lie above (gt) or also at (ge) the mean", choices=("gt", "ge")),
        Option("assign", "l2", "how a token finds its cluster", choices=recycling.ASSIGN),
        Option("reduce", "mean", "what a cluster becomes", choices=recycling.REDUCE),
        Option("heads", 14, "with version=2.0: heads that count", minimum=1, maximum=1024),
    )

    def attention(self, options: Mapping[str, Any]) -> Literal["mean", "heads"] | None:
        return "heads" if options["version"] == "2.0" else "mean"

    def own_positions(self, options: Mapping[str, Any]) -> str:
        return "original" if options["version"] == "2.0" else "compact"

    def recycles(self, options: Mapping[str, Any]) -> bool:
        return recycling.share_of(self._recycles(options))[0] > 0

    def _recycles(self, options: Mapping[str, Any]) -> float:
        return 0.0 if options["version"] == "2.0" else float(options["recycle"])

    def validate_options(self, options: Mapping[str, object] | None = None) -> dict[str, Any]:
        values = super().validate_options(options)
        if values["ratio"] == "rank" and values["version"] == "2.0":
            raise BudgetError(
                f"{arg('options', {'ratio': 'rank'})}: belongs to version 1.0",
                hint=f"leave out {arg('options', {'version': '2.0'})}",
            )
        if values["ratio"] == "rank" and values["schedule"] != "auto":
            raise BudgetError(
                f"{arg('options', {'ratio': 'rank'})}: the rank decides, not a schedule",
                hint="leave out one of the two",
            )
        if values["layers"] == "published" and values["schedule"] != "auto":
            raise BudgetError(
                f"{arg('options', {'layers': 'published'})}: a schedule names its layers",
                hint="leave out one of the two",
            )
        return values

    # -- schedule -----------------------------------------------------------------------------------------------

    def plan(self, depth: int, options: Mapping[str, Any]) -> ScheduleInfo:
        form = ScheduleInfo(
            depth=depth,
            points=self._points(depth, options),
            rule="equal",
            nominal_shift=0,
            recycled=recycling.share_of(self._recycles(options)),
            per_vector=recycling.THETA,
            option="schedule",
        )
        if options["schedule"] != "auto":
            return replace(form, rule="fixed", counts=parse_schedule(str(options["schedule"]))[1])
        if options["ratio"] == "rank":
            return replace(form, ranked=True, scales=self._scales(options), option="layers")
        rows = [(keep, *counts) for keep, counts in sorted(TABLES[str(options["version"])].items())]
        # Above the tables the ratios go to 1, at all tokens.
        rows.append((TABLE_TOKENS, *(1 for _ in POINTS)))
        exact = depth == TABLE_LAYERS
        return replace(form, rule="ratios", ratios=tuple(rows), ratio_tokens=TABLE_TOKENS, exact=exact)

    def _points(self, depth: int, options: Mapping[str, Any]) -> tuple[int, ...]:
        if options["schedule"] != "auto":
            points = parse_schedule(str(options["schedule"]))[0]
        else:
            published = RANK_POINTS if options["ratio"] == "rank" else POINTS
            points = published if options["layers"] == "published" else scale_points(published, depth)
        check_points(points, depth, self.name, "schedule")
        return points

    @staticmethod
    def _scales(options: Mapping[str, Any]) -> tuple[tuple[float, float, float], ...]:
        """Scale and bias of ``ratio=rank`` by budget; none if they follow from the budget and the ranks."""
        if options["scale"] == "budget":
            return ()
        if options["scale"] != "published" and float(options["scale"]):
            return ((0.0, float(options["scale"]), float(options["bias"])),)
        return tuple((float(keep), *RANK_SCALE[keep]) for keep in sorted(RANK_SCALE))

    # -- NumPy --------------------------------------------------------------------------------------------------

    def raters(self, image_features: np.ndarray, text_embeds: np.ndarray, **options: Any) -> np.ndarray:
        import numpy as np

        logits = image_features.astype(np.float32) @ text_embeds.astype(np.float32).T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        mean = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0, dtype=np.float32)
        bar = mean.mean(dtype=np.float32)
        chosen = mean >= bar if options.get("rater") == "ge" else mean > bar
        # All equal (for example one token): none is above the mean, and none is better than another.
        return chosen if chosen.any() else np.ones_like(chosen)

    def rate(self, attention: np.ndarray, **context: Any) -> np.ndarray:
        import numpy as np

        if context.get("version", "1.0") != "2.0":
            if attention.ndim == 3:
                attention = attention.mean(axis=0, dtype=np.float32)
            return attention.sum(axis=0, dtype=np.float32) / np.float32(len(attention))
        if attention.ndim != 3 or not {"rater_positions", "visual_positions", "angles"} <= context.keys():
            raise InputError("version 2.0 reads every head's attention [heads, R, N], positions and rotary angles")
        cosine, sine = context["angles"](np.asarray(context["rater_positions"]))
        other_cos, other_sin = context["angles"](np.asarray(context["visual_positions"]))
        scale = np.float32(2 * (2 * cosine.shape[-1]) ** -0.5)
        corrected = attention / ((cosine @ other_cos.T + sine @ other_sin.T) * scale)
        order = np.argsort(-corrected.sum(axis=(1, 2), dtype=np.float32), kind="stable")
        best = np.sort(order[: int(context.get("heads", 14))])
        return corrected[best].mean(axis=0, dtype=np.float32).mean(axis=0, dtype=np.float32)

    def recycle(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        import numpy as np

        best, count, values = self._recycled(scores, len(kept), options)
        if not count:
            return np.zeros((0, visual.shape[1]), np.float32)
        return recycling.merge(visual[best], count, str(values["assign"]), str(values["reduce"]))

    def clusters(self, visual: np.ndarray, scores: np.ndarray, kept: np.ndarray, **options: Any) -> np.ndarray:
        import numpy as np

        best, count, values = self._recycled(scores, len(kept), options)
        found = np.full(len(visual), -1, np.int64)
        if count:
            found[best] = recycling.cluster(visual[best], count, str(values["assign"]))[1]
        return found

    def _recycled(
        self, scores: np.ndarray, kept: int, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, int, dict[str, Any]]:
        """The removed tokens that are merged, best first; the number of their vectors; and all options."""
        import numpy as np

        values = {option.name: option.default for option in self.options} | dict(options)
        many, count = recycling.merged_counts(len(scores) - kept, self._recycles(values))
        return np.argsort(-scores, kind="stable")[kept : kept + many], count, values

    # -- graph --------------------------------------------------------------------------------------------------

    def build_raters(self, g: Graph, image_features: ir.Value, text_embeds: ir.Value, **options: Any) -> ir.Value:
        import onnx_ir as ir

        op, f32 = g.op, ir.DataType.FLOAT
        image, text = g.cast(image_features, f32), g.cast(text_embeds, f32)
        weights = op.Softmax(write_products(g, image, text), axis=-1)
        mean = op.ReduceMean(weights, g.ints(1), keepdims=0)
        bar = op.ReduceMean(mean, g.ints(1), keepdims=1)
        chosen = op.GreaterOrEqual(mean, bar) if options["rater"] == "ge" else op.Greater(mean, bar)
        many = op.ReduceSum(op.Cast(chosen, to=int(f32)), g.ints(1), keepdims=1)
        return op.Or(chosen, op.Equal(many, g.scalar(0.0, f32)))

    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        import onnx_ir as ir

        op, f32 = g.op, ir.DataType.FLOAT
        index, keep, weights = inputs["visual_index"], inputs["keep"], inputs["rater_weights"]
        visual = op.GatherND(inputs["hidden_states"], op.Unsqueeze(index, g.ints(2)), batch_dims=1)
        heads = options["version"] == "2.0"
        columns = op.Squeeze(index, g.ints(0))
        rows = op.Gather(inputs["rater_attention"], columns, axis=3 if heads else 2)
        if heads:
            rows = self._corrected(g, rows, inputs, columns, weights, layer, int(options["heads"]))
        rows = op.Mul(rows, op.Unsqueeze(weights, g.ints(2)))
        scores = op.Div(op.ReduceSum(rows, g.ints(1), keepdims=0), op.ReduceSum(weights, g.ints(1), keepdims=1))
        _, order = ops.top(g, scores, op.Shape(scores, start=1, end=2))
        best = op.Slice(order, g.ints(0), keep, g.ints(1))
        kept = ops.ascending(g, best, keep)
        result = op.GatherND(visual, op.Unsqueeze(kept, g.ints(2)), batch_dims=1)
        if not self.recycles(options):
            return kept, result, None
        chosen = op.Slice(order, keep, op.Add(keep, inputs["recycled"]), g.ints(1))
        vectors = g.cast(op.GatherND(visual, op.Unsqueeze(chosen, g.ints(2)), batch_dims=1), f32)
        forms = str(options["assign"]), str(options["reduce"])
        return kept, result, g.cast(recycling.write_merge(g, vectors, inputs["merged"], *forms), g.dtype)

    def _corrected(
        self,
        g: Graph,
        attention: ir.Value,
        inputs: Mapping[str, ir.Value],
        columns: ir.Value,
        weights: ir.Value,
        layer: LayerAccess,
        heads: int,
    ) -> ir.Value:
        """Version 2.0's attention [1, R, N]: without the effect of distance, averaged over the chosen heads."""
        import onnx_ir as ir

        op, f32 = g.op, ir.DataType.FLOAT
        angles = [g.cast(x, f32) for x in layer.angles(g, inputs["position_ids"])]
        place = op.Unsqueeze(inputs["rater_index"], g.ints(2))
        cosine, sine = (op.GatherND(x, place, batch_dims=1) for x in angles)
        other_cos, other_sin = (op.Gather(x, columns, axis=1) for x in angles)
        pull = op.Add(write_products(g, cosine, other_cos), write_products(g, sine, other_sin))
        pull = op.Mul(pull, g.scalar(2 * layer.head_dim**-0.5, f32))
        corrected = op.Div(attention, op.Unsqueeze(pull, g.ints(1)))
        looks = op.ReduceSum(op.Mul(corrected, op.Unsqueeze(weights, g.ints(1, 3))), g.ints(2, 3), keepdims=0)
        count = op.Min(op.Shape(looks, start=1, end=2), g.ints(heads))
        _, best = ops.top(g, looks, count)
        chosen = op.GatherND(corrected, op.Unsqueeze(best, g.ints(2)), batch_dims=1)
        return op.ReduceMean(chosen, g.ints(1), keepdims=0)
