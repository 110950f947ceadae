"""What earlier requests leave for later ones: features of images, and cache rows of the beginnings of prompts.

Both are bounded in bytes and drop what was not used for the longest time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trtprune.backends.base import Memory
    from trtprune.runtime.decoder import Decoder
    from trtprune.runtime.features import Features
    from trtprune.runtime.layout import Layout, Selection

__all__ = ["FeatureStore", "PrefixStore", "answer_keys", "row_keys"]

TEXT = -1
"""Second number of the key of a row of text; the first one is its id."""


class FeatureStore:
    """Features of images by content.

    Args:
        limit: Largest number of bytes; 0: nothing is kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: OrderedDict[Hashable, Features] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Hashable) -> Features | None:
        """The features of an image."""
        features = self._found.get(key)
        if features is not None:
            self._found.move_to_end(key)
        return features

    def put(self, key: Hashable, features: Features) -> None:
        """Keeps an image's features, unless they alone are too large."""
        size = _bytes_of(features)
        if size > self._limit or key in self._found:
            return
        self._found[key] = features
        self.nbytes += size
        while self.nbytes > self._limit:
            self.nbytes -= _bytes_of(self._found.popitem(last=False)[1])


def _bytes_of(features: Features) -> int:
    arrays = [features.image, *features.extras.values(), *features.crops.values()]
    return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in arrays)


def row_keys(layout: Layout, selection: Selection, memory: Memory) -> np.ndarray:
    """What each row of a prompt is, int64 [S, 2 + axes]: rows with equal keys, all rows before them included, have
    equal keys and values in a decoder that does not prune.

    A row of text is its id; a visual token is a digest of all rows of its image that enter the decoder, and its place
    among them.  Behind these two numbers is the position.
    """
    keys = np.stack([layout.ids, np.full(len(layout.ids), TEXT)], axis=1)
    for places, rows in zip(layout.places, selection.rows, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.ascontiguousarray(memory.to_host(rows)).view(np.uint8).data)
        low, high = np.frombuffer(digest.digest(), np.int64)
        first = 0
        for begin, stop in places:
            count = np.arange(first, first + stop - begin, dtype=np.int64)
            keys[begin:stop, 0], keys[begin:stop, 1] = low ^ count, high
            first += stop - begin
    return np.concatenate([keys, layout.positions.T], axis=1)


@dataclass(frozen=True, eq=False)
class _Entry:
    keys: np.ndarray
    cache: Any


class PrefixStore:
    """Cache rows of prompts and their answers, for prompts that begin alike.

    Args:
        decoder: The decoder, which must not prune: in one that does, the rows of an image depend on the text behind it.
        limit: Largest number of bytes.
    """

    def __init__(self, decoder: Decoder, limit: int) -> None:
        self._decoder, self._limit = decoder, limit
        self._entries: list[_Entry] = []
        self.nbytes = 0

    def find(self, keys: np.ndarray) -> tuple[Any, int]:
        """The cache with the longest common beginning of at most S - 1 rows, and that length; (None, 0) without one."""
        best, longest = None, 0
        for entry in self._entries:
            length = min(len(keys) - 1, len(entry.keys))
            different = np.flatnonzero((keys[:length] != entry.keys[:length]).any(axis=1))
            common = int(different[0]) if len(different) else length
            if common > longest:
                best, longest = entry, common
        if best is None:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        return best.cache, longest

    def put(self, keys: np.ndarray, cache: Any) -> None:
        """Keeps the row of a cache of one row, which nothing else uses; ``keys`` has its tokens."""
        kept = []
        for entry in self._entries:  # what the new row has, too, is not kept twice
            inside = len(entry.keys) <= len(keys) and bool((entry.keys == keys[: len(entry.keys)]).all())
            if inside:
                self._drop(entry)
            else:
                kept.append(entry)
        self._entries = kept
        self._entries.append(_Entry(keys, cache))
        self.nbytes += cache.nbytes
        while self._entries and self.nbytes > self._limit:
            self._drop(self._entries.pop(0))

    def _drop(self, entry: _Entry) -> None:
        self.nbytes -= entry.cache.nbytes
        self._decoder.give_back(entry.cache)


def answer_keys(token_ids: Sequence[int], next_position: int, axes: int) -> np.ndarray:
    """The keys of an answer's tokens behind a prompt, see :func:`row_keys`."""
    ids = np.array(token_ids, np.int64)
    positions = np.repeat((next_position + np.arange(len(ids)))[:, None], axes, axis=1)
    return np.concatenate([ids[:, None], np.full((len(ids), 1), TEXT), positions], axis=1)
