"""Questions about pictures, one after the other, without computing twice what two of them have in common.

The answers are those of :meth:`trtprune.runtime.Vlm.generate`: greedy, ended by the same rules, from the same graphs.
Where consecutive questions share the beginning of their prompt, which with a question-blind method holds the whole
picture, the cache keeps it and only the rest goes through the decoder, as in a conversation with ``repick=False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.runtime.batch import Answer, check_stop, turns_of
from trtprune.runtime.chain import Clock
from trtprune.runtime.sampling import Sampling

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime import Features, Result, Vlm
    from trtprune.runtime.layout import Layout

__all__ = ["Answerer"]


class Answerer:
    """Answers questions about one picture each.

    Args:
        vlm: What answers; nothing else may use it in between.
        max_new_tokens: Longest answer.
        stop: Texts that end an answer.
        reuse: Keep what consecutive prompts have in common.  Without it every prompt is computed in full.
    """

    def __init__(self, vlm: Vlm, *, max_new_tokens: int, stop: Sequence[str] = (), reuse: bool = True) -> None:
        self.vlm = vlm
        self.reused = 0
        """Prompt tokens that did not have to be computed."""
        self._max_new_tokens = max_new_tokens
        self._stop = check_stop(stop)
        # A method that prunes inside the decoder rates the picture by the question: there is nothing in common.
        self._reuse = reuse and not vlm.chain.segments
        self._cache: Any = None
        self._cached: Layout | None = None
        self._rows: Array | None = None

    def ask(self, features: Features, question: str, keep: int, seed: int = 0) -> Result:
        """The answer to a question about a picture that was looked at.

        Args:
            features: Of the picture, from this build's vision graph.
            question: Goes through the chat template.
            keep: Visual tokens to keep.
            seed: Of method ``random``.

        Raises:
            InputError: if the prompt does not fit.
        """
        vlm, clock = self.vlm, Clock()
        prompt = vlm.encoder.encode(turns_of(question, 1, None))
        embeds, kept, rows = vlm.cut(prompt, [features], keep, seed, clock)
        layout = vlm.lay_out(prompt, embeds, rows, kept, keep)
        vlm.chain.check(layout, self._max_new_tokens)
        known = self._known(layout, rows[0])
        cache = self._room(known, len(layout.ids) + self._max_new_tokens - 1)
        # Until the answer is complete the cache is nobody's: what an interrupt leaves of it must not be used.
        self._cached = None
        with clock.stage("prefill"):
            logits = vlm.chain.prefill([layout], cache, [known])
        answer = Answer(vlm, layout, prompt.ids, kept, self._max_new_tokens, Sampling(), self._stop)
        for answer.kept, answer.segment_tokens in vlm.chain.selected(cache):
            pass
        for _ in vlm.chain.decode([answer.row], logits, cache, clock):
            pass
        if self._reuse:
            self._cached, self._rows = layout, rows[0]
        self.reused += known
        return answer.result(clock, cache.nbytes)

    def close(self) -> None:
        """Gives the cache back."""
        if self._cache is not None:
            self.vlm.chain.pool.give_back(self._cache)
        self._cache = self._cached = self._rows = None

    def _known(self, layout: Layout, rows: Array) -> int:
        """How many of the prompt's tokens the cache holds with exactly these embeddings at these positions."""
        if self._cached is None:
            return 0
        # The last token is always computed: its logits are wanted.
        length = min(len(layout.ids) - 1, len(self._cached.ids))
        same = self._cached.ids[:length] == layout.ids[:length]
        same &= self._cached.positions[:length] == layout.positions[:length]
        different = np.flatnonzero(~same)
        known = int(different[0]) if len(different) else length
        end = layout.pictures[0][1]
        # Placeholders are all alike: what tells pictures and selections apart are the rows in their places.
        if known < end or not self._same_rows(rows):
            # The words before the picture are too few to be worth a cache that is not zeroed for a new picture.
            return 0
        return known

    def _same_rows(self, rows: Array) -> bool:
        if rows is self._rows or self._rows is None:
            return rows is self._rows
        fetch = self.vlm.chain.memory.to_host
        before, now = fetch(self._rows), fetch(rows)
        return before.shape == now.shape and before.tobytes() == now.tobytes()

    def _room(self, known: int, tokens: int) -> Any:
        """A cache for so many tokens, with the first ``known`` of the last prompt in it."""
        pool = self.vlm.chain.pool
        if known:
            self._cache = pool.grow(self._cache, tokens)
        else:
            if self._cache is not None:
                pool.give_back(self._cache)
            self._cache = pool.take(1, tokens)
        return self._cache
