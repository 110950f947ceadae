"""LLaVA's projector: two linear layers from the tower's features to the language model's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtprune.components.config import Section
from trtprune.components.vit import linear_weights
from trtprune.graph import Graph
from trtprune.graph.ops import ACTIVATIONS, activation, linear

__all__ = ["ProjectorConfig", "build_projector", "projector_weights"]


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes and options of the projector."""

    input_size: int
    """Vision hidden size × number of selected layers."""
    output_size: int
    activation: str
    bias: bool

    @classmethod
    def from_config(cls, config: Section, input_size: int, output_size: int) -> ProjectorConfig:
        """Read ``projector_hidden_act`` and ``multimodal_projector_bias``."""
        return cls(
            input_size,
            output_size,
            config.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
            config.flag("multimodal_projector_bias", True),
        )


def projector_weights(cfg: ProjectorConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`build_projector`."""
    return linear_weights(f"{prefix}linear_1", cfg.output_size, cfg.input_size, cfg.bias) | linear_weights(
        f"{prefix}linear_2", cfg.output_size, cfg.output_size, cfg.bias
    )


def build_projector(g: Graph, cfg: ProjectorConfig, prefix: str, features: ir.Value) -> ir.Value:
    """[B, N, input_size] → [B, N, output_size]."""
    with g.scope("projector"):
        x = activation(g, linear(g, features, f"{prefix}linear_1", bias=cfg.bias), cfg.activation)
        return linear(g, x, f"{prefix}linear_2", bias=cfg.bias)
