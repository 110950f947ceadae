"""The DINOv2 vision tower (``dinov2``): layer scale, optional SwiGLU, any image size."""

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

HAS_CLS = True
NAMES = LayerNames(
    "encoder.layer.{}.",
    "norm1",
    "norm2",
    "attention.",
    "attention.o_proj",
    "layer_scale1.lambda1",
    "layer_scale2.lambda1",
)

RENAMES = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".mlp.weights_out.", ".mlp.down_proj."),
)
"""Module names in checkpoints from before transformers 5 → their names in transformers 5."""
UNUSED = (r"layernorm\.(weight|bias)", r"embeddings\.mask_token")
"""Tensors of the architecture that LLaVA does not use, beside the layers above the selected ones."""


def read_config(vision: Section, image_size: tuple[int, int] | None) -> TowerConfig:
    """``vision_config`` of a DINOv2 tower.

    ``image_size`` there is the training size of the position table; the graph is built for the preprocessor's size,
    with the table interpolated as transformers does.
    """
    hidden = vision.integer("hidden_size", 768)
    size = int(hidden * vision.number("mlp_ratio", 4))
    swiglu = vision.flag("use_swiglu_ffn", False)
    if swiglu:  # two thirds, rounded up to a multiple of 8
        size = (int(size * 2 / 3) + 7) // 8 * 8
    cfg = TowerConfig.read(
        vision,
        "dinov2",
        image_size=image_size,
        intermediate_size=size,
        patch_size=14,
        norm_eps=1e-6,
        activation="gelu",
        qkv_bias=vision.flag("qkv_bias", True),
        swiglu=swiglu,
        layer_scale=True,
    )
    rows, columns = cfg.position_grid
    if _interpolates(cfg) and rows != columns:
        raise CheckpointError(
            f"{vision.key('image_size')} is not square: its position table cannot be interpolated",
            hint="use pictures of exactly that size",
        )
    return cfg


def embedding_weights(cfg: TowerConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Key → shape of the weights of :func:`embed`."""
    h = cfg.hidden_size
    rows, columns = cfg.position_grid
    return {
        f"{prefix}embeddings.cls_token": (1, 1, h),
        f"{prefix}embeddings.patch_embeddings.projection.weight": (h, cfg.channels, *cfg.patch_size),
        f"{prefix}embeddings.patch_embeddings.projection.bias": (h,),
        f"{prefix}embeddings.position_embeddings": (1, rows * columns + 1, h),
    }


def layer_weights(cfg: TowerConfig, prefix: str, present: Present) -> dict[str, tuple[int, ...]]:
    """Key → shape of one encoder layer; ``present`` decides between the two SwiGLU layouts."""
    h, f = cfg.hidden_size, cfg.intermediate_size
    weights = {**norm_weights(f"{prefix}norm1", h), **norm_weights(f"{prefix}norm2", h)}
    for name in ("q_proj", "k_proj", "v_proj"):
        weights |= linear_weights(f"{prefix}attention.{name}", h, h, cfg.qkv_bias)
    weights |= linear_weights(f"{prefix}attention.o_proj", h, h)
    weights |= {f"{prefix}layer_scale{i}.lambda1": (h,) for i in (1, 2)}
    if not cfg.swiglu:
        return weights | linear_weights(f"{prefix}mlp.fc1", f, h) | linear_weights(f"{prefix}mlp.fc2", h, f)
    if present(f"{prefix}mlp.weights_in.weight"):
        weights |= linear_weights(f"{prefix}mlp.weights_in", 2 * f, h)
    else:
        weights |= linear_weights(f"{prefix}mlp.gate_proj", f, h)
        weights |= linear_weights(f"{prefix}mlp.up_proj", f, h)
    return weights | linear_weights(f"{prefix}mlp.down_proj", h, f)


def embed(g: Graph, cfg: TowerConfig, prefix: str, pixel_values: ir.Value) -> ir.Value:
    """[B, 3, H, W] → [B, 1 + patches, hidden], CLS first."""
    key = f"{prefix}embeddings.patch_embeddings.projection"
    tokens = patch_tokens(g, cfg, key, pixel_values, bias=True)
    tokens = prepend_token(g, cfg, g.weight(f"{prefix}embeddings.cls_token"), tokens)
    return g.op.Add(tokens, _positions(g, cfg, f"{prefix}embeddings.position_embeddings"))


def _interpolates(cfg: TowerConfig) -> bool:
    rows, columns = cfg.position_grid
    height, width = cfg.image_size
    # transformers' test: it interpolates for a non-square image even if the number of patches agrees
    return cfg.patches != rows * columns or height != width


def _positions(g: Graph, cfg: TowerConfig, key: str) -> ir.Value:
    """The position table [1, 1 + patches, hidden], resampled (bicubic, in float32) if the image's grid differs."""
    if not _interpolates(cfg):
        return g.weight(key)
    op, size = g.op, cfg.hidden_size
    table = g.weight(key, dtype=ir.DataType.FLOAT)
    cls = op.Slice(table, g.ints(0), g.ints(1), g.ints(1))
    rows, columns = cfg.position_grid
    grid = op.Slice(table, g.ints(1), g.ints(1 + rows * columns), g.ints(1))
    grid = op.Transpose(op.Reshape(grid, g.ints(1, rows, columns, size)), perm=[0, 3, 1, 2])
    grid = op.Resize(
        grid,
        None,
        None,
        g.ints(1, size, *cfg.grid),
        mode="cubic",
        cubic_coeff_a=-0.75,
        coordinate_transformation_mode="half_pixel",
    )
    grid = op.Reshape(op.Transpose(grid, perm=[0, 2, 3, 1]), g.ints(1, cfg.patches, size))
    return g.cast(op.Concat(cls, grid, axis=1), g.dtype)
