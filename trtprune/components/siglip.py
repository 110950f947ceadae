"""The SigLIP vision tower (``siglip_vision_model``): no CLS token, so no CLS attention either."""

from __future__ import annotations

import onnx_ir as ir

from trtprune.components import clip
from trtprune.components.clip import NAMES, check_fixed_size, layer_weights
from trtprune.components.config import Section
from trtprune.components.vit import TowerConfig, patch_tokens
from trtprune.graph import Graph

__all__ = ["HAS_CLS", "NAMES", "RENAMES", "UNUSED", "embed", "embedding_weights", "layer_weights", "read_config"]

HAS_CLS = False
RENAMES: tuple[tuple[str, str], ...] = ()
"""Older names of modules: none."""
UNUSED = (*clip.UNUSED, r"head\..+")
"""Tensors of the architecture that LLaVA does not use, beside the layers above the selected ones."""


def read_config(vision: Section, image_size: tuple[int, int] | None) -> TowerConfig:
    """``vision_config`` of a SigLIP tower; the pooling head (``vision_use_head``) is not used in LLaVA."""
    own = vision.size("image_size", 224)
    check_fixed_size(vision, own, image_size)
    return TowerConfig.read(
        vision,
        "siglip_vision_model",
        intermediate_size=vision.integer("intermediate_size", 3072),
        patch_size=16,
        norm_eps=1e-6,
        activation="gelu_pytorch_tanh",
    )


def embedding_weights(cfg: TowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`embed`."""
    h = cfg.hidden_size
    return {
        f"{prefix}embeddings.patch_embedding.weight": (h, cfg.channels, *cfg.patch_size),
        f"{prefix}embeddings.patch_embedding.bias": (h,),
        f"{prefix}embeddings.position_embedding.weight": (cfg.patches, h),
    }


def embed(g: Graph, cfg: TowerConfig, prefix: str, pixel_values: ir.Value) -> ir.Value:
    """[B, 3, H, W] → [B, patches, hidden]."""
    tokens = patch_tokens(g, cfg, f"{prefix}embeddings.patch_embedding", pixel_values, bias=True)
    return g.op.Add(tokens, g.weight(f"{prefix}embeddings.position_embedding.weight"))
