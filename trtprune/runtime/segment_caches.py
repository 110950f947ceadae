"""The KV caches of a decoder in segments, and the decode step over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.tensor_names import (
    HIDDEN_STATES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LAST_HIDDEN_STATE,
    LOGITS,
    LOGITS_INDEX,
    POSITION_IDS,
    RATER_INDEX,
    TEXT_EMBEDS,
    WRITE_INDEX,
)

if TYPE_CHECKING:
    from trtprune.backends.base import Memory, Session

__all__ = ["SegmentCaches", "SegmentStep"]


@dataclass
class SegmentCaches:
    """The caches of all segments for one batch; see :class:`trtprune.backends.base.CacheBuffers`.

    Attributes:
        batch: Number of rows.
        capacity: Capacity of the first segment.
        tokens: Requested tokens of a row there.
        parts: One cache per segment; None until its length is known.
        dropped: int64 [segments, B], the difference of a row's later slots to those of the first segment.
        shift: int64 [segments, B], the same of positions behind the images, on every axis.
        kept: For each row and image, int64, indices of its tokens in the last segment.
        counts: For each row and image, its tokens in each segment.
    """

    batch: int
    capacity: int
    tokens: int
    parts: list[Any]
    dropped: np.ndarray
    shift: np.ndarray
    kept: list[list[np.ndarray]] = field(default_factory=list)
    counts: list[list[list[int]]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts if part is not None)

    def zero(self) -> None:
        for part in self.parts:
            if part is not None:
                part.zero()


class SegmentStep:
    """Embedding lookup and all segments in sequence; see :class:`trtprune.backends.base.Step`."""

    def __init__(
        self, embed: Session, segments: Sequence[Session], cache: SegmentCaches, memory: Memory, *, rated: bool
    ) -> None:
        self._embed, self._segments, self._cache, self._memory = embed, segments, cache, memory
        self._rated = rated
        self._first = np.zeros((cache.batch, 1), np.int64)

    def __call__(self, token: np.ndarray, position: np.ndarray, write_index: np.ndarray) -> np.ndarray:
        """Logits float32 [B, V] after ``token``; position and slot are those of the first segment."""
        cache = self._cache
        states: Any = self._embed.run({INPUT_IDS: token})[TEXT_EMBEDS]
        out: Mapping[str, Any] = {}
        for k, (session, part) in enumerate(zip(self._segments, cache.parts, strict=True)):
            inputs = {
                HIDDEN_STATES if k else INPUTS_EMBEDS: states,
                POSITION_IDS: position - cache.shift[k][:, None, None],
                # A finished row writes to its last place again.
                WRITE_INDEX: np.minimum(write_index - cache.dropped[k], part.capacity - 1),
            }
            if session is self._segments[-1]:
                inputs[LOGITS_INDEX] = self._first
            elif self._rated:  # of one token, and unused: prompts and tokens have the same graph
                inputs[RATER_INDEX] = self._first
            out = session.run(inputs, part)
            states = out.get(LAST_HIDDEN_STATE)
        logits: np.ndarray = self._memory.to_host(out[LOGITS])[:, 0]
        return logits
