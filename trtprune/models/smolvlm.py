"""SmolVLM, SmolVLM2 and Idefics3: tiles with their row and column in the prompt, and the whole image last.

``SmolVLMForConditionalGeneration`` and ``Idefics3ForConditionalGeneration`` are one architecture: the tower is SigLIP
with its last norm, squares of patches (``scale_factor``) go through one linear layer, and the language model is Llama
(SmolLM2, Llama 3).  Images only; video is not supported.

Source: https://arxiv.org/abs/2504.05299 (SmolVLM), https://arxiv.org/abs/2408.12637 (Idefics3); ``SmolVLMModel`` in
transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import onnx_ir as ir

from trtprune.components import smolvlm_vision
from trtprune.components.config import Section
from trtprune.components.decoder import DecoderConfig
from trtprune.components.vit import FeatureSelection, Tower, TowerConfig, linear_weights
from trtprune.errors import CheckpointError, shown
from trtprune.graph import Graph
from trtprune.graph.ops import linear
from trtprune.models.projected_config import ProjectedConfig, named_token, output_projection
from trtprune.models.projected_tower import ProjectedTowerModel, describe_parts
from trtprune.models.weights import canonical_tensors
from trtprune.runtime.images.smolvlm import AROUND, WHOLE

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["Idefics3Family", "SmolVLMFamily"]

TOWER = "smolvlm_vision"
DECODERS = ("llama",)
IMAGE_TOKEN_ID = 128257
VIDEO_TOKEN = "<video>"
"""transformers' default of ``video_token``."""
SIDES = (1, 2, 3, 4)
"""``scale_factor``, patches on a side of a visual token's square."""


@dataclass(frozen=True)
class LinearProjector:
    """One matrix for all patches of a square; a :class:`~trtprune.components.projector.Projector`."""

    input_size: int
    """side² times the tower's width."""
    output_size: int
    side: int

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Key → shape of the weights of :meth:`write`."""
        return linear_weights(f"{prefix}linear", self.output_size, self.input_size, bias=False)

    def write(self, g: Graph, prefix: str, features: ir.Value) -> ir.Value:
        """[B, N, input_size] → [B, N, output_size]."""
        with g.scope("projector"):
            return linear(g, features, f"{prefix}linear", bias=False)


class SmolVLMFamily:
    """See :class:`trtprune.models.spec.Family`."""

    name = "smolvlm"
    architecture = "SmolVLMForConditionalGeneration"
    model_type = "smolvlm"

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> ProjectedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a tower, decoder, rope type, activation or scale factor that is not supported, or a
                tokenizer without the text around an image.
        """
        _check_texts(checkpoint)
        return ProjectedTowerModel(checkpoint, self.name, self._parse(checkpoint), layout=layout)

    def _parse(self, checkpoint: Checkpoint) -> ProjectedConfig:
        video = named_token(checkpoint, "video_token") or VIDEO_TOKEN
        return replace(_parse(checkpoint), video_token=video if isinstance(video, str) else None)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        parts = describe_parts((TOWER,), DECODERS, ("full",))
        return {"family": self.name, "architecture": self.architecture, **parts}


class Idefics3Family(SmolVLMFamily):
    """The same architecture under its first name; SmolVLM's first checkpoints have it, too."""

    name = "idefics3"
    architecture = "Idefics3ForConditionalGeneration"
    model_type = "idefics3"

    def _parse(self, checkpoint: Checkpoint) -> ProjectedConfig:
        return _parse(checkpoint)  # its processor knows no videos, and takes their token for any other text


def _parse(checkpoint: Checkpoint) -> ProjectedConfig:
    config = Section(checkpoint.config, "")
    vision = smolvlm_vision.read_config(config.section("vision_config"), None)
    text_section = config.section("text_config")
    text_section.choice("model_type", DECODERS, "llama")
    text = DecoderConfig.from_config(text_section, "llama")
    tensors = canonical_tensors(checkpoint.tensors, smolvlm_vision.RENAMES)
    lm_head, tied = output_projection(checkpoint, config, tensors)
    side = _side(config, vision)
    return ProjectedConfig(
        tower=cast(Tower, smolvlm_vision),
        vision=vision,
        selection=FeatureSelection((vision.num_layers,), drop_first=False, norm=smolvlm_vision.FINAL_NORM),
        projector=LinearProjector(vision.hidden_size * side * side, text.hidden_size, side),
        text=text,
        lm_head=lm_head,
        tied_in_config=tied,
        tensors=tensors,
        image_token_id=IMAGE_TOKEN_ID,
        processors=("smolvlm",),
        several_crops=True,
        newline=None,
        taps=1,
    )


def _side(config: Section, vision: TowerConfig) -> int:
    """Patches on a side of the square that is one visual token."""
    side = config.integer("scale_factor", 2)
    if side not in SIDES:
        raise CheckpointError(
            f"{config.key('scale_factor')} is {shown(side)}, which trtprune does not support",
            hint=f"supported: {', '.join(map(str, SIDES))}",
        )
    rows, _ = vision.grid
    if rows % side:
        raise CheckpointError(
            f"config.json: crops of {rows} × {rows} patches are no squares of {side} × {side} ones",
            hint="correct image_size, patch_size or scale_factor in config.json",
        )
    return side


def _check_texts(checkpoint: Checkpoint) -> None:
    """Refuses a tokenizer for which the text around an image is no token of its own: another family's."""
    tokenizer = checkpoint.json_file("tokenizer.json")
    if tokenizer is None:
        return  # reported where prompts are made
    added = tokenizer.get("added_tokens")
    texts = {entry.get("content") for entry in added if isinstance(entry, dict)} if isinstance(added, list) else set()
    more = (checkpoint.json_file("tokenizer_config.json") or {}).get("added_tokens_decoder")
    for entry in more.values() if isinstance(more, dict) else ():
        texts.add(entry.get("content") if isinstance(entry, dict) else None)
    for name, text in (("fake_image_token", AROUND), ("global_image_token", WHOLE)):
        found = named_token(checkpoint, name)
        if found not in (None, text):
            raise CheckpointError(
                f"tokenizer_config.json: {name} is {shown(found)}, which trtprune does not support",
                hint=f"supported: {text}, as in the published checkpoints",
            )
    if AROUND not in texts:
        raise CheckpointError(
            f"tokenizer.json: has no token {AROUND!r}, which stands around the visual tokens of this family",
            hint="fetch the checkpoint's own tokenizer.json and tokenizer_config.json",
        )
