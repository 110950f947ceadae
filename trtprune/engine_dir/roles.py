"""The roles of components: what a graph of the chain is for, whatever it is called."""

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
"""Embeddings and KV cache → logits; with a segment, that piece of a decoder that is cut."""

ROLES = (VISION, PACK, EMBED, CLIP_TEXT, PRUNER, RATERS, RANK, DECODER)
SEGMENTED = (PRUNER, DECODER)
"""Roles whose components may belong to a segment."""


@dataclass(frozen=True)
class Part:
    """The place of a component in the chain.

    Attributes:
        role: One of :data:`ROLES`.
        segment: The segment of a decoder that is cut, counted from 0; None where the component belongs to none.
    """

    role: str
    segment: int | None = None

    @property
    def name(self) -> str:
        """The name that a build gives the component, its files included: ``vision``, ``decoder.0``."""
        return self.role if self.segment is None else f"{self.role}.{self.segment}"
