"""What the config and the tensor names of a checkpoint say, of a packed tower and a language model with three axes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig, decoder_weights
from trtprune.components.rope import RotaryAxes
from trtprune.errors import CheckpointError
from trtprune.models.projected_config import EMBED, TEXT, output_projection
from trtprune.models.weights import canonical_tensors
from trtprune.runtime.images import PackedShape

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.components.qwen2_vl_vision import PackedTower
    from trtprune.graph import Graph

__all__ = [
    "COMPARE",
    "QWEN2_TEXT",
    "TOKENS",
    "VISION",
    "PackedConfig",
    "PackedDefaults",
    "PackedVision",
    "parse",
    "patch_sides",
    "required",
    "rope_theta",
    "text_config",
    "width_and_heads",
]

VISION = "model.visual."
RULES = (
    (re.compile(r"^visual\."), VISION),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), TEXT),
)
"""Names of transformers 4 → transformers 5's."""
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
"""Ids of the special tokens in Qwen's tokenizers."""
QWEN2_TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_window_layers": 80,
}
"""Defaults of ``text_config`` in transformers' Qwen2-VL and Qwen2.5-VL."""
COMPARE = "compare it with the config.json of the model's authors"


class PackedVision(Protocol):
    """A packed tower with its merger."""

    @property
    def model_type(self) -> str:
        """Its name."""

    @property
    def hidden_size(self) -> int:
        """C, its width."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def num_layers(self) -> int:
        """Its layers."""

    @property
    def output_size(self) -> int:
        """D, the width of the visual tokens."""

    @property
    def levels(self) -> int:
        """L, its DeepStack levels."""

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of its weights."""

    def build(self, g: Graph, prefix: str, wanted: Collection[str], shallow_layer: int | None) -> PackedTower:
        """Adds it to a graph, see :func:`trtprune.components.qwen2_vl_vision.build_packed_tower`."""


@dataclass(frozen=True)
class PackedDefaults:
    """A family's values where its ``config.json`` leaves them out.

    Attributes:
        text: ``text_config``; its ``model_type`` is that of the decoder here, whatever the checkpoint calls it.
        text_types: The checkpoint's own names for it, if others share the architecture's; empty: any.
        axes: Sections of the rotary embedding.
        tokens: Ids of the special tokens by the config's names.
        processors: Image processors that fit, names of :data:`trtprune.runtime.images.PROCESSORS`.
    """

    text: Mapping[str, Any]
    axes: RotaryAxes
    tokens: Mapping[str, int]
    processors: tuple[str, ...]
    text_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedConfig:
    """The checkpoint's configuration, resolved.

    Attributes:
        vision: The tower.
        shape: The patches that it reads.
        text: The language model.
        lm_head: Key of the output projection: the embedding's if they are tied.
        tied_in_config: Whether the config ties them; the weights may differ all the same.
        tensors: The checkpoint's, by canonical name.
        tokens: Ids of the special tokens by the config's names.
        processors: As in :class:`PackedDefaults`.
    """

    vision: PackedVision
    shape: PackedShape
    text: DecoderConfig
    lm_head: str
    tied_in_config: bool
    tensors: dict[str, TensorInfo]
    tokens: Mapping[str, int]
    processors: tuple[str, ...]


def parse(checkpoint: Checkpoint, defaults: PackedDefaults, vision: PackedVision, shape: PackedShape) -> PackedConfig:
    """The configuration of a checkpoint whose ``vision_config`` the family has read.

    Raises:
        CheckpointError: for a part of it that is not supported, or parts that do not fit each other.
    """
    config = Section(checkpoint.config, "")
    text = text_config(checkpoint.config, defaults)
    decoder = DecoderConfig.from_config(text, str(defaults.text["model_type"]), defaults.axes)
    if vision.output_size != decoder.hidden_size:
        raise CheckpointError(
            f"config.json: the vision tower makes visual tokens of width {vision.output_size}, and the language model "
            f"takes {decoder.hidden_size}",
            hint=COMPARE,
        )
    if vision.levels > decoder.num_layers:
        raise CheckpointError(
            f"config.json: the vision tower makes {vision.levels} DeepStack levels, and the language model has "
            f"{decoder.num_layers} layers to add them behind",
            hint=COMPARE,
        )
    decoder = replace(decoder, levels=vision.levels)
    tensors = canonical_tensors(checkpoint.tensors, rules=RULES)
    lm_head, tied = output_projection(checkpoint, config, tensors)
    return PackedConfig(
        vision=vision,
        shape=shape,
        text=decoder,
        lm_head=lm_head,
        tied_in_config=tied,
        tensors=tensors,
        tokens={name: config.integer(name, value, low=0) for name, value in defaults.tokens.items()},
        processors=defaults.processors,
    )


def text_config(config: Mapping[str, Any], defaults: PackedDefaults) -> Section:
    """The language model's section, with the family's defaults filled in.

    Files of transformers 4 have its values beside the sections of ``config.json``.

    Raises:
        CheckpointError: for a section that is none, or that of another language model.
    """
    nested = config.get("text_config") is not None
    section = Section(config, "").section("text_config") if nested else Section(config, "")
    if nested and defaults.text_types:
        section.choice("model_type", defaults.text_types, defaults.text_types[0])
    return Section({**defaults.text, **section.values, "model_type": defaults.text["model_type"]}, section.path)


def required(m: PackedConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of the tensors of the graphs."""
    weights = m.vision.weights(VISION)
    weights[EMBED] = (m.text.vocab_size, m.text.hidden_size)
    return weights | decoder_weights(m.text, TEXT, m.lm_head)


def patch_sides(vision: Section, default: int = 14) -> tuple[int, int, int]:
    """Pixels on a side of a patch, patches on a side of a visual token, and frames of a patch, of ``vision_config``.

    Args:
        vision: The section.
        default: Pixels on a side of a patch where the section leaves them out.

    Raises:
        CheckpointError: for a size that is none, or images without three channels.
    """
    vision.fixed("in_channels", 3)
    vision.fixed("in_chans", 3)
    patch, frames = (vision.size(name, size) for name, size in (("patch_size", default), ("temporal_patch_size", 2)))
    for name, sides in (("patch_size", patch), ("temporal_patch_size", frames)):
        if sides[0] != sides[1]:
            raise CheckpointError(f"{vision.key(name)} is {list(sides)}; expected one number", hint=COMPARE)
    return patch[0], vision.integer("spatial_merge_size", 2, high=16), frames[0]


def width_and_heads(vision: Section, name: str, default: int) -> tuple[int, int]:
    """The tower's width, the entry ``name``, and its heads.

    Raises:
        CheckpointError: if a head is not a multiple of 4 wide, as rows and columns turn pairs of each half.
    """
    width, heads = vision.integer(name, default), vision.integer("num_heads", 16)
    if width % (4 * heads):
        raise CheckpointError(
            f"{vision.key(name)} is {width}; expected a multiple of 4 for each of {heads} heads", hint=COMPARE
        )
    return width, heads


def rope_theta(vision: Section) -> float:
    """The base of the tower's rotary frequencies; raises CheckpointError for another kind of them."""
    params = vision.section("rope_parameters")
    params.fixed("rope_type", "axial")
    return params.number("rope_theta", 10000.0)
