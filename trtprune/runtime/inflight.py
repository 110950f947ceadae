"""Requests that join and leave a running batch between two steps of the decoder.

Their images are looked at and their prompts read by :class:`trtprune.runtime.admission.Admission`, a bounded stage
between two steps; then their rows are copied into the batch.  A row that is done stays until the next change of the
batch, as it does in a batch of fixed rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.backends.base import CachedRow
from trtprune.runtime.admission import Admission
from trtprune.runtime.batch_row import BatchRow
from trtprune.runtime.clock import Clock
from trtprune.runtime.orders import Limits, Listener, Order, Picture
from trtprune.runtime.stores import PrefixStore, answer_keys

if TYPE_CHECKING:
    from trtprune.backends.base import Step
    from trtprune.runtime.pipeline import Pipeline

__all__ = ["InFlight", "Limits", "Listener", "Order", "Picture"]


class InFlight:
    """A batch that runs as long as there are requests.  One thread at a time may call it.

    Args:
        pipeline: The stages of the model.
        limits: Its sizes; the rows are at most those of the engines.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._pipeline = pipeline
        self.max_rows = min(limits.rows, pipeline.decoder.max_batch)
        reused = limits.prefix_bytes > 0 and not pipeline.decoder.prunes
        self._prefixes = PrefixStore(pipeline.decoder, limits.prefix_bytes) if reused else None
        self._waiting: deque[Order] = deque()
        self._admission = Admission(pipeline, limits, self._prefixes)
        self._rows: list[BatchRow] = []
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
        return sum(row.going for row in self._rows) + len(self._admission)

    @property
    def cache_bytes(self) -> int:
        """Memory of the batch's cache and of earlier prompts."""
        return (self._cache.nbytes if self._cache is not None else 0) + (self._prefixes.nbytes if self._prefixes else 0)

    def add(self, order: Order) -> None:
        """Puts a request behind the waiting ones."""
        self._waiting.append(order)

    def work(self) -> bool:
        """One round: a stage of the requests that join, and a token for every row; False if there is nothing to do."""
        with self._pipeline.using():
            joined = self._join()
            stepped = self._round()
        return joined or stepped or bool(self._waiting)

    def abandon(self, error: Exception) -> None:
        """Gives up all requests, whose listeners get ``error``."""
        orders = [row.order for row in self._rows if row.going]
        orders += [*self._admission.abandon(), *self._waiting]
        self._rows, self._cache, self._step = [], None, None
        self._waiting.clear()
        for order in orders:
            order.fail(error)

    # -- requests join

    def _join(self) -> bool:
        """A stage of the way into the batch, for all requests that there are rows for."""
        while self._waiting and self.active < self.max_rows:
            order = self._waiting.popleft()
            if not order.cancelled:
                self._admission.take(order)
        if not len(self._admission):
            return False
        rows = self._admission.work(company=any(row.going for row in self._rows))
        if rows:
            self._enter(rows)
        return True

    def _enter(self, rows: Sequence[BatchRow]) -> None:
        """Gives rows with their first tokens, all of one cache, places in the batch, but for those that are done."""
        cache = rows[0].cache
        for row in rows:
            row.tell()
            if not row.going:
                self._leave(row, cache, row.number)
        staying = [row for row in self._rows if row.going]
        coming = [row for row in rows if row.going]
        if staying and coming:
            self._regroup([*staying, *coming])
        elif coming:
            self._end()
            self._run(rows, cache)
        else:
            self._pipeline.decoder.give_back(cache)

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
                row.choose(logits[number])
        for number, row in going:
            row.order.clock.add(clock)
            row.tell()
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

    def _regroup(self, rows: Sequence[BatchRow]) -> None:
        """A cache of these rows alone."""
        decoder = self._pipeline.decoder
        places = {id(row): number for number, row in enumerate(self._rows)}
        sources = []
        for row in rows:
            cache, number = (self._cache, places[id(row)]) if row.cache is None else (row.cache, row.number)
            sources.append(CachedRow(cache, number, row.length))
        cache = decoder.gather(sources, max(row.answer.tokens for row in rows))
        for old in {id(source.cache): source.cache for source in sources}.values():
            decoder.give_back(old)
        self._run(rows, cache)

    def _run(self, rows: Sequence[BatchRow], cache: Any) -> None:
        """These are the batch's rows from now on."""
        for row in rows:
            row.cache = None
        self._rows, self._cache, self._step = list(rows), cache, self._pipeline.decoder.step(cache)

    def _leave(self, row: BatchRow, cache: Any, number: int) -> None:
        """Reports a finished row, and keeps its tokens for later prompts that begin alike."""
        order = row.order
        if order.cancelled:
            return
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
