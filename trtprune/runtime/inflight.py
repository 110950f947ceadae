"""Requests that join and leave a running batch between two steps of the decoder.

Each prompt is prefilled in a cache of one row, a piece at a time, while the others go on; then its row is copied into
the batch.  A row that is done stays until the next change of the batch, as it does in a batch of fixed rows.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtprune.backends.base import CachedRow
from trtprune.errors import TrtpruneError
from trtprune.runtime.answer import Answer, AnswerSettings
from trtprune.runtime.clock import Clock
from trtprune.runtime.layout import beginning
from trtprune.runtime.stores import FeatureStore, PrefixStore, answer_keys, row_keys

if TYPE_CHECKING:
    from trtprune.backends.base import Step
    from trtprune.runtime.budget import Budget
    from trtprune.runtime.features import Features
    from trtprune.runtime.images import Prepared
    from trtprune.runtime.layout import Layout, Selection
    from trtprune.runtime.pipeline import Pipeline
    from trtprune.runtime.result import Result
    from trtprune.text.template import Turn

__all__ = ["InFlight", "Limits", "Listener", "Order", "Picture"]

logger = logging.getLogger("trtprune")


@dataclass(frozen=True)
class Picture:
    """A prepared image.

    Attributes:
        key: Its content, equal for equal images only.
        prepared: Its arrays.
    """

    key: Hashable
    prepared: Prepared


class Listener(Protocol):
    """Whoever waits for an answer.  Called by the thread that calls :meth:`InFlight.work`; must return at once."""

    def on_text(self, piece: str) -> None:
        """The next piece of the answer; the pieces add up to the result's text."""

    def on_result(self, result: Result, pictures: Sequence[Features], cached_tokens: int) -> None:
        """The finished answer, its images' features, and the tokens of the prompt that were cached already."""

    def on_error(self, error: Exception) -> None:
        """The failure of this request alone."""


@dataclass
class Order:
    """One request.

    Attributes:
        turns: The conversation; its last turn is the user's.
        pictures: Its images, in the order of the turns.
        budget: The budget of each image.
        settings: Settings of the answer.
        listener: Whoever waits for it.
        cancelled: Set from any thread by a listener that no longer waits.
    """

    turns: Sequence[Turn]
    pictures: Sequence[Picture]
    budget: Budget
    settings: AnswerSettings
    listener: Listener
    cancelled: bool = False
    clock: Clock = field(default_factory=Clock)


@dataclass(frozen=True)
class Limits:
    """Sizes of a running batch.

    Attributes:
        rows: Most requests at once.
        chunk: Most tokens of a prompt in one run while other requests wait for their next token.
        feature_bytes: Memory for features of earlier images.
        prefix_bytes: Memory for cache rows of earlier prompts and answers.
    """

    rows: int = 8
    chunk: int = 256
    feature_bytes: int = 256 << 20
    prefix_bytes: int = 512 << 20


@dataclass
class _Row:
    """A request whose prompt is in a cache."""

    order: Order
    answer: Answer
    features: Sequence[Features]
    cached: int
    keys: np.ndarray | None
    cache: Any
    """Its own cache; None once it is in the batch."""
    token: int = 0

    @property
    def steps(self) -> int:
        """Tokens of the answer that were fed back."""
        return len(self.answer.row.token_ids) - 1

    @property
    def length(self) -> int:
        """Tokens of the row in the cache."""
        return len(self.answer.row.layout.ids) + self.steps

    @property
    def place(self) -> int:
        """Position of its last token."""
        return self.answer.row.layout.next_position + self.steps

    @property
    def going(self) -> bool:
        """Whether it wants another token."""
        return self.answer.row.finish_reason is None and not self.order.cancelled


