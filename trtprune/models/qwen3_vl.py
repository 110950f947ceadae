"""Qwen3-VL (``Qwen3VLForConditionalGeneration``): a packed tower with a table of positions, and Qwen3 with M-RoPE.

The tower's DeepStack levels go into the language model: level l is added behind its layer l.

Images only; videos are not supported.

Source: https://arxiv.org/abs/2511.21631; ``Qwen3VLModel`` in transformers 5.
"""

from __future__ import annotations

import math
from typing import Any

from trtprune.components.config import MAX_LAYERS, MAX_SIDE, Section
from trtprune.components.qwen2_vl_vision import QWEN3_NAMES, PackedTowerConfig
from trtprune.components.rope import RotaryAxes
from trtprune.errors import CheckpointError, shown
from trtprune.graph.ops import ACTIVATIONS
from trtprune.models.packed_config import (
    COMPARE,
    TOKENS,
    PackedDefaults,
    patch_sides,
    rope_theta,
    width_and_heads,
)
from trtprune.models.packed_tower import PackedFamily

__all__ = ["Qwen3VlFamily"]

TEXT: dict[str, Any] = {
    "model_type": "qwen3_vl_text",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
}
"""Defaults of ``text_config`` in transformers."""
DEEPSTACK_LAYERS = (8, 16, 24)


class Qwen3VlFamily(PackedFamily):
    """See :class:`trtprune.models.spec.BoundedFamily`."""

    name = "qwen3-vl"
    architecture = "Qwen3VLForConditionalGeneration"
    model_type = "qwen3_vl"
    tower = "qwen3_vl"
    defaults = PackedDefaults(
        text=TEXT,
        text_types=("qwen3_vl_text",),
        axes=RotaryAxes((24, 20, 20), interleaved=True),
        tokens=TOKENS,
        processors=("qwen2_vl",),
    )

    def read_tower(self, vision: Section) -> PackedTowerConfig:
        """The tower; raises CheckpointError for sizes that do not fit each other, or levels outside of the tower."""
        patch, merge, frames = patch_sides(vision, 16)
        layers = vision.integer("depth", 27, high=MAX_LAYERS)
        width, heads = width_and_heads(vision, "hidden_size", 1152)
        return PackedTowerConfig(
            model_type="qwen3_vl",
            hidden_size=width,
            intermediate_size=vision.integer("intermediate_size", 4304),
            num_layers=layers,
            num_heads=heads,
            patch=patch,
            frames=frames,
            merge=merge,
            window=0,
            output_size=vision.integer("out_hidden_size", 3584),
            norm_eps=1e-6,
            activation=vision.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
            gated=False,
            rope_theta=rope_theta(vision),
            full_layers=frozenset(range(layers)),
            names=QWEN3_NAMES,
            patch_bias=True,
            table_side=_table_side(vision),
            deepstack=_deepstack(vision, layers),
        )


def _table_side(vision: Section) -> int:
    """Entries on a side of the table of positions; raises CheckpointError for a number that is no square."""
    name = "num_position_embeddings"
    entries = vision.integer(name, 2304, high=MAX_SIDE**2)
    side = math.isqrt(entries)
    if side**2 != entries:
        raise CheckpointError(f"{vision.key(name)} is {entries}; expected a square", hint=COMPARE)
    return side


def _deepstack(vision: Section, layers: int) -> tuple[int, ...]:
    """The layers whose patches become DeepStack levels.

    Raises:
        CheckpointError: for a list that is none, or with a layer twice or outside of the tower.
    """
    name = "deepstack_visual_indexes"
    value = vision.values.get(name)
    indexes = DEEPSTACK_LAYERS if value is None else value
    if not isinstance(indexes, list | tuple) or not all(type(i) is int and 0 <= i < layers for i in indexes):
        raise CheckpointError(
            f"{vision.key(name)} is {shown(list(indexes) if value is None else value)}, expected layers from 0 to "
            f"{layers - 1}",
            hint=COMPARE,
        )
    if len({*indexes}) < len(indexes):
        raise CheckpointError(f"{vision.key(name)} is {shown(value)}, which has a layer twice", hint=COMPARE)
    return tuple(indexes)
