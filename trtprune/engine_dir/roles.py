"""The roles of components: the purpose of each graph of the chain, independent of its name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLIP_TEXT", "DECODER", "EMBED", "PACK", "PRUNER", "RANK", "RATERS", "ROLES", "VISION", "Part"]

VISION = "vision"
"""Pixels → features of the image."""
PACK = "pack"
"""Features of crops → the image's visual tokens."""
EMBED = "embed"
"""Token ids → embeddings."""
CLIP_TEXT = "clip_text"
"""The question → its embeddings in CLIP's joint space."""
PRUNER = "pruner"
"""Visual tokens → those that are kept; with a segment, the prune point behind that segment of the decoder."""
RATERS = "raters"
"""Image and text → the text tokens that rate the image."""
RANK = "rank"
"""Attention of the raters → its matrix rank."""
DECODER = "decoder"
"""Embeddings and KV cache → logits; with a segment, that segment of the decoder."""

ROLES = (VISION, PACK, EMBED, CLIP_TEXT, PRUNER, RATERS, RANK, DECODER)
SEGMENTED = (PRUNER, DECODER)
"""Roles whose components may have a segment."""


@dataclass(frozen=True)
class Part:
    """The place of a component in the chain.

    Attributes:
        role: One of :data:`ROLES`.
        segment: The number of a decoder's segment, from 0; None for a component without one.
    """

    role: str
    segment: int | None = None

    @property
    def name(self) -> str:
        """The component's name in a build, also in file names: ``vision``, ``decoder.0``."""
        return self.role if self.segment is None else f"{self.role}.{self.segment}"
