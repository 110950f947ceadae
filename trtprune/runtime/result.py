"""Requests and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from trtprune.runtime.features import Features
    from trtprune.runtime.pictures import ImageInput

__all__ = ["Images", "Request", "Result"]

Images: TypeAlias = "ImageInput | Features | Sequence[ImageInput | Features]"
"""One image or several, or their features."""


@dataclass(frozen=True)
class Request:
    """One row of a batch.  Values that are None come from the call that runs the batch.

    Attributes:
        images: One image or several; see :func:`trtprune.runtime.pictures.load_picture`, or
            :class:`trtprune.runtime.Features`.
        prompt: The question; with ``raw_prompt`` the whole prompt, with a placeholder for each image.
        keep, keep_ratio: Visual tokens to keep of each image, as a number or as a share.
        system: A system prompt for the chat template.
        raw_prompt: Whether the chat template is not used.
        max_new_tokens: Longest answer, in tokens.
        seed: Seed of the row's draws and of method ``random``; equal seeds draw equally, alone or in any batch.
    """

    images: Images
    prompt: str
    keep: int | None = None
    system: str | None = None
    raw_prompt: bool = False
    max_new_tokens: int | None = None
    seed: int | None = None
    keep_ratio: float | None = None


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: The text without special tokens and without the stop string.
        token_ids: All chosen ids, with the end-of-sequence token.
        finish_reason: ``"stop"`` (end of sequence or a stop string) or ``"length"``.
        method: Name of the pruning method.
        visual_tokens, kept_tokens: Numbers of visual tokens of all images together.
        kept_indices: For each image, ascending indices of its kept tokens; if the decoder prunes, of those in its last
            segment.
        timings: Milliseconds by stage; in a batch, of the whole batch.
        tokens_per_second: Tokens after the first, divided by the time of decoding (``timings["decode"]``); 0 for a
            single token.  In a batch it is this row's own tokens, over the time that the whole batch was decoded.
        kv_cache_bytes: Size of this row's cache.
        prompt_tokens: Text and visual tokens of the prompt as they enter the decoder.
        segment_tokens: If the decoder prunes: for each image, its tokens in each segment, with merged ones.
        tokens_per_layer: Visual tokens per layer, processed and cached, on average over the layers.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    method: str
    visual_tokens: int
    kept_tokens: int
    kept_indices: list[list[int]]
    timings: dict[str, float]
    tokens_per_second: float
    kv_cache_bytes: int
    prompt_tokens: int = field(default=0)
    segment_tokens: list[list[int]] = field(default_factory=list)
    tokens_per_layer: float = 0.0

    @property
    def timings_ms(self) -> dict[str, float]:
        """:attr:`timings` by the name that ``run --json`` gives it."""
        return self.timings

    @property
    def time_to_first_token_ms(self) -> float:
        """Milliseconds from the question to the logits of the first token: preparation of images, vision, pruning and
        prefill.  In a batch, of the whole batch; without loading the model."""
        return round(sum(ms for stage, ms in self.timings.items() if stage not in ("decode", "total")), 3)

    def to_json(self) -> dict[str, Any]:
        """The object that ``trtprune run --json`` prints: the attributes by their names.

        Two keys differ from the attributes, for compatibility: ``timings_ms`` is :attr:`timings`, and
        ``kept_indices`` of a single image is one list.  ``kept_indices_per_image`` always has a list for each image.
        """
        indices: Any = self.kept_indices[0] if len(self.kept_indices) == 1 else self.kept_indices
        inside = {"segment_tokens": self.segment_tokens, "tokens_per_layer": self.tokens_per_layer}
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "method": self.method,
            "visual_tokens": self.visual_tokens,
            "kept_tokens": self.kept_tokens,
            "kept_indices": indices,
            "kept_indices_per_image": self.kept_indices,
            "timings_ms": self.timings,
            "time_to_first_token_ms": self.time_to_first_token_ms,
            "tokens_per_second": self.tokens_per_second,
            "kv_cache_bytes": self.kv_cache_bytes,
            "prompt_tokens": self.prompt_tokens,
            **(inside if self.segment_tokens else {}),
        }
