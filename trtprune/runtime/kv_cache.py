"""How much KV cache a batch gets, and whose memory it is.

The buffers themselves belong to the backend; what is in them is the chain's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtprune.arguments import arg
from trtprune.errors import InputError

if TYPE_CHECKING:
    from trtprune.backends.base import Session
    from trtprune.engine_dir import KvInfo

__all__ = ["CachePool", "check_length", "round_capacity"]


def round_capacity(tokens: int, limit: int) -> int:
    """Tokens a row's buffers should hold for ``tokens``: rounded up, so that similar requests share one shape.

    To 16 up to 256 tokens and to 64 above, never beyond ``limit``.
    """
    step = 16 if tokens <= 256 else 64
    return min(-(-tokens // step) * step, limit)


def check_length(
    prompt: int, max_new_tokens: int, limit: int, what: str = "capacity", *, whole_images: bool = False
) -> None:
    """Refuses a request that cannot be finished, before anything is computed for it.

    Args:
        prompt: Tokens of text and kept visual tokens together.
        max_new_tokens: Tokens the answer may have.
        limit: Tokens there is room for.
        what: What the limit is, for the error.
        whole_images: Whether the prompt holds all tokens of its images whatever the budget, so that no budget helps.

    Raises:
        InputError: telling the numbers and which flag to change.
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
    limit_name = "the model's positions end at" if what == "positions" else "the KV cache was built for"
    raise InputError(
        f"the prompt has {prompt} tokens and {arg('max_new_tokens')} is {max_new_tokens}; {limit_name} {limit}",
        hint=hint,
    )


class CachePool:
    """Keeps the memory of the last finished batch for the next one.

    Args:
        session: The decoder.
        info: Of the engine directory; ``capacity`` bounds what a row may get.
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

    def give_back(self, cache: Any) -> None:
        """Tells that nobody needs ``cache`` any more."""
        if self._free is None or cache.nbytes >= self._free.nbytes:
            self._free = cache
