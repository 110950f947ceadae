"""The way of requests into a running batch.

Images that wait together go through the vision tower together, and prompts that wait together are read in one run, each
in a row of one cache.  Between two stages the batch makes a step, so each stage is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.base import CachedRow
from trtprune.backends.batches import VISION_BATCH
from trtprune.errors import TrtpruneError
from trtprune.runtime.batch_row import BatchRow
from trtprune.runtime.clock import Clock
from trtprune.runtime.layout import beginning
from trtprune.runtime.stores import FeatureStore, PrefixStore, row_keys

if TYPE_CHECKING:
    from trtprune.runtime.answer import Answer
    from trtprune.runtime.decoder import Prefill
    from trtprune.runtime.features import Features
    from trtprune.runtime.images import Prepared
    from trtprune.runtime.layout import Layout
    from trtprune.runtime.orders import Limits, Order
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.prompt import Prompt

__all__ = ["Admission"]

logger = logging.getLogger("trtprune")
PADDING = 0.2
"""Largest share of padding in a run of several prompts: it costs as much as tokens do."""


@dataclass
class _Script:
    """A prompt as the decoder is to read it."""

    layout: Layout
    answer: Answer
    keys: np.ndarray | None


@dataclass(eq=False)
class _Entrant:
    """A request on its way.

    Attributes:
        order: The request.
        prompt: Its prompt.
        features: The features of its images so far, by their keys.
        script: Set when all features are there.
        alone: Whether a run with others failed: then the failure is looked for in runs of its own.
    """

    order: Order
    prompt: Prompt
    features: dict[Hashable, Features] = field(default_factory=dict)
    script: _Script | None = None
    alone: bool = False

    @property
    def missing(self) -> dict[Hashable, Prepared]:
        """The images that are not looked at yet."""
        return {one.key: one.prepared for one in self.order.pictures if one.key not in self.features}

    def seen(self) -> list[Features]:
        """The features of its images in their order."""
        return [self.features[picture.key] for picture in self.order.pictures]


@dataclass
class _Reading:
    """Prompts that are being written into the rows of one cache.

    Attributes:
        entrants: Their requests.
        cache: The cache.
        cached: For each row, the tokens that were in the cache before.
        start: For each row, the tokens that are in it now.
    """

    entrants: list[_Entrant]
    cache: Any
    cached: list[int]
    start: list[int]


class Admission:
    """The requests on their way into a running batch.

    Args:
        pipeline: The stages of the model.
        limits: The batch's sizes.
        prefixes: Cache rows of earlier prompts; None: none are kept.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits, prefixes: PrefixStore | None) -> None:
        self._pipeline, self._limits, self._prefixes = pipeline, limits, prefixes
        self._store = FeatureStore(limits.feature_bytes)
        self._entrants: list[_Entrant] = []
        self._reading: _Reading | None = None

    def __len__(self) -> int:
        return len(self._entrants)

    def take(self, order: Order) -> None:
        """A request's first stage: its prompt, and the features of images that were seen before."""
        try:
            with order.clock.stage("preprocess"):
                prompt = self._pipeline.encode(order.turns, [picture.prepared for picture in order.pictures])
        except Exception as error:
            _report(order, error)
            return
        known = ((picture.key, self._store.get(picture.key)) for picture in order.pictures)
        self._entrants.append(_Entrant(order, prompt, {key: seen for key, seen in known if seen is not None}))

    def work(self, company: bool) -> list[BatchRow]:
        """One stage of the requests that are furthest.

        Args:
            company: Whether other requests wait for their next token meanwhile.

        Returns:
            The rows that have their first token, all in one cache, which is the caller's from now on.
        """
        self._leave_out_cancelled()
        if self._reading is None:
            unseen = [entrant for entrant in self._entrants if entrant.missing]
            if unseen:
                self._look(_together(unseen), company)
                return []
            self._reading = self._begin(company)
        return self._read(self._reading, company) if self._reading is not None else []

    def abandon(self) -> list[Order]:
        """Gives up all of them and returns them."""
        orders = [entrant.order for entrant in self._entrants]
        self._entrants, self._reading = [], None
        return orders

    def _leave_out_cancelled(self) -> None:
        reading = self._reading
        if reading is not None and all(entrant.order.cancelled for entrant in reading.entrants):
            self._end_reading(reading)
        busy = self._reading.entrants if self._reading is not None else []
        self._entrants = [entrant for entrant in self._entrants if entrant in busy or not entrant.order.cancelled]

    def _fail(self, entrants: Sequence[_Entrant], error: Exception) -> None:
        """A failed run: of one request it is that one's failure, of several each is tried alone."""
        for entrant in entrants:
            if len(entrants) > 1:
                entrant.alone = True
            else:
                self._entrants.remove(entrant)
                _report(entrant.order, error)

    # -- images

    def _look(self, unseen: Sequence[_Entrant], company: bool) -> None:
        """One run of the vision tower, for some of these requests' images."""
        pictures = self._next_pictures(unseen, company)
        wanting = [entrant for entrant in unseen if pictures.keys() & entrant.missing.keys()]
        clock = Clock()
        try:
            with clock.stage("vision"):
                seen = self._pipeline.chain.look(list(pictures.values()))
        except Exception as error:
            self._fail(wanting, error)
            return
        found = dict(zip(pictures, seen, strict=True))
        for key, features in found.items():
            self._store.put(key, features)
        for entrant in wanting:
            entrant.features |= {key: found[key] for key in entrant.missing if key in found}
            entrant.order.clock.add(clock)

    def _next_pictures(self, unseen: Sequence[_Entrant], company: bool) -> dict[Hashable, Prepared]:
        """The images of the next run: at least one, and as many as the tower takes and the others may wait for."""
        chosen: dict[Hashable, Prepared] = {}
        crops = tokens = 0
        for entrant in unseen:
            for key, prepared in entrant.missing.items():
                if key in chosen:
                    continue
                crops, tokens = crops + prepared.plan.crops, tokens + prepared.plan.tokens
                if chosen and (crops > VISION_BATCH or (company and tokens > self._limits.chunk)):
                    return chosen
                chosen[key] = prepared
        return chosen

    # -- prompts

    def _begin(self, company: bool) -> _Reading | None:
        """The next prompts to read, and a cache with what earlier prompts left of their beginnings."""
        room = self._limits.chunk if company else self._limits.together
        chosen: list[_Entrant] = []
        sources: list[tuple[Any, int]] = []
        for entrant in _together(self._entrants):
            script = self._script(entrant)
            if script is None:
                continue
            source = (None, 0)
            if self._prefixes is not None and script.keys is not None:
                source = self._prefixes.find(script.keys)
            if not chosen or self._fit([*chosen, entrant], [*sources, source], room):
                chosen.append(entrant)
                sources.append(source)
        if not chosen:
            return None
        start = [length for _, length in sources]
        cache = self._cache(chosen, sources)
        return _Reading(chosen, cache, start, list(start))

    def _script(self, entrant: _Entrant) -> _Script | None:
        """The prompt with its selected visual tokens; None for one that cannot be answered."""
        if entrant.script is not None:
            return entrant.script
        pipeline, order = self._pipeline, entrant.order
        try:
            embeds = pipeline.embed(entrant.prompt, order.clock)
            seed = order.settings.sampling.seed or 0
            selection = pipeline.select(entrant.prompt, embeds, entrant.seen(), order.budget, seed, order.clock)
            layout = pipeline.lay_out(entrant.prompt, embeds, selection)
            answer = pipeline.answer(entrant.prompt, layout, order.settings)
            keys = None if self._prefixes is None else row_keys(layout, selection, pipeline.chain.memory)
        except Exception as error:
            self._fail([entrant], error)
            return None
        entrant.script = _Script(layout, answer, keys)
        return entrant.script

    def _fit(self, entrants: Sequence[_Entrant], sources: Sequence[tuple[Any, int]], room: int) -> bool:
        """Whether these prompts go into one run of ``room`` tokens."""
        rest = [length - start for length, (_, start) in zip(map(_length, entrants), sources, strict=True)]
        padded = max(rest) * len(rest)
        last = max(start for _, start in sources) + max(rest)
        tight = padded - sum(rest) <= PADDING * padded
        return padded <= room and tight and last <= self._pipeline.config.kv.capacity

    def _cache(self, entrants: Sequence[_Entrant], sources: Sequence[tuple[Any, int]]) -> Any:
        decoder = self._pipeline.decoder
        start = [length for _, length in sources]
        rest = [length - first for length, first in zip(map(_length, entrants), start, strict=True)]
        # Padding is written, too, behind a row's own end.
        tokens = max(max(start) + max(rest), *(entrant.script.answer.tokens for entrant in entrants if entrant.script))
        known = next((cache for cache, _ in sources if cache is not None), None)
        if known is None:
            return decoder.take(len(entrants), tokens)
        return decoder.gather([CachedRow(cache or known, 0, length) for cache, length in sources], tokens)

    def _read(self, reading: _Reading, company: bool) -> list[BatchRow]:
        """One run of the decoder over some prompts; their rows, if they are read to their ends."""
        decoder, entrants = self._pipeline.decoder, reading.entrants
        layouts = [entrant.script.layout for entrant in entrants if entrant.script is not None]
        stops = [len(layout.ids) for layout in layouts]
        # With company a long prompt goes in by pieces, so that the others wait for one piece only.
        if company and len(entrants) == 1 and not decoder.prunes:
            stops = [min(stops[0], reading.start[0] + self._limits.chunk)]
        parts = [
            layout if stop == len(layout.ids) else beginning(layout, stop)
            for layout, stop in zip(layouts, stops, strict=True)
        ]
        clock = Clock()
        try:
            with clock.stage("prefill"):
                prefill = decoder.prefill(parts, reading.cache, reading.start)
        except Exception as error:
            self._end_reading(reading)
            self._fail(entrants, error)
            return []
        for entrant in entrants:
            entrant.order.clock.add(clock)
        reading.start = stops
        if stops != [len(layout.ids) for layout in layouts]:
            return []
        self._reading = None
        self._entrants = [entrant for entrant in self._entrants if entrant not in entrants]
        return _rows(reading, prefill)

    def _end_reading(self, reading: _Reading) -> None:
        self._pipeline.decoder.give_back(reading.cache)
        self._reading = None


def _rows(reading: _Reading, prefill: Prefill) -> list[BatchRow]:
    """The rows of prompts that were read, with their first tokens."""
    rows = []
    for number, entrant in enumerate(reading.entrants):
        assert entrant.script is not None
        answer = entrant.script.answer
        answer.kept, answer.segment_tokens = prefill.kept[number], (prefill.segment_tokens or [[]])[number]
        keys = entrant.script.keys
        row = BatchRow(entrant.order, answer, entrant.seen(), reading.cached[number], keys, reading.cache, number)
        with entrant.order.clock.stage("decode"):
            row.choose(prefill.logits[number])
        rows.append(row)
    return rows


def _length(entrant: _Entrant) -> int:
    """Tokens of a prompt."""
    assert entrant.script is not None
    return len(entrant.script.layout.ids)


def _together(entrants: Sequence[_Entrant]) -> list[_Entrant]:
    """Those that may share a run with the first one."""
    return [one for one in entrants if one is entrants[0] or not (one.alone or entrants[0].alone)]


def _report(order: Order, error: Exception) -> None:
    if not isinstance(error, TrtpruneError):
        logger.error("a request failed", exc_info=error)
    order.fail(error)
