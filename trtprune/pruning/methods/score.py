"""SCoRe: salient tokens that are unlike those chosen before, by the product of the two.

Paper: SCoRe (Xu et al., CVPR 2026).  No code was found, and of the paper only a summary of its algorithm:

    s_0 = argmax a;   s_k = argmax_j (1 - max_{i ∈ S} cos(f_i, f_j)) · a_j^α          until ``keep`` are chosen

with f the tower's features before the projector and a the CLS attention.  The attention is that of the layer whose
output feeds the projector, as in the other methods; the paper's may be one layer deeper.

The paper tunes ``alpha`` between 0.6 and 1.  The default is 1: it is in that range, it is the exponent that SCOPE
releases for the same attention, and without a power both forms compute the same numbers bit for bit.  0 leaves
DivPrune's loop with another first token, on features before the projector.

``a^α >= 0`` may go into the maximum: (1 - max cos) · w = -max((cos - 1) · w), and rounding keeps the order of numbers.
So DivPrune's loop serves, with ``-(w_j · (1 - cos_ij))`` for its matrix.  ``center=true`` subtracts the image's mean
from the features before the cosines.

Several crops of one image compete for its budget; no code says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import ops
from trtprune.pruning.greedy import LAST, TAKEN, least_close
from trtprune.pruning.method import Method
from trtprune.pruning.options import Option
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency
from trtprune.pruning.similarity import CENTER, cosines, write_cosines

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Score"]


@register
class Score(Method):
    """Max-min diversity times saliency."""

    name = "score"
    summary = "tokens with CLS attention, times their distance from those chosen before"
    paper = "SCoRe, Xu et al., CVPR 2026"
    source = "none found"
    needs = frozenset({"cls_attention", "vision_features"})
    cost = "N x N cosines, keep greedy steps over a row"
    options = (
        Option("alpha", 1.0, "exponent of the CLS attention; 0.6 to 1 in the paper", minimum=0, maximum=4),
        CENTER,
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_saliency(self.needs, options)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        cosine, good = cosines(inputs["vision_features"], inputs["center"] == "true")
        _, _, projected = ops.norms(image_features)
        good = good & projected & ~np.isnan(saliency(inputs))
        salient = np.maximum(ops.clean(saliency(inputs)), np.float32(0))
        weight = salient
        if inputs["alpha"] != 1:
            weight = np.minimum(salient ** np.float32(inputs["alpha"]), np.float32(ops.LIMIT))
        close = -(weight * (np.float32(1) - cosine))
        first = int(np.argmax(np.where(good, salient, np.float32(-1))))
        start = np.where(good, close[first], np.float32(LAST))
        start[first] = TAKEN
        return np.sort(np.array([first, *least_close(close, start, keep - 1)], dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        from trtprune.pruning.greedy_graph import maxmin_select, start_at

        op, attention = g.op, saliency(inputs, options)
        cosine, good = write_cosines(g, inputs["vision_features"], options["center"] == "true")
        _, _, projected = ops.write_norms(g, inputs["image_features"])
        good = op.And(op.And(good, op.Squeeze(projected, g.ints(2))), op.Not(op.IsNaN(attention)))
        salient = op.Max(ops.write_clean(g, attention), ops.f32(g, 0.0))
        weight = salient
        if options["alpha"] != 1:
            weight = op.Min(op.Pow(salient, ops.f32(g, options["alpha"])), ops.f32(g, ops.LIMIT))
        close = op.Neg(op.Mul(op.Unsqueeze(weight, g.ints(1)), op.Sub(ops.f32(g, 1.0), cosine)))
        first = op.ArgMax(op.Where(good, salient, ops.f32(g, -1.0)), axis=1, keepdims=1, select_last_index=0)
        return maxmin_select(g, close, start_at(g, close, first, good, LAST), op.Sub(keep, g.ints(1)), "maxmin")
