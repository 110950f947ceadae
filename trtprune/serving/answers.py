"""Answers in the form of OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trtprune.serving.engine import Finished

__all__ = ["Form", "body", "chunk", "kept_boxes", "usage"]


@dataclass(frozen=True)
class Form:
    """What all parts of one answer say.

    Attributes:
        id: The answer's name.
        created: Seconds since 1970.
        model: The model's name.
    """

    id: str
    created: int
    model: str

    def of(self, kind: str) -> dict[str, Any]:
        """The common fields."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(end: Finished) -> dict[str, Any]:
    """Tokens of prompt and answer; visual tokens before pruning and kept ones are fields of our own."""
    result = end.result
    prompt, answer = result.prompt_tokens, len(result.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
        "visual_tokens": result.visual_tokens,
        "kept_tokens": result.kept_tokens,
    }


def body(form: Form, end: Finished) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": end.result.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.result.finish_reason}
    return form.of("chat.completion") | {"choices": [choice], "usage": usage(end)}


def chunk(form: Form, delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
    """A part of an answer; without ``delta`` one without a choice."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return form.of("chat.completion.chunk") | {"choices": [] if delta is None else [choice]}


def kept_boxes(end: Finished) -> list[dict[str, Any]]:
    """For each image its visual tokens' number, the kept ones, and the pixels [left, top, right, bottom] that each of
    these shows; null where a token shows no part of the image."""
    found = []
    for features, indices in zip(end.features, end.result.kept_indices, strict=True):
        boxes = features.plan.boxes
        shown = [np.round(boxes[i], 1).tolist() if 0 <= i < len(boxes) else [np.nan] for i in indices]
        found.append(
            {
                "visual_tokens": features.plan.tokens,
                "kept_indices": indices,
                "boxes": [box if np.isfinite(box).all() else None for box in shown],
            }
        )
    return found
