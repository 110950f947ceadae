"""Qwen2.5-VL (``Qwen2_5_VLForConditionalGeneration``): a packed tower with window attention, and Qwen2 with M-RoPE.

Images only; videos are not supported.

Source: https://arxiv.org/abs/2502.13923; ``Qwen2_5_VLModel`` in transformers 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.components.config import MAX_LAYERS, Section
from trtprune.components.qwen2_vl_vision import PackedTowerConfig
from trtprune.components.rope import RotaryAxes
from trtprune.errors import CheckpointError, shown
from trtprune.graph.ops import ACTIVATIONS
from trtprune.models.packed_config import (
    COMPARE,
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

__all__ = ["Qwen25VlFamily"]

FULL_LAYERS = (7, 15, 23, 31)
MOST_WINDOW = 64


class Qwen25VlFamily(PackedFamily):
    """See :class:`trtprune.models.spec.BoundedFamily`."""

    name = "qwen2.5-vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    model_type = "qwen2_5_vl"
    tower = "qwen2_5_vl"
    defaults = PackedDefaults(QWEN2_TEXT, RotaryAxes((16, 24, 24)), TOKENS, ("qwen2_vl",))

    def read_tower(self, vision: Section) -> PackedTowerConfig:
        """The tower; raises CheckpointError for sizes that do not fit each other, or one without full attention."""
        patch, merge, frames = patch_sides(vision)
        layers = vision.integer("depth", 32, high=MAX_LAYERS)
        full = _full_layers(vision, layers)
        window = vision.integer("window_size", 112) // merge // patch
        if not 1 <= window <= MOST_WINDOW and len(full) < layers:
            raise CheckpointError(
                f"{vision.key('window_size')} is {vision.values.get('window_size')}, which makes windows of {window} "
                f"visual tokens on a side; expected 1 to {MOST_WINDOW}",
                hint=COMPARE,
            )
        width, heads = width_and_heads(vision, "hidden_size", 3584)
        return PackedTowerConfig(
            model_type="qwen2_5_vl",
            hidden_size=width,
            intermediate_size=vision.integer("intermediate_size", 3420),
            num_layers=layers,
            num_heads=heads,
            patch=patch,
            frames=frames,
            merge=merge,
            window=window if len(full) < layers else 0,
            output_size=vision.integer("out_hidden_size", 3584),
            norm_eps=1e-6,
            activation=vision.choice("hidden_act", ACTIVATIONS, "silu"),
            gated=True,
            rope_theta=rope_theta(vision),
            full_layers=full,
        )


def _full_layers(vision: Section, layers: int) -> frozenset[int]:
    """The layers that see the whole image.

    Raises:
        CheckpointError: for a list that is none, or without a layer of the tower.
    """
    name = "fullatt_block_indexes"
    value = vision.values.get(name)
    indexes = FULL_LAYERS if value is None else value
    if not isinstance(indexes, list | tuple) or not all(type(i) is int and 0 <= i < layers for i in indexes):
        raise CheckpointError(
            f"{vision.key(name)} is {shown(value)}, expected layers from 0 to {layers - 1}", hint=COMPARE
        )
    if not indexes:
        raise CheckpointError(f"{vision.key(name)} is empty: no layer of the tower sees the whole image", hint=COMPARE)
    return frozenset(indexes)
