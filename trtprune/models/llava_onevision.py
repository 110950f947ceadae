"""LLaVA-OneVision (``LlavaOnevisionForConditionalGeneration``): as LLaVA-NeXT, with a bilinear shrink of many tiles.

The tower is SigLIP without a CLS token, the language model Qwen2.  Images only; video is not supported.

Source: https://arxiv.org/abs/2408.03326; ``LlavaOnevisionModel`` in transformers 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune.models.projected_config import Defaults, parse
from trtprune.models.projected_tower import ProjectedTowerModel, describe_parts

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["LlavaOnevisionFamily"]

SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
DEFAULTS = Defaults(
    SIGLIP_SO400M,
    decoder="qwen2",
    feature_layer=-1,
    select_strategy="full",
    image_token_id=151646,
    processors=("llava_onevision",),
    newline="model.image_newline",
    taps=4,
)


class LlavaOnevisionFamily:
    """See :class:`trtprune.models.spec.Family`."""

    name = "llava-onevision"
    architecture = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> ProjectedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a tower, decoder, rope type or activation that is not supported.
        """
        return ProjectedTowerModel(checkpoint, self.name, parse(checkpoint, DEFAULTS), layout=layout)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        return {"family": self.name, "architecture": self.architecture, **describe_parts()}
