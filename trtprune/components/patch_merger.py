"""The merger of a packed tower: the patches of each visual token, side by side, through two linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from trtprune.components.vit import linear_weights, norm_weights
from trtprune.graph import Graph
from trtprune.graph.ops import activation, layer_norm, linear, rms_norm

__all__ = ["Merger", "MergerNames"]


class MergerNames(NamedTuple):
    """The checkpoint's names of a merger's norm and of its two linear layers."""

    norm: str
    first: str
    second: str


@dataclass(frozen=True)
class Merger:
    """A merger: norm, linear, GELU, linear.

    Attributes:
        names: Names of its weights.
        width: C, the tower's width.
        unit: Patches of a visual token.
        output_size: D, the language model's width.
        norm_eps: Summand of the norm.
        rms: Whether the norm is an RMS norm.
        joint: Whether the norm is over all patches of a visual token together (DeepStack's mergers), or over each.
    """

    names: MergerNames
    width: int
    unit: int
    output_size: int
    norm_eps: float
    rms: bool = False
    joint: bool = False

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of its weights."""
        merged = self.width * self.unit
        size, norm = merged if self.joint else self.width, f"{prefix}{self.names.norm}"
        return (
            ({f"{norm}.weight": (size,)} if self.rms else norm_weights(norm, size))
            | linear_weights(f"{prefix}{self.names.first}", merged, merged)
            | linear_weights(f"{prefix}{self.names.second}", self.output_size, merged)
        )

    def build(self, g: Graph, prefix: str, x: ir.Value) -> ir.Value:
        """Patches [1, patches, C] → visual tokens [1, N, D]."""
        norm, key = rms_norm if self.rms else layer_norm, f"{prefix}{self.names.norm}"
        if not self.joint:
            x = norm(g, x, key, eps=self.norm_eps)
        y = g.op.Reshape(x, g.ints(1, -1, self.width * self.unit))
        if self.joint:
            y = norm(g, y, key, eps=self.norm_eps)
        y = activation(g, linear(g, y, f"{prefix}{self.names.first}", bias=True), "gelu")
        return linear(g, y, f"{prefix}{self.names.second}", bias=True)
