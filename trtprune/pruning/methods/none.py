"""No pruning: every visual token is kept.  The baseline of every comparison, and the way to build an unpruned model.

The budget must be the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.errors import BudgetError
from trtprune.pruning import ops
from trtprune.pruning.method import Method
from trtprune.pruning.registry import register

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trtprune.graph import Graph

__all__ = ["NoPruning"]


@register
class NoPruning(Method):
    """All N tokens, in order."""

    name = "none"
    summary = "keep every visual token"
    cost = "nothing"

    def check_keep(self, keep: int, tokens: int) -> int:
        if keep != tokens:
            raise BudgetError(
                f"{arg('keep', keep)}: {arg('method', self.name)} keeps all {tokens} visual tokens",
                hint=f"leave out {arg('keep')}, or choose a method that prunes",
            )
        return int(keep)

    def budgets(self, tokens: int, depth: int, options: Mapping[str, Any]) -> tuple[int, int]:
        return tokens, tokens

    def longest_order(self, tokens: int, keep: int, options: Mapping[str, Any]) -> int:
        return 0

    def select(self, image_features: np.ndarray, *, keep: int, **inputs: Any) -> np.ndarray:
        import numpy as np

        return np.arange(keep, dtype=np.int64)

    def build(self, g: Graph, inputs: Mapping[str, ir.Value], *, keep: ir.Value, **options: Any) -> ir.Value:
        op = g.op
        indices = ops.iota(g, keep)
        batch = op.Shape(inputs["image_features"], start=0, end=1)
        return op.Expand(op.Unsqueeze(indices, g.ints(0)), op.Concat(batch, keep, axis=0))
