"""The vision tower of Idefics3 and SmolVLM (``idefics3_vision``, ``smolvlm_vision``): SigLIP with its last norm.

transformers finds the place of a patch in the position table as a fraction of the image, so that images of other sizes
can use it.  Every crop here is a full square of the table's own size, whose places are 0, 1, … N − 1.

Source: ``Idefics3VisionTransformer`` and ``SmolVLMVisionTransformer`` in transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtprune.components.config import Section
from trtprune.components.siglip import NAMES, embed, embedding_weights, layer_weights
from trtprune.components.vit import TowerConfig
from trtprune.errors import CheckpointError

__all__ = [
    "FINAL_NORM",
    "HAS_CLS",
    "MISPLACED",
    "NAMES",
    "RENAMES",
    "UNUSED",
    "embed",
    "embedding_weights",
    "layer_weights",
    "read_config",
]

HAS_CLS = False
RENAMES: tuple[tuple[str, str], ...] = (
    ("model.vision_model.", "model.vision_tower."),
    ("model.text_model.", "model.language_model."),
    ("model.connector.modality_projection.proj.", "model.multi_modal_projector.linear."),
)
"""transformers' names of the parts → the names that other families have for them."""
FINAL_NORM = "post_layernorm"
UNUSED = (r"embeddings\.position_ids",)
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
"""transformers' defaults where they differ from those of other towers."""
LARGEST_GRID = 64
MISPLACED = frozenset({19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62})
"""Patches on a side, up to :data:`LARGEST_GRID`, for which float32 rounding puts transformers' fractions into other
places of the table than 0 … N − 1, and two patches into one."""


def read_config(vision: Section, image_size: tuple[int, int] | None) -> TowerConfig:
    """``vision_config`` of such a tower.

    Raises:
        CheckpointError: for an image that is not square, or a grid whose places in the table depend on rounding.
    """
    vision = Section({**DEFAULTS, **{k: v for k, v in vision.values.items() if v is not None}}, vision.path)
    config = TowerConfig.read(
        vision,
        "smolvlm_vision",
        intermediate_size=vision.integer("intermediate_size"),
        patch_size=32,
        norm_eps=1e-6,
        activation="gelu_pytorch_tanh",
    )
    rows, columns = config.grid
    if rows != columns or config.image_size[0] != config.image_size[1]:
        height, width = config.image_size
        raise CheckpointError(
            f"{vision.key('image_size')}: crops of {height} × {width} pixels are not square",
            hint="correct image_size or patch_size in config.json",
        )
    if rows in MISPLACED or rows > LARGEST_GRID:
        without = ", ".join(map(str, sorted(MISPLACED)))
        raise CheckpointError(
            f"{vision.key('image_size')}: crops of {rows} × {rows} patches, whose places in transformers' position "
            "table depend on how fractions are rounded",
            hint=f"supported: up to {LARGEST_GRID} patches on a side, but for {without}",
        )
    return config
