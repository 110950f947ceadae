"""MMR: important tokens that are unlike those chosen before (maximal marginal relevance).

Paper: https://arxiv.org/abs/2602.13315 (IDPruner).  Code: Tencent/AngelSlim@67394ce (Apache-2.0), where the importance
comes from a trained selector.  Here it is the CLS attention, which needs no training:

    imp = (cls - min) / (max - min + 1e-6)
    s_0 = argmax imp;   s_k = argmax_j λ · imp_j - (1 - λ) · max_{i ∈ S} cos(v_i, v_j)

with λ = ``importance`` (0.5) and v the projected tokens.  The reference chooses ``parallel_k`` = 1 token a step too.
``center=true`` subtracts the image's mean from the features before the cosines.

The largest of ``(1 - λ) cos(v_i, v_j) - λ imp_j`` over i is what DivPrune's loop computes: rounding keeps the order of
numbers, so the factor and the term may go in first.
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
from trtprune.pruning.similarity import CENTER, cosines, min_max, write_cosines, write_min_max

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["Mmr"]

_WIDEN = 1e-6


@register
class Mmr(Method):
    """Maximal marginal relevance of the CLS attention."""

    name = "mmr"
    summary = "tokens with CLS attention that are unlike those chosen before"
    paper = "https://arxiv.org/abs/2602.13315"
    source = "https://github.com/Tencent/AngelSlim"
    needs = frozenset({"cls_attention"})
    cost = "N x N cosines, keep greedy steps over a row"
    options = (
        Option(
            "importance", 0.5, "weight of the CLS attention; the rest is that of being different", minimum=0, maximum=1
        ),
        CENTER,
        RECEIVED,
    )
    without_cls: ClassVar = {"received": "mean"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_saliency(self.needs, options)

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        weight = np.float32(inputs["importance"])
        close, good = cosines(image_features, inputs["center"] == "true")
        good = good & ~np.isnan(saliency(inputs))
        worth = min_max(ops.clean(saliency(inputs)), good, widen=_WIDEN)
        close = np.float32(1 - inputs["importance"]) * close - weight * worth
        first = int(np.argmax(np.where(good, worth, np.float32(-1))))
        start = np.where(good, close[first], np.float32(LAST))
        start[first] = TAKEN
        return np.sort(np.array([first, *least_close(close, start, keep - 1)], dtype=np.int64))

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        from trtprune.pruning.greedy_graph import maxmin_select, start_at

        op = g.op
        close, good = write_cosines(g, inputs["image_features"], options["center"] == "true")
        good = op.And(good, op.Not(op.IsNaN(saliency(inputs, options))))
        worth = write_min_max(g, ops.write_clean(g, saliency(inputs, options)), good, widen=_WIDEN)
        term = op.Unsqueeze(op.Mul(worth, ops.f32(g, options["importance"])), g.ints(1))
        close = op.Sub(op.Mul(close, ops.f32(g, 1 - options["importance"])), term)
        first = op.ArgMax(op.Where(good, worth, ops.f32(g, -1.0)), axis=1, keepdims=1, select_last_index=0)
        return maxmin_select(g, close, start_at(g, close, first, good, LAST), op.Sub(keep, g.ints(1)), "maxmin")
