"""The CLIP vision tower (``clip_vision_model``), as in LLaVA-1.5."""

from __future__ import annotations

import onnx_ir as ir

from trtprune.components.config import Section
from trtprune.components.vit import (
    LayerNames,
    Present,
    TowerConfig,
    linear_weights,
    norm_weights,
    patch_tokens,
    prepend_token,
)
from trtprune.errors import CheckpointError
from trtprune.graph import Graph
from trtprune.graph.ops import layer_norm

HAS_CLS = True
NAMES = LayerNames("encoder.layers.{}.", "layer_norm1", "layer_norm2", "self_attn.", "self_attn.out_proj")
RENAMES: tuple[tuple[str, str], ...] = ()
"""Older names of modules: none."""
UNUSED = (r"post_layernorm\.(weight|bias)", r"embeddings\.position_ids")
"""Tensors of the architecture that LLaVA does not use, beside the layers above the selected ones."""


def read_config(vision: Section, image_size: tuple[int, int] | None) -> TowerConfig:
    """``vision_config`` of a CLIP tower; its position table fits one image size only."""
    own = vision.size("image_size", 224)
    check_fixed_size(vision, own, image_size)
    return TowerConfig.read(
        vision,
        "clip_vision_model",
        intermediate_size=vision.integer("intermediate_size", 3072),
        patch_size=32,
        norm_eps=1e-5,
        activation="quick_gelu",
    )


def check_fixed_size(vision: Section, own: tuple[int, int], image_size: tuple[int, int] | None) -> None:
    """Refuse a preprocessor whose image size does not fit the tower's position table."""
    if image_size is not None and image_size != own:
        raise CheckpointError(
            f"preprocessor_config.json makes {image_size[0]}×{image_size[1]} pictures, {vision.key('image_size')} "
            f"says {own[0]}×{own[1]}",
            hint="this tower takes one size; correct crop_size or size in preprocessor_config.json",
        )


def embedding_weights(cfg: TowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`embed`."""
    h = cfg.hidden_size
    return {
        f"{prefix}embeddings.class_embedding": (h,),
        f"{prefix}embeddings.patch_embedding.weight": (h, cfg.channels, *cfg.patch_size),
        f"{prefix}embeddings.position_embedding.weight": (cfg.patches + 1, h),
        **norm_weights(f"{prefix}pre_layrnorm", h),
    }


def layer_weights(cfg: TowerConfig, prefix: str, present: Present) -> dict[str, tuple[int, ...]]:
    """Key → shape of one encoder layer, ``prefix`` naming the layer."""
    h, f = cfg.hidden_size, cfg.intermediate_size
    weights = {**norm_weights(f"{prefix}layer_norm1", h), **norm_weights(f"{prefix}layer_norm2", h)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        weights |= linear_weights(f"{prefix}self_attn.{name}", h, h)
    return weights | linear_weights(f"{prefix}mlp.fc1", f, h) | linear_weights(f"{prefix}mlp.fc2", h, f)


def embed(g: Graph, cfg: TowerConfig, prefix: str, pixel_values: ir.Value) -> ir.Value:
    """[B, 3, H, W] → [B, 1 + patches, hidden], CLS first."""
    tokens = patch_tokens(g, cfg, f"{prefix}embeddings.patch_embedding", pixel_values, bias=False)
    tokens = prepend_token(g, cfg, g.weight(f"{prefix}embeddings.class_embedding"), tokens)
    tokens = g.op.Add(tokens, g.weight(f"{prefix}embeddings.position_embedding.weight"))
    return layer_norm(g, tokens, f"{prefix}pre_layrnorm", eps=cfg.norm_eps)
