"""A KV cache in OpenVINO: states of a request, which grow by the tokens of every run.

A state's columns are in the order of the runs, the same for all rows, whereas a row's tokens have slots: rows of a
batch differ in length, padding is written and then overwritten, a conversation is taken up again further ahead.  The
cache knows the slot of every column, and the graph hides the columns that a query must not see
(:mod:`trtprune.backends.openvino_attention`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.backends.binding import CachePair, numpy_dtype, resolve_shape
from trtprune.backends.openvino_attention import COLUMN_SLOTS, ROWS
from trtprune.errors import BackendError

if TYPE_CHECKING:
    from trtprune.backends.base import CachedRow

__all__ = ["NO_SLOT", "OpenVinoCache", "token_bytes"]

NO_SLOT = 2**31 - 1
"""The slot of a column that no query sees. The plug-in's integers have 32 bits."""
LEAST_SPARE = 64


class OpenVinoCache:
    """A request with a state for each cache input.

    Args:
        openvino: The library.
        request: A request of the decoder; nothing else may use it.
        pairs: The pairs of the decoder.
        batch: Rows.
        capacity: Slots of a row.
        token_bytes: Bytes of a token's keys and values, as the plug-in keeps them.

    Attributes:
        nbytes: Bytes of all slots.

    Raises:
        BackendError: if there is no memory for that many.
    """

    def __init__(
        self, openvino: Any, request: Any, pairs: tuple[CachePair, ...], batch: int, capacity: int, token_bytes: int
    ) -> None:
        self._openvino, self.request, self._pairs = openvino, request, pairs
        self.batch, self._token_bytes = batch, token_bytes
        self._states = {state.name: state for state in request.query_state()}
        self._rows = np.arange(batch, dtype=np.int32)
        self.set_capacity(capacity)
        self.zero()

    def set_capacity(self, capacity: int) -> None:
        """Another number of slots, not below the written ones.

        Raises:
            BackendError: if there is no memory for that many.
        """
        self.capacity, self.nbytes = capacity, self.batch * capacity * self._token_bytes
        # Dead columns are tolerated up to a number, so that a row that is written again and again is rarely copied.
        self._spare = max(LEAST_SPARE, capacity // 4)
        try:
            np.empty(self.nbytes, np.uint8)  # the plug-in takes its memory only as tokens come
        except (MemoryError, ValueError) as error:
            raise BackendError(
                f"no memory for a KV cache of {self.nbytes / 1e6:.0f} MB ({error})",
                hint=f"a smaller batch, {arg('keep')} or {arg('max_new_tokens')}",
            ) from None

    def zero(self) -> None:
        """Empties every row."""
        self.request.reset_state()
        self.columns = np.empty((self.batch, 0), np.int64)
        """The slot of each column, int64 [batch, columns]; :data:`NO_SLOT` for one that was overwritten."""

    def extend(self, begin: np.ndarray, count: int) -> dict[str, np.ndarray]:
        """Makes columns for the tokens of a run; returns the graph's inputs for them.

        Args:
            begin: int64 [batch], the slot of each row's first token.
            count: Tokens of a row.

        Raises:
            BackendError: for tokens beyond the capacity.
        """
        if int(begin.min()) < 0 or int(begin.max()) + count > self.capacity:
            raise BackendError(
                f"{count} tokens from slot {int(begin.max())} on are beyond a KV cache of {self.capacity}"
            )
        first = begin[:, None]
        overwritten = (self.columns >= first) & (self.columns < first + count)
        if overwritten.any():
            self.columns[overwritten] = NO_SLOT
        if self.columns.shape[1] + count > self.capacity + self._spare:
            self._compact()
        self.columns = np.concatenate([self.columns, first + np.arange(count)], axis=1)
        return {COLUMN_SLOTS: self.columns, ROWS: self._rows}

    def peek(self, name: str) -> np.ndarray:
        """A state's columns for reading, [batch, heads, columns, head_dim]."""
        data: np.ndarray = self._states[name].state.data
        return data

    def read(self, name: str) -> np.ndarray:
        """A copy of the slots, [batch, heads, capacity, head_dim]; zeros in those that were never written."""
        pair = next(pair for pair in self._pairs if pair.past == name)
        shape = resolve_shape(pair.spec, {"batch": self.batch, "capacity": self.capacity})
        assert shape is not None
        slots = np.zeros(shape, numpy_dtype(pair.spec.dtype))
        if self.columns.shape[1]:
            content = self.peek(name)
            for row, columns in enumerate(self.columns):
                seen = np.flatnonzero(columns != NO_SLOT)
                slots[row][:, columns[seen]] = content[row][:, seen]
        return slots

    def write(self, content: Mapping[str, np.ndarray], columns: np.ndarray) -> None:
        """Replaces everything.

        Args:
            content: For each cache input [batch, heads, columns, head_dim].
            columns: As :attr:`columns`.
        """
        self.zero()
        if columns.shape[1]:
            for name, array in content.items():
                self._states[name].state = self._openvino.Tensor(np.ascontiguousarray(array))
            self.columns = columns

    def take(self, rows: Sequence[CachedRow]) -> None:
        """Replaces the rows by copies of the beginnings of rows of other caches, at their slots."""
        chosen = []
        for row in rows:
            columns = row.cache.columns[row.row]
            places = np.flatnonzero(columns < row.tokens)
            chosen.append(places[np.argsort(columns[places])])
        columns = np.full((len(rows), max(map(len, chosen))), NO_SLOT, np.int64)
        for target, row, places in zip(columns, rows, chosen, strict=True):
            target[: len(places)] = row.cache.columns[row.row, places]
        content = {}
        for pair in self._pairs if columns.shape[1] else ():
            sources = {id(row.cache): row.cache.peek(pair.past) for row in rows if len(row.cache.columns[0])}
            some = next(iter(sources.values()))
            content[pair.past] = np.zeros((len(rows), some.shape[1], columns.shape[1], some.shape[3]), some.dtype)
            for target, row, places in zip(content[pair.past], rows, chosen, strict=True):
                if len(places):
                    target[:, : len(places)] = sources[id(row.cache)][row.row][:, places]
        self.write(content, columns)

    def _compact(self) -> None:
        """Drops the columns that no query sees."""
        from trtprune.backends.base import CachedRow

        self.take([CachedRow(self, row, self.capacity) for row in range(self.batch)])


def token_bytes(pairs: Sequence[CachePair], kind: str) -> int:
    """Bytes of a token in a cache of OpenVINO's element type ``kind``: ``f32``, ``bf16`` or ``u8``."""
    total = 0
    for pair in pairs:
        heads, width = (int(pair.spec.shape[axis]) for axis in (1, 3))
        # Eight bits: a scale and a zero point beside them, both float32, for each head of a token.
        total += heads * (width + 8 if kind == "u8" else width * {"f32": 4, "bf16": 2}[kind])
    return total
