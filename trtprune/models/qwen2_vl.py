"""Qwen2-VL (``Qwen2VLForConditionalGeneration``): a packed tower without windows, and Qwen2 with M-RoPE.

Images only; videos are not supported.

Source: https://arxiv.org/abs/2409.12191; ``Qwen2VLModel`` in transformers 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.components.config import MAX_LAYERS, Section
from trtprune.components.qwen2_vl_vision import PackedTowerConfig
from trtprune.components.rope import RotaryAxes
from trtprune.graph.ops import ACTIVATIONS
from trtprune.models.packed_config import (
    QWEN2_TEXT,
    TOKENS,
    PackedDefaults,
    patch_sides,
    rope_theta,
    width_and_heads,
)
from trtprune.models.packed_tower import PackedFamily

if TYPE_CHECKING:
    pass

__all__ = ["Qwen2VlFamily"]


class Qwen2VlFamily(PackedFamily):
    """See :class:`trtprune.models.spec.BoundedFamily`."""

    name = "qwen2-vl"
    architecture = "Qwen2VLForConditionalGeneration"
    model_type = "qwen2_vl"
    tower = "qwen2_vl"
    defaults = PackedDefaults(QWEN2_TEXT, RotaryAxes((16, 24, 24)), TOKENS, ("qwen2_vl",))

    def read_tower(self, vision: Section) -> PackedTowerConfig:
        """The tower; raises CheckpointError for sizes that do not fit each other."""
        patch, merge, frames = patch_sides(vision)
        layers = vision.integer("depth", 32, high=MAX_LAYERS)
        width, heads = width_and_heads(vision, "embed_dim", 1280)
        return PackedTowerConfig(
            model_type="qwen2_vl",
            hidden_size=width,
            intermediate_size=int(width * vision.number("mlp_ratio", 4)),
            num_layers=layers,
            num_heads=heads,
            patch=patch,
            frames=frames,
            merge=merge,
            window=0,
            output_size=vision.integer("hidden_size", 3584),
            norm_eps=1e-6,
            activation=vision.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
            gated=False,
            rope_theta=rope_theta(vision),
            full_layers=frozenset(range(layers)),
        )
