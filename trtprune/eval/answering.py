"""Questions about images to several builds at once, with common computations done once.

The answers are those of :meth:`trtprune.runtime.Vlm.generate`, up to the rounding of larger matrix products: greedy,
ended by the same rules, from the same graphs.  Three things are shared:

* Builds with one decoder answer side by side, as a batch.
* The selection of a method that does not read the question is computed once per image.
* If consecutive prompts have the same beginning, which with such a method includes the whole image, the cache keeps it
  and only the rest goes through the decoder, as in a conversation with ``repick=False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.runtime.answer import AnswerSettings
from trtprune.runtime.budget import Budget
from trtprune.runtime.clock import Clock
from trtprune.runtime.pipeline import turns_of

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime import Features, Result, Vlm
    from trtprune.runtime.layout import Layout, Selection
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.prompt import Prompt

__all__ = ["Answerer", "batches"]

CACHE_BYTES = 1 << 30
"""The largest cache of a batch with more than one row, in bytes."""


def batches(vlms: Sequence[Vlm], tokens: int) -> list[list[int]]:
    """Groups of builds that can answer as one batch, as indices in ``vlms``, in order.

    Args:
        vlms: Builds of one checkpoint.
        tokens: The largest number of tokens of a row.
    """
    found: dict[Any, list[list[int]]] = {}
    for place, vlm in enumerate(vlms):
        decoder = vlm.pipeline.decoder
        # A batch continues from the cached part of an image only if all of its rows do.
        groups = found.setdefault((decoder.identity, vlm.pipeline.reads_question), [[]])
        limit = min(decoder.max_batch, max(1, CACHE_BYTES // max(1, vlm.config.kv.bytes_per_token * tokens)))
        if len(groups[-1]) >= limit:
            groups.append([])
        groups[-1].append(place)
    return [group for groups in found.values() for group in groups]


@dataclass
class _Lane:
    """The state of a build's row between two questions."""

    pipeline: Pipeline
    blind: bool
    features: Features | None = None
    keep: int = 0
    seed: int = 0
    selection: Selection | None = None
    cached: Layout | None = None


class Answerer:
    """Answers questions about one image each, with builds that share a decoder; see :func:`batches`.

    Args:
        vlms: The builds; nothing else may use them in between.
        max_new_tokens: Longest answer, in tokens.
        stop: Texts that end an answer.
        reuse: Whether the common beginning of consecutive prompts is kept; otherwise every prompt is computed in full.
    """

    def __init__(
        self, vlms: Sequence[Vlm], *, max_new_tokens: int, stop: Sequence[str] = (), reuse: bool = True
    ) -> None:
        self.reused = 0
        """Number of prompt tokens that were taken from the cache."""
        self._lanes = [_Lane(vlm.pipeline, not vlm.pipeline.reads_question) for vlm in vlms]
        self._pipeline = vlms[0].pipeline
        self._settings = AnswerSettings.of(
            vlms[0].config.generation, max_new_tokens=max_new_tokens, temperature=0, stop=list(stop) or None
        )
        self._reuse = reuse and all(lane.blind for lane in self._lanes)
        self._cache: Any = None

    def ask(self, features: Sequence[Features], question: str, keep: int, seed: int = 0) -> list[Result]:
        """The builds' answers to a question about an image with known features.

        Args:
            features: The image's features from each build's vision graph.
            question: The text for the chat template.
            keep: Number of visual tokens to keep.
            seed: Seed of method ``random``.

        Raises:
            InputError: if the prompt does not fit.
        """
        pipeline, clock, lanes = self._pipeline, Clock(), self._lanes
        prompt = pipeline.encode(turns_of(question, 1, None), features[:1])
        embeds = pipeline.embed(prompt, clock)
        layouts, answers, known = [], [], []
        for lane, seen in zip(lanes, features, strict=True):
            before = lane.selection
            selection = self._pick(lane, seen, prompt, embeds, keep, seed, clock)
            layout = lane.pipeline.lay_out(prompt, embeds, selection)
            answers.append(lane.pipeline.answer(prompt, layout, self._settings))
            known.append(_known(lane.cached, layout, before is selection))
            layouts.append(layout)
        # A cache that is not zeroed for a new image is only for batches in which all rows continue.
        start = known if all(known) else [0] * len(known)
        cache = self._room(start, max(answer.tokens for answer in answers))
        # Until the answers are complete the cache has no owner: after an interrupt its content must not be used.
        for lane in lanes:
            lane.cached = None
        for _ in pipeline.run(answers, layouts, cache, start, clock):
            pass
        if self._reuse:
            for lane, layout in zip(lanes, layouts, strict=True):
                lane.cached = layout
        self.reused += sum(start)
        return [answer.result(clock, cache.nbytes // len(lanes)) for answer in answers]

    def close(self) -> None:
        """Returns the cache's memory."""
        if self._cache is not None:
            self._pipeline.decoder.give_back(self._cache)
        self._cache = None
        for lane in self._lanes:
            lane.cached = lane.features = lane.selection = None

    def _pick(
        self, lane: _Lane, features: Features, prompt: Prompt, embeds: Array, keep: int, seed: int, clock: Clock
    ) -> Selection:
        """The build's selection for the image; for the image of the last question, the same selection."""
        same = lane.features is features and (lane.keep, lane.seed) == (keep, seed)
        if not (lane.blind and same and lane.selection):
            lane.features, lane.keep, lane.seed = features, keep, seed
            lane.selection = lane.pipeline.select(prompt, embeds, [features], Budget(keep), seed, clock)
        return lane.selection

    def _room(self, start: Sequence[int], tokens: int) -> Any:
        """A cache for ``tokens`` per row, with the first ``start`` tokens of each row's last prompt in it."""
        pool = self._pipeline.decoder
        if all(start):
            self._cache = pool.grow(self._cache, tokens)
        else:
            if self._cache is not None:
                pool.give_back(self._cache)
            self._cache = pool.take(len(start), tokens)
        return self._cache


def _known(cached: Layout | None, layout: Layout, same_rows: bool) -> int:
    """The number of a prompt's first tokens in the cache, with the same embeddings at the same positions."""
    # All placeholders are equal: images and selections differ in the rows at their places.
    if cached is None or not same_rows:
        return 0
    # The last token is always computed, for its logits.
    length = min(len(layout.ids) - 1, len(cached.ids))
    same = cached.ids[:length] == layout.ids[:length]
    same &= (cached.positions[:, :length] == layout.positions[:, :length]).all(axis=0)
    different = np.flatnonzero(~same)
    known = int(different[0]) if len(different) else length
    # The text before the image is too short to justify a cache that is not zeroed for a new image.
    return known if known >= layout.places[0][-1][1] else 0
