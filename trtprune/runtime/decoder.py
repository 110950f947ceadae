"""The decoder for the exchange: memory for a batch, from prompts to logits, then token by token.

Two kinds: :class:`WholeDecoder` is one graph; :class:`trtprune.runtime.cut_decoder.CutDecoder` has segments with prune
points between them.  ``pipeline`` chooses one when the directory is opened; no other code depends on the kind.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtprune.engine_dir.roles import DECODER
from trtprune.runtime.kv_cache import CachePool
from trtprune.tensor_names import INPUTS_EMBEDS, LOGITS, LOGITS_INDEX, POSITION_IDS, WRITE_INDEX

if TYPE_CHECKING:
    from trtprune.backends.base import Array, CachedRow, Step
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.layout import Layout

__all__ = ["Decoder", "Prefill", "WholeDecoder", "skip_rows"]


@dataclass(frozen=True)
class Prefill:
    """The results of a batch of prompts.

    Attributes:
        logits: float32 [B, V], the logits behind each row's last token.
        kept: For each row and image, int64, ascending, indices of its visual tokens in the last layer.
        segment_tokens: For each row and image, its tokens in each segment, with merged ones; empty if the decoder does
            not prune.
    """

    logits: np.ndarray
    kept: list[list[np.ndarray]]
    segment_tokens: list[list[list[int]]]


class Decoder(Protocol):
    """A decoder with its KV cache."""

    @property
    def prunes(self) -> bool:
        """Whether it prunes between its layers: all visual tokens enter, and the prompt decides which are kept."""

    @property
    def max_batch(self) -> int:
        """Rows it takes at once."""

    @property
    def identity(self) -> Hashable:
        """A key that is equal for decoders whose rows can run as one batch and that can share memory."""

    def check_keep(self, keep: int) -> None:
        """Refuses a budget within the build's range that the decoder cannot serve.

        Raises:
            BudgetError: naming the budget or the conflicting option.
        """

    def entering(self, keep: int, visual_tokens: int) -> int:
        """The number of an image's visual tokens in the decoder's prompt, at a budget."""

    def take(self, batch: int, tokens: int) -> Any:
        """A cache for ``batch`` rows of at least ``tokens`` tokens each."""

    def grow(self, cache: Any, tokens: int) -> Any:
        """``cache``, or a larger one with its content, so that a row holds ``tokens`` tokens."""

    def gather(self, rows: Sequence[CachedRow], tokens: int) -> Any:
        """A new cache whose rows are copies of rows of other caches.

        Args:
            rows: The rows, with their lengths in :meth:`prefill`'s count of tokens.
            tokens: Tokens that a row has room for.
        """

    def give_back(self, cache: Any) -> None:
        """Returns a cache that is not used any more."""

    def share_memory(self, other: Any) -> None:
        """Takes future caches from the memory of another decoder of the same :attr:`identity`."""

    def prefill(self, rows: Sequence[Layout], cache: Any, start: Sequence[int] | None = None) -> Prefill:
        """Writes prompts into the cache.

        Args:
            rows: One prompt for each row.
            cache: A cache with room for the longest one.
            start: For each row, the number of its tokens in the cache; the rest is computed.

        Raises:
            InputError: for a prompt that cannot guide the decoder's pruning.
        """

    def step(self, cache: Any) -> Step:
        """The decode step over ``cache``."""

    def select(self, layout: Layout) -> list[np.ndarray]:
        """For each image of a prompt, int64, ascending, indices of its visual tokens in the last layer."""


def skip_rows(pieces: Sequence[Array], rows: int) -> list[Array]:
    """``pieces`` [n, D] without the first ``rows`` rows of all together."""
    rest = []
    for piece in pieces:
        if rows < len(piece):
            rest.append(piece[rows:] if rows else piece)
        rows = max(0, rows - len(piece))
    return rest


class WholeDecoder:
    """A decoder that is one graph; images were pruned before it.

    Args:
        chain: A chain with a component of role ``decoder`` without a segment.
    """

    prunes = False

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._pool = CachePool(chain.session(DECODER), chain.config.kv)

    @property
    def max_batch(self) -> int:
        """Rows it takes at once."""
        return self._chain.session(DECODER).max_batch

    @property
    def identity(self) -> Hashable:
        """The identity of its session."""
        return ("session", id(self._chain.session(DECODER)))

    def check_keep(self, keep: int) -> None:
        """Every budget of the build's range is served."""

    def entering(self, keep: int, visual_tokens: int) -> int:
        """The budget: only kept tokens enter."""
        return keep

    def take(self, batch: int, tokens: int) -> Any:
        """See :class:`Decoder`."""
        return self._pool.take(batch, tokens)

    def grow(self, cache: Any, tokens: int) -> Any:
        """See :class:`Decoder`."""
        return self._pool.grow(cache, tokens)

    def gather(self, rows: Sequence[CachedRow], tokens: int) -> Any:
        """See :class:`Decoder`."""
        return self._pool.gather(rows, tokens)

    def give_back(self, cache: Any) -> None:
        """See :class:`Decoder`."""
        self._pool.give_back(cache)

    def share_memory(self, other: WholeDecoder) -> None:
        """See :class:`Decoder`."""
        assert self.identity == other.identity
        self._pool = other._pool

    def prefill(self, rows: Sequence[Layout], cache: Any, start: Sequence[int] | None = None) -> Prefill:
        """See :class:`Decoder`."""
        begin = [0] * len(rows) if start is None else list(start)
        lengths = [len(row.ids) - first for row, first in zip(rows, begin, strict=True)]
        width = max(lengths)
        # Rows are padded on the right: a padding token writes behind the row's end, where the row's next real token
        # overwrites it before any query attends to it.
        positions = np.zeros((len(rows), len(rows[0].positions), width), np.int64)
        for i, (row, first, length) in enumerate(zip(rows, begin, lengths, strict=True)):
            positions[i, :, :length] = row.positions[:, first:]
        memory = self._chain.memory
        inputs = {
            INPUTS_EMBEDS: memory.join(
                [skip_rows(row.embeds, first) for row, first in zip(rows, begin, strict=True)], width
            ),
            POSITION_IDS: positions,
            WRITE_INDEX: np.array(begin, np.int64),
            LOGITS_INDEX: np.array(lengths, np.int64)[:, None] - 1,
        }
        logits = memory.to_host(self._chain.session(DECODER).run(inputs, cache)[LOGITS])[:, 0]
        return Prefill(logits, [list(row.kept) for row in rows], [[] for _ in rows])

    def step(self, cache: Any) -> Step:
        """See :class:`Decoder`."""
        return self._chain.step(cache)

    def select(self, layout: Layout) -> list[np.ndarray]:
        """See :class:`Decoder`."""
        return list(layout.kept)
