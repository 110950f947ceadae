"""LLaVA (``LlavaForConditionalGeneration``): one crop an image, a tower, a two-layer projector, a language model.

Source: https://arxiv.org/abs/2304.08485, https://arxiv.org/abs/2310.03744.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune.models.projected_config import LLAVA_DEFAULTS, parse
from trtprune.models.projected_tower import ProjectedTowerModel, describe_parts

if TYPE_CHECKING:
    from trtprune.checkpoint import Checkpoint

__all__ = ["LlavaFamily"]


class LlavaFamily:
    """See :class:`trtprune.models.spec.Family`."""

    name = "llava"
    architecture = "LlavaForConditionalGeneration"
    model_type = "llava"

    def open(self, checkpoint: Checkpoint, layout: str | None = None) -> ProjectedTowerModel:
        """The checkpoint as a model of this family.

        Raises:
            CheckpointError: for a tower, decoder, rope type or activation that is not supported.
        """
        return ProjectedTowerModel(checkpoint, self.name, parse(checkpoint, LLAVA_DEFAULTS), layout=layout)

    def describe(self) -> dict[str, Any]:
        """The supported towers and decoders, for ``trtprune models``."""
        return {"family": self.name, "architecture": self.architecture, **describe_parts()}
