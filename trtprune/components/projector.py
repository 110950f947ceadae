"""Projectors: from the tower's features to the language model's embeddings.

Each has a class of its own with the interface of :class:`Projector`; LLaVA's, two linear layers, is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir

from trtprune.components.config import Section
from trtprune.components.vit import linear_weights
from trtprune.graph import Graph
from trtprune.graph.ops import ACTIVATIONS, activation, linear

__all__ = ["Projector", "ProjectorConfig"]


class Projector(Protocol):
    """The interface of a projector: its sizes, its weights and its graph."""

    @property
    def input_size(self) -> int:
        """C, the width of a row that enters it."""

    @property
    def side(self) -> int:
        """Patches on a side of the square that becomes one visual token, see :mod:`trtprune.components.squares`; 1
        where each feature of the tower is one."""

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`write`."""

    def write(self, g: Graph, prefix: str, features: ir.Value) -> ir.Value:
        """[B, N, input_size] → [B, N, D]."""


@dataclass(frozen=True)
class ProjectorConfig:
    """LLaVA's projector: two linear layers; see :class:`Projector`."""

    input_size: int
    """Vision hidden size × number of selected layers."""
    output_size: int
    activation: str
    bias: bool

    side: ClassVar[int] = 1

    @classmethod
    def from_config(cls, config: Section, input_size: int, output_size: int) -> ProjectorConfig:
        """Read ``projector_hidden_act`` and ``multimodal_projector_bias``."""
        return cls(
            input_size,
            output_size,
            config.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
            config.flag("multimodal_projector_bias", True),
        )

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`write`."""
        return linear_weights(f"{prefix}linear_1", self.output_size, self.input_size, self.bias) | linear_weights(
            f"{prefix}linear_2", self.output_size, self.output_size, self.bias
        )

    def write(self, g: Graph, prefix: str, features: ir.Value) -> ir.Value:
        """[B, N, input_size] → [B, N, output_size]."""
        with g.scope("projector"):
            x = activation(g, linear(g, features, f"{prefix}linear_1", bias=self.bias), self.activation)
            return linear(g, x, f"{prefix}linear_2", bias=self.bias)
