"""The sizes of a running batch, as commands and Triton's configuration have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from trtprune.runtime.inflight import Limits

__all__ = ["BatchSizes"]

MIB = 1 << 20


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a running batch.

    Attributes:
        max_batch_size: Most requests at once.
        max_queued_requests: Most requests that wait for a row.
        prefill_chunk: Tokens of prompts, or of images, in one run while other requests wait for their next token.
        image_cache_mb: Memory for features of earlier images, in MiB.
        prefix_cache_mb: Memory for the KV cache of earlier prompts and answers, in MiB.
    """

    max_batch_size: int = 8
    max_queued_requests: int = 64
    prefill_chunk: int = 256
    image_cache_mb: int = 256
    prefix_cache_mb: int = 512

    @classmethod
    def from_texts(cls, values: Mapping[str, str]) -> Self:
        """The sizes among these values by name."""
        return cls(**{name: int(values[name]) for name in asdict(cls())})

    @property
    def limits(self) -> Limits:
        """The sizes of the batch itself."""
        return Limits(self.max_batch_size, self.prefill_chunk, self.image_cache_mb * MIB, self.prefix_cache_mb * MIB)
