"""FastV: after the first layers, the visual tokens that the prompt's last token attends to.

Paper: https://arxiv.org/abs/2403.06764.  Code: pkunlp-icler/FastV.  One cut, behind the first ``k`` layers (2): the
score of a visual token is the mean over heads of the attention that the last token of the prompt gave it in layer
``k - 1`` (the code; the paper speaks of the average over all queries).  The best are kept, in their order and with
their positions.

``keep`` is the average over the layers, (k · N + (L - k) · T) / L, so that methods are compared at equal averages; the
paper's ratio R is 1 - T / N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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

__all__ = ["FastV"]


@register
class FastV(InLlmMethod):
    """One cut behind the first layers, by the last token's attention."""

    name = "fastv"
    summary = "what the prompt's last token attends to after the first layers of the decoder"
    cost = "one attention row and one TopK"
    paper = "https://arxiv.org/abs/2403.06764"
    source = "https://github.com/pkunlp-icler/FastV"
    positions = "original"
    options = (Option("k", 2, "layers that run on all visual tokens", minimum=1, maximum=1000),)

    def plan(self, depth: int, options: Mapping[str, Any]) -> ScheduleInfo:
        points = (int(options["k"]) - 1,)
        check_points(points, depth, self.name, "k")
        return ScheduleInfo(depth, points, "equal", option="k")

    def rate(self, attention: np.ndarray, **context: Any) -> np.ndarray:
        return attention[-1]

    def build_point(
        self, g: Graph, inputs: Mapping[str, ir.Value], layer: LayerAccess, **options: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        columns = g.op.Squeeze(inputs["visual_index"], g.ints(0))
        rows = g.op.Gather(inputs["rater_attention"], columns, axis=2)
        last = g.op.Gather(rows, g.op.Squeeze(g.ints(-1), g.ints(0)), axis=1)
        return write_choice(g, last, inputs)
