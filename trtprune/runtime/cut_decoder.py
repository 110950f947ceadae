"""A decoder in segments, with visual tokens pruned between them.

For the loop around it this is one decoder: from a prompt to logits, then token by token.  Inside, each segment has a KV
cache of its own, shorter than the one before by the pruned tokens; a row's slot and position in a later segment are
those of the first minus a number that is fixed by its prompt.

The point graphs select the tokens, and ``pruning.schedule`` of the config says how many; text is never pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.base import CachedRow
from trtprune.engine_dir.roles import DECODER, EMBED, PRUNER, RANK, RATERS
from trtprune.errors import EngineDirError, InputError
from trtprune.runtime.decoder import Prefill, skip_rows
from trtprune.runtime.kv_cache import CachePool
from trtprune.runtime.positions import position_rule
from trtprune.runtime.rank import matrix_rank
from trtprune.runtime.segment_caches import SegmentCaches, SegmentStep
from trtprune.runtime.segment_rows import MARKER, MERGED, TEXT, PromptRow, kept_of, pieces_of, rating_table
from trtprune.tensor_names import (
    HIDDEN_STATES,
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    KEEP,
    KEPT_INDICES,
    LAST_HIDDEN_STATE,
    LOGITS,
    LOGITS_INDEX,
    MERGED_FEATURES,
    POSITION_IDS,
    PRUNED_FEATURES,
    RATER_ATTENTION,
    RATER_INDEX,
    RATER_WEIGHTS,
    TEXT_EMBEDS,
    VISUAL_INDEX,
    WRITE_INDEX,
)

if TYPE_CHECKING:
    from trtprune.backends.base import Array
    from trtprune.runtime.chain import Chain
    from trtprune.runtime.layout import Layout

__all__ = ["CutDecoder"]


class CutDecoder:
    """The segments of a directory's decoder and the prune points between them; see :class:`Decoder`.

    Args:
        chain: A chain with components of role ``decoder`` with segments.

    Attributes:
        watch: Called at every prune point with an image's states, its raters' attention and the kept indices.
    """

    prunes = True

    def __init__(self, chain: Chain) -> None:
        if chain.config.pruning.schedule is None:
            raise EngineDirError(f"{chain.config.root}: its decoder is cut, and config.pruning has no schedule for it")
        self._config, self._chain, self._session, self._memory = chain.config, chain, chain.session, chain.memory
        self._positions = position_rule(chain.config.positions.rule, chain.config.positions.axes)
        self._schedule, self._count = chain.config.pruning.schedule, len(chain.config.segments)
        self._rated = any(spec.name == RATER_INDEX for spec in chain.config.segments[0].inputs)
        segments = [self._session(DECODER, k) for k in range(self._count)]
        self._pools = [CachePool(segment, chain.config.kv) for segment in segments]
        self.watch: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None
        self._max_batch = min(segment.max_batch for segment in segments)

    @property
    def max_batch(self) -> int:
        """The largest number of rows that all segments can run."""
        return self._max_batch

    @property
    def identity(self) -> Hashable:
        """The object itself: rows of another method would have other lengths in the segments."""
        return ("decoder", id(self))

    def check_keep(self, keep: int) -> None:
        """Refuses a budget within the build's range that its method cannot serve.

        Raises:
            BudgetError: naming ``--keep`` or the conflicting option.
        """
        self._schedule.schedule(keep, self._config.model.visual_tokens)

    def entering(self, keep: int, visual_tokens: int) -> int:
        """All visual tokens: the first segment reads all of them."""
        return visual_tokens

    # -- caches

    def take(self, batch: int, tokens: int) -> SegmentCaches:
        """Caches for ``batch`` rows of at least ``tokens`` tokens; later segments' caches follow in the prefill."""
        first = self._pools[0].take(batch, tokens)
        none = np.zeros((self._count, batch), np.int64)
        rest: list[Any] = [None] * (self._count - 1)
        return SegmentCaches(batch, first.capacity, tokens, [first, *rest], none, none.copy())

    def grow(self, cache: SegmentCaches, tokens: int) -> SegmentCaches:
        """The same content with room for ``tokens`` tokens per row."""
        if tokens > cache.tokens:
            for k, pool in enumerate(self._pools):
                cache.parts[k] = pool.grow(cache.parts[k], tokens - int(cache.dropped[k].min()))
            cache.tokens, cache.capacity = tokens, cache.parts[0].capacity
        return cache

    def gather(self, rows: Sequence[CachedRow], tokens: int) -> SegmentCaches:
        """See :class:`trtprune.runtime.decoder.Decoder`."""
        dropped = np.stack([row.cache.dropped[:, row.row] for row in rows], axis=1)
        parts = []
        for k, pool in enumerate(self._pools):
            own = [
                CachedRow(row.cache.parts[k], row.row, row.tokens - int(lost))
                for row, lost in zip(rows, dropped[k], strict=True)
            ]
            parts.append(pool.gather(own, tokens - int(dropped[k].min())))
        return SegmentCaches(
            len(rows),
            parts[0].capacity,
            tokens,
            parts,
            dropped,
            np.stack([row.cache.shift[:, row.row] for row in rows], axis=1),
            [row.cache.kept[row.row] for row in rows],
            [row.cache.counts[row.row] for row in rows],
        )

    def give_back(self, cache: SegmentCaches) -> None:
        """Returns a cache that is not used any more."""
        for pool, part in zip(self._pools, cache.parts, strict=True):
            if part is not None:
                pool.give_back(part)

    def share_memory(self, other: CutDecoder) -> None:
        """See :class:`Decoder`."""
        assert self.identity == other.identity

    # -- prompts

    def prefill(self, layouts: Sequence[Layout], cache: SegmentCaches, start: Sequence[int] | None = None) -> Prefill:
        """See :class:`Decoder`.

        Raises:
            InputError: if an image has no text behind it that could rate its tokens.
        """
        # A prune point must see a whole image and all its raters at once: the cached part is kept only if it includes
        # the images.
        start = [0] * len(layouts) if start is None else start
        behind = all(
            places[-1][1] <= first for layout, first in zip(layouts, start, strict=True) for places in layout.places
        )
        fresh = not (behind and any(start))
        start = [0] * len(layouts) if fresh else list(start)
        rows = [self._begin(layout, first, fresh) for layout, first in zip(layouts, start, strict=True)]
        logits, rows = self._pass(rows, cache, start, fresh)
        while logits is None:
            # The ranks that share out the budget are known only after a layer's run. Each pass knows one more of them.
            known = [row.ranks for row in rows]
            rows = [self._begin(layout, 0, fresh) for layout in layouts]
            for row, ranks in zip(rows, known, strict=True):
                row.ranks = ranks
            logits, rows = self._pass(rows, cache, start, fresh)
        if fresh:
            cache.kept = [kept_of(row) for row in rows]
        return Prefill(logits, cache.kept, cache.counts)

    def select(self, layout: Layout) -> list[np.ndarray]:
        """See :class:`Decoder`."""
        cache = self.take(1, len(layout.ids))
        try:
            return self.prefill([layout], cache).kept[0]
        finally:
            self.give_back(cache)

    def _pass(
        self, rows: list[PromptRow], cache: SegmentCaches, start: Sequence[int], fresh: bool
    ) -> tuple[np.ndarray | None, list[PromptRow]]:
        """Logits float32 [B, V] and the rows in the last segment; no logits if a row became stale."""
        if fresh:
            cache.counts = [[[] for _ in row.raters] for row in rows]
        whole = np.array([(len(row), row.next_position) for row in rows]).T
        last = self._count - 1
        out: Mapping[str, Any] = {}
        for k in range(last + 1):
            if fresh:
                self._settle(k, rows, whole, cache)
            slots = np.zeros(len(rows), np.int64) if fresh else np.asarray(start, np.int64) - cache.dropped[k]
            out = self._run(k, rows, cache.parts[k], slots, k == last)
            if k < last:
                rows = [self._advance(k, b, row, out) for b, row in enumerate(rows)]
                if any(row.stale for row in rows):
                    return None, rows
                if not fresh:
                    # The images lie in the cached part: what they lost there moves the text behind them.
                    for row, moved in zip(rows, cache.shift[k + 1] - cache.shift[k], strict=True):
                        row.positions = row.positions - moved
        logits: np.ndarray = self._memory.to_host(out[LOGITS])[:, 0]
        return logits, rows

    def _settle(self, k: int, rows: Sequence[PromptRow], whole: np.ndarray, cache: SegmentCaches) -> None:
        """Records the rows' lengths in segment ``k`` and gets memory for them.

        Args:
            whole: int64 [2, B], lengths and next positions in the first segment.
        """
        cache.dropped[k] = whole[0] - [len(row) for row in rows]
        cache.shift[k] = whole[1] - [row.next_position for row in rows]
        for counts, row in zip(cache.counts, rows, strict=True):
            for number, history in enumerate(counts):
                history.append(int((row.picture == number).sum()))
        if k:
            if cache.parts[k] is not None:
                self._pools[k].give_back(cache.parts[k])
            cache.parts[k] = self._pools[k].take(len(rows), cache.tokens - int(cache.dropped[k].min()))

    def _begin(self, layout: Layout, first: int, fresh: bool) -> PromptRow:
        picture = np.full(len(layout.ids), TEXT)
        picture[layout.markers] = MARKER
        for number, spans in enumerate(layout.places):
            for begin, stop in spans:
                picture[begin:stop] = number
        places = layout.places if fresh else ()
        raters = [self._raters(layout, picture, number) for number in range(len(places))]
        source = np.arange(len(layout.ids))
        ranks: list[list[int]] = [[] for _ in places]
        counts: list[list[int]] = [[] for _ in places]
        return PromptRow(
            pieces=skip_rows(layout.embeds, first),
            positions=layout.positions[:, first:],
            next_position=layout.next_position,
            picture=picture[first:],
            source=source[first:],
            raters=raters,
            keeps=layout.keeps,
            grids=layout.grids if fresh else (),
            places=places,
            ranks=ranks,
            counts=counts,
        )

    def _raters(self, layout: Layout, picture: np.ndarray, number: int) -> np.ndarray:
        """Rows of the first segment that rate an image: some of the text behind it."""
        stop = layout.places[number][-1][1]
        text = np.flatnonzero(picture[stop:] == TEXT) + stop
        if not len(text):
            method = self._config.pruning.method
            raise InputError(
                f"there is no text behind an image of the prompt; with method {method} that text rates it",
                hint=f"put the question behind the image, or build with another {arg('method')}",
            )
        if self._config.find(RATERS) is None:
            return text[-1:]
        image = np.flatnonzero(picture == number)
        out = self._session(RATERS).run(
            {
                IMAGE_FEATURES: self._memory.join([_pieces_at(layout.embeds, image)], len(image)),
                TEXT_EMBEDS: self._memory.join([_pieces_at(layout.embeds, text)], len(text)),
            }
        )
        return text[self._memory.to_host(out["raters"])[0].astype(bool)]

    def _run(
        self, k: int, rows: Sequence[PromptRow], cache: Any, write_index: np.ndarray, last: bool
    ) -> Mapping[str, Any]:
        width = max(map(len, rows))
        positions = np.zeros((len(rows), self._positions.axes, width), np.int64)
        for b, row in enumerate(rows):
            positions[b, :, : len(row)] = row.positions
        inputs: dict[str, Any] = {
            HIDDEN_STATES if k else INPUTS_EMBEDS: self._memory.join([row.pieces for row in rows], width),
            POSITION_IDS: positions,
            WRITE_INDEX: write_index,
        }
        if last:
            inputs[LOGITS_INDEX] = np.array([[len(row) - 1] for row in rows], np.int64)
        elif self._rated:
            inputs[RATER_INDEX] = rating_table(rows)
        return self._session(DECODER, k).run(inputs, cache)

    def _advance(self, k: int, b: int, row: PromptRow, out: Mapping[str, Any]) -> PromptRow:
        """Row ``b`` at the beginning of the segment behind ``k``."""
        states = out[LAST_HIDDEN_STATE][b]
        # The next segment's input in pieces: states [n, D], their images and sources.
        parts: list[tuple[Array, np.ndarray, np.ndarray]] = []

        def carry(begin: int, end: int) -> None:
            if begin < end:
                span = slice(begin, end)
                parts.append((states[span], row.picture[span], row.source[span]))

        done = 0
        for number in range(len(row.raters)):
            index = row.rows_of(number)
            found = self._point(k, b, row, number, index, out)
            if found is None:
                continue
            kept, states_kept, states_merged = found
            # The image's runs of rows, one for each of its spans that is left.
            ends = np.flatnonzero(np.diff(index) > 1) + 1
            edges = np.searchsorted(kept, [0, *ends, len(index)])
            for run, first, last in zip(np.split(index, ends), edges, edges[1:], strict=False):
                carry(done, int(run[0]))
                parts.append(
                    (states_kept[first:last], np.full(last - first, number), row.source[index[kept[first:last]]])
                )
                done = int(run[-1]) + 1
            if states_merged is not None:
                none = np.full(len(states_merged), MERGED)
                parts.append((states_merged, np.full(len(none), number), none))
        carry(done, len(row))
        picture, source = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
        row = replace(row, pieces=[part[0] for part in parts], picture=picture, source=source)
        if not row.raters:
            return row
        positions = self._positions.place(pieces_of(row))
        return replace(row, positions=positions.of_tokens, next_position=positions.next)

    def _point(
        self, k: int, b: int, row: PromptRow, number: int, index: np.ndarray, out: Mapping[str, Any]
    ) -> tuple[np.ndarray, Array, Array | None] | None:
        """Kept indices within the image's rows ``index``, their states, and the merged states; None if all stay."""
        session = self._session(PRUNER, k)
        needs = {spec.name for spec in self._config.part(PRUNER, k).inputs}
        rating, mine = rating_table([row])[0], row.rating(number)
        attention = out[RATER_ATTENTION][b : b + 1] if self._rated else None
        keep = self._keep(k, row, number, attention, np.isin(rating, mine), index)
        if keep >= len(index):
            return None
        width = out[LAST_HIDDEN_STATE].shape[1]
        positions = np.zeros((1, self._positions.axes, width), np.int64)
        positions[0, :, : len(row)] = row.positions
        inputs: dict[str, Any] = {
            HIDDEN_STATES: out[LAST_HIDDEN_STATE][b : b + 1],
            VISUAL_INDEX: index[None],
            RATER_INDEX: rating[None] if self._rated else mine[None],
            POSITION_IDS: positions,
            KEEP: np.array([keep], np.int64),
        }
        counts = self._schedule.merged_counts(len(index) - keep)
        inputs |= {name: np.array([n], np.int64) for name, n in zip(("recycled", "merged"), counts, strict=True)}
        if attention is not None:
            # Rows of other images' raters, and padding for rows with more raters, do not count.
            count = attention.shape[-2]
            weights, raters = np.zeros((1, count), np.float32), np.zeros((1, count), np.int64)
            weights[0, : len(rating)] = np.isin(rating, mine)
            raters[0, : len(rating)] = rating
            inputs |= {RATER_ATTENTION: attention, RATER_WEIGHTS: weights, RATER_INDEX: raters}
        found = session.run({name: value for name, value in inputs.items() if name in needs})
        merged = found[MERGED_FEATURES][0] if MERGED_FEATURES in found else None
        kept = self._memory.to_host(found[KEPT_INDICES])[0]
        if self.watch is not None and attention is not None:
            given = self._memory.to_host(attention)[0][..., : len(rating), :][..., np.isin(rating, mine), :][..., index]
            self.watch(self._memory.to_host(out[LAST_HIDDEN_STATE])[b][index], given, kept)
        return kept, found[PRUNED_FEATURES][0], merged

    def _keep(
        self, k: int, row: PromptRow, number: int, attention: Array | None, mine: np.ndarray, index: np.ndarray
    ) -> int:
        """The number of an image's tokens that stay at point ``k``."""
        tokens = len(row.grids[number])
        if not self._schedule.ranked:
            return self._schedule.kept(row.keeps[number], tokens)[k]
        ranks, counts = row.ranks[number], row.counts[number]
        new = k == len(ranks)
        if new:
            assert attention is not None
            block = self._memory.to_host(attention)[0, : len(mine)][mine][:, index]
            ranks.append(self._rank(block))
        found = list(self._schedule.rank_counts(ranks, row.keeps[number], tokens))
        row.stale |= new and found[:k] != counts
        counts.append(found[k])
        return found[k]

    def _rank(self, block: np.ndarray) -> int:
        if self._config.find(RANK) is not None:
            return int(self._session(RANK).run({"attention": np.ascontiguousarray(block)})["rank"][0])
        return matrix_rank(block)

    def step(self, cache: SegmentCaches) -> SegmentStep:
        """The decode step over ``cache``."""
        sessions = [self._session(DECODER, k) for k in range(self._count)]
        return SegmentStep(self._session(EMBED), sessions, cache, self._memory, rated=self._rated)


def _pieces_at(pieces: Sequence[Array], rows: np.ndarray) -> list[Array]:
    """The given rows, ascending, of ``pieces`` [n, D], which are counted together."""
    found, first = [], 0
    for piece in pieces:
        own = rows[(rows >= first) & (rows < first + len(piece))] - first
        if len(own):
            found.append(piece if len(own) == len(piece) else piece[own])
        first += len(piece)
    return found
