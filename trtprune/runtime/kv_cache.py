"""Size and memory of a batch's KV cache.

The buffers belong to the backend, and the decoder decides their content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow, Session
    from trtprune.engine_dir import KvInfo

__all__ = ["CachePool", "check_length", "round_capacity"]


def round_capacity(tokens: int, limit: int) -> int:
    """The capacity of a row's buffers for ``tokens``: rounded up, so that similar requests share one shape.

    To 16 up to 256 tokens and to 64 above, never beyond ``limit``.
    """
    step = 16 if tokens <= 256 else 64
    return min(-(-tokens // step) * step, limit)


def check_length(
    prompt: int, max_new_tokens: int, limit: int, what: str = "capacity", *, whole_images: bool = False
) -> None:
    """Refuses a request that cannot be finished, before anything is computed for it.

    Args:
        prompt: Number of text tokens and kept visual tokens; of positions, the position behind the prompt.
        max_new_tokens: Largest number of the answer's tokens.
        limit: Number of tokens with room.
        what: Name of the limit, for the error.
        whole_images: Whether the prompt has all visual tokens whatever the budget, so that a smaller one is no help.

    Raises:
        InputError: with the numbers and the flag to change.
    """
    # The last token of an answer is never fed back, so it needs no place.
    need = prompt + max_new_tokens - 1
    if need <= limit:
        return
    if what == "positions":
        hint = f"shorten the prompt or {arg('max_new_tokens')}"
    else:
        less = (
            "fewer images (all of their tokens pass the first layers)" if whole_images else f"a smaller {arg('keep')}"
        )
        first = "shorten the prompt" if prompt >= limit else f"{arg('max_new_tokens')} up to {limit - prompt + 1}"
        hint = f"{first}, {less}, or build with a larger {arg('max_seq_len')}"
    size, limit_name = f"has {prompt} tokens", "the KV cache was built for"
    if what == "positions":  # no count of tokens: dropped ones may keep theirs, and images may take fewer
        size, limit_name = f"takes {prompt} positions", "the model's positions end at"
    raise InputError(
        f"the prompt {size} and {arg('max_new_tokens')} is {max_new_tokens}; {limit_name} {limit}", hint=hint
    )


class CachePool:
    """Keeps the memory of the last finished batch for the next one.

    Args:
        session: The decoder.
        info: The directory's cache settings; ``capacity`` is the largest one of a row.
    """

    def __init__(self, session: Session, info: KvInfo) -> None:
        self._session = session
        # An engine's capacity is fixed, and a later segment's is smaller than the directory's.
        self._limit = info.capacity if session.capacity is None else min(info.capacity, session.capacity)
        self._free: Any = None

    def take(self, batch: int, tokens: int) -> Any:
        """Zeroed buffers for ``batch`` rows of at least ``tokens`` tokens each."""
        free, self._free = self._free, None
        return self._session.new_cache(batch, round_capacity(tokens, self._limit), reuse=free)

    def grow(self, cache: Any, tokens: int) -> Any:
        """``cache``, or a larger one with its content, so that a row holds ``tokens`` tokens."""
        if tokens <= cache.capacity:
            return cache
        return self._session.grow_cache(cache, round_capacity(tokens, self._limit))

    def gather(self, rows: Sequence[CachedRow], tokens: int) -> Any:
        """A new cache of copies of rows, with room for ``tokens`` tokens a row."""
        free, self._free = self._free, None
        return self._session.gather_rows(rows, round_capacity(tokens, self._limit), reuse=free)

    def give_back(self, cache: Any) -> None:
        """Returns a cache that is not used any more."""
        if self._free is None or cache.nbytes >= self._free.nbytes:
            self._free = cache
