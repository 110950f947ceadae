"""FasterVLM: keep the tokens the vision tower's CLS token attends to most.

Paper: https://arxiv.org/abs/2412.01818 ("[CLS] Attention is All You Need for Training-Free Visual Token Pruning").
Code: https://github.com/Theia-4869/FasterVLM @ f5d5f12.

    selection = top-keep of a,   a_j = mean over heads of softmax(q_CLS · K^T / sqrt(d))_j, CLS column dropped

``a`` comes from the layer whose output feeds the projector (for LLaVA-1.5 the last but one) and is not renormalised.
The text is not used.  The only ambiguity is the order of equal scores, which torch.topk does not define: by index
here.
The paper keeps all 32 decoder layers at the pruned length with positions 0..n-1.

Several crops of one image: the code gives each the same budget, ``crops=each``; with ``joint`` they compete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning import ops
from trtprune.pruning.crops import CROPS, listed_by_crop, needs_by_crop, write_listed_by_crop, write_selected
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register
from trtprune.pruning.saliency import RECEIVED, needs_by_saliency, saliency

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["FasterVlm"]


@register
class FasterVlm(Method):
    """Top-``keep`` of the CLS attention."""

    name = "fastervlm"
    summary = "highest CLS attention of the vision tower; blind to the question"
    paper = "https://arxiv.org/abs/2412.01818"
    source = "https://github.com/Theia-4869/FasterVLM @ f5d5f12"
    needs = frozenset({"cls_attention"})
    cost = "one TopK"
    options = (CROPS, RECEIVED)
    without_cls: ClassVar = {"received": "mean"}

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        return needs_by_crop(needs_by_saliency(self.needs, options), options)

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return tokens if options["crops"] == "each" else keep

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        attention = ops.clean(saliency(inputs))
        if inputs["crops"] == "each":
            return np.sort(listed_by_crop(attention, inputs["grid"], keep)[0][:keep])
        return np.sort(ops.descending(attention)[:keep])

    def scores(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        attention = ops.write_clean(g, saliency(inputs, options))
        if options["crops"] == "joint":
            return attention
        order, _ = write_listed_by_crop(g, attention, inputs["grid"], keep, options["most_crops"])
        return write_selected(g, order, keep)
