"""PyramidDrop: fewer visual tokens in each stage, by the last instruction token's attention.

Paper: https://arxiv.org/abs/2410.17247.  Code: Cooperx521/PyramidDrop.  Before layers 8, 16 and 24 of 32 (the same
share of another depth) the share r of the remaining tokens is kept: a half in the paper.  The score of a token is the
mean over heads of the attention the prompt's last token would give it in the layer *behind* the cut: that layer's norm,
query and key projections are applied to the states that enter it, before anything is dropped.  The kept tokens keep
their order and are numbered anew.

``keep`` is the average over the layers and decides r: N/4 · (1 + r + r² + r³) with the paper's layers, 270 of 576 for
r = 1/2, and no less than 144; ``first`` moves the first stage to the front, and the others follow in equal steps.  That
is an extension: a schedule with another ``first`` than a quarter of the layers is published nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtprune.pruning.base import LayerAccess
from trtprune.pruning.in_llm import InLlmMethod, write_choice
from trtprune.pruning.options import Option
from trtprune.pruning.points import check_points
from trtprune.pruning.registry import register
from trtprune.schedules import ScheduleInfo

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["PyramidDrop"]

STAGES = 3


@register
class PyramidDrop(InLlmMethod):
    """Three cuts by the attention of the layer behind each."""

    name = "pyramiddrop"
    summary = "visual tokens thin out in three stages, by the last token's attention"
    cost = "one attention row of the next layer and one TopK at each point"
    paper = "https://arxiv.org/abs/2410.17247"
    source = "https://github.com/Cooperx521/PyramidDrop"
    point_needs: ClassVar[frozenset[str]] = frozenset({"rater_index", "position_ids"})
    options = (Option("first", 0, "layers that run on all visual tokens; 0: a quarter", minimum=0, maximum=1000),)

    def attention(self, options: Mapping[str, Any]) -> None:
        return None

    def plan(self, depth: int, options: Mapping[str, Any]) -> ScheduleInfo:
        first = int(options["first"]) or max(1, round(depth / (STAGES + 1)))
        points = tuple(first + round(stage * (depth - first) / STAGES) - 1 for stage in range(STAGES))
        check_points(points, depth, self.name, "first")
        return ScheduleInfo(depth, points, "powers", option="first")

    def rate(self, attention: np.ndarray, **context: Any) -> np.ndarray:
        import numpy as np

        return attention[:, -1].mean(axis=0, dtype=np.float32) if attention.ndim == 3 else attention[-1]

    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        op = g.op
        last = op.Slice(inputs["rater_index"], g.ints(-1), g.ints(2**31), g.ints(1))
        rows = layer.next_attention(g, inputs["hidden_states"], inputs["position_ids"], last)
        columns = op.Squeeze(inputs["visual_index"], g.ints(0))
        scores = op.ReduceMean(op.Gather(rows, columns, axis=3), g.ints(1, 2), keepdims=0)
        return write_choice(g, scores, inputs)