class InFlight:
    """A batch that runs as long as there are requests.  One thread at a time may call it.

    Args:
        pipeline: The stages of the model.
        limits: Its sizes; the rows are at most those of the engines.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._pipeline, self._limits = pipeline, limits
        self.max_rows = min(limits.rows, pipeline.decoder.max_batch)
        self._features = FeatureStore(limits.feature_bytes)
        reused = limits.prefix_bytes > 0 and not pipeline.decoder.prunes
        self._prefixes = PrefixStore(pipeline.decoder, limits.prefix_bytes) if reused else None
        self._waiting: deque[Order] = deque()
        self._joining: tuple[Order, Iterator[_Row | None]] | None = None
        self._rows: list[_Row] = []
        """The rows of the batch's cache, with those that are done."""
        self._cache: Any = None
        self._step: Step | None = None

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests with a row, or about to get one."""
        return sum(row.going for row in self._rows) + (self._joining is not None)

    @property
    def cache_bytes(self) -> int:
        """Memory of the batch's cache and of earlier prompts."""
        return (self._cache.nbytes if self._cache is not None else 0) + (self._prefixes.nbytes if self._prefixes else 0)

    def add(self, order: Order) -> None:
        """Puts a request behind the waiting ones."""
        self._waiting.append(order)

    def work(self) -> bool:
        """One round: a stage of the request that joins, and a token for every row; False if there is nothing to do."""
        with self._pipeline.using():
            joined = self._join()
            stepped = self._round()
        return joined or stepped or bool(self._waiting)

    def abandon(self, error: Exception) -> None:
        """Gives up all requests, whose listeners get ``error``."""
        orders = [row.order for row in self._rows if row.going]
        orders += [self._joining[0]] if self._joining else []
        orders += self._waiting
        self._rows, self._joining, self._cache, self._step = [], None, None, None
        self._waiting.clear()
        for order in orders:
            order.listener.on_error(error)

    # -- a request joins

    def _join(self) -> bool:
        """A stage of the next request's way into the batch."""
        if self._joining is None:
            if not self._waiting or self.active >= self.max_rows:
                return False
            order = self._waiting.popleft()
            if order.cancelled:
                return True
            self._joining = (order, self._admission(order))
        order, stages = self._joining
        try:
            row = None if order.cancelled else next(stages)
        except TrtpruneError as error:
            self._joining = None
            order.listener.on_error(error)
            return True
        except Exception as error:  # of this request alone: the others go on
            logger.exception("a request failed")
            self._joining = None
            order.listener.on_error(error)
            return True
        if order.cancelled:
            stages.close()  # type: ignore[attr-defined]
            self._joining = None
            if row is not None:
                self._pipeline.decoder.give_back(row.cache)
        elif row is not None:
            self._joining = None
            self._enter(row)
        return True

    def _admission(self, order: Order) -> Iterator[_Row | None]:
        """The stages of a request up to its first token; yields None behind each, and at the end its row."""
        pipeline, clock = self._pipeline, order.clock
        with clock.stage("preprocess"):
            prompt = pipeline.encode(order.turns, [picture.prepared for picture in order.pictures])
        features: list[Features] = []
        for picture in order.pictures:
            seen = self._features.get(picture.key)
            if seen is None:
                with clock.stage("vision"):
                    seen = pipeline.chain.look([picture.prepared])[0]
                self._features.put(picture.key, seen)
                yield None
            features.append(seen)
        embeds = pipeline.embed(prompt, clock)
        seed = order.settings.sampling.seed or 0
        selection = pipeline.select(prompt, embeds, features, order.budget, seed, clock)
        layout = pipeline.lay_out(prompt, embeds, selection)
        answer = pipeline.answer(prompt, layout, order.settings)
        yield None
        yield from self._prefill(order, answer, layout, selection, features)

    def _prefill(
        self, order: Order, answer: Answer, layout: Layout, selection: Selection, features: Sequence[Features]
    ) -> Iterator[_Row | None]:
        decoder = self._pipeline.decoder
        keys = None if self._prefixes is None else row_keys(layout, selection, self._pipeline.chain.memory)
        cache, start = self._begin(answer, keys)
        cached, length = start, len(layout.ids)
        owned = True
        try:
            while True:
                # Alone, a prompt goes in at once; with company, so that the others wait for a part of it only.
                alone = decoder.prunes or not any(row.going for row in self._rows)
                stop = length if alone else min(length, start + self._limits.chunk)
                with order.clock.stage("prefill"):
                    part = layout if stop == length else beginning(layout, stop)
                    prefill = decoder.prefill([part], cache, [start])
                start = stop
                if start == length:
                    break
                yield None
            answer.kept, answer.segment_tokens = prefill.kept[0], (prefill.segment_tokens or [[]])[0]
            row = _Row(order, answer, features, cached, keys, cache)
            with order.clock.stage("decode"):
                row.token = answer.row.choose(prefill.logits[0])
            owned = False
            yield row
        finally:
            if owned:
                decoder.give_back(cache)

    def _begin(self, answer: Answer, keys: np.ndarray | None) -> tuple[Any, int]:
        """A cache of one row for a prompt, and how many of the prompt's rows are in it."""
        decoder = self._pipeline.decoder
        if self._prefixes is not None and keys is not None:
            found, common = self._prefixes.find(keys)
            if common:
                return decoder.gather([CachedRow(found, 0, common)], answer.tokens), common
        return decoder.take(1, answer.tokens), 0

    def _enter(self, row: _Row) -> None:
        """Gives a row with its first token a place in the batch, unless that token was its last."""
        self._tell(row)
        if not row.going:
            self._leave(row, row.cache, 0)
            self._pipeline.decoder.give_back(row.cache)
            return
        self._regroup([*(other for other in self._rows if other.going), row])

    # -- the batch

    def _round(self) -> bool:
        """A token for every row."""
        if not any(row.going for row in self._rows):
            self._end()  # of rows that were all cancelled between two rounds
            return False
        assert self._step is not None
        clock = Clock()
        axes = len(self._rows[0].answer.row.layout.positions)
        token = np.array([[row.token] for row in self._rows], np.int64)
        position = np.repeat(np.array([row.place for row in self._rows], np.int64)[:, None, None], axes, axis=1)
        # A row that is done writes to its last place again.
        slots = np.minimum([row.length for row in self._rows], self._cache.capacity - 1).astype(np.int64)
        with clock.stage("decode"):
            logits = self._step(token, position, slots)
            going = [(number, row) for number, row in enumerate(self._rows) if row.going]
            for number, row in going:
                row.token = row.answer.row.choose(logits[number])
        for number, row in going:
            row.order.clock.ms["decode"] += clock.ms["decode"]
            self._tell(row)
            if not row.going:
                self._leave(row, self._cache, number)
        left = [row for row in self._rows if row.going]
        if not left:
            self._end()
        elif 2 * len(left) <= len(self._rows):
            self._regroup(left)
        return True

    def _end(self) -> None:
        """An empty batch, without a cache."""
        if self._cache is not None:
            self._pipeline.decoder.give_back(self._cache)
        self._rows, self._cache, self._step = [], None, None

    def _regroup(self, rows: Sequence[_Row]) -> None:
        """A cache of these rows alone."""
        decoder = self._pipeline.decoder
        places = {id(row): number for number, row in enumerate(self._rows)}
        sources = []
        for row in rows:
            own = row.cache is not None
            sources.append(CachedRow(row.cache if own else self._cache, 0 if own else places[id(row)], row.length))
        cache = decoder.gather(sources, max(row.answer.tokens for row in rows))
        for row in rows:
            if row.cache is not None:
                decoder.give_back(row.cache)
                row.cache = None
        if self._cache is not None:
            decoder.give_back(self._cache)
        self._rows, self._cache, self._step = list(rows), cache, decoder.step(cache)

    def _tell(self, row: _Row) -> None:
        piece = row.answer.take()
        if piece and not row.order.cancelled:
            row.order.listener.on_text(piece)

    def _leave(self, row: _Row, cache: Any, number: int) -> None:
        """Reports a finished row, and keeps its tokens for later prompts that begin alike."""
        order = row.order
        if not order.cancelled:
            result = row.answer.result(order.clock, cache.nbytes // cache.batch)
            order.listener.on_result(result, row.features, row.cached)
        if self._prefixes is None or row.keys is None:
            return
        generation = row.answer.row
        fed = generation.token_ids[: row.steps]
        axes = len(generation.layout.positions)
        keys = np.concatenate([row.keys, answer_keys(fed, generation.layout.next_position, axes)])
        kept = self._pipeline.decoder.gather([CachedRow(cache, number, len(keys))], len(keys))
        self._prefixes.put(keys, kept)
