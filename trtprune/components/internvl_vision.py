"""InternViT, the vision tower of InternVL (``internvl_vision``): a CLS token, layer scale, norms of queries and keys.

Source: ``InternVLVisionModel`` in transformers 5; https://arxiv.org/abs/2312.14238.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trtprune.components.clip import check_fixed_size
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
from trtprune.graph import Graph

__all__ = [
    "DEFAULTS",
    "FINAL_NORM",
    "HAS_CLS",
    "NAMES",
    "RENAMES",
    "UNUSED",
    "embed",
    "embedding_weights",
    "layer_weights",
    "read_config",
]

HAS_CLS = True
NAMES = LayerNames(
    "encoder.layer.{}.",
    "layernorm_before",
    "layernorm_after",
    "attention.",
    "attention.projection_layer",
    "lambda_1",
    "lambda_2",
)
RENAMES: tuple[tuple[str, str], ...] = ()
"""Older names of modules: none."""
FINAL_NORM = "layernorm"
"""The norm behind the last layer, which a tower with mean pooling does not have."""
UNUSED = (r"layernorm\.(weight|bias)", r"embeddings\.mask_token")
"""Tensors of the architecture that InternVL does not use, beside the layers above the selected ones."""
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
"""transformers' defaults where they differ from those of other towers."""


def read_config(vision: Section, image_size: tuple[int, int] | None) -> TowerConfig:
    """``vision_config`` of an InternViT tower.

    Its position table fits one image size: tiles are of the size that it was made for, and nothing is interpolated.
    """
    vision = Section({**DEFAULTS, **{k: v for k, v in vision.values.items() if v is not None}}, vision.path)
    check_fixed_size(vision, vision.size("image_size", 448), image_size)
    vision.fixed("use_absolute_position_embeddings", True)
    return TowerConfig.read(
        vision,
        "internvl_vision",
        intermediate_size=vision.integer("intermediate_size"),
        patch_size=14,
        norm_eps=1e-6,
        activation="gelu",
        qkv_bias=vision.flag("attention_bias", False),
        layer_scale=True,
        rms_norm=vision.choice("norm_type", ("layer_norm", "rms_norm"), "layer_norm") == "rms_norm",
        qk_norm=vision.flag("use_qk_norm", False),
    )


def embedding_weights(cfg: TowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`embed`."""
    h = cfg.hidden_size
    return {
        f"{prefix}embeddings.cls_token": (1, 1, h),
        f"{prefix}embeddings.patch_embeddings.projection.weight": (h, cfg.channels, *cfg.patch_size),
        f"{prefix}embeddings.patch_embeddings.projection.bias": (h,),
        f"{prefix}embeddings.position_embeddings": (1, cfg.patches + 1, h),
    }


def layer_weights(cfg: TowerConfig, prefix: str, present: Present) -> dict[str, tuple[int, ...]]:
    """Key → shape of one encoder layer, ``prefix`` naming the layer."""
    h, f = cfg.hidden_size, cfg.intermediate_size
    weights: dict[str, tuple[int, ...]] = {f"{prefix}lambda_{i}": (h,) for i in (1, 2)}
    for name in ("layernorm_before", "layernorm_after"):
        weights |= {f"{prefix}{name}.weight": (h,)} if cfg.rms_norm else norm_weights(f"{prefix}{name}", h)
    for name in ("q_proj", "k_proj", "v_proj"):
        weights |= linear_weights(f"{prefix}attention.{name}", h, h, cfg.qkv_bias)
    weights |= linear_weights(f"{prefix}attention.projection_layer", h, h)
    if cfg.qk_norm:
        weights |= {f"{prefix}attention.{name}.weight": (h,) for name in ("q_norm", "k_norm")}
    return weights | linear_weights(f"{prefix}mlp.fc1", f, h) | linear_weights(f"{prefix}mlp.fc2", h, f)


def embed(g: Graph, cfg: TowerConfig, prefix: str, pixel_values: ir.Value) -> ir.Value:
    """[B, 3, H, W] → [B, 1 + patches, hidden], CLS first."""
    key = f"{prefix}embeddings.patch_embeddings.projection"
    tokens = patch_tokens(g, cfg, key, pixel_values, bias=True)
    tokens = prepend_token(g, cfg, g.weight(f"{prefix}embeddings.cls_token"), tokens)
    return g.op.Add(tokens, g.weight(f"{prefix}embeddings.position_embeddings"))
