"""LLaVA-NeXT (``LlavaNextForConditionalGeneration``): an overview and tiles of an image, packed into one row of tokens.

The tower, projector and language model are those of LLaVA; an image is an overview crop and a grid of tiles, whose
features are unpadded to the image's own shape, with a learned ``image_newline`` behind every row.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/; ``LlavaNextModel`` in transformers 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune.models.projected_config import CLIP_LARGE, Defaults, parse
from trtprune.models.projected_tower import ProjectedTowerModel, describe_parts

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["LlavaNextFamily"]

DEFAULTS = Defaults(CLIP_LARGE, processors=("llava_next",), newline="model.image_newline")


class LlavaNextFamily:
    """See :class:`trtprune.models.spec.Family`."""

    name = "llava-next"
    architecture = "LlavaNextForConditionalGeneration"
    model_type = "llava_next"

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> ProjectedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a tower, decoder, rope type or activation that is not supported.
        """
        return ProjectedTowerModel(checkpoint, self.name, parse(checkpoint, DEFAULTS), layout=layout)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        return {"family": self.name, "architecture": self.architecture, **describe_parts()}
