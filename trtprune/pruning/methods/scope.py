"""SCOPE: tokens that cover the others, weighted by CLS attention.

Paper: https://arxiv.org/abs/2510.24214 (NeurIPS 2025).  Code: commit 6bf7306, which imports a path on its authors'
machine and does not run as released; Tencent/AngelSlim@67394ce (Apache-2.0) holds the same loop.

    gain_j = Σ_i max(0, cos(f_i, f_j) - c_i),   c_i = the largest cosine of i to a chosen token so far, 0 at first
    choose argmax_j gain_j · cls_j^alpha, ``keep`` times

f are the features before the projector and cls the attention of the CLS token; the code sums it over heads; the mean
used here is a fixed share of that sum, so the choice is the same.  ``combine=add`` is the code's other mode, gain_j +
cls_j^alpha, where that share does matter.  AngelSlim's form takes projected features instead; the paper's are taken
here.  The code computes in the model's dtype, this file in float32.

``center=true`` subtracts the mean from the features before the cosines; c still starts at 0, which for centred features
is no longer the least similarity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import ops
from trtprune.pruning.greedy import most_covering
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency
from trtprune.pruning.similarity import CENTER, cosines, write_cosines

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Scope"]


@register
class Scope(Method):
    """Saliency-weighted coverage."""

    name = "scope"
    summary = "tokens that resemble most of what is not yet covered, weighted by CLS attention"
    paper = "https://arxiv.org/abs/2510.24214"
    source = "https://github.com/Tencent/AngelSlim"
    needs = frozenset({"cls_attention", "vision_features"})
    cost = "N x N cosines, keep greedy steps that sum over (part of) them"
    options = (
        Option("alpha", 1.0, "exponent of the CLS attention", minimum=0, maximum=10),
        Option(
            "combine", "multiply", "the CLS attention is a factor of the gain or a term", choices=("multiply", "add")
        ),
        CENTER,
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_saliency(self.needs, options)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        cover, good = cosines(inputs["vision_features"], inputs["center"] == "true")
        _, _, projected = ops.norms(image_features)
        good = good & projected & ~np.isnan(saliency(inputs))
        weight = np.maximum(ops.clean(saliency(inputs)), np.float32(0))
        if inputs["alpha"] != 1:
            weight = np.minimum(weight ** np.float32(inputs["alpha"]), np.float32(ops.LIMIT))
        return np.sort(np.array(most_covering(cover, keep, good, weight, inputs["combine"] == "add"), dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        from trtprune.pruning.greedy_graph import coverage_select

        op = g.op
        cover, good = write_cosines(g, inputs["vision_features"], options["center"] == "true")
        _, _, projected = ops.write_norms(g, inputs["image_features"])
        good = op.And(op.And(good, op.Squeeze(projected, g.ints(2))), op.Not(op.IsNaN(saliency(inputs, options))))
        weight = op.Max(ops.write_clean(g, saliency(inputs, options)), ops.f32(g, 0.0))
        if options["alpha"] != 1:
            weight = op.Min(op.Pow(weight, ops.f32(g, options["alpha"])), ops.f32(g, ops.LIMIT))
        return coverage_select(g, cover, keep, good, weight, added=options["combine"] == "add")
