"""InternVL (``InternVLForConditionalGeneration``): tiles and a thumbnail, four patches put together to a visual token.

The tower is InternViT, whose CLS token is left out; squares of patches (``downsample_ratio``) go through a norm and two
linear layers.  The language model is Qwen2, Qwen3 or Llama.  The layout of the authors' own code
(``InternVLChatModel``) is another one; each of its repositories has a twin in transformers' layout.  Images only; video
is not supported.

Source: https://arxiv.org/abs/2504.10479 (InternVL3); ``InternVLModel`` in transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import onnx_ir as ir

from trtprune.components import internvl_vision
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig
from trtprune.components.projector import ProjectorConfig
from trtprune.components.vit import FeatureSelection, Tower, TowerConfig, norm_weights
from trtprune.errors import CheckpointError, shown
from trtprune.graph import Graph
from trtprune.graph.ops import layer_norm
from trtprune.models.projected_config import (
    ProjectedConfig,
    image_token,
    named_token,
    output_projection,
    preprocessed_size,
    special_tokens,
)
from trtprune.models.projected_tower import ProjectedTowerModel, describe_parts
from trtprune.models.weights import canonical_tensors

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["InternVLFamily"]

TOWER = "internvl_vision"
DECODERS = ("llama", "qwen2", "qwen3")
SIDES = {1.0: 1, 0.5: 2, 0.25: 4}
"""``downsample_ratio`` → patches on a side of a visual token's square; for other ratios transformers' integer
arithmetic is not exact."""
NORM_EPS = 1e-5
"""Epsilon of the projector's norm, PyTorch's default and no setting."""
IMAGE_TOKEN_ID = 151667


@dataclass(frozen=True)
class NormedProjector:
    """A norm over all patches of a square, and two linear layers; a
    :class:`~trtprune.components.projector.Projector`."""

    linear: ProjectorConfig
    side: int

    @property
    def input_size(self) -> int:
        """C, side² times the tower's width."""
        return self.linear.input_size

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`write`."""
        return norm_weights(f"{prefix}layer_norm", self.input_size) | self.linear.weights(prefix)

    def write(self, g: Graph, prefix: str, features: ir.Value) -> ir.Value:
        """[B, N, input_size] → [B, N, D]."""
        with g.scope("projector.layer_norm"):
            features = layer_norm(g, features, f"{prefix}layer_norm", eps=NORM_EPS)
        return self.linear.write(g, prefix, features)


class InternVLFamily:
    """See :class:`trtprune.models.spec.Family`."""

    name = "internvl"
    architecture = "InternVLForConditionalGeneration"
    model_type = "internvl"

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> ProjectedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a tower, decoder, rope type, activation or feature selection that is not supported.
        """
        return ProjectedTowerModel(checkpoint, self.name, _parse(checkpoint), layout=layout)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        parts = describe_parts((TOWER,), DECODERS, ("default",))
        return {"family": self.name, "architecture": self.architecture, **parts}


def _parse(checkpoint: Checkpoint) -> ProjectedConfig:
    config = Section(checkpoint.config, "")
    section = config.section("vision_config")
    section.choice("model_type", (TOWER,), TOWER)
    vision = internvl_vision.read_config(section, preprocessed_size(checkpoint))
    text_section = config.section("text_config")
    text_section.choice("model_type", DECODERS, "qwen2")
    text = DecoderConfig.from_config(text_section, "qwen2")
    tensors = canonical_tensors(checkpoint.tensors, internvl_vision.RENAMES)
    lm_head, tied = output_projection(checkpoint, config, tensors, tied=True)
    side = _side(config, vision)
    video = named_token(checkpoint, "video_token")
    linear = ProjectorConfig.from_config(config, vision.hidden_size * side * side, text.hidden_size)
    return ProjectedConfig(
        tower=cast(Tower, internvl_vision),
        vision=vision,
        selection=_selection(config, section, vision),
        projector=NormedProjector(replace(linear, bias=True), side),
        text=text,
        lm_head=lm_head,
        tied_in_config=tied and "tie_word_embeddings" in checkpoint.config,
        tensors=tensors,
        image_token_id=IMAGE_TOKEN_ID,
        processors=("internvl",),
        several_crops=True,
        newline=None,
        taps=1,
        video_token=video if isinstance(video, str) else None,
        image_settings=lambda: _image_settings(checkpoint, config, vision.patches // side**2),
    )


def _image_settings(checkpoint: Checkpoint, config: Section, tokens: int) -> dict[str, Any]:
    """The text around an image's visual tokens, from the tokenizer's files.

    Raises:
        CheckpointError: for special tokens that are missing or wrong, or a processor of other tiles, with which
            transformers' model fails.
    """
    length = (checkpoint.json_file("processor_config.json") or {}).get("image_seq_length")
    if length is not None and length != tokens:
        raise CheckpointError(
            f"processor_config.json: image_seq_length is {shown(length)}, and a tile has {tokens} visual tokens",
            hint="fetch the checkpoint's own config.json and processor_config.json again",
        )
    return {"markers": _markers(checkpoint, config)}


def _markers(checkpoint: Checkpoint, config: Section) -> list[str]:
    """The text in front of an image's visual tokens, and that behind them."""
    names = ("context_image_token", "start_image_token", "end_image_token")
    placeholder, start, end = special_tokens(checkpoint, names).values()
    token = image_token(checkpoint, config.integer("image_token_id", IMAGE_TOKEN_ID, low=0))
    if placeholder != token:
        raise CheckpointError(
            f"tokenizer_config.json: context_image_token is {shown(placeholder)}, and image_token_id of config.json is "
            f"{shown(token)}",
            hint="config.json and tokenizer are of different checkpoints: fetch both again",
        )
    if placeholder in (start, end):
        raise CheckpointError(
            f"tokenizer_config.json: {shown(placeholder)} is context_image_token and stands beside itself",
            hint="fetch the checkpoint's own tokenizer_config.json again",
        )
    return [start, end]


def _selection(config: Section, vision: Section, tower: TowerConfig) -> FeatureSelection:
    """One hidden state without its CLS token; the last one, asked for as -1, has passed the tower's final norm."""
    layer = config.values.get("vision_feature_layer", -1)
    if isinstance(layer, list):
        raise CheckpointError(
            f"{config.key('vision_feature_layer')} is {shown(layer)}, which trtprune does not support",
            hint="supported: one layer, as in transformers",
        )
    config.choice("vision_feature_select_strategy", ("default",), "default")
    selection = FeatureSelection.from_config(config, tower.num_layers, layer=-1)
    # transformers takes the tower's own output for -1, and a hidden state before the norm for any other number.
    normed = layer == -1 and not vision.flag("use_mean_pooling", True)
    return replace(selection, norm=internvl_vision.FINAL_NORM if normed else None)


def _side(config: Section, vision: TowerConfig) -> int:
    """Patches on a side of the square that is one visual token."""
    ratio = config.number("downsample_ratio", 0.5)
    if ratio not in SIDES:
        raise CheckpointError(
            f"{config.key('downsample_ratio')} is {shown(ratio)}, which trtprune does not support",
            hint=f"supported: {', '.join(map(str, SIDES))}",
        )
    rows, columns = vision.grid
    if rows != columns or rows % SIDES[ratio]:
        raise CheckpointError(
            f"config.json: tiles of {rows} × {columns} patches are no square of {SIDES[ratio]} × {SIDES[ratio]} ones",
            hint="correct image_size, patch_size or downsample_ratio in config.json",
        )
    return SIDES[ratio]
